"""A run of benchmark.py: each mode's first forward, latency, features and sweep."""

import contextlib
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from kit import statistics
from kit.benchmark import measure, modes
from kit.benchmark.check import MOST_IMAGES, Checker, checked, different_images
from kit.benchmark.measure import WINDOW, Interrupted, Meter, Plan
from kit.benchmark.modes import Call, ModeRunner, run_mode
from kit.device.device import device_errors, synchronize
from kit.device.meters import Stopwatch, host_peak_bytes
from kit.distributed import Group, host_name
from kit.errors import CaptureError, DeviceError, KitError, OutOfDeviceMemoryError
from kit.model import preprocessing
from kit.model.images import Inputs
from kit.model.model import Features
from kit.model.setup import Setup, device_info, with_arithmetic
from kit.options import BenchmarkOptions, Mode
from kit.output import RunLog, alive
from kit.records import (
    BenchmarkResults,
    DeviceInfo,
    LadderRow,
    Latency,
    Memory,
    Phases,
    RankLatency,
    Ranks,
    RowStatus,
    ScalingRow,
    SkippedMode,
    ThroughputRow,
)

ITERATIONS = 20
ROW_LIMIT_S = 5.0  # without --iterations, a row of the sweep or the ladder takes about this long
ROW_WINDOW = 3  # the process is warm by then: a row needs less of a warm-up
PREPROCESSINGS_TIMED = 5
COPIES_TIMED = 20
EMPTY_CALLS_TIMED = 100
AUTO_LIMIT = 4096  # images; far beyond what a device needs to be busy
GAIN = 1.02  # by which one of two doublings must raise the throughput for auto to go on
LONGEST_QUEUE = 100  # forwards that are given without waiting
MS_PER_S = 1e3


