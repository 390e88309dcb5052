"""The modes of the speed ladder: how each runs the model, and what it costs in accuracy."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from kit.accuracy.references import declared_by
from kit.accuracy.verdict import Judgement, judge
from kit.device.device import device_errors, require_dtype, strict_fp32
from kit.device.meters import PeakMemory, capture
from kit.model import model as models
from kit.model.model import Features, forward, to_host
from kit.model.setup import Setup, model_input, move_model
from kit.options import Mode
from kit.output import RunLog
from kit.records import LadderRow, Latency, ThroughputRow
from kit.statistics import finite

PASS, FAIL, SELF_CHECK = "PASS", "FAIL", "SELF-CHECK"


def missing(mode: Mode, setup: Setup) -> str | None:
    """Return why the device or the model does not have a mode; None where it may."""
    if setup.device.type == "cpu":
        if mode.graph:
            return "the CPU has no graph capture"
        if mode.strict:
            return "the CPU computes fp32 without HF32 or TF32: the same as fp32"
    if mode.attention == "eager" and not models.has_attention(setup.model.config):
        return "the model has no attention"
    return None


@dataclass(frozen=True)
class ModeRunner:
    """A model on the device in one mode.

    Attributes:
        setup: the setup, in the mode's dtype.
        mode: the mode.
        model: on the device.
        pixels: one preprocessed image, float32 on the CPU, 1 x 3 x rows x columns.
        move_ms: how long it took to move the model, in ms.
        peaks: of the device's memory, from before the move on.
    """

    setup: Setup
    mode: Mode
    model: PreTrainedModel
    pixels: torch.Tensor
    move_ms: float
    peaks: PeakMemory

    def input(self, batch_size: int, log: RunLog | None = None) -> torch.Tensor:
        """Return the image, batch_size times, on the device and in the mode's dtype.

        Raises:
            KitError, DeviceError: as model_input does.
        """
        return model_input(self.setup, self.pixels.repeat(batch_size, 1, 1, 1), log)

    @contextlib.contextmanager
    def forwards(self, pixel_values: torch.Tensor) -> Iterator[Callable[[], Features]]:
        """Yield a call that runs the model on `pixel_values` as the mode says.

        Under graph capture the tensor's content at the time of each call is what counts, and
        the features are overwritten by the next call.

        Raises:
            DeviceError: where the capture fails.
        """

        def eager() -> Features:
            return forward(self.model, pixel_values)

        if not self.mode.graph:
            yield eager
            return
        captured = capture(self.setup.device, eager, f"{self.mode.name}, batch {len(pixel_values)}")
        try:
            yield captured
        finally:
            captured.release()


@contextlib.contextmanager
def run_mode(
    setup: Setup, mode: Mode, pixels: torch.Tensor, *, keep: bool, log: RunLog | None = None
) -> Iterator[ModeRunner]:
    """Put the model on the device in a mode for the block.

    Args:
        setup: its model is on the CPU in fp32.
        mode: what to run.
        pixels: one preprocessed image, float32 on the CPU.
        keep: leave setup.model as it is and move a copy.
        log: where the move is told; None for silence.

    Raises:
        KitError: where the device does not compute in the mode's dtype.
        DeviceError: where it fails, or has too little memory.
    """
    dtype = require_dtype(setup.device, mode.dtype)
    with device_errors(f"making room for {mode.name}"):
        peaks = PeakMemory(setup.device)
    with strict_fp32(mode.strict):
        model = copy.deepcopy(setup.model) if keep else setup.model
        models.use_attention(model, mode.attention)
        start = time.perf_counter()
        moved = replace(setup, dtype=dtype, model=model)
        model = move_model(moved, log)
        move_ms = (time.perf_counter() - start) * 1e3
        yield ModeRunner(moved, mode, model, pixels, move_ms, peaks)


# ---- The error against the CPU -------------------------------------------------------------------


@dataclass(frozen=True)
class ModeError:
    """How far a mode's features are from the fp32 CPU reference.

    Attributes:
        pooled, hidden: the judgements on pooler_output and last_hidden_state.
        on_cpu: whether the mode ran on the CPU too, which checks the CPU against itself.
        bits_equal_eager: see LadderRow.
    """

    pooled: Judgement
    hidden: Judgement
    on_cpu: bool
    bits_equal_eager: bool | None

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or SELF-CHECK for a pass on the CPU."""
        if not (self.pooled.passed and self.hidden.passed):
            return FAIL
        return SELF_CHECK if self.on_cpu else PASS


