"""A run of benchmark.py: each mode's first forward, latency, features and sweep."""

import contextlib
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from kit import statistics
from kit.benchmark import limit, measure, modes, profile
from kit.benchmark.check import MOST_IMAGES, Checker, checked, different_images
from kit.benchmark.measure import WINDOW, Interrupted, Meter, Plan
from kit.device.arithmetic import OwnGelu
from kit.device.device import device_errors, is_emulated, synchronize
from kit.device.meters import Stopwatch, host_peak_bytes
from kit.distributed import Group
from kit.errors import CaptureError, DeviceError, KitError, OutOfDeviceMemoryError
from kit.model import preprocessing
from kit.model.images import Inputs, decode
from kit.model.model import Features
from kit.model.runner import Call, ModeRunner, run_mode
from kit.model.setup import Setup, device_info, model_input, with_arithmetic
from kit.options import BenchmarkOptions, Mode, Precision, script_words
from kit.output import RunLog, alive
from kit.records import (
    BenchmarkResults,
    DeviceArithmetic,
    DeviceInfo,
    LadderRow,
    Latency,
    Memory,
    Phases,
    Profile,
    RankLatency,
    Ranks,
    RowStatus,
    ScalingRow,
    SkippedMode,
    Stage,
    ThroughputRow,
)

ITERATIONS = 20
ROW_LIMIT_S = 5.0  # without --iterations, a row of the sweep or the ladder takes about this long
ROW_WINDOW = 3  # the process is warm by then: a row needs less of a warm-up
CALLS_TIMED, CALLS_S = 5, 0.3  # of decoding, preprocessing, copying a batch
COPIES_TIMED = 20
EMPTY_CALLS_TIMED = 100
LEAST_SHARE_S = 1.0  # of the ladder's time, for one row
MAIN_SHARE = 0.25  # of the ladder's time, for the main mode at batch 1
FAR_SLOWER = 2.0  # times the main mode's forward: such a mode is the fastest of no ladder
AUTO_LIMIT = 4096  # images; far beyond what a device needs to be busy
GAIN = 1.02  # by which one of two doublings must raise the throughput for auto to go on
SWEPT_BESIDE_MAIN = 2  # modes of the ladder, the fastest
LONGEST_QUEUE = 100  # forwards that are given without waiting
LONGEST_QUEUED_MS = 100.0  # of a forward; beside a longer one the wait for it is nothing
DOUBLINGS = 6  # that auto is expected to make
MS_PER_S = 1e3


