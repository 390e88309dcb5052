"""The facts of a host and its software: of a run, for its record, and of an Ascend host.

Those of an Ascend host (versions, CANN, driver, chips) need Python's standard library alone: CANN,
torchvision and the NPU are asked in processes of their own, which they may end.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.errors import cause
from kit.records import Environment

# Those that say how many threads compute, and on which cores.
BINDING = (
    "CPU_AFFINITY_CONF", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "MKL_NUM_THREADS", "OMP_NUM_THREADS",
    "OMP_PLACES", "OMP_PROC_BIND",
)  # fmt: skip
# Those that are known to change results or speed.
RECORDED = (
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


# ---- Of a run ------------------------------------------------------------------------------------


def capture(root: Path) -> Environment:
    """Return the environment of this process, and the git commit of the folder `root`."""
    import torch  # which a host that is looked at need not have

    from kit.device.device import cann_library, cpu_name  # likewise

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
        variables={name: os.environ[name] for name in RECORDED if name in os.environ},
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


# ---- Of an Ascend host ---------------------------------------------------------------------------

ASCEND = Path("/usr/local/Ascend")
NUMPY_1_UP_TO = (8, 2)  # CANN
PACKAGES = ("torch", "torch-npu", "torchvision", "transformers", "numpy")
# What torch-npu and CANN's operator compiler, which runs Python, import.
CANN_PACKAGES = (
    "attrs", "cloudpickle", "decorator", "numpy", "psutil", "pyyaml", "scipy", "sympy",
)  # fmt: skip
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
VARIABLES = (
    "ASCEND_HOME_PATH", VISIBLE, "LD_LIBRARY_PATH", "TORCH_COMPILE_DISABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
)  # fmt: skip
_BUILDS = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}  # as torch/version.py names them
_SECONDS = 120  # for a child that imports torch and torch_npu: 4 s here, a cold host takes longer


def release(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: 2.9.0.post1 -> 2, 9, 0; 8.3.RC2 -> 8, 3; else none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def minor(version: str | None) -> tuple[int, ...]:
    """Return major and minor: 8.5.0-beta.1 -> 8, 5; 8.3.RC2 -> 8, 3; nothing where unreadable."""
    numbers = release(version or "")
    return numbers[:2] if len(numbers) > 1 else ()


def readable(version: object) -> str | None:
    """Return a version that reads like one, None for what old drivers answer instead."""
    text = str(version or "")
    return text if re.fullmatch(r"\d+(\.[\w-]+)+", text, re.ASCII) else None


@dataclass(frozen=True)
class Cann:
    """What CANN itself answers, asked in a process of its own."""

    problem: str = ""  # why its runtime cannot be loaded
    version: str | None = None
    driver: str | None = None
    chips: int = 0
    chip: str = ""
    error: str = ""  # what it says where no chip answers


@dataclass(frozen=True)
class Host:
    """The facts that the checks judge."""

    python: str
    machine: str  # x86_64, aarch64
    versions: Mapping[str, str] = field(default_factory=dict)  # of the installed PACKAGES
    torch_build: str = ""  # "cpu", "CUDA 12.8", "ROCm 6.4", "" where torch/version.py says nothing
    missing: tuple[str, ...] = ()  # of CANN_PACKAGES
    cann: Cann = Cann(problem="not asked")
    cann_on_disk: str | None = None  # its version
    set_env: str | None = None  # the script that loads it
    driver_file: str | None = None  # the driver's version as its file says; "" without one in it
    hal: str | None = None  # the folder on disk with the driver's libascend_hal.so
    nvidia: bool = False  # an NVIDIA driver is loaded, too
    torchvision_problem: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def cann_version(self) -> str | None:
        """What CANN answers, else what its files say."""
        return self.cann.version or self.cann_on_disk

    def version(self, package: str) -> str:
        """Return an installed package's version, "" without it."""
        return self.versions.get(package, "")

    @property
    def needs_numpy_1(self) -> bool:
        """Whether CANN fails with the numpy that is there or would be installed."""
        numpy = self.version("numpy")
        return () < minor(self.cann_version) <= NUMPY_1_UP_TO and (
            not numpy or release(numpy) >= (2,)
        )


# The children answer on a copy of stdout: CANN prints lines of its own to the descriptor.
_CHILD = "import json, os\nanswer = os.dup(1)\nos.dup2(2, 1)\n"
_ASK_CANN = """
import ctypes
acl = ctypes.CDLL("libascendcl.so")
def text(value):
    return (value or b"").decode(errors="replace")
def version(package):
    found = ctypes.create_string_buffer(1024)
    try:
        failed = acl.aclsysGetCANNVersion(package, found)
    except AttributeError:  # before CANN 8.1
        return ""
    return "" if failed else text(found.value)
started = acl.aclInit(None)
count = ctypes.c_uint32(0)
failed = acl.aclrtGetDeviceCount(ctypes.byref(count)) or started
chips = 0 if failed else count.value
chip = error = ""
if chips:
    failed = acl.aclrtSetDevice(0)
    acl.aclrtGetSocName.restype = ctypes.c_char_p
    chip = text(acl.aclrtGetSocName())
if failed:
    error = "error " + str(failed)
    try:
        acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
        error += ": " + text(acl.aclGetRecentErrMsg())
    except AttributeError:
        pass
found = {"version": version(0), "driver": version(7), "chips": chips, "chip": chip, "error": error}
os.write(answer, json.dumps(found).encode())
"""
_ASK_TORCHVISION = "import torchvision\nos.write(answer, b'{}')\n"


