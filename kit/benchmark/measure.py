"""Measure one call: warm-up until it is steady, then samples, every one of them kept."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kit import statistics
from kit.device.device import device_errors
from kit.device.health import HealthChecks
from kit.device.meters import Sample, Stopwatch
from kit.distributed import Group
from kit.model.model import Features
from kit.progress import Progress
from kit.records import Latency, WarmUp

WARM_UP_BOUND = 100  # forwards
WARM_UP_BOUND_S = 10.0
LEAST_ITERATIONS = 5  # where a time limit shortens a measurement
WINDOW = 5  # forwards; two of them must agree
Call = Callable[[], Features]


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        iterations: timed forwards.
        warm_up: least warm-up forwards.
        min_seconds: the timed forwards go on until they took this long.
        limit_s: fewer than `iterations`, but at least LEAST_ITERATIONS, where these would take
            longer than this; None for no limit.
        window: forwards in one of the two windows that must agree at the end of the warm-up.
    """

    iterations: int
    warm_up: int
    min_seconds: float = 0.0
    limit_s: float | None = None
    window: int = WINDOW


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `latency` is what there was by then, None for nothing."""

    def __init__(self, latency: Latency | None) -> None:
        """Keep what was measured."""
        super().__init__()
        self.latency = latency


@dataclass
class Taken:
    """The samples of one measurement as they are taken."""

    batch_size: int
    window: int
    warm_up: list[float] = field(default_factory=list)
    steady: bool = False
    wall: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)

    def add(self, sample: Sample[Features]) -> None:
        """Keep one sample's times; its tensors are let go."""
        self.wall.append(sample.wall_ms)
        if sample.host_ms is not None and sample.device_ms is not None:
            self.host.append(sample.host_ms)
            self.device.append(sample.device_ms)

    def latency(self) -> Latency | None:
        """Return the record's part; None where there is no sample."""
        if not self.wall:
            return None
        warm_up = WarmUp(len(self.warm_up), self.steady, self.window, tuple(self.warm_up))
        return Latency(
            **vars(statistics.statistics(self.wall)),
            batch_size=self.batch_size,
            warm_up=warm_up,
            device_p50_ms=statistics.median(self.device) if self.device else None,
            device_samples_ms=tuple(self.device) if self.device else None,
            host_p50_ms=statistics.median(self.host) if self.host else None,
            host_samples_ms=tuple(self.host) if self.host else None,
        )


@dataclass(frozen=True)
class Meter:
    """What every measurement of a run shares."""

    stopwatch: Stopwatch
    health: HealthChecks
    group: Group
    progress: Progress

    def measure(
        self, call: Call, batch_size: int, plan: Plan, name: str, *, together: bool = True
    ) -> Latency:
        """Return the times of `call`, after a warm-up.

        Args:
            call: one forward of batch_size images.
            batch_size: for the record.
            plan: how long.
            name: of the measurement, for messages.
            together: whether every rank measures this now, from a common start on.

        Raises:
            DeviceError: where the device fails; the message names the forward.
            Interrupted: on Ctrl-C, with the samples until then.
        """
        taken = Taken(batch_size, plan.window)
        group = self.group if together else self.group.alone()
        try:
            with collector_off():
                self.warm_up(call, plan, name, taken)
                group.barrier(f"the start of {name}")
                self.take_samples(call, plan, name, taken, group)
            self.health.after(name)
        except KeyboardInterrupt as error:
            raise Interrupted(taken.latency()) from error
        latency = taken.latency()
        assert latency is not None  # at least one sample was taken
        return latency

    def warm_up(self, call: Call, plan: Plan, name: str, taken: Taken) -> None:
        """Run forwards until their times are steady, or the bound is reached."""
        deadline = time.monotonic() + WARM_UP_BOUND_S
        with self.progress.bar(None, f"{name}, warm-up") as bar:
            while True:
                count = len(taken.warm_up)
                taken.steady = statistics.is_steady(taken.warm_up, plan.window)
                bound = count >= WARM_UP_BOUND or time.monotonic() > deadline
                if count >= plan.warm_up and count and (taken.steady or bound):
                    return
                with device_errors(f"warming up {name}, forward {count + 1}"):
                    taken.warm_up.append(self.stopwatch.time(call).wall_ms)
                bar.step()

    def take_samples(self, call: Call, plan: Plan, name: str, taken: Taken, group: Group) -> None:
        """Time as many forwards as the plan asks for; the same number on every rank."""
        count = planned_count(plan, statistics.median(taken.warm_up[-plan.window :]), group)
        start = time.monotonic()
        with self.progress.bar(count, name) as bar:
            while True:
                for _ in range(count):
                    with device_errors(f"measuring {name}, forward {len(taken.wall) + 1}"):
                        taken.add(self.stopwatch.time(call))
                    bar.step()
                if group.least(time.monotonic() - start) >= plan.min_seconds:
                    return
                count = LEAST_ITERATIONS


def planned_count(plan: Plan, expected_ms: float, group: Group) -> int:
    """Return how many forwards to time where one is expected to take so long."""
    count = plan.iterations
    expected_s = max(expected_ms / 1e3, 1e-6)
    if plan.limit_s is not None:
        count = min(count, max(LEAST_ITERATIONS, int(plan.limit_s / expected_s)))
    count = max(count, math.ceil(plan.min_seconds / expected_s))
    return round(group.most(count))


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now and not within the block, where it would land in single samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
