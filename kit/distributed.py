"""The processes that torchrun starts: who this one is, and how they wait and agree.

They talk over gloo, which works for NPU, GPU and CPU alike. torch is imported only where there
is more than one process.
"""

import contextlib
import datetime
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar, cast

from kit.errors import KitError, one_line

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)  # for a rank that neither answers nor dies


@dataclass(frozen=True)
class Rank:
    """Where this process stands among torchrun's."""

    rank: int = 0  # number among all processes
    local_rank: int = 0  # number among those of this host, which is the number of its device
    world_size: int = 1  # processes in all
    local_size: int = 1  # processes on this host

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0


def place() -> Rank:
    """Return what torchrun's environment variables say; KitError where they make no sense."""
    texts = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if texts[2] is None:
        return Rank()
    try:
        rank, local_rank, world_size = (int((text or "")[:9]) for text in texts)
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")[:9])
    except ValueError:
        rank = local_rank = world_size = local_size = -1
    if not (0 <= rank < world_size and 0 <= local_rank < world_size):
        raise KitError(
            f"RANK, LOCAL_RANK and WORLD_SIZE are {texts}, which no torchrun sets: "
            "unset them or start with torchrun"
        )
    return Rank(rank, local_rank, world_size, max(1, local_size))


def cores(where: Rank) -> int:
    """Return how many cores each process of this host has for itself, at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) // where.local_size)


def share_cores(where: Rank) -> None:
    """Let torch use this process's share of the cores, unless the user set a number of threads."""
    # torchrun sets it to 1 where it is not set.
    if where.local_size > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        import torch

        torch.set_num_threads(cores(where))


@dataclass(frozen=True)
class Group:
    """All processes of a run, connected by joined; with one, waiting and agreeing cost nothing."""

    place: Rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.place.world_size

    def barrier(self, name: str) -> None:
        """Wait until every process is here; KitError, with the name, where one is lost."""
        if self.size == 1:
            return
        from torch import distributed

        with lost_ranks(f"waiting for {name}"):
            distributed.monitored_barrier(timeout=TIMEOUT)

    def gather(self, value: T, name: str) -> list[T]:
        """Return every process's value in the order of the ranks; KitError where one is lost."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        with lost_ranks(f"gathering {name}"):
            distributed.all_gather_object(values, value)
        return cast("list[T]", values)


@contextlib.contextmanager
def joined(where: Rank) -> Iterator[Group]:
    """Connect to the other processes for the block; KitError where they cannot be reached.

    torchrun answers the death of one process with SIGTERM to the others: a KitError that says so.
    """
    group = Group(where)
    if where.world_size == 1:
        yield group
        return
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise KitError(
            f"MASTER_ADDR is {address!r} and MASTER_PORT {port[:20]!r}, where the other ranks "
            "cannot be met: start with torchrun"
        )
    from torch import distributed

    def end_by_torchrun(number: int, frame: FrameType | None) -> None:
        raise KitError("torchrun ended this rank: another rank died, or the run was stopped")

    before = signal.signal(signal.SIGTERM, end_by_torchrun)
    try:
        with lost_ranks("meeting the other ranks"):
            distributed.init_process_group("gloo", timeout=TIMEOUT)
        yield group
        distributed.destroy_process_group()  # not after an error: it would wait for the lost
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def lost_ranks(moment: str) -> Iterator[None]:
    """Turn gloo's RuntimeError into a KitError that says that a rank was lost."""
    try:
        yield
    except RuntimeError as error:
        raise KitError(
            f"lost another rank while {moment} ({one_line(error)}): "
            "see its own message and torchrun's"
        ) from error