class Run:
    """One run; `results` grows as it goes on, so that Ctrl-C leaves what there is."""

    def __init__(
        self, options: BenchmarkOptions, setup: Setup, inputs: Inputs, import_ms: float,
        group: Group, log: RunLog, own_gelu: OwnGelu | None = None,
    ) -> None:  # fmt: skip
        """Time decoding and preprocessing, and compute the references on the CPU.

        `own_gelu` makes a context in which GELU is the chip's own; None where it always is.
        """
        self.options, self.setup, self.group, self.log = options, setup, group, log
        self.own_gelu = own_gelu
        pixels, path = inputs.first.pixels, inputs.first.path
        preprocessing_ms = median_ms(lambda: preprocessing.preprocess(pixels, setup.steps))
        decode_ms = median_ms(lambda: decode(path))
        count = min(MOST_IMAGES, max(2, *(options.batch_sizes or (MOST_IMAGES,))))
        start = time.perf_counter()
        self.images = different_images(setup, inputs, count, group, log)  # every batch is of these
        references_ms = (time.perf_counter() - start) * MS_PER_S
        one = self.images.pixels[:1]
        # The operators of one image's forward; none on ranks but the first.
        self.asked = limit.operators(setup.model, one) if group.place.leads else ()
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
                preprocessing_ms=preprocessing_ms,
                host_to_device_ms=None,
                decode_ms=decode_ms,
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
        self.device: DeviceInfo = device_info(setup, ())  # as it is in the main mode
        # What the device computes in, by precision; None for the CPU.
        self.measured: dict[Precision, DeviceArithmetic | None] = {}
        self.too_slow: dict[Mode, float] = {}  # s of a forward that a mode was passed over for
        self.interrupted = False  # by Ctrl-C
        self.meter = Meter(Stopwatch(setup.device), setup.health, group, log)
        self.time = Budget(options, len(options.modes), 1)

    def measure(self) -> None:
        """Measure every mode; on Ctrl-C keep what there is, if there is anything.

        The ladder has every mode at batch 1 before any sweep, so that the question which one is
        fastest is answered first. A KitError where the device fails, or the main mode cannot run.
        """
        main, *others = self.options.modes
        if reason := self.missing(main):
            raise KitError(f"mode {main.name}: {reason}")
        try:
            others = self.available(others)
            sweeps = min(len(others), SWEPT_BESIDE_MAIN) + 1
            self.time = Budget(self.options, len(others) + 1, sweeps)
            self.measure_mode(main)
            for mode in others:
                self.log.info(self.time.step())
                with self.passing_over(mode):
                    self.require_time(mode)
                    self.measure_mode(mode)
            for mode in self.worth_a_sweep(main, others) if self.options.ladder else ():
                self.log.info(self.time.step())
                with self.passing_over(mode):
                    if mode != main:
                        self.require_time(mode)
                    with self.running(mode) as runner:
                        self.log.info(f"Measuring {mode.name} over the batch sizes...")
                        self.sweep(self.with_arithmetic(runner))
            if self.asked:
                try:
                    self.results = self.limited(main)
                except DeviceError as error:  # everything else is measured and checked
                    self.log.warning(f"No limit: {error}")
        except KeyboardInterrupt:
            if self.results.latency is None:
                raise
            self.interrupted = True
            self.log.warning("Interrupted: what was measured is kept and marked partial")

    def limited(self, main: Mode) -> BenchmarkResults:
        """Return the results with what the device reaches, each row and a stream held against it.

        A DeviceError where the device fails.
        """
        setup, stopwatch = self.setup, self.meter.stopwatch
        measured = {main.name, *(row.mode for row in self.results.ladder)}
        ran = [mode for mode in self.options.modes if mode.name in measured]
        found = limit.measure(stopwatch, self.asked, setup.model_info.parameters, ran)
        results = limit.applied(self.results, found, self.asked, ran)
        row, phases, bound = limit.best_row(results), results.phases, None
        if row is not None and row.latency is not None:
            stages: dict[Stage, float] = {
                "decode": phases.decode_ms or 0.0,
                "preprocessing": phases.preprocessing_ms or 0.0,
                "forward": row.latency.mean_ms / row.batch_size,
            }
            on_cpu = setup.device.type == "cpu"
            if not on_cpu:
                pixels = self.images.pixels[self.images.places(row.batch_size)]
                with device_errors("copying a batch to the device"):
                    copy_ms = median_ms(lambda: stopwatch.time(lambda: model_input(setup, pixels)))
                stages["copy"] = copy_ms / row.batch_size
            ips, stage = limit.pipeline(stages, on_cpu=on_cpu)
            phases = replace(phases, pipeline_ips=ips, pipeline_stage=stage)
            noise_ms = statistics.spread(row.latency.samples_ms) / row.batch_size
            bound = limit.bound_of_stream(stages, noise_ms, row.bound)
        self.setup.health.after("measuring the device's limit")
        assert results.limit is not None
        found = replace(results.limit, bound=bound, summary=limit.summary(results, main))
        return replace(results, phases=phases, limit=found)

    def profile(self) -> tuple[Profile, bytes]:
        """Return where a forward of the main mode spends its time, and the trace as JSON.

        A KitError where the device fails.
        """
        mode = self.options.modes[0]
        self.log.info(f"Profiling {mode.name}...")
        with (
            self.running(mode) as runner,
            runner.forwards(runner.input(1)) as call,
            device_errors(f"profiling {mode.name}"),
        ):
            found, trace = profile.measure(self.setup.device, call, graph=mode.graph)
        if found.problem is not None:
            self.log.warning(f"The profile has the host's part alone: {found.problem}")
        return found, trace

    # ---- Which modes -----------------------------------------------------------------------------

    def available(self, asked: list[Mode]) -> list[Mode]:
        """Return the modes that the device may have; name the others in one line."""
        reasons = {mode: reason for mode in asked if (reason := self.missing(mode))}
        if reasons:
            skipped = tuple(SkippedMode(mode.name, reason) for mode, reason in reasons.items())
            self.results = replace(self.results, skipped_modes=skipped)
            self.log.info(f"Not on this device: {'; '.join(modes.together(skipped))}")
        return [mode for mode in asked if mode not in reasons]

    def missing(self, mode: Mode) -> str | None:
        """Return why the device does not have a mode, as far as it is known now."""
        named = self.options.named
        return modes.missing(mode, self.setup, self.device, self.own_gelu, named=named)

    def require_time(self, mode: Mode) -> None:
        """Raise a KitError where the ladder has no time to compile a mode or to capture it."""
        if (took_s := self.too_slow.get(replace(mode, graph=False))) is not None:
            raise KitError(
                f"a forward without the graph takes {took_s:.1f} s, too long for "
                f"--budget {self.options.budget:g}: raise it to measure this mode"
            )
        if mode.compiled and not self.time.left_s():
            raise KitError(
                f"--budget {self.options.budget:g} is used up before it is compiled: raise it"
            )

    def worth_a_sweep(self, main: Mode, others: list[Mode]) -> list[Mode]:
        """Return the main mode and the fastest of the others that pass."""
        passing = [row for row in self.results.ladder if row.verdict != "FAIL"]
        names = [row.mode for row in sorted(passing, key=lambda row: row.latency.p50_ms)]
        best = [mode for name in names for mode in others if mode.name == name]
        self.time.sweeps = len(best[:SWEPT_BESIDE_MAIN]) + 1
        return [main, *best[:SWEPT_BESIDE_MAIN]]

    @contextlib.contextmanager
    def passing_over(self, mode: Mode) -> Iterator[None]:
        """Name a mode that cannot run, and go on; one that the ladder has loses its sweep alone.

        A device that fails other than for want of memory ends the run with a DeviceError.
        """
        try:
            yield
        except KitError as problem:
            if isinstance(problem, DeviceError) and not isinstance(problem, OutOfDeviceMemoryError):
                raise
            self.setup.health.after(str(problem))
            if any(row.mode == mode.name for row in self.results.ladder):
                self.end_sweep(mode, problem)
            else:
                skipped = (*self.results.skipped_modes, SkippedMode(mode.name, str(problem)))
                self.results = replace(self.results, skipped_modes=skipped)
                self.log.info(f"Skipped {mode.name}: {problem}")

    def end_sweep(self, mode: Mode, problem: KitError) -> None:
        """Warn that a mode's sweep goes no further, if the device still computes."""
        self.setup.health.after(str(problem))
        self.log.warning(f"The sweep of {mode.name} ends early: {problem}")

    # ---- One mode --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self, mode: Mode, *, first: bool = False) -> Iterator[ModeRunner]:
        """Run a mode; a KitError where, as far as is known by now, the device does not have it."""
        if reason := self.missing(mode):
            raise KitError(reason)
        own_gelu = self.own_gelu if mode.chip_gelu else None
        keep, log = not first or self.options.ladder, self.log if first else None
        with (
            own_gelu() if own_gelu else contextlib.nullcontext(),
            run_mode(self.setup, mode, self.images, keep=keep, log=log) as runner,
        ):
            yield runner

    def with_arithmetic(self, runner: ModeRunner) -> ModeRunner:
        """Return the runner with what the device computes in, measured once for each precision.

        A KitError where fp32 was asked for and products are reduced all the same.
        """
        precision = runner.mode.precision
        if precision not in self.measured:
            own_gelu = self.own_gelu if self.options.ladder else None  # another mode may need it
            setup = with_arithmetic(runner.setup, self.log, own_gelu)
            self.measured[precision] = setup.arithmetic
        setup = replace(runner.setup, arithmetic=self.measured[precision])
        return replace(runner, setup=setup)

    def measure_mode(self, mode: Mode) -> None:
        """Measure a mode at batch 1, and where it is the only one over the batch sizes, too.

        A KitError where it cannot run or the device fails; on Ctrl-C `results` holds what there is.
        """
        first = mode == self.options.modes[0]  # which the two tables show
        plan = self.plan(1, row=not first)
        with self.running(mode, first=first) as runs:
            pixel_values = runs.input(1, log=self.log if first else None)
            if first:
                self.log.info(f"Input shape: {pixel_values.shape}")
                self.log.info(f"Device: {self.setup.device.torch_device}")
            else:
                self.log.info(f"Measuring {mode.name}...")
            with runs.forwards(pixel_values) as call:
                features = (self.first_forward if first else self.first_in_time)(runs, call)
                runs.peaks.take()  # before the check, which has tensors of its own
                runner = self.with_arithmetic(runs)
                if first:
                    self.device = device_info(runner.setup, ())
                    self.log.info(f"Measuring {mode.name}...")
                with device_errors(f"checking {mode.name}"):
                    checker = Checker(runner, self.meter.stopwatch, call, pixel_values, features)
                latency = self.latency(checker, plan)
            if first:
                self.results = replace(self.results, memory=runner.peaks.memory())
            if self.options.ladder:
                self.climb(modes.ladder_row(runner, latency, (), checker.bits_equal_eager))
            else:
                self.sweep(runner)

    def first_forward(self, runner: ModeRunner, call: Call) -> Features:
        """Make the first forward of the process, time a copy, and what timing itself costs."""
        stopwatch = self.meter.stopwatch
        with device_errors("computing the first forward"):
            with alive(self.log):
                first = stopwatch.time(call)
            copies = [stopwatch.time(lambda: runner.input(1)).wall_ms for _ in range(COPIES_TIMED)]
            empty = [stopwatch.time(lambda: None).wall_ms for _ in range(EMPTY_CALLS_TIMED)]
        self.meter.health.after("the first forward")
        on_cpu = self.setup.device.type == "cpu"
        phases = replace(
            self.results.phases,
            move_ms=runner.move_ms,
            first_inference_ms=first.wall_ms,
            host_to_device_ms=None if on_cpu else statistics.median(copies),
        )
        harness = measure.harness(statistics.median(empty))
        self.results = replace(self.results, phases=phases, harness=harness)
        self.warn(measure.host_warnings(harness))
        return first.output

    def first_in_time(self, runner: ModeRunner, call: Call) -> Features:
        """Return a further mode's first forward.

        A KitError where one forward, and not its compilation, takes more than a row's time, and far
        longer than one in the main mode.
        """
        assert self.results.latency is not None  # the main mode came first
        most_ms = max(self.time.share_s() * MS_PER_S, FAR_SLOWER * self.results.latency.p50_ms)
        with device_errors(f"computing the first forward of {runner.mode.name}"):
            first = self.meter.stopwatch.time(call)
            again_ms = self.meter.stopwatch.time(call).wall_ms if first.wall_ms > most_ms else 0.0
        if again_ms > most_ms:
            self.too_slow[runner.mode] = again_ms / MS_PER_S
            raise KitError(
                f"a forward takes {again_ms / MS_PER_S:.1f} s, too long for "
                f"--budget {self.options.budget:g}: raise it to measure this mode"
            )
        return first.output

    def latency(self, checker: Checker, plan: Plan) -> Latency:
        """Measure and check a mode at batch 1, on all ranks at once; keep the first one's.

        A DeviceError where the device fails; on Ctrl-C the first one's samples until then are kept.
        """
        name, first = checker.runner.mode.name, self.results.latency is None
        try:
            latency = self.meter.measure(
                checker.call, 1, plan, name, warm_up=checker.warm_up, watch=checker.watch
            )
        except Interrupted as interrupted:
            if first:
                self.results = replace(self.results, latency=interrupted.latency)
            raise
        phases, harness = self.results.phases, self.results.harness
        assert harness is not None  # the first forward came before
        if first:
            harness = replace(harness, overhead_share=harness.overhead_ms / latency.p50_ms)
            warm_up_ms = (phases.first_inference_ms or 0.0) + sum(latency.warm_up.samples_ms)
            phases = replace(phases, warm_up_ms=warm_up_ms, steady_ms=latency.p50_ms)
            self.results = replace(self.results, latency=latency, harness=harness, phases=phases)
        latency = checked(latency, checker, name, self.group, self.log)
        self.warn(measure.latency_warnings(name, latency))
        if not first:
            return latency
        self.results = replace(self.results, latency=latency)
        self.warn(measure.harness_warnings(harness))
        own = RankLatency(
            rank=self.group.place.rank,
            host=platform.node(),
            torch_device=str(self.setup.device.torch_device),
            name=self.setup.device.name,
            latency=statistics.statistics(latency.samples_ms),
        )
        found = tuple(self.group.gather(own, "the latencies"))
        if len(found) > 1:
            self.results = replace(self.results, ranks=Ranks(len(found), found, ()))
        return latency

    def sweep(self, runner: ModeRunner) -> None:
        """Measure a mode over the batch sizes, and keep its rows whatever ends them."""
        sweep = Sweep(runner, self.meter, self.plan)
        try:
            sweep.run(self.options.batch_sizes)
        except (CaptureError, OutOfDeviceMemoryError) as problem:
            self.end_sweep(runner.mode, problem)
        finally:
            rows = tuple(sweep.rows)
            if runner.mode == self.options.modes[0]:
                memory = modes.larger(self.results.memory, runner.peaks.memory())
                self.results = replace(self.results, memory=memory, throughput=rows)
            at_1 = next((r for r in self.results.ladder if r.mode == runner.mode.name), None)
            if at_1 is not None:
                row = modes.ladder_row(runner, at_1.latency, rows, at_1.bits_equal_eager)
                memory = modes.larger(at_1.memory, row.memory)
                self.climb(replace(row, memory=memory, compile_ms=at_1.compile_ms))
            if self.results.ranks is not None and sweep.scaling:
                best = max(sweep.scaling, key=lambda row: row.total_throughput_ips)
                ranks = replace(self.results.ranks, throughput=tuple(sweep.scaling))
                efficiency = best.scaling_efficiency
                self.results = replace(self.results, ranks=ranks, scaling_efficiency=efficiency)

    def climb(self, row: LadderRow) -> None:
        """Put a mode into the ladder, in its old place where it has one."""
        rows = {one.mode: one for one in self.results.ladder} | {row.mode: row}
        ladder = tuple(rows.values())
        fastest = modes.fastest(ladder, published=False)
        self.results = replace(
            self.results,
            ladder=ladder,
            fastest_passing_mode=fastest,
            fastest_passing_command=fastest and command(self.options, fastest),
            fastest_published_mode=modes.fastest(ladder, published=True),
        )

    def plan(self, batch_size: int, *, row: bool) -> Plan:
        """Return how long to measure: a row of the sweep or the ladder, or the main latency.

        A row's time in the ladder begins now: its first forward, capture and check are part of it.
        """
        given, ladder = self.options.iterations, self.options.ladder
        share_s = self.time.share_s(batch_size) if row else MAIN_SHARE * self.options.budget
        limit_s = ROW_LIMIT_S if row else share_s if ladder else None
        return Plan(
            iterations=given or ITERATIONS,
            warm_up=self.options.warmup,
            min_seconds=self.options.min_seconds,
            limit_s=limit_s if given is None else None,
            window=ROW_WINDOW if row else WINDOW,
            until=time.monotonic() + share_s if ladder else None,
        )

    def warn(self, messages: list[str]) -> None:
        """Log warnings, the ones of one matter on one line."""
        if messages:
            self.log.warning("; ".join(messages))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the model's input at batch 1."""
        return (1, *self.images.pixels.shape[1:])

    def device_info(self, cpu_fallbacks: tuple[str, ...] | None) -> DeviceInfo:
        """Return the device's part of the record, once the run is over: as in the main mode."""
        checks = self.setup.health.passed
        return replace(self.device, cpu_fallbacks=cpu_fallbacks, known_answer_checks=checks)


