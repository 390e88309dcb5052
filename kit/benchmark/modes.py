"""The modes of the speed ladder: how each runs the model, and how they compare."""

import functools
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter

import torch

from kit.device.arithmetic import CHIPS_GELU, Operators, OwnGelu, Probe, found
from kit.device.device import Device, fast_math
from kit.model import model as models
from kit.model.runner import ModeRunner
from kit.model.setup import Setup
from kit.options import Mode
from kit.records import DeviceInfo, LadderRow, Latency, Memory, SkippedMode, ThroughputRow


def missing(
    mode: Mode, setup: Setup, device: DeviceInfo, own_gelu: OwnGelu | None, *, named: bool
) -> str | None:
    """Return why the device or the model does not have a mode; None where it may.

    `device` is what is known of it so far; `own_gelu` makes a context in which GELU is the chip's
    own, None where it always is; `named` is whether --modes has this mode's name.
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
        key=attrgetter("throughput_ips"),
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

    `published`: only those within 1 % and 0.999, whatever their own arithmetic's limits are.
    """
    passing = [
        row
        for row in rows
        if row.verdict != "FAIL" and (row.within_published_limits or not published)
    ]
    best = min(passing, key=lambda row: row.latency.p50_ms, default=None)
    return best.mode if best else None
