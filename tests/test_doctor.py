"""The doctor: what is right and wrong on a host, without torch in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit import doctor
from tests.emulated_npu import REPOSITORY, EmulatedNpu
from tests.test_npu_patch_hosts import _fake_torch_npu


def _run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python without installed packages: what is compared here needs no torch, and no time."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_diagnosis_of_a_bare_host_names_what_is_wrong(tmp_path: Path) -> None:
    done = _run("-m", "npu_patch", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert done.returncode == 1
    assert report["ready"] is False
    assert checks["Python"]["right"] and not checks["torch"]["right"]
    assert not checks["CANN"]["right"] and "set_env.sh" in checks["CANN"]["mend"]
    assert not checks["chips"]["right"] and not checks["NPU"]["right"]
    assert all(check["right"] or check["mend"] for check in report["checks"])


def test_the_diagnosis_as_text_has_a_line_a_check(tmp_path: Path) -> None:
    done = _run("-m", "npu_patch", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert len(lines) >= 10
    assert all(line.startswith(("right  ", "WRONG  ")) for line in lines)
    assert all(" -> " in line for line in lines if line.startswith("WRONG"))


def test_the_diagnosis_names_a_wrong_pair(tmp_path: Path) -> None:
    _fake_torch_npu(tmp_path, "2.1.0.post3", "raise SystemExit('imported')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-m", "npu_patch", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert "is not made for torch" in checks["pairing with torch"]["value"]
    assert "pip install" in checks["pairing with torch"]["mend"]


def test_the_diagnosis_does_not_import_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['npu_patch', '--json']\n"
        "try:\n"
        f"    runpy.run_path({str(REPOSITORY / 'npu_patch.py')!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert 'torch' not in sys.modules and 'torch_npu' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


PAIRS = """
| CANN Version | Supported PyTorch Version | Supported Extension Version | Github Branch |
|--------------|---------------------------|-----------------------------|---------------|
| CANN 8.5.0   | 2.9.0                     | 2.9.0                       | v2.9.0-7.3.0  |
|              | 2.8.0                     | 2.8.0.post2                 | v2.8.0-7.3.0  |
| CANN 8.3.RC1 | 2.8.0                     | 2.8.0                       | v2.8.0-7.2.0  |
"""


@pytest.mark.parametrize(
    ("torch_npu", "cann", "right"),
    [
        ("2.8.0.post2", "8.5.0", True),
        ("2.8.0.post2", "8.5.1", True),
        ("2.8.0.post2+gitabc", "8.3.RC1", False),
        ("2.8.0", "8.3.RC1", True),
        ("2.8.0", "8.5.0", False),
        ("2.9.0", "8.5.0", True),
        ("2.13.0", "9.1.0", True),
    ],
)
def test_the_post_number_names_the_cann_release(
    monkeypatch: pytest.MonkeyPatch, torch_npu: str, cann: str, right: bool
) -> None:
    class Description:
        def read_text(self, name: str) -> str:
            return PAIRS

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Description())
    monkeypatch.setattr(doctor, "_version", lambda package: torch_npu)
    check = doctor._check_cann_pairing(cann)
    assert check.right is right
    assert right or check.mend.startswith("Install CANN ")


def test_numpy_2_with_cann_8_2_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: "2.1.0")
    assert not doctor._check_numpy("8.2.RC1").right
    assert doctor._check_numpy("8.3.RC1").right


def test_the_diagnosis_of_a_ready_host_is_all_right(npu_host: EmulatedNpu) -> None:
    done = npu_host.run(["-m", "npu_patch", "--json"])
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["ready"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["chips"]["value"] == "2 x Ascend910_9362"
    assert checks["CANN"]["value"] == "9.1.0"
    assert checks["NPU"]["value"] == "computes"


def test_the_diagnosis_without_a_chip_says_so(npu_host: EmulatedNpu) -> None:
    done = npu_host.run(["-m", "npu_patch", "--json"], environment={"FAKECANN_DEVICES": "0"})
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert checks["CANN"]["right"]
    assert not checks["chips"]["right"] and "npu-smi" in checks["chips"]["mend"]
