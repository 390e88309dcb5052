"""What an examination holds: gaps to the truth, by operator and by stage, beside their budgets."""

import math
from dataclasses import dataclass

from kit.accuracy.limits import BUDGET_FACTOR, Limits
from kit.accuracy.stages import OperatorClass, Stage
from kit.model.model import Features

# Two fp32 implementations of one function (exp, erf, rsqrt) may differ by some units in the
# last place where the CPU's own happens to be exact, so no budget is smaller than this.
SMALLEST_LIMIT = 2.0**-20


@dataclass(frozen=True)
class Gap:
    """The distance of one tensor from the truth, beside its budget.

    Attributes:
        error: relative, of the whole tensor; infinite where it is broken or of another shape.
        expected_error: the same figure of the declared arithmetic.
        token_error: relative, of the worst token.
        expected_token_error: the same figure of the declared arithmetic, of its own worst token.
        token: position of the worst token among all; None where shapes differ.
        broken: whether the device's tensor holds a NaN or infinity, or is of another shape.
    """

    error: float
    expected_error: float
    token_error: float
    expected_token_error: float
    token: int | None
    broken: bool

    def limit(self, factor: float) -> float:
        """Return the largest whole-tensor error that counts as explained."""
        return max(factor * self.expected_error, SMALLEST_LIMIT)

    def token_limit(self, factor: float) -> float:
        """Return the largest token error that counts as explained."""
        return max(factor * self.expected_token_error, SMALLEST_LIMIT)

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

    def beyond(self, limits: Limits, *, alone: bool) -> bool:
        """Return whether the result is further off than any rounding makes it.

        Args:
            limits: of the declared arithmetic.
            alone: whether everything before it in the stage is explained, so that what it shows
                is its own.
        """
        multiplies_none = alone and self.operator in ("RoPE", "norm")
        largest = limits.rope_and_norm_error if multiplies_none else limits.operator_error
        gap = self.gap
        return gap.error >= largest or gap.token_error >= limits.operator_token_error


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
        device, cpu, truth, budget: each side's outputs, on the CPU.
        factor: how many times the budget still counts as explained.
    """

    stages: tuple[StageExamination, ...]
    device: Features
    cpu: Features
    truth: Features
    budget: Features
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

    def wrong(self, limits: Limits) -> tuple[StageExamination, Point] | None:
        """Return the first operator that is beyond its budget and beyond any rounding.

        Args:
            limits: of the declared arithmetic.
        """
        for examined in self.stages:
            first = examined.first_unexplained(self.factor)
            for point in examined.points:
                unexplained = point.gap.excess(self.factor) > 1
                if unexplained and point.beyond(limits, alone=point is first):
                    return examined, point
        return None
