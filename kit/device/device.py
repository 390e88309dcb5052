"""The device of a run: choose a device, ask and steer it, prove that it computes.

Only meters.py (clock, memory, graph capture) and health.py beside it do so too.

This is ordinary CUDA code. Where npu_patch has remapped torch.cuda, "cuda" is the NPU and TF32
is HF32; `patched` tells which of the two this run has.
"""

import contextlib
import ctypes
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kit.errors import (
    DeviceError,
    KitError,
    OutOfDeviceMemoryError,
    advice,
    cause,
    failed_operator,
    says_out_of_memory,
)
from kit.records import DeviceType, Products

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LABELS: dict[DeviceType, str] = {"npu": "NPU", "cuda": "GPU", "cpu": "CPU"}


@dataclass(frozen=True)
class Device:
    """The device of a run."""

    type: DeviceType  # what it is, whatever torch calls it
    index: int | None  # among the visible devices; None for the CPU
    name: str  # the chip's or processor's
    count: int  # visible devices of this type; 1 for the CPU
    torch_device: torch.device  # what tensors and models are moved to

    @property
    def label(self) -> str:
        """NPU, GPU or CPU, as reports print it."""
        return LABELS[self.type]


def choose(requested: str, *, patched: bool, patch_reason: str, local_rank: int = 0) -> Device:
    """Return the device that --device names, ready to use; KitError where it is not there.

    `local_rank`, each of torchrun's ranks' own, is the index where `requested` names none.
    `patched` is whether torch.cuda is torch.npu in this process, `patch_reason` why or why not.
    """
    accelerator: DeviceType = "npu" if patched else "cuda"
    kind, _, index_text = requested.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        kind = accelerator if count else "cpu"
    if kind == "cpu":
        return Device("cpu", None, cpu_name(), 1, torch.device("cpu"))
    if kind != accelerator or count == 0:
        cause = "torch sees no CUDA device"
        if kind == "npu":
            cause = patch_reason
        elif patched:
            cause = "this is an NPU host: use --device npu"
        missing = LABELS["npu" if kind == "npu" else "cuda"]
        raise KitError(
            f"--device {requested}: no {missing} is available here ({cause}); "
            "use --device auto or cpu"
        )
    index = int(index_text or local_rank)
    if index >= count:
        shown = f"this host shows {count} {LABELS[accelerator]}{'s' if count > 1 else ''}"
        if not index_text:
            fix = f"start torchrun with --nproc-per-node {count}"
            raise KitError(f"LOCAL_RANK {local_rank}: {shown}; {fix}")
        indices = f"0 to {count - 1}" if count > 1 else "0"
        raise KitError(f"--device {requested}: {shown}, so the index is {indices}")
    with device_errors(f"opening {accelerator}:{index}"):
        torch.cuda.set_device(index)
        name = torch.cuda.get_device_name(index) + (" (emulated)" if is_emulated() else "")
        return Device(accelerator, index, name, count, torch.device("cuda", index))


def cann_library() -> str | None:
    """Return the path of the libascendcl.so that this process has loaded; None without one."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            path = line.partition("/")[2]
            if path.rpartition("/")[2].startswith("libascendcl.so"):
                return f"/{path}"
    return None


def is_emulated() -> bool:
    """Return whether the CANN that is loaded computes on no chip: the library itself says so."""
    path = cann_library()
    return path is not None and hasattr(ctypes.CDLL(path), "fake_cann_emulated")


def quiet_libraries() -> None:
    """Keep two warnings off the console, which nobody who reads them can do anything about.

    torch_npu up to 2.12 itself uses TypedStorage when a model is copied, and torch 2.9 announces
    other switches for TF32 to whoever asks for it or sets it.
    """
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", module=r"torch_npu\.")
    warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")


# The 64-bit Arm processors of Ascend hosts have no model name in /proc/cpuinfo, but numbers: the
# implementer 0x48 is HiSilicon, parts as util-linux's lscpu has them.
CPUINFO = Path("/proc/cpuinfo")
ARM_NAMES = {("0x48", "0xd01"): "Kunpeng 920", ("0x48", "0xd02"): "Kunpeng 920 (TaiShan v120)"}


def cpu_name() -> str:
    """Return the processor's name as the operating system tells it, else its machine type."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip().lower(), value.strip())
    named = found.get("model name") or found.get("cpu model")
    arm = (found.get("cpu implementer", ""), found.get("cpu part", ""))
    return named or ARM_NAMES.get(arm) or platform.machine() or "unknown"


