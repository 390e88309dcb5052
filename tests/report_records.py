"""Records of an imagined NPU for the tests of the report, with figures that are all different.

No model is run, but what follows from other figures does: a mean from its samples, the least cosine
from an error.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kit.accuracy.limits import LIMITS
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BenchmarkRecord,
    BenchmarkResults,
    BlockAccuracy,
    BrokenImage,
    Cause,
    ChipGelu,
    Comparison,
    DeviceArithmetic,
    DeviceInfo,
    Environment,
    FolderAccuracy,
    Harness,
    ImageAccuracy,
    ImageResult,
    InferenceRecord,
    InferenceResults,
    InputInfo,
    LadderRow,
    Latency,
    Limit,
    Memory,
    ModelInfo,
    NeighbourAgreement,
    OperatorArithmetic,
    OperatorError,
    PartAccuracy,
    Patch,
    Percentile,
    Phases,
    PrecisionLimit,
    Profile,
    ProfiledOperator,
    RankLatency,
    Ranks,
    Regression,
    Repeats,
    RowCheck,
    ScalingRow,
    SkippedMode,
    TensorAccuracy,
    TensorSummary,
    ThroughputRow,
    TokenPlace,
    WarmUp,
    encode,
)
from kit.report.load import PICTURES
from kit.statistics import statistics

Json = dict[str, Any]
STARTED_AT = {
    "inference": "2026-03-14T09:26:53+08:00",
    "benchmark": "2026-03-14T09:31:07+08:00",
    "accuracy": "2026-03-14T09:44:29+08:00",
}
NOW = datetime.fromisoformat("2026-03-14T12:00:00+08:00")  # when the report is made
ARITHMETIC = DeviceArithmetic(
    operators=(
        OperatorArithmetic("matrix product", "fp32", "fp32", "fp32", 2.583e-7, 8e-6),
        OperatorArithmetic("convolution", "hf32", "hf32", "hf32", 4.987e-7, 8e-6),
        OperatorArithmetic("GELU", "erf", "erf", "erf", 7.061e-4, 0.005),
        OperatorArithmetic("GELU of the chip", "erf", "tanh", "tanh", 8.113e-4, 0.005),
        OperatorArithmetic("softmax", "fp32", "none of the known ones", "fp32", 3.171e-5, 9.5e-7),
    ),
    overflow="infinity",
    repeatable=True,
)
SHA256 = "5a1c0b7de3" * 6 + "f00d"


def header(script: str) -> Json:
    """Return what every record starts with."""
    return {
        "status": "complete",
        "started_at": STARTED_AT[script],
        "environment": Environment(
            python="3.11.14", torch="2.9.0+cpu", torch_npu="2.9.0.post1", transformers="4.57.6",
            numpy="1.26.4", pillow="11.3.0", cann="8.5.0", driver="25.2.1",
            platform="Linux-5.10.0-aarch64-with-glibc2.34", cpu="Kunpeng-920", cpu_threads=24,
            cpu_affinity="0-23", numa_nodes=(0,), device_processes=1,
            git_commit="0123456789abcdef0123456789abcdef01234567",
            git_origin="https://example.com/npu/kit.git",
            command=(f"{script}.py", "--weights", "/opt/atomgit/weight/dinov3"),
            variables={"ASCEND_HOME_PATH": "/usr/local/Ascend", "TASK_QUEUE_ENABLE": "2"},
        ),
        "patch": Patch(True, "torch.cuda -> torch.npu"),
        "device": DeviceInfo(
            type="npu", index=0, name="Ascend910_9362", count=2, torch_device="npu:0",
            matmul_fp32="fp32", convolution_fp32="hf32", cpu_fallbacks=(), known_answer_checks=5,
            arithmetic=ARITHMETIC,
            jit_compile=False, internal_format=True,
            memory_free_bytes=61_203_283_968, memory_total_bytes=65_464_696_832,
        ),
        "model": ModelInfo(
            weights="/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m", source="modelscope",
            sha256=SHA256, architecture="DINOv3ViTModel", parameters=85660416, dtype="fp32",
            attention="sdpa",
        ),
        "input": InputInfo(
            image="data/val2017/000000000139.jpg", sha256="ab12" * 16, width=640, height=426,
            shape=(1, 3, 224, 224), preprocessing="rescale, resize, normalize", images=2,
        ),
        "warnings": (),
    }  # fmt: skip


def inference() -> InferenceRecord:
    """Return a record of inference.py."""
    values = (-0.4071133, -0.19327313, -0.13654466, -0.55771327, 0.03880494)
    image = ImageResult("data/val2017/000000000139.jpg", "ab12" * 16, 640, 426, 9.1734, values)
    other = ImageResult("data/val2017/000000000285.jpg", "cd34" * 16, 586, 641, 8.8221, values)
    return InferenceRecord(
        **header("inference"),
        results=InferenceResults(
            latency_ms=9.1734,
            samples_ms=(9.2, 9.1734, 9.1),
            repeats=Repeats(3, 0, 0.0),
            pooler_output=TensorSummary((1, 768), "torch.float32", "npu:0", values, True),
            last_hidden_state=TensorSummary((1, 201, 768), "torch.float32", "npu:0", values, True),
            images=(image, other),
        ),
    )


def samples(around: float, count: int) -> list[float]:
    """Return times that differ, in ms."""
    return [around * (0.96 + (n * 37 % 101) / 1000) for n in range(count)]


def row_check(batch: int, count: int, dtype: str, error: float | None) -> RowCheck:
    """Return the check of a row; one without an error fails, for its values are not finite."""
    fails = error is None
    return RowCheck(
        verdict="FAIL" if fails else "PASS",
        arithmetic="hf32" if dtype == "fp32" else dtype,
        within_published_limits=error is not None and error < 0.01,
        images=2 * batch,
        relative_error=error,
        token_relative_error=None if error is None else error * 2.3,
        cosine_similarity=None if error is None else 1 - error * error / 2,
        max_abs_diff=None if error is None else error * 2.7,
        repeats=Repeats(count, 0, None if fails else 0.0),
        reasons=("a later forward of the same input gave values that are NaN",) if fails else (),
        check_ms=41.9,
    )


def latency(
    batch: int, around: float, count: int = 12, dtype: str = "fp32", error: float | None = 0.006529
) -> Latency:
    """Return one batch size's times."""
    timed = samples(around, count)
    times = statistics(timed)
    return Latency(
        **vars(times),
        batch_size=batch,
        warm_up=WarmUp(14, True, 5, tuple(samples(around * 1.31, 14))),
        check=row_check(batch, count, dtype, error),
        device_p50_ms=0.873 * times.p50_ms,
        device_samples_ms=tuple(value * 0.873 for value in timed),
        host_p50_ms=0.611 * times.p50_ms,
        host_samples_ms=tuple(value * 0.611 for value in timed),
    )


