"""benchmark.py checks what it publishes: wrong forwards are FAIL, whenever and wherever."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit import statistics
from kit.benchmark import check, report
from kit.benchmark.check import Checker
from kit.device.device import Device
from kit.device.health import HealthChecks
from kit.device.meters import Stopwatch
from kit.distributed import Group, Rank
from kit.model import preprocessing
from kit.model.model import Features
from kit.model.runner import Images
from kit.model.setup import views
from kit.options import Mode
from kit.output import RunLog
from kit.records import BenchmarkRecord, RowCheck, decode
from tests import report_records
from tests.benchmark_faults import FAULTS, Call, Stale, break_forward, scaled, where
from tests.benchmark_runs import Go, record_of
from tests.emulated_npu import REPOSITORY, EmulatedNpu

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`


@pytest.mark.parametrize(
    ("name", "latency", "rows"),
    [
        ("every seventh forward", "FAIL", ("failed", "failed", "failed")),
        ("the warm-up alone is right", "FAIL", ("failed", "failed", "failed")),
        ("NaN after the first forward", "FAIL", ("failed", "failed", "failed")),
        ("neighbours exchanged from batch 4 on", "SELF-CHECK", ("measured", "measured", "failed")),
    ],
)
def test_a_row_that_computes_something_else_fails_and_has_no_throughput(
    go: Go,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    latency: str,
    rows: tuple[str, ...],
) -> None:
    break_forward(monkeypatch, FAULTS[name].fault)
    code, folder = go("--batch-sizes", "1,2,4", "--iterations", "8", "--size", "32")
    record = record_of(folder)
    results = record["results"]
    assert code == 1
    assert results["latency"]["check"]["verdict"] == latency
    assert tuple(row["status"] for row in results["throughput"]) == rows
    for row in results["throughput"]:
        check = row["latency"]["check"]
        failed = row["status"] == "failed"
        assert (check["verdict"] == "FAIL") is bool(check["reasons"]) is failed
        assert (row["throughput_ips"] is None) is (row["avg_latency_ms"] is None) is failed
    assert any("the check FAILED" in warning for warning in record["warnings"])
    out = capsys.readouterr().out
    assert ("no result" in out) is ("failed" in rows)
    assert "check: FAIL" in out or latency != "FAIL"


def test_a_forward_that_keeps_its_first_answer_whatever_it_is_given_fails(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_forward(monkeypatch, FAULTS["the first answer for ever"].fault)
    code, folder = go("--batch-sizes", "1")
    check = record_of(folder)["results"]["latency"]["check"]
    assert code == 1
    assert check["repeats"]["differing"] == 0
    assert check["reasons"][0].startswith("1 of 2 images are wrong: place 0 of the other batch, ")


@pytest.mark.extended
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_some_shapes_or_calls_is_found_by_the_scripts_whose_numbers_it_falsifies(
    name: str, tiny_weights: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = FAULTS[name]
    monkeypatch.setattr(statistics, "is_steady", lambda *_: True)  # so that forwards are numbered
    alike = [
        "--output-dir", str(tmp_path), "--weights", str(tiny_weights), "--image", str(photo),
        "--device", "cpu", "--size", "32", "--no-report", *case.options,
    ]  # fmt: skip
    measured = ("--warmup", "0", "--iterations", "8", "--batch-sizes", "1,4,8")
    found = {}
    for script, options in (("inference", ()), ("benchmark", measured + case.benchmark_options)):
        with pytest.MonkeyPatch.context() as patched:
            break_forward(
                patched, replace(case.fault) if isinstance(case.fault, Stale) else case.fault
            )
            found[script] = importlib.import_module(script).main([*alike, *options])
    assert {script for script, code in found.items() if code} == set(case.found_by)
    assert found["benchmark"] == 1


def test_bits_that_differ_within_the_limits_are_counted_and_a_warning(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_little(features: Features, call: Call) -> Features:
        hidden = features.last_hidden_state.clone()
        hidden[0, 0, 0] += 1e-4 if call.number >= 12 else 0.0
        return Features(features.pooler_output, hidden)

    break_forward(monkeypatch, a_little)
    code, folder = go("--batch-sizes", "1", "--warmup", "10", "--iterations", "5")
    record = record_of(folder)
    check = record["results"]["latency"]["check"]
    assert code == 0
    assert check["verdict"] == "SELF-CHECK"
    assert 1 <= check["repeats"]["differing"] <= check["repeats"]["forwards"] == 5
    assert check["repeats"]["largest_difference"] == pytest.approx(1e-4, rel=0.01)
    assert any("forwards of the same input differ in bits" in w for w in record["warnings"])


def test_a_mode_that_is_wrong_at_a_larger_batch_alone_fails_as_a_whole(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_forward(
        monkeypatch, where(lambda c: c.dtype == torch.bfloat16 and c.batch == 2, scaled(1.5))
    )
    code, folder = go("--modes", "fp32,bf16")
    results = record_of(folder)["results"]
    assert code == 1
    assert [row["verdict"] for row in results["ladder"]] == ["SELF-CHECK", "FAIL"]
    assert results["ladder"][1]["best_batch_size"] == 1
    assert results["ladder"][1]["relative_error"] > 0.4
    assert results["fastest_passing_mode"] == results["fastest_published_mode"] == "fp32-sdpa"


def test_a_mode_within_its_own_limits_is_not_one_within_the_published_ones(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_forward(monkeypatch, where(lambda c: c.dtype == torch.bfloat16, scaled(1.02)))
    code, folder = go("--modes", "bf16,fp32", "--batch-sizes", "1")
    results = record_of(folder)["results"]
    assert code == 0
    rows = {row["mode"]: row for row in results["ladder"]}
    assert rows["bf16-sdpa"]["verdict"] == "SELF-CHECK"
    assert rows["bf16-sdpa"]["latency"]["check"]["arithmetic"] == "bf16"
    assert not rows["bf16-sdpa"]["within_published_limits"]
    assert results["fastest_published_mode"] == "fp32-sdpa"
    out = capsys.readouterr().out
    assert "SELF-CHECK (bf16's limits, beyond the published 1 %)" in out
    assert "limit 0.05 of bf16, beyond the published 0.01" in out
    assert "Fastest mode within the published 1 % and 0.999: fp32-sdpa, " in out


def test_times_as_fast_is_said_of_a_difference_beyond_the_noise_alone(
    go: Go,
) -> None:
    code, folder = go("--modes", "fp32,bf16", "--batch-sizes", "1")
    assert code == 0
    record = decode((folder / "benchmark.json").read_bytes(), BenchmarkRecord)
    first, second = record.results.ladder

    def said(samples_ms: tuple[float, ...]) -> str:
        times = replace(second.latency, samples_ms=samples_ms)
        return report.compared(
            replace(first, latency=replace(first.latency, samples_ms=(8.0, 8.4, 7.9, 8.3) * 3)),
            replace(second, latency=times),
        )

    assert said((4.0, 4.1, 4.2, 4.05) * 3) == "2.00 times as fast as fp32-sdpa"
    assert said((8.1, 8.2, 7.8, 8.3) * 3) == "no faster than fp32-sdpa beyond the noise"


def test_images_that_look_alike_are_a_warning(go: Go, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40), (124, 116, 104)).save(tmp_path / "grey.png")
    code, folder = go("--image", str(tmp_path / "grey.png"))
    assert code == 0
    assert any("an exchange of them in a batch" in w for w in record_of(folder)["warnings"])


def test_a_folders_own_images_are_the_batch(go: Go, image_folder: Path) -> None:
    code, folder = go("--image", str(image_folder), "--batch-sizes", "4")
    record = record_of(folder)
    assert code == 0
    assert record["results"]["throughput"][0]["latency"]["check"]["images"] == 8
    assert not any("an exchange of them" in warning for warning in record["warnings"])


def test_as_many_images_are_made_of_one_as_are_different() -> None:
    every = views(torch.arange(12.0).reshape(1, 1, 3, 4), check.MOST_IMAGES)
    assert len({tuple(one.flatten().tolist()) for one in every}) == check.MOST_IMAGES == 8


def test_an_exchange_of_neighbours_or_of_places_a_power_of_two_apart_shows() -> None:
    pixels = torch.zeros(8, 3, 1, 1)
    images = Images(pixels, Features(pixels, pixels))
    places = images.places(4096)
    assert places[:8] == [*range(8)]
    assert images.places(4096, moved=1) == [(place + 1) % 8 for place in places]
    for apart in (1 << n for n in range(9)):
        assert all(one != other for one, other in zip(places, places[apart:], strict=False))
    for count in range(2, 8):
        few = Images(pixels[:count], Features(pixels, pixels))
        assert few.places(count) == [*range(count)]


# ---- The checker by itself -----------------------------------------------------------------------

CPU = Device("cpu", None, "a processor", 1, torch.device("cpu"))
TOKENS, WIDTH = 3, 4


def by_hand(pixels: torch.Tensor) -> Features:
    """Return a model's features that can be computed in one's head: images x 3 x 4 and 4."""
    hidden = pixels.flatten(2).clone()
    return Features(hidden.sum(1), hidden)


class Row:
    """A row of a batch of different images, whose device computes what it is told to."""

    def __init__(
        self, count: int, *, device_type: str = "cpu", graph: bool = False, dtype: str = "fp32"
    ) -> None:
        """Have a device that is right."""
        generator = torch.Generator().manual_seed(3)
        different = torch.rand(min(count, 2), 3, 2, 2, generator=generator) + 0.5
        self.images = Images(different, by_hand(different))
        self.pixels = different[self.images.places(count)].clone()
        self.device: Callable[[torch.Tensor], Features] = by_hand
        setup = SimpleNamespace(
            device=replace(CPU, type=device_type),  # type: ignore[arg-type] # any of the three
            health=HealthChecks(CPU),
            dtype=torch.bfloat16 if dtype == "bf16" else torch.float32,
            arithmetic=None,
        )
        mode = Mode("fp32", "sdpa", graph=graph)
        self.runner: Any = SimpleNamespace(
            setup=setup, images=self.images, mode=mode, model=by_hand
        )

    def call(self) -> Features:
        """Compute the batch as it is now."""
        return self.device(self.pixels)

    def checker(self) -> Checker:
        """Begin with the first forward."""
        return Checker(self.runner, Stopwatch(CPU), self.call, self.pixels, self.call())


MakeRow = Callable[..., Row]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> MakeRow:
    """Make rows whose model is computed by hand, on devices that need not be waited for."""
    monkeypatch.setattr(check, "forward", lambda model, pixels: model(pixels))
    monkeypatch.setattr(check, "synchronize", lambda device: None)
    return Row


def scale(pixels: torch.Tensor, factor: float, *places: int) -> Features:
    """Return the right features, those of some places of the batch (none: all) stretched."""
    found = by_hand(pixels)
    chosen = list(places) or slice(None)
    found.pooler_output[chosen] *= factor
    found.last_hidden_state[chosen] *= factor
    return found


@pytest.mark.parametrize(("device", "verdict"), [("cpu", "SELF-CHECK"), ("npu", "PASS")])
def test_a_row_that_is_right_passes_and_the_cpu_checks_itself(
    make: MakeRow, device: str, verdict: str
) -> None:
    row = make(2, device_type=device)
    checker = row.checker()
    for _ in range(3):
        checker.watch(row.call())
    found = checker.finish("a row")
    assert (found.verdict, found.reasons, found.within_published_limits) == (verdict, (), True)
    assert (found.images, found.relative_error, found.max_abs_diff) == (4, 0.0, 0.0)
    assert found.token_relative_error == 0.0
    assert found.cosine_similarity == pytest.approx(1.0)
    assert (found.repeats.forwards, found.repeats.differing) == (3, 0)
    assert found.repeats.largest_difference == 0.0
    assert len(checker.warm_up) == 1 and checker.warm_up[0] > 0
    assert checker.bits_equal_eager is None
    moved = row.images.pixels[[1, 0]]  # each image in the place of the other
    assert torch.equal(row.pixels, moved)


def test_the_figures_are_those_of_the_worst_image_and_tensor(make: MakeRow) -> None:
    row = make(2)
    row.device = lambda pixels: scale(pixels, 1.004, 1)
    found = row.checker().finish("a row")
    assert found.verdict == "SELF-CHECK"
    assert found.relative_error == pytest.approx(0.004, rel=1e-3)
    assert found.token_relative_error == pytest.approx(0.004, rel=1e-3)
    worst = max(float(scale(row.images.pixels, 0.004).pooler_output[n].max()) for n in (0, 1))
    assert found.max_abs_diff == pytest.approx(worst, rel=1e-3)
    row = make(2)
    row.device = lambda pixels: Features(*(t.roll(1, -1) for t in vars(by_hand(pixels)).values()))
    found = row.checker().finish("a row")
    assert found.cosine_similarity is not None and found.cosine_similarity < 0.99


def test_the_images_that_are_wrong_are_counted_and_the_first_is_named(make: MakeRow) -> None:
    row = make(2)
    row.device = lambda pixels: scale(pixels, 1.5)
    found = row.checker().finish("a row")
    assert (found.verdict, found.within_published_limits) == ("FAIL", False)
    assert found.reasons == (
        "4 of 4 images are wrong: place 0, pooler_output: relative error 0.5 is not below 0.01",
    )
    row = make(2)
    row.device = lambda pixels: scale(pixels, 1.5, 1)
    (reason,) = row.checker().finish("a row").reasons
    assert reason.startswith("2 of 4 images are wrong: place 1, pooler_output: ")


def test_what_keeps_its_arithmetics_limits_alone_is_not_within_the_published_ones(
    make: MakeRow,
) -> None:
    row = make(2, dtype="bf16")
    row.device = lambda pixels: scale(pixels, 1.02)
    found = row.checker().finish("a row")
    assert (found.verdict, found.arithmetic) == ("SELF-CHECK", "bf16")
    assert not found.within_published_limits
    row = make(2, dtype="bf16")
    row.device = lambda pixels: scale(pixels, 1.02, 1)  # one image is enough
    assert not row.checker().finish("a row").within_published_limits
    row = make(2, dtype="bf16")
    row.device = lambda pixels: scale(pixels, 1.002)
    assert row.checker().finish("a row").within_published_limits


@pytest.mark.parametrize(
    ("factor", "place", "token", "pooled", "words"),
    [
        (1.009, 1, None, True, None),
        # just one of two images, the whole of it
        (1.012, 1, None, True, "pooler_output by up to 0.012, one token by 0.012"),
        (1.012, 1, None, False, "last_hidden_state by up to 0.012, one token by 0.012"),
        # a token that is hardly a hundredth of its image
        (1.044, 0, 2, False, None),
        (1.046, 0, 2, False, "last_hidden_state by up to 0.000"),
    ],
)
def test_a_later_forward_is_held_to_the_limits_image_by_image_and_token_by_token(
    make: MakeRow, factor: float, place: int, token: int | None, pooled: bool, words: str | None
) -> None:
    row = make(2)
    row.images.pixels[:, 2] *= 0.01
    row.images.expected.last_hidden_state.copy_(by_hand(row.images.pixels).last_hidden_state)
    row.images.expected.pooler_output.copy_(by_hand(row.images.pixels).pooler_output)
    row.pixels.copy_(row.images.pixels)
    checker = row.checker()
    later = by_hand(row.pixels.clone())
    if token is None and pooled:
        later.pooler_output[place] *= factor
    else:
        later.last_hidden_state[place, slice(None) if token is None else token] *= factor
    checker.watch(later)
    checker.watch(row.call())
    found = checker.finish("a row")
    assert (found.repeats.forwards, found.repeats.differing) == (2, 1)
    assert found.verdict == ("FAIL" if words else "SELF-CHECK")
    start = "1 of 2 forwards of the same input differ from the first: "
    assert [reason.startswith(start + (words or "")) for reason in found.reasons] == (
        [True] if words else []
    )
    assert found.relative_error == 0.0  # of the first
    assert found.within_published_limits is (words is None)


def test_a_later_forward_that_is_off_by_just_a_limit_fails(make: MakeRow) -> None:
    def found(change: Callable[[Features], object]) -> tuple[str, ...]:
        row = make(1)
        row.images.pixels.zero_()
        row.images.pixels[0, :2, 0, 0] = torch.tensor([1e5, 1e3])
        row.pixels.copy_(row.images.pixels)
        row.images.expected.last_hidden_state.copy_(by_hand(row.pixels).last_hidden_state)
        row.images.expected.pooler_output.copy_(by_hand(row.pixels).pooler_output)
        checker, later = row.checker(), by_hand(row.pixels)
        change(later)
        checker.watch(later)
        return checker.finish("a row").reasons

    def token(by: float) -> Callable[[Features], object]:
        return lambda later: later.last_hidden_state[0, 1, 0].add_(by)

    def whole(by: float) -> Callable[[Features], object]:
        return lambda later: later.pooler_output.mul_(0).add_(torch.tensor([by, 0, 0, 0]))

    assert (len(found(token(45.0))), found(token(44.9))) == (1, ())
    assert (len(found(whole(102010.0))), found(whole(102009.0))) == (1, ())  # 101000 and 1 %


def test_the_difference_of_a_later_forward_is_the_largest_of_an_element(make: MakeRow) -> None:
    row = make(1)
    checker = row.checker()
    for off in (1e-4, -3e-4, 2e-4):
        later = by_hand(row.pixels)
        later.last_hidden_state[0, 1, 2] += off
        checker.watch(later)
    found = checker.finish("a row").repeats
    assert (found.forwards, found.differing) == (3, 3)
    assert found.largest_difference == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_later_forward_that_is_not_finite_fails_by_one_reason(
    make: MakeRow, value: float
) -> None:
    row = make(2)
    checker = row.checker()
    later = by_hand(row.pixels.clone())
    later.last_hidden_state[1, 2, 3] = value
    checker.watch(later)
    checker.watch(row.call())
    found = checker.finish("a row")
    assert found.verdict == "FAIL"
    assert found.reasons == (
        "a later forward of the same input gave values that are NaN or infinite",
    )
    assert (found.repeats.differing, found.repeats.largest_difference) == (1, None)


def test_the_forward_that_begins_the_warm_up_is_compared_but_is_no_timed_one(
    make: MakeRow,
) -> None:
    row, calls = make(1), 0

    def second_is_off(pixels: torch.Tensor) -> Features:
        nonlocal calls
        calls += 1
        return scale(pixels, 1.1 if calls == 2 else 1.0)

    row.device = second_is_off
    checker = row.checker()
    checker.watch_queued(4)
    assert calls == 6
    found = checker.finish("a row")
    assert (found.repeats.forwards, found.repeats.differing) == (4, 0)
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "0 of 4 forwards of the same input differ from the first"
    ] * 2


def test_the_first_forward_is_kept_though_a_graph_writes_over_it(make: MakeRow) -> None:
    row = make(1)
    same = by_hand(row.pixels)
    row.device = lambda pixels: same
    checker = row.checker()
    same.last_hidden_state.mul_(1.5)
    checker.watch(same)
    assert checker.finish("a row").repeats.differing == 1


def test_a_queued_forward_that_is_off_is_found(make: MakeRow) -> None:
    row = make(1)
    checker = row.checker()
    row.device = lambda pixels: scale(pixels, 1.5)
    checker.watch_queued(3)
    row.device = by_hand
    found = checker.finish("a row")
    assert (found.verdict, found.repeats.forwards, found.repeats.differing) == ("FAIL", 3, 3)


@pytest.mark.parametrize(
    ("graph", "count", "eager", "equal"),
    [
        (True, 1, 1.0, True),
        (True, 1, 1.0 + 2**-20, False),
        (True, 2, 1.0, None),
        (False, 1, 1.0, None),
    ],
)
def test_a_graphs_bits_at_batch_1_are_held_against_eager_ones(
    make: MakeRow, graph: bool, count: int, eager: float, equal: bool | None
) -> None:
    row = make(count, graph=graph)
    checker = row.checker()
    row.runner.model = lambda pixels: scale(pixels, eager)
    checker.finish("a row")
    assert checker.bits_equal_eager is equal


def test_a_graph_that_is_eager_on_the_first_input_alone_is_not_equal(make: MakeRow) -> None:
    row, calls = make(1, graph=True), 0

    def model(pixels: torch.Tensor) -> Features:
        nonlocal calls
        calls += 1
        return scale(pixels, 1.0 if calls == 1 else 1.0 + 2**-20)

    checker = row.checker()
    row.runner.model = model
    checker.finish("a row")
    assert (checker.bits_equal_eager, calls) == (False, 2)


def test_what_a_check_costs_is_its_comparisons_once_the_device_has_done_them(
    make: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0

    def passes(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def device(pixels: torch.Tensor) -> Features:
        passes(5.0)
        return by_hand(pixels)

    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    monkeypatch.setattr(check, "synchronize", lambda device: passes(1.0))
    row = make(1)
    row.device = device
    checker = row.checker()  # 1 s: the forward that begins the warm-up, which is timed by itself
    checker.watch(row.call())  # 1 s
    checker.watch_queued(2)  # 11 s
    assert checker.finish("a row").check_ms == 18_000.0  # and a forward of the other batch


def test_a_device_is_asked_whether_it_still_computes_after_a_check(make: MakeRow) -> None:
    row, asked = make(1), list[str]()
    row.runner.setup.health = SimpleNamespace(after=asked.append)
    row.checker().finish("a row")
    assert asked == ["the check of a row"]


def test_the_largest_quotient_of_zeros_is_zero_and_of_anything_over_zero_infinite() -> None:
    def found(errors: list[float], sizes: list[float]) -> float:
        return check.largest_ratio(torch.tensor(errors), torch.tensor(sizes))

    assert found([1.0, 3.0], [4.0, 6.0]) == 0.5
    assert found([0.0, 1.0], [0.0, 4.0]) == 0.25
    assert found([1.0, 1.0], [0.0, 4.0]) == math.inf


class Ranks(Group):
    """A group whose other ranks have given parts."""

    def __init__(self, rank: int, parts: list[Any]) -> None:
        """Stand for one of as many ranks as there are parts; its own is left out."""
        super().__init__(Rank(rank, rank, len(parts), len(parts)))
        self.parts = parts

    def gather(self, own: Any, name: str) -> list[Any]:  # noqa: ANN401 - as Group has it
        """Return every rank's."""
        return [own if n == self.place.rank else part for n, part in enumerate(self.parts)]


