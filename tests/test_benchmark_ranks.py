"""benchmark.py under torchrun: every device works, and a rank that dies ends the run."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from kit import distributed
from kit.errors import KitError
from tests.benchmark_runs import record_of
from tests.emulated_npu import REPOSITORY, EmulatedNpu

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(
    count: int, folder: Path, weights: Path, photo: Path, *options: str,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[str]":  # fmt: skip
    """Start torchrun in a session of its own, as a terminal would."""
    return subprocess.Popen(
        [
            *LAUNCH, str(count), "benchmark.py", "--output-dir", str(folder),
            "--weights", str(weights), "--image", str(photo), "--size", "32",
            "--iterations", "5", "--warmup", "0", *options,
        ],
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def test_two_ranks_on_the_cpu_give_each_ranks_and_the_total_throughput(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    running = launch(
        2, tmp_path, tiny_weights, photo, "--device", "cpu", "--batch-sizes", "1,2",
        "--min-seconds", "0.1",
    )  # fmt: skip
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert out.count("Benchmark Results") == 1  # rank 0 prints for all
    results = record_of(tmp_path)["results"]
    assert results["ranks"]["world_size"] == 2
    assert [one["rank"] for one in results["ranks"]["ranks"]] == [0, 1]
    rows = results["ranks"]["throughput"]
    assert [row["batch_size"] for row in rows] == [1, 2]
    for row in rows:
        total, each = row["total_throughput_ips"], row["rank_throughput_ips"]
        assert len(each) == 2
        # The same number of images on each, over the time of the slower one.
        assert total == pytest.approx(2 * min(each))
        assert row["scaling_efficiency"] == pytest.approx(total / (2 * row["alone_throughput_ips"]))
    best = max(rows, key=lambda row: row["total_throughput_ips"])
    assert results["scaling_efficiency"] == best["scaling_efficiency"]
    assert len({one["latency"]["iterations"] for one in results["ranks"]["ranks"]}) == 1


@pytest.mark.extended
def test_on_npus_each_rank_takes_its_own_and_they_scale(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    environment = npu_host.environment({**ENVIRONMENT, "FAKECANN_DELAY_US": "aclnnGeluV2:100000"})
    running = launch(
        2, tmp_path, tiny_weights, photo, "--batch-sizes", "1", environment=environment
    )
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    record = record_of(tmp_path)
    places = [one["torch_device"] for one in record["results"]["ranks"]["ranks"]]
    assert places == ["npu:0", "npu:1"]
    assert record["device"]["torch_device"] == "npu:0"
    # 200 ms of each forward pass on both devices at once, while their hosts share a processor;
    # one device for both, or one rank after the other, would give 0.5.
    assert 0.7 < record["results"]["scaling_efficiency"] < 1.15
    assert "scaling_efficiency" in out


@pytest.mark.extended
def test_more_ranks_than_devices_end_with_one_line_that_says_so(
    npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    environment = npu_host.environment({**ENVIRONMENT, "FAKECANN_DEVICES": "1"})
    running = launch(2, tmp_path, tiny_weights, photo, environment=environment)
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "LOCAL_RANK 1: this host shows 1 NPU; start torchrun with --nproc-per-node 1" in err
    assert 'Traceback (most recent call last):\n  File "' + str(REPOSITORY) not in err
    assert list(tmp_path.iterdir()) == []


def children(parent: int) -> list[int]:
    """Return the processes that a process has started, in the order of their numbers."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split()
    return sorted(int(child) for child in found)


@pytest.mark.extended
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_a_clear_error(
    tiny_weights: Path, photo: Path, tmp_path: Path, victim: int
) -> None:
    running = launch(2, tmp_path, tiny_weights, photo, "--device", "cpu", "--min-seconds", "100")
    assert running.stdout is not None
    for line in running.stdout:
        if "Measuring" in line:
            break
    time.sleep(0.5)
    os.kill(children(running.pid)[victim], signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode not in (0, None)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors
    assert re.search("another rank", errors[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extended
def test_ctrl_c_under_torchrun_keeps_what_was_measured(
    tiny_weights: Path, photo: Path, tmp_path: Path
) -> None:
    running = launch(2, tmp_path, tiny_weights, photo, "--device", "cpu", "--min-seconds", "100")
    assert running.stdout is not None
    for line in running.stdout:
        if "Measuring" in line:
            break
    time.sleep(1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    running.communicate(timeout=60)
    record = record_of(tmp_path)
    assert record["status"] == "partial"
    assert record["results"]["latency"]["iterations"] >= 1


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "zero", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_variables_that_no_torchrun_sets_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.place() == distributed.Rank(0, 0, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KitError, match="which no torchrun sets"):
        distributed.place()


def test_one_process_waits_for_nobody_and_agrees_with_itself() -> None:
    with distributed.joined(distributed.Rank()) as group:
        group.barrier("the start")
        assert group.gather("value", "a value") == ["value"]
        assert group.size == 1
