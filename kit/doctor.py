"""What is right and wrong on this host, and the commands that put it right: python3 -m npu_patch.

    python3 -m npu_patch            a line a check, then what to install on this host
    python3 -m npu_patch --json     the same for programs
    python3 -m npu_patch --bundle FILE.zip [FOLDER]     the same and the records and logs of FOLDER
                                    (output), for a bug report: names and paths are replaced

Nothing here imports torch: a child process does, since a torch_npu that does not fit may end its
process. The exit code is 0 only where an NPU computes. Versions that nobody knows are said to be
unknown and tried all the same. Python's standard library is enough.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kit import bundle
from kit.errors import advice, cause

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEWEST_PYTHON = (3, 13)  # that was tried; kit/__init__.py refuses the old ones
OLDEST_TORCH = (2, 9)
OLDEST_TRANSFORMERS = (4, 56)  # the first with DINOv3
NUMPY_1_UP_TO = (8, 2)  # CANN
INSTALL = "Install the pair that stands below."
ASCEND = Path("/usr/local/Ascend")
PACKAGES = ("torch", "torch-npu", "torchvision", "transformers", "numpy")
# What torch-npu and CANN's operator compiler, which runs Python, import: by package and module.
CANN_PACKAGES = {
    "attrs": "attr",
    "cloudpickle": "cloudpickle",
    "decorator": "decorator",
    "numpy": "numpy",
    "psutil": "psutil",
    "pyyaml": "yaml",
    "scipy": "scipy",
    "sympy": "sympy",
}
VARIABLES = (
    "ASCEND_HOME_PATH",
    "ASCEND_RT_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "TORCH_COMPILE_DISABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
)
_SECONDS = 120  # for a child that imports torch and torch_npu: 4 s here, a cold host takes longer


# ---- Versions and the table of pairs -----------------------------------------------------------


class Pair(NamedTuple):
    """A row of the vendor's table: releases that belong together."""

    torch_npu: str
    torch: str
    cann: str


@dataclass(frozen=True)
class Pairs:
    """pairs.json: which torch-npu belongs to which torch and CANN, and who says so."""

    source: str
    recommended: Pair
    rows: tuple[Pair, ...]
    python_of_torch: Mapping[str, tuple[str, ...]]
    python_of_torch_npu: Mapping[str, tuple[str, ...]]  # where the index has wheels for fewer
    cuda_build_aborts: tuple[str, ...]  # releases of torch; tried on the emulated NPU

    def of_torch_npu(self, version: str) -> Pair | None:
        """Return the row of a torch-npu: its post-number counts, what follows "+" does not."""
        public = version.partition("+")[0]
        return next((row for row in self.rows if row.torch_npu == public), None)

    def pythons(self, row: Pair) -> tuple[str, ...]:
        """Return the releases of Python that a row's wheels are for; none where nobody says."""
        torch = self.python_of_torch.get(row.torch, ())
        return self.python_of_torch_npu.get(row.torch_npu, torch)


@functools.cache
def pairs() -> Pairs:
    """Read the table beside this file."""
    content = json.loads(Path(__file__).with_name("pairs.json").read_text("utf-8"))
    rows = tuple(Pair(row["torch_npu"], row["torch"], row["cann"]) for row in content["pairs"])
    return Pairs(
        content["source"],
        next(row for row in rows if row.torch_npu == content["recommended"]),
        rows,
        {torch: tuple(pythons) for torch, pythons in content["python_of_torch"].items()},
        {row: tuple(pythons) for row, pythons in content["python_of_torch_npu"].items()},
        tuple(content["cuda_build_aborts"]),
    )


def release(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers: 2.9.0.post1 -> 2, 9, 0; 8.3.RC2 -> 8, 3; else none."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def minor(version: str) -> tuple[int, ...]:
    """Return major and minor: 8.5.0-beta.1 -> 8, 5; 8.3.RC2 -> 8, 3; nothing where unreadable."""
    numbers = release(version)
    return numbers[:2] if len(numbers) > 1 else ()


def readable(version: object) -> str | None:
    """Return a version that reads like one, None for what old drivers answer instead."""
    text = str(version or "")
    return text if re.fullmatch(r"\d+(\.[\w-]+)+", text, re.ASCII) else None


# ---- The host: what is there -------------------------------------------------------------------


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


# Both children answer on a copy of stdout: CANN prints lines of its own to the descriptor.
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
_ASK_TORCH = """
import torch, torch_npu
computed = (torch.ones(2, device="npu") + 1).cpu().tolist()
os.write(answer, json.dumps({"right": computed == [2.0, 2.0]}).encode())
"""
_ASK_TORCHVISION = "import torchvision\nos.write(answer, b'{}')\n"


def _ask(code: str, **variables: str) -> tuple[dict[str, Any], str]:
    """Run code in another Python; return the JSON that it answers, and why there is none."""
    command = [sys.executable, "-c", _CHILD + code]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, **variables},
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
    if errors:
        return cause(stderr[errors[-1].start() :])
    return cause(stderr.strip().rpartition("\n")[2])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that another one hides: its __spec__ is None
        return False