SOUND, WRONG = (report_records.row_check(1, 5, "fp32", error) for error in (1e-3, None))


@pytest.mark.parametrize(
    ("rank", "own", "parts", "verdict", "reasons"),
    [
        (0, SOUND, [None, SOUND], "PASS", ()),
        (0, SOUND, [None, replace(SOUND, images=99)], "PASS", ()),
        (0, SOUND, [None, WRONG], "FAIL", (f"rank 1: {WRONG.reasons[0]}",)),
        (1, SOUND, [WRONG, None], "FAIL", (f"rank 0: {WRONG.reasons[0]}",)),
        (1, WRONG, [SOUND, None], "FAIL", WRONG.reasons),
        (0, WRONG, [None, replace(WRONG, reasons=("other",))], "FAIL", WRONG.reasons),
        (1, SOUND, [SOUND, None, replace(WRONG, reasons=("a",)), WRONG], "FAIL", ("rank 2: a",)),
    ],
)
def test_a_row_fails_on_every_rank_where_it_fails_on_one(
    rank: int, own: RowCheck, parts: list[Any], verdict: str, reasons: tuple[str, ...]
) -> None:
    log, stub = RunLog(silent=True), SimpleNamespace(finish=lambda name: own)
    before, checker = report_records.latency(1, 8.0), stub
    found = check.checked(before, checker, "a row", Ranks(rank, parts), log)  # type: ignore[arg-type] # as much of one as is asked
    assert found.check is not None and replace(found, check=None) == replace(before, check=None)
    assert (found.check.verdict, found.check.reasons) == (verdict, reasons)
    assert found.check == own or verdict == "FAIL"
    words = [f"a row: the check FAILED: {'; '.join(reasons)}"] if reasons else []
    assert log.warnings == words


