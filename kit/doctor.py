"""What is right and wrong on this host, without torch in this process: python3 -m npu_patch.

    python3 -m npu_patch            a line a check: right or WRONG, and what mends it
    python3 -m npu_patch --json     the same for programs

The exit code is 0 only where an NPU computes. It needs Python's standard library alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LOAD_CANN = "Install CANN or load it: source /usr/local/Ascend/ascend-toolkit/set_env.sh"
_FIND_NPU = "Check npu-smi info, ASCEND_RT_VISIBLE_DEVICES and the rights on /dev/davinci*."


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis: what it is about, what was found, whether right, the mend."""

    name: str
    value: str
    right: bool
    mend: str = ""


# Asks CANN itself, without torch, in a process of its own: a broken library may end that process.
_ASK_CANN = """
import ctypes, json
acl = ctypes.CDLL("libascendcl.so")
acl.aclInit(None)
count, version = ctypes.c_uint32(0), ctypes.create_string_buffer(512)
failed = acl.aclrtGetDeviceCount(ctypes.byref(count))
name = ""
if count.value and not failed:
    acl.aclrtSetDevice(0)
    acl.aclrtGetSocName.restype = ctypes.c_char_p
    name = (acl.aclrtGetSocName() or b"").decode()
try:
    acl.aclsysGetCANNVersion(0, version)
except AttributeError:
    pass
print(json.dumps({"chips": count.value, "chip": name, "version": version.value.decode()}))
"""
_ASK_TORCH = """
import json, torch, torch_npu
answer = (torch.ones(2, device="npu") + 1).cpu().tolist()
print(json.dumps({"right": answer == [2.0, 2.0], "driver": "", "count": torch.npu.device_count()}))
"""
_TORCH_SECONDS = 120  # torch and torch_npu import in 4 s here, a cold host takes longer


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> str:
    """Return a version's first three numbers: 2.9.0.post1+git -> 2.9.0, 2.12.0rc1 -> 2.12.0."""
    found = re.match(r"\d+(\.\d+){0,2}", version)
    return found.group() if found else ""