@dataclass
class Budget:
    """The ladder's time, shared among the rows that are still to come."""

    options: BenchmarkOptions
    modes: int  # to be measured at batch 1
    sweeps: int  # to follow
    done: int = 0  # modes and sweeps that are finished
    started: float = field(default_factory=time.monotonic)  # in s of that clock
    main_s: float = 0.0  # what the first mode took, which is measured at length

    def work(self, first: int, last: int | None = None) -> float:
        """Return what steps cost, in rows at batch 1: from one on, up to another or the last."""
        swept = sum(map(work_of, self.options.batch_sizes or doubling()[:DOUBLINGS]))
        steps = range(first, self.modes + self.sweeps if last is None else last)
        return sum(1.0 if step < self.modes else swept for step in steps)

    def left_s(self) -> float:
        """Return what is left of --budget, in s."""
        return max(0.0, self.started + self.options.budget - time.monotonic())

    def share_s(self, batch_size: int = 1) -> float:
        """Return what a row may take, in s; where the time is up, the least that tells anything."""
        share = work_of(batch_size) / max(1.0, self.work(self.done))
        return max(LEAST_SHARE_S, self.left_s() * share)

    def step(self) -> str:
        """Finish a mode or a sweep; return how many there are, and about how long the rest takes.

        As long as the rows so far without the first; after that one the budget's rest at most.
        """
        self.done += 1
        took_s, work = time.monotonic() - self.started, self.work(self.done)
        if self.done == 1:
            self.main_s = took_s
            left_s = min(took_s * work, self.left_s())
        else:
            left_s = (took_s - self.main_s) / self.work(1, self.done) * work
        words = f"about {left_s / 60:.0f} min" if left_s >= 45 else "less than a minute"
        return f"{self.done} of {self.modes + self.sweeps}, {words} left"


