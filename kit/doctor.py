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
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from kit import bundle
from kit.environment import ASCEND, VISIBLE, Host, ask, minor, read_host, release
from kit.errors import advice

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NEWEST_PYTHON = (3, 13)  # that was tried; kit/__init__.py refuses the old ones
OLDEST_TORCH = (2, 7)  # that was tried, as npu_patch.py has it
OLDEST_TRANSFORMERS = (4, 56)  # the first with DINOv3
INSTALL = "Install the pair that stands below."
_COMPUTE = """
import torch, torch_npu
computed = (torch.ones(2, device="npu") + 1).cpu().tolist()
os.write(answer, json.dumps({"right": computed == [2.0, 2.0]}).encode())
"""


# ---- The table of pairs -------------------------------------------------------------------------


class Pair(NamedTuple):
    """A row of the vendor's table: releases that belong together."""

    torch_npu: str
    torch: str
    cann: str


@dataclass(frozen=True)
class Pairs:
    """pairs.json: which torch-npu belongs to which torch and CANN, and who says so."""

    recommended: Pair
    rows: list[Pair]
    python_of_torch: Mapping[str, list[str]]
    python_of_torch_npu: Mapping[str, list[str]]  # where the index has wheels for fewer
    cuda_build_starts: list[str]  # releases of torch; tried on the emulated NPU
    cuda_build_aborts: list[str]

    def pythons(self, row: Pair) -> list[str]:
        """Return the releases of Python that a row's wheels are for; none where nobody says."""
        torch = self.python_of_torch.get(row.torch, [])
        return self.python_of_torch_npu.get(row.torch_npu, torch)


@functools.cache
def pairs() -> Pairs:
    """Read the table beside this file."""
    content = json.loads(Path(__file__).with_name("pairs.json").read_text("utf-8"))
    rows = [Pair(row["torch_npu"], row["torch"], row["cann"]) for row in content["pairs"]]
    recommended = next(row for row in rows if row.torch_npu == content["recommended"])
    rest = ("python_of_torch", "python_of_torch_npu", "cuda_build_starts", "cuda_build_aborts")
    return Pairs(recommended, rows, **{name: content[name] for name in rest})


def pair_problem(torch: str, torch_npu: str, build: str) -> str | None:
    """Say why this torch-npu cannot be imported beside this torch, None where nothing is known.

    torch and torch_npu are versions, build is what torch is built for: "CUDA 13.0", "cpu".
    """
    if release(torch)[:3] != release(torch_npu)[:3]:
        return f"torch-npu {torch_npu} is not made for torch {torch}"
    number = ".".join(map(str, release(torch)[:3]))
    if build.startswith("CUDA") and number in pairs().cuda_build_aborts:
        return f"torch-npu {torch_npu} ends the process beside a CUDA build of torch {number}"
    return None


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
    of_cann = [row for row in table.rows if minor(cann) and minor(row.cann) == minor(cann)]
    rows = [row for row in of_cann if python in table.pythons(row)]
    kept = [row for row in rows if release(row.torch) == release(host.version("torch"))[:3]]
    pair = (kept or rows or [table.recommended])[0]
    if rows:
        reason = f"for CANN {cann} and Python {host.python}"
        if release(pair.torch) < OLDEST_TORCH:
            reason += f", older than the kit was tried with: {_number(OLDEST_TORCH)}"
    elif of_cann:
        known = sorted({name for row in of_cann for name in table.pythons(row)}, key=release)
        reason = f"a guess: wheels for CANN {cann} are for Python {', '.join(known)}, not {python}"
    elif cann:
        reason = f"a guess: the table has no row for CANN {cann}"
    else:
        reason = f"a guess: CANN's version is unknown, and this is recommended with {pair.cann}"
    # Where the ordinary index serves torch, the CPU build is smaller; where its CUDA build would
    # end the process, the CPU build is named, or pip takes what is installed for good enough.
    commands = [
        _cpu_build(pair.torch, "+cpu" if pair.torch in table.cuda_build_aborts else ""),
        f"{_pip()} install --no-deps torch-npu=={pair.torch_npu}",
    ]
    missing = [name for name in host.missing if name != "numpy" or not host.needs_numpy_1]
    missing += ["'numpy<2'"] if host.needs_numpy_1 else []
    if missing:
        commands.append(f"{_pip()} install {' '.join(missing)}")
    return Prescription(pair, reason, tuple(commands))


def _pip() -> str:
    return f"{'python3' if shutil.which('python3') == sys.executable else sys.executable} -m pip"


