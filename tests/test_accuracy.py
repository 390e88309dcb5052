"""accuracy.py on one image: the published block, honest sides, verdicts and exit codes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import accuracy
from kit.accuracy.limits import LIMITS, validation_block
from kit.accuracy.report import just_above
from kit.accuracy.verdict import beyond_rounding
from kit.records import AccuracyRecord, AccuracyResults, OperatorError, TensorAccuracy
from kit.run import ROOT
from tests.accuracy_runs import Run, record_of, results_of, run_process
from tests.models import save_tiny_convnext, save_tiny_dinov2

# The published report of this model on an Ascend910_9362, to the letter.
PUBLISHED = """\
============================================================
Accuracy Validation Results
============================================================
pooler_output:
Shape: (1, 768)
Vector Relative Error: 0.006521 (PASS)
Cosine Similarity: 0.999979 (PASS)
MSE: 0.0000102623
Max Absolute Diff: 0.015562
Overall: PASS
last_hidden_state:
Shape: (1, 201, 768)
Vector Relative Error: 0.003887 (PASS)
Cosine Similarity: 0.999992 (PASS)
MSE: 0.0000023998
Max Absolute Diff: 0.015562
Overall: PASS
============================================================
OVERALL: PASS (vector-level relative error < 1% and cosine similarity > 0.999)
============================================================"""


def tensor(shape: tuple[int, ...], error: float, cosine: float, mse: float, largest: float) -> Any:  # noqa: ANN401 - a record's part, of which the block uses some fields
    fields: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(TensorAccuracy))
    fields |= {
        "shape": shape, "relative_error": error, "cosine": cosine, "mse": mse,
        "max_abs_diff": largest, "relative_error_passed": True, "cosine_passed": True,
        "passed": True,
    }  # fmt: skip
    return TensorAccuracy(**fields)


def test_the_block_is_the_published_one_to_the_letter() -> None:
    results: dict[str, Any] = dict.fromkeys(f.name for f in dataclasses.fields(AccuracyResults))
    results["reference"], results["outcome"] = "CPU fp32", "pass"
    results["pooler_output"] = tensor((1, 768), 0.006521, 0.999979, 1.02623e-05, 0.015562)
    results["last_hidden_state"] = tensor((1, 201, 768), 0.003887, 0.999992, 2.3998e-06, 0.015562)

    class Limits:
        arithmetic = "hf32"

    results["limits"] = Limits()
    assert "\n".join(validation_block(AccuracyResults(**results))) == PUBLISHED


def test_a_cpu_against_itself_is_a_self_check_and_never_a_pass(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = run_accuracy()
    printed = capsys.readouterr().out
    record = record_of(folder)
    results = record["results"]
    assert code == 0
    assert results["verdict"] == "SELF-CHECK"
    assert results["reference"] == "CPU fp64"
    assert "PASS" not in printed
    assert (folder / "accuracy.log").read_text("utf-8") == printed
    assert 0 < results["last_hidden_state"]["relative_error"] < 1e-5
    assert results["last_hidden_state"]["device"] == "cpu"
    assert [block["block"] for block in results["blocks"]] == [-1, 0, 1, 2]
    assert results["first_unexplained_block"] is None
    for name in ("layers", "tokens", "pca"):
        with Image.open(folder / f"accuracy_{name}.png") as picture:
            assert min(picture.size) > 300


def test_random_weights_are_named_beside_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.model import model

    small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
    monkeypatch.setattr(model, "VITB16", model.VITB16 | small)
    monkeypatch.setattr("kit.model.weights.DEFAULT_FOLDERS", ())
    code = accuracy.main(["--device", "cpu", "--output-dir", str(tmp_path / "output")])
    lines = capsys.readouterr().out.splitlines()
    verdict = next(line for line in lines if line.startswith("Verdict: "))
    assert code == 0
    assert "random weights" in verdict
    assert results_of(tmp_path / "output")["source"] == "random"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_has_its_own_limits_and_is_explained(run_accuracy: Run, dtype: str) -> None:
    code, folder = run_accuracy("--dtype", dtype)
    results = results_of(folder)
    assert code == 0
    assert results["limits"]["arithmetic"] == dtype
    assert results["verdict"] == "SELF-CHECK"
    assert results["first_unexplained_block"] is None
    tensor_ = results["last_hidden_state"]
    assert tensor_["fp64_relative_error"] > 100 * tensor_["cpu_fp64_relative_error"]
    assert tensor_["fp64_relative_error"] == pytest.approx(tensor_["expected_error"], rel=0.5)


def test_a_convnext_has_its_stages_for_blocks(run_accuracy: Run, tmp_path: Path) -> None:
    code, folder = run_accuracy(weights=save_tiny_convnext(tmp_path / "convnext"))
    results = results_of(folder)
    assert code == 0
    assert [block["block"] for block in results["blocks"]] == [0, 1, 2, 3, 4]
    assert results["verdict"] == "SELF-CHECK"


def test_a_dinov2_has_its_layers_for_blocks(run_accuracy: Run, tmp_path: Path) -> None:
    code, folder = run_accuracy(weights=save_tiny_dinov2(tmp_path / "dinov2"))
    results = results_of(folder)
    assert code == 0
    assert [block["block"] for block in results["blocks"]] == [-1, 0, 1, 2]
    assert {part["part"] for part in results["parts"]} == {"CLS", "patches"}


def test_the_tolerance_that_would_just_pass_is_printed_and_just_passes(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run_accuracy()
    assert "would just pass: relative error < " in capsys.readouterr().out
    for value in (0.0, 1e-9, 0.00999, 0.01, 3.0, 999.0):
        assert value < just_above(value) <= max(value * 1.011, 1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget-factor", "0.5"], "--budget-factor: '0.5' is not a number from 1 to 1e+09"),
        (["--budget-factor", "nan"], "--budget-factor: 'nan' is not a number"),
        (["--batch-size", "0"], "--batch-size: '0' is not a whole number from 1 to 4096"),
        (["--workers", "0"], "--workers: '0' is not a whole number from 1 to 256"),
        (["--references", "x", "--no-references"], "not allowed with argument --references"),
        (["--references", str(ROOT / "README.md")], "README.md is a file: give a folder"),
    ],
)
def test_an_option_without_sense_is_one_line_and_exit_code_2(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    code, folder = run_accuracy(*options)
    captured = capsys.readouterr()
    assert code == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "accuracy.json").exists()


def test_a_missing_image_is_one_line_and_exit_code_2(tmp_path: Path, tiny_weights: Path) -> None:
    done = run_process("--image", "nowhere.png", "--weights", tiny_weights, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: image nowhere.png does not exist")
    assert done.stderr.count("\n") == 1


def test_the_record_has_the_fields_that_collectors_read(run_accuracy: Run) -> None:
    _, folder = run_accuracy()
    results = results_of(folder)
    assert {"verdict", "blocks", "first_unexplained_block"} <= set(results)
    assert {field.name for field in dataclasses.fields(AccuracyRecord)} >= {"script", "results"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_record_carries_the_whole_row_of_limits(run_accuracy: Run, dtype: str) -> None:
    _, folder = run_accuracy("--dtype", dtype, "--budget-factor", "7")
    limits = results_of(folder)["limits"]
    assert limits == dataclasses.asdict(LIMITS[limits["arithmetic"]]) | {"budget_factor": 7.0}
    assert limits["arithmetic"] == dtype


@pytest.mark.parametrize(
    ("operator", "error", "alone", "wrong"),
    [
        ("attention", 0.0099, True, False),
        ("attention", 0.01, False, True),
        ("RoPE", 0.0038, True, False),
        ("RoPE", 0.004, True, True),
        ("norm", 0.004, True, True),
        ("norm", 0.004, False, False),  # what came before it may have made it
        ("norm", 0.01, False, True),
    ],
)
def test_what_an_operator_may_be_off_alone(
    operator: str, error: float, alone: bool, wrong: bool
) -> None:
    errors = OperatorError("x.output", operator, error, 1e-7, error, 1e-7, 1e4, 0)
    assert beyond_rounding(errors, LIMITS["hf32"], alone=alone) is wrong
