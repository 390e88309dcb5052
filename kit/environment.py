"""Capture the software and the host of a run: versions, CANN, variables, commit."""

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import torch

from kit.device.device import cann_library, cpu_name
from kit.host import installed, readable
from kit.records import Environment

# Those that say how many threads compute, and on which cores.
BINDING = (
    "CPU_AFFINITY_CONF", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "OMP_PLACES", "OMP_PROC_BIND",
)  # fmt: skip
# Those that are known to change results or speed.
VARIABLES = (
    *BINDING,
    "ACL_OP_INIT_MODE", "ASCEND_HOME_PATH", "ASCEND_LAUNCH_BLOCKING", "ASCEND_RT_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "INF_NAN_MODE_ENABLE",
    "INF_NAN_MODE_FORCE_DISABLE", "LOCAL_RANK", "NPU_PATCH_GELU", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF",
    "TASK_QUEUE_ENABLE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_COMPILE_DISABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_NPU_COMPACT_ERROR_OUTPUT", "TORCH_NPU_DISABLED_WARNING",
    "TORCH_NPU_FALLBACK_CPU_DISABLE", "TORCH_NPU_LAZY_FUSION", "TORCH_NPU_LEGACY_IMPL_LIST",
    "TORCH_NPU_USE_COMPATIBLE_IMPL", "TORCH_NPU_WARNING_DISABLE", "WORLD_SIZE",
)  # fmt: skip
# https://HOST/PATH, ssh://git@HOST/PATH and git@HOST:PATH, HOST a name on the internet.
HOST = r"(?:[a-z0-9-]+\.)+(?!local(?:domain)?\b|lan\b|internal\b|home\b|corp\b)[a-z]{2,}"
ADDRESS = re.compile(
    rf"(?:(https?://)(?:[^@/]*@)?|(ssh://git@|git@))({HOST}(?::\d+)?[/:][\w./~-]+)", re.IGNORECASE
)
MACHINE_ID = Path("/etc/machine-id")
NODES = Path("/sys/devices/system/node")


def capture(root: Path) -> Environment:
    """Return the environment of this process, and the git commit of the folder `root`."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        torch_npu=(installed("torch-npu") or None) if sys.modules.get("torch_npu") else None,
        **{name: installed(name) or "unknown" for name in ("transformers", "numpy", "pillow")},
        cann=ascend_version("CANN"),
        cann_library=cann_library(),
        host_id=host_id(),
        driver=ascend_version("DRIVER") or nvidia_driver_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        cpu_threads=torch.get_num_threads(),
        cpu_affinity=as_ranges(cores) if cores else None,
        numa_nodes=numa_nodes(cores),
        device_processes=device_processes(),
        git_commit=git_commit(root),
        git_origin=public_address(git(root, "remote", "get-url", "origin") or ""),
        command=tuple(sys.argv),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def host_id() -> str:
    """Return a hash that tells this host from others, and its name to nobody.

    A container's machine-id may be its image's, hence the name beside it.
    """
    known = platform.node()
    with contextlib.suppress(OSError):
        known += MACHINE_ID.read_text(encoding="ascii", errors="replace").strip()
    return hashlib.sha256(f"npu-validation-kit {known}".encode()).hexdigest()[:16]


def ascend_version(module: str) -> str | None:
    """Return the version of a CANN module or the driver as torch_npu reads it, None without.

    Of an old driver it reads garbage, or raises UnicodeDecodeError.
    """
    if not sys.modules.get("torch_npu"):
        return None
    with contextlib.suppress(ImportError, AttributeError, RuntimeError, ValueError):
        from torch_npu.npu.utils import get_cann_version  # only where torch_npu is loaded

        return readable(get_cann_version(module))
    return None


def as_ranges(numbers: Collection[int]) -> str:
    """Return numbers as the system writes them: 0-7,16."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def numa_nodes(cores: Collection[int], nodes: Path = NODES) -> tuple[int, ...]:
    """Return the NUMA nodes that these cores belong to; none where the system has no nodes."""
    found = []
    for folder in nodes.glob("node[0-9]*"):
        if any((folder / f"cpu{core}").exists() for core in cores):
            found.append(int(folder.name[4:]))
    return tuple(sorted(found))


def device_processes() -> int | None:
    """Return how many processes the vendor's tool lists on the host's devices; None without it."""
    for command, pattern in (
        (("npu-smi", "info"), r"^\|\s*\d+\s+\d+\s*\|\s*\d+\s*\|[^|]*\|\s*\d+\s*\|\s*$"),
        (("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"), r"^\d+$"),
    ):
        if (answer := answer_of(*command)) is not None:
            return len(re.findall(pattern, answer, re.MULTILINE))
    return None


def answer_of(*command: str) -> str | None:
    """Return what a command prints; None where it is missing, fails or hangs."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def nvidia_driver_version() -> str | None:
    """Return the NVIDIA kernel driver's version, None without one."""
    with contextlib.suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    return None


def git(root: Path, *words: str) -> str | None:
    """Return what git says of a folder; None without git, or where it is no checkout."""
    return answer_of("git", "-C", str(root), *words) or None


def git_commit(root: Path) -> str | None:
    """Return the commit, "+dirty" behind it where files other than the results differ from it."""
    commit = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!output")
    return f"{commit}+dirty" if commit and changed else commit


def public_address(url: str) -> str | None:
    """Return the address of a repository without user, password and query; None for a private one.

    Private are paths, hosts without a domain or with a number for a name, and other protocols.
    """
    found = ADDRESS.match(url)
    return "".join(filter(None, found.groups())) if found else None
