"""What the verdict says of errors, sentence by sentence, and where it draws the line."""

import dataclasses

import pytest

from kit.accuracy.examine import StageErrors
from kit.accuracy.recorder import Stage, Stages
from kit.accuracy.verdict import (
    beyond_rounding,
    block_words,
    first_unexplained,
    first_wrong,
    unexplained_sentence,
    wrong_sentence,
)
from kit.records import LimitsInfo, OperatorError

EMBEDDING, BLOCK, NORM = Stage(-1, "embeddings"), Stage(3, "layer.3"), Stage(4, "norm")
STAGES = Stages((EMBEDDING, BLOCK, NORM), blocks=4, prefix_tokens=5)
GRID = (2, 3)
LIMITS = LimitsInfo(
    arithmetic="fp32",
    relative_error=1e-2,
    cosine=0.999,
    token_relative_error=4.5e-2,
    operator_error=0.5,
    rope_and_norm_error=0.1,
    operator_token_error=0.9,
    budget_factor=10.0,
    reason="",
)
SOUND = OperatorError("mlp.output", "MLP", 1e-6, 1e-6, 2e-6, 3e-6, 0.1, 2)
OFF = dataclasses.replace(SOUND, relative_error=0.25, token_error=0.5, times_limit=80.0)


def examined(*operators: OperatorError, stage: Stage = BLOCK, total: float = 0.5) -> StageErrors:
    """Return a stage with these operators, its accumulated error at `total` times its limit."""
    accumulated = OperatorError("output", "block output", 0.125, 1e-6, 0.25, 1e-6, total, 4)
    return StageErrors(stage, accumulated, 1e-7, operators)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (EMBEDDING, "block -1 (the embedding)"),
        (BLOCK, "block 3"),
        (NORM, "block 4 (the final norm)"),
    ],
)
def test_the_embedding_and_the_final_norm_are_called_so(stage: Stage, words: str) -> None:
    assert block_words(examined(stage=stage)) == words


def wrong(operator: OperatorError) -> str:
    return wrong_sentence(examined(operator), operator, STAGES, GRID, LIMITS)


def test_a_wrong_result_is_named_with_its_block_operator_and_both_errors() -> None:
    assert wrong(OFF) == (
        "block 3, MLP (mlp.output): its result is off by 0.25, which no rounding of fp32 makes "
        "(1e-06 is explained)"
    )


@pytest.mark.parametrize(
    ("name", "token", "subject"),
    [
        ("mlp.output", 2, "a token"),
        ("output", 0, "the CLS"),
        ("output", 2, "the register 1"),
        ("output", 9, "the patch in row 1, column 1"),
    ],
)
@pytest.mark.parametrize(("token_error", "shown"), [(0.9, "0.9"), (2.0, "2"), (None, "inf")])
def test_a_wrong_token_is_named_where_the_result_has_tokens(
    name: str, token: int, subject: str, token_error: float | None, shown: str
) -> None:
    operator = dataclasses.replace(OFF, name=name, token=token, token_error=token_error)
    assert wrong(operator) == (
        f"block 3, MLP ({name}): {subject} is off by {shown}, which no rounding of fp32 makes "
        "(3e-06 is explained)"
    )


@pytest.mark.parametrize("changes", [{"relative_error": None}, {"token": None}])
def test_a_result_that_is_not_finite_or_of_another_shape_is_called_so(
    changes: dict[str, None],
) -> None:
    operator = dataclasses.replace(OFF, **changes)  # type: ignore[arg-type] # None fits both
    assert wrong(operator) == (
        "block 3, MLP (mlp.output): NaN, infinity or a wrong shape from here on"
    )


def test_an_unexplained_error_is_told_with_what_the_arithmetic_explains() -> None:
    assert unexplained_sentence(examined(OFF), OFF) == (
        "block 3, MLP (mlp.output): relative error 0.25 (worst token 0.5), 80 times the limit; "
        "the declared arithmetic explains 1e-06"
    )
    broken = dataclasses.replace(OFF, relative_error=None, token_error=None, times_limit=None)
    assert "relative error inf (worst token inf), inf times the limit" in unexplained_sentence(
        examined(broken), broken
    )


def test_errors_that_have_added_up_are_told_where_no_operator_is_at_fault() -> None:
    assert unexplained_sentence(examined(SOUND, total=2.0), None) == (
        "block 3, the error that has added up: relative error 0.12 (worst token 0.25), 2 times "
        "the limit; the declared arithmetic explains 1e-06"
    )


def test_the_first_operator_beyond_its_limit_comes_before_any_sum() -> None:
    sum_first = examined(SOUND, stage=EMBEDDING, total=3.0)
    edge = dataclasses.replace(SOUND, times_limit=1.0)
    assert first_unexplained([sum_first, examined(edge, OFF)]) == (examined(edge, OFF), OFF)
    assert first_unexplained([examined(edge), sum_first]) == (sum_first, None)
    assert first_unexplained([examined(edge, total=1.0)]) is None


@pytest.mark.parametrize(
    ("error", "token_error", "operator", "alone", "beyond"),
    [
        (0.49, 0.89, "MLP", True, False),
        (0.5, 0.89, "MLP", True, True),
        (0.49, 0.9, "MLP", True, True),
        (0.09, 0.1, "norm", True, False),
        (0.1, 0.1, "norm", True, True),
        (0.1, 0.1, "RoPE", True, True),
        (0.1, 0.1, "norm", False, False),
        (0.1, 0.1, "MLP", True, False),
        (None, 0.1, "MLP", True, True),
        (0.1, None, "MLP", True, True),
    ],
)
def test_no_rounding_goes_as_far_as_these_limits(
    error: float | None, token_error: float | None, operator: str, alone: bool, beyond: bool
) -> None:
    errors = dataclasses.replace(
        OFF, relative_error=error, token_error=token_error, operator=operator
    )
    assert beyond_rounding(errors, LIMITS, alone=alone) is beyond


def test_the_first_wrong_operator_is_unexplained_and_beyond_any_rounding() -> None:
    far = dataclasses.replace(OFF, relative_error=0.75)
    explained = dataclasses.replace(far, times_limit=1.0)
    stage = examined(explained, OFF, far)
    assert first_wrong([examined(SOUND), stage], LIMITS) == (stage, far)
    assert first_wrong([examined(explained, OFF)], LIMITS) is None
    norm = dataclasses.replace(OFF, operator="norm", relative_error=0.2)
    assert first_wrong([examined(norm)], LIMITS) == (examined(norm), norm)
    assert first_wrong([examined(OFF, norm)], LIMITS) is None  # it has what came before it
