"""The kit on the emulated Ascend NPU, as a user runs it."""

import json
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.emulated_npu import EmulatedNpu
from tests.models import save_tiny_vit
from tests.schemas import hold_to_schema

BLOCKS = 2  # of the tiny model
CHIP = "Ascend910_9362 (emulated)"


class Host:
    """inference.py on the emulated host, on the tiny model and the small photo."""

    def __init__(self, npu: EmulatedNpu, weights: Path, photo: Path, folder: Path) -> None:
        self.npu, self.weights, self.photo, self.folder = npu, weights, photo, folder

    @property
    def features_file(self) -> Path:
        """Where --save-features goes."""
        return self.folder / "features.safetensors"

    def infer(
        self, *options: str, environment: Mapping[str, str] | None = None, fresh: bool = False
    ) -> CompletedProcess[str]:
        """Run inference.py with these options added; see EmulatedNpu.run."""
        arguments: list[str | Path] = ["inference.py", "--weights", self.weights]
        arguments += ["--image", self.photo, "--output-dir", self.folder]
        arguments += ["--save-features", self.features_file, *options]
        return self.npu.run(arguments, environment=environment, fresh=fresh)

    def record(self) -> dict[str, Any]:
        """Return the record of the last run, held to its schema."""
        record: dict[str, Any] = json.loads((self.folder / "inference.json").read_text("utf-8"))
        hold_to_schema(record)
        return record

    def features(self, *options: str, **environment: str) -> torch.Tensor:
        """Return last_hidden_state of a run that must succeed, in fp64."""
        done = self.infer(*options, environment=environment)
        assert done.returncode == 0, done.stderr
        tensors: dict[str, torch.Tensor] = load_file(self.features_file)
        return tensors["last_hidden_state"].double()


@pytest.fixture
def host(npu_host: EmulatedNpu, tiny_weights: Path, photo: Path, tmp_path: Path) -> Host:
    """inference.py on the emulated host."""
    return Host(npu_host, tiny_weights, photo, tmp_path)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("option", "index"), [("auto", 0), ("npu:1", 1)])
