"""What a run has found so far: filled as it goes on, so that Ctrl-C leaves what there is."""

import time
from dataclasses import dataclass, field, replace

from kit.benchmark import ladder
from kit.device.device import Device
from kit.host_memory import host_peak_bytes
from kit.model.images import Inputs
from kit.model.setup import Setup, set_up
from kit.options import BenchmarkOptions
from kit.output import RunLog
from kit.records import (
    BenchmarkResults,
    DeviceInfo,
    Harness,
    LadderRow,
    Latency,
    Memory,
    Phases,
    RankLatency,
    Ranks,
    Regression,
    ScalingRow,
    SkippedMode,
    ThroughputRow,
)


@dataclass
class Found:
    """The parts of the results, and the device as it was in the main mode."""

    phases: Phases
    device: DeviceInfo | None = None
    input_shape: tuple[int, ...] = ()
    latency: Latency | None = None
    throughput: list[ThroughputRow] = field(default_factory=list)
    scaling: list[ScalingRow] = field(default_factory=list)
    ranks: list[RankLatency] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(host_peak_bytes(), None, None))
    harness: Harness | None = None
    ladder: list[LadderRow] = field(default_factory=list)
    skipped: list[SkippedMode] = field(default_factory=list)
    interrupted: bool = False

    def note(self, **phases_ms: float | None) -> None:
        """Keep the times of phases, by their names in Phases."""
        self.phases = replace(self.phases, **phases_ms)  # type: ignore[arg-type] # names of floats

    def device_info(self, cpu_fallbacks: tuple[str, ...] | None, checks: int) -> DeviceInfo:
        """Return the device's part of the record, once the run is over."""
        assert self.device is not None  # it is noted before anything is measured
        return replace(self.device, cpu_fallbacks=cpu_fallbacks, known_answer_checks=checks)

    def results(self, mode: str, regression: Regression | None) -> BenchmarkResults:
        """Return the record's results."""
        fastest = ladder.fastest(self.ladder)
        best = max(self.scaling, key=lambda row: row.total_throughput_ips, default=None)
        ranks = Ranks(len(self.ranks), tuple(self.ranks), tuple(self.scaling))
        return BenchmarkResults(
            mode=mode,
            latency=self.latency,
            throughput=tuple(self.throughput),
            phases=self.phases,
            memory=self.memory,
            harness=self.harness,
            ladder=tuple(self.ladder),
            skipped_modes=tuple(self.skipped),
            fastest_passing_mode=fastest.mode if fastest else None,
            ranks=ranks if len(self.ranks) > 1 else None,
            scaling_efficiency=best.scaling_efficiency if best else None,
            regression=regression,
        )


def begin(
    options: BenchmarkOptions, inputs: Inputs, device: Device, import_ms: float, log: RunLog
) -> tuple[Setup, Found]:
    """Load the model on the CPU; return the setup, and what is known by then.

    Raises:
        KitError: as setup.set_up does.
    """
    start = time.perf_counter()
    setup = set_up(options, inputs, device, log)
    load_ms = (time.perf_counter() - start) * 1e3
    return setup, Found(Phases(import_ms, load_ms, None, None, None, None, None, None))
