"""The only file that calls torch.cuda: choose a device, ask and steer it, prove that it computes.

This is ordinary CUDA code. Where npu_patch has remapped torch.cuda, "cuda" is the NPU and TF32
is HF32; `patched` tells which of the two this run has.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kit.errors import DeviceError, KitError
from kit.records import DeviceType, FloatMode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPERATOR_PATTERNS = (
    re.compile(r"operator name is (\w+)"),  # torch_npu, from the task queue
    re.compile(r"call (\w+) failed"),  # torch_npu, at the call
)
LABELS: dict[DeviceType, str] = {"npu": "NPU", "cuda": "GPU", "cpu": "CPU"}

_question_numbers = itertools.count(1)


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Attributes:
        type: what it is, whatever torch calls it.
        index: among the visible devices; None for the CPU.
        name: the chip's or processor's name.
        count: visible devices of this type; 1 for the CPU.
        torch_device: what tensors and models are moved to.
    """

    type: DeviceType
    index: int | None
    name: str
    count: int
    torch_device: torch.device

    @property
    def label(self) -> str:
        """NPU, GPU or CPU, as reports print it."""
        return LABELS[self.type]


def choose(requested: str, *, patched: bool, patch_reason: str) -> Device:
    """Return the device that `requested` names, ready to use.

    Args:
        requested: auto, npu, npu:N, cuda, cuda:N or cpu.
        patched: whether torch.cuda is torch.npu in this process.
        patch_reason: why or why not; part of the error where an NPU is wanted in vain.

    Raises:
        KitError: where the device is not there.
    """
    accelerator: DeviceType = "npu" if patched else "cuda"
    kind, _, index_text = requested.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        kind = accelerator if count else "cpu"
    if kind == "cpu":
        return Device("cpu", None, cpu_name(), 1, torch.device("cpu"))
    if kind != accelerator or count == 0:
        raise KitError(
            f"--device {requested}: no {LABELS['npu' if kind == 'npu' else 'cuda']} answers here "
            f"({no_device_reason(kind, patched, patch_reason)}); use --device auto or cpu"
        )
    index = int(index_text or 0)
    if index >= count:
        raise KitError(
            f"--device {requested}: this host shows {count} {LABELS[accelerator]}"
            f"{'s' if count > 1 else ''}, so the index is 0"
            f"{f' to {count - 1}' if count > 1 else ''}"
        )
    with device_errors(f"opening {accelerator}:{index}"):
        torch.cuda.set_device(index)
        name = torch.cuda.get_device_name(index)
        return Device(accelerator, index, name, count, torch.device("cuda", index))


def no_device_reason(kind: str, patched: bool, patch_reason: str) -> str:
    """Return why there is no device of this kind, in the words that fit the host."""
    if kind == "npu":
        return patch_reason
    if patched:
        return "this is an NPU host: use --device npu"
    return "torch sees no CUDA device"


def cpu_name() -> str:
    """Return the processor's name as the operating system tells it, 'unknown' without one."""
    with contextlib.suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.lower().startswith(("model name", "cpu model")):
                return line.partition(":")[2].strip()
    return "unknown"


def require_dtype(device: Device, dtype: str) -> torch.dtype:
    """Return torch's name of `dtype` where the device computes in it.

    Raises:
        KitError: where it does not.
    """
    if dtype == "bf16" and device.type != "cpu" and not torch.cuda.is_bf16_supported():
        raise KitError(f"--dtype bf16: {device.name} has no bfloat16; use --dtype fp16 or fp32")
    wanted = DTYPES[dtype]
    try:
        with device_errors(f"trying {dtype}"):
            probe = torch.ones(16, 16, dtype=wanted, device=device.torch_device)
            torch.nn.functional.gelu(probe @ probe).float().cpu()
    except DeviceError as error:
        raise KitError(
            f"--dtype {dtype}: {device.name} cannot compute in it ({error}); use --dtype fp32"
        ) from error
    return wanted


def use_strict_fp32() -> None:
    """Turn TF32 (on an NPU: HF32) off for matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def float_modes(device: Device) -> tuple[FloatMode, FloatMode]:
    """Return what fp32 (matrix products, convolutions) compute with on this device now."""
    if device.type == "cpu":
        return "fp32", "fp32"
    reduced: FloatMode = "hf32" if device.type == "npu" else "tf32"
    return (
        reduced if torch.backends.cuda.matmul.allow_tf32 else "fp32",
        reduced if torch.backends.cudnn.allow_tf32 else "fp32",
    )


def synchronize(device: Device) -> None:
    """Wait until the device has done everything it was given; nothing to do for the CPU."""
    if device.type != "cpu":
        torch.cuda.synchronize(device.torch_device)


@contextlib.contextmanager
def device_errors(phase: str) -> Iterator[None]:
    """Turn what torch raises for a failing device into a DeviceError that names the operator.

    After one failed operator torch_npu drops all later work in silence, so no such error may be
    survived: it ends the run.

    Args:
        phase: what the run was doing, for the message.

    Raises:
        DeviceError: in place of torch's RuntimeError (OutOfMemoryError is one).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"out of device memory while {phase} ({first_line(error)}); "
            "use a smaller --size or batch, or --dtype bf16"
        ) from error
    except RuntimeError as error:
        operator = failed_operator(str(error))
        culprit = f"operator {operator} failed" if operator else "the device failed"
        raise DeviceError(f"{culprit} while {phase}: {first_line(error)}") from error


def failed_operator(message: str) -> str | None:
    """Return the operator that torch_npu's error message names, None where it names none."""
    for pattern in OPERATOR_PATTERNS:
        if match := pattern.search(message):
            return match.group(1)
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class HealthChecks:
    """Asks a device small questions with known answers and counts those it passed."""

    def __init__(self, device: Device) -> None:
        """Check `device`; nothing has been asked yet."""
        self.device = device
        self.passed = 0

    def after(self, phase: str) -> None:
        """Prove that the device still computes after a phase of the run.

        A device that dropped its work hands back whatever lies in memory, perhaps the answer
        to the last question: hence a new one each time. The numbers are small integers, exact
        in fp32, TF32 and HF32 alike. The CPU is not asked: it raises where it fails.

        Args:
            phase: what the run has just done, for the message.

        Raises:
            DeviceError: where the device fails or answers wrongly.
        """
        if self.device.type == "cpu":
            return
        number = next(_question_numbers)
        question = (torch.arange(64).reshape(8, 8) * 7 + number * 13) % 61
        expected = (question @ question.T + question).to(torch.float32)
        with device_errors(f"checking the device after {phase}"):
            on_device = question.to(torch.float32).to(self.device.torch_device)
            answer = (on_device @ on_device.T + on_device).cpu()
            synchronize(self.device)
        if not torch.equal(answer, expected):
            raise DeviceError(
                f"{self.device.name} no longer computes after {phase}: a matrix product with a "
                "known answer came back wrong, so nothing of this run can be trusted; "
                "see the device's messages above and reset it"
            )
        self.passed += 1
