"""benchmark.py cut short: memory that runs out, Ctrl-C, features that are not finite."""

import signal
from typing import Any

import pytest
import torch
from PIL import Image

from kit.benchmark import run
from kit.device import meters
from kit.device.device import device_errors
from kit.errors import CaptureError, OutOfDeviceMemoryError
from kit.model.runner import ModeRunner
from tests.benchmark_runs import Go, before_call, record_of

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`


def limited_to(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every batch beyond so many images run out of memory."""
    original = ModeRunner.input

    def input_(self: ModeRunner, batch_size: int, *rest: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401 - passed on
        if batch_size > images:
            raise OutOfDeviceMemoryError(f"no room for {batch_size} images")
        return original(self, batch_size, *rest, **named)

    monkeypatch.setattr(ModeRunner, "input", input_)


def test_out_of_memory_ends_the_sweep_and_finds_the_largest_batch_that_fits(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limited_to(6, monkeypatch)
    code, folder = go("--batch-sizes", "1,2,8,16", "--size", "32")
    record = record_of(folder)
    rows = record["results"]["throughput"]
    assert code == 0
    assert record["status"] == "complete"
    assert [(row["batch_size"], row["status"]) for row in rows] == [
        (1, "measured"), (2, "measured"), (8, "out_of_memory"), (6, "measured"),
    ]  # fmt: skip
    assert [row["searched"] for row in rows] == [False, False, False, True]
    assert rows[2]["throughput_ips"] is None
    assert any("Batch 8 does not fit" in warning for warning in record["warnings"])
    out = capsys.readouterr().out
    assert "         8  out of memory: the sweep ends here" in out
    assert "(largest that fits)" in out


def test_out_of_memory_at_once_leaves_the_latency(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    limited_to(1, monkeypatch)
    code, folder = go("--batch-sizes", "2,4")
    results = record_of(folder)["results"]
    assert code == 0
    assert results["latency"]["iterations"] == 4
    assert [(row["batch_size"], row["status"]) for row in results["throughput"]] == [
        (2, "out_of_memory"), (1, "measured"),
    ]  # fmt: skip


def test_the_cpus_own_allocation_failure_counts_as_out_of_memory(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ModeRunner.input

    def input_(self: ModeRunner, batch_size: int, *rest: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401 - passed on
        if batch_size > 1:
            with device_errors("asking for more than there is"):
                torch.empty(1 << 60)
        return original(self, batch_size, *rest, **named)

    monkeypatch.setattr(ModeRunner, "input", input_)
    code, folder = go()
    rows = record_of(folder)["results"]["throughput"]
    assert code == 0
    assert [row["status"] for row in rows] == ["measured", "out_of_memory"]


@pytest.mark.parametrize("broken", ["fp32", "bf16"])
def test_a_sweep_that_no_graph_can_hold_leaves_its_mode_on_the_ladder_and_nowhere_else(
    go: Go, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    original = ModeRunner.forwards

    def forwards(self: ModeRunner, pixel_values: torch.Tensor) -> Any:  # noqa: ANN401 - passed on
        if self.mode.precision == broken and len(pixel_values) > 1:
            raise CaptureError("this batch cannot be captured")
        return original(self, pixel_values)

    monkeypatch.setattr(ModeRunner, "forwards", forwards)
    code, folder = go("--modes", "fp32,bf16")
    record = record_of(folder)
    rows = {row["mode"]: row["throughput"] for row in record["results"]["ladder"]}
    assert code == 0
    assert {name: len(sweep) for name, sweep in rows.items()} == {
        "fp32-sdpa": 1 if broken == "fp32" else 2,
        "bf16-sdpa": 1 if broken == "bf16" else 2,
    }
    assert record["results"]["skipped_modes"] == []
    assert record["results"]["throughput"] == rows["fp32-sdpa"]
    warning = f"The sweep of {broken}-sdpa ends early: this batch cannot be captured"
    assert warning in record["warnings"]


def calls_before_the_sweep(warm_up: int) -> int:
    """Return how many calls are timed before the first row: first forward, copies, no-ops."""
    return 1 + run.COPIES_TIMED + run.EMPTY_CALLS_TIMED + warm_up + 4


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_the_sweep_keeps_what_was_measured_and_marks_it_partial(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupting: dict[int, int] = {}
    original = run.Sweep.prepared

    def prepared(self: run.Sweep, batch_size: int, *rest: Any, **named: Any) -> Any:  # noqa: ANN401 - passed on
        ready = original(self, batch_size, *rest, **named)
        if batch_size != 2 or ready is None:
            return ready
        checker, _ = ready
        call = checker.call

        def counted() -> Any:  # noqa: ANN401 - the call's own
            interrupting[2] = interrupting.get(2, 0) + 1
            if interrupting[2] == 105:  # 100 warm-up forwards at most, then timed ones
                ctrl_c()
            return call()

        checker.call = counted
        return ready

    monkeypatch.setattr(run.Sweep, "prepared", prepared)
    code, folder = go("--iterations", "200", "--size", "32", "--batch-sizes", "1,2,4")
    record = record_of(folder)
    rows = record["results"]["throughput"]
    assert code == 130
    assert record["status"] == "partial"
    assert record["results"]["latency"]["iterations"] == 200
    assert [row["batch_size"] for row in rows] == [1, 2]
    assert [row["status"] for row in rows] == ["measured", "interrupted"]
    assert 1 <= rows[1]["latency"]["iterations"] <= 104
    assert "(interrupted)" in capsys.readouterr().out
    assert Image.open(folder / "benchmark_throughput.png").width > 0


def test_ctrl_c_while_the_latency_is_measured_keeps_its_samples(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calls_before_the_sweep(warm_up=100) + 3
    monkeypatch.setattr(meters.Stopwatch, "time", before_call(before, ctrl_c))
    code, folder = go("--iterations", "1000", "--size", "32")
    record = record_of(folder)
    assert code == 130
    assert record["status"] == "partial"
    assert 1 <= record["results"]["latency"]["iterations"] < 1000
    assert record["results"]["throughput"] == []


def test_ctrl_c_before_anything_was_measured_writes_nothing(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(meters.Stopwatch, "time", before_call(1, ctrl_c))
    code, folder = go()
    assert code == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"
    assert list(folder.iterdir()) == []


def test_ctrl_c_on_the_ladder_keeps_the_finished_modes(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.Run.measure_mode

    def other(self: run.Run, mode: Any, *rest: Any) -> None:  # noqa: ANN401 - passed on
        if mode.dtype == "fp16":
            ctrl_c()
        original(self, mode, *rest)

    monkeypatch.setattr(run.Run, "measure_mode", other)
    code, folder = go("--modes", "fp32,bf16,fp16", "--batch-sizes", "1")
    record = record_of(folder)
    assert code == 130
    assert record["status"] == "partial"
    assert [row["mode"] for row in record["results"]["ladder"]] == ["fp32-sdpa", "bf16-sdpa"]


def test_features_that_are_not_finite_fail_and_give_no_throughput(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ModeRunner.input

    def infinite(self: ModeRunner, *rest: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401 - passed on
        return original(self, *rest, **named) * float("inf")

    monkeypatch.setattr(ModeRunner, "input", infinite)
    code, folder = go()
    results = record_of(folder)["results"]
    assert code == 1
    assert results["latency"]["check"]["verdict"] == "FAIL"
    assert results["latency"]["check"]["relative_error"] is None
    assert {row["status"] for row in results["throughput"]} == {"failed"}
    assert {row["throughput_ips"] for row in results["throughput"]} == {None}
    assert "NaN or infinite" in capsys.readouterr().out
