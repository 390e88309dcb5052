"""What a run leaves behind, as frozen dataclasses: the shape of output/<script>.json.

The one definition of the records: the scripts fill these types, output.py writes them, the report
and --baseline decode them, and the JSON Schema and docs/records.md are made from them
(`python3 -m kit.records` writes those again). Every field carries its description, with its unit
where it has one. Unknown values are None, so that the JSON stays valid.

History of SCHEMA_VERSION:
    1.0  first version
    2.0  accuracy's fields have standard names: budget is expected_error, token_budget
         expected_token_error, against_truth fp64_relative_error, cpu_against_truth
         cpu_fp64_relative_error; folder.resumed is gone; inference has samples_ms and repeats
    2.1  environment has host_id, git_origin and cann_library; accuracy has features, against,
         coverage and soak; benchmark's rows have check, their status may be 'failed', phases has
         references_ms; benchmark has limit, its rows utilization and bound, phases decode_ms,
         pipeline_ips and pipeline_stage; inference has failures
"""

import dataclasses
import json
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # typing has it from Python 3.11 on

    def dataclass_transform(**_: object) -> object:
        """Change nothing: only type checkers read it."""
        return lambda decorator: decorator


T = TypeVar("T")
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


def described(description: str, *, default: Any = MISSING) -> Any:  # noqa: ANN401 - as field() is
    """Return a dataclass field with its description for the schema."""
    return field(metadata={"description": description}, default=default)