def ask(code: str, **variables: str) -> tuple[dict[str, Any], str]:
    """Run code in another Python; return the JSON that it answers, and why there is none."""
    command, environment = [sys.executable, "-c", _CHILD + code], {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_SECONDS} s"
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        words = last_words(done.stderr.decode(errors="replace"))
        return {}, words or f"exit code {done.returncode}"
    return answer, ""


def last_words(stderr: str) -> str:
    """Return the line of a process's stderr that says why it ended."""
    stderr = stderr.replace(": No such file or directory", "").replace("OSError: ", "")
    if aborted := re.search(r"what\(\): .+", stderr):  # an exception of C++
        return aborted.group()
    errors = list(re.finditer(r"^[\w.]*(Error|Exception|Exit)\b", stderr, re.MULTILINE))
    return cause(stderr[errors[-1].start() :] if errors else stderr.strip().rpartition("\n")[2])


def installed(package: str) -> str:
    """Return the version of an installed package, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch_build() -> str:
    """Read what torch was built for in its version.py, without importing it."""
    spec = importlib.util.find_spec("torch")
    try:
        text = Path((spec and spec.origin) or "", "..", "version.py").resolve().read_text("utf-8")
    except (OSError, ValueError):
        return ""
    found = re.search(rf"^({'|'.join(_BUILDS)})\b[^=\n]*= *['\"](.+)['\"]", text, re.MULTILINE)
    if found:
        return f"{_BUILDS[found[1]]} {found[2]}"
    return "cpu" if re.search(r"^cuda\b", text, re.MULTILINE) else ""


def _version_in(file: Path) -> str | None:
    """Return what follows "version=" in a file of CANN's, "" without one, None without a file."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^version=(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return found.group(1) if found else ""


def _cann_on_disk(ascend: Path, home: str) -> tuple[str | None, str | None]:
    """Return the version of the CANN on disk and the script that loads it, None for what is not.

    Since 8.5 it is .../Ascend/cann, a link to cann-8.5.0, before it .../Ascend/ascend-toolkit with
    a link named latest; the script lies in the one and beside the other.
    """
    folders = [Path(home)] if home else []
    for base in (ascend, Path.home() / "Ascend"):
        folders += [base / "cann", *sorted(base.glob("cann-*"), reverse=True)]
        folders += [base / "ascend-toolkit" / "latest"]
    for folder in filter(Path.is_dir, folders):
        files = sorted(folder.glob("*-linux/ascend_toolkit_install.info"))
        says = next(filter(None, map(_version_in, files)), None)
        name = re.search(r"(\d+\.\d+\.\w.*)$", folder.resolve().name)
        version = readable(says) or (readable(name.group(1)) if name else None)
        scripts = (folder / "set_env.sh", folder.parent / "set_env.sh")
        script = next((str(file) for file in scripts if file.is_file()), None)
        if version or script:
            return version, script
    return None, None


def read_host(ascend: Path = ASCEND) -> Host:
    """Look at this host, whose driver and CANN are installed in the folder `ascend`."""
    answer, problem = ask(_ASK_CANN)
    cann = Cann(problem=problem)
    if not problem:
        versions = {name: readable(answer[name]) for name in ("version", "driver")}
        cann = Cann(**{**answer, **versions, "error": cause(answer["error"])})
    on_disk, set_env = _cann_on_disk(ascend, os.environ.get("ASCEND_HOME_PATH", ""))
    hal = sorted((ascend / "driver" / "lib64").glob("**/libascend_hal.so*"))
    torchvision = ""
    if installed("torchvision") and installed("torch"):
        torchvision = ask(_ASK_TORCHVISION, TORCH_DEVICE_BACKEND_AUTOLOAD="0")[1]
    return Host(
        python=platform.python_version(),
        machine=platform.machine(),
        versions={name: found for name in PACKAGES if (found := installed(name))},
        torch_build=_torch_build(),
        missing=tuple(package for package in CANN_PACKAGES if not installed(package)),
        cann=cann,
        cann_on_disk=on_disk,
        set_env=set_env,
        driver_file=_version_in(ascend / "driver" / "version.info"),
        hal=str(hal[0].parent) if hal else None,
        nvidia=Path("/proc/driver/nvidia").is_dir(),
        torchvision_problem=torchvision,
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )
