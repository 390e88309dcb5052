"""From what was measured to what the record holds."""

import math

import torch

from kit.accuracy.arithmetic import Declared
from kit.accuracy.examination import Gap, Point, StageExamination
from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.places import place_of
from kit.accuracy.single import Measured
from kit.accuracy.stages import Stages
from kit.records import (
    AccuracyResults,
    BlockAccuracy,
    Cause,
    FolderAccuracy,
    LimitsInfo,
    OperatorError,
    PartAccuracy,
    Percentile,
    TensorAccuracy,
    TokenPlace,
)
from kit.statistics import compare


def finite(value: float) -> float | None:
    """Return the value, None where it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def results_of(
    measured: Measured,
    stages: Stages,
    declared: Declared,
    *,
    image: str,
    source: str,
    self_check: bool,
    explain: tuple[Cause, ...] = (),
    folder: FolderAccuracy | None = None,
) -> AccuracyResults:
    """Return the record's results for one image.

    Args:
        measured: the image's measurement.
        stages: of the model.
        declared: the device's arithmetic.
        image: its path.
        source: of the weights.
        self_check: whether the device is the CPU itself.
        explain: the causes that were switched.
        folder: the whole folder's part.
    """
    examination, verdict = measured.examination, measured.verdict
    return AccuracyResults(
        verdict=verdict.text,
        outcome=verdict.outcome,
        reasons=verdict.reasons,
        image=image,
        source=source,
        reference="CPU fp64" if self_check else "CPU fp32",
        declared=str(declared),
        limits=limits_info(declared.arithmetic, examination.factor),
        pooler_output=tensor_accuracy(measured, "pooler_output", stages),
        last_hidden_state=tensor_accuracy(measured, "last_hidden_state", stages),
        parts=parts_of(measured, stages, self_check=self_check),
        blocks=tuple(block_accuracy(examined, stages, measured) for examined in examination.stages),
        first_unexplained_block=verdict.block,
        first_unexplained_operator=(
            None if verdict.operator is None else operator_gap(verdict.operator, examination.factor)
        ),
        explain=explain,
        folder=folder,
    )


def limits_info(arithmetic: Arithmetic, factor: float) -> LimitsInfo:
    """Return the limits' part of the record."""
    row = LIMITS[arithmetic]
    return LimitsInfo(
        arithmetic=arithmetic,
        relative_error=row.relative_error,
        cosine=row.cosine,
        token_relative_error=row.token_relative_error,
        operator_error=row.operator_error,
        rope_and_norm_error=row.rope_and_norm_error,
        operator_token_error=row.operator_token_error,
        budget_factor=factor,
        reason=row.reason,
    )


def tensor_accuracy(measured: Measured, name: str, stages: Stages) -> TensorAccuracy:
    """Return one output tensor's part of the record."""
    judged, examination = measured.judgements[name], measured.examination
    whole, tokens = judged.comparison, judged.tokens
    sides: dict[str, torch.Tensor] = {
        side: getattr(features, name)
        for side, features in (
            ("device", examination.device),
            ("cpu", examination.cpu),
            ("truth", examination.truth),
            ("budget", examination.budget),
        )
    }
    alike = sides["device"].shape == sides["truth"].shape
    return TensorAccuracy(
        shape=tuple(sides["device"].shape),
        device=measured.device_names[name],
        relative_error=finite(whole.relative_error),
        relative_error_passed=judged.relative_error_passed,
        cosine=finite(whole.cosine),
        cosine_passed=judged.cosine_passed,
        mse=finite(whole.mse),
        max_abs_diff=finite(whole.max_abs_diff),
        passed=judged.passed,
        fp64_relative_error=against(sides["truth"], sides["device"]) if alike else None,
        cpu_fp64_relative_error=against(sides["truth"], sides["cpu"]),
        expected_error=against(sides["truth"], sides["budget"]),
        worst_token=token_place(
            tokens.worst, tokens.worst_relative, tokens.worst_cosine, stages, measured.grid
        ),
        token_percentiles=tuple(
            Percentile(percent, finite(error)) for percent, error in tokens.percentiles
        ),
        identical_bits=alike and compare(sides["cpu"], sides["device"]).identical,
    )


def against(reference: torch.Tensor, measured: torch.Tensor) -> float | None:
    """Return the relative error for the record."""
    return finite(compare(reference, measured).relative_error)


def token_place(
    token: int, error: float, cosine: float, stages: Stages, grid: tuple[int, int]
) -> TokenPlace:
    """Return one token's part of the record."""
    place = place_of(token, stages, grid)
    return TokenPlace(token, place.kind, place.row, place.column, finite(error), finite(cosine))


def parts_of(measured: Measured, stages: Stages, *, self_check: bool) -> tuple[PartAccuracy, ...]:
    """Return CLS, registers and patches apart; nothing where the model has no such tokens."""
    examination = measured.examination
    device = examination.device.last_hidden_state
    truth = examination.truth.last_hidden_state
    cpu = examination.cpu.last_hidden_state
    reference = measured.reference_features(self_check).last_hidden_state
    if stages.prefix_tokens is None or device.shape != truth.shape or device.ndim != 3:
        return ()
    prefix = stages.prefix_tokens
    parts = []
    for name, chosen in (
        ("CLS", slice(0, 1)),
        ("registers", slice(1, prefix)),
        ("patches", slice(prefix, None)),
    ):
        if device[:, chosen].numel() == 0:
            continue
        seen = compare(reference[:, chosen], device[:, chosen])
        parts.append(
            PartAccuracy(
                part=name,  # type: ignore[arg-type] # one of the three literals above
                relative_error=finite(seen.relative_error),
                cosine=finite(seen.cosine),
                fp64_relative_error=against(truth[:, chosen], device[:, chosen]),
                cpu_fp64_relative_error=against(truth[:, chosen], cpu[:, chosen]),
            )
        )
    return tuple(parts)


def block_accuracy(examined: StageExamination, stages: Stages, measured: Measured) -> BlockAccuracy:
    """Return one block's part of the record."""
    factor, gap = measured.examination.factor, examined.accumulated
    worst = examined.worst(factor)
    in_order = stages.prefix_tokens is not None and gap.token is not None
    return BlockAccuracy(
        block=examined.stage.number,
        name=examined.stage.path,
        relative_error=finite(gap.error),
        cpu_relative_error=finite(examined.cpu_error),
        expected_error=gap.expected_error,
        explained=examined.first_unexplained(factor) is None,
        sum_explained=gap.excess(factor) <= 1,
        worst_operator=None if worst is None else operator_gap(worst, factor),
        worst_token=token_place(gap.token, gap.token_error, math.nan, stages, measured.grid)
        if in_order and gap.token is not None
        else None,
    )


def operator_gap(point: Point, factor: float) -> OperatorError:
    """Return one operator's part of the record."""
    gap: Gap = point.gap
    return OperatorError(
        name=point.name,
        operator=point.operator,
        relative_error=finite(gap.error),
        expected_error=gap.expected_error,
        token_error=finite(gap.token_error),
        expected_token_error=gap.expected_token_error,
        times_limit=finite(gap.excess(factor)),
    )