class Run:
    """One run; `results` grows as it goes on, so that Ctrl-C leaves what there is.

    Attributes:
        options: of the run.
        setup: the device, and the model on the CPU.
        images: different ones, of which every batch is made.
        group: torchrun's processes, or this one alone.
        log: gets the report's lines.
        results: what was found so far.
        device: the device's part of the record, as it is in the main mode.
        interrupted: whether Ctrl-C ended the run.
    """

    def __init__(
        self, options: BenchmarkOptions, setup: Setup, inputs: Inputs, import_ms: float,
        group: Group, log: RunLog,
    ) -> None:  # fmt: skip
        """Preprocess the first image, and note how long that takes."""
        self.options, self.setup, self.group, self.log = options, setup, group, log
        took_ms = []
        for _ in range(PREPROCESSINGS_TIMED):
            start = time.perf_counter()
            preprocessing.preprocess(inputs.first.pixels, setup.steps)
            took_ms.append((time.perf_counter() - start) * MS_PER_S)
        largest = max(options.batch_sizes or (MOST_IMAGES,))
        count = min(MOST_IMAGES, max(2, largest))
        start = time.perf_counter()
        self.images = different_images(setup, inputs, count, group, log)
        references_ms = (time.perf_counter() - start) * MS_PER_S
        self.results = BenchmarkResults(
            mode=options.modes[0].name,
            latency=None,
            throughput=(),
            phases=Phases(
                import_ms=import_ms,
                load_ms=setup.load_ms,
                references_ms=references_ms,
                move_ms=None,
                first_inference_ms=None,
                warm_up_ms=None,
                steady_ms=None,
                preprocessing_ms=statistics.median(took_ms),
                host_to_device_ms=None,
            ),
            memory=Memory(host_peak_bytes(), None, None),
            harness=None,
            ladder=(),
            skipped_modes=(),
            fastest_passing_mode=None,
            fastest_published_mode=None,
            ranks=None,
            scaling_efficiency=None,
            regression=None,
        )
        self.device: DeviceInfo = device_info(setup, ())
        self.interrupted = False
        self.meter = Meter(Stopwatch(setup.device), setup.health, group, log)

    def measure(self) -> None:
        """Measure every mode; on Ctrl-C keep what there is, if there is anything.

        Raises:
            KitError: where the device fails, or the main mode cannot run.
            KeyboardInterrupt: on Ctrl-C before anything was measured.
        """
        try:
            main, *others = self.options.modes
            self.measure_main_mode(main)
            for mode in others:
                self.measure_other_mode(mode)
        except KeyboardInterrupt:
            if self.results.latency is None:
                raise
            self.interrupted = True
            self.log.warning("Interrupted: what was measured is kept and marked partial")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the model's input at batch 1."""
        return (1, *self.images.pixels.shape[1:])

    def device_info(self, cpu_fallbacks: tuple[str, ...] | None) -> DeviceInfo:
        """Return the device's part of the record, once the run is over: as in the main mode."""
        checks = self.setup.health.passed
        return replace(self.device, cpu_fallbacks=cpu_fallbacks, known_answer_checks=checks)

    def measure_main_mode(self, mode: Mode) -> None:
        """Measure the mode that the two tables show.

        Raises:
            KitError: where the device fails or does not have the mode.
            KeyboardInterrupt: on Ctrl-C; `results` holds what there is.
        """
        if reason := modes.missing(mode, self.setup):
            raise KitError(f"mode {mode.name}: {reason}")
        keep = len(self.options.modes) > 1
        with run_mode(self.setup, mode, self.images, keep=keep, log=self.log) as runner:
            pixel_values = runner.input(1, self.log)
            self.log.info(f"Input shape: {pixel_values.shape}")
            self.log.info(f"Device: {self.setup.device.torch_device}")
            self.device = device_info(runner.setup, ())
            with runner.forwards(pixel_values) as call:
                first = self.first_forward(runner, call)
                runner.peaks.take()  # before the check, which has tensors of its own
                with device_errors(f"checking {mode.name}"):
                    checker = Checker(runner, call, pixel_values, first)
                latency = self.main_latency(mode, checker)
            self.device = device_info(with_arithmetic(runner.setup, self.log), ())
            sweep = self.sweep(runner)
            try:
                sweep.run(self.options.batch_sizes)
            except (CaptureError, OutOfDeviceMemoryError) as problem:
                self.end_sweep(mode, problem)
            finally:
                memory, rows = runner.peaks.memory(), tuple(sweep.rows)
                self.results = replace(self.results, memory=memory, throughput=rows)
                if self.options.ladder:
                    self.climb(modes.ladder_row(runner, latency, rows, checker.bits_equal_eager))
                self.keep_scaling(sweep.scaling)

    def measure_other_mode(self, mode: Mode) -> None:
        """Measure a further mode of the ladder; one that cannot run is named and passed over.

        Raises:
            DeviceError: where the device fails other than for want of memory.
            KeyboardInterrupt: on Ctrl-C.
        """
        try:
            if reason := modes.missing(mode, self.setup):
                raise KitError(reason)
            with run_mode(self.setup, mode, self.images, keep=True) as runner:
                self.log.info(f"Measuring {mode.name}...")
                pixel_values = runner.input(1)
                with runner.forwards(pixel_values) as call:
                    with device_errors(f"computing the first forward of {mode.name}"):
                        first = call()
                        runner.peaks.take()
                        checker = Checker(runner, call, pixel_values, first)
                    plan = self.plan(row=True)
                    latency = self.meter.measure(call, 1, plan, mode.name, watch=checker.watch)
                    latency = checked(latency, checker, mode.name, self.group, self.log)
                self.warn(measure.latency_warnings(mode.name, latency))
                sweep = self.sweep(runner)
                try:
                    sweep.run(self.options.batch_sizes)
                except (CaptureError, OutOfDeviceMemoryError) as problem:
                    self.end_sweep(mode, problem)
                finally:
                    row = modes.ladder_row(runner, latency, sweep.rows, checker.bits_equal_eager)
                    self.climb(row)
        except (CaptureError, OutOfDeviceMemoryError) as problem:
            self.setup.health.after(str(problem))
            self.skip(mode, problem)
        except DeviceError:
            raise
        except KitError as problem:
            self.skip(mode, problem)

    def climb(self, row: LadderRow) -> None:
        """Add a mode to the ladder."""
        ladder = (*self.results.ladder, row)
        self.results = replace(
            self.results,
            ladder=ladder,
            fastest_passing_mode=modes.fastest(ladder, published=False),
            fastest_published_mode=modes.fastest(ladder, published=True),
        )

    def end_sweep(self, mode: Mode, problem: KitError) -> None:
        """Warn that a mode's sweep goes no further; what came before it counts.

        Raises:
            DeviceError: where the device no longer computes.
        """
        self.setup.health.after(str(problem))
        self.log.warning(f"The sweep of {mode.name} ends early: {problem}")

    def skip(self, mode: Mode, problem: KitError) -> None:
        """Name a mode that was passed over."""
        skipped = (*self.results.skipped_modes, SkippedMode(mode.name, str(problem)))
        self.results = replace(self.results, skipped_modes=skipped)
        self.log.info(f"Skipped {mode.name}: {problem}")

    def first_forward(self, runner: ModeRunner, call: Call) -> Features:
        """Make the first forward of the process, time a copy, and what timing itself costs.

        Raises:
            DeviceError: where the device fails.
        """
        stopwatch = self.meter.stopwatch
        with device_errors("computing the first forward"):
            with alive(self.log, "The first forward has run"):
                first = stopwatch.time(call)
            copies = [stopwatch.time(lambda: runner.input(1)).wall_ms for _ in range(COPIES_TIMED)]
            empty = [stopwatch.time(lambda: None).wall_ms for _ in range(EMPTY_CALLS_TIMED)]
        self.meter.health.after("the first forward")
        phases = replace(
            self.results.phases,
            move_ms=runner.move_ms,
            first_inference_ms=first.wall_ms,
            host_to_device_ms=None
            if self.setup.device.type == "cpu"
            else statistics.median(copies),
        )
        harness = measure.harness(statistics.median(empty))
        self.results = replace(self.results, phases=phases, harness=harness)
        self.warn(measure.host_warnings(harness))
        return first.output

    def main_latency(self, mode: Mode, checker: Checker) -> Latency:
        """Measure and check the main mode at batch 1, on all ranks at once.

        Raises:
            DeviceError: where the device fails.
            KeyboardInterrupt: on Ctrl-C; the samples until then are kept.
        """
        self.log.info(f"Measuring {mode.name}...")
        try:
            latency = self.meter.measure(
                checker.call, 1, self.plan(row=False), mode.name, watch=checker.watch
            )
        except Interrupted as interrupted:
            self.results = replace(self.results, latency=interrupted.latency)
            raise
        phases, harness = self.results.phases, self.results.harness
        assert harness is not None  # the first forward came before
        harness = replace(harness, overhead_share=harness.overhead_ms / latency.p50_ms)
        warm_up_ms = (phases.first_inference_ms or 0.0) + sum(latency.warm_up.samples_ms)
        phases = replace(phases, warm_up_ms=warm_up_ms, steady_ms=latency.p50_ms)
        self.results = replace(self.results, latency=latency, harness=harness, phases=phases)
        latency = checked(latency, checker, mode.name, self.group, self.log)
        self.results = replace(self.results, latency=latency)
        self.warn(measure.latency_warnings(mode.name, latency))
        self.warn(measure.harness_warnings(harness))
        self.gather_ranks(latency)
        return latency

    def gather_ranks(self, latency: Latency) -> None:
        """Keep every rank's latency at batch 1, where there are several."""
        device = self.setup.device
        own = RankLatency(
            rank=self.group.place.rank,
            host=host_name(),
            torch_device=str(device.torch_device),
            name=device.name,
            latency=statistics.statistics(latency.samples_ms),
        )
        found = tuple(self.group.gather(own, "the latencies"))
        if len(found) > 1:
            self.results = replace(self.results, ranks=Ranks(len(found), found, ()))

    def keep_scaling(self, rows: list[ScalingRow]) -> None:
        """Keep all ranks' throughput, where there are several."""
        if self.results.ranks is None or not rows:
            return
        ranks = replace(self.results.ranks, throughput=tuple(rows))
        best = max(rows, key=lambda row: row.total_throughput_ips)
        efficiency = best.scaling_efficiency
        self.results = replace(self.results, ranks=ranks, scaling_efficiency=efficiency)

    def sweep(self, runner: ModeRunner) -> "Sweep":
        """Return a sweep of this mode, nothing measured yet."""
        return Sweep(runner, self.meter, self.plan(row=True))

    def plan(self, *, row: bool) -> Plan:
        """Return how long to measure: a row of the sweep or the ladder, or the main latency."""
        given = self.options.iterations
        return Plan(
            iterations=given or ITERATIONS,
            warm_up=self.options.warmup,
            min_seconds=self.options.min_seconds,
            limit_s=ROW_LIMIT_S if row and given is None else None,
            window=ROW_WINDOW if row else WINDOW,
        )

    def warn(self, messages: list[str]) -> None:
        """Log warnings, the ones of one matter on one line."""
        if messages:
            self.log.warning("; ".join(messages))


