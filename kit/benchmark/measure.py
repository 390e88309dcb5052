"""Measure one call: warm-up until it is steady, then samples, every one of them kept.

And the conditions that they were taken in: what timing itself costs, the clock, the host.
"""

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kit import statistics
from kit.device.device import device_errors
from kit.device.health import HealthChecks
from kit.device.meters import Sample, Stopwatch
from kit.distributed import Group, Rank
from kit.model.model import Features
from kit.model.runner import Call
from kit.output import RunLog
from kit.records import Harness, Latency, WarmUp

WARM_UP_BOUND = 100  # forwards
WARM_UP_BOUND_S = 10.0
HURRIED_ITERATIONS = 3  # the least where the ladder's time does
LEAST_S = 1.0  # for warm-up and samples there, however long the first forward took
LEAST_ITERATIONS = 5  # where a time limit shortens a measurement
WINDOW = 5  # forwards; two of them must agree
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
SLOW_GOVERNORS = frozenset({"powersave", "conservative"})
LARGEST_OVERHEAD = 0.01  # of a batch-1 forward
CLOCK_TOLERANCE = 0.10  # by which device and host may disagree about a forward
CLOCK_TOLERANCE_MS = 0.2  # and what a launch and a wait may add to the host's time


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    iterations: int  # timed forwards
    warm_up: int  # least warm-up forwards
    min_seconds: float = 0.0  # the timed forwards go on until they took this long
    # Fewer than `iterations`, but at least LEAST_ITERATIONS, where these would take longer.
    limit_s: float | None = None
    window: int = WINDOW  # forwards in each of the two windows that end the warm-up by agreeing
    # When a row of the ladder shall end, in s of the monotonic clock: of what is left a quarter is
    # for the warm-up and the rest for the samples, at least HURRIED_ITERATIONS.
    until: float | None = None

    def count(self, expected_ms: float, group: Group) -> int:
        """Return how many forwards to time where one is expected to take so long."""
        count = self.iterations
        expected_s = max(expected_ms / 1e3, 1e-6)
        limit_s, least = self.limit_s, LEAST_ITERATIONS
        if limit_s is not None and self.until is not None:
            limit_s, least = min(limit_s, self.until - time.monotonic()), HURRIED_ITERATIONS
        if limit_s is not None:
            count = min(count, max(least, int(limit_s / expected_s)))
        count = max(count, math.ceil(self.min_seconds / expected_s))
        return max(group.gather(count, "the ranks' counts"))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `latency` is what there was by then, None for nothing."""

    def __init__(self, latency: Latency | None) -> None:
        """Keep what was measured."""
        super().__init__()
        self.latency = latency


@dataclass(frozen=True)
class Meter:
    """What every measurement of a run shares."""

    stopwatch: Stopwatch
    health: HealthChecks
    group: Group
    log: RunLog

    def measure(
        self, call: Call, batch_size: int, plan: Plan, name: str, *, warm_up: Sequence[float] = (),
        watch: Callable[[Features], None] = lambda features: None, together: bool = True,
    ) -> Latency:  # fmt: skip
        """Return the times of `call`, after a warm-up that begins with forwards made before, in ms.

        `watch` is given each timed forward's features, outside the timed span; `together` is
        whether every rank measures this now, from a common start on. A DeviceError that names the
        forward where the device fails; on Ctrl-C Interrupted, with the samples until then.
        """
        if plan.until is not None:
            plan = replace(plan, until=max(plan.until, time.monotonic() + LEAST_S))
        warmed, samples = list(warm_up), list[Sample[None]]()
        group = self.group if together else Group(Rank())
        try:
            with collector_off():
                self.warm_up(call, plan, name, warmed)
                group.barrier(f"the start of {name}")
                count = plan.count(statistics.median(warmed[-plan.window :]), group)
                start = time.monotonic()
                with self.log.bar(count, name) as step:
                    while count:
                        for _ in range(count):
                            with device_errors(f"measuring {name}, forward {len(samples) + 1}"):
                                watch(self.sample(call, samples))
                            step(1)
                        elapsed_s = min(group.gather(time.monotonic() - start, "the ranks' times"))
                        count = LEAST_ITERATIONS if elapsed_s < plan.min_seconds else 0
            self.health.after(name)
        except KeyboardInterrupt as error:
            taken = latency_of(batch_size, plan.window, warmed, samples) if samples else None
            raise Interrupted(taken) from error
        return latency_of(batch_size, plan.window, warmed, samples)

    def sample(self, call: Call, samples: list[Sample[None]]) -> Features:
        """Add a call's times to the others; return its features, which nothing here keeps."""
        one = self.stopwatch.time(call)
        samples.append(Sample(one.wall_ms, one.host_ms, one.device_ms, None))
        return one.output

    def warm_up(self, call: Call, plan: Plan, name: str, warmed: list[float]) -> None:
        """Run forwards until their times are steady, or the bound is reached."""
        now, hurried = time.monotonic(), plan.until is not None
        bound_s = min(WARM_UP_BOUND_S, ((plan.until or math.inf) - now) / 4)
        deadline = now + bound_s - sum(warmed) / 1e3  # what was made before counts
        with self.log.bar(None, f"{name}, warm-up") as step:
            while True:
                count, late = len(warmed), time.monotonic() > deadline
                steady = statistics.is_steady(warmed, plan.window)
                enough = steady or late or count >= WARM_UP_BOUND
                if count and enough and (count >= plan.warm_up or (late and hurried)):
                    return
                with device_errors(f"warming up {name}, forward {count + 1}"):
                    warmed.append(self.stopwatch.time(call).wall_ms)
                step(1)


def latency_of(
    batch_size: int, window: int, warm_up: Sequence[float], samples: Sequence[Sample[None]]
) -> Latency:
    """Return the record's part of at least one sample, without a check."""
    device, host = (
        tuple(getattr(one, name) for one in samples) if samples[0].device_ms is not None else None
        for name in ("device_ms", "host_ms")
    )
    steady = statistics.is_steady(warm_up, window)
    return Latency(
        **vars(statistics.statistics([one.wall_ms for one in samples])),
        batch_size=batch_size,
        warm_up=WarmUp(len(warm_up), steady, window, tuple(warm_up)),
        check=None,
        device_p50_ms=statistics.median(device) if device else None,
        device_samples_ms=device,
        host_p50_ms=statistics.median(host) if host else None,
        host_samples_ms=host,
    )


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now and not within the block, where it would land in single samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ---- The conditions ------------------------------------------------------------------------------


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
        warnings.append(f"Timings are unreliable: load {found.load_average:.1f} on {cores} cores")
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
    warnings += statistics.dispersion_warnings(latency.samples_ms)
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
