"""The modes of the speed ladder: how each runs the model, and how they compare."""

import contextlib
import copy
import functools
import importlib.util
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from transformers import PreTrainedModel

from kit.device.arithmetic import CHIPS_GELU, Operators, OwnGelu, Probe, found
from kit.device.device import (
    Device,
    device_errors,
    fast_math,
    require_dtype,
    strict_fp32,
    synchronize,
)
from kit.device.meters import PeakMemory, capture
from kit.errors import CaptureError, one_line
from kit.model import model as models
from kit.model.model import Features, forward
from kit.model.setup import Setup, model_input, move_model, places
from kit.options import Mode
from kit.output import RunLog
from kit.records import DeviceInfo, LadderRow, Latency, Memory, SkippedMode, ThroughputRow

Call = Callable[[], Features]


def missing(
    mode: Mode, setup: Setup, device: DeviceInfo, own_gelu: OwnGelu | None, *, named: bool
) -> str | None:
    """Return why the device or the model does not have a mode; None where it may.

    Args:
        mode: the mode.
        setup: of the run.
        device: its part of the record, as far as it is known.
        own_gelu: makes a context in which GELU is the chip's own; None where it always is.
        named: whether the mode was asked for by its name, and not with all others.
    """
    if mode.chip_gelu and own_gelu is None:
        return "GELU is the device's own in every mode"
    own = found(device.arithmetic, CHIPS_GELU)
    if mode.chip_gelu and own is not None and own == found(device.arithmetic, "GELU"):
        return f"the chip's own GELU is {own}, too"
    if mode.strict and device.matmul_fp32 not in ("fp32", "hf32", "tf32"):
        return f"fp32 products are {device.matmul_fp32} here, whatever is set: the same as fp32"
    if setup.device.type == "cpu":
        if mode.graph:
            return "the CPU has no graph capture"
        if mode.strict:
            return "the CPU computes fp32 without HF32 or TF32: the same as fp32"
    if mode.attention == "eager" and not models.has_attention(setup.model.config):
        return "the model has no attention"
    return missing_rung(mode, setup.device, named=named) if mode.speed_only else None


def missing_rung(mode: Mode, device: Device, *, named: bool) -> str | None:
    """Return why a mode that only the ladder has is not measured; None where it may be."""
    reason = without_fast_math(mode, device) if mode.fast_math else None
    if reason is None and mode.compiled:
        reason = without_compiler(device)
    if reason is None and not mode.fast_math and not named and device.type != "cuda":
        return "measured where --modes names it"
    return reason


def without_fast_math(mode: Mode, device: Device) -> str | None:
    """Return why oneDNN's fast-math changes nothing in a mode; None where it does."""
    if device.type != "cpu":
        return "oneDNN's fast-math is the CPU's"
    if mode.precision != "fp32":
        return "oneDNN's fast-math is for products in fp32"
    if products_with_fast_math(device) == "fp32":
        return "this processor's products stay in fp32 with oneDNN's fast-math: the same as fp32"
    return None


@functools.cache
def products_with_fast_math(device: Device) -> str:
    """Return what the CPU's fp32 products compute in with oneDNN's fast-math, measured."""
    with fast_math(active=True):
        return Probe(device, torch.float32, Operators()).matmul().found


def without_compiler(device: Device) -> str | None:
    """Return why torch.compile makes no code for a device; None where it may."""
    if device.type == "npu":
        return "torch.compile is off under npu_patch: torch_npu brings no Triton for the NPU"
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "TORCH_COMPILE_DISABLE=1 turns torch.compile off"
    if device.type == "cuda":
        has_triton = importlib.util.find_spec("triton") is not None
        return None if has_triton else "torch.compile needs Triton here: pip install triton"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and {compiler} is not found: install it"
    return None


