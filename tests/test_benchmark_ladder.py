"""The ladder in its time: every mode at batch 1 first, then three sweeps, and a line for each."""

import math
import re
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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
from kit.records import LadderRow, Memory, SkippedMode, ThroughputRow
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


def test_a_mode_that_is_too_slow_is_passed_over_together_with_its_graph() -> None:
    slow, graph = Mode("bf16", "eager"), Mode("bf16", "eager", graph=True)
    times = iter([9000.0, 8000.0])
    state: Any = SimpleNamespace(
        too_slow={},
        options=benchmark.parse_options(["--modes", "all"]),
        meter=SimpleNamespace(stopwatch=SetSpeed(lambda: next(times))),
        results=SimpleNamespace(latency=report_records.latency(1, 10.0)),
        time=SimpleNamespace(share_s=lambda: 5.0),
    )
    runner, call = SimpleNamespace(mode=slow), lambda: None
    with pytest.raises(KitError, match=r"a forward takes 8\.0 s, too long for --budget 120"):
        run.Run.first_in_time(state, cast(ModeRunner, runner), cast(Any, call))
    with pytest.raises(KitError, match=r"a forward without the graph takes 8\.0 s, too long"):
        run.Run.require_time(state, graph)
    run.Run.require_time(state, replace(graph, precision="fp16"))


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


def test_the_fastest_mode_is_within_the_published_limits_where_that_is_asked() -> None:
    slow, fast, wrong = (
        report_records.rung("bf16-sdpa", took_ms, error)
        for took_ms, error in ((4.0, 1e-4), (3.0, 0.02), (2.0, None))
    )
    slow, fast = replace(slow, mode="slow"), replace(fast, mode="fast")
    assert modes.fastest([slow, fast, wrong], published=False) == "fast"
    assert modes.fastest([slow, fast, wrong], published=True) == "slow"
    assert modes.fastest([replace(slow, mode="first"), slow], published=True) == "first"


def row_of(*latencies: Any, error: float | None = 1e-4) -> LadderRow:  # noqa: ANN401 - rows of a sweep
    """Return the record's row of a mode that has these rows beside batch 1."""
    mode = Mode("bf16", "eager", graph=True, channels_last=True)
    state: Any = SimpleNamespace(
        mode=mode,
        compile_ms={1: 70.0, 2: 90.0},
        peaks=SimpleNamespace(memory=lambda: Memory(1, 2, 3)),
    )
    at_1 = report_records.latency(1, 4.0, dtype="bf16", error=error)
    return modes.ladder_row(state, at_1, latencies, bits_equal_eager=True)


def test_a_modes_row_has_the_worst_of_all_its_checks_and_the_best_of_its_rates() -> None:
    sweep = [
        report_records.throughput(1, 4.0, "bf16", 2e-4),
        report_records.throughput(8, 8.0, "bf16", 4e-4),
        report_records.throughput(4, 8.0, "bf16", 3e-4),
        ThroughputRow(16, "out_of_memory", False, None, None, None, None, None),
    ]
    row = row_of(*sweep)
    assert (row.best_batch_size, row.best_throughput_ips) == (8, sweep[1].throughput_ips)
    assert (row.verdict, row.within_published_limits) == ("PASS", True)
    assert row.relative_error == 4e-4
    assert row.cosine_similarity == 1 - 4e-4**2 / 2
    assert row.max_abs_diff == 4e-4 * 2.7
    assert (row.mode, row.dtype, row.attention) == (
        "bf16-eager-channels-last-graph", "bf16", "eager",
    )  # fmt: skip
    assert (row.graph, row.channels_last, row.compiled, row.fast_math, row.strict_fp32) == (
        True, True, False, False, False,
    )  # fmt: skip
    assert (row.compile_ms, row.memory, row.bits_equal_eager) == (70.0, Memory(1, 2, 3), True)
    assert (row.latency.batch_size, row.throughput) == (1, tuple(sweep))


def test_a_mode_that_fails_at_one_batch_size_fails_and_has_no_figure_that_is_not_finite() -> None:
    row = row_of(*(report_records.throughput(n, 4.0, "bf16", e) for n, e in ((1, 2e-4), (2, None))))
    assert (row.verdict, row.within_published_limits) == ("FAIL", False)
    assert (row.best_batch_size, row.relative_error, row.max_abs_diff) == (1, None, None)
    beyond = row_of(report_records.throughput(2, 4.0, "bf16", 0.02))
    assert (beyond.verdict, beyond.within_published_limits) == ("PASS", False)
    failed = report_records.throughput(2, 4.0, "bf16", None)
    assert row_of(failed).best_batch_size is None
    assert row_of().verdict == "PASS"
    unchecked = replace(failed, latency=replace(failed.latency or beyond.latency, check=None))
    assert row_of(unchecked).verdict == "PASS"
    nothing = row_of(error=None)
    assert (nothing.verdict, nothing.best_batch_size, nothing.best_throughput_ips) == (
        "FAIL", None, None,
    )  # fmt: skip


def test_the_worst_figure_is_none_where_one_is_none_or_not_finite() -> None:
    assert modes.worst([1.0, 3.0, 2.0], max) == 3.0
    assert modes.worst([1.0, 3.0, 2.0], min) == 1.0
    for broken in (None, math.nan, math.inf, -math.inf):
        assert modes.worst([1.0, broken], min) is None


def test_the_peaks_of_two_parts_are_the_larger_ones_and_none_where_neither_is_known() -> None:
    assert modes.larger(Memory(5, None, None), Memory(4, 7, None)) == Memory(5, 7, None)
    assert modes.larger(Memory(4, 0, 3), Memory(5, 0, 9)) == Memory(5, None, 9)


def test_the_modes_of_one_reason_are_one_text() -> None:
    skipped = [SkippedMode("a", "slow"), SkippedMode("b", "new"), SkippedMode("c", "slow")]
    assert modes.together(skipped) == ["a, c: slow", "b: new"]


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
