"""What a run leaves behind, as frozen dataclasses: the shape of output/<script>.json.

The one definition of the records: the scripts fill these types, output.py writes them, the report
and --baseline decode them, and docs/write_records.py makes the JSON Schema and docs/records.md of
them. The comment beside or above a field is its description there. Unknown values are None, so that
the JSON stays valid. CHANGELOG.md has the history of SCHEMA_VERSION.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

SCHEMA_VERSION = "2.1"

DeviceType = Literal["npu", "cuda", "cpu"]
Products = Literal[
    "fp32", "hf32", "tf32", "bf16", "fp16", "bf16 in and out", "fp16 in and out"
]  # fmt: skip
GeluForm = Literal["erf", "tanh"]
Source = Literal["local", "modelscope", "huggingface", "random"]
Status = Literal["complete", "partial"]
RowStatus = Literal["measured", "failed", "out_of_memory", "interrupted"]
CheckVerdict = Literal["PASS", "FAIL", "SELF-CHECK"]
MetricStatus = Literal["same", "faster", "slower", "regression"]
SoakEnd = Literal["complete", "interrupted", "device error"]
Bound = Literal["host", "memory", "compute", "transfer", "undecided"]
Stage = Literal["decode", "preprocessing", "copy", "forward"]
OutcomeName = Literal["pass", "unexplained", "fail", "self-check"]


@dataclass(frozen=True)
class Environment:
    """The software and the host that produced a record, captured and never typed by hand."""

    python: str  # Python version.
    torch: str  # torch version with its local part.
    torch_npu: str | None  # torch-npu version; null where it is not loaded.
    transformers: str  # transformers version.
    numpy: str  # numpy version.
    pillow: str  # Pillow version.
    cann: str | None  # CANN version as torch_npu reads it; null without CANN.
    driver: str | None  # NPU or GPU driver version; null where unknown.
    platform: str  # Operating system and machine type.
    cpu: str  # The processor's name.
    cpu_threads: int  # Threads that torch uses within one operator.
    cpu_affinity: str | None  # Cores that this process may use, as 0-7,16; null if unknown.
    numa_nodes: tuple[int, ...]  # NUMA nodes of these cores; empty where unknown.
    # Processes on the host's devices, this one too, by npu-smi or nvidia-smi; null where unknown.
    device_processes: int | None
    # Commit of the kit, with '+dirty' where files outside output/ differ; null outside a checkout.
    git_commit: str | None
    command: tuple[str, ...]  # The command line.
    variables: dict[str, str]  # Environment variables set that change results or speed.
    # Hash of the host's name and machine-id: tells hosts apart; null in older records.
    host_id: str | None = None
    # Public address that the kit's checkout is a clone of, without credentials; null for none.
    git_origin: str | None = None
    cann_library: str | None = None  # Path of the loaded libascendcl.so; null without CANN.


@dataclass(frozen=True)
class Patch:
    """What npu_patch did at import."""

    applied: bool  # Whether torch.cuda is torch.npu in this run.
    reason: str  # Why it was applied, or why it was not.


@dataclass(frozen=True)
class OperatorArithmetic:
    """What one operator of the device computes in, found by a probe."""

    operator: str  # The operator, for example matrix product or GELU.
    asked: str  # What was asked for: a data type, hf32, tf32, or a form of GELU.
    found: str  # The documented arithmetic that it meets, or that it is none of them.
    nearest: str  # The documented arithmetic that comes nearest.
    # Relative distance from the nearest (GELU: in distances of its two forms); null: not finite.
    residual: float | None
    tolerance: float  # Up to this residual it is that arithmetic.


@dataclass(frozen=True)
class DeviceArithmetic:
    """What the device computes in, measured before anything is compared."""

    operators: tuple[OperatorArithmetic, ...]  # One entry per operator.
    overflow: Literal["infinity", "saturates"]  # What a product beyond the range becomes.
    repeatable: bool  # Whether the same product gives the same bits again.


@dataclass(frozen=True)
class DeviceInfo:
    """The device that computed, and how it rounds."""

    type: DeviceType  # Kind of device.
    index: int | None  # Index among the visible devices; null for the CPU.
    name: str  # The chip's or processor's name.
    count: int  # Visible devices of this type on this host; 1 for the CPU.
    torch_device: str  # As torch prints it, for example npu:0.
    # What fp32 matrix products compute in: as measured, as set where that meets no documented
    # arithmetic or the run is not in fp32.
    matmul_fp32: Products
    convolution_fp32: Products  # The same of fp32 convolutions.
    arithmetic: DeviceArithmetic | None  # What it computes in, measured; null for the CPU.
    # Operators that the NPU back end handed to the CPU during the run; null where a variable
    # silences its messages, so that nobody knows.
    cpu_fallbacks: tuple[str, ...] | None
    jit_compile: bool | None  # Whether operators compile at run time; null: unknown or no NPU.
    internal_format: bool | None  # Whether torch_npu may use tensor formats of its own; the same.
    memory_free_bytes: int | None  # Free device memory at the end; null for the CPU.
    memory_total_bytes: int | None  # Device memory in all; null for the CPU.
    known_answer_checks: int  # Known-answer computations passed, one after each phase.


@dataclass(frozen=True)
class ModelInfo:
    """The model and where its weights come from."""

    weights: str | None  # Folder of the weights; null for random weights.
    source: Source  # Where the weights come from; 'random' means no real features.
    # Of the safetensors file, of `sha256sum *.safetensors` for several, of the tensors' bytes in
    # the order of names for random weights.
    sha256: str
    architecture: str  # The transformers class.
    parameters: int  # Number of parameters.
    dtype: str  # Compute type: fp32, bf16 or fp16.
    attention: str | None  # sdpa or eager; null for a model without attention.


@dataclass(frozen=True)
class InputInfo:
    """The image, or the first image of a folder, and what the model was given."""

    image: str  # Path of the image as it was given or found.
    sha256: str  # Of the image file's bytes.
    width: int  # Width of the upright image in pixels, before preprocessing.
    height: int  # Height of the upright image in pixels, before preprocessing.
    shape: tuple[int, ...]  # Shape of the model's input: batch, channels, rows, columns.
    preprocessing: str  # The preprocessing steps in order, in words.
    images: int  # How many images the run was given.


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one script. Each script's own record adds `script` and `results`."""

    schema_version: str = SCHEMA_VERSION  # Version of this layout.
    script: str  # The script that ran.
    status: Status  # 'partial' where the run was stopped and kept what it had.
    started_at: str  # Start of the run, ISO 8601 with offset from UTC.
    environment: Environment  # Software and host.
    patch: Patch  # What npu_patch did.
    device: DeviceInfo  # The device that computed.
    model: ModelInfo  # The model.
    input: InputInfo  # What went in.
    warnings: tuple[str, ...]  # Every warning that the run printed.


