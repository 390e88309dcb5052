"""From judgements and an examination to one verdict."""

from collections.abc import Mapping
from dataclasses import dataclass

from kit.accuracy.examination import Examination, Point, StageExamination
from kit.accuracy.judge import Judgement
from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.places import place_of
from kit.accuracy.stages import Stages
from kit.records import OutcomeName


@dataclass(frozen=True)
class Verdict:
    """What a run comes to.

    Attributes:
        text: as it is printed.
        outcome: for programs.
        reasons: why it failed, or what is unexplained.
        block: the first block that its budget does not explain; None where all is explained.
        operator: the first operator inside it that is not; None where only the sum is not.
    """

    text: str
    outcome: OutcomeName
    reasons: tuple[str, ...]
    block: int | None
    operator: Point | None

    def exit_code(self, strict: bool) -> int:
        """Return 1 for a failure, and under --strict for an unexplained error; else 0."""
        return int(self.outcome == "fail" or (strict and self.block is not None))


def conclude(
    judgements: Mapping[str, Judgement],
    examination: Examination,
    stages: Stages,
    grid: tuple[int, int],
    *,
    self_check: bool,
) -> Verdict:
    """Return the verdict of one image.

    Args:
        judgements: of each output tensor, by its name.
        examination: of the same run.
        stages: of the model.
        grid: rows and columns of patches.
        self_check: whether the device is the CPU itself, which can never pass.
    """
    unexplained = examination.first_unexplained()
    block = None if unexplained is None else unexplained[0].stage.number
    operator = None if unexplained is None else unexplained[1]
    reasons = tuple(
        f"{name}: {reason}" for name, judged in judgements.items() for reason in judged.reasons
    )
    arithmetic = next(iter(judgements.values())).arithmetic
    if (wrong := examination.wrong(LIMITS[arithmetic])) is not None:
        reasons += (wrong_sentence(*wrong, stages, grid, arithmetic),)
    if reasons:
        if wrong is None and unexplained is not None:
            reasons += (unexplained_sentence(*unexplained, examination.factor, stages),)
        return Verdict("FAIL", "fail", reasons, block, operator)
    if unexplained is None:
        text, outcome = ("SELF-CHECK", "self-check") if self_check else ("PASS", "pass")
        return Verdict(text, outcome, (), None, None)  # type: ignore[arg-type] # two literals
    tail = f", unexplained error from {block_label(unexplained[0].stage.number, stages)}"
    sentence = unexplained_sentence(*unexplained, examination.factor, stages)
    if self_check:
        return Verdict(f"SELF-CHECK{tail}", "self-check", (sentence,), block, operator)
    return Verdict(f"PASS{tail}", "unexplained", (sentence,), block, operator)


def block_label(number: int, stages: Stages) -> str:
    """Return `block N`, with its name where it is the embedding or the final norm."""
    plain = f"block {number}"
    name = stages.name_of(number)
    return plain if name == plain else f"{plain} ({name})"


def wrong_sentence(
    examined: StageExamination,
    point: Point,
    stages: Stages,
    grid: tuple[int, int],
    arithmetic: Arithmetic,
) -> str:
    """Return what an operator did that no rounding does."""
    where = f"{block_label(examined.stage.number, stages)}, {point.operator} ({point.name})"
    if point.gap.broken:
        return f"{where}: NaN, infinity or a wrong shape from here on"
    gap = point.gap
    if gap.token_error < LIMITS[arithmetic].operator_token_error:
        return (
            f"{where}: its result is off by {gap.error:.2g}, "
            f"which no rounding of {arithmetic} makes ({gap.expected_error:.2g} is explained)"
        )
    assert gap.token is not None  # only a broken one has no token
    token = place_of(gap.token, stages, grid).words if point.name == "output" else "a token"
    return (
        f"{where}: {token} is off by {gap.token_error:.2g}, "
        f"which no rounding of {arithmetic} makes ({gap.expected_token_error:.2g} is explained)"
    )


def unexplained_sentence(
    examined: StageExamination, point: Point | None, factor: float, stages: Stages
) -> str:
    """Return what the budget does not explain."""
    where = block_label(examined.stage.number, stages)
    gap = examined.accumulated if point is None else point.gap
    what = "the error that has added up" if point is None else f"{point.operator} ({point.name})"
    times = gap.excess(factor)
    return (
        f"{where}, {what}: relative error {gap.error:.2g} (worst token {gap.token_error:.2g}), "
        f"{times:.3g} times the limit; the declared arithmetic explains {gap.expected_error:.2g}"
    )
