"""accuracy.py --features: the outputs' verdict derived again from what a device has computed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import accuracy
from tests.accuracy_runs import Run, make_images, options_of, results_of
from tests.models import save_tiny_vit

FILE = "accuracy_features.safetensors"
Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


def review_of(folder: Path) -> dict[str, Any]:
    """Return the results that --features has left."""
    record: dict[str, Any] = json.loads((folder / "accuracy_review.json").read_text("utf-8"))
    results: dict[str, Any] = record["results"]
    return results


def changed(file: Path, change: Change) -> Path:
    """Write a copy of a file of features, changed, and return it."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
        evidence = json.loads(opened.metadata()["evidence"])
    change(tensors, evidence)
    path = file.with_name("changed.safetensors")
    save_file(tensors, path, {"evidence": json.dumps(evidence)})
    return path


def off_by(factor: float) -> Change:
    """Return what makes one token wrong."""

    def change(tensors: dict[str, torch.Tensor], _: object) -> None:
        tensors["last_hidden_state.0"][0, 20] *= factor

    return change


def as_if_on_an_npu(_: object, evidence: dict[str, Any]) -> None:
    """Say that an NPU has computed the features."""
    evidence |= {"device_type": "npu", "device": "Ascend910_9362"}


def test_saved_features_give_the_outputs_figures_and_verdict_again(run_accuracy: Run) -> None:
    code, folder = run_accuracy()
    assert code == 0
    before = (folder / "accuracy.json").read_bytes()
    code, _ = run_accuracy("--features", str(folder / FILE))
    assert code == 0
    measured, review = results_of(folder), review_of(folder)
    assert (folder / "accuracy.json").read_bytes() == before
    for name in ("pooler_output", "last_hidden_state"):
        error = pytest.approx(measured[name]["relative_error"], rel=1e-3)  # fp64 in other batches
        assert review[name]["relative_error"] == error
        assert review[name]["worst_token"]["token"] == measured[name]["worst_token"]["token"]
    assert review["verdict"] == "SELF-CHECK"
    assert (review["blocks"], measured["features"]["reviewed"]) == ([], False)
    read = {"reviewed": True, "file": str(folder / FILE)}
    assert review["features"] == measured["features"] | read