def _cpu_build(torch: str, local: str = "+cpu") -> str:
    return f"{_pip()} install torch=={torch}{local} --index-url {CPU_INDEX}"


def _number(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


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
    version, ours, build = host.version("torch"), host.version("torch-npu"), host.torch_build
    if not version:
        return Check("torch", "not installed", False, INSTALL)
    value = f"{version}, built for {build}" if build else version
    fix = f"Install the CPU build: {_cpu_build(_number(release(version)[:3]))}"
    if build.startswith("CUDA") and ours:
        if release(version)[:3] == release(ours)[:3] and pair_problem(version, ours, build):
            return Check("torch", f"{value}: with torch-npu {ours} it ends the process", False, fix)
        if host.nvidia:
            why = "and this host has an NVIDIA GPU too: torch_npu refuses two accelerators"
            return Check("torch", f"{value}, {why}", False, fix)
    if release(version) < OLDEST_TORCH:
        value += f"; {_number(OLDEST_TORCH)} is the oldest that was tried"
    return Check("torch", value, release(version) >= OLDEST_TORCH or None)


def _check_torch_npu(host: Host) -> Check:
    ours, theirs = host.version("torch-npu"), host.version("torch")
    if not ours:
        return Check("torch-npu", "not installed", False, INSTALL)
    if theirs and (problem := pair_problem(theirs, ours, "")):
        return Check("torch-npu", problem, False, INSTALL)
    return Check("torch-npu", f"{ours}, made for torch {_number(release(ours)[:3])}")


def _check_cann(host: Host) -> Check:
    if not host.cann.problem:
        return Check("CANN", host.cann_version or "loaded, of unknown version")
    value = f"not loaded ({host.cann.problem})"
    if "libascend_hal" in host.cann.problem:
        return Check("CANN", value, False, _mount_driver(host.hal))
    if host.set_env:
        value = f"found {host.cann_on_disk or 'one'}, {value}"
        return Check("CANN", value, False, f"Load CANN: source {host.set_env}")
    fix = f"Install CANN or load it: source {ASCEND}/cann/set_env.sh (8.5 and newer) "
    return Check("CANN", value, False, f"{fix}or source {ASCEND}/ascend-toolkit/set_env.sh")


def _mount_driver(hal: str | None) -> str:
    if hal:
        return f"export LD_LIBRARY_PATH={hal}:$LD_LIBRARY_PATH"
    driver = ASCEND / "driver"
    return (
        f"The driver's libraries are missing, as in a container without them: start it with "
        f"-v {driver}:{driver} --device /dev/davinci0 --device /dev/davinci_manager --device "
        f"/dev/devmm_svm --device /dev/hisi_hdc, and in it export LD_LIBRARY_PATH="
        f"{driver}/lib64/driver:{driver}/lib64/common:$LD_LIBRARY_PATH"
    )


def _check_cann_pairing(host: Host) -> Check:
    name, ours, cann = "pairing with CANN", host.version("torch-npu"), host.cann_version
    if not ours or not cann:
        return Check(name, "unknown, without torch-npu" if not ours else "unknown CANN", None)
    # The post-number counts, what follows "+" does not.
    row = next((row for row in pairs().rows if row.torch_npu == ours.partition("+")[0]), None)
    if row is None:
        value = f"unknown pair: the table has no row for torch-npu {ours}; here is CANN {cann}"
        return Check(name, value, None)
    value = f"torch-npu {ours} is made for CANN {row.cann}, here is {cann}"
    right = minor(row.cann) == minor(cann) if minor(cann) else None
    return Check(name, value, right, INSTALL if right is False else "")


def _check_cann_packages(host: Host) -> Check:
    name, numpy = "CANN's Python", host.version("numpy")
    if numpy and host.needs_numpy_1:
        fix = f"CANN {host.cann_version} fails with it (error 500001): {_pip()} install 'numpy<2'"
        return Check(name, f"numpy {numpy}", False, fix)
    if not host.missing:
        return Check(name, "has its packages")
    fix = f"CANN's operator compiler may need them: {_pip()} install {' '.join(host.missing)}"
    return Check(name, f"missing: {', '.join(host.missing)}", None, fix)


def _check_driver(host: Host) -> Check:
    if version := host.driver_file or host.cann.driver:
        return Check("driver", version)
    if host.driver_file is not None or host.cann.chips:
        return Check("driver", "of unknown version", None)
    value = f"no {ASCEND}/driver/version.info"
    return Check("driver", value, False, "Install the Ascend driver on the host.")


def _check_visible(host: Host) -> Check:
    value = host.variables.get(VISIBLE)
    if value is None:
        return Check("visible chips", f"all ({VISIBLE} is not set)")
    # As torch_npu reads it: numbers and commas, what follows anything else is left out.
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[^\d,]", value)[0], re.ASCII)]
    hides = " hides every chip" if not numbers else ""
    if numbers != sorted(set(numbers)):
        hides = " does not ascend, which hides every chip"
    fix = f"Unset {VISIBLE}, or give it the numbers of the chips, ascending: 0,1"
    return Check("visible chips", f"{VISIBLE}={value}{hides}", not hides, fix if hides else "")


def _check_chips(host: Host) -> Check:
    if host.cann.chips:
        return Check("chips", f"{host.cann.chips} x {host.cann.chip or 'of unknown name'}")
    error = f" ({host.cann.error})" if host.cann.error else ""
    fix = f"Check npu-smi info, {VISIBLE} and the rights on /dev/davinci*."
    return Check("chips", f"none{error}", False, fix)


def _check_transformers(host: Host) -> Check:
    version = host.version("transformers")
    if release(version) >= OLDEST_TRANSFORMERS:
        return Check("transformers", version)
    value = f"{version} has no DINOv3" if version else "not installed"
    fix = f"{_pip()} install {'-U transformers' if version else '-r requirements.txt'}"
    return Check("transformers", value, False, fix)


def _check_torchvision(host: Host) -> Check:
    version, torch = host.version("torchvision"), host.version("torch")
    if not host.torchvision_problem:
        return Check("torchvision", version or "not installed, and not needed")
    fix = f"The kit needs none: {_pip()} uninstall torchvision"
    if release(torch)[:1] == (2,):  # 0.24 belongs to 2.9, and so on
        index = "" if host.torch_build.startswith("CUDA") else f" --index-url {CPU_INDEX}"
        fix += f"; or the one for this torch: {_pip()} install --no-deps --force-reinstall "
        fix += f"torchvision==0.{release(torch)[1] + 15}.*{index}"
    value = f"{version} does not fit torch {torch} ({host.torchvision_problem})"
    return Check("torchvision", value, False, fix)


CHECKS = (
    *(_check_python, _check_machine, _check_torch, _check_torch_npu, _check_cann),
    *(_check_cann_pairing, _check_cann_packages, _check_driver, _check_visible, _check_chips),
    *(_check_transformers, _check_torchvision),
)


def try_npu(host: Host) -> Check:
    """Let another process compute on the NPU, whatever the versions, where that is possible."""
    if not host.version("torch") or not host.version("torch-npu") or not host.cann.chips:
        return Check("NPU", "not tried", False, "See the lines above.")
    answer, problem = ask(_COMPUTE)
    if answer.get("right"):
        return Check("NPU", "computes")
    fix = advice(problem) or "See the lines above."
    return Check("NPU", problem or "computes wrongly", False, fix)


def as_text(checks: Sequence[Check], install: Prescription) -> str:
    """Return a line a check, and what to install where the pair is not known to be right."""
    marks = {True: "right ", False: "WRONG ", None: "unsure"}
    lines = [
        f"{marks[check.right]}  {check.name:<18} {check.value}"
        + (f" -> {check.fix}" if check.fix else "")
        for check in checks
    ]
    paired = {"torch", "torch-npu", "pairing with CANN"}
    if any(check.right is not True for check in checks if check.name in paired):
        pair, why = install.pair, install.reason
        lines += ["", f"Install torch {pair.torch} and torch-npu {pair.torch_npu}, {why}:"]
        lines += [f"    {command}" for command in install.commands]
        if pair.torch in pairs().cuda_build_starts:
            lines.append("Without --index-url it is the CUDA build, larger, which starts too.")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the diagnosis, or pack it; return the exit code."""
    host = read_host()
    checks = (*(check(host) for check in CHECKS), try_npu(host))
    install, ready = prescribe(host), checks[-1].right is True
    text = as_text(checks, install)
    report = {
        "schema_version": 2,
        "ready": ready,
        "checks": [asdict(check) for check in checks],
        "install": {**asdict(install), "pair": install.pair._asdict()},
        "host": asdict(host),
    }
    if "--bundle" in arguments:
        return bundle.pack(report, text, arguments[arguments.index("--bundle") + 1 :])
    print(json.dumps(report, indent=2) if "--json" in arguments else text)  # noqa: T201
    return int(not ready)