def throughput(
    batch: int, around: float, dtype: str = "fp32", error: float | None = 0.006529
) -> ThroughputRow:
    """Return one row of the sweep."""
    times, fails = latency(batch, around, dtype=dtype, error=error), error is None
    return ThroughputRow(
        batch_size=batch,
        status="failed" if fails else "measured",
        searched=False,
        throughput_ips=None if fails else batch / times.mean_ms * 1e3,
        avg_latency_ms=None if fails else times.mean_ms,
        queued_throughput_ips=None if fails else batch / times.mean_ms * 1.07e3,
        latency=times,
        device_peak_bytes=(371 + 53 * batch) << 20,
    )


def rung(mode: str, around: float, error: float | None) -> LadderRow:
    """Return one mode of the ladder; one without an error fails."""
    dtype, attention, *rest = mode.split("-")
    sweep = (throughput(1, around, dtype, error), throughput(8, around * 1.4, dtype, error))
    check = row_check(1, 12, dtype, error)
    return LadderRow(
        mode=mode, dtype=dtype, strict_fp32=False, attention=attention, graph=bool(rest),
        latency=latency(1, around, 12, dtype, error), throughput=sweep,
        best_throughput_ips=sweep[1].throughput_ips, best_batch_size=None if error is None else 8,
        memory=Memory(2111 << 20, 391 << 20, 457 << 20), verdict=check.verdict,
        within_published_limits=check.within_published_limits,
        relative_error=check.relative_error, cosine_similarity=check.cosine_similarity,
        max_abs_diff=check.max_abs_diff, bits_equal_eager=True if rest else None,
    )  # fmt: skip


