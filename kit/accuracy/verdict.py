"""From an examined run to the record's results: limits, judgements, and the verdict's sentences."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

import torch

from kit.accuracy.examine import Examination, StageErrors, times_limit
from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.recorder import Stages
from kit.accuracy.references import References
from kit.model.model import TENSORS, Features
from kit.records import (
    AccuracyResults,
    BlockAccuracy,
    LimitsInfo,
    OperatorError,
    OutcomeName,
    PartAccuracy,
    TensorAccuracy,
    TokenPlace,
)
from kit.statistics import TokenErrors, VectorError, compare, compare_tokens, finite, percentiles_of

Grid = tuple[int, int]  # rows and columns of patches

# ---- Two tensors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """One tensor judged by `limits`: as one vector, each token, and a sentence for each failure."""

    limits: LimitsInfo
    comparison: VectorError
    tokens: TokenErrors
    reasons: tuple[str, ...]

    @property
    def relative_error_passed(self) -> bool:
        """Whether the whole vector's relative error is below its limit."""
        return self.comparison.relative_error < self.limits.relative_error  # False for infinity

    @property
    def cosine_passed(self) -> bool:
        """Whether the whole vector's cosine is above its limit."""
        return self.comparison.cosine > self.limits.cosine  # False for NaN

    @property
    def passed(self) -> bool:
        """Whether everything is inside its limit and finite."""
        return not self.reasons


def judge(reference: torch.Tensor, measured: torch.Tensor, arithmetic: Arithmetic) -> Judgement:
    """Judge `measured` against `reference`: no token left out, nothing infinite.

    The last axis is a token's vector; any floating dtype and device. Another shape fails, as if it
    were all NaN; an empty reference is a ValueError.
    """
    limits = LIMITS[arithmetic]
    reasons: tuple[str, ...] = ()
    if measured.shape != reference.shape:
        reasons = (f"shape {tuple(measured.shape)} where {tuple(reference.shape)} is right",)
        measured = torch.full_like(reference, torch.nan)
    whole, tokens = compare(reference, measured), compare_tokens(reference, measured)
    return Judgement(limits, whole, tokens, reasons or failures(whole, tokens, limits))


def judge_batch(
    expected: Features, found: Features, order: Sequence[int], arithmetic: Arithmetic
) -> Iterator[tuple[int, str, Judgement]]:
    """Yield place in the batch, tensor's name and judgement of each image of a batch.

    `expected`: each different image's features on the CPU; `order`: which of them stands in each
    place. An image whose features equal those of the same image before it is not judged again.
    """
    before: dict[int, Features] = {}
    for place, image in enumerate(order):
        at = slice(place, place + 1)
        one = found.map(itemgetter(at)).map(torch.Tensor.cpu)
        if image in before and same_bits(before[image], one):
            continue
        before[image] = one
        for name in TENSORS:
            reference = getattr(expected, name)[image : image + 1]
            yield place, name, judge(reference, getattr(one, name), arithmetic)


def same_bits(left: Features, right: Features) -> bool:
    """Return whether two pairs of tensors are equal."""
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in TENSORS)


def failures(whole: VectorError, tokens: TokenErrors, limits: LimitsInfo) -> tuple[str, ...]:
    """Return a sentence for each limit that is not kept."""
    if whole.broken:
        return (whole.broken,)
    found = []
    if not whole.relative_error < limits.relative_error:
        found.append(
            f"relative error {whole.relative_error:.3g} is not below {limits.relative_error:g}"
        )
    if not whole.cosine > limits.cosine:
        found.append(f"cosine {whole.cosine:.6f} is not above {limits.cosine:g}")
    if not tokens.worst_relative < limits.token_relative_error:
        found.append(
            f"token {tokens.worst} is off by {tokens.worst_relative:.3g}, "
            f"not below {limits.token_relative_error:g}"
        )
    return tuple(found)


# ---- The verdict ---------------------------------------------------------------------------------


