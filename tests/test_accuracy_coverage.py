"""accuracy.py beyond one forward: faults of a shape, of a mode or of some calls, all caught."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit.accuracy import coverage
from kit.device.device import Device
from kit.device.health import HealthChecks
from kit.errors import DeviceError
from kit.model import model as model_module
from kit.model import runner
from kit.model.model import Features
from kit.model.preprocessing import Preprocessing
from kit.model.runner import Images
from kit.model.setup import Setup, views
from kit.options import Mode
from kit.records import ModelInfo
from tests import report_records
from tests.accuracy_runs import Run, record_of, results_of
from tests.models import save_tiny_convnext

Fault = Callable[[Features, torch.Tensor, int], Features]  # features, input, number of the forward


def hidden(features: Features, change: Callable[[torch.Tensor], object]) -> Features:
    """Return the features with a changed last_hidden_state."""
    tokens = features.last_hidden_state.clone()
    change(tokens)
    return Features(features.pooler_output, tokens)


def nan(tokens: torch.Tensor) -> None:
    tokens[-1, -1, -1] = torch.nan


def token_off(tokens: torch.Tensor) -> None:
    tokens[-1, 20] *= 1.2


def exchanged(features: Features) -> Features:
    order = list(range(len(features.pooler_output)))
    order[-2:] = order[:-3:-1]
    return Features(features.pooler_output[order], features.last_hidden_state[order])


def batch_8_only(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, token_off) if len(pixels) == 8 else features


def exchanged_from_batch_4_on(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return exchanged(features) if len(pixels) >= 4 else features


def last_image_repeated(features: Features, pixels: torch.Tensor, _: int) -> Features:
    order = [*range(len(pixels) - 1), max(0, len(pixels) - 2)]
    return Features(features.pooler_output[order], features.last_hidden_state[order])


def first_image_everywhere(features: Features, pixels: torch.Tensor, _: int) -> Features:
    order = [0] * len(pixels)
    return Features(features.pooler_output[order], features.last_hidden_state[order])


def small_input_nan(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, nan) if pixels.shape[-2] < 224 else features


def rows_and_columns_exchanged(features: Features, pixels: torch.Tensor, _: int) -> Features:
    rows, columns = pixels.shape[-2] // 16, pixels.shape[-1] // 16
    patches = features.last_hidden_state[:, 5:]
    if rows == columns:
        return features
    turned = patches.reshape(len(patches), rows, columns, -1).transpose(1, 2).flatten(1, 2)
    return Features(
        features.pooler_output, torch.cat([features.last_hidden_state[:, :5], turned], dim=1)
    )


def pooled_off_at_batch_8(features: Features, pixels: torch.Tensor, _: int) -> Features:
    factor = 1.02 if len(pixels) == 8 else 1.0
    return Features(features.pooler_output * factor, features.last_hidden_state)


def batch_3_only(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, token_off) if len(pixels) == 3 else features


def odd_number_of_patches(features: Features, pixels: torch.Tensor, _: int) -> Features:
    odd = pixels.shape[-1] // 16 % 2
    return hidden(features, token_off) if odd and pixels.shape[-1] > 200 else features


def twice_the_side(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, nan) if pixels.shape[-1] == 448 else features


def bf16_only(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, token_off) if pixels.dtype == torch.bfloat16 else features


def wide_input_only(features: Features, pixels: torch.Tensor, _: int) -> Features:
    return hidden(features, token_off) if pixels.shape[-1] > 2 * pixels.shape[-2] else features


def every_seventh_call(features: Features, _: torch.Tensor, number: int) -> Features:
    return hidden(features, token_off) if number % 7 == 0 else features


def after_the_warm_up(features: Features, _: torch.Tensor, number: int) -> Features:
    return hidden(features, nan) if number > 20 else features


def one_call_alone(features: Features, _: torch.Tensor, number: int) -> Features:
    return exchanged(features) if number == 25 else features


def batch_8_from_its_second_call_on(features: Features, pixels: torch.Tensor, n: int) -> Features:
    return hidden(features, token_off) if len(pixels) == 8 and n > 5 else features


def slowly_worse(features: Features, _: torch.Tensor, number: int) -> Features:
    return Features(features.pooler_output * (1 + number / 2000), features.last_hidden_state)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Break the device's forwards in the coverage and in the soak, and no reference."""

    def break_(fault: Fault) -> None:
        soaked = 0

        def in_coverage(model: Any, pixels: torch.Tensor) -> Features:  # noqa: ANN401 - as forward
            return fault(model_module.forward(model, pixels), pixels, 0)

        def in_soak(device: Any, model: Any, pixels: torch.Tensor) -> tuple[Features, float]:  # noqa: ANN401 - as above
            nonlocal soaked
            soaked += 1
            features, took_ms = model_module.timed_forward(device, model, pixels)
            return fault(features, pixels, soaked), took_ms

        monkeypatch.setattr(runner, "forward", in_coverage)
        monkeypatch.setattr(coverage, "timed_forward", in_soak)

    return break_