def work_of(batch_size: int) -> float:
    """Return what a row costs, in rows at batch 1: half of it grows with the batch."""
    return (1 + batch_size) / 2


@dataclass
class Sweep:
    """One mode's sweep over batch sizes; under torchrun all ranks make it together."""

    runner: ModeRunner
    meter: Meter
    plan: Callable[..., Plan]  # gives the plan of a row, as it is then
    rows: list[ThroughputRow] = field(default_factory=list)  # in the order they were measured
    scaling: list[ScalingRow] = field(default_factory=list)  # of all ranks; none with one process

    def run(self, batch_sizes: Iterable[int] | None) -> None:
        """Measure the batch sizes in ascending order; None doubles until nothing is gained.

        Running out of memory ends the sweep: the row says so, and the largest batch below it that
        runs is measured after it. A KitError where the device fails otherwise; `rows` holds what
        there is, on Ctrl-C too.
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
        """Measure one batch size and add its row; return False where it does not fit."""
        meter, name = self.meter, f"{self.runner.mode.name}, batch {batch_size}"
        plan = self.plan(batch_size, row=True)
        with contextlib.ExitStack() as stack:
            ready = self.prepared(batch_size, stack)
            if not all(meter.group.gather(ready is not None, "whether the batch fits")):
                return False
            assert ready is not None
            checker, peak_bytes = ready
            timed = partial(
                meter.measure, checker.call, batch_size,
                warm_up=checker.warm_up, watch=checker.watch,
            )  # fmt: skip
            alone = latency = None
            if meter.group.size > 1 and meter.group.place.leads:  # the other ranks wait
                alone = timed(plan, f"{name}, one rank alone", together=False)
            try:
                latency = timed(plan, name)
                queued_ips = self.queued_throughput(checker, latency, name)
                latency = checked(latency, checker, name, meter.group, meter.log)
            except KeyboardInterrupt as interrupt:
                if isinstance(interrupt, Interrupted):
                    latency = interrupt.latency
                if latency is not None:
                    self.rows.append(row(latency, "interrupted", searched))
                raise
        if latency.check is not None and latency.check.verdict == "FAIL":
            self.rows.append(row(latency, "failed", searched))
            return True
        self.rows.append(row(latency, "measured", searched, queued_ips, peak_bytes))
        if meter.group.size > 1:
            busy = meter.group.gather((latency, alone), "the ranks' throughput")
            self.scaling.append(scaling_row(batch_size, busy))
        return True

    def prepared(
        self, batch_size: int, stack: contextlib.ExitStack, *, told: bool = True
    ) -> tuple[Checker, int | None] | None:
        """Run a batch of this size once; None where it does not fit.

        Returns what checks its forwards, and the peak of the device's memory in bytes. A KitError
        where the device fails otherwise, or no longer computes.
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
                stopwatch = self.meter.stopwatch
                return Checker(self.runner, stopwatch, call, pixel_values, first), peak_bytes
        except OutOfDeviceMemoryError as error:
            if told:
                self.meter.log.warning(f"Batch {batch_size} does not fit: {error}")
        self.meter.health.after(f"{name} ran out of memory")
        return None

    def queued_throughput(self, checker: Checker, latency: Latency, name: str) -> float | None:
        """Return images per second where the device is waited for once.

        None for the CPU, and where a forward is so long that the wait is nothing beside it.
        """
        if self.runner.setup.device.type == "cpu" or latency.p50_ms > LONGEST_QUEUED_MS:
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
            everywhere = all(self.meter.group.gather(here, "whether the batch fits"))
            fits, fails = (middle, fails) if everywhere else (fits, middle)
        if fits > largest:
            self.measured(fits, searched=True)

    def gains(self) -> bool:
        """Return whether one of the last two doublings raised the throughput by GAIN."""
        speeds = [r.throughput_ips or 0.0 for r in self.rows]
        return len(speeds) < 3 or max(speeds[-2:]) > GAIN * max(speeds[:-2])


