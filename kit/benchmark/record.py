"""The record of benchmark.py."""

from dataclasses import dataclass
from typing import Literal

from kit.records import Record, described
from kit.timing import Statistics

RowStatus = Literal["measured", "out_of_memory", "interrupted"]
MetricStatus = Literal["same", "faster", "slower", "regression"]


@dataclass(frozen=True)
class WarmUp:
    """The forwards before the timed ones."""

    iterations: int = described("How many there were.")
    steady: bool = described(
        "Whether their last two windows agreed within 3 % or their noise, before the bound of "
        "100 forwards or 10 s."
    )
    window: int = described("Forwards in one window.")
    samples_ms: tuple[float, ...] = described("Wall-clock time of each, in ms.")


@dataclass(frozen=True)
class Latency(Statistics):
    """Times of synchronized forwards of one batch; the unmarked figures are wall-clock times."""

    batch_size: int = described("Images in the batch.")
    warm_up: WarmUp = described("The forwards before the timed ones.")
    device_p50_ms: float | None = described(
        "Median time between two events on the device's stream, in ms; null for the CPU."
    )
    device_samples_ms: tuple[float, ...] | None = described("Each of them, in ms.")
    host_p50_ms: float | None = described(
        "Median time until the call returned, before the device was waited for, in ms: what a "
        "forward costs the host; null for the CPU, which computes within the call."
    )
    host_samples_ms: tuple[float, ...] | None = described("Each of them, in ms.")


@dataclass(frozen=True)
class Memory:
    """Most memory in use at once."""

    host_peak_bytes: int | None = described(
        "Most resident memory of the process since it started; null where unknown."
    )
    device_peak_bytes: int | None = described("Most that tensors held; null for the CPU.")
    device_reserved_peak_bytes: int | None = described(
        "Most that torch took from the device; null for the CPU."
    )


@dataclass(frozen=True)
class ThroughputRow:
    """One batch size of the sweep."""

    batch_size: int = described("Images in the batch.")
    status: RowStatus = described(
        "'out_of_memory': not measured, and the sweep ends here; 'interrupted': from the "
        "samples until Ctrl-C."
    )
    searched: bool = described(
        "Whether the batch size was found after a larger one ran out of memory."
    )
    throughput_ips: float | None = described(
        "Images per second: batch_size over avg_latency_ms; null where not measured."
    )
    avg_latency_ms: float | None = described("Mean wall-clock time of a synchronized forward.")
    queued_throughput_ips: float | None = described(
        "Images per second where the forwards are given one after the other and waited for "
        "once; null for the CPU and where not measured."
    )
    latency: Latency | None = described("All of its times; null where not measured.")
    device_peak_bytes: int | None = described(
        "Most device memory that tensors held; null for the CPU and where not measured."
    )


@dataclass(frozen=True)
class Phases:
    """Where the time of a run goes, phase by phase; null where a phase was not reached."""

    import_ms: float = described("Importing torch, transformers and the kit.")
    load_ms: float = described("From the weights' files to the model in host memory.")
    move_ms: float | None = described("Moving the model to the device and into its dtype.")
    first_inference_ms: float | None = described(
        "The first forward of the process; with a graph the first replay, after the capture."
    )
    warm_up_ms: float | None = described("All warm-up forwards at batch 1, the first one too.")
    steady_ms: float | None = described("Median forward at batch 1 after the warm-up.")
    preprocessing_ms: float | None = described(
        "Median time from decoded pixels to the model's input, one image, on the CPU."
    )
    host_to_device_ms: float | None = described(
        "Median time to copy one image's input to the device; null for the CPU."
    )


@dataclass(frozen=True)
class Harness:
    """What the measuring itself costs, and the conditions it was done under."""

    overhead_ms: float = described("Median time of a call that does nothing, measured alike.")
    overhead_share: float | None = described("The same, as a share of the batch-1 median.")
    clock: str = described("The host's clock.")
    clock_resolution_ns: float = described("Its resolution, in ns.")
    garbage_collector: Literal["off while timing"] = described(
        "Python's collector runs before each measurement and not during it."
    )
    cpu_governor: str | None = described("Frequency policy of the first core; null if unknown.")
    load_average: float | None = described("Processes that wanted a core in the last minute.")


