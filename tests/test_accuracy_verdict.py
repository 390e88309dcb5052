"""What the verdict says of errors, sentence by sentence, and where it draws the line."""

import dataclasses
import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from kit.accuracy.examine import Examination, StageErrors
from kit.accuracy.limits import (
    CRITERION,
    SMALLEST_ALONE,
    SMALLEST_LIMIT,
    Arithmetic,
    arithmetic_of,
    mark,
    number,
    overall_text,
)
from kit.accuracy.limits import LIMITS as TABLE
from kit.accuracy.recorder import Stage, Stages
from kit.accuracy.references import Declared, References
from kit.accuracy.verdict import (
    assess,
    beyond_rounding,
    block_name,
    block_words,
    exit_code,
    failing,
    failures,
    first_unexplained,
    first_wrong,
    judge,
    judge_batch,
    parts_of,
    place_words,
    token_place,
    unexplained_sentence,
    wrong_sentence,
)
from kit.device.arithmetic import TOLERANCES, UNIT_ROUNDOFF
from kit.model.model import Features
from kit.records import AccuracyResults, LimitsInfo, OperatorError, TokenPlace
from kit.statistics import TokenErrors, VectorError
from tests import report_records

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


# ---- Two tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "cosine", "token", "reasons"),
    [
        (0.0099, 0.9991, 0.0449, ()),
        (0.01, 0.9991, 0.0449, ("relative error 0.01 is not below 0.01",)),
        (0.0099, 0.999, 0.0449, ("cosine 0.999000 is not above 0.999",)),
        (0.0099, 0.9991, 0.045, ("token 1 is off by 0.045, not below 0.045",)),
    ],
)
def test_a_figure_that_only_reaches_its_limit_is_not_inside(
    error: float, cosine: float, token: float, reasons: tuple[str, ...]
) -> None:
    whole = VectorError(error, cosine, 0.0, 0.0, identical=False)
    relative = torch.tensor([0.0, token], dtype=torch.float64)
    tokens = TokenErrors(relative, torch.ones(2, dtype=torch.float64), worst=1)
    assert failures(whole, tokens, TABLE["fp32"]) == reasons
    judged = dataclasses.replace(
        judge(torch.ones(1, 2), torch.ones(1, 2), "fp32"), comparison=whole, reasons=reasons
    )
    assert judged.relative_error_passed is (error < 0.01)
    assert judged.cosine_passed is (cosine > 0.999)
    assert judged.passed is (not reasons)


def test_a_value_that_is_not_finite_fails_by_this_reason_alone() -> None:
    measured = torch.ones(1, 2, 3)
    measured[0, 1, 2] = math.nan
    judged = judge(torch.ones(1, 2, 3), measured, "fp32")
    assert not judged.passed
    (reason,) = judged.reasons
    assert reason.startswith("1 values are NaN or infinite, the first at ")


def test_another_shape_fails_as_nan_and_is_named() -> None:
    judged = judge(torch.ones(1, 2, 3), torch.ones(1, 2, 4), "bf16")
    assert judged.reasons == ("shape (1, 2, 4) where (1, 2, 3) is right",)
    assert judged.limits.arithmetic == "bf16"
    assert not judged.relative_error_passed and not judged.cosine_passed


def test_each_image_of_a_batch_is_judged_against_its_own_and_repeats_only_where_they_differ() -> (
    None
):
    expected = features(1.0, 2.0, 3.0)
    order = [0, 1, 0, 1, 2]
    found = features(1.0, 2.0, 1.0, 9.0, 3.0)
    judged = list(judge_batch(expected, found, order, "fp32"))
    names = ["pooler_output", "last_hidden_state"]
    assert [(place, name) for place, name, _ in judged] == [
        (place, name) for place in (0, 1, 3, 4) for name in names
    ]
    assert [place for place, _, one in judged if not one.passed] == [3, 3]
    found.last_hidden_state[2] *= 1.5  # one of the two tensors is enough to judge again
    judged = list(judge_batch(expected, found, order, "fp32"))
    assert next((p, name) for p, name, one in judged if not one.passed) == (2, names[1])


# ---- The verdict ---------------------------------------------------------------------------------


def features(*values: float, tokens: int = 11) -> Features:
    """Return features of an image a value; no two tokens have the same length."""
    scale = torch.tensor(values).reshape(-1, 1)
    hidden = (torch.arange(tokens * 2.0) + 1).reshape(1, tokens, 2)
    return Features(scale * torch.ones(len(values), 2), scale[:, :, None] * hidden)


