"""accuracy.py on a device that computes something else: what fails, and what it names."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.dinov3_vit import modeling_dinov3_vit

from kit.accuracy import explain, measure, references
from kit.model.model import Features
from tests.accuracy_runs import Run, record_of, results_of


def change_the_device(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Features], Features]
) -> None:
    """Let the device return something else than it computed."""
    plain = measure.run_device

    def changed(*args: Any) -> Any:  # noqa: ANN401 - run_device's own arguments
        run = plain(*args)
        return dataclasses.replace(run, features=change(run.features))

    monkeypatch.setattr(measure, "run_device", changed)


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


def test_an_output_of_another_shape_is_not_explained_and_still_recorded(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "on_device", lambda *_: torch.ones(1, 7, 32))
    code, folder = run_accuracy("--explain")
    assert code == 0
    assert results_of(folder)["explain"] == []


def test_fp16_overflow_fails_and_names_the_block(
    run_accuracy: Run, tiny_weights: Path, tmp_path: Path
) -> None:
    weights = Path(shutil.copytree(tiny_weights, tmp_path / "large"))
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


def test_one_nan_in_the_weights_fails_with_a_record_and_costs_a_picture_at_most(
    run_accuracy: Run, tiny_weights: Path, tmp_path: Path
) -> None:
    weights = Path(shutil.copytree(tiny_weights, tmp_path / "nan"))
    tensors = load_file(weights / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.1.mlp.down_proj.weight"))
    tensors[name][3, 5] = torch.nan
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    code, folder = run_accuracy(weights=weights)
    record = record_of(folder)
    assert code == 1
    assert record["results"]["verdict"] == "FAIL"
    assert record["results"]["first_unexplained_block"] == 1
    assert "NaN or infinite" in record["results"]["reasons"][0]
    assert "FAIL" in (folder / "accuracy.log").read_text("utf-8")
    assert (folder / "accuracy_layers.png").is_file()


def test_identical_bits_of_two_processors_are_a_warning(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(references.Sides, "self_check", False)  # as if the CPU were an accelerator
    code, folder = run_accuracy()
    assert code == 0
    assert results_of(folder)["reference"] == "CPU fp32"
    assert capsys.readouterr().out.count("equals the CPU's to the last bit") == 2
    assert any("last_hidden_state" in warning for warning in record_of(folder)["warnings"])


def test_the_fp64_model_is_copied_before_the_model_is_watched(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = references.fp64_side

    def slow(model: Any) -> references.Side:  # noqa: ANN401 - as fp64_side
        time.sleep(0.5)
        return plain(model)

    monkeypatch.setattr(references, "fp64_side", slow)
    code, folder = run_accuracy()
    assert code == 0
    assert results_of(folder)["verdict"] == "SELF-CHECK"


def test_a_model_without_pooled_features_is_one_line_and_exit_code_2(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = transformers.DINOv3ViTModel.forward

    def without_pooler(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as forward
        output = plain(*args, **kwargs)
        output.pooler_output = None
        return output

    monkeypatch.setattr(transformers.DINOv3ViTModel, "forward", without_pooler)
    code, folder = run_accuracy()
    captured = capsys.readouterr()
    assert code == 2
    assert "DINOv3ViTModel does not give last_hidden_state and pooler_output" in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "accuracy.json").exists()


def test_a_model_of_another_token_layout_is_one_line_and_exit_code_2(
    run_accuracy: Run, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.DeiTModel(config).save_pretrained(tmp_path / "deit")  # a distillation token too
    for images in ((), ("--image", str(image_folder))):
        code, folder = run_accuracy(*images, weights=tmp_path / "deit")
        captured = capsys.readouterr()
        assert code == 2
        assert "last_hidden_state of (198, 32), not CLS, 0 registers and 14 x 14" in captured.err
        assert captured.err.count("\n") == 1
        assert not (folder / "accuracy.json").exists()


def test_without_matplotlib_only_the_pictures_are_missing(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, folder = run_accuracy("--no-report")
    assert code == 0
    assert capsys.readouterr().out.count(".png: the package matplotlib") == 3
    left = {path.name for path in folder.iterdir()}
    assert left == {"accuracy.json", "accuracy.log", "accuracy_features.safetensors"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_block_or_an_embedding_that_writes_into_its_own_input_is_no_failure(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    _, folder = run_accuracy("--dtype", dtype)
    expected = results_of(folder)["last_hidden_state"]

    def into_its_input(plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(module: Any, main: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as any forward
            found = plain(module, main.clone(), *args, **kwargs)
            if found.shape == main.shape:
                return main.copy_(found)
            main.zero_()
            return found

        return forward

    for name in ("DINOv3ViTLayer", "DINOv3ViTEmbeddings"):
        module = getattr(modeling_dinov3_vit, name)
        monkeypatch.setattr(module, "forward", into_its_input(module.forward))
    code, folder = run_accuracy("--dtype", dtype)
    assert code == 0
    assert results_of(folder)["verdict"] == "SELF-CHECK"
    assert results_of(folder)["last_hidden_state"] == expected
