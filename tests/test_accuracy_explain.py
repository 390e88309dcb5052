"""--explain switches known causes one by one and says what each removes."""

import contextlib
import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import accuracy
from kit.accuracy import explain as explaining
from kit.accuracy import references
from kit.accuracy.explain import (
    ErfGelu,
    Switch,
    attention_replaced,
    cause_of,
    device_switches,
    explain,
    gelu_replaced,
    other_arithmetics,
    reference_switches,
    with_bf16_periods,
)
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


def test_a_model_has_its_own_modules_and_its_own_attention_again() -> None:
    model = copy.deepcopy(trained_like_model())
    before = dict(model.named_modules())
    with gelu_replaced(model, ErfGelu), gelu_replaced(model, nn.Identity):
        assert not any("gelu" in type(module).__name__.lower() for module in model.modules())
    after = dict(model.named_modules())
    assert all(after[path] is module for path, module in before.items())
    with attention_replaced(model, "eager"):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_gelu_by_the_error_function_is_gelu() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(ErfGelu()(x), nn.functional.gelu(x))


@pytest.mark.parametrize(
    ("before", "factor", "after", "removes"),
    [
        (0.25, 1.0625, 0.0625, 0.75),
        (0.25, 1.0, 0.0, 1.0),
        (0.25, 1.25, 0.25, 0.0),
        (0.25, 1.5, 0.5, 0.0),  # what makes it worse removes nothing
        (0.0, 1.5, 0.5, None),
        (math.inf, 1.5, 0.5, None),
        (0.25, math.inf, None, None),
    ],
)
def test_a_cause_removes_a_share_of_what_was_there(
    before: float, factor: float, after: float | None, removes: float | None
) -> None:
    right = torch.ones(4)
    switch = Switch("a cause", lambda: right * factor)
    found = cause_of(switch, "device", before, lambda tensor: (right, tensor))
    shown = before if math.isfinite(before) else None
    assert found == Cause("a cause", "device", after, shown, removes, "")


def test_a_cause_that_cannot_be_tried_is_not_run() -> None:
    def run() -> torch.Tensor:
        raise AssertionError

    found = cause_of(Switch("a cause", run, "why not"), "reference", 0.5, lambda one: (one, one))
    assert found == Cause("a cause", "reference", None, 0.5, None, "why not")


class Fakes(SimpleNamespace):
    """What stands for the sides of a run: a device of that type and dtype that computes so."""

    def __init__(self, declared: Declared, kind: str = "npu", self_check: bool = False) -> None:
        model, checked = copy.deepcopy(trained_like_model()), list[str]()
        side = SimpleNamespace(model=model, features=lambda _: features(self.imitated))
        super().__init__(
            model=model,
            imitated=torch.ones(4),
            self_check=self_check,
            setup=SimpleNamespace(
                device=SimpleNamespace(type=kind, torch_device=torch.device("cpu")),
                dtype=torch.bfloat16,
                health=SimpleNamespace(after=checked.append),
            ),
            references=SimpleNamespace(
                declared=declared,
                fp32=side,
                imitation=side,
                fp64=SimpleNamespace(features=lambda _: features(2 * torch.ones(4))),
            ),
            checked=checked,
        )


def features(tensor: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=tensor)


def notes(switches: Any) -> dict[str, str]:  # noqa: ANN401 - an iterator of switches
    return {switch.cause: switch.note for switch in switches}


PIXELS = torch.zeros(1)
REST = {"eager attention": "", "GELU written out with erf": ""}


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        (
            Fakes(Declared()),
            {"HF32 convolution off": "off already", "HF32 matrix products off": "off already"}
            | REST | {"fp32 throughout": "fp32 already"},
        ),
        (
            Fakes(Declared(convolution="tf32"), "cuda"),
            {"TF32 convolution off": "", "TF32 matrix products off": "off already"}
            | REST | {"fp32 throughout": "fp32 already"},
        ),
        (
            Fakes(Declared(matmul="hf32")),
            {"HF32 convolution off": "off already", "HF32 matrix products off": ""}
            | REST | {"fp32 throughout": "fp32 already"},
        ),
        (
            Fakes(Declared("bf16")),
            dict.fromkeys(
                ("HF32 convolution off", "HF32 matrix products off"), "bf16 does not use it"
            )
            | REST | {"fp32 throughout": ""},
        ),
        (
            Fakes(Declared("bf16"), "cpu", self_check=True),
            dict.fromkeys(
                ("HF32 convolution off", "HF32 matrix products off"), "the CPU has no HF32"
            )
            | REST | {"fp32 throughout": ""},
        ),
    ],
)  # fmt: skip
def test_the_devices_switches_are_those_that_it_has(
    sides: Any, expected: dict[str, str]  # noqa: ANN401 - Fakes
) -> None:  # fmt: skip
    assert notes(device_switches(sides, PIXELS)) == expected
    with attention_replaced(sides.model, "eager"):
        assert "sdpa attention" in notes(device_switches(sides, PIXELS))


def test_a_model_without_attention_has_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.accuracy.explain.models.has_attention", lambda _: False)
    names = notes(device_switches(cast(Any, Fakes(Declared())), PIXELS))
    assert not any("attention" in name for name in names)


@pytest.mark.parametrize("matmul", ["fp32", "hf32"])
@pytest.mark.parametrize("convolution", ["fp32", "hf32"])
def test_one_kind_of_products_is_switched_off_and_the_other_stays_as_it_was(
    matmul: Any, convolution: Any, monkeypatch: pytest.MonkeyPatch  # noqa: ANN401 - Products
) -> None:  # fmt: skip
    def on_device(_: object, __: object, ___: object, context: Any) -> Any:  # noqa: ANN401
        with context:
            return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    monkeypatch.setattr(explaining, "on_device", on_device)
    sides: Any = Fakes(Declared("fp32", matmul, convolution))
    switches = device_switches(sides, PIXELS)
    convolution_off, products_off = (next(switches).run() for _ in range(2))
    assert convolution_off == (matmul == "hf32", False)
    assert products_off == (False, convolution == "hf32")


