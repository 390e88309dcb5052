"""What the clock, the peaks of memory and graph capture ask of a device, and in which order."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kit.device import meters
from kit.device.device import Device
from kit.device.meters import CALLS_BEFORE_CAPTURE, PeakMemory, Stopwatch, capture
from kit.errors import CaptureError, DeviceError, OutOfDeviceMemoryError

CHIP = Device("npu", 0, "a chip", 1, torch.device("cpu"))
CPU = Device("cpu", None, "a processor", 1, torch.device("cpu"))


class Chip:
    """Writes down what it is asked; each request lasts so many ms on the clock that it sets."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.now_ns = 7_000_000

    def does(self, what: str, lasts_ms: float = 0.0) -> Callable[..., str]:
        """Return what does one thing, and returns its name."""

        def do(*_: object, **__: object) -> str:
            self.asked.append(what)
            self.now_ns += round(lasts_ms * 1_000_000)
            return what

        return do


class Event:
    """Of torch.cuda; its number is its time in ms, where it keeps one."""

    def __init__(self, chip: Chip, number: int, enable_timing: bool) -> None:
        self.record = chip.does(f"event {number}", 0.5)
        self.at = number if enable_timing else None

    def elapsed_time(self, later: "Event") -> float:
        """Return the ms from this one to a later one."""
        assert self.at is not None and later.at is not None
        return later.at - self.at


class Stream:
    """Of torch.cuda."""

    def __init__(self, chip: Chip, name: str) -> None:
        self.name, self.chip = name, chip

    @property
    def cuda_stream(self) -> str:
        """The handle, for which all must have been launched."""
        return self.chip.does("launch", 2)()

    def wait_stream(self, other: "Stream") -> None:
        """Wait for what another has been given."""
        self.chip.does(f"{self.name} waits for {other.name}")()


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Chip:
    """A chip in torch.cuda's place, and its clock in time's."""
    made, events = Chip(), iter(range(10, 20, 4))
    current, side = Stream(made, "the stream"), Stream(made, "the side stream")

    @contextlib.contextmanager
    def between(what: str) -> Iterator[None]:
        made.does(f"begin {what}")()
        try:
            yield
        finally:
            made.does(f"end {what}")()

    for name, value in {
        "synchronize": made.does("synchronize", 16),
        "empty_cache": made.does("give unused memory back"),
        "reset_peak_memory_stats": made.does("forget the peak"),
        "Event": lambda enable_timing=False: Event(made, next(events), enable_timing),
        "current_stream": lambda *_: current,
        "Stream": lambda: side,
        "stream": lambda stream: between(stream.name),
        "graph": lambda graph: between("capture"),
        "CUDAGraph": lambda: SimpleNamespace(
            replay=made.does("replay"), reset=made.does("release")
        ),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(meters, "time", SimpleNamespace(perf_counter_ns=lambda: made.now_ns))
    return made


def test_a_call_is_timed_from_an_idle_device_until_it_has_done_all(chip: Chip) -> None:
    sample = Stopwatch(CHIP).time(chip.does("call", 8))
    assert chip.asked == ["synchronize", "event 10", "call", "event 14", "launch", "synchronize"]
    assert sample.host_ms == pytest.approx(0.5 + 8 + 0.5 + 2)
    assert sample.wall_ms == pytest.approx(0.5 + 8 + 0.5 + 2 + 16)
    assert sample.device_ms == 4
    assert sample.output == "call"


def test_the_cpu_is_timed_by_the_hosts_clock_alone(chip: Chip) -> None:
    sample = Stopwatch(CPU).time(chip.does("call", 8))
    assert chip.asked == ["call"]
    assert (sample.wall_ms, sample.host_ms, sample.device_ms) == (8, None, None)
    assert sample.output == "call"


def test_calls_in_a_queue_are_waited_for_once(chip: Chip) -> None:
    assert Stopwatch(CHIP).time_queued(chip.does("call", 8), 3) == pytest.approx(3 * 8 + 16)
    assert chip.asked == ["synchronize", "call", "call", "call", "synchronize"]


def test_the_peaks_are_the_largest_over_the_parts(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = PeakMemory(CHIP)
    assert chip.asked == ["give unused memory back", "forget the peak"]
    for tensors, reserved in ((300, 500), (400, 450), (200, 600), (100, 550)):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _, now=tensors: now)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _, now=reserved: now)
        assert peaks.take() == tensors
        peaks.restart()
    assert chip.asked == ["give unused memory back", "forget the peak"] * 5
    memory = peaks.memory()
    assert (memory.device_peak_bytes, memory.device_reserved_peak_bytes) == (400, 600)


def test_the_cpu_has_no_peak_of_its_own(chip: Chip) -> None:
    peaks = PeakMemory(CPU)
    assert peaks.take() is None
    memory = peaks.memory()
    assert (memory.device_peak_bytes, memory.device_reserved_peak_bytes) == (None, None)
    assert memory.host_peak_bytes is not None
    assert chip.asked == []


@pytest.mark.parametrize(
    ("status", "platform", "expected"),
    [
        ("VmPeak:\t 9999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n", "linux", 2048 * 1024),
        ("Name:\tpython\n", "linux", 3000 * 1024),
        (None, "linux", 3000 * 1024),
        (None, "darwin", 3000),
    ],
)
def test_the_hosts_peak_is_in_bytes_whatever_the_system_counts_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str | None,
    platform: str,
    expected: int,
) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    usage = SimpleNamespace(ru_maxrss=3000)
    monkeypatch.setattr(meters, "STATUS", tmp_path / "status")
    monkeypatch.setattr(
        meters, "resource", SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: usage)
    )
    monkeypatch.setattr(sys, "platform", platform)
    assert meters.host_peak_bytes() == expected


def test_a_call_is_captured_after_it_has_run_on_a_stream_of_its_own(chip: Chip) -> None:
    captured = capture(CHIP, chip.does("call"), "a call")
    assert chip.asked == [
        *("the side stream waits for the stream", "begin the side stream"),
        *["call"] * CALLS_BEFORE_CAPTURE,
        *("end the side stream", "the stream waits for the side stream", "synchronize"),
        *("begin capture", "call", "end capture", "synchronize"),
    ]
    chip.asked.clear()
    assert captured() == captured.output == "call"
    captured.release()
    assert chip.asked == ["replay", "release"]


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (
            "not permitted when\nmore",
            CaptureError,
            "^a call cannot be captured: not permitted when",
        ),
        ("NPU out of memory", OutOfDeviceMemoryError, "while capturing a call"),
    ],
)
@pytest.mark.usefixtures("chip")
def test_a_call_that_cannot_be_captured_is_told_from_want_of_memory(
    message: str, error: type[Exception], words: str
) -> None:
    calls = iter(range(CALLS_BEFORE_CAPTURE))

    def call() -> None:
        if next(calls, None) is None:
            raise RuntimeError(message)

    with pytest.raises(error, match=words):
        capture(CHIP, call, "a call")


@pytest.mark.usefixtures("chip")
def test_a_call_that_fails_before_its_capture_is_the_devices_failure() -> None:
    def call() -> None:
        raise RuntimeError("AICore exception")

    with pytest.raises(DeviceError, match="while capturing a call"):
        capture(CHIP, call, "a call")
    with pytest.raises(CaptureError, match="the CPU has no graph capture"):
        capture(CPU, call, "a call")