@dataclass(frozen=True)
class LadderRow:
    """One mode: its speed, what it costs, and its error against the fp32 CPU reference."""

    mode: str = described("PRECISION-ATTENTION, with -graph where it was captured.")
    dtype: str = described("Compute type: fp32, bf16 or fp16.")
    strict_fp32: bool = described("Whether HF32 and TF32 were off.")
    attention: str = described("sdpa or eager.")
    graph: bool = described("Whether the forward was captured and replayed.")
    latency: Latency = described("At batch 1.")
    throughput: tuple[ThroughputRow, ...] = described("The sweep over the batch sizes.")
    best_throughput_ips: float | None = described("Most images per second in the sweep.")
    best_batch_size: int | None = described("The batch size that gave it.")
    memory: Memory = described("Peaks over this mode.")
    verdict: str = described("accuracy.py's verdict on the features at batch 1.")
    relative_error: float | None = described(
        "The larger relative error (L2) of pooler_output and last_hidden_state; null where a "
        "value is not finite."
    )
    cosine_similarity: float | None = described(
        "The smaller cosine of the two; null where a value is not finite."
    )
    max_abs_diff: float | None = described(
        "Largest absolute difference in the two; null where a value is not finite."
    )
    bits_equal_eager: bool | None = described(
        "Whether a replay's features equal the eager forward's to the last bit, for the image "
        "and for its mirror image; null without graph capture."
    )


@dataclass(frozen=True)
class SkippedMode:
    """A mode that was asked for and not measured."""

    mode: str = described("Its name.")
    reason: str = described("Why it was not measured.")


@dataclass(frozen=True)
class RankLatency:
    """One rank of torchrun: its device, and its batch-1 latency beside the other ranks."""

    rank: int = described("Number of the process.")
    host: str = described("Name of its host.")
    torch_device: str = described("Its device, as torch prints it.")
    name: str = described("The chip's or processor's name.")
    latency: Statistics = described("At batch 1.")


@dataclass(frozen=True)
class ScalingRow:
    """One batch size on all ranks at once."""

    batch_size: int = described("Images in the batch of each rank.")
    alone_throughput_ips: float = described("Rank 0's, while the other ranks wait.")
    rank_throughput_ips: tuple[float, ...] = described("Each rank's own, all working at once.")
    total_throughput_ips: float = described(
        "All ranks' images over the time from the common start to the end of the last rank."
    )
    scaling_efficiency: float = described(
        "total_throughput_ips over the number of ranks times alone_throughput_ips."
    )


@dataclass(frozen=True)
class Ranks:
    """The run on all devices."""

    world_size: int = described("Number of ranks.")
    ranks: tuple[RankLatency, ...] = described("One entry per rank.")
    throughput: tuple[ScalingRow, ...] = described("One row per batch size.")


@dataclass(frozen=True)
class Comparison:
    """One figure beside the baseline's."""

    name: str = described("What is compared.")
    old_ms: float = described("The baseline's median, in ms.")
    new_ms: float = described("This run's median, in ms.")
    ratio: float = described("new_ms over old_ms.")
    noise_ms: float = described("Noise of the two runs together, in ms: their spreads' root sum.")
    status: MetricStatus = described(
        "'same' within the noise; 'regression' slower by more than the limit and the noise."
    )


@dataclass(frozen=True)
class Regression:
    """The comparison with an earlier record."""

    baseline: str = described("Path of the earlier record.")
    baseline_started_at: str = described("When it was made.")
    max_regression_percent: float = described("The limit.")
    comparisons: tuple[Comparison, ...] = described("Every figure that both records have.")
    passed: bool = described("Whether nothing regressed.")


@dataclass(frozen=True)
class BenchmarkResults:
    """What benchmark.py found."""

    mode: str = described("The mode of latency, throughput, phases and memory.")
    latency: Latency | None = described("At batch 1; null where Ctrl-C came before it.")
    throughput: tuple[ThroughputRow, ...] = described("The sweep over the batch sizes.")
    phases: Phases = described("Where the time goes.")
    memory: Memory = described("Peaks of the main mode.")
    harness: Harness | None = described("The measuring itself; null where Ctrl-C came first.")
    ladder: tuple[LadderRow, ...] = described("One row per mode; empty without --modes.")
    skipped_modes: tuple[SkippedMode, ...] = described("Modes that the device does not have.")
    fastest_passing_mode: str | None = described(
        "The mode of the ladder with the lowest batch-1 median of those that pass."
    )
    ranks: Ranks | None = described("All devices under torchrun; null with one process.")
    scaling_efficiency: float | None = described(
        "Of the batch size with the highest total throughput; null with one process."
    )
    regression: Regression | None = described("The comparison; null without --baseline.")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(Record):
    """One run of benchmark.py."""

    script: Literal["benchmark"] = described("The script that ran.", default="benchmark")
    results: BenchmarkResults = described("What came out.")
