"""The course of a run: each mode's first forward, latency, features and sweep."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from kit import statistics
from kit.benchmark import conditions, ladder
from kit.benchmark.found import Found
from kit.benchmark.measure import WINDOW, Interrupted, Meter, Plan
from kit.benchmark.runner import ModeRunner, run_mode
from kit.benchmark.sweep import Sweep
from kit.device.device import device_errors
from kit.device.meters import Stopwatch
from kit.distributed import Group, host_name
from kit.errors import CaptureError, DeviceError, KitError, OutOfDeviceMemoryError
from kit.model import preprocessing
from kit.model.images import Inputs
from kit.model.model import Features, require_finite, to_host
from kit.model.setup import Setup, device_info
from kit.options import BenchmarkOptions, Mode
from kit.output import RunLog
from kit.progress import Progress
from kit.records import Latency, RankLatency, SkippedMode

ITERATIONS = 20
ROW_LIMIT_S = 5.0  # without --iterations, a row of the sweep or the ladder takes about this long
ROW_WINDOW = 3  # the process is warm by then: a row needs less of a warm-up
PREPROCESSINGS_TIMED = 5
COPIES_TIMED = 20
EMPTY_CALLS_TIMED = 100


@dataclass
class Course:
    """One run.

    Attributes:
        options: of the run.
        setup: the device, and the model on the CPU.
        inputs: the images; the first is used.
        group: torchrun's processes, or this one alone.
        progress: shows how far the run is.
        log: gets the report's lines.
        found: filled as the run goes on.
    """

    options: BenchmarkOptions
    setup: Setup
    inputs: Inputs
    group: Group
    progress: Progress
    log: RunLog
    found: Found

    def __post_init__(self) -> None:
        """Make what measures."""
        stopwatch = Stopwatch(self.setup.device)
        self.meter = Meter(stopwatch, self.setup.health, self.group, self.progress)

    def run(self, pixels: torch.Tensor) -> None:
        """Measure every mode; on Ctrl-C keep what there is, if there is anything.

        Args:
            pixels: one preprocessed image, float32 on the CPU.

        Raises:
            KitError: where the device fails, or the main mode cannot run.
            KeyboardInterrupt: on Ctrl-C before anything was measured.
        """
        try:
            reference = ladder.reference(self.setup, pixels) if self.options.ladder else None
            main, *others = self.options.modes
            self.measure_main_mode(main, pixels, reference)
            for mode in others:
                self.measure_other_mode(mode, pixels, reference)
        except KeyboardInterrupt:
            if self.found.latency is None:
                raise
            self.found.interrupted = True
            self.log.warning("Interrupted: what was measured is kept and marked partial")

    def preprocess(self) -> torch.Tensor:
        """Return the first image's input, and note how long preprocessing takes."""
        took_ms = []
        for _ in range(PREPROCESSINGS_TIMED):
            start = time.perf_counter()
            pixels = preprocessing.preprocess(self.inputs.first.pixels, self.setup.steps)
            took_ms.append((time.perf_counter() - start) * 1e3)
        self.found.note(preprocessing_ms=statistics.median(took_ms))
        self.found.input_shape = tuple(pixels.shape)
        return pixels

    def measure_main_mode(
        self, mode: Mode, pixels: torch.Tensor, reference: Features | None
    ) -> None:
        """Measure the mode that the two tables show.

        Raises:
            KitError: where the device fails or does not have the mode.
            KeyboardInterrupt: on Ctrl-C; `found` holds what there is.
        """
        if reason := ladder.missing(mode, self.setup):
            raise KitError(f"mode {mode.name}: {reason}")
        keep = reference is not None
        with run_mode(self.setup, mode, pixels, keep=keep, log=self.log) as runner:
            pixel_values = runner.input(1, self.log)
            self.log.info(f"Input shape: {pixel_values.shape}")
            self.log.info(f"Device: {self.setup.device.torch_device}")
            self.found.device = device_info(runner.setup, ())
            with runner.forwards(pixel_values) as call:
                self.first_forward(runner, call, check=reference is None)
                latency = self.main_latency(mode, call)
                error = reference and ladder.error(runner, call, pixel_values, reference)
            runner.peaks.take()
            sweep = self.sweep(runner)
            self.found.throughput, self.found.scaling = sweep.rows, sweep.scaling
            try:
                sweep.run(self.options.batch_sizes)
            finally:
                self.found.memory = conditions.memory(runner.peaks)
                if error:
                    self.found.ladder.append(
                        ladder.row(mode, latency, sweep.rows, self.found.memory, error)
                    )

    def measure_other_mode(
        self, mode: Mode, pixels: torch.Tensor, reference: Features | None
    ) -> None:
        """Measure a further mode of the ladder; one that cannot run is named and passed over.

        Raises:
            DeviceError: where the device fails other than for want of memory.
            KeyboardInterrupt: on Ctrl-C.
        """
        assert reference is not None  # there is a ladder, or there were no other modes
        try:
            if reason := ladder.missing(mode, self.setup):
                raise KitError(reason)
            with run_mode(self.setup, mode, pixels, keep=True) as runner:
                self.log.info(f"Measuring {mode.name}...")
                pixel_values = runner.input(1)
                with runner.forwards(pixel_values) as call:
                    latency = self.meter.measure(call, 1, self.plan(row=True), mode.name)
                    error = ladder.error(runner, call, pixel_values, reference)
                self.warn(conditions.latency_warnings(mode.name, latency))
                runner.peaks.take()
                sweep = self.sweep(runner)
                try:
                    sweep.run(self.options.batch_sizes)
                finally:
                    memory = conditions.memory(runner.peaks)
                    self.found.ladder.append(ladder.row(mode, latency, sweep.rows, memory, error))
        except (CaptureError, OutOfDeviceMemoryError) as problem:
            self.setup.health.after(str(problem))
            self.skip(mode, problem)
        except DeviceError:
            raise
        except KitError as problem:
            self.skip(mode, problem)

    def skip(self, mode: Mode, problem: KitError) -> None:
        """Name a mode that was passed over."""
        self.found.skipped.append(SkippedMode(mode.name, str(problem)))
        self.log.info(f"Skipped {mode.name}: {problem}")

    def first_forward(
        self, runner: ModeRunner, call: Callable[[], Features], *, check: bool
    ) -> None:
        """Make the first forward of the process, time a copy, and what timing itself costs.

        Raises:
            KitError: where the device fails, or with `check` where a feature is not finite.
        """
        stopwatch = self.meter.stopwatch
        with device_errors("computing the first forward"):
            first = stopwatch.time(call)
            copies = [stopwatch.time(lambda: runner.input(1)).wall_ms for _ in range(COPIES_TIMED)]
            empty = [stopwatch.time(lambda: None).wall_ms for _ in range(EMPTY_CALLS_TIMED)]
        self.meter.health.after("the first forward")
        if check:
            require_finite(to_host(first.output))
        on_cpu = self.setup.device.type == "cpu"
        self.found.note(
            move_ms=runner.move_ms,
            first_inference_ms=first.wall_ms,
            host_to_device_ms=None if on_cpu else statistics.median(copies),
        )
        self.found.harness = conditions.harness(statistics.median(empty))
        self.warn(conditions.host_warnings(self.found.harness))

    def main_latency(self, mode: Mode, call: Callable[[], Features]) -> Latency:
        """Measure the main mode at batch 1, on all ranks at once.

        Raises:
            DeviceError: where the device fails.
            KeyboardInterrupt: on Ctrl-C; the samples until then are kept.
        """
        self.log.info(f"Measuring {mode.name}...")
        try:
            latency = self.meter.measure(call, 1, self.plan(row=False), mode.name)
        except Interrupted as interrupted:
            self.found.latency = interrupted.latency
            raise
        harness = self.found.harness
        assert harness is not None  # the first forward came before
        harness = replace(harness, overhead_share=harness.overhead_ms / latency.p50_ms)
        self.found.latency, self.found.harness = latency, harness
        self.found.note(
            warm_up_ms=(self.found.phases.first_inference_ms or 0.0)
            + sum(latency.warm_up.samples_ms),
            steady_ms=latency.p50_ms,
        )
        self.warn(conditions.latency_warnings(mode.name, latency))
        self.warn(conditions.harness_warnings(harness))
        self.found.ranks = self.group.gather(self.rank_latency(latency), "the latencies")
        return latency

    def rank_latency(self, latency: Latency) -> RankLatency:
        """Return this rank's part of the record."""
        device = self.setup.device
        return RankLatency(
            rank=self.group.place.rank,
            host=host_name(),
            torch_device=str(device.torch_device),
            name=device.name,
            latency=statistics.statistics(latency.samples_ms),
        )

    def sweep(self, runner: ModeRunner) -> Sweep:
        """Return a sweep of this mode, nothing measured yet."""
        return Sweep(runner, self.meter, self.plan(row=True), self.log)

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
