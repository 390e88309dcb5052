"""Run Python in a subprocess on the emulated Ascend NPU (see tests/fake_cann/README.md).

A subprocess, because torch_npu reads its environment once, when torch is imported, and because a
device error leaves it unusable.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fake_cann import build

REPOSITORY = Path(__file__).resolve().parents[1]
FAULT_PREFIX = "FAKECANN_"
# npu_patch sets these in the parent, whose host is another one.
SET_BY_THE_PATCH = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_COMPILE_DISABLE")


@dataclass(frozen=True)
class EmulatedNpu:
    """The interpreter that runs the tests, with the stub CANN and torch-npu on its paths."""

    library_folder: Path

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
    ) -> subprocess.CompletedProcess[str]:
        """Run `python3 *arguments` and return its exit code, stdout and stderr.

        Raises subprocess.TimeoutExpired after `timeout_s` seconds.
        """
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd or REPOSITORY,
            env=self.environment(environment),
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
    ) -> subprocess.CompletedProcess[str]:
        """Run Python source as `python3 -c` does; see `run`."""
        return self.run(["-c", source], cwd=cwd, environment=environment, timeout_s=timeout_s)
