"""Records of an imagined NPU for the tests of the report: every state, no model is run."""

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kit.accuracy.results import limits_info
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BenchmarkRecord,
    BlockAccuracy,
    BrokenImage,
    Cause,
    DeviceInfo,
    Environment,
    FolderAccuracy,
    ImageAccuracy,
    ImageResult,
    InferenceRecord,
    InferenceResults,
    InputInfo,
    ModelInfo,
    NeighbourAgreement,
    OperatorError,
    PartAccuracy,
    Patch,
    Percentile,
    Record,
    TensorAccuracy,
    TensorSummary,
    TokenPlace,
)
from tests.report_benchmark import benchmark_results

Json = dict[str, Any]
PICTURES = {
    "inference": ("inference_features.png",),
    "benchmark": ("benchmark.png",),
    "accuracy": ("accuracy_layers.png", "accuracy_tokens.png", "accuracy_pca.png"),
}
STARTED_AT = {
    "inference": "2026-03-14T09:26:53+08:00",
    "benchmark": "2026-03-14T09:31:07+08:00",
    "accuracy": "2026-03-14T09:44:29+08:00",
}
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
            command=(f"{script}.py", "--weights", "/opt/atomgit/weight/dinov3"),
            variables={"ASCEND_HOME_PATH": "/usr/local/Ascend", "TASK_QUEUE_ENABLE": "2"},
        ),
        "patch": Patch(True, "torch.cuda -> torch.npu"),
        "device": DeviceInfo(
            type="npu", index=0, name="Ascend910_9362", count=2, torch_device="npu:0",
            matmul_fp32="fp32", convolution_fp32="hf32", cpu_fallbacks=(), known_answer_checks=5,
            jit_compile=False, internal_format=True,
            memory_free_bytes=61_203_283_968, memory_total_bytes=65_464_696_832,
        ),
        "model": ModelInfo(
            weights="/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m", source="local",
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
            pooler_output=TensorSummary((1, 768), "torch.float32", "npu:0", values, True),
            last_hidden_state=TensorSummary((1, 201, 768), "torch.float32", "npu:0", values, True),
            images=(image, other),
        ),
    )


def benchmark() -> BenchmarkRecord:
    """Return a record of benchmark.py, with its ladder, ranks and a baseline."""
    return BenchmarkRecord(**header("benchmark"), results=benchmark_results())


def tensor(shape: tuple[int, ...], error: float, cosine: float) -> TensorAccuracy:
    """Return one tensor's part of an accuracy record."""
    return TensorAccuracy(
        shape=shape, device="npu:0", relative_error=error, relative_error_passed=True,
        cosine=cosine, cosine_passed=True, mse=error / 637.3, max_abs_diff=0.015562,
        passed=True, fp64_relative_error=error * 1.0371, cpu_fp64_relative_error=4.137e-7,
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
    gap = OperatorError("mlp.up_proj.output", "MLP", error / 3.1, 0.0002917, error / 1.7, 0.0009733,
                      0.4271 + number / 37)  # fmt: skip
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
            source="local", reference="CPU fp32",
            declared="fp32 (matrix products fp32, convolutions hf32)",
            limits=limits_info("hf32", 10.0),
            pooler_output=tensor((1, 768), 0.006521, 0.999979),
            last_hidden_state=tensor((1, 201, 768), 0.003887, 0.999992),
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
            explain=(
                Cause("convolutions in fp32", "device", 0.000217, 0.003887, 0.9441, ""),
                Cause("eager attention", "device", None, None, None, "this run is eager already"),
            ),
            folder=FolderAccuracy(
                images=5000, failed=0,
                broken=(BrokenImage("data/val2017/broken.jpg", "is damaged"),),
                resumed=1200, cached=3800,
                percentiles=(Percentile(50, 0.003771), Percentile(99, 0.006113)),
                worst=(image,), neighbours=NeighbourAgreement(4999, 0.9987, 0.9961), ranks=2,
            ),
        ),
    )  # fmt: skip


def as_json(record: Record) -> Json:
    """Return a record as its file has it."""
    found: Json = json.loads(json.dumps(asdict(record)))
    return found


def everything() -> dict[str, Json]:
    """Return the three records of a run that passed."""
    return {
        "inference": as_json(inference()),
        "benchmark": as_json(benchmark()),
        "accuracy": as_json(accuracy()),
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