def test_inference_runs_on_the_npu_and_prints_the_seed_report(
    host: Host, option: str, index: int
) -> None:
    done = host.infer("--device", option, fresh=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Latency: ")]
    pooled = "Pooled output first 5 values: ["
    assert lines[:-2] == [
        "[INFO] Applied NPU monkey-patch (torch.cuda -> torch.npu)",
        f"[INFO] Loading image from: {host.photo}",
        f"[INFO] Loading model from: {host.weights}",
        f"[INFO] Model moved to NPU device: {CHIP}",
        "[INFO] Input shape: torch.Size([1, 3, 224, 224])",
        f"[INFO] Device: npu:{index}",
        "[INFO] Warm-up inference...",
        "[INFO] Running timed inference...",
        "=" * 60,
        "Inference Results",
        "=" * 60,
        f"Device: NPU ({CHIP})",
        "Pooled output shape: torch.Size([1, 32])",
        "Last hidden state shape: torch.Size([1, 201, 32])",
        "Pooled output dtype: torch.float32",
        f"Pooled output device: npu:{index}",
        next(line for line in lines if line.startswith(pooled)),
    ]
    record = host.record()
    assert record["patch"]["applied"]
    assert record["device"]["type"] == "npu"
    assert record["device"]["index"] == index
    assert record["device"]["count"] == 2
    assert record["device"]["cpu_fallbacks"] == []
    assert record["device"]["known_answer_checks"] == 4
    assert record["environment"]["cann"] == "9.1.0"
    assert record["results"]["last_hidden_state"]["device"] == f"npu:{index}"
    assert record["warnings"] == []


def test_fp32_differs_from_the_cpu_as_hf32_does_and_strict_fp32_brings_it_back(host: Host) -> None:
    cpu = host.features("--device", "cpu")
    by_default = relative_error(host.features(), cpu)
    assert (
        host.record()["device"]["convolution_fp32"],
        host.record()["device"]["matmul_fp32"],
    ) == (
        "hf32",
        "fp32",
    )
    strict = relative_error(host.features("--strict-fp32"), cpu)
    assert host.record()["device"]["convolution_fp32"] == "fp32"
    assert 1e-5 < by_default < 1e-3
    assert strict < 5e-6


@pytest.mark.parametrize(("dtype", "low", "high"), [("bf16", 1e-3, 2e-2), ("fp16", 1e-4, 2e-3)])
def test_half_precision_agrees_with_the_cpu_as_far_as_its_mantissa(
    host: Host, dtype: str, low: float, high: float
) -> None:
    cpu = host.features("--device", "cpu")
    assert low < relative_error(host.features("--dtype", dtype), cpu) < high


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_attentions_agree_with_the_cpu_in_both_task_queue_modes(
    host: Host, attention: str
) -> None:
    cpu = host.features("--device", "cpu", "--attention", attention)
    for queue in ("0", "1"):
        npu = host.features("--strict-fp32", "--attention", attention, TASK_QUEUE_ENABLE=queue)
        assert relative_error(npu, cpu) < 5e-6


def test_a_broken_operator_shows_so_the_comparison_is_not_vacuous(host: Host) -> None:
    cpu = host.features("--device", "cpu")
    broken = host.features("--strict-fp32", FAKECANN_WRONG="aclnnSoftmax,aclnnLayerNorm")
    assert relative_error(broken, cpu) > 1e-3


def test_an_operator_that_is_wrong_from_the_start_ends_the_run_before_the_model(
    host: Host,
) -> None:
    done = host.infer(environment={"FAKECANN_WRONG": "aclnnGeluV2"})
    assert done.returncode == 2
    assert (
        "a product with a known answer came back wrong); see the device's messages" in done.stderr
    )


@pytest.mark.parametrize(
    ("call", "queue"), [(2, "0"), (3, "0"), (4, "0"), (7, "0"), (2, "1"), (7, "1")]
)
def test_a_failing_operator_ends_the_run_with_its_name_and_no_record(
    host: Host, tmp_path_factory: pytest.TempPathFactory, call: int, queue: str
) -> None:
    # Call 1 tries the dtype. Then come three blocks of the warm-up, first, middle and last, and
    # three of the timed forward.
    host.weights = save_tiny_vit(tmp_path_factory.mktemp("three") / "blocks", blocks=3)
    done = host.infer(
        environment={"FAKECANN_FAIL": f"aclnnGeluV2:{call}", "TASK_QUEUE_ENABLE": queue}
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert "operator aclnnGeluV2 failed while" in errors[0]
    assert list(host.folder.iterdir()) == []


def test_a_nan_in_every_forward_is_no_result(host: Host) -> None:
    done = host.infer(environment={"FAKECANN_NAN": "aclnnLayerNorm"})
    assert done.returncode == 2
    assert "values that are NaN" in done.stderr
    assert list(host.folder.iterdir()) == []


def test_a_nan_in_one_forward_alone_fails_the_run_which_is_recorded(host: Host) -> None:
    done = host.infer(environment={"FAKECANN_NAN": f"aclnnGeluV2:{1 + 2 * BLOCKS}"})
    assert done.returncode == 1
    record = json.loads((host.folder / "inference.json").read_text("utf-8"))
    failures = record["results"]["failures"]
    assert failures
    assert all("NaN" in failure for failure in failures), failures


def test_device_memory_that_runs_out_is_one_line_with_the_fix(host: Host) -> None:
    done = host.infer("--size", "1024", environment={"FAKECANN_HBM_GIB": "0.02"})
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert "out of device memory" in errors[0]
    assert "--size" in errors[0]


def test_a_device_that_vanishes_ends_the_run(host: Host) -> None:
    done = host.infer(environment={"FAKECANN_LOST": "aclnnGeluV2:3"})
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert list(host.folder.iterdir()) == []


def test_no_device_is_named_with_its_cause(host: Host) -> None:
    done = host.infer("--device", "npu", environment={"FAKECANN_DEVICES": "0"})
    assert done.returncode == 2
    words = "--device npu: no NPU is available here (torch_npu and CANN are installed, but"
    assert words in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("FAKECANN_DRIVER", "missing", "does not find the driver's libraries (libascend_hal.so)"),
        ("ASCEND_RT_VISIBLE_DEVICES", "1,0", "ASCEND_RT_VISIBLE_DEVICES=1,0 hides every NPU"),
        (
            "FAKECANN_FAIL",
            "aclInit:*:500001",
            "Failed to import Python module [AttributeError: `np",
        ),
    ],
)
def test_what_is_wrong_with_a_host_is_one_line(
    host: Host, variable: str, value: str, words: str
) -> None:
    done = host.infer("--device", "npu", environment={variable: value}, fresh=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1 and words in errors[0], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("driver", ["garbage", "none"])
def test_a_driver_whose_version_cannot_be_read_costs_nothing(host: Host, driver: str) -> None:
    host.features(FAKECANN_DRIVER=driver)
    assert host.record()["environment"]["driver"] is None


def test_an_index_beyond_the_last_device_is_named(host: Host) -> None:
    done = host.infer("--device", "npu:8", environment={"FAKECANN_DEVICES": "8"})
    assert done.returncode == 2
    assert "--device npu:8: this host shows 8 NPUs, so the index is 0 to 7" in done.stderr


def test_cuda_is_not_to_be_had_on_an_npu_host(host: Host) -> None:
    done = host.infer("--device", "cuda")
    assert done.returncode == 2
    assert "--device cuda: no GPU is available here (this is an NPU host" in done.stderr


def test_chip_and_cann_are_captured_and_not_typed(host: Host) -> None:
    host.features(FAKECANN_SOC="Ascend910B3", FAKECANN_VERSION="8.5.1", FAKECANN_DEVICES="1")
    record = host.record()
    assert record["device"]["name"] == "Ascend910B3 (emulated)"
    assert record["device"]["count"] == 1
    assert record["environment"]["cann"] == "8.5.1"


def test_a_report_on_the_emulated_npu_never_reads_validated(host: Host) -> None:
    host.features()
    assert host.record()["environment"]["cann_library"].endswith("/libascendcl.so")
    report = (host.folder / "report.md").read_text("utf-8")
    assert "在仿真 NPU 上运行" in report
    assert "验证通过" not in report


def test_operators_that_fell_back_to_the_cpu_are_in_the_record_and_said(host: Host) -> None:
    code = f"""
import sys, inference, npu_patch, torch
from kit.model import model as forward
original = forward.forward
def with_fallback(model, pixels):
    torch.special.i0(pixels)  # torch_npu has no kernel for it
    return original(model, pixels)
forward.forward = with_fallback
sys.exit(inference.main(["--weights", {str(host.weights)!r}, "--output-dir", {str(host.folder)!r}]))
"""
    done = host.npu.run_code(code)
    assert done.returncode == 0, done.stderr
    record = host.record()
    assert record["device"]["cpu_fallbacks"] == ["aten::i0.out"]
    assert any("aten::i0.out fell back to the CPU" in warning for warning in record["warnings"])
    assert "Not all of this ran on the NPU: aten::i0.out" in done.stdout
    assert "fall back to run on the CPU" in done.stderr