@dataclass(frozen=True)
class Images:
    """Different images, and what the model should say of each.

    Attributes:
        pixels: preprocessed, float32 on the CPU, images x 3 x rows x columns.
        expected: each one's features by the fp32 model on the CPU.
    """

    pixels: torch.Tensor
    expected: Features

    def places(self, batch_size: int, moved: int = 0) -> list[int]:
        """Return which image stands in each place of a batch.

        Args:
            batch_size: images in the batch.
            moved: by how many images each place is moved on.
        """
        return places(batch_size, len(self.pixels), moved)


@dataclass(frozen=True)
class ModeRunner:
    """A model on the device in one mode.

    Attributes:
        setup: the run's, in the mode's dtype.
        mode: the mode.
        model: on the device.
        images: what batches are made of.
        move_ms: how long it took to move the model, in ms.
        peaks: of the device's memory, from before the move on.
        called: the model, or what torch.compile made of it.
        compile_ms: by batch size, how long the first call took, in ms; empty without compilation.
    """

    setup: Setup
    mode: Mode
    model: PreTrainedModel
    images: Images
    move_ms: float
    peaks: PeakMemory
    called: PreTrainedModel
    compile_ms: dict[int, float] = field(default_factory=dict)

    def input(self, batch_size: int, log: RunLog | None = None) -> torch.Tensor:
        """Return a batch of the images, on the device and in the mode's dtype.

        Raises:
            KitError, DeviceError: as model_input does.
        """
        batch = model_input(self.setup, self.images.pixels[self.images.places(batch_size)], log)
        return laid_out(batch) if self.mode.channels_last else batch

    @contextlib.contextmanager
    def forwards(self, pixel_values: torch.Tensor) -> Iterator[Call]:
        """Yield a call that runs the model on `pixel_values` as the mode says.

        Under graph capture the tensor's content at the time of each call is what counts, and
        the features are overwritten by the next call.

        Raises:
            CaptureError: where the capture or the compilation fails.
            DeviceError: where the device fails.
        """

        def call() -> Features:
            return forward(self.called, pixel_values)

        if self.mode.compiled:
            self.compile(call, len(pixel_values))
        if not self.mode.graph:
            yield call
            return
        captured = capture(self.setup.device, call, f"{self.mode.name}, batch {len(pixel_values)}")
        try:
            yield captured
        finally:
            captured.release()

    def compile(self, call: Call, batch_size: int) -> None:
        """Make the first call for a batch size, in which torch.compile works, and time it.

        Raises:
            CaptureError: where the compilation fails, or nothing is compiled.
            DeviceError: where the device fails.
        """
        from torch._dynamo.exc import TorchDynamoException  # a second, and few modes need it
        from torch._dynamo.utils import counters

        name = f"{self.mode.name}, batch {batch_size}"
        before, start = counters["stats"]["unique_graphs"], time.perf_counter()
        with device_errors(f"compiling {name}"):
            try:
                call()
            except TorchDynamoException as error:
                raise CaptureError(f"{name} cannot be compiled: {one_line(error)}") from error
            synchronize(self.setup.device)
        if not self.compile_ms and counters["stats"]["unique_graphs"] == before:
            raise CaptureError(f"{name} cannot be compiled: torch.compile found nothing to compile")
        self.compile_ms[batch_size] = (time.perf_counter() - start) * 1e3


