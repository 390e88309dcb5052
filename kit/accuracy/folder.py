"""Compare device and CPU over a folder: streamed, in batches, shared among ranks, resumable.

While the device computes a batch, a thread computes its CPU references (or takes them from the
disk) and others decode the images after it; so the device and the CPU are busy at once, and memory
holds two batches, however many images there are.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kit import distributed, output
from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.recorder import require_on
from kit.accuracy.references import Sides
from kit.accuracy.verdict import judge
from kit.device.device import cpu_name, device_errors, synchronize
from kit.distributed import Group
from kit.errors import KitError
from kit.model import model as models
from kit.model.images import DecodedImage, Inputs, ahead, decode_or_tell, sound
from kit.model.model import TENSORS, Features
from kit.model.preprocessing import Preprocessing, preprocess
from kit.model.setup import model_input
from kit.options import AccuracyOptions
from kit.output import RunLog
from kit.records import (
    AccuracyResults,
    BrokenImage,
    FolderAccuracy,
    ImageAccuracy,
    LimitsInfo,
    NeighbourAgreement,
)
from kit.statistics import finite, percentiles_of

MOST_DECODERS = 4
WORST_SHOWN = 10
MOST_SAVED_BYTES = 64 << 20  # of features: a hundred images of ViT-B/16
Pooled = npt.NDArray[np.float32]


@dataclass(frozen=True)
class JudgedImage:
    """What tells an image from others."""

    image: str  # its path
    sha256: str  # of the file
    pixels_sha256: str  # of the decoded pixels, which preprocessing begins with
    input_sha256: str  # of the model's input, whose last bits another processor may round otherwise
    shape: tuple[int, ...]  # of the model's input


Saved = tuple[JudgedImage, Features]  # features of a batch of one, on the CPU


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the model: what it is, and float32 pixels, 1 x 3 x rows x columns."""

    about: JudgedImage
    pixels: torch.Tensor


def prepare(image: DecodedImage, steps: Preprocessing) -> Prepared:
    """Preprocess one image."""
    pixels = preprocess(image.pixels, steps).contiguous()
    digest = hashlib.sha256(pixels.numpy().data).hexdigest()
    shape = tuple(pixels.shape)
    about = JudgedImage(str(image.path), image.sha256, image.pixels_sha256, digest, shape)
    return Prepared(about, pixels)


def decode_and_prepare(path: Path, steps: Preprocessing) -> Prepared | BrokenImage:
    """Decode and preprocess one file; a broken one is a result, not an error."""
    image = decode_or_tell(path)
    return image if isinstance(image, BrokenImage) else prepare(image, steps)


@dataclass(frozen=True)
class Compared:
    """One finished image: its part of the record, and pooler_output on both sides."""

    accuracy: ImageAccuracy
    device: Pooled
    reference: Pooled


