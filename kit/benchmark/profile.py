"""Where the time of a forward goes: some forwards of the main mode under a profiler.

torch.profiler sees the CPU and a GPU. Of an NPU it sees what the host does for it; what the chip
does stands in the files that torch_npu.profiler and CANN write.
"""

import contextlib
import csv
import io
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from kit import outside
from kit.device.device import Device, synchronize
from kit.device.meters import npu_profiler
from kit.errors import KitError, one_line
from kit.model.runner import Call
from kit.records import Profile, ProfiledOperator

FORWARDS = 5
MOST_OPERATORS = 10
SPAN = "kit: the profiled forwards"  # as the profiler's table and the trace name them
TABLE, TRACE = "kernel_details.csv", "trace_view.json"  # of torch_npu.profiler
LARGEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Kernel:
    """One piece of a device's work, in µs of its clock."""

    name: str
    start_us: float
    end_us: float


def measure(device: Device, call: Call, *, graph: bool) -> tuple[Profile, bytes]:
    """Return where the time of one-image forwards goes, and their trace as JSON for Perfetto.

    Where nothing is to be had of the device, `problem` says why and the rest is the host's part. A
    `graph` is a single launch. A RuntimeError of torch's where the device fails.
    """
    # torch 2.13 writes on stderr that it starts and stops; what fails is told by what is missing.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    for _ in range(2):
        call()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        wall_ms = forwards(device, call)
    rows = profiler.key_averages()
    found, trace = of_host(rows, wall_ms), exported(profiler)
    if device.type == "cpu":
        return found, trace
    try:
        if device.type == "npu":
            wall_ms, kernels, trace = of_npu(device, call)
            found = replace(found, profiler="torch_npu.profiler", wall_ms=wall_ms, profiled_ms=None)
            times = by_name(kernels)
        else:
            kernels = [
                Kernel(one.name, one.time_range.start, one.time_range.end)
                for one in profiler.events()
                if one.device_type != DeviceType.CPU and one.name != SPAN
            ]
            times = by_operator(rows) or by_name(kernels)
        if not kernels:
            raise KitError(f"{found.profiler} saw nothing of the {device.label}")
    except Exception as error:  # whatever a vendor's profiler raises costs the device's part alone
        return replace(found, problem=one_line(error)), trace
    return of_device(found, times, kernels, graph=graph), trace


def forwards(device: Device, call: Call) -> float:
    """Make the forwards that are profiled and return the wall-clock ms of each, on average."""
    synchronize(device)
    start = time.perf_counter()
    with record_function(SPAN):
        for _ in range(FORWARDS):
            call()
        synchronize(device)
    return (time.perf_counter() - start) * 1e3 / FORWARDS


def exported(profiler: torch.profiler.profile) -> bytes:
    """Return the trace that a profiler writes to a file."""
    with tempfile.TemporaryDirectory(prefix="kit-profile-") as folder:
        path = Path(folder) / TRACE
        profiler.export_chrome_trace(str(path))
        return outside.read_bytes(path, "the trace", LARGEST_BYTES)


# ---- The host's part -----------------------------------------------------------------------------


def of_host(rows: Iterable[Any], wall_ms: float) -> Profile:
    """Return what the host spends in operators, and so all of a forward on the CPU.

    Of torch.profiler's averages, in µs, those of the CPU count; `wall_ms` is by the clock.
    """
    on_host = [row for row in rows if row.device_type == DeviceType.CPU]
    total_us = sum(row.self_cpu_time_total for row in on_host)
    times = {row.key: (row.self_cpu_time_total, row.count) for row in on_host if row.key != SPAN}
    operators_ms = sum(took for took, _ in times.values()) / 1e3 / FORWARDS
    return Profile(
        profiler="torch.profiler",
        side="host",
        forwards=FORWARDS,
        batch_size=1,
        wall_ms=wall_ms,
        profiled_ms=total_us / 1e3 / FORWARDS,
        operators_ms=operators_ms,
        busy_share=operators_ms / wall_ms,
        launches_per_forward=None,
        operators=longest(times),
        problem=None,
    )


