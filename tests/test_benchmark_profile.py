"""--profile: where a forward's time goes, what becomes of a profiler that fails, known tables."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from kit.benchmark import profile, report, run
from kit.benchmark.profile import FORWARDS, Kernel
from kit.device.device import Device
from kit.records import Profile
from tests.benchmark_runs import Go, record_of

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`

QUICK = ("--size", "64", "--batch-sizes", "1", "--no-report")
NPU = Device("npu", 0, "Ascend910", 1, torch.device("cpu"))
# As torch_npu.profiler writes it; CANN ends some fields with a tab.
KERNELS = """\
Device_id,Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us),Block Num
0,aclnnMm_1,MatMulV2,AI_CORE,"1000.000\t",40.000,0.000,24
0,aclnnMm_2,MatMulV2,AI_CORE,"1040.000\t",40.000,0.000,24
0,aclnnGelu_1,Gelu,AI_VECTOR_CORE,"1070.000\t",20.000,0.000,48
0,memcpy,N/A,N/A,"1200.000\t",10.000,0.000,0
"""


def test_on_the_cpu_the_profile_agrees_with_the_clock_and_the_trace_opens(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):  # a busy machine may hold the process up between span and clock
        capsys.readouterr()
        code, folder = go("--profile", *QUICK)
        assert code == 0
        found = record_of(folder)["results"]["profile"]
        if found["profiled_ms"] == pytest.approx(found["wall_ms"], rel=0.05):
            break
    assert found["profiled_ms"] == pytest.approx(found["wall_ms"], rel=0.05)
    assert 0 < found["operators_ms"] <= found["profiled_ms"]
    assert found["busy_share"] == found["operators_ms"] / found["wall_ms"]
    assert (found["side"], found["profiler"]) == ("host", "torch.profiler")
    assert (found["problem"], found["launches_per_forward"]) == (None, None)
    rows = found["operators"]
    assert len(rows) == 10
    assert [row["time_ms"] for row in rows] == sorted((r["time_ms"] for r in rows), reverse=True)
    for row in rows:
        assert row["share"] == pytest.approx(row["time_ms"] / found["operators_ms"])
        assert row["calls"] == round(row["calls"])  # each forward is the same
    assert "aten::addmm" in {row["name"] for row in rows}
    events = json.loads((folder / "benchmark_trace.json").read_text("utf-8"))["traceEvents"]
    spans = [one for one in events if one.get("name") == profile.SPAN and one.get("ph") == "X"]
    assert len(spans) == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"Profile of {FORWARDS} forwards (torch.profiler)")
    assert [line.split()[0] for line in lines[start + 3 : start + 13]] == [r["name"] for r in rows]
    assert (
        f"one forward: {found['wall_ms']:.2f} ms, of which the host was in operators"
        in (lines[start + 13])
    )
    assert (folder / "benchmark.log").read_text("utf-8") == "".join(f"{x}\n" for x in lines)


def test_a_profiler_that_fails_costs_a_warning_and_nothing_of_the_record(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("no profiler here")

    monkeypatch.setattr(torch.profiler, "profile", broken)
    code, folder = go("--profile", "--modes", "fp32,bf16", *QUICK)
    assert code == 0
    assert record_of(folder)["results"]["profile"] is None
    assert not (folder / "benchmark_trace.json").exists()
    assert (folder / "benchmark_latency.png").exists()
    out = capsys.readouterr().out
    assert "[WARNING] No profile: the device failed while profiling fp32-sdpa: no profiler" in out


def test_ctrl_c_in_the_profile_leaves_the_record_that_was_written_before(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: run.Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "profile", interrupted)
    code, folder = go("--profile", *QUICK)
    assert code == 130
    assert record_of(folder)["status"] == "complete"


def test_a_vendors_table_gives_the_kernels_types_and_how_busy_the_chip_was() -> None:
    kernels = profile.kernels_of(KERNELS)
    assert kernels[0] == Kernel("MatMulV2", 1000.0, 1040.0)
    assert profile.by_name(kernels) == {
        "MatMulV2": (80.0, 2), "Gelu": (20.0, 1), "memcpy": (10.0, 1),
    }  # fmt: skip
    assert profile.busy_us(kernels) == 80 + 10 + 10  # half of the Gelu ran beside a product
    found = profile.of_device(host(), profile.by_name(kernels), kernels, graph=False)
    assert found.side == "device"
    assert found.busy_share == pytest.approx(0.1 / FORWARDS / 0.04)
    assert found.launches_per_forward == 4 / FORWARDS
    assert found.operators_ms == pytest.approx(0.11 / FORWARDS)
    first = found.operators[0]
    assert (first.name, first.calls) == ("MatMulV2", 2 / FORWARDS)
    assert first.share == pytest.approx(80 / 110)
    graph = profile.of_device(host(), profile.by_name(kernels), kernels, graph=True)
    assert graph.launches_per_forward == 1
    lines = report.profile_lines(found)
    assert lines[-2] == "one forward: 0.04 ms, of which the device computed 50%; 1 launches"


def host() -> Profile:
    """Return the host's part: an operator of 0.02 ms in a forward of 0.04 ms, and the span."""
    rows = [row("aten::mm", 20.0 * FORWARDS), row(profile.SPAN, 18.0 * FORWARDS)]
    return profile.of_host([*rows, row("kernel", 99.0, DeviceType.CUDA)], wall_ms=0.04)