def test_a_device_computes_in_the_runs_type_unless_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[torch.dtype] = []

    @contextlib.contextmanager
    def context() -> Any:  # noqa: ANN401 - an iterator
        entered.append(torch.bool)
        yield

    monkeypatch.setattr(explaining, "forward", lambda _, pixels: features(pixels))
    sides: Any = Fakes(Declared("bf16"))
    assert explaining.on_device(sides, sides.model, PIXELS).dtype == torch.bfloat16
    found = explaining.on_device(sides, sides.model, PIXELS, context(), torch.float32)
    assert found.dtype == torch.float32
    assert len(entered) == 1
    monkeypatch.setattr(explaining, "forward", lambda model, _: features(next(model.parameters())))
    assert explaining.in_fp32(sides, PIXELS).dtype == torch.float32


def test_every_documented_arithmetic_is_imitated_in_the_place_of_the_declared_one() -> None:
    declared = Declared(matmul="fp16", convolution="hf32", attention="bf16")
    found = dict(other_arithmetics(declared))
    kinds = ("fp32", "HF32", "TF32", "bf16", "fp16", "bf16 in and out", "fp16 in and out")
    assert set(found) == {
        *(f"convolution: {kind}" for kind in kinds),
        *(f"attention: {kind}" for kind in kinds[:5]),
        *(f"matrix products: {kind}" for kind in kinds),
        *(f"matrix products and convolution: {kind}" for kind in kinds),
        *("bf16 throughout", "fp16 throughout", "erf form of GELU", "tanh form of GELU"),
    }
    assert found["convolution: TF32"] == Declared("fp32", "fp16", "tf32", "bf16")
    assert found["attention: TF32"] == Declared("fp32", "fp16", "hf32", "tf32")
    assert found["matrix products: TF32"] == Declared("fp32", "tf32", "hf32")
    assert found["matrix products and convolution: TF32"] == Declared("fp32", "tf32", "tf32")
    half = dict(other_arithmetics(Declared("bf16", gelu="tanh")))
    assert half == {
        "bf16 throughout": Declared("bf16", gelu="tanh"),
        "fp16 throughout": Declared("fp16", gelu="tanh"),
        "erf form of GELU": Declared("bf16"),
        "tanh form of GELU": Declared("bf16", gelu="tanh"),
    }


def test_what_is_declared_is_noted_and_only_a_rotary_embedding_has_periods() -> None:
    sides: Any = Fakes(Declared(matmul="hf32", convolution="hf32"))
    found = notes(reference_switches(sides, PIXELS))
    assert [name for name, note in found.items() if note] == [
        *("convolution: HF32", "attention: HF32", "matrix products: HF32"),
        *("matrix products and convolution: HF32", "erf form of GELU"),
    ]
    assert set(found.values()) == {"", "declared already"}
    assert list(found)[-1] == "RoPE periods in bf16"
    sides.references.imitation.model = nn.Linear(1, 1)
    assert list(notes(reference_switches(sides, PIXELS)))[-1] == "tanh form of GELU"


def test_the_periods_and_not_their_inverses_are_rounded_and_given_back() -> None:
    rope = nn.Module()
    before = torch.tensor([1.0, 0.3, 0.01, 1 / 300])
    rope.register_buffer("inv_freq", before)
    side: Any = SimpleNamespace(features=lambda _: features(rope.get_buffer("inv_freq")))
    found = with_bf16_periods(side, rope, PIXELS)
    periods = torch.tensor([1.0, 3.328125, 100.0, 300.0])  # 8 bits of 1, 3.33, 100 and 300
    torch.testing.assert_close(found, 1 / periods, rtol=1e-6, atol=0)
    assert rope.inv_freq is before


def test_what_imitates_the_device_best_stands_first_after_the_devices_own_causes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = 3 * torch.ones(4)

    monkeypatch.setattr(explaining, "on_device", lambda *_: device)
    own = ("worse", 4 * torch.ones(4), ""), ("right", 2 * torch.ones(4), "")
    monkeypatch.setattr(explaining, "device_switches", lambda *_: one_by_one(own))
    imitated = (
        ("not tried", device, "why"),
        ("far", torch.ones(4), ""),
        ("the device's", device, ""),
        ("near", 2 * torch.ones(4), ""),
    )
    monkeypatch.setattr(explaining, "reference_switches", lambda *_: one_by_one(imitated))
    sides: Any = Fakes(Declared())
    found = explain(sides, PIXELS)
    assert [(one.cause, one.where, one.relative_error, one.before) for one in found] == [
        ("worse", "device", 1.0, 0.5),
        ("right", "device", 0.0, 0.5),
        ("the device's", "reference", 0.0, 2.0),
        ("near", "reference", 0.5, 2.0),
        ("far", "reference", 2.0, 2.0),
        ("not tried", "reference", None, 2.0),
    ]
    assert sides.checked == ["the explanation"]
    monkeypatch.setattr(explaining, "on_device", lambda *_: torch.ones(5))
    assert explain(sides, PIXELS) == ()


def one_by_one(switches: tuple[tuple[str, torch.Tensor, str], ...]) -> list[Switch]:
    return [
        Switch(name, lambda tensor=tensor: tensor, note)  # type: ignore[misc] # a default binds it
        for name, tensor, note in switches
    ]