def longest(times: dict[str, tuple[float, int]]) -> tuple[ProfiledOperator, ...]:
    """Return the operators that take longest, by the µs and calls of each over all forwards."""
    total_us = sum(took for took, _ in times.values())
    rows = sorted(times.items(), key=lambda item: item[1][0], reverse=True)
    return tuple(
        ProfiledOperator(name, took / total_us, calls / FORWARDS, took / 1e3 / FORWARDS)
        for name, (took, calls) in rows[:MOST_OPERATORS]
        if took > 0
    )


# ---- The device's part ---------------------------------------------------------------------------


def of_device(
    found: Profile, times: dict[str, tuple[float, int]], kernels: Sequence[Kernel], *, graph: bool
) -> Profile:
    """Return a profile with the device's operators in place of the host's."""
    return replace(
        found,
        side="device",
        operators_ms=sum(took for took, _ in times.values()) / 1e3 / FORWARDS,
        busy_share=busy_us(kernels) / 1e3 / FORWARDS / found.wall_ms,
        launches_per_forward=1.0 if graph else len(kernels) / FORWARDS,
        operators=longest(times),
    )


def busy_us(kernels: Sequence[Kernel]) -> float:
    """Return how long at least one kernel ran, in µs."""
    busy, until = 0.0, float("-inf")
    for one in sorted(kernels, key=lambda one: one.start_us):
        busy += max(0.0, one.end_us - max(one.start_us, until))
        until = max(until, one.end_us)
    return busy


def by_name(kernels: Iterable[Kernel]) -> dict[str, tuple[float, int]]:
    """Return µs and number of the kernels of each name."""
    times: dict[str, tuple[float, int]] = {}
    for one in kernels:
        took, calls = times.get(one.name, (0.0, 0))
        times[one.name] = took + one.end_us - one.start_us, calls + 1
    return times


def by_operator(rows: Iterable[Any]) -> dict[str, tuple[float, int]]:
    """Return µs on the device and calls of each operator; none where a graph is replayed."""
    return {
        row.key: (row.self_device_time_total, row.count)
        for row in rows
        if row.device_type == DeviceType.CPU and row.self_device_time_total and row.key != SPAN
    }


def of_npu(device: Device, call: Call) -> tuple[float, list[Kernel], bytes]:
    """Return the wall-clock ms of a forward, the chip's work in all of them, and the trace.

    A KitError with torch_npu.profiler's own last word where that leaves no table.
    """
    with tempfile.TemporaryDirectory(prefix="kit-profile-") as folder:
        # It reports its own errors on stdout and goes on.
        with contextlib.redirect_stdout(io.StringIO()) as said, npu_profiler(Path(folder)):
            wall_ms = forwards(device, call)
        tables, traces = (list(Path(folder).rglob(name)) for name in (TABLE, TRACE))
        if not tables or not traces:
            words = [line for line in said.getvalue().splitlines() if "[ERROR]" in line]
            raise KitError(words[-1] if words else f"torch_npu.profiler left no {TABLE}")
        table, trace = (
            outside.read_bytes(found[0], "torch_npu.profiler's file", LARGEST_BYTES)
            for found in (tables, traces)
        )
    return wall_ms, kernels_of(table.decode("utf-8-sig", "replace")), trace


def kernels_of(table: str) -> list[Kernel]:
    """Return the chip's work that torch_npu.profiler's kernel_details.csv holds.

    Source of the columns: torch_npu, profiler/analysis/prof_common_func/_csv_headers.py.
    """
    kernels = []
    for row in csv.DictReader(io.StringIO(table)):
        start_us, took_us = (float(row[name]) for name in ("Start Time(us)", "Duration(us)"))
        kind = row["Type"].strip()
        name = row["Name"].strip() if kind in ("", "N/A") else kind
        kernels.append(Kernel(name, start_us, start_us + took_us))
    return kernels
