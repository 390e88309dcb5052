"""Hold one device run against the truth, stage by stage and operator by operator.

Errors add up from block to block, so a block is judged by itself: its call is repeated on the
CPU in fp64 on the very input that the device's block had, and every operator's result inside
is compared. What the declared arithmetic explains is found by repeating the same call in that
arithmetic: this is the budget of this operator, for this model and this image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kit.accuracy.limits import BUDGET_FACTOR
from kit.accuracy.recorder import Points, StageRecord, replay
from kit.accuracy.sides import ReferenceRuns, References, Run
from kit.accuracy.stages import OperatorClass, Stage, Stages, class_of
from kit.metrics import compare, compare_tokens

# Two fp32 implementations of one function (exp, erf, rsqrt) may differ by some units in the
# last place where the CPU's own happens to be exact, so no budget is smaller than this.
SMALLEST_LIMIT = 2.0**-20


@dataclass(frozen=True)
class Gap:
    """The distance of one tensor from the truth, beside its budget.

    Attributes:
        error: relative, of the whole tensor; infinite where it is broken or of another shape.
        budget: the same figure of the declared arithmetic.
        token_error: relative, of the worst token.
        token_budget: the same figure of the declared arithmetic, of its own worst token.
        token: position of the worst token among all; None where shapes differ.
        broken: whether the device's tensor holds a NaN or infinity, or is of another shape.
    """

    error: float
    budget: float
    token_error: float
    token_budget: float
    token: int | None
    broken: bool

    def limit(self, factor: float) -> float:
        """Return the largest whole-tensor error that counts as explained."""
        return max(factor * self.budget, SMALLEST_LIMIT)

    def token_limit(self, factor: float) -> float:
        """Return the largest token error that counts as explained."""
        return max(factor * self.token_budget, SMALLEST_LIMIT)

    def excess(self, factor: float) -> float:
        """Return how many times its limit the error is, the worse of tensor and token."""
        if self.broken:
            return math.inf
        return max(self.error / self.limit(factor), self.token_error / self.token_limit(factor))


@dataclass(frozen=True)
class Point:
    """One operator's result inside a stage.

    Attributes:
        name: the module's path inside the stage, with .input or .output.
        operator: the class of operator.
        gap: its own error, on the device's own input of the stage.
    """

    name: str
    operator: OperatorClass
    gap: Gap


@dataclass(frozen=True)
class StageExamination:
    """One stage of the device, examined.

    Attributes:
        stage: which.
        accumulated: of the stage's output, everything before it included.
        cpu_error: accumulated relative error of the CPU's own fp32.
        points: every operator inside, in the order of execution, on the device's own input.
    """

    stage: Stage
    accumulated: Gap
    cpu_error: float
    points: tuple[Point, ...]

    def first_unexplained(self, factor: float) -> Point | None:
        """Return the first operator whose own error is beyond its limit."""
        return next((point for point in self.points if point.gap.excess(factor) > 1), None)

    def worst(self, factor: float) -> Point | None:
        """Return the operator that comes closest to its limit or goes furthest beyond it."""
        return max(self.points, key=lambda point: point.gap.excess(factor), default=None)


@dataclass(frozen=True)
class Examination:
    """A device run beside the truth, the CPU and the declared arithmetic.

    Attributes:
        stages: every stage, in the order of execution.
        device, cpu, truth, budget: the runs.
        factor: how many times the budget still counts as explained.
    """

    stages: tuple[StageExamination, ...]
    device: Run
    cpu: Run
    truth: Run
    budget: Run
    factor: float = BUDGET_FACTOR

    def first_unexplained(self) -> tuple[StageExamination, Point | None] | None:
        """Return the first stage that its budget does not explain, and the operator.

        Where every operator by itself is explained and the accumulated error is not, that
        stage is returned without an operator.
        """
        for examined in self.stages:
            if (point := examined.first_unexplained(self.factor)) is not None:
                return examined, point
        for examined in self.stages:
            if examined.accumulated.excess(self.factor) > 1:
                return examined, None
        return None

    def wrong(self, token_limit: float) -> tuple[StageExamination, Point] | None:
        """Return the first operator that is beyond its budget and beyond any rounding.

        Args:
            token_limit: relative error of a token that no rounding of the arithmetic makes.
        """
        for examined in self.stages:
            for point in examined.points:
                if point.gap.excess(self.factor) > 1 and point.gap.token_error >= token_limit:
                    return examined, point
        return None


def gap_between(
    truth: torch.Tensor, device: torch.Tensor | None, budget: torch.Tensor, tokens_last: bool
) -> Gap:
    """Return the device's distance from the truth beside the declared arithmetic's.

    Args:
        truth: in fp64.
        device: the device's tensor; None where the device has none under this name.
        budget: the declared arithmetic's tensor.
        tokens_last: False where the second axis, not the last, is a token's vector.
    """
    explained = compare(truth, budget).relative_error
    explained_tokens = compare_tokens(*as_tokens(tokens_last, truth, budget)).worst_relative
    if device is None or device.shape != truth.shape:
        return Gap(math.inf, explained, math.inf, explained_tokens, None, True)
    whole = compare(truth, device)
    tokens = compare_tokens(*as_tokens(tokens_last, truth, device))
    return Gap(
        error=whole.relative_error,
        budget=explained if math.isfinite(explained) else 0.0,
        token_error=tokens.worst_relative,
        token_budget=explained_tokens if math.isfinite(explained_tokens) else 0.0,
        token=tokens.worst,
        broken=not whole.finite,
    )


def as_tokens(tokens_last: bool, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors with a token's vector on the last axis."""
    return tensors if tokens_last else tuple(tensor.movedim(1, -1) for tensor in tensors)


