"""The conditions of a measurement: its own cost, the clock, the host, the peaks of memory."""

import contextlib
import os
import time
from pathlib import Path

from kit.device.meters import PeakMemory
from kit.host_memory import host_peak_bytes
from kit.records import Harness, Latency, Memory
from kit.statistics import dispersion_warnings

GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
SLOW_GOVERNORS = frozenset({"powersave", "conservative"})
LARGEST_OVERHEAD = 0.01  # of a batch-1 forward
CLOCK_TOLERANCE = 0.10  # by which device and host may disagree about a forward
CLOCK_TOLERANCE_MS = 0.2  # and what a launch and a wait may add to the host's time


def harness(overhead_ms: float) -> Harness:
    """Return what timing costs and how it is done, as far as known before the first latency."""
    clock = time.get_clock_info("perf_counter")
    governor = load = None
    with contextlib.suppress(OSError):
        governor = GOVERNOR.read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    return Harness(
        overhead_ms=overhead_ms,
        overhead_share=None,
        clock=clock.implementation,
        clock_resolution_ns=clock.resolution * 1e9,
        garbage_collector="off while timing",
        cpu_governor=governor,
        load_average=load,
    )


def host_warnings(found: Harness) -> list[str]:
    """Return what on the host will disturb the times."""
    warnings = []
    if found.cpu_governor in SLOW_GOVERNORS:
        warnings.append(
            f"The processor's frequency policy is {found.cpu_governor}: times will vary; "
            "choose performance for measurements"
        )
    cores = os.cpu_count() or 1
    if found.load_average is not None and found.load_average > cores:
        warnings.append(
            f"The host is busy: {found.load_average:.1f} processes want its {cores} cores"
        )
    return warnings


def latency_warnings(name: str, latency: Latency) -> list[str]:
    """Return what makes a latency doubtful, in one line: warm-up, samples, its two clocks."""
    warnings = []
    warm_up = latency.warm_up
    if not warm_up.steady:
        warnings.append(
            f"not steady after {warm_up.iterations} warm-up forwards "
            f"({sum(warm_up.samples_ms) / 1e3:.1f} s): the figures may still move"
        )
    warnings += dispersion_warnings(latency.samples_ms)
    device_ms, wall_ms = latency.device_p50_ms, latency.p50_ms
    if device_ms is not None:
        slack = CLOCK_TOLERANCE * wall_ms + CLOCK_TOLERANCE_MS
        if abs(wall_ms - device_ms) > slack:
            warnings.append(
                f"the device's clock says {device_ms:.2f} ms where the host's says {wall_ms:.2f} ms"
            )
    return [f"{name}: {'; '.join(warnings)}"] if warnings else []


def harness_warnings(found: Harness) -> list[str]:
    """Return a warning where timing itself costs too much of what is timed."""
    if found.overhead_share is None or found.overhead_share <= LARGEST_OVERHEAD:
        return []
    return [
        f"Timing costs {found.overhead_ms:.3f} ms, {found.overhead_share:.1%} of a batch-1 "
        "forward: this model is too small for these figures"
    ]


def memory(peaks: PeakMemory) -> Memory:
    """Return the peaks over all parts so far."""
    highest = peaks.highest
    return Memory(
        host_peak_bytes=host_peak_bytes(),
        device_peak_bytes=highest.peak_bytes if highest else None,
        device_reserved_peak_bytes=highest.peak_reserved_bytes if highest else None,
    )