def benchmark() -> BenchmarkRecord:
    """Return a record of benchmark.py, with its ladder, ranks and a baseline."""
    ranks = tuple(
        RankLatency(n, f"host-{'ab'[n]}", f"npu:{n}", "Ascend910_9362",
                    statistics(samples(7.93 + n / 9, 12)))
        for n in range(2)
    )  # fmt: skip
    results = BenchmarkResults(
        mode="fp32-sdpa",
        latency=latency(1, 7.91, 120),
        throughput=(
            *(throughput(batch, 7.61 + batch * 0.41) for batch in (1, 2, 4, 8)),
            ThroughputRow(16, "out_of_memory", False, None, None, None, None, None),
        ),
        phases=Phases(6113.7, 431.9, 2417.9, 219.3, 1187.1, 1303.9, 7.907, 3.171, 0.437,
                      4.713, 1000 / 4.713, "decode"),
        memory=Memory(2239 << 20, 403 << 20, 467 << 20),
        harness=Harness(0.00119, 0.000151, "time.perf_counter_ns", 41.7, "off while timing",
                        "performance", 1.37),
        ladder=(
            rung("fp32-sdpa", 7.917, 0.006529),
            rung("fp32-eager", 9.133, 0.006611),
            rung("bf16-sdpa-graph", 3.271, 0.011973),
            rung("fp16-sdpa", 3.873, None),
        ),
        skipped_modes=(SkippedMode("fp16-sdpa-graph", "capture failed"),),
        fastest_passing_mode="bf16-sdpa-graph",
        fastest_passing_command="python3 benchmark.py --modes bf16-sdpa-graph --device npu",
        fastest_published_mode="fp32-sdpa",
        ranks=Ranks(2, ranks, (
            ScalingRow(8, 730.43, (721.13, 719.87), 1439.51, 1439.51 / 730.43 / 2),
        )),
        scaling_efficiency=1439.51 / 730.43 / 2,
        regression=Regression("old/benchmark.json", "2026-03-01T08:00:00+08:00", 10.0, (
            Comparison("latency at batch 1", 8.113, 7.791, 7.791 / 8.113, 0.2113, "faster"),
        ), True),
        profile=Profile("torch_npu.profiler", "device", 5, 1, 8.37, None, 6.61, 0.7897, 417.0, (
            ProfiledOperator("MatMulV2", 0.613, 72.0, 4.052),
            ProfiledOperator("FlashAttentionScore", 0.171, 12.0, 1.130),
        ), None),
    )  # fmt: skip
    limit = Limit(
        35_864_285_184, 121_000_000, 1.13e12,
        (PrecisionLimit("fp32", 61e12, 64, 342_654_000, 0.588, 61e12 / 35_864_285_184, None),
         PrecisionLimit("bf16", 233e12, 128, 171_327_000, 0.154, 233e12 / 35_864_285_184, None)),
        "host", "batch 8 in fp32 uses 43 % of what this device's own matrix products reach", 913.7,
    )  # fmt: skip
    return BenchmarkRecord(**header("benchmark"), results=near_the_limit(results, limit))


def near_the_limit(results: BenchmarkResults, limit: Limit) -> BenchmarkResults:
    """Return the results with each measured row's share of the limit."""

    def share(precision: str, row: LadderRow | ThroughputRow) -> dict[str, Any]:
        one = next((one for one in limit.precisions if one.precision == precision), None)
        if (
            one is None
            or one.flops_per_s is None
            or row.latency is None
            or limit.bytes_per_s is None
        ):
            return {}
        least_s = row.latency.batch_size * limit.flops_per_image / one.flops_per_s
        least_s = max(least_s, one.weight_bytes / limit.bytes_per_s)
        return {"utilization": least_s * 1e3 / row.latency.mean_ms, "bound": "host"}

    def sweep(precision: str, rows: Sequence[ThroughputRow]) -> tuple[ThroughputRow, ...]:
        return tuple(replace(row, **share(precision, row)) for row in rows)

    ladder = tuple(
        replace(row, **share(row.dtype, row), throughput=sweep(row.dtype, row.throughput))
        for row in results.ladder
    )
    throughput = sweep("fp32", results.throughput)
    return replace(results, limit=limit, ladder=ladder, throughput=throughput)