def assessed(
    *stages: StageErrors,
    device: float | Features = 1.0,
    fp32: float = 1.0,
    fp64: float = 1.0,
    imitation: float = 1.0,
    prefix: int | None = 5,
    self_check: bool = False,
) -> AccuracyResults:
    """Return the results of a run whose sides have these multiples of the same features."""
    sides = [
        one if isinstance(one, Features) else features(one)
        for one in (device, fp32, imitation, fp64)
    ]
    known = SimpleNamespace(
        stages=dataclasses.replace(STAGES, prefix_tokens=prefix), declared=Declared()
    )
    return assess(
        Examination(stages, *sides), cast(References, known), GRID, image="an image",
        source="local", torch_device="npu:0", factor=10.0, self_check=self_check,
    )  # fmt: skip


@pytest.mark.parametrize("self_check", [False, True])
def test_the_verdict_of_outputs_and_operators_together(self_check: bool) -> None:
    good = "SELF-CHECK" if self_check else "PASS"
    sound = assessed(examined(SOUND), self_check=self_check)
    assert (sound.verdict, sound.outcome) == (good, good.lower())
    assert (sound.reasons, sound.first_unexplained_block) == ((), None)
    assert sound.reference == ("CPU fp64" if self_check else "CPU fp32")
    assert sound.limits.budget_factor == 10.0
    assert (sound.image, sound.source, sound.declared) == ("an image", "local", str(Declared()))
    assert (sound.explain, sound.folder, sound.chip_gelu) == ((), None, None)

    off = dataclasses.replace(OFF, relative_error=1e-3, token_error=1e-3)
    unexplained = assessed(examined(SOUND), examined(off, stage=NORM), self_check=self_check)
    assert unexplained.verdict == (f"{good}, unexplained error from block 4 (the final norm)")
    assert unexplained.outcome == ("self-check" if self_check else "unexplained")
    assert unexplained.first_unexplained_operator == off
    assert unexplained.first_unexplained_block == 4
    assert unexplained.reasons == (unexplained_sentence(examined(off, stage=NORM), off),)

    wrong_operator = assessed(examined(OFF), self_check=self_check)
    assert (wrong_operator.verdict, wrong_operator.outcome) == ("FAIL", "fail")
    stage = examined(OFF)
    sentence = wrong_sentence(stage, OFF, STAGES, GRID, TABLE["fp32"])
    assert wrong_operator.reasons == (sentence,)  # and is not told twice

    both = assessed(examined(off), device=1.5, self_check=self_check)
    assert (both.verdict, both.outcome) == ("FAIL", "fail")
    assert len(both.reasons) == 5  # the whole and a token of either tensor, and the operator
    assert both.reasons[0] == "pooler_output: relative error 0.5 is not below 0.01"
    assert both.reasons[-1] == unexplained_sentence(examined(off), off)


def test_a_device_is_held_against_fp32_and_the_cpu_itself_against_fp64() -> None:
    other = assessed(fp64=1.02)
    assert other.outcome == "pass"
    assert other.pooler_output.fp64_relative_error == pytest.approx(0.02 / 1.02)
    assert assessed(fp64=1.02, self_check=True).outcome == "fail"
    assert assessed(fp32=1.02).outcome == "fail"
    assert assessed(fp32=1.02, self_check=True).outcome == "self-check"


def test_a_tensors_part_of_the_record_has_each_sides_error_and_its_worst_token() -> None:
    device = features(1.0)
    device.last_hidden_state[0, 9] *= 1.004
    results = assessed(device=device, fp32=1.0, imitation=0.5, fp64=2.0)
    hidden, pooled = results.last_hidden_state, results.pooler_output
    assert (pooled.shape, hidden.shape) == ((1, 2), (1, 11, 2))
    assert (pooled.identical_bits, hidden.identical_bits) == (True, False)
    assert pooled.fp64_relative_error == pooled.cpu_fp64_relative_error == 0.5
    assert pooled.expected_error == pytest.approx(0.75)
    assert pooled.relative_error == pooled.mse == pooled.max_abs_diff == 0
    assert hidden.max_abs_diff == pytest.approx(20 * 0.004, rel=1e-3)
    assert hidden.passed and hidden.cosine_passed and hidden.relative_error_passed
    assert hidden.cosine == pytest.approx(0.9999987, abs=1e-7)
    assert hidden.device == "npu:0"
    half, *_, most = hidden.token_percentiles  # of 11 tokens, one of which is off
    assert half.relative_error == 0.0
    assert most.relative_error == pytest.approx(0.004, rel=0.02)
    place = hidden.worst_token
    assert (place.token, place.kind, place.row, place.column) == (9, "patch", 1, 1)
    assert place.relative_error == pytest.approx(0.004, rel=1e-3)
    assert place.cosine == pytest.approx(1.0)