# ---- inference.json ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSummary:
    """One output tensor in brief."""

    shape: tuple[int, ...]  # Shape of the tensor.
    dtype: str  # Type of its elements, as torch names it.
    device: str  # Device that holds it, as torch names it.
    first_values: tuple[float, ...]  # Its first five values in memory order.
    finite: bool  # Whether every value is finite; a run with others ends as an error.


@dataclass(frozen=True)
class ImageResult:
    """The result for one image of a folder."""

    image: str  # Path of the image.
    sha256: str  # Of the image file's bytes.
    width: int  # Width of the upright image in pixels.
    height: int  # Height of the upright image in pixels.
    latency_ms: float  # Wall-clock time of one synchronized forward, in ms.
    first_values: tuple[float, ...]  # First five values of its pooler_output.


@dataclass(frozen=True)
class Repeats:
    """Forwards of one input, each compared with the first timed one, element by element."""

    forwards: int  # How many were compared with the first one.
    differing: int  # How many of these differ from it in at least one element.
    largest_difference: float | None  # Of an element, absolute; null where not finite.


@dataclass(frozen=True)
class InferenceResults:
    """What inference.py found, for the first image; `images` has every one."""

    # Median wall-clock time of a synchronized forward after one warm-up forward, in ms.
    latency_ms: float
    samples_ms: tuple[float, ...]  # Every timed forward of the first image, in ms; up to 20.
    # The warm-up and the further timed forwards beside the first; beside the warm-up where the
    # first is not finite.
    repeats: Repeats
    pooler_output: TensorSummary  # The pooled feature: batch, width.
    last_hidden_state: TensorSummary  # All tokens: batch, tokens, width.
    images: tuple[ImageResult, ...]  # One entry per image, in the order of their names.
    # Why this is no result: forwards of one input beyond the limits or not finite; else empty.
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InferenceRecord(Record):
    """One run of inference.py."""

    script: Literal["inference"] = "inference"  # The script that ran.
    results: InferenceResults  # What came out.


# ---- benchmark.json ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """Figures of a list of times, under the names that the published report uses."""

    iterations: int  # How many samples the figures stand on.
    mean_ms: float  # Arithmetic mean, in ms.
    stddev_ms: float  # Standard deviation of the samples (numpy.std), in ms.
    min_ms: float  # Smallest sample, in ms.
    max_ms: float  # Largest sample, in ms.
    p50_ms: float  # 50th percentile, linear between samples (numpy.percentile), in ms.
    p90_ms: float  # 90th percentile, linear between samples, in ms.
    p99_ms: float  # 99th percentile, linear between samples, in ms.
    # Names of the figures above that so few samples cannot support: a percentile p needs 100 / (100
    # - p) samples, a standard deviation two.
    unsupported: tuple[str, ...]
    samples_ms: tuple[float, ...]  # Every sample in the order it was taken, in ms.