def _ask(code: str, seconds: float) -> tuple[dict[str, Any], str]:
    """Run code in another Python; return the JSON it printed, and the last line of its errors."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {seconds:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer, ""
    errors = [line for line in done.stderr.strip().splitlines() if ": " in line]
    return {}, errors[-1] if errors else f"it ended with code {done.returncode}"


def _check_python() -> Check:
    right = sys.version_info >= (3, 10)
    return Check(
        "Python", platform.python_version(), right, "" if right else "Use Python 3.10 or newer."
    )


def _check_package(name: str, package: str) -> Check:
    version = _version(package)
    found = importlib.util.find_spec(name) is not None
    if found:
        return Check(package, version or "installed, of no known version", True)
    return Check(package, "not installed", False, f"Install it: pip install {package}")


def _check_pairing() -> Check:
    ours, theirs = _version("torch-npu"), _version("torch")
    if not ours or not theirs:
        return Check("pairing with torch", "unknown", False, "Install torch and torch-npu first.")
    if _release(ours) == _release(theirs):
        return Check("pairing with torch", f"torch-npu {ours} is made for torch {theirs}", True)
    mend = f"Install the pair: pip install --no-deps 'torch-npu=={_release(theirs)}.*'"
    return Check(
        "pairing with torch", f"torch-npu {ours} is not made for torch {theirs}", False, mend
    )


def _cann_for(version: str) -> str:
    """Return the CANN release that the torch-npu wheel's own description names for its version.

    The description has a table: CANN release | torch | torch-npu with post-number | branch.
    """
    release = ""
    description = importlib.metadata.distribution("torch-npu").read_text("METADATA") or ""
    for line in description.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4:
            release = cells[0].removeprefix("CANN ") if cells[0].startswith("CANN ") else release
            if cells[2] == version.partition("+")[0]:
                return release
    return ""


def _check_cann(cann: dict[str, Any], problem: str) -> Check:
    if problem:
        return Check("CANN", f"not loaded ({problem})", False, _LOAD_CANN)
    version = cann["version"] or _cann_version_file()
    return Check("CANN", version or "loaded, of no known version", True)


def _cann_version_file() -> str:
    home = os.environ.get("ASCEND_HOME_PATH", "/usr/local/Ascend/ascend-toolkit/latest")
    for file in sorted(Path(home).glob("*-linux/ascend_toolkit_install.info")):
        found = re.search(r"^version=(\S+)", file.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found.group(1)
    return ""


def _check_cann_pairing(cann: str) -> Check:
    name, ours = "pairing with CANN", _version("torch-npu")
    wanted = _cann_for(ours) if ours else ""
    if not wanted or not cann:
        return Check(name, f"torch-npu {ours or 'absent'} names no CANN release for itself", True)
    # 8.5.1 does for 8.5.0, and 8.3.RC1 for nothing but itself.
    right = (
        cann.rpartition(".")[0] == wanted.rpartition(".")[0]
        if "RC" not in wanted
        else cann == wanted
    )
    value = f"torch-npu {ours} is made for CANN {wanted}, here is {cann}"
    return Check(
        name, value, right, "" if right else f"Install CANN {wanted} or the torch-npu for {cann}."
    )


def _check_driver(chips: int) -> Check:
    file = Path("/usr/local/Ascend/driver/version.info")
    if file.is_file():
        found = re.search(r"^Version=(\S+)", file.read_text(errors="replace"), re.MULTILINE)
        return Check("driver", found.group(1) if found else "of no known version", True)
    if chips:
        return Check("driver", f"no {file} (as in a container), but chips answer", True)
    return Check("driver", f"no {file}", False, "Install the Ascend driver on the host.")


def _check_chips(cann: dict[str, Any]) -> Check:
    chips = int(cann.get("chips", 0))
    if chips:
        return Check("chips", f"{chips} x {cann['chip']}", True)
    return Check("chips", "none", False, _FIND_NPU)


def _check_environment() -> Check:
    names = (
        "ASCEND_HOME_PATH",
        "ASCEND_RT_VISIBLE_DEVICES",
        "TORCH_DEVICE_BACKEND_AUTOLOAD",
        "TORCH_COMPILE_DISABLE",
    )
    values = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    if os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "0").strip() == "":
        mend = "Unset ASCEND_RT_VISIBLE_DEVICES, or give it the numbers of the chips to use."
        return Check(
            "environment", "ASCEND_RT_VISIBLE_DEVICES is empty and hides every chip", False, mend
        )
    return Check("environment", values or "nothing set", True)


def _check_numpy(cann: str) -> Check:
    version = _version("numpy")
    right = not (cann.startswith("8.2") and version.startswith("2."))
    mend = "" if right else "CANN 8.2 fails with numpy 2 (error 500001): pip install 'numpy<2'"
    return Check("numpy", version or "not installed", right, mend)


def diagnose() -> tuple[Check, ...]:
    """Look at the host, without torch in this process; the last line is whether an NPU computes."""
    cann, problem = _ask(_ASK_CANN, 60)
    found = _check_cann(cann, problem)
    version = found.value if found.right else ""
    checks = (
        _check_python(),
        _check_package("torch", "torch"),
        _check_package("torch_npu", "torch-npu"),
        _check_pairing(),
        found,
        _check_cann_pairing(version),
        _check_driver(int(cann.get("chips", 0))),
        _check_chips(cann),
        _check_numpy(version),
        _check_environment(),
    )
    if not all(check.right for check in checks):
        return (*checks, Check("NPU", "not tried", False, "Mend the lines above first."))
    answer, problem = _ask(_ASK_TORCH, _TORCH_SECONDS)
    if answer.get("right"):
        return (*checks, Check("NPU", "computes", True))
    return (*checks, Check("NPU", problem or "computes wrongly", False, "See the error."))


def main(arguments: list[str]) -> int:
    """Print the diagnosis; return the exit code."""
    as_json = arguments == ["--json"]
    checks = diagnose()
    ready = checks[-1].right
    if as_json:
        report = {
            "schema_version": 1,
            "ready": ready,
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(report, indent=2))  # noqa: T201 - the command's output
        return int(not ready)
    for check in checks:
        mark = "right" if check.right else "WRONG"
        mend = f" -> {check.mend}" if check.mend else ""
        print(f"{mark}  {check.name:<18} {check.value}{mend}")  # noqa: T201
    return int(not ready)