class FolderRun:
    """One run over a folder's images, or over one rank's share of them."""

    def __init__(self, options: AccuracyOptions, sides: Sides, group: Group, log: RunLog) -> None:
        self.sides = sides
        self.group = group
        self.log = log
        self.workers = options.workers or min(MOST_DECODERS, distributed.cores(group.place))
        # One number for every batch: a kernel's rounding may depend on it, a verdict must not.
        self.batch_size = options.batch_size
        self.broken: list[BrokenImage] = []
        self.saved: list[Saved] = []
        self.room = MOST_SAVED_BYTES // group.size
        self.cache = ReferenceCache(options.references, about(sides), log)

    def run(self, inputs: Inputs) -> tuple[FolderAccuracy, list[Saved]] | None:
        """Compare every image once, over all ranks; None on ranks that do not lead.

        With the device's features of the first images, as many as MOST_SAVED_BYTES hold. The ranks
        share the first one's list. A KitError where no image can be read, or a rank is lost.
        """
        place = self.group.place
        lists = self.group.gather(inputs.paths, "the images")
        if any(paths != lists[0] for paths in lists):
            self.log.warning("The ranks find different images: those that the first finds count")
        paths = lists[0]
        if self.cache.folder is not None:
            self.log.info(f"CPU references are kept in {self.cache.folder}")
        rounds = math.ceil(math.ceil(len(paths) / place.world_size) / self.batch_size)
        with self.log.bar(len(paths), "comparing", "image") as step:
            mine = list(self.compare_all(paths[place.rank :: place.world_size], rounds, step))
        own = mine, self.broken, self.cache.hits, self.saved
        shares = self.group.gather(own, "the results")
        finished = {found.accuracy.image: found for share, *_ in shares for found in share}
        if not finished:
            raise KitError(f"none of the {len(paths)} images could be read: see the warnings above")
        cached = sum(hits for _, _, hits, _ in shares)
        if cached:
            self.log.info(f"{cached} of {len(finished)} CPU references were taken from the disk")
        if not place.leads:
            return None
        broken = [image for _, images, *_ in shares for image in images]
        folder = folder_accuracy(
            [finished[str(path)] for path in paths if str(path) in finished],
            [*inputs.broken, *sorted(broken, key=lambda image: image.image)],
            LIMITS[self.sides.references.declared.arithmetic],
            cached=cached,
            ranks=place.world_size,
        )
        kept = {one[0].image: one for *_, saved in shares for one in saved}
        return folder, [kept[str(path)] for path in paths if str(path) in kept]

    def compare_all(
        self, paths: Sequence[Path], rounds: int, step: Callable[[int], object]
    ) -> Iterator[Compared]:
        """Compare this rank's images, in step with the other ranks: so many rounds of a batch."""
        with threads(self.workers, "decode") as decoders, threads(1, "reference") as references:
            work = partial(decode_and_prepare, steps=self.sides.setup.steps)
            prepared = ahead(decoders, work, paths, 2 * self.batch_size + self.workers)
            batches = self.batches(sound(prepared, self.log, self.broken))
            finished = self.finish_batches(batches, references)
            for _ in range(rounds):
                found = next(finished, [])
                yield from found
                # So no rank runs ahead by more than a batch, and none waits long at the end.
                step(sum(self.group.gather(len(found), "the progress")))
            # Inputs of several shapes make more batches than counted.
            yield from itertools.chain.from_iterable(finished)

    def batches(self, images: Iterable[Prepared]) -> Iterator[list[Prepared]]:
        """Yield images in batches of one input shape."""
        for _, alike in itertools.groupby(images, lambda image: image.about.shape):
            while batch := list(itertools.islice(alike, self.batch_size)):
                yield batch

    def finish_batches(
        self, batches: Iterable[list[Prepared]], references: ThreadPoolExecutor
    ) -> Iterator[list[Compared]]:
        """Yield every batch's results, with the next batch already under way."""
        before = None
        for batch in batches:
            coming = [references.submit(self.reference, image) for image in batch]
            begun = batch, self.device_features(batch), coming
            if before is not None:
                yield self.finish(*before)
            before = begun
        if before is not None:
            yield self.finish(*before)

    def device_features(self, batch: Sequence[Prepared]) -> Features:
        """Compute a batch on the device and prove that the device still computes."""
        setup = self.sides.setup
        pixels = [image.pixels for image in batch]
        pixels += [pixels[-1]] * (self.batch_size - len(pixels))
        pixel_values = model_input(setup, torch.cat(pixels))
        with device_errors("computing a batch"):
            features = models.forward(self.sides.model, pixel_values)
            require_on(setup.device.type, pixel_values, *vars(features).values())
            synchronize(setup.device)
        on_host = models.to_host(features)
        setup.health.after("a batch")
        return on_host

    def reference(self, image: Prepared) -> Features:
        """Return one image's reference, from the disk or computed alone, so by content only."""
        if (kept := self.cache.read(image.about.input_sha256)) is not None:
            return kept
        found = self.sides.reference.features(image.pixels)
        models.require_patch_tokens(self.sides.setup.model, found, image.pixels.shape)
        self.cache.write(image.about.input_sha256, found)
        return found

    def finish(
        self, batch: Sequence[Prepared], features: Features, references: Sequence[Future[Features]]
    ) -> list[Compared]:
        """Compare the device's features of one batch with its images' references."""
        found = []
        arithmetic = self.sides.references.declared.arithmetic
        for number, (image, coming) in enumerate(zip(batch, references, strict=True)):
            device = features.map(itemgetter(slice(number, number + 1)))
            if (size := sum(tensor.nbytes for tensor in vars(device).values())) <= self.room:
                self.room -= size
                self.saved.append((image.about, device.map(torch.clone)))
            found.append(compared(image.about, device, coming.result(), arithmetic))
        return found