def require_dtype(device: Device, dtype: str) -> torch.dtype:
    """Return torch's name of `dtype`; KitError where the device does not compute in it."""
    if dtype == "bf16" and device.type != "cpu" and not torch.cuda.is_bf16_supported():
        raise KitError(f"--dtype bf16: {device.name} has no bfloat16; use --dtype fp16 or fp32")
    wanted = DTYPES[dtype]
    try:
        with device_errors(f"trying {dtype}"):
            probe = torch.ones(16, 16, dtype=wanted, device=device.torch_device)
            answer = torch.nn.functional.gelu(probe @ probe).float().cpu()
        if not bool((answer == 16).all()):  # exact in every dtype
            raise DeviceError("a product with a known answer came back wrong")
    except DeviceError as error:
        fix = "use --dtype fp32" if dtype != "fp32" else "see the device's messages and reset it"
        raise KitError(
            f"--dtype {dtype}: {device.name} cannot compute in it ({error}); {fix}"
        ) from error
    return wanted


def use_strict_fp32() -> None:
    """Turn TF32 (on an NPU: HF32) off for matrix products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def strict_fp32(active: bool) -> contextlib.AbstractContextManager[None]:
    """Turn TF32 (on an NPU: HF32) off within the block, where `active`, and restore it after."""
    return reduced_fp32(matmul=False, convolution=False) if active else contextlib.nullcontext()


@contextlib.contextmanager
def fast_math(active: bool) -> Iterator[None]:
    """Let oneDNN round the inputs of fp32 products to bf16 within the block, where `active`.

    Only processors with fast products in bf16 do so (torch.set_float32_matmul_precision).
    """
    if not active:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def reduced_fp32(*, matmul: bool, convolution: bool) -> Iterator[None]:
    """Set TF32 (on an NPU: HF32) for each of the two within the block, and restore it after."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def float_modes(device: Device) -> tuple[Products, Products]:
    """Return what fp32 (matrix products, convolutions) are set to compute with now."""
    if device.type == "cpu":
        return "bf16" if torch.get_float32_matmul_precision() == "medium" else "fp32", "fp32"
    reduced: Products = "hf32" if device.type == "npu" else "tf32"
    return (
        reduced if torch.backends.cuda.matmul.allow_tf32 else "fp32",
        reduced if torch.backends.cudnn.allow_tf32 else "fp32",
    )


def use_compiled_operators(device: Device) -> bool:
    """Let an NPU that compiles operators at run time use those that CANN brings compiled.

    torch_npu compiles by default on an Ascend 310P and 910A: 600 s instead of 40 s for the first
    image of Stable Diffusion, no faster afterwards (ComfyUI, pull request 10050). Huawei's own
    programs turn it off (MindIE-LLM, npu_compile.py). Formats of the chip's own go with it, which
    are off by default on an Atlas A3 too (op-plugin, allow_internal_format). Returns whether it
    compiled before; False on any other device.
    """
    if not torch_npu_switches(device)[0]:
        return False
    torch_npu = sys.modules["torch_npu"]
    with device_errors("choosing CANN's compiled operators"):
        torch_npu.npu.set_compile_mode(jit_compile=False)
        torch_npu.npu.config.allow_internal_format = False
    return True


def torch_npu_switches(device: Device) -> tuple[bool | None, bool | None]:
    """Return whether torch_npu compiles operators at run time, and uses formats of its own.

    None where it does not say, and for another device.
    """
    torch_npu = sys.modules.get("torch_npu")
    if device.type != "npu" or torch_npu is None:
        return None, None
    compiles = formats = None
    with contextlib.suppress(AttributeError, RuntimeError):
        compiles = not torch_npu.npu.is_jit_compile_false()
    with contextlib.suppress(AttributeError, RuntimeError, TypeError):  # it has no public name
        option = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT")
        formats = None if option is None else option in ("enable", b"enable")
    return compiles, formats


def memory_info(device: Device) -> tuple[int | None, int | None]:
    """Return the device's free and total memory in bytes; None for the CPU and where unknown."""
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(device.torch_device)
            return int(free), int(total)
    return None, None


def synchronize(device: Device) -> None:
    """Wait until the device has done everything it was given; nothing to do for the CPU."""
    if device.type != "cpu":
        torch.cuda.synchronize(device.torch_device)


@contextlib.contextmanager
def device_errors(phase: str) -> Iterator[None]:
    """Turn what torch raises for a failing device into a DeviceError that names the operator.

    After one failed operator torch_npu drops all later work in silence, so no such error may be
    survived: it ends the run. Want of memory is an OutOfDeviceMemoryError. `phase` is what the run
    was doing, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        words = first_line(error)
        if is_out_of_memory(error):
            raise OutOfDeviceMemoryError(
                f"out of device memory while {phase} ({words}); "
                "use a smaller --size or batch, or --dtype bf16"
            ) from error
        operator = failed_operator(str(error))
        culprit = f"operator {operator} failed" if operator else "the device failed"
        help_ = advice(str(error))
        raise DeviceError(
            f"{culprit} while {phase}: {words}{f'; {help_}' if help_ else ''}"
        ) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, in this error or in one that it followed from."""
    while error is not None:  # ending a graph capture after such an error raises another
        if isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """Return the line of an error's message that says why, its type where there is none."""
    return cause(str(error)) or type(error).__name__
