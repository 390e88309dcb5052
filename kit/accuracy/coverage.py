"""Whether the device is right beyond one forward of one image: other batches, sizes, modes, calls.

Coverage holds each cell of a matrix of batch sizes, input sizes and modes against the CPU, on
different images. Soak computes the same inputs again and again: a sound device gives the same bits.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import cycle

import numpy as np
import torch
from torch.nn.functional import interpolate

from kit.accuracy.references import Side, Sides, declared_by, in_declared_type
from kit.accuracy.verdict import failing, judge_batch
from kit.device.device import device_errors
from kit.device.meters import PeakMemory, host_peak_bytes
from kit.errors import CaptureError, DeviceError, KitError, OutOfDeviceMemoryError
from kit.model import model as models
from kit.model.model import TENSORS, Features, timed_forward
from kit.model.runner import Images, ModeRunner, run_mode
from kit.model.setup import Setup, model_input, views
from kit.options import AccuracyOptions, Mode, mode_of
from kit.output import RunLog
from kit.records import AccuracyResults, CoverageCell, Soak, SoakBatch, SoakDeviation, SoakEnd
from kit.statistics import compare, finite, median

Size = tuple[int, int]
SMALL_BATCHES, BATCHES = [1, 8], [1, 2, 3, 4, 8]
SMALL_IMAGES, IMAGES = 4, 8  # different ones; a larger batch holds them again and again
SMALL_GRIDS: list[Size] = [(7, 9)]  # in patches: odd, small, not square
GRIDS = [*SMALL_GRIDS, (15, 15), (9, 21)]
MOST_DIGESTS = 10_000  # so that a device that never repeats itself takes no more memory
TIMES = 25  # at the beginning and at the end, whose medians are compared


def expected_of(sides: Sides, pixels: torch.Tensor, size: Size, number: int) -> Images | None:
    """Return so many images of one size in pixels with their references; None where refused."""
    own = tuple(pixels.shape[-2:])
    if size != own:
        pixels = interpolate(pixels, size, mode="bilinear", antialias=True)
    every = views(pixels, number)
    try:
        found = [sides.reference.features(one[None]) for one in every]
    except (KitError, LookupError, RuntimeError, TypeError, ValueError):
        if size == own:
            raise
        return None  # a table of positions for one size, for example
    tensors = (torch.cat([getattr(one, name) for one in found]) for name in TENSORS)
    return Images(every, Features(*tensors))


def cell_of(
    images: Images, found: Features, order: Sequence[int], setup: Setup, mode: str
) -> CoverageCell:
    """Return how far a batch is; `order` says which image stands in each place."""
    arithmetic = declared_by(setup).arithmetic
    errors, cosines, tokens, reasons = [0.0], [1.0], [0.0], []
    for place, name, judged in judge_batch(images.expected, found, order, arithmetic):
        errors.append(judged.comparison.relative_error)
        cosines.append(judged.comparison.cosine)
        tokens.append(judged.tokens.worst_relative)
        reasons += [f"image {place}, {name}: {reason}" for reason in judged.reasons]
    return CoverageCell(
        mode=mode,
        batch_size=len(order),
        rows=images.pixels.shape[-2],
        columns=images.pixels.shape[-1],
        images=len(set(order)),
        relative_error=finite(max(errors)),
        cosine=finite(min(cosines)),
        token_relative_error=finite(max(tokens)),
        expected_error=None,
        passed=not reasons,
        reason=reasons[0] if reasons else None,
    )


# ---- Coverage ------------------------------------------------------------------------------------


def cover(
    options: AccuracyOptions,
    sides: Sides,
    pixels: torch.Tensor,
    results: AccuracyResults,
    log: RunLog,
) -> AccuracyResults:
    """Return the results of one image with a cell for each batch size, input size and mode."""
    main = mode_of(options.dtype, options.attention, strict=options.strict_fp32)
    own: Size = (pixels.shape[-2], pixels.shape[-1])
    patch = models.patch_size(sides.setup.model.config)
    batches, grids, number = SMALL_BATCHES, SMALL_GRIDS, SMALL_IMAGES
    if options.coverage:
        batches, grids, number = sorted({*BATCHES, options.batch_size}), GRIDS, IMAGES
    sizes = [own, *((rows * patch, columns * patch) for rows, columns in grids)]
    if options.coverage:
        sizes.append((2 * own[0], 2 * own[1]))
    modes, every = options.modes or (main,), []
    for size in dict.fromkeys(sizes):
        if (images := expected_of(sides, pixels, size, number)) is not None:
            every.append(images)
        else:
            log.info(f"The model does not take {size[0]}x{size[1]}: this size is not covered")
    cells: list[CoverageCell] = []
    with log.bar(len(modes) * len(batches) * len(every), "coverage", "cell") as step:
        for mode in modes:
            with in_mode(sides, mode, main, every[0]) as runner:
                there = replace(sides, setup=runner.setup)
                explains = explained_by(there) if options.coverage else lambda _: usual(results)
                for images in every:
                    bound = explains(images)
                    for batch_size in batches:
                        moved = len(cells)
                        found = compute_cell(replace(runner, images=images), batch_size, moved)
                        cells.append(replace(found, expected_error=bound))
                        step(1)
    sides.setup.health.after("coverage")
    results = replace(results, coverage=tuple(cells))
    if not (failed := [cell for cell in cells if not cell.passed]):
        return results
    first = failed[0]
    return failing(
        results,
        f"{len(failed)} of {len(cells)} cells of the coverage fail, first batch "
        f"{first.batch_size} of {first.rows}x{first.columns} in {first.mode}: {first.reason}",
    )


@contextlib.contextmanager
def in_mode(sides: Sides, mode: Mode, main: Mode, images: Images) -> Iterator[ModeRunner]:
    """Yield the model on the device in a mode; a copy where it is not the run's."""
    setup = replace(sides.setup, model=sides.references.fp32.model)
    if replace(mode, graph=False) == main:
        peaks = PeakMemory(setup.device)
        yield ModeRunner(setup, mode, sides.model, images, 0.0, peaks, sides.model)
        return
    with run_mode(replace(setup, arithmetic=None), mode, images, keep=True) as runner:
        yield runner


