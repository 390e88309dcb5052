"""npu_patch on the emulated NPU: the CUDA idioms, and what must hold of the patch itself."""

import json
from collections.abc import Callable

import filelock
import pytest

from tests import cuda_idioms
from tests.emulated_npu import EmulatedNpu

PROBES = "tests.npu_patch_probes"
Results = dict[str, str | None]
Run = Callable[..., Results]

# Idioms about what does not change: these hold on a host without CUDA too, and under the patch.
HOLD_ANYWHERE = frozenset(
    {
        "a_name_that_contains_cuda_stays",
        "a_wrong_device_is_an_error",
        "an_index_out_of_range_raises",
        "attention_back_end_by_switches",
        "autocast_is_an_instance",
        "autocast_is_available",
        "autocast_state_is_set",
        "channels_last_stays_on_the_host",
        "compile_is_imported",
        "cudnn_switches",
        "device_class_is_pickled",
        "device_dispatches_by_type",
        "device_from_a_device",
        "device_from_type_and_index",
        "device_is_pickled_and_copied",
        "device_is_saved_in_a_checkpoint",
        "device_type_survives_pickle_and_format",
        "distributed_mesh_is_named",
        "environment_is_collected",
        "factories_take_an_index",
        "generator_subclass",
        "loader_pins_for_a_named_device",
        "matmul_reduction_switches",
        "memory_functions_of_the_submodule",
        "memory_of_a_host",
        "module_to_by_index",
        "multiprocessing_shares_host_tensors",
        "overrides_know_the_functions",
        "pinned_factory",
        "schema_is_inferred",
        "subclass_checks_of_device",
        "tensor_from_a_file",
        "tf32_by_precision_name",
        "tf32_for_a_while",
        "tf32_of_convolution",
        "tf32_of_matmul",
        "the_other_type_is_untouched",
        "to_by_index",
        "training_step",
        "visible_device_loop",
    }
)
# The emulated CANN has no aclnnSleep, the one operator that torch.cuda._sleep needs.
NOT_EMULATED = {"sleep_on_the_device": "aclnnSleep"}


@pytest.fixture(scope="session")
def run(npu_host: EmulatedNpu, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """Run all idioms, or all probes, in one process; once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def execute(patch: str, *options: str) -> Results:
        file = shared / f"{'-'.join([patch, *options])}.json"
        with filelock.FileLock(f"{file}.lock"):
            if not file.exists():
                # The task queue off: an operator that fails raises where it is called.
                environment = {"TASK_QUEUE_ENABLE": "0", "FAKECANN_STRICT": "0"}
                done = npu_host.run(
                    ["-m", "tests.cuda_idioms", patch, *options], environment=environment
                )
                assert done.returncode == 0, done.stderr[-2000:]
                file.write_text(done.stdout.strip().splitlines()[-1])
        results: Results = json.loads(file.read_text())
        return results

    return execute


@pytest.mark.parametrize("name", cuda_idioms.names())
def test_the_idiom_runs_under_the_patch(run: Run, name: str) -> None:
    error = run("npu_patch")[name]
    if name in NOT_EMULATED:
        assert error is not None and NOT_EMULATED[name] in error
    else:
        assert error is None, error


@pytest.mark.parametrize("name", cuda_idioms.names())
def test_the_idiom_needs_the_patch_or_holds_anywhere(run: Run, name: str) -> None:
    assert (run("none")[name] is None) == (name in HOLD_ANYWHERE)


def test_there_are_120_idioms_and_more() -> None:
    names = cuda_idioms.names()
    assert len(names) == len(set(names)) >= 240


@pytest.mark.parametrize("name", cuda_idioms.names([PROBES]))
def test_the_patch_keeps_its_promise(run: Run, name: str) -> None:
    error = run("npu_patch", "--module", PROBES)[name]
    assert error is None, error


def test_transfer_to_npu_active_already_is_said_and_left_alone(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(
        "import torch, torch_npu.contrib.transfer_to_npu\n"
        "before = torch.cuda.is_available, torch.ones, torch.Tensor.cuda\n"
        "import npu_patch\n"
        "status = npu_patch.status()\n"
        "assert status.state == 'transfer_to_npu_active', status\n"
        "assert 'transfer_to_npu is active' in status.message, status\n"
        "assert (torch.cuda.is_available, torch.ones, torch.Tensor.cuda) == before\n"
        "assert torch.ones(1).cuda().is_npu\n",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_device_is_a_state_with_a_fix(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(
        "import npu_patch, torch, transformers\n"
        "status = npu_patch.status()\n"
        "assert status.state == 'no_device' and 'npu-smi' in status.fix, status\n"
        "assert not torch.cuda.is_available()\n"
        "assert torch.ones(1, device='cpu').sum() == 1\n",
        environment={"FAKECANN_DEVICES": "0"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("NPU monkey-patch not applied") == 1


def test_importing_changes_nothing_but_what_the_table_says(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(
        "import logging, os, random, sys, warnings\n"
        "import torch, torch_npu\n"
        "environment = dict(os.environ)\n"
        "state = lambda: (list(warnings.filters), logging.root.handlers[:], logging.root.level,\n"
        "    random.getstate(), torch.get_rng_state().tolist(), torch.npu.is_initialized(),\n"
        "    torch.is_grad_enabled(), torch.get_default_dtype(), sys.stdout, sys.stderr,\n"
        "    sys.excepthook, logging.getLogger('npu_patch').handlers)\n"
        "before = state()\n"
        "import npu_patch\n"
        "assert state() == before\n"
        "environment.setdefault('TORCH_COMPILE_DISABLE', '1')\n"
        "assert dict(os.environ) == environment\n"
        "assert npu_patch.status().applied\n",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "npu_patch" not in done.stdout + done.stderr


def test_importing_logs_the_one_line(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(
        "import logging\n"
        "logging.getLogger('npu_patch').setLevel('INFO')\n"
        "handler = logging.StreamHandler()\n"
        "handler.setFormatter(logging.Formatter('[%(levelname)s] %(message)s'))\n"
        "logging.getLogger('npu_patch').addHandler(handler)\n"
        "import npu_patch\n",
        fresh=True,
    )
    lines = [line for line in done.stderr.splitlines() if "patch" in line]
    assert lines == ["[INFO] Applied NPU monkey-patch (torch.cuda -> torch.npu)"]


def test_torch_imported_first_is_patched_too(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(
        "import torch\nimport torch.cuda as cuda\nfrom torch import nn\nimport npu_patch\n"
        "assert cuda.is_available() and nn.Linear(1, 1).cuda().weight.is_cuda\n",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
