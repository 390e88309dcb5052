"""Meters of a device: its clock beside the host's, and its memory.

Beside kit/device.py and kit/device_graph.py the only file that calls torch.cuda.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kit.device import Device, synchronize

T = TypeVar("T")
NS_PER_MS = 1e6


@dataclass(frozen=True)
class Sample(Generic[T]):
    """One timed call.

    Attributes:
        wall_ms: from the call to the moment when the device has done all of it.
        host_ms: from the call to its return, which is what it costs the host to give the work
            to the device; None for the CPU, which works while it is called.
        device_ms: between two events on the device's stream; None for the CPU.
        output: what the call returned.
    """

    wall_ms: float
    host_ms: float | None
    device_ms: float | None
    output: T


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
        """Return one call's times; nothing is pending on the device before and after.

        Raises:
            RuntimeError: as torch raises where the device fails.
        """
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
        """Return the wall-clock ms of `count` calls given one after the other, waited for once.

        Raises:
            RuntimeError: as torch raises where the device fails.
        """
        synchronize(self.device)
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        synchronize(self.device)
        return (time.perf_counter_ns() - start) / NS_PER_MS


@dataclass(frozen=True)
class DeviceMemory:
    """Device memory in bytes: what tensors held at most, and what was taken from the device."""

    peak_bytes: int
    peak_reserved_bytes: int


class PeakMemory:
    """Peaks of a device's memory, part by part and over all parts."""

    def __init__(self, device: Device) -> None:
        """Begin a first part."""
        self.device = device
        self.highest: DeviceMemory | None = None
        self.restart()

    def restart(self) -> None:
        """Give unused memory back to the device and begin a new part."""
        if self.device.type != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device.torch_device)

    def take(self) -> DeviceMemory | None:
        """Return the peak of this part; None for the CPU, whose memory is the host's."""
        if self.device.type == "cpu":
            return None
        place = self.device.torch_device
        found = DeviceMemory(
            peak_bytes=int(torch.cuda.max_memory_allocated(place)),
            peak_reserved_bytes=int(torch.cuda.max_memory_reserved(place)),
        )
        before = self.highest or found
        self.highest = DeviceMemory(
            max(before.peak_bytes, found.peak_bytes),
            max(before.peak_reserved_bytes, found.peak_reserved_bytes),
        )
        return found
