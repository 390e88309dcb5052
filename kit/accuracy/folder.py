"""Compare device and CPU over a folder: streamed, in batches, resumable, shared among ranks.

While the device computes a batch, a thread computes its CPU references (or takes them from the
disk) and the loader decodes the images after it; so the device and the CPU are busy at once,
and memory holds two batches, however many images there are.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kit.accuracy.cache import ReferenceCache
from kit.accuracy.folder_record import image_accuracy
from kit.accuracy.journal import Entry, Journal, stamp_of
from kit.accuracy.loader import Loaded, Loader, default_workers
from kit.accuracy.recorder import require_on
from kit.accuracy.sides import Side
from kit.accuracy.single import Sides
from kit.device.device import device_errors, synchronize
from kit.distributed import Group
from kit.errors import KitError
from kit.model.model import Features, forward, to_host
from kit.model.setup import model_input
from kit.options import AccuracyOptions
from kit.output import RunLog
from kit.progress import Bar, Progress
from kit.records import BrokenImage

BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True)
class FolderDone:
    """What all ranks found, in the order of the paths.

    Attributes:
        entries: every compared image.
        broken: every file that could not be decoded.
        resumed: how many entries are an earlier run's.
        cached: how many references came from the disk.
    """

    entries: Sequence[Entry]
    broken: Sequence[BrokenImage]
    resumed: int
    cached: int


@dataclass(frozen=True)
class Pending:
    """One batch on its way: the device's features and its images' references to come."""

    images: Sequence[Loaded]
    device: Features
    references: Sequence[Future[Features]]


class FolderRun:
    """One run over a folder's images, or over one rank's share of them."""

    def __init__(
        self,
        options: AccuracyOptions,
        sides: Sides,
        group: Group,
        progress: Progress,
        log: RunLog,
    ) -> None:
        """Prepare the run; nothing is computed yet."""
        self.options = options
        self.sides = sides
        self.group = group
        self.progress = progress
        self.log = log
        # One number for every batch: a kernel's rounding may depend on it, a verdict must not.
        self.batch_size: int = options.batch_size
        self.broken: list[BrokenImage] = []
        about = self.about()
        self.cache = ReferenceCache(options.references, about | {"side": self.side_name()}, log)
        setup = sides.setup
        device = f"{setup.device.type} {setup.device.name}"
        of_the_run = {"device": device, "declared": str(sides.references.declared)}
        self.journal = Journal(
            options.output_dir, about | of_the_run | {"batch": str(self.batch_size)},
            group.place.rank,
        )  # fmt: skip

    def about(self) -> dict[str, str]:
        """Return what every figure of the run depends on, but for the image."""
        setup = self.sides.setup
        return {
            "weights": setup.model_info.sha256,
            "architecture": setup.model_info.architecture,
            "preprocessing": str(setup.steps),
            "attention": str(setup.model_info.attention),
        }

    def side_name(self) -> str:
        """Return the name of the reference's side."""
        return "fp64" if self.sides.self_check else "fp32"

    @property
    def reference_side(self) -> Side:
        """The side that the thresholds are held against."""
        references = self.sides.references
        return references.truth if self.sides.self_check else references.cpu

    def run(self, paths: Sequence[Path]) -> FolderDone:
        """Compare every image once, over all ranks and an earlier run that was stopped.

        Raises:
            KitError: where a result cannot be written, or another rank is lost.
            DeviceError: where the device fails or no longer computes.
        """
        place = self.group.place
        known = {} if False else self.journal.read()
        wanted = [path for path in paths if str(path) not in known]
        done = {str(path): known[str(path)] for path in paths if str(path) in known}
        self.group.barrier("the journals")  # all have read before one begins to write
        self.journal.open(afresh=False)
        if done:
            self.log.info(f"Resuming: {len(done)} images were finished by an earlier run")
        if self.cache.folder is not None:
            self.log.info(f"CPU references are kept in {self.cache.folder}")
        mine = wanted[place.rank :: place.world_size]
        with self.progress.bar(len(wanted), "comparing", "image") as bar:
            fresh = self.compare_all(mine, bar)
        shares = self.group.gather((fresh, self.broken, self.cache.hits), "the results")
        self.journal.close()
        for entries, _, _ in shares:
            done |= {entry.accuracy.image: entry for entry in entries}
        broken = [image for _, images, _ in shares for image in images]
        if not done:
            raise KitError(f"none of the {len(paths)} images could be read: see the warnings above")
        return FolderDone(
            [done[str(path)] for path in paths if str(path) in done],
            sorted(broken, key=lambda image: image.image),
            sum(str(path) in known for path in paths),
            sum(hits for _, _, hits in shares),
        )

    def compare_all(self, paths: Sequence[Path], bar: Bar) -> list[Entry]:
        """Compare this rank's images, in step with the other ranks."""
        workers = self.options.workers
        workers = default_workers(len(paths)) if workers is None else workers
        entries: list[Entry] = []
        with Loader(workers, self.sides.setup.steps) as loader, ThreadPoolExecutor(1) as pool:
            stream = loader.stream(paths, 2 * self.batch_size + workers)
            finished = self.finish_batches(self.batches(stream), pool)
            rounds = int(self.group.most(math.ceil(len(paths) / self.batch_size)))
            for _ in range(rounds):
                found = next(finished, [])
                entries += found
                self.journal.append(found)
                # So no rank runs ahead by more than a batch, and none waits long at the end.
                bar.step(sum(self.group.gather(len(found), "the progress")))
            for found in finished:  # inputs of several shapes make more batches than counted
                entries += found
                self.journal.append(found)
        return entries

    def batches(self, stream: Iterator[Loaded]) -> Iterator[list[Loaded]]:
        """Yield sound images in batches of one input shape; broken ones are named and counted."""
        batch: list[Loaded] = []
        for image in stream:
            if image.pixels is None:
                self.broken.append(BrokenImage(str(image.path), image.problem))
                self.log.warning(f"Left out: {image.problem}")
                continue
            other_shape = batch and batch[0].pixels is not None and (
                batch[0].pixels.shape != image.pixels.shape
            )  # fmt: skip
            if len(batch) == self.batch_size or other_shape:
                yield batch
                batch = []
            batch.append(image)
        if batch:
            yield batch

    def finish_batches(
        self, batches: Iterator[list[Loaded]], pool: ThreadPoolExecutor
    ) -> Iterator[list[Entry]]:
        """Yield every batch's entries, with the next batch already under way."""
        waiting: deque[Pending] = deque()
        for batch in batches:
            references = [pool.submit(self.reference, image) for image in batch]
            waiting.append(Pending(batch, self.device_features(batch), references))
            if len(waiting) == BATCHES_IN_FLIGHT:
                yield self.finish(waiting.popleft())
        while waiting:
            yield self.finish(waiting.popleft())

    def device_features(self, batch: Sequence[Loaded]) -> Features:
        """Compute a batch on the device and prove that the device still computes.

        Raises:
            DeviceError: where it does not.
        """
        setup = self.sides.setup
        images = [torch.from_numpy(image.pixels) for image in batch if image.pixels is not None]
        images += [images[-1]] * (self.batch_size - len(images))
        pixel_values = model_input(setup, torch.stack(images))
        with device_errors("computing a batch"):
            require_on(pixel_values, setup.device.type)
            features = forward(self.sides.model, pixel_values)
            require_on(features.last_hidden_state, setup.device.type)
            synchronize(setup.device)
        on_host = to_host(features)
        setup.health.after("a batch")
        return on_host

    def reference(self, image: Loaded) -> Features:
        """Return one image's reference, from the disk or computed alone, so by content only."""
        if (kept := self.cache.read(image.sha256)) is not None:
            return kept
        assert image.pixels is not None  # only sound images are batched
        found = self.reference_side.features(torch.from_numpy(image.pixels)[None])
        self.cache.write(image.sha256, found)
        return found

    def finish(self, pending: Pending) -> list[Entry]:
        """Compare one batch with its references."""
        entries = []
        arithmetic = self.sides.references.declared.arithmetic
        for number, (image, future) in enumerate(
            zip(pending.images, pending.references, strict=True)
        ):
            device = Features(
                pending.device.pooler_output[number : number + 1],
                pending.device.last_hidden_state[number : number + 1],
            )
            reference = future.result()
            pooled = [
                side.pooler_output[0].to(torch.float32).numpy().astype(np.float32)
                for side in (device, reference)
            ]
            accuracy = image_accuracy(image, device, reference, arithmetic)
            entries.append(Entry(accuracy, stamp_of(image.path), *pooled))
        return entries