def assess(
    examination: Examination,
    references: References,
    grid: Grid,
    *,
    image: str,
    source: str,
    torch_device: str,
    factor: float,
    self_check: bool,
) -> AccuracyResults:
    """Judge an examined run's outputs and operators, and conclude.

    An examination without stages is judged by its outputs alone. `grid` is rows and columns of
    patches; `self_check`: the device is the CPU itself, which can never pass.
    """
    stages, arithmetic = references.stages, references.declared.arithmetic
    limits = replace(LIMITS[arithmetic], budget_factor=factor)
    expected = examination.fp64 if self_check else examination.fp32
    judged = {
        name: judge(getattr(expected, name), getattr(examination.device, name), arithmetic)
        for name in TENSORS
    }
    pooled, hidden = (
        tensor_accuracy(judged[name], name, examination, stages, grid, torch_device)
        for name in TENSORS
    )
    at_fault, operator = first_unexplained(examination.stages) or (None, None)
    reasons = [f"{name}: {reason}" for name in TENSORS for reason in judged[name].reasons]
    wrong = first_wrong(examination.stages, limits)
    if wrong is not None:
        reasons.append(wrong_sentence(*wrong, stages, grid, limits))
    outcome: OutcomeName = "fail" if reasons else "self-check" if self_check else "pass"
    verdict = outcome.upper()
    if at_fault is not None and wrong is None:
        reasons.append(unexplained_sentence(at_fault, operator))
        if outcome != "fail":
            verdict += f", unexplained error from {block_words(at_fault)}"
            outcome = "self-check" if self_check else "unexplained"
    return AccuracyResults(
        verdict=verdict,
        outcome=outcome,
        reasons=tuple(reasons),
        image=image,
        source=source,
        reference="CPU fp64" if self_check else "CPU fp32",
        declared=str(references.declared),
        limits=limits,
        pooler_output=pooled,
        last_hidden_state=hidden,
        parts=parts_of(examination, expected, stages),
        chip_gelu=None,
        blocks=tuple(block_accuracy(examined, stages, grid) for examined in examination.stages),
        first_unexplained_block=None if at_fault is None else at_fault.stage.number,
        first_unexplained_operator=operator,
        explain=(),
        folder=None,
    )


def failing(results: AccuracyResults, reason: str) -> AccuracyResults:
    """Return results that fail for one more reason."""
    reasons = (*results.reasons, reason) if results.outcome == "fail" else (reason,)
    return replace(results, verdict="FAIL", outcome="fail", reasons=reasons)


def exit_code(results: AccuracyResults, *, strict: bool) -> int:
    """Return 1 for a failure, and under --strict for an unexplained error; else 0."""
    unexplained = results.first_unexplained_block is not None
    return int(results.outcome == "fail" or (strict and unexplained))


def first_unexplained(
    stages: Sequence[StageErrors],
) -> tuple[StageErrors, OperatorError | None] | None:
    """Return the first stage with an operator that is not explained, and this operator.

    None for the operator: each is explained by itself, and the accumulated error is not.
    """
    for examined in stages:
        if (operator := examined.first_unexplained) is not None:
            return examined, operator
    for examined in stages:
        if times_limit(examined.accumulated) > 1:
            return examined, None
    return None


def first_wrong(
    stages: Sequence[StageErrors], limits: LimitsInfo
) -> tuple[StageErrors, OperatorError] | None:
    """Return the first operator that is not explained and beyond any rounding."""
    for examined in stages:
        for operator in examined.operators:
            alone = operator is examined.first_unexplained
            if times_limit(operator) > 1 and beyond_rounding(operator, limits, alone=alone):
                return examined, operator
    return None


def beyond_rounding(operator: OperatorError, limits: LimitsInfo, *, alone: bool) -> bool:
    """Return whether a result is further off than any rounding makes it.

    `alone`: everything before it in the stage is explained, so that what it shows is its own.
    """
    multiplies_none = alone and operator.operator in ("RoPE", "norm")
    largest = limits.rope_and_norm_error if multiplies_none else limits.operator_error
    if operator.relative_error is None or operator.token_error is None:
        return True
    beyond_token = operator.token_error >= limits.operator_token_error
    return operator.relative_error >= largest or beyond_token


def block_name(number: int, path: str) -> str:
    """Return a block's number, or what it is where it is none: `embedding`, `norm`."""
    if number < 0:
        return "embedding"
    return str(number) if "." in path else "norm"  # blocks are the members of a list of modules


def block_words(examined: StageErrors) -> str:
    """Return `block N`, with its name where it is the embedding or the final norm."""
    name = block_name(examined.stage.number, examined.stage.path)
    long = {"embedding": " (the embedding)", "norm": " (the final norm)"}.get(name, "")
    return f"block {examined.stage.number}{long}"


def wrong_sentence(
    examined: StageErrors, operator: OperatorError, stages: Stages, grid: Grid, limits: LimitsInfo
) -> str:
    """Return what an operator did that no rounding does."""
    where = f"{block_words(examined)}, {operator.operator} ({operator.name})"
    if operator.relative_error is None or operator.token is None:
        return f"{where}: NaN, infinity or a wrong shape from here on"
    subject, error, expected = "its result", operator.relative_error, operator.expected_error
    token_error = math.inf if operator.token_error is None else operator.token_error
    if token_error >= limits.operator_token_error:
        error, expected, subject = token_error, operator.expected_token_error, "a token"
        if operator.name == "output":
            subject = f"the {place_words(token_place(operator.token, error, 0, stages, grid))}"
    return (
        f"{where}: {subject} is off by {error:.2g}, which no rounding of {limits.arithmetic} "
        f"makes ({expected:.2g} is explained)"
    )


def unexplained_sentence(examined: StageErrors, operator: OperatorError | None) -> str:
    """Return what the declared arithmetic does not explain."""
    what = "the error that has added up"
    if operator is not None:
        what = f"{operator.operator} ({operator.name})"
    shown = operator or examined.accumulated
    error, token_error = (
        math.inf if value is None else value for value in (shown.relative_error, shown.token_error)
    )
    return (
        f"{block_words(examined)}, {what}: relative error {error:.2g} "
        f"(worst token {token_error:.2g}), "
        f"{times_limit(shown):.3g} times the limit; "
        f"the declared arithmetic explains {shown.expected_error:.2g}"
    )