def compute_cell(runner: ModeRunner, batch_size: int, moved: int) -> CoverageCell:
    """Compute one batch, each place `moved` on, and compare it; want of memory fails it alone."""
    mode, images = runner.mode.name, runner.images
    order = images.places(batch_size, moved)
    try:
        batch = runner.input(batch_size, moved)
        given = batch.flip(-1) if runner.mode.graph else batch  # captured on another batch
        with device_errors(f"covering {mode}, batch {batch_size}"), runner.forwards(given) as call:
            given.copy_(batch)
            found = models.to_host(call())
    except (CaptureError, OutOfDeviceMemoryError) as error:
        rows, columns = images.pixels.shape[-2:]
        return CoverageCell(mode, batch_size, rows, columns, len(set(order)),
                            None, None, None, None, passed=False, reason=str(error))  # fmt: skip
    return cell_of(images, found, order, runner.setup, mode)


def explained_by(sides: Sides) -> Callable[[Images], float | None]:
    """Return what says which error a mode's arithmetic and the CPU's own explain on an image."""
    references, declared = sides.references, declared_by(sides.setup)
    imitation = Side(in_declared_type(references.fp32.model, declared), declared)

    def explained(images: Images) -> float | None:
        pixels, expected = images.pixels[:1], images.expected
        exact, imitated = references.fp64.features(pixels), imitation.features(pixels)
        errors = [
            sum(
                compare(getattr(exact, name), getattr(side, name)[:1]).relative_error
                for side in (imitated, expected)
            )
            for name in TENSORS
        ]
        return finite(max(errors))

    return explained


def usual(results: AccuracyResults) -> float | None:
    """Return the same figure of the run's own image."""
    sums = []
    for one in (results.pooler_output, results.last_hidden_state):
        cpu = 0.0 if results.reference == "CPU fp64" else one.cpu_fp64_relative_error
        if one.expected_error is None or cpu is None:
            return None
        sums.append(one.expected_error + cpu)
    return max(sums)


# ---- Soak ----------------------------------------------------------------------------------------


@dataclass
class Repeated:
    """One batch that is computed again and again; what is kept does not grow without bound."""

    batch: torch.Tensor
    order: Sequence[int]
    first: Features | None = None  # of the first forward, on the CPU
    forwards: int = 0
    inside: dict[str, bool] = field(default_factory=dict)  # the limits, by a result's digest
    early_ms: list[float] = field(default_factory=list)  # of the first forwards
    late_ms: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES))  # of the last

    def record(self) -> SoakBatch:
        """Return the record's part."""
        early, late = (median(times) if times else None for times in (self.early_ms, self.late_ms))
        drift = late / early - 1 if early and late else None
        return SoakBatch(len(self.order), self.forwards, len(self.inside), early, late, drift)