def tensor(shape: tuple[int, ...], error: float) -> TensorAccuracy:
    """Return one tensor's part of an accuracy record."""
    return TensorAccuracy(
        shape=shape, device="npu:0", relative_error=error, relative_error_passed=True,
        cosine=1 - 0.43 * error**2, cosine_passed=True, mse=error / 637.3, max_abs_diff=0.015562,
        passed=True, fp64_relative_error=error * 1.00037, cpu_fp64_relative_error=4.137e-7,
        expected_error=0.0007231,
        worst_token=TokenPlace(137, "patch", 9, 6, 0.02113, 0.999823),
        token_percentiles=(
            Percentile(50, 0.003117), Percentile(90, 0.005923), Percentile(99, 0.011871),
            Percentile(99.9, 0.020539),
        ),
        identical_bits=False,
    )  # fmt: skip


def block(number: int, name: str, error: float) -> BlockAccuracy:
    """Return one block's part of an accuracy record."""
    own, token = error / 3.1, error / 1.7
    times = max(own / (10 * 0.0002917), token / (10 * 0.0009733))
    gap = OperatorError("mlp.up_proj.output", "MLP", own, 0.0002917, token, 0.0009733, times, 137)
    return BlockAccuracy(number, name, error, error / 2013, error / 1.3, True, True, gap, None)


def accuracy() -> AccuracyRecord:
    """Return a record of accuracy.py on a folder, with --explain."""
    image = ImageAccuracy(
        "data/val2017/000000000139.jpg", "ab12" * 16, 0.006521, 0.999979, 0.003887, 0.999992,
        0.015562, 0.02113, 137, True,
    )  # fmt: skip
    return AccuracyRecord(
        **header("accuracy"),
        results=AccuracyResults(
            verdict="PASS", outcome="pass", reasons=(), image="data/val2017/000000000139.jpg",
            source="modelscope", reference="CPU fp32",
            declared="fp32 (matrix products fp32, convolutions hf32)",
            limits=LIMITS["hf32"],
            pooler_output=tensor((1, 768), 0.006521),
            last_hidden_state=tensor((1, 201, 768), 0.003887),
            parts=(
                PartAccuracy("CLS", 0.0031, 0.999995, 0.003217, 3.19e-7),
                PartAccuracy("registers", 0.0021, 0.999997, 0.002219, 2.77e-7),
                PartAccuracy("patches", 0.0041, 0.999991, 0.004311, 4.57e-7),
            ),
            blocks=(
                block(-1, "embeddings", 0.000713),
                *(block(n, f"layer.{n}", 0.0009 + n * 0.000217) for n in range(12)),
                block(12, "norm", 0.003887),
            ),
            first_unexplained_block=None, first_unexplained_operator=None,
            chip_gelu=ChipGelu("tanh", 0.007193, 0.004649), explain=(
                Cause("convolutions in fp32", "device", 0.000217, 0.003887, 0.9441, ""),
                Cause("eager attention", "device", None, None, None, "this run is eager already"),
            ),
            folder=FolderAccuracy(
                images=5000, failed=0,
                broken=(BrokenImage("data/val2017/broken.jpg", "is damaged"),),
                cached=3800,
                percentiles=(Percentile(50, 0.003771), Percentile(99, 0.006113)),
                worst=(image,), neighbours=NeighbourAgreement(4999, 0.9987, 0.9961), ranks=2,
            ),
        ),
    )  # fmt: skip


def everything() -> dict[str, Json]:
    """Return the three records of a run that passed, as their files have them, to be edited."""
    return {
        record.script: json.loads(encode(record))
        for record in (inference(), benchmark(), accuracy())
    }


def write(folder: Path, records: dict[str, Json], *, pictures: bool = True) -> Path:
    """Write records, and their pictures, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for script, record in records.items():
        (folder / f"{script}.json").write_text(json.dumps(record), encoding="utf-8")
        for name in PICTURES[script] if pictures else ():
            (folder / name).write_bytes(png(1200, 420))
    return folder


def png(width: int, height: int) -> bytes:
    """Return a grey picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    rows = (b"\0" + bytes([200]) * width) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x00\x00\x00\x00")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