@dataclass(frozen=True)
class RowCheck:
    """Whether a row computed what it should, found outside its timed forwards."""

    verdict: CheckVerdict  # 'SELF-CHECK': a pass on the CPU; 'FAIL': its figures are no result.
    arithmetic: str  # Row of the limits' table that was applied.
    within_published_limits: bool  # Whether it keeps the published 1 % and 0.999 too.
    # Images held against the fp32 model on the CPU: the batch's, all different up to eight, and a
    # second batch with each in another's place.
    images: int
    # Largest relative error (L2) of an image's pooler_output or last_hidden_state; null: not
    # finite.
    relative_error: float | None
    token_relative_error: float | None  # The same of a single token.
    cosine_similarity: float | None  # The smallest cosine of these tensors.
    max_abs_diff: float | None  # The largest absolute difference in them.
    repeats: Repeats  # Every timed forward beside the row's first, on the device.
    reasons: tuple[str, ...]  # Why it fails; else empty.
    check_ms: float  # What the check cost, in ms; no part of it is timed.


@dataclass(frozen=True)
class WarmUp:
    """The forwards before the timed ones."""

    iterations: int  # How many there were.
    # Whether their last two windows agreed within 3 % or noise, before 100 forwards or 10 s.
    steady: bool
    window: int  # Forwards in one window.
    samples_ms: tuple[float, ...]  # Wall-clock time of each, in ms.


@dataclass(frozen=True)
class Latency(Statistics):
    """Times of synchronized forwards of one batch; the unmarked figures are wall-clock times."""

    batch_size: int  # Images in the batch.
    warm_up: WarmUp  # The forwards before the timed ones.
    check: RowCheck | None  # Whether they are right; null where Ctrl-C came before it.
    device_p50_ms: float | None  # Median between two events on the device, in ms; null for the CPU.
    device_samples_ms: tuple[float, ...] | None  # Each of them, in ms.
    # Median time until the device has been given all of it, in ms: what a forward costs the host;
    # null for the CPU, which computes within the call.
    host_p50_ms: float | None
    host_samples_ms: tuple[float, ...] | None  # Each of them, in ms.


@dataclass(frozen=True)
class Memory:
    """Most memory in use at once."""

    host_peak_bytes: int | None  # Most resident memory since the process began; null if unknown.
    device_peak_bytes: int | None  # Most that tensors held; null for the CPU.
    device_reserved_peak_bytes: int | None  # Most that torch reserved; null for the CPU.


@dataclass(frozen=True)
class ThroughputRow:
    """One batch size of the sweep."""

    batch_size: int  # Images in the batch.
    # 'failed': its check failed, so that there is no throughput; 'out_of_memory': not measured, and
    # the sweep ends here; 'interrupted': from the samples until Ctrl-C.
    status: RowStatus
    searched: bool  # Whether the batch size was found after a larger one ran out of memory.
    throughput_ips: float | None  # batch_size over avg_latency_ms; null: not measured or failed.
    avg_latency_ms: float | None  # Mean wall-clock time of a synchronized forward.
    # Images per second of forwards that are waited for once; null for the CPU, for forwards of
    # more than 100 ms each, or not measured.
    queued_throughput_ips: float | None
    latency: Latency | None  # All of its times; null where not measured.
    device_peak_bytes: int | None  # Most that tensors held; null for the CPU, or not measured.
    # Least time for the batch (limit) over avg_latency_ms; null where either was not measured.
    utilization: float | None = None
    bound: Bound | None = None  # What holds its forwards back; null where not measured.


@dataclass(frozen=True)
class Phases:
    """Where the time of a run goes, phase by phase; null where a phase was not reached."""

    import_ms: float  # Importing torch, transformers and the kit.
    load_ms: float  # From the weights' files to the model in host memory.
    references_ms: float  # The features on the CPU that every row is checked against.
    move_ms: float | None  # Moving the model to the device and into its dtype.
    # The first forward of the process; with a graph the first replay, after the capture.
    first_inference_ms: float | None
    warm_up_ms: float | None  # All warm-up forwards at batch 1, the first one too.
    steady_ms: float | None  # Median forward at batch 1 after the warm-up.
    preprocessing_ms: float | None  # Median from decoded pixels to the model's input, on the CPU.
    host_to_device_ms: float | None  # Median copy of one image to the device; null for the CPU.
    decode_ms: float | None = None  # Median from a file to its pixels; null in older records.
    # Images per second of a stream from files, in which decode, preprocessing, copy and the forward
    # of the best batch each work on another image; on the CPU one after the other.
    pipeline_ips: float | None = None
    pipeline_stage: Stage | None = None  # The stage that takes longest in it.