@pytest.mark.parametrize(
    "fault",
    [
        batch_8_only, exchanged_from_batch_4_on, last_image_repeated, first_image_everywhere,
        small_input_nan, rows_and_columns_exchanged, pooled_off_at_batch_8,
    ],
)  # fmt: skip
def test_a_fault_of_a_batch_or_a_size_is_caught_by_the_small_set(
    run_accuracy: Run, broken: Callable[[Fault], None], fault: Fault
) -> None:
    broken(fault)
    code, folder = run_accuracy("--no-report")
    results = results_of(folder)
    assert code == 1
    assert results["outcome"] == "fail"
    assert any("cells of the coverage fail, first batch" in one for one in results["reasons"])
    assert results["pooler_output"]["passed"] and results["last_hidden_state"]["passed"]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (batch_3_only, ()),
        (odd_number_of_patches, ()),
        (twice_the_side, ()),
        (wide_input_only, ()),
        (bf16_only, ("--modes", "fp32,bf16")),
    ],
)
def test_a_fault_of_another_shape_or_mode_is_caught_by_coverage(
    run_accuracy: Run, broken: Callable[[Fault], None], fault: Fault, options: tuple[str, ...]
) -> None:
    broken(fault)
    assert run_accuracy("--no-report")[0] == 0
    code, folder = run_accuracy("--no-report", "--coverage", *options)
    assert code == 1
    cells = results_of(folder)["coverage"]
    assert 0 < sum(not cell["passed"] for cell in cells) < len(cells)


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (every_seventh_call, 7), (after_the_warm_up, 21), (one_call_alone, 25),
        (batch_8_from_its_second_call_on, 10), (slowly_worse, 6),
    ],
)  # fmt: skip
def test_a_fault_of_some_calls_is_caught_by_the_soak(
    run_accuracy: Run, broken: Callable[[Fault], None], fault: Fault, first: int
) -> None:
    broken(fault)
    code, folder = run_accuracy("--no-report", "--soak-forwards", "40")
    results = results_of(folder)
    assert code == 1
    assert results["outcome"] == "fail"
    assert results["soak"]["forwards"] == 40
    assert results["soak"]["beyond_limits"] > 0
    deviation = results["soak"]["first_deviation"]
    if fault is every_seventh_call:  # batch 2's first forward is sound, its next is wrong
        assert deviation["forward"] == 7
    assert deviation["forward"] == first