def test_other_bits_are_a_warning_that_counts_them() -> None:
    repeats = replace(SOUND.repeats, differing=2, largest_difference=0.00125)
    stub: Any = SimpleNamespace(finish=lambda name: replace(SOUND, repeats=repeats))
    log = RunLog(silent=True)
    found = check.checked(report_records.latency(1, 8.0), stub, "a row", Group(Rank()), log)
    assert found.check is not None and found.check.verdict == "PASS"
    assert log.warnings == [
        "a row: 2 of 5 forwards of the same input differ in bits from the first, by at most 0.00125"
    ]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_the_ranks_share_the_references_and_each_image_has_its_own(
    make: MakeRow, monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int
) -> None:
    monkeypatch.setattr(preprocessing, "preprocess", lambda pixels, steps: pixels)
    monkeypatch.setattr(check, "require_patch", lambda setup, pixels: None)
    generator = torch.Generator().manual_seed(5)
    pictures = [
        SimpleNamespace(pixels=torch.rand(1, 3, 2, 2, generator=generator) + 0.5) for _ in range(3)
    ]
    inputs: Any = SimpleNamespace(first=pictures[0], others=lambda log: iter(pictures[1:]))
    computed: list[torch.Tensor] = []

    def model(pixels: torch.Tensor) -> Features:
        computed.append(pixels)
        return by_hand(pixels)

    given = torch.cat([one.pixels for one in pictures])
    setup: Any = SimpleNamespace(model=model, steps=None)
    wanted = torch.cat([given, given[:1].flip(-1), given[:1].flip(-2)])
    shares = [
        [by_hand(wanted[n : n + 1]) for n in range(5) if n % ranks == one] for one in range(ranks)
    ]
    log = RunLog(silent=True)
    found = check.different_images(setup, inputs, 5, Ranks(rank, shares), log)
    assert torch.equal(found.pixels, wanted)
    assert torch.equal(found.expected.last_hidden_state, by_hand(wanted).last_hidden_state)
    assert torch.equal(found.expected.pooler_output, by_hand(wanted).pooler_output)
    assert len(computed) == len(range(rank, 5, ranks))
    assert log.warnings == []
    rest = iter(pictures[1:])
    inputs.others = lambda log: rest
    two = check.different_images(setup, inputs, 2, Group(Rank()), log)
    assert torch.equal(two.pixels, given[:2])
    assert len(list(rest)) == 1  # is not even decoded


