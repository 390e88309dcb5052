"""Run Python in a subprocess on the emulated Ascend NPU (see tests/fake_cann/README.md).

A subprocess, because torch_npu reads its environment once, when torch is imported, and because a
device error leaves it unusable. Where only faults differ from one to the next, it is a fork of a
process that has done the imports, which saves four of every five seconds.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.fake_cann import build

REPOSITORY = Path(__file__).resolve().parents[1]
FAULT_PREFIX = "FAKECANN_"
# npu_patch sets these in the parent, whose host is another one.
SET_BY_THE_PATCH = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_COMPILE_DISABLE")


# torch_npu has asked for these when it was imported; the stub reads the others again in a fork.
READ_ONCE = tuple(f"{FAULT_PREFIX}{name}" for name in ("DEVICES", "DRIVER", "SOC", "VERSION"))
# Of these the one that many tests set, to one of these chips: each has a warm Python.
CHIP, WARM_CHIPS = "FAKECANN_SOC", ("Ascend910_9362", "Ascend310P3")
CALL_OF_THE_RUNTIME = re.compile(r"\bacl(?!nn)")  # a fork has made some of them
READ_LATER = (CHIP, "TASK_QUEUE_ENABLE", "NPU_PATCH_GELU", "PYTEST_CURRENT_TEST")


class WarmPython:
    """A process of tests/fake_cann/warm.py, and how to run a command in a fork of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.server = subprocess.Popen(
            [sys.executable, REPOSITORY / "tests" / "fake_cann" / "warm.py"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def serves(self, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork of it is what a new process with this environment would be."""
        changed = {
            name
            for name in {*environment, *self.environment}
            if environment.get(name) != self.environment.get(name)
        }
        later = {name for name in changed if name.startswith(FAULT_PREFIX)} - {*READ_ONCE}
        if CALL_OF_THE_RUNTIME.search(environment.get("FAKECANN_FAIL", "")):
            return False
        return arguments[0] != "-m" and changed <= {*later, *READ_LATER}

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python3 *arguments` in a fork; see EmulatedNpu.run."""
        assert self.server.stdin is not None and self.server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            output = [Path(folder, name) for name in ("stdout", "stderr")]
            for file in output:
                file.touch()
            command = {
                "arguments": arguments,
                "cwd": str(cwd),
                "environment": dict(environment),
                "output": [str(file) for file in output],
            }
            self.server.stdin.write(json.dumps(command) + "\n")
            self.server.stdin.flush()
            child = int(self.server.stdout.readline())
            late = threading.Timer(timeout_s, os.kill, (child, signal.SIGKILL))
            late.start()
            code = os.waitstatus_to_exitcode(int(self.server.stdout.readline()))
            if late.finished.is_set():
                raise subprocess.TimeoutExpired(arguments, timeout_s)
            late.cancel()
            return subprocess.CompletedProcess(
                arguments, code, *(file.read_text() for file in output)
            )

    def close(self) -> None:
        """End the process."""
        self.server.communicate()


class EmulatedNpu:
    """The interpreter that runs the tests, with the stub CANN and torch-npu on its paths."""

    def __init__(self, library_folder: Path) -> None:
        self.library_folder = library_folder
        self.warm: dict[str, WarmPython] = {}  # by chip

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the parent's environment without its faults, offline, with `changes`.

        What `changes` put into PYTHONPATH or LD_LIBRARY_PATH comes after the emulated NPU's own.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(FAULT_PREFIX) and name not in SET_BY_THE_PATCH
        }
        wanted = {**inherited, "HF_HUB_OFFLINE": "1", **(changes or {})}
        return {**wanted, **build.emulated_variables(self.library_folder, wanted)}

    def run(
        self,
        arguments: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python3 *arguments` and return its exit code, stdout and stderr.

        `fresh` is for what depends on the order of imports: in a fork torch, torch_npu and
        transformers are imported already.

        Raises subprocess.TimeoutExpired after `timeout_s` seconds.
        """
        words, folder = [str(argument) for argument in arguments], cwd or REPOSITORY
        variables = self.environment(environment)
        if not fresh:
            chip = variables.get(CHIP, WARM_CHIPS[0])
            if chip in WARM_CHIPS and chip not in self.warm:
                self.warm[chip] = WarmPython(self.environment({CHIP: chip}))
            if chip in self.warm and self.warm[chip].serves(words, variables):
                return self.warm[chip].run(words, folder, variables, timeout_s)
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run_code(
        self,
        source: str,
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python source as `python3 -c` does; see `run`."""
        return self.run(
            ["-c", source], cwd=cwd, environment=environment, timeout_s=timeout_s, fresh=fresh
        )

    def close(self) -> None:
        """End what runs in the background."""
        while self.warm:
            self.warm.popitem()[1].close()
