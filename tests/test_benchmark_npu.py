"""benchmark.py on the emulated NPU: known durations, graphs, faults, memory limits."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmark_runs import record_of
from tests.emulated_npu import REPOSITORY, EmulatedNpu
from tests.test_benchmark_limit import FLOPS, PRODUCT_FLOPS

GELU_MS = 200.0
BLOCKS = 2  # of the tiny model, each with one GELU
TOLERANCE = 0.02


LADDER = (
    "fp32-sdpa,fp32-sdpa-graph,strict-fp32-sdpa,strict-fp32-eager,strict-fp32-eager-graph,"
    "bf16-sdpa,bf16-sdpa-graph,fp16-eager,fp16-eager-graph"
)


def arguments(folder: Path, weights: Path, photo: Path, *options: str) -> list[str]:
    """Return a command line with few short measurements; later options win."""
    return [
        "benchmark.py", "--output-dir", str(folder), "--weights", str(weights),
        "--image", str(photo), "--device", "npu", "--iterations", "5", "--batch-sizes", "1",
        "--warmup", "0", *options,
    ]  # fmt: skip


def run(
    npu_host: EmulatedNpu, command: Sequence[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run on the emulated host with one thread, so that others on this machine disturb less."""
    return npu_host.run(command, environment={"OMP_NUM_THREADS": "1", **variables})