def error(
    runner: ModeRunner,
    call: Callable[[], Features],
    pixel_values: torch.Tensor,
    expected: Features,
) -> ModeError:
    """Compare a mode's features at batch 1 with the reference.

    Args:
        runner: the model in its mode.
        call: its forward on pixel_values.
        pixel_values: the input; holds the image again afterwards.
        expected: the fp32 model's features of the same image, computed on the CPU.

    Raises:
        DeviceError: where the device fails.
    """
    device = runner.setup.device
    with device_errors(f"computing the features of {runner.mode.name}"):
        found = to_host(call())
    equal = bits_equal_eager(runner, call, pixel_values, found) if runner.mode.graph else None
    runner.setup.health.after(f"the features of {runner.mode.name}")
    arithmetic = declared_by(runner.setup).arithmetic
    return ModeError(
        judge(expected.pooler_output, found.pooler_output, arithmetic),
        judge(expected.last_hidden_state, found.last_hidden_state, arithmetic),
        device.type == "cpu",
        equal,
    )


def bits_equal_eager(
    runner: ModeRunner,
    call: Callable[[], Features],
    pixel_values: torch.Tensor,
    replayed: Features,
) -> bool:
    """Return whether replays give the eager forward's bits, for the image and its mirror image.

    The second image proves that the graph reads its input anew.
    """
    original = runner.input(1)
    mirrored = model_input(runner.setup, runner.pixels.flip(-1))
    with device_errors(f"comparing {runner.mode.name} with its eager forward"):
        equal = same_bits(to_host(forward(runner.model, original)), replayed)
        pixel_values.copy_(mirrored)
        equal &= same_bits(to_host(forward(runner.model, mirrored)), to_host(call()))
        pixel_values.copy_(original)
    return equal


def same_bits(left: Features, right: Features) -> bool:
    """Return whether two pairs of tensors are equal."""
    return torch.equal(left.pooler_output, right.pooler_output) and torch.equal(
        left.last_hidden_state, right.last_hidden_state
    )


# ---- The ladder's rows ---------------------------------------------------------------------------


def ladder_row(
    runner: ModeRunner, latency: Latency, sweep: Sequence[ThroughputRow], found: ModeError
) -> LadderRow:
    """Return a mode's part of the record."""
    mode = runner.mode
    best = max(
        (row for row in sweep if row.throughput_ips is not None),
        key=lambda row: row.throughput_ips or 0.0,
        default=None,
    )
    pooled, hidden = found.pooled.comparison, found.hidden.comparison
    return LadderRow(
        mode=mode.name,
        dtype=mode.dtype,
        strict_fp32=mode.strict,
        attention=mode.attention,
        graph=mode.graph,
        latency=latency,
        throughput=tuple(sweep),
        best_throughput_ips=best.throughput_ips if best else None,
        best_batch_size=best.batch_size if best else None,
        memory=runner.peaks.memory(),
        verdict=found.verdict,
        relative_error=finite(max(pooled.relative_error, hidden.relative_error)),
        cosine_similarity=finite(min(pooled.cosine, hidden.cosine)),
        max_abs_diff=finite(max(pooled.max_abs_diff, hidden.max_abs_diff)),
        bits_equal_eager=found.bits_equal_eager,
    )


def fastest(rows: Sequence[LadderRow]) -> LadderRow | None:
    """Return the row with the lowest batch-1 median of those that pass; None where none does.

    A mode whose replays do not give the eager forward's features is judged by its own error.
    """
    passing = [row for row in rows if row.verdict != FAIL]
    return min(passing, key=lambda row: row.latency.p50_ms, default=None)