class SoakRun:
    """Computes the same inputs again and again, in changing batch sizes."""

    def __init__(self, options: AccuracyOptions, sides: Sides, images: Images) -> None:
        self.sides, self.images = sides, images
        self.mode = mode_of(options.dtype, options.attention, strict=options.strict_fp32).name
        self.repeated = []
        for batch_size in sorted({*BATCHES, options.batch_size}):
            order = images.places(batch_size)
            batch = model_input(sides.setup, images.pixels[order])
            self.repeated.append(Repeated(batch, order))
        self.options = options
        self.start = time.monotonic()
        self.done = self.beyond = 0
        self.deviation: SoakDeviation | None = None
        self.reason: str | None = None
        self.early_bytes: int | None = None
        self.early_device_bytes: int | None = None
        self.peak = PeakMemory(sides.setup.device)

    def run(self, log: RunLog) -> Soak:
        """Go on for as long as was asked for; Ctrl-C and a device that fails keep what there is."""
        end: SoakEnd = "complete"
        forwards, minutes = self.options.soak_forwards, self.options.soak
        stop = math.inf if minutes is None else self.start + 60 * minutes
        with log.bar(forwards, "soak") as step:
            try:
                for one in cycle(self.repeated):
                    if self.done == forwards or time.monotonic() >= stop:
                        break
                    self.forward(one)
                    step(1)
            except KeyboardInterrupt:
                end = "interrupted"
            except DeviceError as error:
                end, self.reason = "device error", f"forward {self.done}: {error}"
        return Soak(
            seconds=time.monotonic() - self.start,
            forwards=self.done,
            beyond_limits=self.beyond,
            end=end,
            reason=self.reason,
            first_deviation=self.deviation,
            batches=tuple(one.record() for one in self.repeated),
            early_host_peak_bytes=self.early_bytes,
            host_peak_bytes=host_peak_bytes(),
            early_device_peak_bytes=self.early_device_bytes,
            device_peak_bytes=self.peak.take(),
        )

    def forward(self, one: Repeated) -> None:
        """Compute one batch once more, and ask the device for a known answer."""
        self.done += 1
        setup = self.sides.setup
        found, took_ms = timed_forward(setup.device, self.sides.model, one.batch)
        features = models.to_host(found)
        setup.health.after(f"forward {self.done} of the soak")
        one.forwards += 1
        (one.early_ms if len(one.early_ms) < TIMES else one.late_ms).append(took_ms)
        digest = models.sha256_of_tensors(vars(features).items())
        inside = one.inside.get(digest)
        if inside is None:
            inside = self.judge(one, features)
            if len(one.inside) < MOST_DIGESTS:
                one.inside[digest] = inside
        self.beyond += not inside
        if self.early_bytes is None and all(batch.forwards >= 2 for batch in self.repeated):
            self.early_bytes, self.early_device_bytes = host_peak_bytes(), self.peak.take()

    def judge(self, one: Repeated, features: Features) -> bool:
        """Return whether a new result is inside the limits; note the first that deviates."""
        cell = cell_of(self.images, features, one.order, self.sides.setup, self.mode)
        if not cell.passed and self.reason is None:
            self.reason = f"forward {self.done}, batch {len(one.order)}: {cell.reason}"
        if one.first is None:
            one.first = features
        elif self.deviation is None:
            self.deviation = self.deviating(one.first, features, inside=cell.passed)
        return cell.passed

    def deviating(self, first: Features, features: Features, *, inside: bool) -> SoakDeviation:
        """Return where a result differs most from the first one of the same batch."""
        differences = {}
        for name in TENSORS:
            one, other = (getattr(side, name).double() for side in (first, features))
            differences[name] = (one - other).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        tensor = max(TENSORS, key=lambda name: float(differences[name].max()))
        difference = differences[tensor]
        index = np.unravel_index(int(difference.argmax()), difference.shape)
        return SoakDeviation(
            forward=self.done,
            at=datetime.now().astimezone().isoformat(timespec="seconds"),
            after_s=time.monotonic() - self.start,
            batch_size=len(first.pooler_output),
            tensor=tensor,
            image=int(index[0]),
            token=int(index[1]) if difference.ndim == 3 else None,
            largest_difference=finite(float(difference.max())),
            passed=inside,
        )


def soak(
    options: AccuracyOptions,
    sides: Sides,
    pixels: torch.Tensor,
    results: AccuracyResults,
    log: RunLog,
) -> AccuracyResults:
    """Return the results with those of a soak, which fail them where a forward is wrong."""
    images = expected_of(sides, pixels, (pixels.shape[-2], pixels.shape[-1]), IMAGES)
    assert images is not None  # the run's own size
    found = SoakRun(options, sides, images).run(log)
    results = replace(results, soak=found)
    if found.end == "device error":
        return failing(results, f"the device failed in the soak, {found.reason}")
    if found.beyond_limits:
        reason = (
            f"{found.beyond_limits} of {found.forwards} forwards of the soak are beyond a limit"
        )
        return failing(results, f"{reason}, {found.reason}")
    if found.first_deviation is not None:
        log.warning(
            "The same input gave other bits, inside the limits, first in forward "
            f"{found.first_deviation.forward} of the soak"
        )
    return results