@dataclass(frozen=True)
class Harness:
    """What the measuring itself costs, and the conditions it was done under."""

    overhead_ms: float  # Median time of a call that does nothing, measured alike.
    overhead_share: float | None  # The same, as a share of the batch-1 median.
    clock: str  # The host's clock.
    clock_resolution_ns: float  # Its resolution, in ns.
    garbage_collector: Literal["off while timing"]  # Runs before each measurement instead.
    cpu_governor: str | None  # Frequency policy of the first core; null if unknown.
    load_average: float | None  # Processes that wanted a core in the last minute.


@dataclass(frozen=True)
class PrecisionLimit:
    """What the device reaches in one precision, in bare matrix products of the model's shapes."""

    precision: str  # fp32, strict-fp32, bf16, fp16 or fp32-fast-math.
    flops_per_s: float | None  # Most FLOP/s of the batch sizes tried; null where not measured.
    batch_size: int | None  # The batch size whose products reached it.
    weight_bytes: int  # Bytes of the parameters in this precision.
    # Least time for one image: the larger of FLOPs over flops_per_s and weight_bytes over
    # bytes_per_s, in ms; null where either is not known.
    attainable_latency_ms: float | None
    # flops_per_s over flops_per_image: images per second of large batches at the limit.
    attainable_throughput_ips: float | None
    reason: str | None  # Why there is no limit, or no utilization; else null.


@dataclass(frozen=True)
class Limit:
    """What this device reaches, measured in this run, and what a forward asks of it."""

    # Of one image's forward by torch's formulas: products and convolutions, 2 per multiply-add.
    flops_per_image: int
    # Bytes that an fp32 forward's operators read and write for one image, without the weights.
    bytes_per_image: int
    # Memory bandwidth: bytes read and written by a plain copy, per second; null where not measured.
    bytes_per_s: float | None
    precisions: tuple[PrecisionLimit, ...]  # One entry per precision that was measured.
    # What holds back a stream of images through the main mode's best batch: 'transfer' where images
    # reach the device more slowly than it computes, else that row's bound.
    bound: Bound | None
    summary: str  # Utilization and bound of the best batch in a sentence.
    measuring_ms: float  # What measuring the limit cost, in ms.


@dataclass(frozen=True)
class LadderRow:
    """One mode: its speed, what it costs, and its error against the fp32 CPU reference."""

    mode: str  # PRECISION-ATTENTION and what --modes appends to it, such as -graph.
    dtype: str  # Compute type: fp32, bf16 or fp16.
    strict_fp32: bool  # Whether HF32 and TF32 were off.
    attention: str  # sdpa or eager.
    graph: bool  # Whether the forward was captured and replayed.
    latency: Latency  # At batch 1.
    throughput: tuple[ThroughputRow, ...]  # The sweep over the batch sizes.
    best_throughput_ips: float | None  # Most images per second in the sweep.
    best_batch_size: int | None  # The batch size that gave it.
    memory: Memory  # Peaks over this mode.
    verdict: CheckVerdict  # 'FAIL' where the check of any of its rows fails.
    within_published_limits: bool  # Whether every row keeps 1 % and 0.999.
    relative_error: float | None  # The largest of its rows' checks; null where not finite.
    cosine_similarity: float | None  # The smallest of its rows' checks; null: not finite.
    max_abs_diff: float | None  # The largest of its rows' checks; null where not finite.
    # Whether a replay's features are the eager forward's, bit by bit; null without a graph.
    bits_equal_eager: bool | None
    channels_last: bool = False  # Whether images and convolution weights had channels innermost.
    compiled: bool = False  # Whether torch.compile made its code.
    fast_math: bool = False  # Whether oneDNN rounded the inputs of fp32 products to bf16.
    # The first call at batch 1, in which torch.compile works, in ms; null without it.
    compile_ms: float | None = None
    utilization: float | None = None  # At batch 1, as in the sweep's rows; null where not measured.
    bound: Bound | None = None  # At batch 1, the same.


@dataclass(frozen=True)
class SkippedMode:
    """A mode that was asked for and not measured."""

    mode: str  # Its name.
    reason: str  # Why it was not measured.