def _torch_build() -> str:
    """Read what torch was built for in its version.py, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    try:
        text = Path(spec.submodule_search_locations[0], "version.py").read_text("utf-8")
    except (OSError, ValueError):
        return ""
    for name, word in (("cuda", "CUDA"), ("hip", "ROCm"), ("xpu", "XPU")):
        found = re.search(rf"^{name}\b[^=]*= *['\"](.+)['\"]", text, re.MULTILINE)
        if found:
            return f"{word} {found.group(1)}"
    return "cpu" if re.search(r"^cuda\b[^=]*= *None", text, re.MULTILINE) else ""


def _value_in(file: Path, name: str) -> str | None:
    """Return the value of "name=" in one of CANN's small files, "" without one, None without it."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}=(\S+)", text, re.MULTILINE | re.IGNORECASE)
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
        says = next(filter(None, (_value_in(file, "version") for file in files)), None)
        name = re.search(r"(\d+\.\d+\.\w.*)$", folder.resolve().name)
        version = readable(says) or (readable(name.group(1)) if name else None)
        scripts = [folder / "set_env.sh", folder.parent / "set_env.sh"]
        script = next((str(file) for file in scripts if file.is_file()), None)
        if version or script:
            return version, script
    return None, None


def read_host(ascend: Path = ASCEND) -> Host:
    """Look at this host. CANN and torchvision are asked in processes of their own.

    Args:
        ascend: where the driver and CANN are installed.
    """
    answer, problem = _ask(_ASK_CANN)
    cann = Cann(problem=problem)
    if not problem:
        versions = {name: readable(answer[name]) for name in ("version", "driver")}
        cann = Cann(**{**answer, **versions, "error": cause(answer["error"])})
    on_disk, set_env = _cann_on_disk(ascend, os.environ.get("ASCEND_HOME_PATH", ""))
    hal = sorted((ascend / "driver" / "lib64").glob("**/libascend_hal.so*"))
    torchvision = ""
    if _version("torchvision") and _version("torch"):
        torchvision = _ask(_ASK_TORCHVISION, TORCH_DEVICE_BACKEND_AUTOLOAD="0")[1]
    return Host(
        python=platform.python_version(),
        machine=platform.machine(),
        versions={name: _version(name) for name in PACKAGES if _version(name)},
        torch_build=_torch_build(),
        missing=tuple(
            package for package, module in CANN_PACKAGES.items() if not _is_importable(module)
        ),
        cann=cann,
        cann_on_disk=on_disk,
        set_env=set_env,
        driver_file=_value_in(ascend / "driver" / "version.info", "version"),
        hal=str(hal[0].parent) if hal else None,
        nvidia=Path("/proc/driver/nvidia").is_dir(),
        torchvision_problem=torchvision,
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


# ---- What to install ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Prescription:
    """The pair for a host, why this one, and the commands that install it."""

    pair: Pair
    reason: str
    commands: tuple[str, ...]


def prescribe(host: Host) -> Prescription:
    """Choose the row of the table for the host's CANN and Python, keeping its torch if that fits.

    Where the table has no row, the vendor's recommended pair is named, and that it is a guess.
    """
    table, cann = pairs(), host.cann_version
    python = ".".join(host.python.split(".")[:2])
    of_cann = [
        row
        for row in table.rows
        if cann and minor(row.cann) == minor(cann) and release(row.torch) >= OLDEST_TORCH
    ]
    rows = [row for row in of_cann if python in table.pythons(row)]
    installed = release(host.versions.get("torch", ""))[:3]
    kept = [row for row in rows if release(row.torch) == installed]
    pair = (kept or rows or [table.recommended])[0]
    if rows:
        reason = f"for CANN {cann} and Python {host.python}"
    elif of_cann:
        known = sorted({name for row in of_cann for name in table.pythons(row)}, key=release)
        reason = f"a guess: wheels for CANN {cann} are for Python {', '.join(known)}, not {python}"
    elif cann:
        reason = f"a guess: the table has no row for CANN {cann}"
    else:
        reason = f"a guess: CANN's version is unknown, and this is recommended with {pair.cann}"
    # Where the ordinary index serves torch, the CPU build is smaller; where its CUDA build would
    # end the process, the CPU build is named, or pip takes what is installed for good enough.
    build = "+cpu" if pair.torch in table.cuda_build_aborts else ""
    commands = [
        f"{_pip()} install torch=={pair.torch}{build} --index-url {CPU_INDEX}",
        f"{_pip()} install --no-deps torch-npu=={pair.torch_npu}",
    ]
    missing = list(host.missing)
    if _needs_numpy_1(host):
        missing = [*(package for package in missing if package != "numpy"), "'numpy<2'"]
    if missing:
        commands.append(f"{_pip()} install {' '.join(missing)}")
    return Prescription(pair, reason, tuple(commands))


def _needs_numpy_1(host: Host) -> bool:
    """Return whether the host's CANN fails with the numpy that is there or would be installed."""
    cann, numpy = minor(host.cann_version or ""), host.versions.get("numpy")
    return () < cann <= NUMPY_1_UP_TO and (numpy is None or release(numpy) >= (2,))


def _pip() -> str:
    return f"{'python3' if shutil.which('python3') == sys.executable else sys.executable} -m pip"


# ---- The checks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    value: str
    right: bool | None = True  # None: nobody knows, and it is tried all the same
    fix: str = ""


def _check_python(host: Host) -> Check:
    return Check("Python", host.python, release(host.python)[:2] <= NEWEST_PYTHON or None)


def _check_machine(host: Host) -> Check:
    known = host.machine in {"x86_64", "aarch64"}
    fix = "" if known else "torch-npu has wheels for Linux on x86_64 and aarch64 alone."
    return Check("machine", host.machine, known, fix)


def _check_torch(host: Host) -> Check:
    version, build = host.versions.get("torch", ""), host.torch_build
    if not version:
        return Check("torch", "not installed", False, INSTALL)
    value = f"{version}, built for {build}" if build else version
    if release(version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Check("torch", value, False, f"The kit needs torch {oldest} or newer. {INSTALL}")
    if not build.startswith("CUDA") or "torch-npu" not in host.versions:
        return Check("torch", value)
    number = ".".join(map(str, release(version)[:3]))
    cpu_build = f"{_pip()} install torch=={number}+cpu --index-url {CPU_INDEX}"
    if number in pairs().cuda_build_aborts:
        value += f": with torch-npu {host.versions['torch-npu']} it ends the process"
        return Check("torch", value, False, f"Install the CPU build: {cpu_build}")
    if host.nvidia:
        value += ", and this host has an NVIDIA GPU too: torch_npu refuses two accelerators"
        return Check("torch", value, False, f"Install the CPU build: {cpu_build}")
    return Check("torch", value)


def _check_torch_npu(host: Host) -> Check:
    version = host.versions.get("torch-npu", "")
    return (
        Check("torch-npu", version)
        if version
        else Check("torch-npu", "not installed", False, INSTALL)
    )


def _check_pairing(host: Host) -> Check:
    name = "pairing with torch"
    ours, theirs = host.versions.get("torch-npu", ""), host.versions.get("torch", "")
    if not ours or not theirs:
        return Check(name, "one of the two is missing", False, INSTALL)
    if release(ours)[:3] == release(theirs)[:3]:
        return Check(name, f"torch-npu {ours} is made for torch {theirs}")
    return Check(name, f"torch-npu {ours} is not made for torch {theirs}", False, INSTALL)


def _check_cann(host: Host) -> Check:
    if not host.cann.problem:
        return Check("CANN", host.cann_version or "loaded, of unknown version")
    if "libascend_hal" in host.cann.problem:
        return Check("CANN", f"not loaded ({host.cann.problem})", False, _mount_driver(host))
    found = f"found {host.cann_on_disk or 'one'}, " if host.set_env else ""
    return Check("CANN", f"{found}not loaded ({host.cann.problem})", False, load_cann(host.set_env))


def load_cann(set_env: str | None = None) -> str:
    """Return the sentence that says how CANN is loaded; both places where releases put it."""
    if set_env:
        return f"Load CANN: source {set_env}"
    return (
        f"Install CANN or load it: source {ASCEND}/cann/set_env.sh (8.5 and newer) "
        f"or source {ASCEND}/ascend-toolkit/set_env.sh"
    )


def _mount_driver(host: Host) -> str:
    if host.hal:
        return f"export LD_LIBRARY_PATH={host.hal}:$LD_LIBRARY_PATH"
    return (
        f"The driver's libraries are missing, as in a container without them: start it with "
        f"-v {ASCEND}/driver:{ASCEND}/driver --device /dev/davinci0 --device /dev/davinci_manager "
        f"--device /dev/devmm_svm --device /dev/hisi_hdc, and in it "
        f"export LD_LIBRARY_PATH={ASCEND}/driver/lib64/driver:{ASCEND}/driver/lib64/common:"
        f"$LD_LIBRARY_PATH"
    )


def _check_cann_pairing(host: Host) -> Check:
    name, ours, cann = "pairing with CANN", host.versions.get("torch-npu", ""), host.cann_version
    row = pairs().of_torch_npu(ours)
    if not ours or not cann:
        return Check(name, "unknown, without torch-npu" if not ours else "unknown CANN", None)
    if row is None:
        value = f"unknown pair: the table has no row for torch-npu {ours}; here is CANN {cann}"
        return Check(name, value, None)
    value = f"torch-npu {ours} is made for CANN {row.cann}, here is {cann}"
    if not minor(cann):
        return Check(name, value, None)
    if minor(row.cann) == minor(cann):
        return Check(name, value)
    return Check(name, value, False, INSTALL)


def _check_cann_packages(host: Host) -> Check:
    numpy = host.versions.get("numpy")
    if numpy and _needs_numpy_1(host):
        fix = f"CANN {host.cann_version} fails with it (error 500001): {_pip()} install 'numpy<2'"
        return Check("CANN's Python", f"numpy {numpy}", False, fix)
    if not host.missing:
        return Check("CANN's Python", "has its packages")
    fix = f"CANN's operator compiler may need them: {_pip()} install {' '.join(host.missing)}"
    return Check("CANN's Python", f"missing: {', '.join(host.missing)}", None, fix)


def _check_driver(host: Host) -> Check:
    version = host.driver_file or host.cann.driver
    if version:
        return Check("driver", version)
    if host.driver_file is not None or host.cann.chips:
        return Check("driver", "of unknown version", None)
    file = ASCEND / "driver" / "version.info"
    return Check("driver", f"no {file}", False, "Install the Ascend driver on the host.")


def _check_visible(host: Host) -> Check:
    name, variable = "visible chips", "ASCEND_RT_VISIBLE_DEVICES"
    value = host.variables.get(variable)
    if value is None:
        return Check(name, f"all ({variable} is not set)")
    # As torch_npu reads it: numbers and commas, what follows anything else is left out.
    read = re.match(r"[\d,]*", value, re.ASCII)
    numbers = [int(part) for part in (read.group() if read else "").split(",") if part]
    shown = f"{variable}={value}"
    fix = f"Unset {variable}, or give it the numbers of the chips, ascending: 0,1"
    if not numbers:
        return Check(name, f"{shown} hides every chip", False, fix)
    if numbers != sorted(set(numbers)):
        return Check(name, f"{shown} does not ascend, which hides every chip", False, fix)
    return Check(name, shown)


def _check_chips(host: Host) -> Check:
    if host.cann.chips:
        return Check("chips", f"{host.cann.chips} x {host.cann.chip or 'of unknown name'}")
    error = f" ({host.cann.error})" if host.cann.error else ""
    fix = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the rights on /dev/davinci*."
    return Check("chips", f"none{error}", False, fix)


def _check_transformers(host: Host) -> Check:
    version = host.versions.get("transformers", "")
    if not version:
        fix = f"{_pip()} install -r requirements.txt"
        return Check("transformers", "not installed", False, fix)
    if release(version) < OLDEST_TRANSFORMERS:
        return Check(
            "transformers", f"{version} has no DINOv3", False, f"{_pip()} install -U transformers"
        )
    return Check("transformers", version)


def _check_torchvision(host: Host) -> Check:
    version = host.versions.get("torchvision", "")
    if not host.torchvision_problem:
        return Check("torchvision", version or "not installed, and not needed")
    torch = host.versions.get("torch", "")
    value = f"{version} does not fit torch {torch} ({host.torchvision_problem})"
    fix = f"The kit needs none: {_pip()} uninstall torchvision"
    if release(torch)[:1] == (2,):  # 0.24 belongs to 2.9, and so on
        wanted = f"0.{release(torch)[1] + 15}.*"
        index = "" if host.torch_build.startswith("CUDA") else f" --index-url {CPU_INDEX}"
        fix += f"; or the one for this torch: {_pip()} install --no-deps --force-reinstall "
        fix += f"torchvision=={wanted}{index}"
    return Check("torchvision", value, False, fix)


CHECKS = (
    _check_python,
    _check_machine,
    _check_torch,
    _check_torch_npu,
    _check_pairing,
    _check_cann,
    _check_cann_pairing,
    _check_cann_packages,
    _check_driver,
    _check_visible,
    _check_chips,
    _check_transformers,
    _check_torchvision,
)


def try_npu(host: Host) -> Check:
    """Let another process compute on the NPU, whatever the versions, where that is possible."""
    if not {"torch", "torch-npu"} <= set(host.versions) or not host.cann.chips:
        return Check("NPU", "not tried", False, "See the lines above.")
    answer, problem = _ask(_ASK_TORCH)
    if answer.get("right"):
        return Check("NPU", "computes")
    fix = advice(problem) or "See the lines above."
    return Check("NPU", problem or "computes wrongly", False, fix)


@dataclass(frozen=True)
class Diagnosis:
    """All that the command says."""

    host: Host
    checks: tuple[Check, ...]
    prescription: Prescription

    @property
    def ready(self) -> bool:
        """Whether the NPU computes."""
        return self.checks[-1].right is True

    def as_json(self) -> str:
        """Return what --json prints."""
        content = {
            "schema_version": 2,
            "ready": self.ready,
            "checks": [asdict(check) for check in self.checks],
            "install": {**asdict(self.prescription), "pair": self.prescription.pair._asdict()},
            "host": asdict(self.host),
        }
        return json.dumps(content, indent=2)

    def as_text(self) -> str:
        """Return a line a check, and what to install where the pair is not known to be right."""
        marks = {True: "right ", False: "WRONG ", None: "unsure"}
        lines = [
            f"{marks[check.right]}  {check.name:<18} {check.value}"
            + (f" -> {check.fix}" if check.fix else "")
            for check in self.checks
        ]
        paired = {"torch", "torch-npu", "pairing with torch", "pairing with CANN"}
        if any(check.right is not True for check in self.checks if check.name in paired):
            pair, reason = self.prescription.pair, self.prescription.reason
            lines += ["", f"Install torch {pair.torch} and torch-npu {pair.torch_npu}, {reason}:"]
            lines += [f"    {command}" for command in self.prescription.commands]
            if "+cpu" not in self.prescription.commands[0]:
                lines.append("Without --index-url it is the CUDA build, larger, which starts too.")
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at the host; the last check is whether an NPU computes."""
    host = read_host()
    checks = [check(host) for check in CHECKS]
    return Diagnosis(host, (*checks, try_npu(host)), prescribe(host))


def main(arguments: list[str]) -> int:
    """Print the diagnosis, or pack it; return the exit code."""
    diagnosis = diagnose()
    if "--bundle" in arguments:
        return _bundle(diagnosis, arguments[arguments.index("--bundle") + 1 :])
    print(diagnosis.as_json() if "--json" in arguments else diagnosis.as_text())  # noqa: T201
    return int(not diagnosis.ready)


def _bundle(diagnosis: Diagnosis, arguments: list[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print("usage: python3 -m npu_patch --bundle FILE.zip [FOLDER]", file=sys.stderr)  # noqa: T201
        return 2
    target, folder = Path(arguments[0]), Path(*arguments[1:] or ["output"])
    names = bundle.of_this_host()
    files = bundle.contents(folder, names)
    files["doctor.json"] = json.dumps(names.value(json.loads(diagnosis.as_json())), indent=2)
    files["doctor.txt"] = names.text(diagnosis.as_text())
    try:
        bundle.write(target, files)
    except OSError as error:
        print(f"cannot write {target}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"Wrote {target}: {', '.join(sorted(files))}. Look into it before you send it.")  # noqa: T201
    return 0