def laid_out(batch: torch.Tensor) -> torch.Tensor:
    """Return images, batch x 3 x rows x columns, with the channels innermost in memory."""
    return batch.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def run_mode(
    setup: Setup, mode: Mode, images: Images, *, keep: bool, log: RunLog | None = None
) -> Iterator[ModeRunner]:
    """Put the model on the device in a mode for the block.

    Args:
        setup: its model is on the CPU in fp32.
        mode: what to run.
        images: what batches are made of.
        keep: leave setup.model as it is and move a copy.
        log: where the move is told; None for silence.

    Raises:
        KitError: where the device does not compute in the mode's dtype.
        DeviceError: where it fails, or has too little memory.
    """
    dtype = require_dtype(setup.device, mode.dtype)
    with device_errors(f"making room for {mode.name}"):
        peaks = PeakMemory(setup.device)
    with strict_fp32(mode.strict), fast_math(mode.fast_math):
        model = copy.deepcopy(setup.model) if keep else setup.model
        models.use_attention(model, mode.attention)
        start = time.perf_counter()
        moved = replace(setup, dtype=dtype, model=model)
        model = move_model(moved, log)
        if mode.channels_last:
            with device_errors(f"laying out the weights of {mode.name}"):
                model.to(memory_format=torch.channels_last)
        move_ms = (time.perf_counter() - start) * 1e3
        called = cast(PreTrainedModel, torch.compile(model)) if mode.compiled else model
        try:
            yield ModeRunner(moved, mode, model, images, move_ms, peaks, called)
        finally:
            if mode.compiled:
                torch.compiler.reset()  # what was compiled counts against the next mode's limit


# ---- The ladder's rows ---------------------------------------------------------------------------


def ladder_row(
    runner: ModeRunner,
    latency: Latency,
    sweep: Sequence[ThroughputRow],
    bits_equal_eager: bool | None,
) -> LadderRow:
    """Return a mode's part of the record; one whose check fails in any row fails as a whole."""
    mode = runner.mode
    best = max(
        (row for row in sweep if row.throughput_ips is not None),
        key=lambda row: row.throughput_ips or 0.0,
        default=None,
    )
    measured = [latency, *(row.latency for row in sweep if row.latency is not None)]
    checks = [one.check for one in measured if one.check is not None]
    verdicts = [check.verdict for check in checks]
    return LadderRow(
        mode=mode.name,
        dtype=mode.dtype,
        strict_fp32=mode.strict,
        attention=mode.attention,
        graph=mode.graph,
        channels_last=mode.channels_last,
        compiled=mode.compiled,
        fast_math=mode.fast_math,
        compile_ms=runner.compile_ms.get(1),
        latency=latency,
        throughput=tuple(sweep),
        best_throughput_ips=best.throughput_ips if best else None,
        best_batch_size=best.batch_size if best else None,
        memory=runner.peaks.memory(),
        verdict="FAIL" if "FAIL" in verdicts else verdicts[0],
        within_published_limits=all(check.within_published_limits for check in checks),
        relative_error=worst([check.relative_error for check in checks], max),
        cosine_similarity=worst([check.cosine_similarity for check in checks], min),
        max_abs_diff=worst([check.max_abs_diff for check in checks], max),
        bits_equal_eager=bits_equal_eager,
    )


def larger(one: Memory, other: Memory) -> Memory:
    """Return the peaks over two parts of a run."""
    pairs = ((getattr(one, name), getattr(other, name)) for name in vars(one))
    return Memory(*(max((size for size in pair if size), default=None) for pair in pairs))


def together(skipped: Sequence[SkippedMode]) -> list[str]:
    """Return the modes that were passed over, those of one reason in one text."""
    found: dict[str, list[str]] = {}
    for one in skipped:
        found.setdefault(one.reason, []).append(one.mode)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def worst(
    figures: Sequence[float | None], choose: Callable[[Sequence[float]], float]
) -> float | None:
    """Return the largest or the smallest figure; None where one is None, NaN or infinite."""
    found = [figure for figure in figures if figure is not None and math.isfinite(figure)]
    return choose(found) if len(found) == len(figures) else None


def fastest(rows: Sequence[LadderRow], *, published: bool) -> str | None:
    """Return the mode with the lowest batch-1 median of those that pass; None where none does.

    Args:
        rows: the ladder.
        published: only those within 1 % and 0.999, whatever their own arithmetic's limits are.
    """
    passing = [
        row
        for row in rows
        if row.verdict != "FAIL" and (row.within_published_limits or not published)
    ]
    best = min(passing, key=lambda row: row.latency.p50_ms, default=None)
    return best.mode if best else None
