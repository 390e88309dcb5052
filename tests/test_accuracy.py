"""accuracy.py on one image: the published block, honest sides, verdicts and exit codes."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import accuracy
from kit.accuracy import single
from kit.accuracy.record import AccuracyRecord, AccuracyResults, TensorAccuracy
from kit.accuracy.recorder import require_on
from kit.accuracy.report import just_above, validation_block
from kit.errors import KitError
from kit.forward import Features
from tests.accuracy_runs import record_of, results_of, run_process
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

Run = Callable[..., tuple[int, Path]]


@pytest.fixture
def run_accuracy(tiny_weights: Path, photo: Path, tmp_path: Path) -> Run:
    """Run accuracy.py in this process on the tiny model; returns exit code and output folder."""

    def run(*options: str, weights: Path = tiny_weights) -> tuple[int, Path]:
        folder = tmp_path / "output"
        argv = ["--output-dir", str(folder), "--weights", str(weights), "--device", "cpu"]
        if "--image" not in options:
            argv += ["--image", str(photo)]
        return accuracy.main([*argv, *options]), folder

    return run


def change_the_device(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Features], Features]
) -> None:
    """Let the device return something else than it computed."""
    plain = single.run_device

    def changed(*args: Any) -> Any:  # noqa: ANN401 - run_device's own arguments
        run, names = plain(*args)
        return dataclasses.replace(run, features=change(run.features)), names

    monkeypatch.setattr(single, "run_device", changed)


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
    from kit import model

    small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1}
    monkeypatch.setattr(model, "VITB16", model.VITB16 | small)
    monkeypatch.setattr("kit.weights.DEFAULT_FOLDERS", ())
    code = accuracy.main(["--device", "cpu", "--output-dir", str(tmp_path / "output")])
    lines = capsys.readouterr().out.splitlines()
    verdict = next(line for line in lines if line.startswith("Verdict: "))
    assert code == 0
    assert "random weights" in verdict
    assert results_of(tmp_path / "output")["source"] == "random"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails_with_its_place(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def broken(features: Features) -> Features:
        tokens = features.last_hidden_state.clone()
        tokens[0, 9, 3] = value
        return Features(features.pooler_output, tokens)

    change_the_device(monkeypatch, broken)
    code, folder = run_accuracy()
    results = results_of(folder)
    assert code == 1
    assert results["verdict"] == "FAIL"
    assert any("(0, 9, 3)" in reason for reason in results["reasons"])
    assert results["last_hidden_state"]["relative_error"] is None
    assert results["last_hidden_state"]["worst_token"]["token"] == 9


def test_one_wrong_token_fails_with_its_row_and_column(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(features: Features) -> Features:
        tokens = features.last_hidden_state.clone()
        tokens[0, 5 + 14 * 3 + 2] *= 0.9
        return Features(features.pooler_output, tokens)

    change_the_device(monkeypatch, wrong)
    code, folder = run_accuracy()
    worst = results_of(folder)["last_hidden_state"]["worst_token"]
    assert code == 1
    assert (worst["kind"], worst["row"], worst["column"]) == ("patch", 3, 2)
    assert worst["relative_error"] == pytest.approx(0.1, rel=1e-3)
    assert "patch in row 3, column 2" in capsys.readouterr().out


def test_an_output_of_another_shape_fails(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_the_device(
        monkeypatch, lambda f: Features(f.pooler_output, f.last_hidden_state[:, :-1].clone())
    )
    code, folder = run_accuracy()
    results = results_of(folder)
    assert code == 1
    assert any("shape (1, 200, 32)" in reason for reason in results["reasons"])


def test_a_tensor_on_the_wrong_device_is_an_error_and_not_a_verdict() -> None:
    with pytest.raises(KitError, match="should be on the npu is on cpu"):
        require_on(torch.ones(1), "npu")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_has_its_own_limits_and_is_explained(run_accuracy: Run, dtype: str) -> None:
    code, folder = run_accuracy("--dtype", dtype)
    results = results_of(folder)
    assert code == 0
    assert results["limits"]["arithmetic"] == dtype
    assert results["verdict"] == "SELF-CHECK"
    assert results["first_unexplained_block"] is None
    tensor_ = results["last_hidden_state"]
    assert tensor_["against_truth"] > 100 * tensor_["cpu_against_truth"]
    assert tensor_["against_truth"] == pytest.approx(tensor_["budget"], rel=0.5)


def test_fp16_overflow_fails_and_names_the_block(
    run_accuracy: Run, tiny_weights: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    weights = tmp_path / "large"
    shutil.copytree(tiny_weights, weights)
    tensors = load_file(weights / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.1.mlp.down_proj.weight"))
    tensors[name] *= 1e7
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    code, folder = run_accuracy("--dtype", "fp16", weights=weights)
    results = results_of(folder)
    assert code == 1
    assert results["verdict"] == "FAIL"
    assert results["first_unexplained_block"] == 1
    assert results["first_unexplained_operator"]["operator"] == "MLP"


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
        (["--budget-factor", "0.5"], "--budget-factor 0.5: give a number of at least 1"),
        (["--budget-factor", "nan"], "--budget-factor nan"),
        (["--batch-size", "0"], "--batch-size 0: give a number from 1 to 4096"),
        (["--workers", "-1"], "--workers -1: give a number from 0 to 256"),
        (["--references", "x", "--no-references"], "exclude each other"),
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


def test_identical_bits_of_two_processors_are_a_warning(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(single.Sides, "self_check", False)  # as if the CPU were an accelerator
    code, folder = run_accuracy()
    assert code == 0
    assert results_of(folder)["reference"] == "CPU fp32"
    assert capsys.readouterr().out.count("equals the CPU's to the last bit") == 2
    assert any("last_hidden_state" in warning for warning in record_of(folder)["warnings"])


def test_the_truth_is_copied_before_the_model_is_watched(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.accuracy import sides

    plain = sides.exact_side

    def slow(model: Any) -> sides.Side:  # noqa: ANN401 - as exact_side
        time.sleep(0.5)
        return plain(model)

    monkeypatch.setattr(sides, "exact_side", slow)
    code, folder = run_accuracy()
    assert code == 0
    assert results_of(folder)["verdict"] == "SELF-CHECK"


def test_the_record_has_the_fields_that_collectors_read(run_accuracy: Run) -> None:
    _, folder = run_accuracy()
    results = results_of(folder)
    assert {"verdict", "blocks", "first_unexplained_block"} <= set(results)
    assert {field.name for field in dataclasses.fields(AccuracyRecord)} >= {"script", "results"}