def test_two_images_that_differ_by_less_than_a_limit_are_a_warning(
    make: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "preprocess", lambda pixels, steps: pixels)
    monkeypatch.setattr(check, "require_patch", lambda setup, pixels: None)
    setup: Any = SimpleNamespace(model=by_hand, steps=None)
    picture = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(5)) + 0.5

    def warnings(*factors: float) -> list[str]:
        images = [SimpleNamespace(pixels=picture * factor) for factor in (1.0, *factors)]
        inputs: Any = SimpleNamespace(first=images[0], others=lambda log: iter(images[1:]))
        log = RunLog(silent=True)
        check.different_images(setup, inputs, len(images), Group(Rank()), log)
        return log.warnings

    assert warnings(1.06, 1.3) == []
    (words,) = warnings(1.3, 1.04)
    assert words.startswith("Two images have features only 0.04 apart: an exchange of them in a")


ONE_RANK_IS_WRONG = """
import os, sys
import npu_patch, benchmark
from kit.model import model, runner
from kit.model.model import Features
original = runner.forward
def wrong(model, pixel_values):
    found = original(model, pixel_values)
    return Features(found.pooler_output, found.last_hidden_state * 1.1)
if os.environ["RANK"] == "1":
    runner.forward = wrong
sys.exit(benchmark.main())
"""