@dataclass(frozen=True)
class RankLatency:
    """One rank of torchrun: its device, and its batch-1 latency beside the other ranks."""

    rank: int  # Number of the process.
    host: str  # Name of its host.
    torch_device: str  # Its device, as torch prints it.
    name: str  # The chip's or processor's name.
    latency: Statistics  # At batch 1.


@dataclass(frozen=True)
class ScalingRow:
    """One batch size on all ranks at once."""

    batch_size: int  # Images in the batch of each rank.
    alone_throughput_ips: float  # Rank 0's, while the other ranks wait.
    rank_throughput_ips: tuple[float, ...]  # Each rank's own, all working at once.
    total_throughput_ips: float  # All ranks' images from the common start to the last one's end.
    scaling_efficiency: float  # total_throughput_ips over ranks times alone_throughput_ips.


@dataclass(frozen=True)
class Ranks:
    """The run on all devices."""

    world_size: int  # Number of ranks.
    ranks: tuple[RankLatency, ...]  # One entry per rank.
    throughput: tuple[ScalingRow, ...]  # One row per batch size.


@dataclass(frozen=True)
class Comparison:
    """One figure beside the baseline's."""

    name: str  # What is compared.
    old_ms: float  # The baseline's median, in ms.
    new_ms: float  # This run's median, in ms.
    ratio: float  # new_ms over old_ms.
    noise_ms: float  # Noise of the two runs together, in ms: their spreads' root sum.
    status: MetricStatus  # 'same' within the noise; 'regression': slower beyond limit and noise.


@dataclass(frozen=True)
class Regression:
    """The comparison with an earlier record."""

    baseline: str  # Path of the earlier record.
    baseline_started_at: str  # When it was made.
    max_regression_percent: float  # The limit.
    comparisons: tuple[Comparison, ...]  # Every figure that both records have.
    passed: bool  # Whether nothing regressed.


@dataclass(frozen=True)
class ProfiledOperator:
    """One operator in the profile."""

    name: str  # As torch names it, or the kernel on an NPU and in a graph.
    share: float  # Of the time of all operators.
    calls: float  # In one forward.
    time_ms: float  # In one forward, without the operators that it calls, in ms.


@dataclass(frozen=True)
class Profile:
    """Where the time of some forwards of the main mode goes, at batch 1, under a profiler."""

    profiler: Literal["torch.profiler", "torch_npu.profiler"]  # What looked.
    # Whose operators' times these are; the host's on the CPU, and where nothing else is known.
    side: Literal["device", "host"]
    forwards: int  # How many were profiled.
    batch_size: int  # Images in the batch.
    wall_ms: float  # One of them by the clock, profiled, in ms.
    profiled_ms: float | None  # The same by the profiler, of the host; null: torch_npu.profiler.
    operators_ms: float  # In operators, of one forward, in ms.
    # Of wall_ms, in which the device computed; the host in operators where side is 'host'.
    busy_share: float
    # Kernels that the device was given for one forward, 1 for a graph; null where side is 'host'.
    launches_per_forward: float | None
    operators: tuple[ProfiledOperator, ...]  # The ten that take longest.
    problem: str | None  # Why nothing is known of the device; else null.


@dataclass(frozen=True)
class BenchmarkResults:
    """What benchmark.py found."""

    mode: str  # The mode of latency, throughput, phases and memory.
    latency: Latency | None  # At batch 1; null where Ctrl-C came before it.
    throughput: tuple[ThroughputRow, ...]  # The sweep over the batch sizes.
    phases: Phases  # Where the time goes.
    memory: Memory  # Peaks of the main mode.
    harness: Harness | None  # The measuring itself; null where Ctrl-C came first.
    ladder: tuple[LadderRow, ...]  # One row per mode; empty without --modes.
    skipped_modes: tuple[SkippedMode, ...]  # Modes that the device does not have.
    fastest_passing_mode: str | None  # The passing mode with the lowest batch-1 median.
    fastest_published_mode: str | None  # The same of those that keep the published 1 % and 0.999.
    ranks: Ranks | None  # All devices under torchrun; null with one process.
    scaling_efficiency: float | None  # At the highest total throughput; null with one process.
    regression: Regression | None  # The comparison; null without --baseline.
    # The command that runs fastest_passing_mode as this run did; null without one.
    fastest_passing_command: str | None = None
    profile: Profile | None = None  # Where a forward's time goes; null without --profile.
    limit: Limit | None = None  # What the device reaches; null: older record, Ctrl-C or failure.


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(Record):
    """One run of benchmark.py."""

    script: Literal["benchmark"] = "benchmark"  # The script that ran.
    results: BenchmarkResults  # What came out.