def test_a_sound_device_passes_the_whole_matrix_and_repeats_its_bits(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--coverage", "--modes", "fp32,bf16-eager", "--soak-forwards", "12")
    code, folder = run_accuracy("--no-report", "--batch-size", "5", *options)
    assert code == 0
    results, out = results_of(folder), capsys.readouterr().out
    cells = results["coverage"]
    assert {cell["batch_size"] for cell in cells} == {1, 2, 3, 4, 5, 8}
    sizes = {(cell["rows"], cell["columns"]) for cell in cells}
    assert sizes == {(224, 224), (112, 144), (240, 240), (144, 336), (448, 448)}
    assert len(cells) == 6 * 5 * 2
    for cell in cells:
        assert cell["relative_error"] < 3 * cell["expected_error"]
        assert cell["images"] == cell["batch_size"]
    soak = results["soak"]
    assert (soak["end"], soak["beyond_limits"], soak["first_deviation"]) == ("complete", 0, None)
    assert [one["distinct_results"] for one in soak["batches"]] == [1] * 6
    assert "Coverage: 60 cells (batch 1, 2, 3, 4, 5, 8;" in out
    assert "Soak: 12 forwards in" in out


def test_other_bits_inside_the_limits_are_a_warning_with_their_place(
    run_accuracy: Run, broken: Callable[[Fault], None]
) -> None:
    def other_bits(features: Features, pixels: torch.Tensor, number: int) -> Features:
        if number != 9:
            return features
        return hidden(features, lambda tokens: tokens[1, 7].add_(1e-4))

    broken(other_bits)
    code, folder = run_accuracy("--no-report", "--soak-forwards", "15")
    record = record_of(folder)
    found = record["results"]["soak"]["first_deviation"]
    assert code == 0
    assert (found["forward"], found["batch_size"], found["tensor"]) == (9, 4, "last_hidden_state")
    assert (found["image"], found["token"], found["passed"]) == (1, 7, True)
    assert found["largest_difference"] == pytest.approx(1e-4, rel=1e-2)
    assert any("other bits, inside the limits" in warning for warning in record["warnings"])


def test_ctrl_c_in_a_soak_keeps_what_there_is(
    run_accuracy: Run, broken: Callable[[Fault], None]
) -> None:
    def interrupt(features: Features, _: torch.Tensor, number: int) -> Features:
        if number == 8:
            signal.raise_signal(signal.SIGINT)
        return features

    broken(interrupt)
    code, folder = run_accuracy("--no-report", "--soak", "5")
    record = record_of(folder)
    assert code == 130
    assert (record["status"], record["results"]["soak"]["end"]) == ("partial", "interrupted")
    assert record["results"]["soak"]["forwards"] == 8
    assert record["results"]["verdict"] == "SELF-CHECK"


def test_a_device_that_dies_in_a_soak_fails_and_keeps_what_there_is(
    run_accuracy: Run, broken: Callable[[Fault], None]
) -> None:
    def die(features: Features, _: torch.Tensor, number: int) -> Features:
        if number == 6:
            raise DeviceError("no longer computes")
        return features

    broken(die)
    code, folder = run_accuracy("--no-report", "--soak-forwards", "20")
    results = results_of(folder)
    assert code == 1
    assert results["reasons"] == ["the device failed in the soak, forward 6: no longer computes"]
    assert results["soak"]["end"] == "device error"


def test_a_soak_goes_on_for_as_many_minutes_as_were_asked_for(run_accuracy: Run) -> None:
    code, folder = run_accuracy("--no-report", "--soak", "0.01")
    soak = results_of(folder)["soak"]
    assert (code, soak["end"]) == (0, "complete")
    assert soak["seconds"] >= 0.6
    assert soak["forwards"] >= 1


def test_what_the_runs_own_image_explains_is_the_larger_sum_of_the_arithmetics_and_the_cpus() -> (
    None
):
    def results(reference: str, *errors: tuple[float | None, float | None]) -> Any:  # noqa: ANN401 - a stand-in
        pooled, hidden = (
            SimpleNamespace(expected_error=one, cpu_fp64_relative_error=cpu) for one, cpu in errors
        )
        return SimpleNamespace(reference=reference, pooler_output=pooled, last_hidden_state=hidden)

    both = ((2.0, 0.5), (1.0, 4.0))
    assert coverage.usual(results("CPU fp32", *both)) == 5.0
    assert coverage.usual(results("CPU fp64", *both)) == 2.0  # the CPU is what is judged there
    assert coverage.usual(results("CPU fp32", (None, 0.5), (1.0, 4.0))) is None
    assert coverage.usual(results("CPU fp32", (2.0, None), (1.0, 4.0))) is None


def test_what_a_soak_keeps_is_bounded(
    run_accuracy: Run, broken: Callable[[Fault], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never_the_same(features: Features, _: torch.Tensor, number: int) -> Features:
        return Features(features.pooler_output + number * 1e-7, features.last_hidden_state)

    monkeypatch.setattr(coverage, "MOST_DIGESTS", 3)
    broken(never_the_same)
    code, folder = run_accuracy("--no-report", "--soak-forwards", "40")
    assert code == 0
    assert [one["distinct_results"] for one in results_of(folder)["soak"]["batches"]] == [3] * 5


def test_a_model_of_other_strides_is_covered_too(run_accuracy: Run, tmp_path: Path) -> None:
    weights = save_tiny_convnext(tmp_path / "convnext")
    code, folder = run_accuracy("--no-report", weights=weights)
    assert code == 0
    sizes = {(cell["rows"], cell["columns"]) for cell in results_of(folder)["coverage"]}
    assert sizes == {(224, 224), (224, 288)}


@pytest.mark.parametrize(
    ("mode", "keeps"),
    [
        (Mode("fp32", "sdpa"), True),
        (Mode("fp32", "sdpa", graph=True), True),
        (Mode("strict-fp32", "sdpa"), False),
        (Mode("bf16", "sdpa"), False),
    ],
)
def test_what_was_measured_in_the_runs_mode_says_nothing_of_another(
    tiny_weights: Path, mode: Mode, keeps: bool
) -> None:
    device = Device("cpu", None, "a processor", 1, torch.device("cpu"))
    info = ModelInfo(None, "random", "", "", 0, "fp32", "sdpa")
    model = model_module.load(tiny_weights, "sdpa")
    setup = Setup(
        device, torch.float32, model, Preprocessing(), info, HealthChecks(device), 0.0,
        arithmetic=report_records.ARITHMETIC,
    )  # fmt: skip
    sides: Any = SimpleNamespace(
        setup=setup, model=model, references=SimpleNamespace(fp32=SimpleNamespace(model=model))
    )
    pixels = torch.zeros(1, 3, 32, 32)
    images = Images(pixels, model_module.forward(model, pixels))
    with coverage.in_mode(sides, mode, Mode("fp32", "sdpa"), images) as runner:
        assert runner.setup.arithmetic == (report_records.ARITHMETIC if keeps else None)
        assert runner.mode == mode
        assert (runner.model is model) is keeps  # a copy moves, and the run's own stays


def test_an_exchange_of_neighbours_or_of_places_a_power_apart_shows() -> None:
    every = views(torch.arange(12.0).reshape(1, 1, 3, 4), 8)
    four, eight = (Images(every[:n], Features(every, every)) for n in (4, 8))
    order = four.places(64)
    for apart in (1, 4, 16):
        assert all(one != other for one, other in zip(order, order[apart:], strict=False))
    assert set(eight.places(8, moved=3)) == set(range(8))
    assert len({tuple(one.flatten().tolist()) for one in every}) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--modes", "bf16"), "give --coverage too"),
        (("--coverage", "--modes", "int8"), "is no mode"),
        (("--soak", "0"), "is not a number of minutes"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run_accuracy: Run, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert run_accuracy(*options)[0] == 2
    assert words in capsys.readouterr().err


def test_ranks_do_not_wait_for_a_soak(
    run_accuracy: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run_accuracy("--soak", "1")[0] == 2
    assert "look at one device" in capsys.readouterr().err
