"""Programs nobody here wrote run under python3 -m npu_patch, unmodified, with "cuda" asked for.

They come from the package index (requirements-programs.txt) and run on tiny random models.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest

from tests.emulated_npu import REPOSITORY, EmulatedNpu

pytestmark = pytest.mark.extended  # they need packages that nothing else here does
FOLDER = REPOSITORY / "tests" / "cuda_programs"
# optimum-benchmark also asks NVIDIA's driver tools, which are no part of torch; see that folder.
TOOLS = FOLDER / "nvidia_tools"
PROGRAMS = {
    "accelerate_training": ("accelerate", "device npu distributed NO"),
    "diffusers_pipeline": ("diffusers", "device npu:0"),
    "optimum_benchmark_run": ("optimum_benchmark", "device cuda, prefill"),
    "peft_lora": ("peft", "device npu:0"),
    "torchmetrics_on_device": ("torchmetrics", "device npu:0"),
    "transformers_pipeline": ("transformers", "device npu"),
    "transformers_trainer": ("accelerate", "device npu:0 chips 1"),
}


if int(importlib.metadata.version("transformers").partition(".")[0]) > 4:
    # optimum-benchmark 0.6.0 imports SpecialTokensMixin, which transformers 5 does not have.
    del PROGRAMS["optimum_benchmark_run"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_runs_on_the_npu(npu_host: EmulatedNpu, tmp_path: Path, program: str) -> None:
    package, expected = PROGRAMS[program]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (requirements-programs.txt)")
    environment = {"HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}
    if program == "optimum_benchmark_run":
        environment["PATH"] = os.pathsep.join([str(TOOLS), os.environ.get("PATH", "")])
        environment["PYTHONPATH"] = str(TOOLS)
    done = npu_host.run(["-m", "npu_patch", FOLDER / f"{program}.py"], environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert expected in done.stdout