# ---- accuracy.json -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LimitsInfo:
    """The limits that were applied."""

    arithmetic: str  # Row of the limits' table: fp32, hf32, tf32, bf16 or fp16.
    relative_error: float  # The whole vector's relative error must be below this.
    cosine: float  # The whole vector's cosine must be above this.
    token_relative_error: float  # Every token's relative error must be below this.
    operator_error: float  # An operator's own result this far off, and unexplained, is wrong.
    rope_and_norm_error: float  # The same of RoPE and norms, all before them explained.
    operator_token_error: float  # The same for one token of any operator's result.
    budget_factor: float  # An error is explained up to this many times the expected one.
    reason: str  # Why these limits.


@dataclass(frozen=True)
class TokenPlace:
    """One token: where it is and how wrong."""

    token: int  # Position among the tokens, from 0.
    kind: Literal["CLS", "register", "patch", "vector"]  # What it is; 'vector': no tokens.
    row: int | None  # Row of the patch, from 0 at the top; null for other tokens.
    column: int | None  # Column of the patch, from 0 at the left; null for others.
    relative_error: float | None  # Of this token; null where it is not finite.
    cosine: float | None  # Of this token; null where it is not finite.


@dataclass(frozen=True)
class Percentile:
    """One percentile of the tokens' relative errors."""

    percent: float  # Share of the tokens with at most this error, in percent.
    relative_error: float | None  # The error, by linear interpolation.


@dataclass(frozen=True)
class PartAccuracy:
    """One part of the tokens as one vector."""

    part: Literal["CLS", "registers", "patches"]  # Which tokens.
    relative_error: float | None  # Device against the reference; null: not finite.
    cosine: float | None  # Device against the reference; null: not finite.
    fp64_relative_error: float | None  # Device's relative error against fp64.
    cpu_fp64_relative_error: float | None  # CPU fp32's relative error against fp64.


@dataclass(frozen=True)
class TensorAccuracy:
    """One output tensor of the device beside its references."""

    shape: tuple[int, ...]  # Shape of the tensor.
    device: str  # Device that computed it, as torch names it.
    relative_error: float | None  # ||device - reference|| / ||reference||; null: not finite.
    relative_error_passed: bool  # Whether it is below its limit.
    cosine: float | None  # Cosine of device and reference; null: not finite.
    cosine_passed: bool  # Whether it is above its limit.
    mse: float | None  # Mean squared difference from the reference.
    max_abs_diff: float | None  # Largest difference from the reference.
    passed: bool  # Whether everything about this tensor is inside its limits.
    fp64_relative_error: float | None  # The device's relative error against fp64.
    cpu_fp64_relative_error: float | None  # The CPU's fp32 relative error against fp64.
    # Relative error against fp64 that the declared arithmetic makes of these weights and this
    # image.
    expected_error: float | None
    worst_token: TokenPlace  # The token furthest from the reference.
    token_percentiles: tuple[Percentile, ...]  # Of the tokens' relative errors.
    identical_bits: bool  # Whether device and CPU fp32 agree to the last bit.


@dataclass(frozen=True)
class OperatorError:
    """One operator's own error, on the device's own input of its block."""

    name: str  # The module inside the block, with .input or .output.
    operator: str  # Class of operator, for example attention, MLP, norm or RoPE.
    relative_error: float | None  # Against fp64 on the same input; null: not finite.
    expected_error: float  # The same figure of the declared arithmetic.
    token_error: float | None  # Relative error of the worst token; null: not finite.
    expected_token_error: float  # The declared arithmetic's worst token.
    times_limit: float | None  # How many times its limit, above 1 unexplained; null: not finite.
    token: int | None  # Position of the worst token in the result; null: wrong shape.
    smallest_limit: float = 2.0**-20  # What is below it is always explained.


@dataclass(frozen=True)
class BlockAccuracy:
    """The error after one block, and the worst operator inside it."""

    block: int  # -1 the embedding, 0 and up the blocks, their number the final norm.
    name: str  # The module's path in the model.
    relative_error: float | None  # Device against fp64 after this block, all before included.
    cpu_relative_error: float | None  # CPU fp32 against fp64 after this block.
    expected_error: float  # What the declared arithmetic explains after this block.
    explained: bool  # Whether every operator of the block is explained by itself.
    sum_explained: bool  # Whether the error after the block, earlier ones' included, is explained.
    worst_operator: OperatorError | None  # The operator closest to or beyond its limit.
    worst_token: TokenPlace | None  # The worst token of the block's output.