def test_another_shape_has_no_figures_against_fp64_and_no_identical_bits() -> None:
    results = assessed(device=features(1.0, tokens=4))
    hidden = results.last_hidden_state
    assert (results.outcome, results.parts) == ("fail", ())
    assert (hidden.shape, hidden.relative_error, hidden.cosine) == ((1, 4, 2), None, None)
    assert hidden.fp64_relative_error is None and hidden.cpu_fp64_relative_error == 0
    assert not hidden.identical_bits
    assert results.reasons[0].startswith("last_hidden_state: shape (1, 4, 2) where (1, 11, 2)")


def test_the_parts_are_cls_registers_and_patches_each_by_itself() -> None:
    device = features(1.0)
    device.last_hidden_state[0, 0] *= 1.001
    device.last_hidden_state[0, 1:5] *= 1.002
    device.last_hidden_state[0, 5:] *= 1.003
    parts = assessed(device=device, fp64=2.0).parts
    assert [part.part for part in parts] == ["CLS", "registers", "patches"]
    for part, off in zip(parts, (1e-3, 2e-3, 3e-3), strict=True):
        assert part.relative_error == pytest.approx(off, rel=1e-3)
        assert part.cosine == pytest.approx(1.0)
        assert part.cpu_fp64_relative_error == 0.5
        assert part.fp64_relative_error == pytest.approx(0.5 - off / 2)
    held = assessed(device=device, fp64=1.0, fp32=2.0, self_check=True).parts
    assert held[0].relative_error == pytest.approx(1e-3, rel=1e-3)
    without_registers = assessed(device=device, prefix=1).parts
    assert [part.part for part in without_registers] == ["CLS", "patches"]
    assert assessed(device=device, prefix=None).parts == ()
    flat = Features(torch.ones(1, 2), torch.ones(1, 11))  # no token has a vector
    sides = Examination((), flat, flat, flat, flat)
    assert parts_of(sides, flat, STAGES) == ()


@pytest.mark.parametrize("prefix", [5, None])
def test_a_blocks_part_of_the_record(prefix: int | None) -> None:
    worst = dataclasses.replace(SOUND, times_limit=1.0)
    sound, off, summed = (
        examined(SOUND, worst, total=1.0), examined(OFF), examined(SOUND, total=1.5),
    )  # fmt: skip
    first, second, third = assessed(sound, off, summed, prefix=prefix).blocks
    assert (first.block, first.name, first.worst_operator) == (3, "layer.3", worst)
    assert (first.relative_error, first.cpu_relative_error, first.expected_error) == (
        0.125, 1e-7, 1e-6,
    )  # fmt: skip
    assert (first.explained, first.sum_explained) == (True, True)
    assert (second.explained, second.sum_explained) == (False, True)
    assert (third.explained, third.sum_explained) == (True, False)
    if prefix is None:
        assert first.worst_token is None
    else:
        assert first.worst_token == TokenPlace(4, "register", None, None, 0.25, None)
        after = dataclasses.replace(sound.accumulated, token=None)
        lost = dataclasses.replace(sound, accumulated=after)
        assert assessed(lost, prefix=prefix).blocks[0].worst_token is None


def test_a_failure_is_a_reason_more_and_takes_the_place_of_what_is_none() -> None:
    passing = dataclasses.replace(assessed(), reasons=("unexplained",))
    failed = failing(passing, "one")
    assert (failed.verdict, failed.outcome, failed.reasons) == ("FAIL", "fail", ("one",))
    assert failing(failed, "two").reasons == ("one", "two")


def test_an_unexplained_error_ends_with_1_where_the_run_is_strict() -> None:
    sound, failed = assessed(examined(SOUND)), assessed(device=2.0)
    unexplained = assessed(examined(SOUND, total=2.0))
    assert [exit_code(one, strict=False) for one in (sound, unexplained, failed)] == [0, 0, 1]
    assert [exit_code(one, strict=True) for one in (sound, unexplained, failed)] == [0, 1, 1]
    # the first of all, which the embedding may not be: no number stands for "none"
    first = assessed(examined(SOUND, total=2.0, stage=Stage(0, "layer.0")))
    assert exit_code(first, strict=True) == 1


@pytest.mark.parametrize(
    ("number", "path", "name"),
    [
        (-1, "embeddings", "embedding"),
        (-1, "stages.0.downsampling", "embedding"),
        (0, "layer.0", "0"),
        (12, "norm", "norm"),
    ],
)
def test_a_block_is_called_by_its_number_and_other_stages_by_what_they_are(
    number: int, path: str, name: str
) -> None:
    assert block_name(number, path) == name


@pytest.mark.parametrize(
    ("token", "prefix", "words"),
    [
        (0, 5, "CLS"),
        (1, 5, "register 0"),
        (4, 5, "register 3"),
        (5, 5, "patch in row 0, column 0"),
        (7, 5, "patch in row 0, column 2"),
        (10, 5, "patch in row 1, column 2"),
        (11, 5, "vector 11"),
        (0, None, "CLS"),
        (1, None, "patch in row 0, column 0"),
    ],
)
def test_a_token_is_named_by_its_place(token: int, prefix: int | None, words: str) -> None:
    place = token_place(
        token, 0.5, math.nan, dataclasses.replace(STAGES, prefix_tokens=prefix), GRID
    )
    assert place_words(place) == words
    assert words.startswith(place.kind)
    assert (place.relative_error, place.cosine) == (0.5, None)


