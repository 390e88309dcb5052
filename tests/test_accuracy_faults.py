"""Would the verdict have noticed? Faults on the device's side only, and harmless variations."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from kit.accuracy.references import Declared
from kit.accuracy.verdict import exit_code
from kit.records import AccuracyResults
from tests import accuracy_model
from tests.accuracy_block_faults import (
    ATTENTION_FAULTS,
    BLOCK_FAULTS,
    MLP_FAULTS,
    SCALE_AND_NORM_FAULTS,
)
from tests.accuracy_harmless import HARMLESS, UNSEEN
from tests.accuracy_input_faults import EMBEDDING_FAULTS, INPUT_FAULTS, ROPE_FAULTS, UNDECLARED
from tests.accuracy_model import Case, named_rightly, run_case
from tests.trained_weights import small_trained_model

FAULTS = (
    *INPUT_FAULTS,
    *EMBEDDING_FAULTS,
    *UNDECLARED,
    *ROPE_FAULTS,
    *ATTENTION_FAULTS,
    *SCALE_AND_NORM_FAULTS,
    *MLP_FAULTS,
    *BLOCK_FAULTS,
)
CASES = {case.name: case for case in (*FAULTS, *HARMLESS, *UNSEEN)}


@cache
def measured(name: str) -> AccuracyResults:
    return run_case(CASES[name])


def passes_the_published_thresholds(found: AccuracyResults) -> bool:
    return all(
        tensor.relative_error_passed and tensor.cosine_passed
        for tensor in (found.pooler_output, found.last_hidden_state)
    )


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_a_fault_is_caught_and_its_block_named(case: Case) -> None:
    found = measured(case.name)
    assert found.outcome in ("fail", "unexplained"), found.verdict
    assert exit_code(found, strict=True) == 1
    assert named_rightly(case, found), found.reasons


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.name)
def test_a_harmless_variation_passes(case: Case) -> None:
    found = measured(case.name)
    assert found.outcome == "pass", found.reasons
    assert exit_code(found, strict=True) == 0


@pytest.mark.parametrize("case", UNSEEN, ids=lambda case: case.name)
def test_what_cannot_be_seen_passes_and_has_its_reason(case: Case) -> None:
    assert case.unseen
    assert measured(case.name).outcome == "pass"


def test_enough_is_tried_and_no_two_cases_share_a_name() -> None:
    assert len(FAULTS) >= 40
    assert len(HARMLESS) >= 15
    assert len(CASES) == len(FAULTS) + len(HARMLESS) + len(UNSEEN)


VARIANTS = {
    "HF32 convolution": Declared(convolution="hf32"),
    "tanh GELU": Declared(gelu="tanh"),
    "HF32 convolution, tanh GELU": Declared(convolution="hf32", gelu="tanh"),
    "HF32": Declared(matmul="hf32", convolution="hf32"),
    "TF32": Declared(matmul="tf32", convolution="tf32"),
    "fp16, convolution in and out": Declared(matmul="fp16", convolution="fp16 in and out"),
    "bf16": Declared(matmul="bf16", convolution="bf16"),
}
HF32, TANH = "HF32 convolution, declared fp32", "tanh instead of erf GELU"
# What is no fault there, because it is the arithmetic itself or what that rounds to.
MISSED = {
    "HF32 convolution": {HF32},
    "tanh GELU": {TANH},
    "HF32 convolution, tanh GELU": {HF32, TANH},
    "HF32": {HF32},
    "TF32": set(),
    "fp16, convolution in and out": {HF32},
    "bf16": {"weights rounded to bf16", "one weight's mantissa bit 12 flipped"},
}


@pytest.mark.parametrize(
    ("fault", "variant"),
    [
        ("weights 0.01 % stale", "tanh GELU"),
        ("patch convolution in bf16", "fp16, convolution in and out"),
        ("quick GELU", "bf16"),
        ("LayerNorm epsilon 1e-3", "HF32"),
        ("one weight's mantissa bit 12 flipped", "TF32"),
        ("attention scale 1 % too large", "bf16"),
    ],
)
def test_a_fault_far_below_the_rounding_of_products_is_caught_and_its_block_named(
    fault: str, variant: str
) -> None:
    case = CASES[fault]
    found = run_case(replace(case, declared=VARIANTS[variant]))
    assert exit_code(found, strict=True) == 1
    assert named_rightly(case, found), found.reasons


@pytest.mark.extended
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_fault_is_caught_under_every_documented_arithmetic_that_is_not_the_fault_itself(
    variant: str,
) -> None:
    missed = set()
    for case in FAULTS:
        found = run_case(replace(case, declared=VARIANTS[variant]))
        if not exit_code(found, strict=True) or not named_rightly(case, found):
            missed.add(case.name)
    assert missed == MISSED[variant]


# The large channels make each variance so large that an epsilon is lost in its last bits.
MISSED_ON_TRAINED_WEIGHTS = {
    "LayerNorm epsilon 1e-6", "LayerNorm epsilon 1e-3", "final norm epsilon 1e-3",
}  # fmt: skip


@pytest.fixture
def trained_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    model = small_trained_model()
    model.config._attn_implementation = "sdpa"
    caches = accuracy_model.references, accuracy_model.reference_runs
    monkeypatch.setattr(accuracy_model, "trained_like_model", lambda: model)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


@pytest.mark.extended
@pytest.mark.usefixtures("trained_weights")
def test_weights_as_training_leaves_them_hide_an_epsilon_alone() -> None:
    found = {case.name: run_case(case) for case in CASES.values()}
    missed = {
        case.name
        for case in FAULTS
        if not exit_code(found[case.name], strict=True) or not named_rightly(case, found[case.name])
    }
    assert missed == MISSED_ON_TRAINED_WEIGHTS
    assert {found[case.name].outcome for case in (*HARMLESS, *UNSEEN)} == {"pass"}


@pytest.mark.extended
@pytest.mark.parametrize("variant", VARIANTS)
def test_harmless_variations_pass_under_every_documented_arithmetic(variant: str) -> None:
    for case in HARMLESS:
        own = case.declared if case.declared != Declared() else VARIANTS[variant]
        found = run_case(replace(case, declared=own))
        assert found.outcome == "pass", (case.name, found.reasons)


def row(case: Case) -> str:
    """Return a case's line of the table."""
    found = measured(case.name)
    block, operator = found.first_unexplained_block, found.first_unexplained_operator
    published = "PASS" if passes_the_published_thresholds(found) else "FAIL"
    place = "-" if block is None else f"block {block}"
    place += "" if operator is None else f", {operator.operator}"
    remark = case.unseen or "harmless"
    if case in FAULTS:
        remark = "named rightly" if named_rightly(case, found) else "NAMED WRONGLY"
    return f"{case.name:46}{published:10}{found.outcome:13}{place:24}{remark}"


def test_the_table_of_faults(capsys: pytest.CaptureFixture[str]) -> None:
    passed = [case for case in FAULTS if passes_the_published_thresholds(measured(case.name))]
    lines = [
        f"{'on the device side':46}{'published':10}{'verdict':13}{'first place named':24}remark",
        *(row(case) for case in CASES.values()),
        f"{len(FAULTS)} faults; the two published thresholds alone pass {len(passed)} of them",
    ]
    with capsys.disabled():
        print("\n" + "\n".join(lines))  # noqa: T201 - the table is what this test is for
    assert len(passed) < len(FAULTS)
    assert not any("WRONGLY" in line for line in lines)