def channels_first(stage: Stage, point: str, stages: Stages, tensor: torch.Tensor) -> bool:
    """Return whether a 4-axis tensor holds a map with channels on the second axis."""
    if tensor.ndim != 4:
        return False
    convolution = "patch_embeddings" in point or "projection" in point or "conv" in point
    whole_stage = stages.prefix_tokens is None and point in ("input", "output")
    return convolution or whole_stage or (stage.number < 0 and point == "input")


def examine(
    device: Run, references: References, runs: ReferenceRuns, factor: float = BUDGET_FACTOR
) -> Examination:
    """Examine a device run whose recorder has recorded in detail.

    Args:
        device: the run.
        references: of the same weights, with the device's declared arithmetic.
        runs: the same image on the CPU's sides.
        factor: how many times the budget still counts as explained.
    """
    sides = {"truth": runs.truth, "cpu": runs.cpu, "budget": runs.budget}
    examined = tuple(
        examine_stage(stage, references, device, sides)
        for stage in references.stages.all
        if "output" in runs.truth.recorder.stages[stage.number].points
    )
    return Examination(examined, device, runs.cpu, runs.truth, runs.budget, factor)


def examine_stage(
    stage: Stage, references: References, device: Run, runs: Mapping[str, Run]
) -> StageExamination:
    """Examine one stage: accumulated error first, then every operator on the device's input."""
    records = {name: run.recorder.stages[stage.number] for name, run in runs.items()}
    found = device.recorder.stages[stage.number].points
    outputs = {name: record.points["output"] for name, record in records.items()}
    tokens_last = not channels_first(stage, "output", references.stages, outputs["truth"])
    accumulated = gap_between(outputs["truth"], found.get("output"), outputs["budget"], tokens_last)
    cpu_error = compare(outputs["truth"], outputs["cpu"]).relative_error
    expected, budget = repeat_stage(stage, references, found, records)
    points = tuple(
        Point(
            name,
            class_of(name, stage, references.stages),
            gap_between(
                tensor,
                found.get(name),
                budget[name],
                not channels_first(stage, name, references.stages, tensor),
            ),
        )
        for name, tensor in expected.items()
        if name in budget and (name in found or name == "output")
    )
    return StageExamination(stage, accumulated, cpu_error, points)


def repeat_stage(
    stage: Stage,
    references: References,
    found: Points,
    records: Mapping[str, StageRecord],
) -> tuple[Points, Points]:
    """Repeat the stage on the device's own input, in fp64 and in the declared arithmetic.

    The first stage repeats the reference's own call instead, so that a wrong input shows; the
    rotary embedding's tables, made from the input's shape alone, are compared as they were.
    """
    sides = (references.truth, references.budget)
    own = (records["truth"], records["budget"])
    first = stage is references.stages.all[0]
    main = None if first else found.get("input")
    if not first and (main is None or main.shape != own[0].points["input"].shape):
        return {"output": own[0].points["output"]}, {"output": own[1].points["output"]}
    results = []
    for side, record in zip(sides, own, strict=True):
        tables = {name: tensor for name, tensor in record.points.items() if is_table(name)}
        with side.computing():
            results.append(tables | replay(side.model, stage, record, main))
    return results[0], results[1]


def is_table(name: str) -> bool:
    """Return whether a point is one of the rotary embedding's tables of cosines and sines."""
    return ".output." in name
