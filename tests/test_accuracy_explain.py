"""--explain switches known causes one by one and says what each removes."""

import contextlib
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import accuracy
from kit.accuracy import references
from kit.accuracy.explain import ErfGelu, gelu_replaced
from kit.accuracy.references import Declared, Imitation, make_sides
from kit.accuracy.report import nearness
from kit.records import Cause
from tests.accuracy_model import trained_like_model
from tests.accuracy_runs import results_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder whose features react to every cause. Not to be changed."""
    folder = tmp_path_factory.mktemp("weights") / "trained-like"
    trained_like_model().save_pretrained(folder)
    return folder


def explained(weights: Path, tmp_path: Path, photo: Path, *options: str) -> dict[str, Any]:
    """Run --explain on the CPU and return each cause's entry by its name."""
    argv = ["--device", "cpu", "--weights", str(weights), "--image", str(photo), "--explain"]
    accuracy.main([*argv, "--size", "64", "--output-dir", str(tmp_path / "out"), *options])
    return {cause["cause"]: cause for cause in results_of(tmp_path / "out")["explain"]}


def test_what_does_not_fit_the_device_says_why_it_was_not_tried(
    weights: Path, tmp_path: Path, photo: Path
) -> None:
    causes = explained(weights, tmp_path, photo)
    assert causes["HF32 convolution off"]["note"] == "the CPU has no HF32"
    assert causes["fp32 throughout"]["note"] == "fp32 already"
    assert causes["eager attention"]["note"] == ""
    assert causes["eager attention"]["relative_error"] < 1e-5


def test_bf16_is_what_fp32_removes(weights: Path, tmp_path: Path, photo: Path) -> None:
    cause = explained(weights, tmp_path, photo, "--dtype", "bf16")["fp32 throughout"]
    assert cause["before"] > 1e-3
    assert cause["relative_error"] < 1e-5
    assert cause["removes"] > 0.99


def test_what_the_run_declares_is_not_imitated_again(
    weights: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "float_modes", lambda _: ("fp32", "hf32"))  # an NPU's
    causes = explained(weights, tmp_path, photo, "--dtype", "bf16")
    assert causes["bf16 throughout"]["note"] == "declared already"
    assert causes["fp16 throughout"]["note"] == ""


def test_a_device_that_computes_tanh_gelu_in_silence_is_found_out(
    weights: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = contextlib.ExitStack()

    def tanh_device(*args: Any) -> Any:  # noqa: ANN401 - make_sides' own arguments
        sides = make_sides(*args)
        model = copy.deepcopy(sides.model)
        kept.enter_context(gelu_replaced(model, lambda: nn.GELU("tanh")))  # for the whole run
        return dataclasses.replace(sides, model=model)

    monkeypatch.setattr("kit.accuracy.measure.make_sides", tanh_device)
    causes = explained(weights, tmp_path, photo)
    imitated, removed = causes["tanh form of GELU"], causes["GELU written out with erf"]
    assert imitated["before"] > 1e-5
    assert imitated["removes"] > 0.95
    assert removed["removes"] > 0.95
    others = [c for name, c in causes.items() if "GELU" not in name and c["removes"] is not None]
    assert all(cause["removes"] < 0.5 for cause in others)


def test_a_device_that_rounds_products_in_silence_is_found_out(
    weights: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.accuracy import explain as explaining

    plain = explaining.on_device

    def hf32_device(*args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401 - on_device's own
        with torch.no_grad(), Imitation(Declared("fp32", "hf32", "hf32")):
            return plain(*args, **kwargs)

    def without_inference_mode(model: Any, pixel_values: torch.Tensor) -> Any:  # noqa: ANN401 - as forward
        return model(pixel_values)

    monkeypatch.setattr(explaining, "on_device", hf32_device)
    monkeypatch.setattr(explaining, "forward", without_inference_mode)
    causes = explained(weights, tmp_path, photo)
    assert causes["matrix products and convolution: HF32"]["removes"] > 0.95
    assert causes["convolution: HF32"]["removes"] < 0.5
    imitated = [name for name, one in causes.items() if one["where"] == "reference"]
    assert imitated[0] == "matrix products and convolution: HF32"  # the nearest stands first
    assert causes["tanh form of GELU"]["removes"] < 0.1


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (5.56e-07, 0.0104, "19 000 times worse: not this"),
        (1e-4, 2.31e-4, "2.3 times worse: not this"),
        (1e-4, 1.01e-4, "removes 0%"),
        (1e-4, 2e-6, "removes 98%"),
        (0.0, 1e-6, "removes -"),
    ],
)
def test_how_near_an_imitation_comes_is_said(before: float, after: float, words: str) -> None:
    removes = max(0.0, 1 - after / before) if before else None
    assert nearness(Cause("", "reference", after, before, removes, "")) == words


def test_switches_leave_the_model_as_it_was() -> None:
    model = trained_like_model()
    before = [type(module) for module in model.modules()]
    with gelu_replaced(model, ErfGelu):
        assert sum(type(module) is ErfGelu for module in model.modules()) == 6
    assert [type(module) for module in model.modules()] == before
