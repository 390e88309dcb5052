"""Tests of the host's memory: its peak, and freed memory that is kept."""

import ctypes
import subprocess
import sys

import pytest

from kit.accuracy.measure import keep_freed_memory
from kit.device import meters
from kit.device.meters import host_peak_bytes
from kit.run import ROOT

RESIDENT_BYTES_AFTER_FREEING = """
import sys
import npu_patch, torch
from pathlib import Path
from kit.accuracy.measure import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("no such setting")
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident_bytes()
held = [torch.ones(1 << 20) for _ in range(64)]
assert resident_bytes() - before > 200 << 20
del held
print(resident_bytes() - before)
"""

PEAK_UNDER_A_LARGE_PARENT = """
import subprocess, sys
held = b"x" * (700 << 20)
child = "from kit.device.meters import host_peak_bytes; print(host_peak_bytes())"
subprocess.run([sys.executable, "-c", child], check=True)
"""


def run_python(source: str, *arguments: str) -> int:
    """Return the number that a fresh interpreter prints."""
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return int(done.stdout)


def test_the_peak_is_this_processs_own_and_not_its_parents() -> None:
    assert 50 << 20 < run_python(PEAK_UNDER_A_LARGE_PARENT) < 600 << 20  # torch's own


def test_the_peak_counts_what_was_freed_again() -> None:
    source = "from kit.device.meters import host_peak_bytes; b'x' * (600 << 20); print(%s)"
    assert run_python(source % "host_peak_bytes()") > 600 << 20


def test_without_proc_the_peak_is_getrusages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "STATUS", ROOT / "no-such-file")
    peak = host_peak_bytes()
    assert peak is not None and peak > 50 << 20


def test_a_host_that_tells_no_peak_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "STATUS", ROOT / "no-such-file")
    monkeypatch.setattr(meters, "resource", None)
    assert host_peak_bytes() is None


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
@pytest.mark.extended
def test_freed_memory_stays_for_the_next_tensor() -> None:
    assert run_python(RESIDENT_BYTES_AFTER_FREEING, "return") < 50 << 20
    assert run_python(RESIDENT_BYTES_AFTER_FREEING, "keep") > 200 << 20


def test_a_c_library_without_the_setting_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False