@dataclass_transform(frozen_default=True, field_specifiers=(described,))
def record_type(kind: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields are `described`; checkers know it as one."""
    return dataclass(frozen=True)(kind)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(described,))
def whole_record(kind: type[T]) -> type[T]:
    """The same, its fields given by name: a record's begin with defaults."""
    return dataclass(frozen=True, kw_only=True)(kind)


@record_type
class Environment:
    """The software and the host that produced a record, captured and never typed by hand."""

    python: str = described("Python version.")
    torch: str = described("torch version with its local part.")
    torch_npu: str | None = described("torch-npu version; null where it is not loaded.")
    transformers: str = described("transformers version.")
    numpy: str = described("numpy version.")
    pillow: str = described("Pillow version.")
    cann: str | None = described("CANN version as torch_npu reads it; null without CANN.")
    driver: str | None = described("NPU or GPU driver version; null where unknown.")
    platform: str = described("Operating system and machine type.")
    cpu: str = described("The processor's name.")
    cpu_threads: int = described("Threads that torch uses within one operator.")
    cpu_affinity: str | None = described(
        "Cores that this process may use, as 0-7,16; null where the system does not say."
    )
    numa_nodes: tuple[int, ...] = described("NUMA nodes of these cores; empty where unknown.")
    device_processes: int | None = described(
        "Processes that npu-smi or nvidia-smi lists on the host's devices, this one among them; "
        "null where unknown."
    )
    git_commit: str | None = described(
        "Commit of the kit, with '+dirty' where files outside output/ differ; null outside a "
        "checkout."
    )
    command: tuple[str, ...] = described("The command line.")
    variables: dict[str, str] = described(
        "Environment variables, of those that change results or speed, that were set."
    )
    host_id: str | None = described(
        "Hash of the host's name and machine-id, alike in the records of one host; null in older "
        "records.",
        default=None,
    )
    git_origin: str | None = described(
        "Public address that the kit's checkout is a clone of, without credentials; null for none.",
        default=None,
    )
    cann_library: str | None = described(
        "Path of the libascendcl.so that was loaded; null without CANN.", default=None
    )


@record_type
class Patch:
    """What npu_patch did at import."""

    applied: bool = described("Whether torch.cuda is torch.npu in this run.")
    reason: str = described("Why it was applied, or why it was not.")


@record_type
class OperatorArithmetic:
    """What one operator of the device computes in, found by a probe."""

    operator: str = described("The operator, for example matrix product or GELU.")
    asked: str = described("What was asked for: a data type, hf32, tf32, or a form of GELU.")
    found: str = described("The documented arithmetic that it meets, or that it is none of them.")
    nearest: str = described("The documented arithmetic that comes nearest.")
    residual: float | None = described(
        "Relative distance from the nearest (GELU: in distances of its two forms); null where it "
        "is not finite."
    )
    tolerance: float = described("Up to this residual it is that arithmetic.")


@record_type
class DeviceArithmetic:
    """What the device computes in, measured before anything is compared."""

    operators: tuple[OperatorArithmetic, ...] = described("One entry per operator.")
    overflow: Literal["infinity", "saturates"] = described(
        "What a product beyond the range becomes: infinity, or the largest number."
    )
    repeatable: bool = described("Whether the same product gives the same bits again.")


@record_type
class DeviceInfo:
    """The device that computed, and how it rounds."""

    type: DeviceType = described("Kind of device.")
    index: int | None = described("Index among the visible devices; null for the CPU.")
    name: str = described("The chip's or processor's name.")
    count: int = described("Visible devices of this type on this host; 1 for the CPU.")
    torch_device: str = described("As torch prints it, for example npu:0.")
    matmul_fp32: Products = described(
        "What fp32 matrix products compute in: as measured, as set where that meets no documented "
        "arithmetic or the run is not in fp32."
    )
    convolution_fp32: Products = described("The same of fp32 convolutions.")
    arithmetic: DeviceArithmetic | None = described(
        "What it computes in, measured; null for the CPU, which computes as it is set."
    )
    cpu_fallbacks: tuple[str, ...] | None = described(
        "Operators that the NPU back end handed to the CPU during the run; null where a variable "
        "silences its messages, so that nobody knows."
    )
    jit_compile: bool | None = described(
        "Whether torch_npu compiles operators at run time; null where unknown and off an NPU."
    )
    internal_format: bool | None = described(
        "Whether torch_npu may lay tensors out in formats of its own; the same."
    )
    memory_free_bytes: int | None = described("Free device memory at the end; null for the CPU.")
    memory_total_bytes: int | None = described("Device memory in all; null for the CPU.")
    known_answer_checks: int = described(
        "Known-answer computations that the device passed, one after each phase."
    )


@record_type
class ModelInfo:
    """The model and where its weights come from."""

    weights: str | None = described("Folder of the weights; null for random weights.")
    source: Source = described("Where the weights come from; 'random' means no real features.")
    sha256: str = described(
        "Of the one safetensors file; of the lines of `sha256sum *.safetensors` where there "
        "are several; of the tensors' bytes in the order of their names for random weights."
    )
    architecture: str = described("The transformers class.")
    parameters: int = described("Number of parameters.")
    dtype: str = described("Compute type: fp32, bf16 or fp16.")
    attention: str | None = described("sdpa or eager; null for a model without attention.")


@record_type
class InputInfo:
    """The image, or the first image of a folder, and what the model was given."""

    image: str = described("Path of the image as it was given or found.")
    sha256: str = described("Of the image file's bytes.")
    width: int = described("Width of the upright image in pixels, before preprocessing.")
    height: int = described("Height of the upright image in pixels, before preprocessing.")
    shape: tuple[int, ...] = described(
        "Shape of the model's input: batch, channels, rows, columns."
    )
    preprocessing: str = described("The preprocessing steps in order, in words.")
    images: int = described("How many images the run was given.")


@whole_record
class Record:
    """One run of one script. Each script's own record adds `script` and `results`."""

    schema_version: str = described("Version of this layout.", default=SCHEMA_VERSION)
    script: str = described("The script that ran.")
    status: Status = described("'partial' where the run was stopped and kept what it had.")
    started_at: str = described("Start of the run, ISO 8601 with offset from UTC.")
    environment: Environment = described("Software and host.")
    patch: Patch = described("What npu_patch did.")
    device: DeviceInfo = described("The device that computed.")
    model: ModelInfo = described("The model.")
    input: InputInfo = described("What went in.")
    warnings: tuple[str, ...] = described("Every warning that the run printed.")


# ---- inference.json ------------------------------------------------------------------------------


@record_type
class TensorSummary:
    """One output tensor in brief."""

    shape: tuple[int, ...] = described("Shape of the tensor.")
    dtype: str = described("Type of its elements, as torch names it.")
    device: str = described("Device that holds it, as torch names it.")
    first_values: tuple[float, ...] = described("Its first five values in memory order.")
    finite: bool = described("Whether every value is finite; a run with others ends as an error.")


@record_type
class ImageResult:
    """The result for one image of a folder."""

    image: str = described("Path of the image.")
    sha256: str = described("Of the image file's bytes.")
    width: int = described("Width of the upright image in pixels.")
    height: int = described("Height of the upright image in pixels.")
    latency_ms: float = described("Wall-clock time of one synchronized forward, in ms.")
    first_values: tuple[float, ...] = described("First five values of its pooler_output.")


@record_type
class Repeats:
    """Forwards of one input, each compared with the first timed one, element by element."""

    forwards: int = described("How many were compared with the first one.")
    differing: int = described("How many of these differ from it in at least one element.")
    largest_difference: float | None = described(
        "Largest absolute difference of an element; null where a value is not finite."
    )


@record_type
class InferenceResults:
    """What inference.py found, for the first image; `images` has every one."""

    latency_ms: float = described(
        "Median wall-clock time of a synchronized forward after one warm-up forward, in ms."
    )
    samples_ms: tuple[float, ...] = described(
        "Every timed forward of the first image, in ms: up to 20 within about a second."
    )
    repeats: Repeats = described(
        "The warm-up and the further timed forwards beside the first; beside the warm-up where "
        "the first is not finite."
    )
    pooler_output: TensorSummary = described("The pooled feature: batch, width.")
    last_hidden_state: TensorSummary = described("All tokens: batch, tokens, width.")
    images: tuple[ImageResult, ...] = described("One entry per image, in the order of their names.")
    failures: tuple[str, ...] = described(
        "Where forwards of the same input are further apart than the limits or not finite, why "
        "this is no result; else empty.",
        default=(),
    )


@whole_record
class InferenceRecord(Record):
    """One run of inference.py."""

    script: Literal["inference"] = described("The script that ran.", default="inference")
    results: InferenceResults = described("What came out.")


# ---- benchmark.json ------------------------------------------------------------------------------


@record_type
class Statistics:
    """Figures of a list of times, under the names that the published report uses."""

    iterations: int = described("How many samples the figures stand on.")
    mean_ms: float = described("Arithmetic mean, in ms.")
    stddev_ms: float = described("Standard deviation of the samples (numpy.std), in ms.")
    min_ms: float = described("Smallest sample, in ms.")
    max_ms: float = described("Largest sample, in ms.")
    p50_ms: float = described("50th percentile, linear between samples (numpy.percentile), in ms.")
    p90_ms: float = described("90th percentile, linear between samples, in ms.")
    p99_ms: float = described("99th percentile, linear between samples, in ms.")
    unsupported: tuple[str, ...] = described(
        "Names of the figures above that so few samples cannot support: a percentile p needs "
        "100 / (100 - p) samples, a standard deviation two."
    )
    samples_ms: tuple[float, ...] = described("Every sample in the order it was taken, in ms.")


@record_type
class RowCheck:
    """Whether a row computed what it should, found outside its timed forwards."""

    verdict: CheckVerdict = described(
        "'SELF-CHECK' for a pass on the CPU; 'FAIL': the row's figures are no result."
    )
    arithmetic: str = described("Row of the limits' table that was applied.")
    within_published_limits: bool = described(
        "Whether it keeps the published 1 % and 0.999 too, whatever its arithmetic's limits are."
    )
    images: int = described(
        "Images held against the fp32 model on the CPU: the batch's, all different up to eight, "
        "and a second batch with each in another's place."
    )
    relative_error: float | None = described(
        "Largest relative error (L2) of an image's pooler_output or last_hidden_state; null where "
        "a value is not finite."
    )
    token_relative_error: float | None = described("The same of a single token.")
    cosine_similarity: float | None = described("The smallest cosine of these tensors.")
    max_abs_diff: float | None = described("The largest absolute difference in them.")
    repeats: Repeats = described("Every timed forward beside the row's first, on the device.")
    reasons: tuple[str, ...] = described("Why it fails; else empty.")
    check_ms: float = described("What the check cost, in ms; no part of it is timed.")


@record_type
class WarmUp:
    """The forwards before the timed ones."""

    iterations: int = described("How many there were.")
    steady: bool = described(
        "Whether their last two windows agreed within 3 % or their noise, before the bound of "
        "100 forwards or 10 s."
    )
    window: int = described("Forwards in one window.")
    samples_ms: tuple[float, ...] = described("Wall-clock time of each, in ms.")


@record_type
class Latency(Statistics):
    """Times of synchronized forwards of one batch; the unmarked figures are wall-clock times."""

    batch_size: int = described("Images in the batch.")
    warm_up: WarmUp = described("The forwards before the timed ones.")
    check: RowCheck | None = described("Whether they are right; null where Ctrl-C came before it.")
    device_p50_ms: float | None = described(
        "Median time between two events on the device's stream, in ms; null for the CPU."
    )
    device_samples_ms: tuple[float, ...] | None = described("Each of them, in ms.")
    host_p50_ms: float | None = described(
        "Median time until the device has been given all of it, in ms: what a forward costs the "
        "host; null for the CPU, which computes within the call."
    )
    host_samples_ms: tuple[float, ...] | None = described("Each of them, in ms.")


@record_type
class Memory:
    """Most memory in use at once."""

    host_peak_bytes: int | None = described(
        "Most resident memory of the process since it started; null where unknown."
    )
    device_peak_bytes: int | None = described("Most that tensors held; null for the CPU.")
    device_reserved_peak_bytes: int | None = described(
        "Most that torch took from the device; null for the CPU."
    )


@record_type
class ThroughputRow:
    """One batch size of the sweep."""

    batch_size: int = described("Images in the batch.")
    status: RowStatus = described(
        "'failed': its check failed, so that there is no throughput; 'out_of_memory': not "
        "measured, and the sweep ends here; 'interrupted': from the samples until Ctrl-C."
    )
    searched: bool = described(
        "Whether the batch size was found after a larger one ran out of memory."
    )
    throughput_ips: float | None = described(
        "Images per second: batch_size over avg_latency_ms; null where not measured or failed."
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
    utilization: float | None = described(
        "Least time that the device needs for the batch (limit) over avg_latency_ms; null where "
        "either was not measured.",
        default=None,
    )
    bound: Bound | None = described(
        "What holds its forwards back; null where not measured.", default=None
    )


@record_type
class Phases:
    """Where the time of a run goes, phase by phase; null where a phase was not reached."""

    import_ms: float = described("Importing torch, transformers and the kit.")
    load_ms: float = described("From the weights' files to the model in host memory.")
    references_ms: float = described("The features on the CPU that every row is checked against.")
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
    decode_ms: float | None = described(
        "Median time from the first image's file to its pixels; null in older records.",
        default=None,
    )
    pipeline_ips: float | None = described(
        "Images per second of a stream from files, in which decode, preprocessing, copy and the "
        "forward of the best batch each work on another image; on the CPU one after the other.",
        default=None,
    )
    pipeline_stage: Stage | None = described("The stage that takes longest in it.", default=None)


@record_type
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


@record_type
class PrecisionLimit:
    """What the device reaches in one precision, in bare matrix products of the model's shapes."""

    precision: str = described("fp32, strict-fp32, bf16, fp16 or fp32-fast-math.")
    flops_per_s: float | None = described(
        "Most FLOP/s over the batch sizes that were tried; null where not measured."
    )
    batch_size: int | None = described("The batch size whose products reached it.")
    weight_bytes: int = described("Bytes of the parameters in this precision.")
    attainable_latency_ms: float | None = described(
        "Least time for one image: the larger of FLOPs over flops_per_s and weight_bytes over "
        "bytes_per_s, in ms; null where either is not known."
    )
    attainable_throughput_ips: float | None = described(
        "flops_per_s over flops_per_image: images per second of large batches at the limit."
    )
    reason: str | None = described("Why there is no limit, or no utilization; else null.")


@record_type
class Limit:
    """What this device reaches, measured in this run, and what a forward asks of it."""

    flops_per_image: int = described(
        "Floating-point operations of one image's forward by torch's formulas (products and "
        "convolutions, a multiplication and an addition each counting one)."
    )
    bytes_per_image: int = described(
        "Bytes that the operators of an fp32 forward read and write for one image, each from and "
        "to memory, without the weights."
    )
    bytes_per_s: float | None = described(
        "Memory bandwidth: bytes read and written by a plain copy, per second; null where not "
        "measured."
    )
    precisions: tuple[PrecisionLimit, ...] = described("One entry per precision that was measured.")
    bound: Bound | None = described(
        "What holds back a stream of images through the main mode's best batch: 'transfer' where "
        "images reach the device more slowly than it computes, else that row's bound."
    )
    summary: str = described("Utilization and bound of the best batch in a sentence.")
    measuring_ms: float = described("What measuring the limit cost, in ms.")


@record_type
class LadderRow:
    """One mode: its speed, what it costs, and its error against the fp32 CPU reference."""

    mode: str = described("PRECISION-ATTENTION and what --modes appends to it, such as -graph.")
    dtype: str = described("Compute type: fp32, bf16 or fp16.")
    strict_fp32: bool = described("Whether HF32 and TF32 were off.")
    attention: str = described("sdpa or eager.")
    graph: bool = described("Whether the forward was captured and replayed.")
    latency: Latency = described("At batch 1.")
    throughput: tuple[ThroughputRow, ...] = described("The sweep over the batch sizes.")
    best_throughput_ips: float | None = described("Most images per second in the sweep.")
    best_batch_size: int | None = described("The batch size that gave it.")
    memory: Memory = described("Peaks over this mode.")
    verdict: CheckVerdict = described("'FAIL' where the check of any of its rows fails.")
    within_published_limits: bool = described("Whether every row keeps 1 % and 0.999.")
    relative_error: float | None = described(
        "The largest of its rows' checks; null where a value is not finite."
    )
    cosine_similarity: float | None = described(
        "The smallest of its rows' checks; null where a value is not finite."
    )
    max_abs_diff: float | None = described(
        "The largest of its rows' checks; null where a value is not finite."
    )
    bits_equal_eager: bool | None = described(
        "Whether a replay's features equal the eager forward's to the last bit, for two images; "
        "null without graph capture."
    )
    channels_last: bool = described(
        "Whether images and convolution weights lay with the channels innermost.", default=False
    )
    compiled: bool = described("Whether torch.compile made its code.", default=False)
    fast_math: bool = described(
        "Whether oneDNN rounded the inputs of fp32 products to bf16.", default=False
    )
    compile_ms: float | None = described(
        "The first call at batch 1, in which torch.compile works, in ms, beside what is timed; "
        "null without it.",
        default=None,
    )
    utilization: float | None = described(
        "At batch 1, as in the sweep's rows; null where not measured.", default=None
    )
    bound: Bound | None = described("At batch 1, the same.", default=None)


@record_type
class SkippedMode:
    """A mode that was asked for and not measured."""

    mode: str = described("Its name.")
    reason: str = described("Why it was not measured.")


@record_type
class RankLatency:
    """One rank of torchrun: its device, and its batch-1 latency beside the other ranks."""

    rank: int = described("Number of the process.")
    host: str = described("Name of its host.")
    torch_device: str = described("Its device, as torch prints it.")
    name: str = described("The chip's or processor's name.")
    latency: Statistics = described("At batch 1.")


@record_type
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


@record_type
class Ranks:
    """The run on all devices."""

    world_size: int = described("Number of ranks.")
    ranks: tuple[RankLatency, ...] = described("One entry per rank.")
    throughput: tuple[ScalingRow, ...] = described("One row per batch size.")


@record_type
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


@record_type
class Regression:
    """The comparison with an earlier record."""

    baseline: str = described("Path of the earlier record.")
    baseline_started_at: str = described("When it was made.")
    max_regression_percent: float = described("The limit.")
    comparisons: tuple[Comparison, ...] = described("Every figure that both records have.")
    passed: bool = described("Whether nothing regressed.")


@record_type
class ProfiledOperator:
    """One operator in the profile."""

    name: str = described("As torch names it, or the kernel on an NPU and in a graph.")
    share: float = described("Of the time of all operators.")
    calls: float = described("In one forward.")
    time_ms: float = described("In one forward, without the operators that it calls, in ms.")


@record_type
class Profile:
    """Where the time of some forwards of the main mode goes, at batch 1, under a profiler."""

    profiler: Literal["torch.profiler", "torch_npu.profiler"] = described("What looked.")
    side: Literal["device", "host"] = described(
        "Whether the operators' times are the device's, or the host's: on the CPU, and where "
        "nothing is known of the device."
    )
    forwards: int = described("How many were profiled.")
    batch_size: int = described("Images in the batch.")
    wall_ms: float = described("One of them by the clock, profiled, in ms.")
    profiled_ms: float | None = described(
        "The same by the profiler: all it saw of the host; null for torch_npu.profiler."
    )
    operators_ms: float = described("In operators, of one forward, in ms.")
    busy_share: float = described(
        "Of wall_ms, in which the device computed; the host in operators where side is 'host'."
    )
    launches_per_forward: float | None = described(
        "Kernels that the device was given for one forward, 1 for a graph; null where side is "
        "'host'."
    )
    operators: tuple[ProfiledOperator, ...] = described("The ten that take longest.")
    problem: str | None = described("Why nothing is known of the device; else null.")


@record_type
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
    fastest_published_mode: str | None = described(
        "The same of those that keep the published 1 % and 0.999."
    )
    ranks: Ranks | None = described("All devices under torchrun; null with one process.")
    scaling_efficiency: float | None = described(
        "Of the batch size with the highest total throughput; null with one process."
    )
    regression: Regression | None = described("The comparison; null without --baseline.")
    fastest_passing_command: str | None = described(
        "The command that runs fastest_passing_mode as this run did; null without one.",
        default=None,
    )
    profile: Profile | None = described(
        "Where a forward's time goes; null without --profile.", default=None
    )
    limit: Limit | None = described(
        "What the device reaches; null in older records, with Ctrl-C and where it failed.",
        default=None,
    )


@whole_record
class BenchmarkRecord(Record):
    """One run of benchmark.py."""

    script: Literal["benchmark"] = described("The script that ran.", default="benchmark")
    results: BenchmarkResults = described("What came out.")


# ---- accuracy.json -------------------------------------------------------------------------------


@record_type
class LimitsInfo:
    """The limits that were applied."""

    arithmetic: str = described("Row of the limits' table: fp32, hf32, tf32, bf16 or fp16.")
    relative_error: float = described("The whole vector's relative error must be below this.")
    cosine: float = described("The whole vector's cosine must be above this.")
    token_relative_error: float = described("Every token's relative error must be below this.")
    operator_error: float = described(
        "An operator's own result that is this far off, and unexplained, is wrong."
    )
    rope_and_norm_error: float = described(
        "The same for RoPE and norms before which all in the block is explained."
    )
    operator_token_error: float = described("The same for one token of any operator's result.")
    budget_factor: float = described(
        "An error counts as explained up to this many times what the arithmetic explains."
    )
    reason: str = described("Why these limits.")


@record_type
class TokenPlace:
    """One token: where it is and how wrong."""

    token: int = described("Position among the tokens, from 0.")
    kind: Literal["CLS", "register", "patch", "vector"] = described(
        "What it is; 'vector' for a model or tensor without tokens."
    )
    row: int | None = described("Row of the patch, from 0 at the top; null for other tokens.")
    column: int | None = described("Column of the patch, from 0 at the left; null for others.")
    relative_error: float | None = described("Of this token; null where it is not finite.")
    cosine: float | None = described("Of this token; null where it is not finite.")


@record_type
class Percentile:
    """One percentile of the tokens' relative errors."""

    percent: float = described("Share of the tokens with at most this error, in percent.")
    relative_error: float | None = described("The error, by linear interpolation.")


@record_type
class PartAccuracy:
    """One part of the tokens as one vector."""

    part: Literal["CLS", "registers", "patches"] = described("Which tokens.")
    relative_error: float | None = described("Device against the reference; null: not finite.")
    cosine: float | None = described("Device against the reference; null: not finite.")
    fp64_relative_error: float | None = described("Device's relative error against fp64.")
    cpu_fp64_relative_error: float | None = described("CPU fp32's relative error against fp64.")


@record_type
class TensorAccuracy:
    """One output tensor of the device beside its references."""

    shape: tuple[int, ...] = described("Shape of the tensor.")
    device: str = described("Device that computed it, as torch names it.")
    relative_error: float | None = described(
        "||device - reference|| / ||reference||; null where it is not finite."
    )
    relative_error_passed: bool = described("Whether it is below its limit.")
    cosine: float | None = described("Cosine of device and reference; null: not finite.")
    cosine_passed: bool = described("Whether it is above its limit.")
    mse: float | None = described("Mean squared difference from the reference.")
    max_abs_diff: float | None = described("Largest difference from the reference.")
    passed: bool = described("Whether everything about this tensor is inside its limits.")
    fp64_relative_error: float | None = described("The device's relative error against fp64.")
    cpu_fp64_relative_error: float | None = described("The CPU's fp32 relative error against fp64.")
    expected_error: float | None = described(
        "Relative error against fp64 that the declared arithmetic explains, computed for these "
        "weights and this image."
    )
    worst_token: TokenPlace = described("The token furthest from the reference.")
    token_percentiles: tuple[Percentile, ...] = described("Of the tokens' relative errors.")
    identical_bits: bool = described("Whether device and CPU fp32 agree to the last bit.")


@record_type
class OperatorError:
    """One operator's own error, on the device's own input of its block."""

    name: str = described("The module inside the block, with .input or .output.")
    operator: str = described("Class of operator, for example attention, MLP, norm or RoPE.")
    relative_error: float | None = described("Against fp64 on the same input; null: not finite.")
    expected_error: float = described("The same figure of the declared arithmetic.")
    token_error: float | None = described("Relative error of the worst token; null: not finite.")
    expected_token_error: float = described("The declared arithmetic's worst token.")
    times_limit: float | None = described(
        "How many times its limit it is, above 1 unexplained; null where it is not finite."
    )
    token: int | None = described(
        "Position of the worst token among all vectors of the result; null for a wrong shape."
    )


@record_type
class BlockAccuracy:
    """The error after one block, and the worst operator inside it."""

    block: int = described("-1 the embedding, 0 and up the blocks, their number the final norm.")
    name: str = described("The module's path in the model.")
    relative_error: float | None = described(
        "Device against fp64 after this block, everything before it included."
    )
    cpu_relative_error: float | None = described("CPU fp32 against fp64 after this block.")
    expected_error: float = described("What the declared arithmetic explains after this block.")
    explained: bool = described("Whether every operator of the block is explained by itself.")
    sum_explained: bool = described(
        "Whether the error after the block, with all that earlier blocks hand on, is explained."
    )
    worst_operator: OperatorError | None = described("The operator closest to or beyond its limit.")
    worst_token: TokenPlace | None = described("The worst token of the block's output.")


@record_type
class Cause:
    """One known cause, switched in --explain."""

    cause: str = described("What was switched.")
    where: Literal["device", "reference"] = described(
        "'device': the device computed again; 'reference': the CPU imitated the cause."
    )
    relative_error: float | None = described(
        "With the switch, of last_hidden_state: the device's error against fp64, or its distance "
        "from the CPU that imitates the cause on top of the declared arithmetic."
    )
    before: float | None = described("The same figure without the switch.")
    removes: float | None = described("Share of it that the switch removes, 0 to 1.")
    note: str = described("Why it was not tried, or empty.")


@record_type
class ImageAccuracy:
    """One image of a folder."""

    image: str = described("Path of the image.")
    sha256: str = described("Of the image file's bytes.")
    pooler_relative_error: float | None = described("pooler_output against the reference.")
    pooler_cosine: float | None = described("pooler_output against the reference.")
    relative_error: float | None = described("last_hidden_state against the reference.")
    cosine: float | None = described("last_hidden_state against the reference.")
    max_abs_diff: float | None = described("last_hidden_state against the reference.")
    token_relative_error: float | None = described("Worst token of last_hidden_state.")
    token: int = described("Which token that is.")
    passed: bool = described("Whether the image is inside every limit.")


@record_type
class BrokenImage:
    """One file that could not be decoded."""

    image: str = described("Path of the file.")
    reason: str = described("What is wrong with it.")


@record_type
class NeighbourAgreement:
    """Whether device and reference features find the same nearest images."""

    images: int = described("Images compared with each other.")
    top1: float | None = described("Share of images whose nearest neighbour is the same.")
    top5: float | None = described("Mean share of the five nearest neighbours in common.")


@record_type
class FolderAccuracy:
    """A whole folder of images."""

    images: int = described("Images that were compared.")
    failed: int = described("Images beyond a limit.")
    broken: tuple[BrokenImage, ...] = described("Files that were skipped; in the verdict's count.")
    cached: int = described("CPU references taken from the disk.")
    percentiles: tuple[Percentile, ...] = described("Of the images' last_hidden_state errors.")
    worst: tuple[ImageAccuracy, ...] = described("The worst images, worst first.")
    neighbours: NeighbourAgreement = described("Of pooler_output, by cosine.")
    ranks: int = described("Processes that shared the work.")


@record_type
class ChipGelu:
    """The device's outputs with the chip's own form of GELU, which npu_patch replaces."""

    form: str = described("The form: tanh, or that it is none of the known ones.")
    pooler_relative_error: float | None = described("pooler_output against the reference.")
    relative_error: float | None = described("last_hidden_state against the reference.")


@record_type
class FeaturesFile:
    """A safetensors file with the device's features of the judged images, unsigned."""

    file: str = described("Its path; beside the record where the run wrote it.")
    sha256: str = described("Of its bytes.")
    device: str = described("What computed the features, as the file says.")
    declared: str = described("The arithmetic that it was found to compute in, as the file says.")
    images: int = described("How many images' features it holds.")
    reviewed: bool = described(
        "Whether these features were judged by --features, and no device has run."
    )


@record_type
class FeaturesComparison:
    """The judged features beside another device's, of the same weights and pixels."""

    features: FeaturesFile = described("The other device's.")
    limits: LimitsInfo = described("The limits of the coarser one of the two arithmetics.")
    failed: int = described("Images beyond a limit.")
    worst: tuple[ImageAccuracy, ...] = described("The images furthest apart, furthest first.")


@record_type
class CoverageCell:
    """One batch size, input size and mode, on different images, held against the CPU."""

    mode: str = described("PRECISION-ATTENTION, with -graph where it was captured.")
    batch_size: int = described("Images in the batch.")
    rows: int = described("Of the input, in pixels.")
    columns: int = described("Of the input, in pixels.")
    images: int = described("How many different images the batch holds.")
    relative_error: float | None = described(
        "The largest of all images and both outputs; null where it is not finite or not measured."
    )
    cosine: float | None = described("The smallest of them; the same.")
    token_relative_error: float | None = described("The worst token of them; the same.")
    expected_error: float | None = described(
        "What the arithmetic explains beside the CPU's own error; of the run's own image without "
        "--coverage, of the cell's first image with it."
    )
    passed: bool = described("Whether every image is inside every limit.")
    reason: str | None = described("Why it is not, for the first image; null where it is.")


@record_type
class SoakBatch:
    """One batch size of a soak."""

    batch_size: int = described("Images in the batch.")
    forwards: int = described("How often it was computed.")
    distinct_results: int = described("How many different results it gave, by their bits.")
    early_ms: float | None = described("Median wall-clock time of its first 25 forwards, in ms.")
    late_ms: float | None = described("The same of its last 25; null before there are more.")
    drift: float | None = described("late_ms over early_ms, less 1; null where unknown.")


@record_type
class SoakDeviation:
    """The first forward of a soak whose bits differ from the same batch's first one."""

    forward: int = described("Its number in the soak, from 1.")
    at: str = described("When it was, ISO 8601 with offset from UTC.")
    after_s: float = described("Seconds since the soak began.")
    batch_size: int = described("Images in its batch.")
    tensor: str = described("pooler_output or last_hidden_state: where it differs most.")
    image: int = described("Place in the batch where it differs most, from 0.")
    token: int | None = described("Token where it differs most; null in pooler_output.")
    largest_difference: float | None = described("Absolute; null where a value is not finite.")
    passed: bool = described("Whether it is inside the limits all the same.")


@record_type
class Soak:
    """The same inputs again and again, in changing batch sizes."""

    seconds: float = described("How long it took.")
    forwards: int = described("How many there were, each followed by a known answer.")
    beyond_limits: int = described("How many of them were beyond a limit.")
    end: SoakEnd = described("'complete' as asked for, 'interrupted' by Ctrl-C, or a device error.")
    reason: str | None = described("The first wrong result or the device's error; else null.")
    first_deviation: SoakDeviation | None = described("Null where all bits are the same.")
    batches: tuple[SoakBatch, ...] = described("One entry per batch size.")
    early_host_peak_bytes: int | None = described(
        "Most resident memory of the process after two rounds; null where unknown."
    )
    host_peak_bytes: int | None = described("The same at the end: flat where both are alike.")
    early_device_peak_bytes: int | None = described(
        "Most device memory that tensors held in two rounds; null for the CPU.", default=None
    )
    device_peak_bytes: int | None = described("The same in all of them.", default=None)


@record_type
class AccuracyResults:
    """What accuracy.py found; of the worst image where there is a folder."""

    verdict: str = described("The verdict as it is printed.")
    outcome: OutcomeName = described("The verdict for programs.")
    reasons: tuple[str, ...] = described("Why it failed, or what is unexplained; else empty.")
    image: str = described("The image that the figures below belong to.")
    source: str = described("Where the weights come from; 'random' means no real features.")
    reference: Literal["CPU fp32", "CPU fp64"] = described(
        "What the device is held against; fp64 where the device itself is the CPU."
    )
    declared: str = described("The arithmetic that the device declares, in words.")
    limits: LimitsInfo = described("The limits that were applied.")
    pooler_output: TensorAccuracy = described("The pooled feature.")
    last_hidden_state: TensorAccuracy = described("All tokens.")
    parts: tuple[PartAccuracy, ...] = described("CLS, registers and patches apart.")
    blocks: tuple[BlockAccuracy, ...] = described("In the order of execution.")
    first_unexplained_block: int | None = described(
        "-1 the embedding, 0 and up the blocks, their number the final norm, null none."
    )
    first_unexplained_operator: OperatorError | None = described(
        "The first operator inside that block beyond its limit; null where there is none."
    )
    chip_gelu: ChipGelu | None = described(
        "The outputs with the chip's own GELU; null where it is the form that was asked for."
    )
    explain: tuple[Cause, ...] = described("Known causes switched one by one; --explain only.")
    folder: FolderAccuracy | None = described("The whole folder; null for a single image.")
    features: FeaturesFile | None = described(
        "Where the device's features of the judged images are; null in older records.",
        default=None,
    )
    against: FeaturesComparison | None = described(
        "The features beside another device's; --against only.", default=None
    )
    coverage: tuple[CoverageCell, ...] = described(
        "Other batch sizes, input sizes and modes: a small set, all of them with --coverage.",
        default=(),
    )
    soak: Soak | None = described("The same inputs again and again; --soak only.", default=None)


@whole_record
class AccuracyRecord(Record):
    """One run of accuracy.py."""

    script: Literal["accuracy"] = described("The script that ran.", default="accuracy")
    results: AccuracyResults = described("What came out.")


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
    """Return the record as UTF-8 JSON, keys in the order of the dataclasses.

    Raises:
        ValueError: where a value is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=2)
    # A file name's bytes that are no UTF-8 are lone surrogates in Python, which JSON lacks.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\\\x{ord(found[0]) & 0xFF:02x}", text)
    return f"{text}\n".encode()


def decode(content: bytes, record: type[AnyRecord]) -> AnyRecord:
    """Return the record that JSON holds, every field checked; fields of later versions are ignored.

    Args:
        content: of a file that may hold anything.
        record: what it should be.

    Raises:
        RecordError: where it is not one, with the first place that is wrong.
        ModuleNotFoundError: where msgspec, which decodes it, is not installed.
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


# ---- JSON Schema and docs/records.md -------------------------------------------------------------

DOCS = Path(__file__).resolve().parent.parent / "docs"
INTRODUCTION = f"""# The records

<!-- Written by python3 -m kit.records from the dataclasses in kit/records.py. -->

Each script leaves one JSON object: `output/inference.json`, `output/benchmark.json`,
`output/accuracy.json`. They are for programs: files appear whole or not at all, every field below
is always there, a value that is not known or does not apply is `null`, and no number is NaN or
infinite. The same as JSON Schema (2020-12): [inference](schema/inference.schema.json),
[benchmark](schema/benchmark.schema.json), [accuracy](schema/accuracy.schema.json).

**Version.** `schema_version` is `{SCHEMA_VERSION}` here. The number before the point changes when a
field goes, is renamed or changes its meaning: refuse what you do not know. The number behind it
changes when fields are added: ignore those.

**Units** stand at the end of a name: `_ms` milliseconds, `_ns` nanoseconds, `_bytes` bytes, `_ips`
images per second, `_percent` per cent. `relative_error`, `cosine` and shares have none.

**Many hosts in one table.** [collect.py](collect.py) needs nothing but Python. It reads folders
with records and writes CSV, one row per folder:

```bash
python3 docs/collect.py host-a/output host-b/output > hosts.csv
```
"""


def schema(record: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record: every field is required, no other allowed."""
    import msgspec  # as in decode

    _, parts = msgspec.json.schema_components([record], ref_template="#/$defs/{name}")
    parts = json.loads(json.dumps(parts))  # a default that is a tuple is a list there
    types = {kind.__name__: kind for kind in _dataclasses_in(record)}
    for name, part in parts.items():
        fields = {field.name: field for field in dataclasses.fields(types[name])}
        part["properties"] = {
            key: {"description": fields[key].metadata["description"], **part["properties"][key]}
            for key in fields
        }
        part |= {"required": list(fields), "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **parts.pop(record.__name__),
        "$defs": dict(sorted(parts.items())),
    }


def _dataclasses_in(kind: Any) -> Iterator[type]:  # noqa: ANN401 - a type or a part of an annotation
    """Yield the dataclasses that a type reaches, itself first."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from _dataclasses_in(hint)
    for argument in typing.get_args(kind):
        yield from _dataclasses_in(argument)


def documentation() -> str:
    """Return docs/records.md."""
    shared = schema(Record)
    parts = [INTRODUCTION, "## In every record\n", _table(shared)]
    parts += _objects(Record, shared, known := set[str]())
    for script, record in RECORDS.items():
        parts.append(f"## `results` of {script}.json\n")
        parts += _objects(record, schema(record), known)
    return "\n".join(parts)


def _objects(record: type[Record], whole: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """Yield heading, sentence and table of each object in a record that is not yet known."""
    for name in (kind.__name__ for kind in _dataclasses_in(record)):
        if name in whole["$defs"] and name not in known:
            known.add(name)
            part = whole["$defs"][name]
            yield f"### {name}\n\n{part['description']}\n\n{_table(part)}"


def _table(part: Mapping[str, Any]) -> str:
    """Return one row per field."""
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    for name, entry in part["properties"].items():
        meaning = entry["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_words(entry)} | {meaning} |")
    return "\n".join([*lines, ""])


def _type_words(field: Mapping[str, Any]) -> str:
    """Return a field's type as a reader sees it, with a link where it is an object."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type_words(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        return f"list of {_type_words(field['items'])}"
    if field["type"] == "object":
        return f"names to {_type_words(field['additionalProperties'])}"
    return str(field["type"])


def main() -> int:
    """Write every record's JSON Schema, and docs/records.md."""
    for script, record in RECORDS.items():
        text = json.dumps(schema(record), indent=2, ensure_ascii=False)
        (DOCS / "schema" / f"{script}.schema.json").write_text(f"{text}\n", encoding="utf-8")
    (DOCS / "records.md").write_text(documentation(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
