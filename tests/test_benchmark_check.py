"""benchmark.py checks what it publishes: wrong forwards are FAIL, whenever and wherever."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kit import statistics
from kit.benchmark import report
from kit.model.model import Features
from kit.model.runner import Images
from kit.records import BenchmarkRecord, decode
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