def test_another_devices_features_are_held_against_fp32_and_can_pass(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_accuracy("--no-report")
    claimed = changed(folder / FILE, as_if_on_an_npu)
    code, _ = run_accuracy("--features", str(claimed))
    assert code == 0
    review, out = review_of(folder), capsys.readouterr().out
    assert (review["verdict"], review["reference"]) == ("PASS", "CPU fp32")
    assert "on NPU (Ascend910_9362), as" in out
    assert "no block was compared" in out


@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_a_wrong_token_in_saved_features_fails(run_accuracy: Run, factor: float) -> None:
    _, folder = run_accuracy("--no-report")
    code, _ = run_accuracy("--features", str(changed(folder / FILE, off_by(factor))))
    assert code == 1
    assert review_of(folder)["outcome"] == "fail"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--weights", "other"), "is of weights"),
        (("--size", "64"), "prepared otherwise"),
        (("--image", "other"), "which is not among the images that --image gives"),
        (("--device", "npu"), "runs no device"),
        (("--explain",), "runs no device"),
    ],
)
def test_features_of_other_weights_pixels_or_sizes_are_refused_with_the_reason(
    run_accuracy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    _, folder = run_accuracy("--no-report")
    weights = save_tiny_vit(tmp_path / "other-weights", seed=1)
    image = make_images(tmp_path / "other-images", 1) / "000.png"
    replaced = {"--weights": str(weights), "--image": str(image)}
    given = [replaced.get(options[0], two) if two == "other" else two for two in options]
    capsys.readouterr()
    code, _ = run_accuracy("--features", str(folder / FILE), *given)
    err = capsys.readouterr().err
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (folder / "accuracy_review.json").exists()


def no_image(_: object, evidence: dict[str, Any]) -> None:
    evidence["images"] = []


def half(tensors: dict[str, torch.Tensor], _: object) -> None:
    tensors["pooler_output.0"] = tensors["pooler_output.0"].half()


def no_pooler(tensors: dict[str, torch.Tensor], _: object) -> None:
    del tensors["pooler_output.0"]


def scalar(tensors: dict[str, torch.Tensor], _: object) -> None:
    tensors["pooler_output.0"] = torch.tensor(1.0)


def other_version(_: object, evidence: dict[str, Any]) -> None:
    evidence["version"] = 2


def unknown_arithmetic(_: object, evidence: dict[str, Any]) -> None:
    evidence["declared"]["dtype"] = "int8"


def escapes(_: object, evidence: dict[str, Any]) -> None:
    evidence["device"] = "\x1b[2J"


@pytest.mark.parametrize(
    "change", [no_image, half, no_pooler, scalar, other_version, unknown_arithmetic, escapes]
)
def test_a_file_that_does_not_hold_what_it_says_is_refused(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str], change: Change
) -> None:
    _, folder = run_accuracy("--no-report")
    capsys.readouterr()
    code, _ = run_accuracy("--features", str(changed(folder / FILE, change)))
    err = capsys.readouterr().err
    assert code == 2
    assert "write it again with accuracy.py on the device" in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}",
        (60_002).to_bytes(8, "little") + b'{"__metadata__":' + b"[" * 59_986,
    ],
)  # fmt: skip
def test_a_damaged_or_hostile_file_is_one_line_and_exit_code_2(
    run_accuracy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    code, _ = run_accuracy("--features", str(path))
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert "is no whole file of saved features" in err


def test_a_fifo_is_not_waited_for(
    run_accuracy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    code, _ = run_accuracy("--features", str(tmp_path / "fifo"))
    assert code == 2
    assert "is not a plain file" in capsys.readouterr().err


def test_two_devices_are_compared_with_each_other(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_accuracy("--no-report")
    file = folder / FILE
    code, _ = run_accuracy("--features", str(file), "--against", str(file))
    assert code == 0
    against = review_of(folder)["against"]
    assert (against["failed"], against["worst"][0]["relative_error"]) == (0, 0.0)
    other = changed(file, off_by(1.2))
    code, _ = run_accuracy("--features", str(file), "--against", str(other))
    assert code == 1
    review = review_of(folder)
    assert review["reasons"] == [f"1 of 1 images are beyond a limit beside {other}"]
    assert review["last_hidden_state"]["passed"]
    assert "FAILED" in capsys.readouterr().out
    assert run_accuracy("--against", str(file))[0] == 2


def test_a_coarser_device_is_compared_within_its_own_limits(run_accuracy: Run) -> None:
    _, folder = run_accuracy("--no-report")
    exact = (folder / FILE).rename(folder / "fp32.safetensors")
    run_accuracy("--no-report", "--dtype", "bf16")
    code, _ = run_accuracy("--features", str(exact), "--against", str(folder / FILE))
    assert code == 0
    assert review_of(folder)["against"]["limits"]["arithmetic"] == "bf16"


def test_a_folders_features_are_all_judged_again(
    tmp_path: Path, image_folder: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tmp_path, image_folder, tiny_weights, "--no-report")
    assert accuracy.main(options) == 0
    folder = tmp_path / "out"
    review = [*options, "--features", str(folder / FILE)]
    assert accuracy.main(review) == 0
    measured = results_of(folder)["folder"]
    again = review_of(folder)["folder"]
    assert again["images"] == measured["images"]
    assert {one["sha256"] for one in again["worst"]} == {one["sha256"] for one in measured["worst"]}
    # Beyond what the file has room for nothing is kept, and the review says so.
    monkeypatch.setattr("kit.accuracy.folder.MOST_SAVED_BYTES", 60_000)
    assert accuracy.main(options) == 0
    assert results_of(folder)["features"]["images"] == 3
    assert accuracy.main(review) == 0
    warnings = json.loads((folder / "accuracy_review.json").read_text("utf-8"))["warnings"]
    assert any("holds 3 of 11 judged images" in warning for warning in warnings)