def test_the_first_reduced_product_decides_the_limits() -> None:
    assert [arithmetic_of(dtype, "tf32") for dtype in ("fp32", "bf16", "fp16")] == [
        "tf32", "bf16", "fp16",
    ]  # fmt: skip
    assert arithmetic_of("fp32", "fp32", "hf32", "tf32") == "hf32"
    assert arithmetic_of("fp32", "fp32", "bf16") == "fp16"
    assert arithmetic_of("fp32", "fp32") == "fp32"


def test_a_figure_that_is_not_finite_is_said_so() -> None:
    assert (number(None, ".2f"), number(0.125, ".2f")) == ("not finite", "0.12")


def test_a_wrong_operator_is_one_just_beyond_its_limit() -> None:
    far = dataclasses.replace(OFF, relative_error=0.75, times_limit=1.5)
    assert first_wrong([examined(far)], LIMITS) == (examined(far), far)


def test_the_first_register_is_one_of_the_registers() -> None:
    device = features(1.0)
    device.last_hidden_state[0, 1] *= 1.002
    errors = [part.relative_error for part in assessed(device=device).parts]
    assert (errors[0], errors[2]) == (0, 0)
    assert errors[1] and errors[1] > 0


@pytest.mark.parametrize(
    ("arithmetic", "row"),
    [
        *(
            (name, (0.01, 0.999, 0.045, 0.01, 1 / 256, 0.25))
            for name in ("fp32", "hf32", "tf32", "fp16")
        ),
        ("bf16", (0.05, 0.998, 0.15, 0.05, 0.05, 0.5)),
    ],
)
def test_every_limit_of_the_table_is_the_published_one_or_bf16s(
    arithmetic: Arithmetic, row: tuple[float, ...]
) -> None:
    one = TABLE[arithmetic]
    figures = (
        one.relative_error, one.cosine, one.token_relative_error,
        one.operator_error, one.rope_and_norm_error, one.operator_token_error,
    )  # fmt: skip
    assert (one.arithmetic, figures) == (arithmetic, row)


def test_overall_names_the_criterion_or_the_reason_that_is_none_of_its_figures() -> None:
    one_tensor = features(1.0)
    one_tensor.pooler_output.mul_(2)
    failed, sound, itself = assessed(device=one_tensor), assessed(), assessed(self_check=True)
    assert overall_text(failed) == f"FAIL ({CRITERION})"
    assert overall_text(failing(sound, "a reason")) == "FAIL (a reason)"
    unsaid = dataclasses.replace(sound, outcome="fail")
    assert overall_text(unsaid) == f"FAIL ({CRITERION})"
    turned = dataclasses.replace(sound.pooler_output, cosine_passed=False)
    by_cosine = dataclasses.replace(failing(sound, "a reason"), pooler_output=turned)
    assert overall_text(by_cosine) == f"FAIL ({CRITERION})"
    assert overall_text(sound) == f"PASS ({CRITERION})"
    assert overall_text(itself).startswith("SELF-CHECK (no accelerator")
    assert [mark(True, one) for one in (sound, itself)] == ["PASS", "SELF-CHECK"]
    assert mark(False, itself) == "FAIL"


def test_what_is_held_by_itself_may_be_off_by_what_its_arithmetic_rounds() -> None:
    stored = {"fp16": torch.float16, "bf16": torch.bfloat16}
    rounded_twice = {name: 2 * UNIT_ROUNDOFF[dtype] for name, dtype in stored.items()}
    scores = UNIT_ROUNDOFF[torch.bfloat16] / 2
    assert {"sum": TOLERANCES["sum"], "scores": scores, **rounded_twice} == SMALLEST_ALONE
    assert 16 * UNIT_ROUNDOFF[torch.float32] == SMALLEST_LIMIT


@pytest.mark.parametrize(
    ("arithmetic", "words"),
    [
        ("bf16", "relative error < 5% and cosine similarity > 0.998, the limits of bf16)"),
        ("fp16", "relative error < 1% and cosine similarity > 0.999, the limits of fp16)"),
        ("hf32", f"PASS ({CRITERION})"),
    ],
)
def test_overall_names_the_limits_where_they_are_not_the_published_ones(
    arithmetic: Arithmetic, words: str
) -> None:
    results = dataclasses.replace(
        report_records.accuracy().results, limits=TABLE[arithmetic], outcome="pass"
    )
    assert overall_text(results).endswith(words)