# ---- Parts of the record -------------------------------------------------------------------------


def token_place(
    token: int, error: float | None, cosine: float, stages: Stages, grid: Grid
) -> TokenPlace:
    """Return where a token lies, and how wrong it is.

    Tokens are CLS, registers and patches row by row; a model without CLS and registers, such as a
    ConvNeXt, puts its pooled vector first.
    """
    prefix = prefix_of(stages)
    kind: Literal["CLS", "register", "patch", "vector"] = "CLS" if token == 0 else "register"
    row = column = None
    if token >= prefix:
        kind = "vector"
        if token - prefix < grid[0] * grid[1]:
            kind, (row, column) = "patch", divmod(token - prefix, grid[1])
    shown = None if error is None else finite(error)
    return TokenPlace(token, kind, row, column, shown, finite(cosine))


def prefix_of(stages: Stages) -> int:
    """Return how many tokens stand before the patches; a ConvNeXt's pooled vector is one."""
    return 1 if stages.prefix_tokens is None else stages.prefix_tokens


def place_words(place: TokenPlace) -> str:
    """Return a token's place for a reader."""
    if place.kind == "patch":
        return f"patch in row {place.row}, column {place.column}"
    return {"CLS": "CLS", "register": f"register {place.token - 1}"}.get(
        place.kind, f"vector {place.token}"
    )


def against(reference: torch.Tensor, measured: torch.Tensor) -> float | None:
    """Return the relative error for the record; None for another shape too."""
    if measured.shape != reference.shape:
        return None
    return finite(compare(reference, measured).relative_error)


def tensor_accuracy(
    judged: Judgement,
    name: str,
    examination: Examination,
    stages: Stages,
    grid: Grid,
    torch_device: str,
) -> TensorAccuracy:
    """Return one output tensor's part of the record."""
    whole, tokens = judged.comparison, judged.tokens
    sides = examination.device, examination.fp32, examination.imitation, examination.fp64
    device, fp32, imitation, fp64 = (getattr(side, name) for side in sides)
    return TensorAccuracy(
        shape=tuple(device.shape),
        device=torch_device,
        relative_error=finite(whole.relative_error),
        relative_error_passed=judged.relative_error_passed,
        cosine=finite(whole.cosine),
        cosine_passed=judged.cosine_passed,
        mse=finite(whole.mse),
        max_abs_diff=finite(whole.max_abs_diff),
        passed=judged.passed,
        fp64_relative_error=against(fp64, device),
        cpu_fp64_relative_error=against(fp64, fp32),
        expected_error=against(fp64, imitation),
        worst_token=token_place(
            tokens.worst, tokens.worst_relative, tokens.worst_cosine, stages, grid
        ),
        token_percentiles=percentiles_of(tokens.relative),
        identical_bits=device.shape == fp32.shape and compare(fp32, device).identical,
    )


def parts_of(
    examination: Examination, expected: Features, stages: Stages
) -> tuple[PartAccuracy, ...]:
    """Return CLS, registers and patches apart; nothing where the model has no such tokens."""
    device, fp32, fp64, reference = (
        side.last_hidden_state
        for side in (examination.device, examination.fp32, examination.fp64, expected)
    )
    prefix = stages.prefix_tokens
    if prefix is None or device.shape != fp64.shape or device.ndim != 3:
        return ()
    parts: dict[Literal["CLS", "registers", "patches"], slice] = {
        "CLS": slice(0, 1), "registers": slice(1, prefix), "patches": slice(prefix, None),
    }  # fmt: skip
    return tuple(
        PartAccuracy(
            part=part,
            relative_error=finite(seen.relative_error),
            cosine=finite(seen.cosine),
            fp64_relative_error=against(fp64[:, chosen], device[:, chosen]),
            cpu_fp64_relative_error=against(fp64[:, chosen], fp32[:, chosen]),
        )
        for part, chosen in parts.items()
        if device[:, chosen].numel() > 0
        for seen in [compare(reference[:, chosen], device[:, chosen])]
    )


def block_accuracy(examined: StageErrors, stages: Stages, grid: Grid) -> BlockAccuracy:
    """Return one block's part of the record."""
    after = examined.accumulated
    place = None
    if stages.prefix_tokens is not None and after.token is not None:
        place = token_place(after.token, after.token_error, math.nan, stages, grid)
    return BlockAccuracy(
        block=examined.stage.number,
        name=examined.stage.path,
        relative_error=after.relative_error,
        cpu_relative_error=finite(examined.cpu_error),
        expected_error=after.expected_error,
        explained=examined.first_unexplained is None,
        sum_explained=times_limit(after) <= 1,
        worst_operator=examined.worst,
        worst_token=place,
    )
