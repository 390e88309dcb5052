"""Whether a device can be trusted: known answers, and operators that it hands to the CPU.

torch_npu reports a fallback in C++ on file descriptor 2 only, where Python's warnings never see
it. So the descriptor is led through a child process: what is written still reaches the terminal,
even when this process is killed with its last words in the pipe, and a copy is searched for names.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kit.device.device import Device, device_errors, synchronize
from kit.errors import DeviceError

_question_numbers = itertools.count(1)


class HealthChecks:
    """Asks a device small questions with known answers and counts those it passed."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.passed = 0

    def after(self, phase: str) -> None:
        """Prove that the device still computes after a phase of the run.

        A device that dropped its work hands back whatever lies in memory, perhaps the answer
        to the last question: hence a new one each time, of small integers, exact in fp32, TF32
        and HF32 alike. The CPU is not asked: it raises where it fails. Raises DeviceError where
        the device fails or answers wrongly.
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


PATTERN = re.compile(r"operator '([\w:.]+)'[^\n]*fall back to (?:run on the )?CPU")
DRAIN_TIMEOUT_S = 5.0
# Passes on what arrives, at once, and a copy of it to a file, until all writers have ended. One
# line is left out: torch_npu 2.7 to 2.12 write it at the first allocation, and it asks for nothing.
FORWARD = r"""
import os, re, sys
WARNING = rb"(?m)(?:^|(?<=\r))(?:\[rank\d+\]:)?\[W[^\n]*"
HARMLESS = WARNING + rb"require processing for 32 padding size[^\n]*\n"
held = b""
with open(sys.argv[1], "wb", 0) as copy:
    while chunk := os.read(0, 65536):
        copy.write(chunk)
        held = re.sub(HARMLESS, b"", held + chunk)
        if not re.search(WARNING + rb"\Z", held):  # the half of a warning
            sys.stdout.buffer.write(held)
            sys.stdout.buffer.flush()
            held = b""
    sys.stdout.buffer.write(held)
"""
# Either of them keeps torch_npu from saying what falls back.
SILENCERS = ("TORCH_NPU_WARNING_DISABLE", "TORCH_NPU_DISABLED_WARNING")


@dataclass
class Fallbacks:
    """Operators that fell back, each once; complete after the watch, None where unknown."""

    names: tuple[str, ...] | None = ()


@contextlib.contextmanager
def watch(active: bool, descriptor: int = 2) -> Iterator[Fallbacks]:
    """Watch a file descriptor for reports of fallbacks while the block runs, where `active`."""
    found = Fallbacks()
    if not active:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="fallbacks-") as folder:
        copy = Path(folder) / "stderr"
        original = os.dup(descriptor)
        # A session of its own: Ctrl-C is for this process, the child ends when the pipe does.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", FORWARD, str(copy)],
            stdin=subprocess.PIPE,
            stdout=original,
            start_new_session=True,
        )
        assert child.stdin is not None  # stdin=PIPE makes it
        os.dup2(child.stdin.fileno(), descriptor)
        child.stdin.close()
        try:
            yield found
        finally:
            os.dup2(original, descriptor)
            os.close(original)
            try:
                child.wait(DRAIN_TIMEOUT_S)
            except subprocess.TimeoutExpired:  # a child process still holds the pipe's end
                child.terminate()
                child.wait()
            text = copy.read_text(encoding="utf-8", errors="replace")
            found.names = tuple(dict.fromkeys(PATTERN.findall(text)))
            if not found.names and any(os.environ.get(name) == "1" for name in SILENCERS):
                found.names = None
