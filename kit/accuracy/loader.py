"""Decode and preprocess a folder's images ahead of the device: in worker processes or a thread."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kit.errors import KitError
from kit.model import images
from kit.model.preprocessing import Preprocessing, preprocess

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # torch's: 0 leaves accelerators alone at import


@dataclass(frozen=True)
class Loaded:
    """One image file, ready for the model, or the reason why it is not.

    Attributes:
        path: the file.
        sha256: of its bytes; empty where it is broken.
        pixels: float32, 3 x rows x columns; None where it is broken.
        problem: what is wrong; empty where nothing is.
    """

    path: Path
    sha256: str
    pixels: npt.NDArray[np.float32] | None
    problem: str


def load_one(path: Path, steps: Preprocessing) -> Loaded:
    """Decode and preprocess one file; a broken one is a result, not an error."""
    try:
        decoded = images.decode(path)
    except KitError as error:
        return Loaded(path, "", None, str(error))
    pixels: npt.NDArray[np.float32] = preprocess(decoded.pixels, steps)[0].numpy()
    return Loaded(path, decoded.sha256, pixels, "")


def begin_worker() -> None:
    """Prepare a worker process: one thread, and Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class Loader:
    """Loads images in the order given, a few ahead of the one that is asked for.

    Use it as a context manager: leaving it ends the workers.
    """

    def __init__(self, workers: int, steps: Preprocessing) -> None:
        """Load with so many processes; 0 is one thread of this process."""
        self.workers = workers
        self.steps = steps
        self._executor: Executor | None = None
        self._autoload: str | None = None

    def __enter__(self) -> "Loader":
        """Start the workers; each one itself starts with its first image."""
        if self.workers == 0:
            self._executor = ThreadPoolExecutor(1, "load")
            return self
        # Spawned, because a forked child would share the accelerator's threads and locks; and
        # a worker must not open the accelerator when it imports torch.
        self._autoload = os.environ.get(AUTOLOAD)
        os.environ[AUTOLOAD] = "0"
        self._executor = ProcessPoolExecutor(
            self.workers, mp_context=get_context("spawn"), initializer=begin_worker
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers without waiting for what nobody will ask for."""
        assert self._executor is not None  # entered
        self._executor.shutdown(wait=True, cancel_futures=True)
        if self.workers == 0:
            return
        if self._autoload is None:
            del os.environ[AUTOLOAD]
        else:
            os.environ[AUTOLOAD] = self._autoload

    def stream(self, paths: Iterable[Path], ahead: int) -> Iterator[Loaded]:
        """Yield every image in order while the next `ahead` ones are being loaded.

        Raises:
            KitError: where a worker process died.
        """
        assert self._executor is not None  # entered
        pending: deque[Future[Loaded]] = deque()
        try:
            for path in paths:
                pending.append(self._executor.submit(load_one, path, self.steps))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise KitError(
                "a worker process that decodes images died, perhaps for want of memory: "
                "use fewer --workers; what was finished is kept and taken over by the next run"
            ) from error


def default_workers(images_to_do: int) -> int:
    """Return how many processes pay for their start: none for few images."""
    if images_to_do < 64:  # a worker imports torch first, which takes as long as 100 images
        return 0
    return min(4, max(1, (os.cpu_count() or 1) // 2))