def row(name: str, self_us: float, kind: DeviceType = DeviceType.CPU, on_device: float = 0) -> Any:  # noqa: ANN401 - torch's row, in as much as it is read
    """Return a row of torch.profiler's averages."""
    return SimpleNamespace(
        key=name, self_cpu_time_total=self_us, count=FORWARDS, device_type=kind,
        self_device_time_total=on_device,
    )  # fmt: skip


def test_the_hosts_part_is_what_operators_take_of_the_span() -> None:
    found = host()
    assert found.profiled_ms == pytest.approx(0.038)
    assert (found.operators_ms, found.busy_share) == pytest.approx((0.02, 0.5))
    assert [(one.name, one.share, one.calls) for one in found.operators] == [("aten::mm", 1, 1)]


def test_on_a_gpu_operators_have_the_time_of_the_kernels_that_they_launched() -> None:
    rows = [
        row("aten::mm", 5.0, on_device=70.0), row(profile.SPAN, 9.0, on_device=100.0),
        row("aten::add", 5.0), row("gemm_kernel", 0.0, DeviceType.CUDA, on_device=70.0),
    ]  # fmt: skip
    assert profile.by_operator(rows) == {"aten::mm": (70.0, FORWARDS)}
    assert profile.by_operator(rows[2:]) == {}


class _GpuProfiler:
    """Takes the place of torch.profiler on a host with a GPU."""

    kernels: tuple[str, ...] = ()

    def __init__(self, activities: list[ProfilerActivity]) -> None:
        assert activities == [ProfilerActivity.CPU, ProfilerActivity.CUDA]

    def __enter__(self) -> "_GpuProfiler":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def key_averages(self) -> list[Any]:
        return [row("aten::mm", 5.0, on_device=70.0), row("aten::add", 1.0)]

    def events(self) -> list[Any]:
        span = SimpleNamespace(start=0.0, end=70.0)
        return [
            SimpleNamespace(name=name, device_type=DeviceType.CUDA, time_range=span)
            for name in (*self.kernels, profile.SPAN)
        ]

    def export_chrome_trace(self, path: str) -> None:
        Path(path).write_text("{}", "utf-8")


def test_on_a_gpu_the_device_is_busy_while_kernels_run_and_without_any_the_host_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.profiler, "profile", _GpuProfiler)
    monkeypatch.setattr(profile, "synchronize", lambda device: None)
    gpu = Device("cuda", 0, "a GPU", 1, torch.device("cpu"))
    found, trace = profile.measure(gpu, product, graph=False)
    assert (found.side, found.problem) == ("host", "torch.profiler saw nothing of the GPU")
    monkeypatch.setattr(_GpuProfiler, "kernels", ("gemm",))
    found, trace = profile.measure(gpu, product, graph=False)
    assert (found.side, found.problem, trace) == ("device", None, b"{}")
    assert [one.name for one in found.operators] == ["aten::mm"]
    assert found.launches_per_forward == 1 / FORWARDS
    assert found.busy_share == pytest.approx(0.07 / FORWARDS / found.wall_ms)


def test_where_the_npus_profiler_leaves_nothing_the_hosts_part_stays_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Silent:
        def __enter__(self) -> None:
            sys.stdout.write("[2026-01-01] [ERROR] [7] profiler.py: Exception: no msprof\n")

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(profile, "npu_profiler", lambda folder: Silent())
    monkeypatch.setattr(profile, "synchronize", lambda device: None)
    found, trace = profile.measure(NPU, product, graph=False)
    assert found.problem is not None and found.problem.endswith("Exception: no msprof")
    assert (found.side, found.launches_per_forward) == ("host", None)
    assert found.operators[0].name == "aten::mm"
    assert b"traceEvents" in trace


def test_the_npus_table_and_trace_come_from_the_files_that_its_profiler_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Leaves:
        def __init__(self, folder: Path) -> None:
            self.folder = folder / "host_1_2_ascend_pt" / "ASCEND_PROFILER_OUTPUT"

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            self.folder.mkdir(parents=True)
            (self.folder / "kernel_details.csv").write_text(KERNELS, "utf-8")
            (self.folder / "trace_view.json").write_text("[]", "utf-8")

    monkeypatch.setattr(profile, "npu_profiler", Leaves)
    monkeypatch.setattr(profile, "synchronize", lambda device: None)
    found, trace = profile.measure(NPU, product, graph=False)
    assert (found.problem, found.side, found.profiler) == (None, "device", "torch_npu.profiler")
    assert found.operators[0].name == "MatMulV2"
    assert found.profiled_ms is None
    assert trace == b"[]"


def product() -> Any:  # noqa: ANN401 - takes the place of a forward
    """Compute something that the profiler sees."""
    return torch.ones(64, 64) @ torch.ones(64, 64)