@dataclass
class Sweep:
    """One mode's sweep over batch sizes; under torchrun all ranks make it together.

    Attributes:
        runner: the model in its mode.
        meter: measures.
        plan: for each row.
        rows: the rows so far, in the order they were measured.
        scaling: all ranks' rows so far; none with one process.
    """

    runner: ModeRunner
    meter: Meter
    plan: Plan
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
                self.rows.append(
                    ThroughputRow(batch_size, "out_of_memory", False, None, None, None, None, None)
                )
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
            ready = self.prepared(batch_size, stack)
            if (
                not all(meter.group.gather(ready is not None, "whether the batch fits"))
                or not ready
            ):
                return False
            checker, peak_bytes = ready
            alone = self.measured_alone(checker, batch_size, name)
            latency = None
            try:
                latency = meter.measure(
                    checker.call, batch_size, self.plan, name, watch=checker.watch
                )
                queued_ips = self.queued_throughput(checker, latency, name)
                latency = checked(latency, checker, name, meter.group, meter.log)
            except KeyboardInterrupt as interrupt:
                if isinstance(interrupt, Interrupted):
                    latency = interrupt.latency
                if latency is not None:
                    self.rows.append(row(latency, "interrupted", searched=searched))
                raise
        if latency.check is not None and latency.check.verdict == "FAIL":
            self.rows.append(row(latency, "failed", searched=searched))
            return True
        self.rows.append(row(latency, "measured", queued_ips, peak_bytes, searched=searched))
        if meter.group.size > 1:
            busy = meter.group.gather((latency, alone), "the ranks' throughput")
            self.scaling.append(scaling_row(batch_size, busy))
        return True

    def prepared(
        self, batch_size: int, stack: contextlib.ExitStack, *, told: bool = True
    ) -> tuple[Checker, int | None] | None:
        """Run a batch of this size once.

        Returns:
            What checks its forwards, and the peak of the device's memory in bytes; None where
            the batch does not fit.

        Raises:
            KitError: where the device fails otherwise, or no longer computes.
        """
        name = f"{self.runner.mode.name}, batch {batch_size}"
        try:
            with device_errors(f"preparing {name}"):
                self.runner.peaks.restart()
            pixel_values = self.runner.input(batch_size)
            call = stack.enter_context(self.runner.forwards(pixel_values))
            with device_errors(f"trying {name}"):
                first = call()
                synchronize(self.runner.setup.device)
                peak_bytes = self.runner.peaks.take()  # the check's own tensors come after
                return Checker(self.runner, call, pixel_values, first), peak_bytes
        except OutOfDeviceMemoryError as error:
            if told:
                self.meter.log.warning(f"Batch {batch_size} does not fit: {error}")
        self.meter.health.after(f"{name} ran out of memory")
        return None

    def measured_alone(self, checker: Checker, batch_size: int, name: str) -> Latency | None:
        """Return rank 0's latency while the other ranks wait; None on these, and alone."""
        if self.meter.group.size == 1 or not self.meter.group.place.leads:
            return None
        name = f"{name}, one rank alone"
        return self.meter.measure(
            checker.call, batch_size, self.plan, name, watch=checker.watch, together=False
        )

    def queued_throughput(self, checker: Checker, latency: Latency, name: str) -> float | None:
        """Return images per second where the device is waited for once; None for the CPU.

        Raises:
            DeviceError: where the device fails.
        """
        if self.runner.setup.device.type == "cpu":
            return None
        count = min(latency.iterations, LONGEST_QUEUE)
        with device_errors(f"measuring {name}, waiting once"):
            took_ms = self.meter.stopwatch.time_queued(checker.call, count)
            checker.watch_queued(count)
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
    valid = status != "failed"
    return ThroughputRow(
        batch_size=latency.batch_size,
        status=status,
        searched=searched,
        throughput_ips=latency.batch_size / latency.mean_ms * MS_PER_S if valid else None,
        avg_latency_ms=latency.mean_ms if valid else None,
        queued_throughput_ips=queued_throughput_ips,
        latency=latency,
        device_peak_bytes=device_peak_bytes,
    )


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
