"""The five functions of NVIDIA's management library that optimum-benchmark asks for its report.

That library and the program nvidia-smi belong to NVIDIA's driver, not to torch, so npu_patch has
nothing to remap. On an Ascend host optimum-benchmark runs with two such stand-ins on its paths.
"""

from types import SimpleNamespace

import torch


def nvmlInit() -> None:  # noqa: N802 - the library's names
    """Start; nothing to do."""


def nvmlShutdown() -> None:  # noqa: N802
    """End; nothing to do."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    """Return the number of devices."""
    return torch.cuda.device_count()


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """Return what names a device below: its index."""
    return index


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    """Return the device's name."""
    return torch.cuda.get_device_name(handle)


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    """Return the device's memory in bytes."""
    free, total = torch.cuda.mem_get_info(handle)
    return SimpleNamespace(free=free, total=total, used=total - free)
