"""The ladder in its time: every mode at batch 1 first, then three sweeps, and a line for each."""

import re
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import benchmark
from kit.benchmark import modes, run
from kit.benchmark.measure import Meter, Plan
from kit.benchmark.run import Budget
from kit.device.health import HealthChecks
from kit.distributed import joined, place
from kit.errors import KitError, OutOfDeviceMemoryError
from kit.model.model import Features
from kit.model.runner import ModeRunner
from kit.options import Mode, parse_modes
from kit.output import RunLog
from tests import report_records
from tests.benchmark_faults import Call, break_forward
from tests.benchmark_runs import Go, record_of
from tests.test_benchmark_limit import SetSpeed

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`


def test_every_mode_is_measured_at_batch_1_before_the_main_and_the_two_fastest_are_swept(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_before: list[tuple[str, int]] = []
    original = run.Run.sweep

    def sweep(self: run.Run, runner: Any) -> None:  # noqa: ANN401 - passed on
        measured_before.append((runner.mode.name, len(self.results.ladder)))
        original(self, runner)

    monkeypatch.setattr(run.Run, "sweep", sweep)
    code, folder = go("--modes", "fp32,fp32-eager,bf16,bf16-eager", "--size", "32")
    assert code == 0
    results = record_of(folder)["results"]
    rows = {row["mode"]: row for row in results["ladder"]}
    assert list(rows) == ["fp32-sdpa", "fp32-eager", "bf16-sdpa", "bf16-eager"]
    others = sorted((rows[mode]["latency"]["p50_ms"], mode) for mode in list(rows)[1:])
    expected = ["fp32-sdpa", others[0][1], others[1][1]]
    assert measured_before == [(mode, 4) for mode in expected]
    assert {mode for mode, row in rows.items() if row["throughput"]} == set(expected)
    assert rows["fp32-sdpa"]["throughput"] == results["throughput"]
    told = re.findall(r"\[INFO\] (\d of \d), less than a minute left", capsys.readouterr().out)
    assert told == [f"{number} of 7" for number in range(1, 7)]


def test_a_mode_whose_single_forward_takes_more_than_its_share_is_passed_over(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_in_bf16(features: Features, call: Call) -> Features:
        time.sleep(1.1 if call.dtype == torch.bfloat16 else 0)
        return features

    break_forward(monkeypatch, slow_in_bf16)
    code, folder = go("--modes", "fp32,bf16,fp32-eager", "--size", "32", "--budget", "1")
    assert code == 0
    results = record_of(folder)["results"]
    assert [row["mode"] for row in results["ladder"]] == ["fp32-sdpa", "fp32-eager"]
    (skipped,) = results["skipped_modes"]
    assert skipped["mode"] == "bf16-sdpa"
    assert re.fullmatch(
        r"a forward takes \d\.\d s, too long for --budget 1: raise it .*", skipped["reason"]
    )


def test_the_graph_of_a_mode_that_was_passed_over_for_its_time_is_not_captured() -> None:
    slow = Mode("fp16", "eager")
    options = benchmark.parse_options(["--modes", "all"])
    state: Any = SimpleNamespace(too_slow={slow: 1.7}, options=options)
    run.Run.require_time(state, Mode("bf16", "eager", graph=True))
    words = "a forward without the graph takes 1.7 s, too long for --budget 120: raise it"
    with pytest.raises(KitError, match=words):
        run.Run.require_time(state, replace(slow, graph=True))


def test_a_mode_that_was_measured_and_cannot_be_swept_is_not_skipped_too(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, runs = run.Run.running, Counter[str]()

    def running(
        self: run.Run, mode: Mode, *, first: bool = False
    ) -> AbstractContextManager[ModeRunner]:
        runs[mode.name] += 1
        if runs["bf16-sdpa"] == 2:
            raise OutOfDeviceMemoryError("moving the model: out of memory")
        return original(self, mode, first=first)

    monkeypatch.setattr(run.Run, "running", running)
    code, folder = go("--modes", "fp32,bf16", "--size", "32")
    assert code == 0
    results = record_of(folder)["results"]
    assert [row["mode"] for row in results["ladder"]] == ["fp32-sdpa", "bf16-sdpa"]
    assert results["ladder"][1]["throughput"] == results["skipped_modes"] == []
    words = "[WARNING] The sweep of bf16-sdpa ends early: moving the model: out of memory"
    assert words in capsys.readouterr().out


def test_a_mode_whose_first_forward_alone_is_slow_is_measured(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles(features: Features, call: Call) -> Features:
        time.sleep(1.1 if call.dtype == torch.bfloat16 and call.number == 1 else 0)
        return features

    break_forward(monkeypatch, compiles)
    code, folder = go("--modes", "fp32,bf16", "--size", "32", "--budget", "1")
    assert code == 0
    assert [row["mode"] for row in record_of(folder)["results"]["ladder"]] == [
        "fp32-sdpa", "bf16-sdpa",
    ]  # fmt: skip


def test_modes_that_the_device_cannot_have_are_one_line(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = go("--modes", "fp32,strict-fp32,fp32-graph,bf16-graph", "--batch-sizes", "1")
    assert code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "graph capture" in line]
    assert lines == [
        "[INFO] Not on this device: strict-fp32-sdpa: the CPU computes fp32 without HF32 or TF32: "
        "the same as fp32; fp32-sdpa-graph, bf16-sdpa-graph: the CPU has no graph capture",
        "not measured: fp32-sdpa-graph, bf16-sdpa-graph: the CPU has no graph capture",
    ]


def test_what_is_left_of_the_time_is_shared_among_the_rows_to_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = benchmark.parse_options(["--modes", "all", "--batch-sizes", "1,2,4,8"])
    assert options.budget == 120
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = Budget(options, modes=6, sweeps=3, started=now)
    sweep = 1 + 1.5 + 2.5 + 4.5
    assert found.share_s() == pytest.approx(120 / (6 + 3 * sweep))
    now += 20
    assert found.step() == "1 of 9, about 2 min left"  # the main mode tells nothing of the others
    assert found.share_s() == pytest.approx(100 / (5 + 3 * sweep))
    assert found.share_s(batch_size=8) == pytest.approx(4.5 * 100 / (5 + 3 * sweep))
    now += 5
    assert found.step() == "2 of 9, about 3 min left"  # 32.5 rows at 5 s
    found.done, now = 6, 1035.0
    assert found.step() == "7 of 9, less than a minute left"  # 14.5 took 15 s: 19 are left
    assert found.share_s(batch_size=4) == pytest.approx(2.5 * 85 / (2 * sweep))
    now = 2000.0
    assert found.share_s(batch_size=8) == run.LEAST_SHARE_S


def test_a_hurried_row_has_at_least_three_samples_and_no_more_than_its_time_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    plan = Plan(iterations=20, warm_up=5, limit_s=5.0, until=1002.0)
    with joined(place()) as group:
        assert plan.count(expected_ms=100.0, group=group) == 20
        assert plan.count(expected_ms=400.0, group=group) == 5
        assert plan.count(expected_ms=5000.0, group=group) == 3
        assert replace(plan, until=None).count(expected_ms=5000.0, group=group) == 5
        assert replace(plan, limit_s=None).count(expected_ms=5000.0, group=group) == 20


@pytest.mark.parametrize(("forward_ms", "warm_up", "samples"), [(2000.0, 1, 3), (1.0, 10, 20)])
def test_a_row_whose_time_is_up_has_a_second_or_one_forward_and_three_samples(
    monkeypatch: pytest.MonkeyPatch, forward_ms: float, warm_up: int, samples: int
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    stopwatch = SetSpeed(lambda: forward_ms)
    plan = Plan(iterations=20, warm_up=5, limit_s=5.0, until=990.0)
    with joined(place()) as group:
        meter = Meter(stopwatch, HealthChecks(stopwatch.device), group, RunLog(silent=True))
        call: Any = lambda: None  # noqa: E731 - a forward
        found = meter.measure(call, 8, plan, "batch 8", warm_up=[forward_ms])
    assert (found.warm_up.iterations, found.iterations) == (warm_up, samples)


def test_a_mode_that_fails_is_neither_the_fastest_nor_swept_however_fast_it_is() -> None:
    main, bf16, fp16 = parse_modes("fp32,bf16,fp16", Mode("fp32", "sdpa"))
    ladder = tuple(
        report_records.rung(mode.name, took_ms, error)
        for mode, took_ms, error in ((main, 8.0, 1e-4), (bf16, 4.0, 0.012), (fp16, 1.0, None))
    )
    assert modes.fastest(ladder, published=False) == bf16.name
    assert modes.fastest(ladder, published=True) == main.name
    assert modes.fastest(ladder[2:], published=False) is None
    state: Any = SimpleNamespace(results=SimpleNamespace(ladder=ladder), time=SimpleNamespace())
    assert run.Run.worth_a_sweep(state, main, [fp16, bf16]) == [main, bf16]
    assert state.time.sweeps == 2


@pytest.mark.parametrize("options", [("--modes", "fp32,bf16"), ()])
def test_a_row_of_the_ladder_alone_has_a_time_to_end_by(
    go: Go, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    ends: set[bool] = set()
    original = run.Run.plan

    def plan(self: run.Run, batch_size: int, *, row: bool) -> Plan:
        found = original(self, batch_size, row=row)
        ends.add(found.until is not None)
        return found

    monkeypatch.setattr(run.Run, "plan", plan)
    assert go(*options, "--batch-sizes", "1", "--no-report")[0] == 0
    assert ends == {bool(options)}