@dataclass(frozen=True)
class Cause:
    """One known cause, switched in --explain."""

    cause: str  # What was switched.
    # 'device': the device computed again; 'reference': the CPU imitated the cause.
    where: Literal["device", "reference"]
    # With the switch, of last_hidden_state: the device's error against fp64, or its distance from
    # the CPU that imitates the cause on top of the declared arithmetic.
    relative_error: float | None
    before: float | None  # The same figure without the switch.
    removes: float | None  # Share of it that the switch removes, 0 to 1.
    note: str  # Why it was not tried, or empty.


@dataclass(frozen=True)
class ImageAccuracy:
    """One image of a folder."""

    image: str  # Path of the image.
    sha256: str  # Of the image file's bytes.
    pooler_relative_error: float | None  # pooler_output against the reference.
    pooler_cosine: float | None  # pooler_output against the reference.
    relative_error: float | None  # last_hidden_state against the reference.
    cosine: float | None  # last_hidden_state against the reference.
    max_abs_diff: float | None  # last_hidden_state against the reference.
    token_relative_error: float | None  # Worst token of last_hidden_state.
    token: int  # Which token that is.
    passed: bool  # Whether the image is inside every limit.


@dataclass(frozen=True)
class BrokenImage:
    """One file that could not be decoded."""

    image: str  # Path of the file.
    reason: str  # What is wrong with it.


@dataclass(frozen=True)
class NeighbourAgreement:
    """Whether device and reference features find the same nearest images."""

    images: int  # Images compared with each other.
    top1: float | None  # Share of images whose nearest neighbour is the same.
    top5: float | None  # Mean share of the five nearest neighbours in common.


@dataclass(frozen=True)
class FolderAccuracy:
    """A whole folder of images."""

    images: int  # Images that were compared.
    failed: int  # Images beyond a limit.
    broken: tuple[BrokenImage, ...]  # Files that were skipped; in the verdict's count.
    cached: int  # CPU references taken from the disk.
    percentiles: tuple[Percentile, ...]  # Of the images' last_hidden_state errors.
    worst: tuple[ImageAccuracy, ...]  # The worst images, worst first.
    neighbours: NeighbourAgreement  # Of pooler_output, by cosine.
    ranks: int  # Processes that shared the work.


@dataclass(frozen=True)
class ChipGelu:
    """The device's outputs with the chip's own form of GELU, which npu_patch replaces."""

    form: str  # The form: tanh, or that it is none of the known ones.
    pooler_relative_error: float | None  # pooler_output against the reference.
    relative_error: float | None  # last_hidden_state against the reference.


@dataclass(frozen=True)
class FeaturesFile:
    """A safetensors file with the device's features of the judged images, unsigned."""

    file: str  # Its path; beside the record where the run wrote it.
    sha256: str  # Of its bytes.
    device: str  # What computed the features, as the file says.
    declared: str  # The arithmetic that it was found to compute in, as the file says.
    images: int  # How many images' features it holds.
    reviewed: bool  # Whether these features were judged by --features, and no device has run.


@dataclass(frozen=True)
class FeaturesComparison:
    """The judged features beside another device's, of the same weights and pixels."""

    features: FeaturesFile  # The other device's.
    limits: LimitsInfo  # The limits of the coarser one of the two arithmetics.
    failed: int  # Images beyond a limit.
    worst: tuple[ImageAccuracy, ...]  # The images furthest apart, furthest first.


@dataclass(frozen=True)
class CoverageCell:
    """One batch size, input size and mode, on different images, held against the CPU."""

    mode: str  # PRECISION-ATTENTION, with -graph where it was captured.
    batch_size: int  # Images in the batch.
    rows: int  # Of the input, in pixels.
    columns: int  # Of the input, in pixels.
    images: int  # How many different images the batch holds.
    # The largest of all images and outputs; null: not finite, not measured.
    relative_error: float | None
    cosine: float | None  # The smallest of them; the same.
    token_relative_error: float | None  # The worst token of them; the same.
    # What the arithmetic explains beside the CPU's own error; of the run's own image without
    # --coverage, of the cell's first image with it.
    expected_error: float | None
    passed: bool  # Whether every image is inside every limit.
    reason: str | None  # Why it is not, for the first image; null where it is.


@dataclass(frozen=True)
class SoakBatch:
    """One batch size of a soak."""

    batch_size: int  # Images in the batch.
    forwards: int  # How often it was computed.
    distinct_results: int  # How many different results it gave, by their bits.
    early_ms: float | None  # Median wall-clock time of its first 25 forwards, in ms.
    late_ms: float | None  # The same of its last 25; null before there are more.
    drift: float | None  # late_ms over early_ms, less 1; null where unknown.