@contextlib.contextmanager
def threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Have so many threads in the block; at its end what has not begun is dropped."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


# ---- The cache of references ---------------------------------------------------------------------

# They change the last bits of what the CPU computes.
VARIABLES = (
    "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def about(sides: Sides) -> dict[str, object]:
    """Return everything but the input that the bits of a CPU reference depend on."""
    model, info = sides.references.fp32.model, sides.setup.model_info
    config = {key: value for key, value in model.config.to_dict().items() if key[0] != "_"}
    return {
        "weights": info.sha256,
        "architecture": info.architecture,
        "config": config,
        "attention": info.attention,
        "side": "fp64" if sides.self_check else "fp32",
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


class ReferenceCache:
    """CPU references on the disk, one file for each image, found by content; `hits` were found.

    In `folder`, None nowhere; they depend on `about` and the input. What a killed run has computed
    is found again by the next one. A file that is damaged is as good as none.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, object], log: RunLog) -> None:
        self.folder = folder
        self.about = json.dumps(about, sort_keys=True, default=str)
        self.log = log
        self.hits = 0

    def path_of(self, input_sha256: str) -> Path | None:
        """Return the file of an input's reference; None without a folder."""
        if self.folder is None:
            return None
        key = hashlib.sha256(f"{self.about}\n{input_sha256}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, input_sha256: str) -> Features | None:
        """Return an input's reference, None where there is none or its file is damaged."""
        path = self.path_of(input_sha256)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in TENSORS}
                digest = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        if digest != models.sha256_of_tensors(tensors.items()):
            return None
        self.hits += 1
        return Features(**tensors)

    def write(self, input_sha256: str, reference: Features) -> None:
        """Keep an input's reference; where the disk does not take it, stop keeping any."""
        path = self.path_of(input_sha256)
        if path is None:
            return
        tensors = vars(reference.map(torch.clone))  # they share memory
        digest = {"sha256": models.sha256_of_tensors(tensors.items())}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            output.publish({path: save(tensors, digest)})
        except (OSError, KitError) as error:
            self.folder = None
            self.log.warning(f"CPU references are no longer kept on the disk: {error}")


# ---- Figures -------------------------------------------------------------------------------------


def compared(
    image: JudgedImage, device: Features, reference: Features, arithmetic: Arithmetic
) -> Compared:
    """Return one image's figures, its features judged by the limits' table."""
    pooled = judge(reference.pooler_output, device.pooler_output, arithmetic)
    tokens = judge(reference.last_hidden_state, device.last_hidden_state, arithmetic)
    accuracy = ImageAccuracy(
        image=image.image,
        sha256=image.sha256,
        pooler_relative_error=finite(pooled.comparison.relative_error),
        pooler_cosine=finite(pooled.comparison.cosine),
        relative_error=finite(tokens.comparison.relative_error),
        cosine=finite(tokens.comparison.cosine),
        max_abs_diff=finite(tokens.comparison.max_abs_diff),
        token_relative_error=finite(tokens.tokens.worst_relative),
        token=tokens.tokens.worst,
        passed=pooled.passed and tokens.passed,
    )
    sides = (side.pooler_output[0].to(torch.float32).numpy().copy() for side in (device, reference))
    return Compared(accuracy, *sides)


def badness(image: ImageAccuracy, limits: LimitsInfo) -> float:
    """Return how close an image is to its nearest limit; above 1 it is beyond it."""
    return max(
        math.inf if figure is None else (figure - best) / (limit - best)
        for figure, limit, best in (
            (image.relative_error, limits.relative_error, 0.0),
            (image.pooler_relative_error, limits.relative_error, 0.0),
            (image.token_relative_error, limits.token_relative_error, 0.0),
            (image.cosine, limits.cosine, 1.0),
            (image.pooler_cosine, limits.cosine, 1.0),
        )
    )


def folder_accuracy(
    compared: Sequence[Compared],
    broken: Sequence[BrokenImage],
    limits: LimitsInfo,
    *,
    cached: int,
    ranks: int,
) -> FolderAccuracy:
    """Return the folder's part of the record; one image at least, in the order of the paths."""
    ordered = sorted(
        (found.accuracy for found in compared),
        key=lambda image: (image.passed, -badness(image, limits), image.image),
    )
    errors = [
        math.inf if image.relative_error is None else image.relative_error for image in ordered
    ]
    return FolderAccuracy(
        images=len(ordered),
        failed=sum(not image.passed for image in ordered),
        broken=tuple(broken),
        cached=cached,
        percentiles=percentiles_of(torch.tensor(errors, dtype=torch.float64)),
        worst=tuple(ordered[:WORST_SHOWN]),
        neighbours=agreement(
            np.stack([found.device for found in compared]),
            np.stack([found.reference for found in compared]),
        ),
        ranks=ranks,
    )


def with_folder(results: AccuracyResults, folder: FolderAccuracy) -> AccuracyResults:
    """Return the worst image's results with the folder's, whose failures fail them."""
    if folder.failed == 0:
        return replace(results, folder=folder)
    reasons = [f"{folder.failed} of {folder.images} images are beyond a limit"]
    if results.outcome == "fail":
        reasons += results.reasons
    else:
        reasons.append("its worst image was inside the limits when it was measured again")
    return replace(results, verdict="FAIL", outcome="fail", reasons=tuple(reasons), folder=folder)


# A product's last bits depend on where a row stands, and two copies of an image must tie.
EQUAL_DECIMALS = 12
SIMILARITIES_AT_ONCE = 1 << 18  # of the matrix of all, so that thousands of images fit


def agreement(device: Pooled, reference: Pooled) -> NeighbourAgreement:
    """Compare every image's nearest neighbours by cosine, top-1 and top-5; None for too few."""
    count = len(device)
    if count < 3:  # with two images the only other one is always the nearest
        return NeighbourAgreement(count, None, None)
    width = min(5, count - 1)
    ours, theirs = (nearest(side, width) for side in (device, reference))
    same_first = int((ours[:, 0] == theirs[:, 0]).sum())
    in_common = sum(
        len(set(left) & set(right))
        for left, right in zip(ours.tolist(), theirs.tolist(), strict=True)
    )
    top5 = in_common / (count * width) if count > 6 else None
    return NeighbourAgreement(count, same_first / count, top5)


def nearest(features: Pooled, width: int) -> npt.NDArray[np.int64]:
    """Return for every image the numbers of the `width` nearest others, the nearest first.

    At the same distance the lower number; what is zero or not finite is near to none.
    """
    unit = np.nan_to_num(features.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms > 0, norms, 1.0)
    count = len(unit)
    found = np.empty((count, width), np.int64)
    step = max(1, SIMILARITIES_AT_ONCE // count)
    for start in range(0, count, step):
        similarity = unit[start : start + step] @ unit.T
        np.round(similarity, EQUAL_DECIMALS, out=similarity)
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        found[start : start + step] = np.argsort(-similarity, axis=1, kind="stable")[:, :width]
    return found