def command(options: BenchmarkOptions, mode: str) -> str:
    """Return the command that runs a mode alone, with a run's model, image and device."""
    words = ["python3", *script_words("benchmark", emulated=is_emulated())]
    words += ["--modes", mode]
    for option in ("device", "weights", "image", "size", "seed"):
        value = getattr(options, option)
        if value not in (None, "auto", 0):
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def median_ms(call: Callable[[], object]) -> float:
    """Return the median wall-clock ms of a call, of a few or of as many as take CALLS_S."""
    took_ms: list[float] = []
    began = time.perf_counter()
    while len(took_ms) < CALLS_TIMED and (not took_ms or time.perf_counter() - began < CALLS_S):
        start = time.perf_counter()
        call()
        took_ms.append((time.perf_counter() - start) * MS_PER_S)
    return statistics.median(took_ms)


def doubling() -> list[int]:
    """Return 1, 2, 4 ... up to AUTO_LIMIT."""
    return [1 << n for n in range(AUTO_LIMIT.bit_length())]


def row(
    latency: Latency, status: RowStatus, searched: bool, queued_ips: float | None = None,
    peak_bytes: int | None = None,
) -> ThroughputRow:  # fmt: skip
    """Return a row from its samples; one whose check failed has no throughput."""
    size, mean_ms = latency.batch_size, latency.mean_ms
    if status == "failed":
        return ThroughputRow(size, status, searched, None, None, None, latency, None)
    ips = size / mean_ms * MS_PER_S
    return ThroughputRow(size, status, searched, ips, mean_ms, queued_ips, latency, peak_bytes)


def scaling_row(batch_size: int, busy: list[tuple[Latency, Latency | None]]) -> ScalingRow:
    """Return all ranks' row.

    `busy` has each rank's latency while all work; beside the first one, rank 0's alone.
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