@pytest.mark.extended
def test_one_rank_that_is_wrong_fails_the_run_and_is_named(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    script = tmp_path / "one_rank.py"
    script.write_text(ONE_RANK_IS_WRONG)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(script), "--output-dir", str(tmp_path / "out"), "--weights", str(tiny_weights),
            "--image", str(photo), "--device", "cpu", "--batch-sizes", "1", "--iterations", "5",
            "--size", "32", "--warmup", "0", "--no-report",
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    results = json.loads((tmp_path / "out" / "benchmark.json").read_text("utf-8"))["results"]
    assert results["latency"]["check"]["reasons"][0].startswith("rank 1: 2 of 2 images are wrong")
    assert results["throughput"][0]["status"] == "failed"
    assert results["ranks"]["throughput"] == []


REPLAYS_DO_NOTHING = """
import sys
import npu_patch, torch, benchmark
torch.cuda.CUDAGraph.replay = lambda self: None
sys.exit(benchmark.main(sys.argv[1:]))
"""

INPUT_IS_NOT_READ_ANEW = """
import contextlib, sys
import npu_patch, torch, benchmark
from kit.model.runner import ModeRunner
original = ModeRunner.forwards
ModeRunner.forwards = lambda self, pixel_values: original(self, pixel_values.clone())
sys.exit(benchmark.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("code", [REPLAYS_DO_NOTHING, INPUT_IS_NOT_READ_ANEW])
def test_a_graph_that_does_nothing_or_never_reads_its_input_again_is_no_mode_that_passes(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path, code: str
) -> None:
    modes_asked = "fp32,fp32-graph" if code == REPLAYS_DO_NOTHING else "fp32-graph"
    done = npu_host.run(
        [
            "-c", code, "--output-dir", str(tmp_path), "--weights", str(tiny_weights),
            "--image", str(photo), "--device", "npu", "--iterations", "5", "--warmup", "0",
            "--batch-sizes", "1,2", "--size", "32", "--modes", modes_asked,
        ],
        environment={"OMP_NUM_THREADS": "1", "FAKECANN_SOC": "Ascend310P3"},
    )  # fmt: skip
    results = record_of(tmp_path)["results"]
    graph = results["ladder"][-1]
    assert graph["latency"]["check"]["arithmetic"] == "fp16"  # measured: fp32 is what was set
    assert graph["mode"] == "fp32-sdpa-graph"
    assert graph["verdict"] == "FAIL"
    assert graph["bits_equal_eager"] is False
    assert graph["best_throughput_ips"] is None
    assert done.returncode == 1, done.stderr
    if code == REPLAYS_DO_NOTHING:
        assert graph["throughput"] == []  # no mode that fails at batch 1 is swept
        assert results["fastest_passing_mode"] == "fp32-sdpa"
        assert results["ladder"][0]["verdict"] == "PASS"
    else:
        assert {row["status"] for row in graph["throughput"]} == {"failed"}
        assert results["fastest_passing_mode"] is None
        assert "Fastest mode that passes: none" in done.stdout