def known_durations(npu_host: EmulatedNpu, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the results of a run whose every forward takes the device BLOCKS * GELU_MS."""
    done = run(npu_host, command, FAKECANN_DELAY_US=f"aclnnGeluV2:{GELU_MS * 1000:.0f}")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = record_of(folder)["results"]
    return results


def test_reported_latency_is_the_known_duration_within_two_percent(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    command = arguments(tmp_path, tiny_weights, photo, "--size", "32")
    truth_ms = BLOCKS * GELU_MS
    for attempt in range(3):  # another process may take the machine in the middle of one
        results = known_durations(npu_host, command, tmp_path)
        latency, row = results["latency"], results["throughput"][0]
        reported = [latency["p50_ms"], latency["device_p50_ms"]]
        if attempt == 2 or reported == pytest.approx([truth_ms] * 2, rel=TOLERANCE):
            break
    assert reported == pytest.approx([truth_ms] * 2, rel=TOLERANCE)
    assert min(latency["samples_ms"]) >= truth_ms
    # What a loop that does not wait for the device would have reported:
    assert latency["host_p50_ms"] < truth_ms / 4
    assert latency["warm_up"]["steady"]
    assert min(row["latency"]["samples_ms"]) == pytest.approx(truth_ms, rel=TOLERANCE)
    assert row["throughput_ips"] == pytest.approx(1000 / row["avg_latency_ms"])
    assert row["queued_throughput_ips"] is None  # a wait is nothing beside so long a forward
    assert results["harness"]["overhead_share"] < 0.01


PRODUCT_MS = 4.0
PRODUCTS = 13  # of one forward: the patches, and four and two for each block
NAMES = ("aclnnMm", "aclnnAddmm", "aclnnMatmul", "aclnnConvolution")


def test_a_device_of_set_speed_has_the_utilization_it_must_and_waits_for_files(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    # A fifth of the forward is in GELU, which is no product.
    delays = ",".join(f"{name}:{PRODUCT_MS * 1000:.0f}" for name in NAMES) + ",aclnnGeluV2:6500"
    large = tmp_path / "large.png"  # which takes far longer to decode than a forward
    with Image.open(photo) as image:
        image.resize((1600, 1200)).save(large)
    command = arguments(tmp_path, tiny_weights, large, "--size", "32", "--batch-sizes", "1,64")
    done = run(npu_host, command, FAKECANN_DELAY_US=delays)
    assert done.returncode == 0, done.stderr
    results = record_of(tmp_path)["results"]
    limit = results["limit"]
    (reached,) = limit["precisions"]
    # The products of one image, by hand in test_benchmark_limit.py, each in PRODUCT_MS.
    flops_per_s = reached["batch_size"] * PRODUCT_FLOPS / (PRODUCTS * PRODUCT_MS / 1000)
    assert reached["flops_per_s"] == pytest.approx(flops_per_s, rel=TOLERANCE)
    assert limit["flops_per_image"] == FLOPS
    row = results["throughput"][0]
    least_ms = FLOPS / reached["flops_per_s"] * 1000
    assert row["avg_latency_ms"] > 1.2 * PRODUCTS * PRODUCT_MS
    # Without waiting at the end it would be many times this.
    assert row["queued_throughput_ips"] == pytest.approx(1000 / row["avg_latency_ms"], rel=0.15)
    assert row["utilization"] == pytest.approx(least_ms / row["avg_latency_ms"])
    assert row["bound"] == "compute"
    # 64 images take the device no longer than one, and each has to be decoded and preprocessed.
    assert limit["bound"] == "transfer"
    phases = results["phases"]
    stage = phases["pipeline_stage"]
    assert stage in ("decode", "preprocessing")
    assert phases["pipeline_ips"] == pytest.approx(1000 / phases[f"{stage}_ms"])
    assert "bound: transfer" in done.stdout


@pytest.mark.extended
def test_a_device_that_copies_slowly_is_memory_bound(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    command = arguments(tmp_path, tiny_weights, photo, "--size", "32", "--batch-sizes", "64")
    done = run(npu_host, command, FAKECANN_DELAY_US="aclnnInplaceCopy:50000")
    assert done.returncode == 0, done.stderr
    results = record_of(tmp_path)["results"]
    assert results["limit"]["bytes_per_s"] == pytest.approx(2 * 2**20 / 50e-3, rel=TOLERANCE)
    assert results["throughput"][0]["bound"] == "memory"


def test_the_ladder_finds_graph_replay_for_one_image_with_the_eager_bits(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    command = arguments(
        tmp_path, tiny_weights, photo, "--iterations", "10", "--size", "32",
        "--modes", f"{LADDER},fp32-sdpa-compile", "--profile",
    )  # fmt: skip
    done = run(npu_host, command, FAKECANN_ASYNC="1")
    assert done.returncode == 0, done.stderr
    assert "double" not in done.stderr  # torch_npu's warning: the chip has no fp64
    record = record_of(tmp_path)
    results = record["results"]
    rungs = {row["mode"]: row for row in results["ladder"]}
    assert record["device"]["type"] == "npu"
    assert list(rungs) == LADDER.split(",")
    (compiled,) = results["skipped_modes"]
    assert compiled["mode"] == "fp32-sdpa-compile"
    assert compiled["reason"].startswith("torch.compile is off under npu_patch")
    # CANN's profiler is not emulated: the host's part stands alone, with torch_npu's own words.
    profile = results["profile"]
    assert (profile["side"], len(profile["operators"])) == ("host", 10)
    assert "PROF" in profile["problem"]
    assert (tmp_path / "benchmark_trace.json").stat().st_size > 10_000
    assert {row["verdict"] for row in rungs.values()} == {"PASS"}
    for mode, row in rungs.items():
        assert row["memory"]["device_peak_bytes"] > 0
        if not row["graph"]:
            assert row["bits_equal_eager"] is None
            continue
        eager = rungs[mode.removesuffix("-graph")]
        assert row["bits_equal_eager"] is True
        assert row["relative_error"] == eager["relative_error"]
        host = [min(rung["latency"]["host_samples_ms"]) for rung in (row, eager)]
        assert host[0] < host[1] / 3  # the smallest: what another process takes is no cost
    fastest = results["fastest_passing_mode"]
    assert fastest.endswith("-graph")
    # HF32 in the convolution is what fp32 costs on this chip by default.
    assert rungs["fp32-sdpa"]["relative_error"] > 5 * rungs["strict-fp32-sdpa"]["relative_error"]
    assert rungs["bf16-sdpa"]["relative_error"] > 10 * rungs["strict-fp32-sdpa"]["relative_error"]
    assert f"Fastest mode that passes: {fastest}" in done.stdout
    command_words = f"python3 tests/fake_cann/run.py benchmark.py --modes {fastest} "
    assert results["fastest_passing_command"].startswith(command_words)


@pytest.mark.parametrize("queue", ["0", "1"])
def test_an_operator_that_fails_at_a_later_forward_ends_the_run_with_its_name(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path, queue: str
) -> None:
    done = run(
        npu_host,
        arguments(tmp_path, tiny_weights, photo),
        FAKECANN_FAIL="aclnnGeluV2:25",
        TASK_QUEUE_ENABLE=queue,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "aclnnGeluV2" in last
    assert "fp32-sdpa" in last
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_ends_the_sweep_and_the_next_smaller_batch_is_found(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    command = arguments(
        tmp_path, tiny_weights, photo, "--batch-sizes", "1,4,1024,2048", "--size", "64"
    )
    done = run(npu_host, command, FAKECANN_HBM_GIB="0.0625")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    rows = record["results"]["throughput"]
    assert [row["status"] for row in rows] == [
        "measured", "measured", "out_of_memory", "measured",
    ]  # fmt: skip
    assert [row["batch_size"] for row in rows[:3]] == [1, 4, 1024]
    assert rows[3]["searched"]
    assert 4 < rows[3]["batch_size"] < 1024
    assert rows[3]["device_peak_bytes"] < 2**26
    assert rows[3]["device_peak_bytes"] > rows[1]["device_peak_bytes"]
    assert any("out of device memory" in warning for warning in record["warnings"])
    # Without a worker thread every operator runs while it is launched: nothing is left to wait for.
    assert [row["bound"] for row in rows[:3]] == ["host", "host", None]


@pytest.mark.extended
def test_ctrl_c_in_the_middle_writes_a_partial_record_and_exits_130(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    command = arguments(tmp_path, tiny_weights, photo, "--size", "32", "--min-seconds", "100")
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=npu_host.environment({"OMP_NUM_THREADS": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        if "Measuring" in line:
            break
    time.sleep(4)  # past the warm-up, which is short here; the timed forwards go on for 100 s
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    record = record_of(tmp_path)
    assert record["status"] == "partial"
    assert record["results"]["latency"]["iterations"] > 10
    assert record["results"]["throughput"] == []
    assert "Interrupted: what was measured is kept and marked partial" in out
