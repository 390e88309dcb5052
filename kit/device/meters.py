"""A device's clock beside the host's, the peaks of their memory, and graph capture.

A captured call is recorded on the device once and replayed at next to no host cost. Under
npu_patch torch.cuda.graph captures an NPUGraph.
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from kit.device.device import Device, device_errors, first_line, is_out_of_memory, synchronize
from kit.errors import CaptureError
from kit.records import Memory

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment] # told apart below

STATUS = Path("/proc/self/status")
T = TypeVar("T")
NS_PER_MS = 1e6


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One timed call."""

    wall_ms: float  # from the call to the moment when the device has done all of it
    # To the moment when all of it is given to the device, which is what it costs the host; None
    # for the CPU, which works while it is called.
    host_ms: float | None
    device_ms: float | None  # between two events on the device's stream; None for the CPU
    output: T  # what the call returned


def new_event() -> torch.cuda.Event:
    """Return an event that keeps its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch's own


class Stopwatch:
    """Times calls on one device: synchronized, by the host's clock and by the device's."""

    def __init__(self, device: Device) -> None:
        """Make a pair of events on an accelerator; they serve every call."""
        self.device = device
        self.events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type != "cpu":
            first, last = (new_event() for _ in range(2))
            self.events = (first, last)

    def time(self, call: Callable[[], T]) -> Sample[T]:
        """Return one call's times; nothing is pending on the device before and after."""
        synchronize(self.device)
        if self.events is None:
            start = time.perf_counter_ns()
            output = call()
            return Sample((time.perf_counter_ns() - start) / NS_PER_MS, None, None, output)
        first, last = self.events
        start = time.perf_counter_ns()
        first.record()
        output = call()
        last.record()
        # On an NPU a thread of torch_npu's launches what the call only queued; asking for the
        # stream's handle waits for that thread, and not for the device.
        _ = torch.cuda.current_stream(self.device.torch_device).cuda_stream
        returned = time.perf_counter_ns()
        synchronize(self.device)
        stop = time.perf_counter_ns()
        return Sample(
            (stop - start) / NS_PER_MS,
            (returned - start) / NS_PER_MS,
            first.elapsed_time(last),
            output,
        )

    def time_queued(self, call: Callable[[], object], count: int) -> float:
        """Return the wall-clock ms of `count` calls given one after the other, waited for once."""
        synchronize(self.device)
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        synchronize(self.device)
        return (time.perf_counter_ns() - start) / NS_PER_MS


def host_peak_bytes() -> int | None:
    """Return the process's largest resident memory so far; None where the system does not say."""
    # getrusage's figure on Linux is the parent's where that was larger: it survives exec.
    if STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())):
        return int(found[1]) * 1024
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


class PeakMemory:
    """Peaks of a device's memory, part by part and over all parts; the CPU's is the host's."""

    def __init__(self, device: Device) -> None:
        """Begin a first part."""
        self.device = device
        self._tensors: list[int] = []
        self._reserved: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Give unused memory back to the device and begin a new part."""
        if self.device.type != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device.torch_device)

    def take(self) -> int | None:
        """Return the most bytes that tensors held in this part; None for the CPU."""
        if self.device.type == "cpu":
            return None
        self._tensors.append(int(torch.cuda.max_memory_allocated(self.device.torch_device)))
        self._reserved.append(int(torch.cuda.max_memory_reserved(self.device.torch_device)))
        return self._tensors[-1]

    def memory(self) -> Memory:
        """Return the record's part: the peaks over the parts that were taken."""
        return Memory(
            host_peak_bytes=host_peak_bytes(),
            device_peak_bytes=max(self._tensors, default=None),
            device_reserved_peak_bytes=max(self._reserved, default=None),
        )


def npu_profiler(folder: Path) -> contextlib.AbstractContextManager[object]:
    """Return a context whose work torch_npu's profiler writes down below a folder, once it ends."""
    profiler = sys.modules["torch_npu"].profiler
    found: contextlib.AbstractContextManager[object] = profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder)),
    )
    return found


CALLS_BEFORE_CAPTURE = 2  # libraries make their workspaces and choose their kernels in these


class CapturedCall(Generic[T]):
    """A call that was captured; calling it replays the work into the same output tensors."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: T) -> None:
        """Keep the graph and the output tensors, which live in the graph's own memory."""
        self.graph = graph
        self.output = output

    def __call__(self) -> T:
        """Replay; the inputs are read where they were at capture."""
        self.graph.replay()
        return self.output

    def release(self) -> None:
        """Give the graph's memory back."""
        self.graph.reset()


def capture(device: Device, call: Callable[[], T], name: str) -> CapturedCall[T]:
    """Capture a call that works on tensors whose place in memory stays, and does not wait.

    Raises CaptureError on the CPU, and where the call does what no graph can hold: the caller asks
    the device whether it still computes. A device that fails is a DeviceError.
    """
    if device.type == "cpu":
        raise CaptureError("the CPU has no graph capture: leave -graph out of the mode")
    with device_errors(f"capturing {name}"):
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(CALLS_BEFORE_CAPTURE):
                call()
        torch.cuda.current_stream().wait_stream(side_stream)
        synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = call()
            synchronize(device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CaptureError(f"{name} cannot be captured: {first_line(error)}") from error
    return CapturedCall(graph, output)
