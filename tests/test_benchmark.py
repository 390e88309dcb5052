"""benchmark.py on the CPU: tables, record, sweep, ladder, picture."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kit.benchmark import limit, modes, run
from kit.device.device import require_dtype
from kit.model import images, model, setup
from kit.model.runner import ModeRunner
from kit.model.weights import Weights
from kit.records import ThroughputRow
from tests.benchmark_runs import Go, record_of
from tests.models import save_tiny_convnext

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`

SEED_NAMES = ["mean_ms", "stddev_ms", "min_ms", "max_ms", "p50_ms", "p90_ms", "p99_ms"]


def test_the_console_shows_the_two_tables_under_the_published_names(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = go("--iterations", "20")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    record = record_of(folder)
    latency = record["results"]["latency"]
    start = lines.index("iterations: 20")
    shown = lines[start + 1 : start + 8]
    assert shown[:6] == [f"{name}: {latency[name]:.2f} ms" for name in SEED_NAMES[:6]]
    assert shown[6] == f"p99_ms: {latency['p99_ms']:.2f} ms (unsupported: needs 100 samples)"
    header = lines.index("batch_size  throughput_ips  avg_latency_ms  check")
    for line, row in zip(lines[header + 1 :], record["results"]["throughput"], strict=False):
        size, speed, time, check = line.split()
        assert check == row["latency"]["check"]["verdict"] == "SELF-CHECK"
        assert int(size) == row["batch_size"]
        assert (speed, time) == (f"{row['throughput_ips']:.2f}", f"{row['avg_latency_ms']:.2f}")
    assert (folder / "benchmark.log").read_text("utf-8") == "".join(f"{x}\n" for x in lines)


def test_every_figure_in_the_record_is_numpys_on_its_own_samples(go: Go) -> None:
    code, folder = go("--iterations", "7")
    results = record_of(folder)["results"]
    assert code == 0
    rows = results["throughput"]
    assert [row["batch_size"] for row in rows] == [1, 2]
    for latency in (results["latency"], *(row["latency"] for row in rows)):
        samples = np.array(latency["samples_ms"])
        assert len(samples) == latency["iterations"] == 7
        assert latency["mean_ms"] == np.mean(samples)
        assert latency["stddev_ms"] == np.std(samples)
        assert latency["p99_ms"] == np.percentile(samples, 99)
        assert latency["unsupported"] == ["p90_ms", "p99_ms"]
        assert latency["device_samples_ms"] is None
        assert latency["warm_up"]["iterations"] == len(latency["warm_up"]["samples_ms"]) >= 6
    for row in rows:
        assert row["avg_latency_ms"] == row["latency"]["mean_ms"]
        assert row["throughput_ips"] == pytest.approx(
            row["batch_size"] * 1000 / row["avg_latency_ms"]
        )
    phases = results["phases"]
    assert phases["steady_ms"] == results["latency"]["p50_ms"]
    assert phases["host_to_device_ms"] is None
    stages = ("decode_ms", "preprocessing_ms")
    forward_ms = min(row["avg_latency_ms"] / row["batch_size"] for row in rows)
    whole_ms = sum(phases[name] for name in stages) + forward_ms
    assert phases["pipeline_ips"] == pytest.approx(1000 / whole_ms)
    assert phases["pipeline_stage"] in ("decode", "preprocessing", "forward")
    others = {"host_to_device_ms", "pipeline_stage"}
    assert all(value > 0 for name, value in phases.items() if name not in others)
    limit = results["limit"]
    fp32 = limit["precisions"][0]
    for row in rows:
        least_s = max(
            row["batch_size"] * limit["flops_per_image"] / fp32["flops_per_s"],
            fp32["weight_bytes"] / limit["bytes_per_s"],
        )
        assert row["utilization"] == pytest.approx(least_s * 1000 / row["avg_latency_ms"])
        assert row["bound"] in ("memory", "compute", "undecided")
    assert results["memory"]["host_peak_bytes"] > 50 << 20
    assert results["ladder"] == [] and results["ranks"] is None


def test_load_ms_is_the_loading_alone(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def longer(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - passed on
            nonlocal now_s
            now_s += seconds
            return call(*arguments, **named)

        return longer

    monkeypatch.setattr(setup, "time", SimpleNamespace(perf_counter=lambda: now_s))
    monkeypatch.setattr(model, "load", taking(2.0, model.load))
    monkeypatch.setattr(setup, "require_dtype", taking(30.0, require_dtype))
    hashing = images.hash_in_background

    def slowly(found: Weights) -> object:
        future = hashing(found)
        assert future is not None
        return SimpleNamespace(result=taking(500.0, future.result))

    monkeypatch.setattr(images, "hash_in_background", slowly)
    code, folder = go("--batch-sizes", "1")
    assert code == 0
    assert record_of(folder)["results"]["phases"]["load_ms"] == 2000.0


def test_a_long_run_supports_its_percentiles_and_says_nothing(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = go("--iterations", "100", "--batch-sizes", "1")
    assert code == 0
    assert record_of(folder)["results"]["latency"]["unsupported"] == []
    assert "unsupported" not in capsys.readouterr().out


def test_min_seconds_prolongs_each_measurement(go: Go) -> None:
    code, folder = go("--iterations", "1", "--min-seconds", "0.3", "--batch-sizes", "2")
    results = record_of(folder)["results"]
    assert code == 0
    for latency in (results["latency"], results["throughput"][0]["latency"]):
        # the harness's own time between two samples counts too
        assert sum(latency["samples_ms"]) > 200
        assert latency["iterations"] > 1


def test_auto_doubles_the_batch_until_throughput_ends(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "AUTO_LIMIT", 32)
    code, folder = go("--batch-sizes", "auto", "--size", "32")
    sizes = [row["batch_size"] for row in record_of(folder)["results"]["throughput"]]
    assert code == 0
    assert sizes == [1, 2, 4, 8, 16, 32][: len(sizes)]
    assert len(sizes) >= 3


@pytest.mark.parametrize(
    ("speeds", "goes_on"),
    [
        ([10.0, 15.0], True),
        ([10.0, 15.0, 20.0], True),
        ([10.0, 20.0, 19.0], True),
        ([10.0, 20.0, 19.0, 20.1], False),
        ([10.0, 20.0, 19.0, 25.0], True),
    ],
)
def test_auto_goes_on_while_one_of_two_doublings_gains(speeds: list[float], goes_on: bool) -> None:
    rows = [
        ThroughputRow(1 << n, "measured", False, speed, 1.0, None, None, None)
        for n, speed in enumerate(speeds)
    ]
    one = run.Sweep(None, None, None, rows)  # type: ignore[arg-type] # only rows count
    assert one.gains() is goes_on


def test_the_ladder_on_the_cpu_is_a_self_check_and_ends_with_one_line(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modes, "products_with_fast_math", lambda device: "fp32")
    code, folder = go("--modes", "all", "--batch-sizes", "1", "--iterations", "3")
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    results = record_of(folder)["results"]
    assert [row["mode"] for row in results["ladder"]] == [
        "fp32-sdpa",
        "fp32-eager",
        "bf16-sdpa",
        "bf16-eager",
        "fp16-sdpa",
        "fp16-eager",
    ]
    assert {row["verdict"] for row in results["ladder"]} == {"SELF-CHECK"}
    errors = {row["mode"]: row["relative_error"] for row in results["ladder"]}
    assert errors["fp32-sdpa"] == 0.0
    assert 0 < errors["fp32-eager"] < 1e-5
    assert 1e-4 < errors["bf16-sdpa"] < 0.05
    assert 1e-5 < errors["fp16-sdpa"] < errors["bf16-sdpa"]
    skipped = {one["mode"]: one["reason"] for one in results["skipped_modes"]}
    assert len(skipped) == 19
    assert skipped["fp32-sdpa-compile"] == "measured where --modes names it"
    assert skipped["fp32-sdpa-chip-gelu"] == "GELU is the device's own in every mode"
    assert skipped["fp32-sdpa-graph"] == "the CPU has no graph capture"
    assert "the same as fp32" in skipped["strict-fp32-eager"]
    medians = {row["mode"]: row["latency"]["p50_ms"] for row in results["ladder"]}
    fastest = min(medians, key=lambda mode: medians[mode])
    assert results["fastest_passing_mode"] == fastest
    assert lines[-2].startswith(f"Run it with: python3 benchmark.py --modes {fastest} --device cpu")
    assert lines[-3].startswith(f"Fastest mode that passes: {fastest}, {medians[fastest]:.2f} ms")
    assert lines[-4].startswith("Fastest mode within the published 1 % and 0.999: ")
    for line in lines[-4:-2]:
        assert line.endswith("(CPU against CPU: validates no NPU)")
    assert lines[-1].startswith("[INFO] Wrote ")


def test_a_mode_that_fails_its_verdict_is_never_the_fastest(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ModeRunner.input

    def wrong_in_bf16(self: ModeRunner, *rest: Any, **named: Any) -> torch.Tensor:  # noqa: ANN401 - passed on
        pixel_values = original(self, *rest, **named)
        return pixel_values * 0 + float("nan") if self.mode.dtype == "bf16" else pixel_values

    monkeypatch.setattr(ModeRunner, "input", wrong_in_bf16)
    code, folder = go("--modes", "fp32,bf16", "--batch-sizes", "1")
    assert code == 1
    results = record_of(folder)["results"]
    assert [row["verdict"] for row in results["ladder"]] == ["SELF-CHECK", "FAIL"]
    assert results["ladder"][1]["relative_error"] is None
    assert results["fastest_passing_mode"] == "fp32-sdpa"
    assert "Fastest mode that passes: fp32-sdpa" in capsys.readouterr().out


def test_a_model_without_attention_climbs_without_eager_attention(go: Go, tmp_path: Path) -> None:
    weights = save_tiny_convnext(tmp_path / "convnext")
    code, folder = go("--modes", "fp32,fp32-eager", "--batch-sizes", "1", weights=weights)
    results = record_of(folder)["results"]
    assert code == 0
    assert [row["mode"] for row in results["ladder"]] == ["fp32-sdpa"]
    assert results["skipped_modes"] == [
        {"mode": "fp32-eager", "reason": "the model has no attention"}
    ]


def test_a_main_mode_that_the_device_lacks_is_one_line_and_exit_code_2(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = go("--modes", "fp32-graph,fp32")
    assert code == 2
    assert capsys.readouterr().err == (
        "error: mode fp32-sdpa-graph: the CPU has no graph capture\n"
    )
    assert not (folder / "benchmark.json").exists()


def test_a_picture_is_drawn_for_each_part_that_there_is(go: Go) -> None:
    _, folder = go("--batch-sizes", "1")
    names = ["benchmark_latency.png", "benchmark_throughput.png"]
    assert sorted(path.name for path in folder.glob("*.png")) == names
    _, folder = go("--batch-sizes", "1", "--modes", "fp32,bf16")
    for name in (*names, "benchmark_ladder.png"):
        with Image.open(folder / name) as picture:
            assert picture.width == 800
            assert len(picture.getcolors(maxcolors=1 << 24) or []) > 10


def test_nothing_is_shown_on_stderr_where_it_is_no_terminal(
    go: Go, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _ = go()
    assert code == 0
    assert capfd.readouterr().err == ""


def test_a_device_that_fails_in_the_limit_costs_the_limit_alone(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> float:
        raise RuntimeError("device lost")

    monkeypatch.setattr(limit, "shortest_ms", lost)
    code, folder = go()
    record = record_of(folder)
    assert (code, record["status"], record["results"]["limit"]) == (0, "complete", None)
    assert record["warnings"][-1].startswith("No limit: ")
    assert [row["utilization"] for row in record["results"]["throughput"]] == [None, None]
