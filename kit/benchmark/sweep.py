"""The sweep over batch sizes: throughput and latency row by row, until memory ends it."""

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kit.benchmark.measure import Interrupted, Meter, Plan
from kit.benchmark.runner import ModeRunner
from kit.device.device import device_errors, synchronize
from kit.errors import OutOfDeviceMemoryError
from kit.model.model import Features
from kit.output import RunLog
from kit.records import Latency, RowStatus, ScalingRow, ThroughputRow

AUTO_LIMIT = 4096  # images; far beyond what a device needs to be busy
GAIN = 1.02  # by which one of two doublings must raise the throughput for auto to go on
LONGEST_QUEUE = 100  # forwards that are given without waiting
MS_PER_S = 1e3


@dataclass
class Sweep:
    """One mode's sweep; under torchrun all ranks make it together.

    Attributes:
        runner: the model in its mode.
        meter: measures.
        plan: for each row.
        log: told of a batch that does not fit.
        rows: the rows so far, in the order they were measured.
        scaling: all ranks' rows so far; none with one process.
    """

    runner: ModeRunner
    meter: Meter
    plan: Plan
    log: RunLog
    rows: list[ThroughputRow] = field(default_factory=list)
    scaling: list[ScalingRow] = field(default_factory=list)

    def run(self, batch_sizes: Iterable[int] | None) -> None:
        """Measure the batch sizes in ascending order; None doubles until nothing is gained.

        Running out of memory ends the sweep: the row says so, and the largest batch below it
        that runs is measured after it.

        Raises:
            KitError: where the device fails otherwise.
            KeyboardInterrupt: on Ctrl-C; `rows` holds what there is.
        """
        for batch_size in doubling() if batch_sizes is None else batch_sizes:
            if not self.measured(batch_size):
                self.rows.append(row_without_memory(batch_size))
                self.search(batch_size)
                return
            if batch_sizes is None and not self.meter.group.gather(self.gains(), "the gain")[0]:
                return

    def measured(self, batch_size: int, *, searched: bool = False) -> bool:
        """Measure one batch size and add its row; return False where it does not fit.

        Raises:
            KitError, KeyboardInterrupt: as `run` does.
        """
        meter, name = self.meter, f"{self.runner.mode.name}, batch {batch_size}"
        with contextlib.ExitStack() as stack:
            call = self.prepared(batch_size, stack)
            if not all(meter.group.gather(call is not None, "whether the batch fits")) or not call:
                return False
            alone = self.measured_alone(call, batch_size, name)
            try:
                latency = meter.measure(call, batch_size, self.plan, name)
            except Interrupted as interrupted:
                if interrupted.latency is not None:
                    self.rows.append(row(interrupted.latency, "interrupted", searched=searched))
                raise
            queued_ips = self.queued_throughput(call, latency, name)
            memory = self.runner.peaks.take()
            peak = memory.peak_bytes if memory else None
        self.rows.append(
            row(
                latency,
                "measured",
                queued_ips,
                peak,
                searched=searched,
            )
        )
        if meter.group.size > 1:
            busy = meter.group.gather((latency, alone), "the ranks' throughput")
            self.scaling.append(scaling_row(batch_size, busy))
        return True

    def prepared(
        self, batch_size: int, stack: contextlib.ExitStack, *, told: bool = True
    ) -> Callable[[], Features] | None:
        """Return a call that has run once on a batch of this size; None where it does not fit.

        Raises:
            KitError: where the device fails otherwise, or no longer computes.
        """
        name = f"{self.runner.mode.name}, batch {batch_size}"
        try:
            with device_errors(f"preparing {name}"):
                self.runner.peaks.restart()
            call = stack.enter_context(self.runner.forwards(self.runner.input(batch_size)))
            with device_errors(f"trying {name}"):
                call()
                synchronize(self.runner.setup.device)
        except OutOfDeviceMemoryError as error:
            if told:
                self.log.warning(f"Batch {batch_size} does not fit: {error}")
        else:
            return call
        self.meter.health.after(f"{name} ran out of memory")
        return None

    def measured_alone(
        self, call: Callable[[], Features], batch_size: int, name: str
    ) -> Latency | None:
        """Return rank 0's latency while the other ranks wait; None on these, and alone."""
        if self.meter.group.size == 1 or not self.meter.group.place.leads:
            return None
        return self.meter.measure(
            call, batch_size, self.plan, f"{name}, one rank alone", together=False
        )

    def queued_throughput(
        self, call: Callable[[], Features], latency: Latency, name: str
    ) -> float | None:
        """Return images per second where the device is waited for once; None for the CPU.

        Raises:
            DeviceError: where the device fails.
        """
        if self.runner.setup.device.type == "cpu":
            return None
        count = min(latency.iterations, LONGEST_QUEUE)
        with device_errors(f"measuring {name}, waiting once"):
            took_ms = self.meter.stopwatch.time_queued(call, count)
        self.meter.health.after(f"{name}, waiting once")
        return latency.batch_size * count / took_ms * MS_PER_S

    def search(self, too_large: int) -> None:
        """Find by halving the largest batch that fits below one that does not, and measure it."""
        largest = max((r.batch_size for r in self.rows if r.status == "measured"), default=0)
        fits, fails = largest, too_large
        while fails - fits > 1:
            middle = (fits + fails) // 2
            with contextlib.ExitStack() as stack:
                here = self.prepared(middle, stack, told=False) is not None
            if all(self.meter.group.gather(here, "whether the batch fits")):
                fits = middle
            else:
                fails = middle
        if fits > largest:
            self.measured(fits, searched=True)

    def gains(self) -> bool:
        """Return whether one of the last two doublings raised the throughput by GAIN."""
        speeds = [r.throughput_ips or 0.0 for r in self.rows]
        return len(speeds) < 3 or max(speeds[-2:]) > GAIN * max(speeds[:-2])