@dataclass(frozen=True)
class SoakDeviation:
    """The first forward of a soak whose bits differ from the same batch's first one."""

    forward: int  # Its number in the soak, from 1.
    at: str  # When it was, ISO 8601 with offset from UTC.
    after_s: float  # Seconds since the soak began.
    batch_size: int  # Images in its batch.
    tensor: str  # pooler_output or last_hidden_state: where it differs most.
    image: int  # Place in the batch where it differs most, from 0.
    token: int | None  # Token where it differs most; null in pooler_output.
    largest_difference: float | None  # Absolute; null where a value is not finite.
    passed: bool  # Whether it is inside the limits all the same.


@dataclass(frozen=True)
class Soak:
    """The same inputs again and again, in changing batch sizes."""

    seconds: float  # How long it took.
    forwards: int  # How many there were, each followed by a known answer.
    beyond_limits: int  # How many of them were beyond a limit.
    end: SoakEnd  # 'complete' as asked for, 'interrupted' by Ctrl-C, or a device error.
    reason: str | None  # The first wrong result or the device's error; else null.
    first_deviation: SoakDeviation | None  # Null where all bits are the same.
    batches: tuple[SoakBatch, ...]  # One entry per batch size.
    early_host_peak_bytes: int | None  # Most resident memory after two rounds; null if unknown.
    host_peak_bytes: int | None  # The same at the end: flat where both are alike.
    early_device_peak_bytes: int | None = None  # Held by tensors in two rounds; null for the CPU.
    device_peak_bytes: int | None = None  # The same in all of them.


@dataclass(frozen=True)
class AccuracyResults:
    """What accuracy.py found; of the worst image where there is a folder."""

    verdict: str  # The verdict as it is printed.
    outcome: OutcomeName  # The verdict for programs.
    reasons: tuple[str, ...]  # Why it failed, or what is unexplained; else empty.
    image: str  # The image that the figures below belong to.
    source: str  # Where the weights come from; 'random' means no real features.
    # What the device is held against; fp64 where the device itself is the CPU.
    reference: Literal["CPU fp32", "CPU fp64"]
    declared: str  # The arithmetic that the device declares, in words.
    limits: LimitsInfo  # The limits that were applied.
    pooler_output: TensorAccuracy  # The pooled feature.
    last_hidden_state: TensorAccuracy  # All tokens.
    parts: tuple[PartAccuracy, ...]  # CLS, registers and patches apart.
    blocks: tuple[BlockAccuracy, ...]  # In the order of execution.
    # -1 the embedding, 0 and up the blocks, their number the final norm, null none.
    first_unexplained_block: int | None
    # The first operator inside that block beyond its limit; null where there is none.
    first_unexplained_operator: OperatorError | None
    chip_gelu: ChipGelu | None  # Outputs with the chip's own GELU; null where it is as asked for.
    explain: tuple[Cause, ...]  # Known causes switched one by one; --explain only.
    folder: FolderAccuracy | None  # The whole folder; null for a single image.
    features: FeaturesFile | None = None  # Those of the judged images; null in older records.
    against: FeaturesComparison | None = None  # The features beside another's; --against only.
    # Other batch sizes, input sizes and modes: a small set, all of them with --coverage.
    coverage: tuple[CoverageCell, ...] = ()
    soak: Soak | None = None  # The same inputs again and again; --soak only.


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord(Record):
    """One run of accuracy.py."""

    script: Literal["accuracy"] = "accuracy"  # The script that ran.
    results: AccuracyResults  # What came out.


# ---- Writing and decoding ------------------------------------------------------------------------

RECORDS: dict[str, type[Record]] = {
    "inference": InferenceRecord,
    "benchmark": BenchmarkRecord,
    "accuracy": AccuracyRecord,
}
AnyRecord = TypeVar("AnyRecord", bound=Record)


class RecordError(ValueError):
    """Content that is no record of this version; the message names the place that is wrong."""


def encode(record: Record) -> bytes:
    """Return the record as UTF-8 JSON; ValueError where a value is NaN or infinite."""
    text = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=2)
    # A file name's bytes that are no UTF-8 are lone surrogates in Python, which JSON lacks.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\\\x{ord(found[0]) & 0xFF:02x}", text)
    return f"{text}\n".encode()


def decode(content: bytes, record: type[AnyRecord]) -> AnyRecord:
    """Return the record that JSON holds, every field checked; fields of later versions are ignored.

    Raises RecordError, with the first place that is wrong, and ModuleNotFoundError without msgspec.
    """
    import msgspec  # no script needs it to measure and to write its own record

    try:
        version = msgspec.json.decode(content, type=_Version).schema_version
        if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise RecordError(f"schema version {version}, this kit reads {SCHEMA_VERSION}")
        return msgspec.json.decode(content, type=record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from error


@dataclass(frozen=True)
class _Version:
    """What is asked of a record first."""

    schema_version: str