def doubling() -> Iterable[int]:
    """Return 1, 2, 4 ... up to AUTO_LIMIT."""
    return itertools.takewhile(lambda size: size <= AUTO_LIMIT, (1 << n for n in itertools.count()))


def row(
    latency: Latency,
    status: RowStatus,
    queued_throughput_ips: float | None = None,
    device_peak_bytes: int | None = None,
    *,
    searched: bool,
) -> ThroughputRow:
    """Return a row from its samples."""
    return ThroughputRow(
        batch_size=latency.batch_size,
        status=status,
        searched=searched,
        throughput_ips=latency.batch_size / latency.mean_ms * MS_PER_S,
        avg_latency_ms=latency.mean_ms,
        queued_throughput_ips=queued_throughput_ips,
        latency=latency,
        device_peak_bytes=device_peak_bytes,
    )


def row_without_memory(batch_size: int) -> ThroughputRow:
    """Return the row of a batch that did not fit."""
    return ThroughputRow(batch_size, "out_of_memory", False, None, None, None, None, None)


def scaling_row(batch_size: int, busy: list[tuple[Latency, Latency | None]]) -> ScalingRow:
    """Return all ranks' row.

    Args:
        batch_size: of each rank.
        busy: each rank's latency while all work; beside the first one, rank 0's alone.
    """
    together = [latency for latency, _ in busy]
    alone = busy[0][1]
    assert alone is not None  # rank 0 measures it
    images = sum(batch_size * latency.iterations for latency in together)
    total_ips = images / max(sum(latency.samples_ms) for latency in together) * MS_PER_S
    alone_ips = batch_size / alone.mean_ms * MS_PER_S
    return ScalingRow(
        batch_size=batch_size,
        alone_throughput_ips=alone_ips,
        rank_throughput_ips=tuple(batch_size / t.mean_ms * MS_PER_S for t in together),
        total_throughput_ips=total_ips,
        scaling_efficiency=total_ips / (len(together) * alone_ips),
    )
