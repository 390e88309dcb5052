"""What must hold of npu_patch on an NPU, as functions that one process runs one after the other.

tests/test_npu_patch_on_npu.py runs them, by tests/cuda_idioms.py, on the emulated NPU. Each leaves
the patch applied, as it found it.
"""

import contextlib
import importlib
import importlib.util
import logging
import multiprocessing
import os
import pickle
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch

import npu_patch

INSIDE = ("amp", "memory", "random", "graphs", "nvtx", "profiler", "nccl", "tunable", "gds")


def _snapshot() -> dict[tuple[str, str], object]:
    """Every attribute of every owner in the table, and torch.jit's table of operators."""
    owners = sorted({where for row in npu_patch.TABLE for where in row.where.split()})
    found: dict[tuple[str, str], object] = {}
    for path in owners:
        try:
            owner = npu_patch._find(path)
        except ModuleNotFoundError:
            continue
        found.update({(path, name): value for name, value in vars(owner).items()})
    operators = torch.jit._builtins._get_builtin_table()
    found.update({("torch.jit", str(key)): value for key, value in operators.items()})
    return found


def _changed(before: dict[tuple[str, str], object]) -> list[tuple[str, str]]:
    after = _snapshot()
    keys = {*before, *after}
    return sorted(k for k in keys if before.get(k, ...) is not after.get(k, ...))


def restore_puts_back_the_very_objects() -> None:
    npu_patch.restore()
    before = _snapshot()
    npu_patch.apply()
    assert len(_changed(before)) > 300
    status = npu_patch.restore()
    assert status.state == "restored"
    assert not status.applied
    assert _changed(before) == []
    assert not torch.cuda.is_available()
    npu_patch.apply()


def inherited_attributes_are_deleted_by_restore() -> None:
    assert "cuda" in vars(torch.Tensor)
    npu_patch.restore()
    assert not {"cuda", "is_cuda", "to"} & set(vars(torch.Tensor))
    npu_patch.apply()


def apply_twice_is_apply_once() -> None:
    before = _snapshot()
    assert npu_patch.apply().applied
    assert _changed(before) == []
    npu_patch.restore()
    npu_patch.restore()
    assert npu_patch.status().state == "restored"
    assert npu_patch.apply().applied


def context_manager_restores_only_what_it_applied() -> None:
    with npu_patch.patched() as status:
        assert status.applied
    assert npu_patch.status().applied
    npu_patch.restore()
    with npu_patch.patched():
        assert torch.cuda.is_available()
        with npu_patch.patched():
            assert torch.cuda.is_available()
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    npu_patch.restore()
    with pytest.raises(KeyError), npu_patch.patched():
        raise KeyError
    assert not torch.cuda.is_available()
    npu_patch.apply()


def _break_at(position: int, error: type[BaseException]) -> None:
    def fail(original: object, place: npu_patch.Place) -> object:
        raise error(place.name)

    table = npu_patch.TABLE
    broken = table[position]._replace(how=fail)
    npu_patch.TABLE = (*table[:position], broken, *table[position + 1 :])
    try:
        with pytest.raises(error):
            npu_patch.apply()
    finally:
        npu_patch.TABLE = table


def a_fault_at_any_row_leaves_nothing_patched() -> None:
    npu_patch.restore()
    before = _snapshot()
    for position, row in enumerate(npu_patch.TABLE):
        if not _has_names(row):
            continue
        _break_at(position, RuntimeError)
        assert _changed(before) == [], row
        assert not npu_patch.status().applied
    assert not npu_patch._state.devices
    assert npu_patch.apply().applied


def _has_names(row: npu_patch.Row) -> bool:
    """Whether this torch has what the row changes first."""
    where = row.where.split()[0]
    try:
        owner = npu_patch._find(where)
    except ModuleNotFoundError:
        return False
    npu_patch._name_devices()
    names = row.names if isinstance(row.names, str) else row.names(where)
    npu_patch._state.devices.clear()
    return any(row.new or hasattr(owner, name) for name in names.split())


def ctrl_c_in_the_middle_leaves_nothing_patched() -> None:
    npu_patch.restore()
    before = _snapshot()
    _break_at(len(npu_patch.TABLE) - 1, KeyboardInterrupt)
    assert _changed(before) == []
    npu_patch.apply()


def reload_does_not_wrap_twice() -> None:
    npu_patch.restore()
    original = torch.ones
    npu_patch.apply()
    kept = torch.ones
    importlib.reload(npu_patch)
    assert npu_patch.status().applied
    assert torch.ones.__wrapped__ is original
    assert kept(1, device="cuda").is_cuda
    npu_patch.restore()
    assert torch.ones is original
    npu_patch.apply()


def another_copy_finds_it_applied_and_can_undo_it() -> None:
    before = _snapshot()
    spec = importlib.util.spec_from_file_location("copied_patch", npu_patch.__file__)
    assert spec is not None and spec.loader is not None
    copied: Any = importlib.util.module_from_spec(spec)
    sys.modules["copied_patch"] = copied
    spec.loader.exec_module(copied)
    assert copied.status().applied
    assert _changed(before) == []
    copied.restore()
    assert not torch.cuda.is_available()
    assert not npu_patch.status().applied
    assert npu_patch.apply().applied


def a_kept_wrapper_does_nothing_after_restore() -> None:
    ones, tensor_to, device = torch.ones, torch.Tensor.to, torch.device
    npu_patch.restore()
    assert ones(2, device="cpu").tolist() == [1.0, 1.0]
    assert device("cuda:0").type == "cuda"
    no_cuda = "not compiled with CUDA|no NVIDIA driver"  # as torch's build is
    with pytest.raises((AssertionError, RuntimeError), match=no_cuda):
        ones(2, device="cuda")
    with pytest.raises((AssertionError, RuntimeError), match=no_cuda):
        tensor_to(torch.ones(1), "cuda")
    npu_patch.apply()


def threads_see_the_patch() -> None:
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(torch.ones(1).cuda().is_cuda))
    thread.start()
    thread.join()
    assert seen == [True]


def threads_that_apply_and_restore_leave_one_state() -> None:
    before = _snapshot()

    def work() -> None:
        for _ in range(3):
            npu_patch.restore()
            npu_patch.apply()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    npu_patch.restore()
    npu_patch.apply()
    assert torch.ones.__wrapped__.__class__.__name__ == "builtin_function_or_method"
    assert {key for key, _ in before} == {key for key, _ in _snapshot()}


def _applied_in_a_child() -> bool:
    import npu_patch as patch_in_child

    return patch_in_child.status().applied and torch.ones(1).cuda().is_cuda


def spawned_processes_have_the_patch() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_applied_in_a_child)


def spawned_processes_get_the_patch_before_anything_else() -> None:
    from multiprocessing import spawn

    data = spawn.get_preparation_data("child")
    assert pickle.loads(pickle.dumps(data["npu_patch"]))[1] is npu_patch


class _Applied(torch.utils.data.Dataset[bool]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> bool:
        return npu_patch.status().applied


def workers_of_a_loader_see_the_patch() -> None:
    loader = torch.utils.data.DataLoader(_Applied(), num_workers=1)
    assert all(bool(applied) for applied in loader)


def _as_library(name: str, expression: str, **values: object) -> object:
    scope: dict[str, object] = {"__name__": name, "torch": torch, **values}
    return eval(expression, scope)


def libraries_that_know_the_npu_see_the_truth() -> None:
    x = torch.ones(1, device="cuda")
    for name in sorted(npu_patch.NPU_AWARE):
        module = f"{name}.inside"
        assert _as_library(module, "torch.cuda.is_available()") is False
        assert _as_library(module, "torch.cuda.device_count()") == 0
        assert _as_library(module, "x.is_cuda", x=x) is False
        assert _as_library(module, "x.device.type == 'cuda'", x=x) is False
        assert _as_library(module, "type(x.device.type) is str", x=x) is True
        assert _as_library(module, "torch.npu.is_available()") is True


def everybody_else_sees_cuda() -> None:
    x = torch.ones(1, device="cuda")
    for name in ("__main__", "torchmetrics", "transformers_modules.remote", "torchvision", "kit"):
        assert _as_library(name, "torch.cuda.is_available()") is True
        assert _as_library(name, "torch.cuda.device_count()") == 2
        assert _as_library(name, "x.is_cuda", x=x) is True
        assert _as_library(name, "x.device.type == 'cuda'", x=x) is True


def printing_tells_the_truth() -> None:
    x = torch.ones(1, device="cuda")
    assert str(x.device) == "npu:0"
    assert f"{x.device.type}" == "npu"
    assert x.device.type == "npu"
    assert x.type() == "torch.npu.FloatTensor"


def every_public_name_of_torch_cuda_is_accounted_for() -> None:
    _account_for("torch.cuda", list(torch.cuda.__all__))


def every_public_name_of_its_modules_is_accounted_for() -> None:
    for name in INSIDE:
        path = f"torch.cuda.{name}"
        module = importlib.import_module(path)
        _account_for(path, list(module.__all__))


def _account_for(path: str, names: list[str]) -> None:
    module = importlib.import_module(path)
    after = {name: getattr(module, name) for name in names}
    npu_patch.restore()
    same = {name for name in names if getattr(module, name) is after[name]}
    npu_patch.apply()
    named = {
        name
        for row in npu_patch.TABLE
        if path in row.where.split() and isinstance(row.names, str)
        for name in row.names.split()
    }
    assert sorted(same - named) == [], f"{path} has names that the table does not know"


def a_missing_function_says_what_to_do() -> None:
    for name in ("temperature", "power_draw", "clock_rate", "list_gpu_processes", "memory_usage"):
        with pytest.raises(NotImplementedError, match=rf"torch\.cuda\.{name} .* npu-smi"):
            getattr(torch.cuda, name)()
    with pytest.raises(NotImplementedError, match="hccl"):
        torch.cuda.nccl.all_reduce([torch.ones(1)])
    with pytest.raises(NotImplementedError, match=r"torch\.cuda\.tunable\.enable"):
        torch.cuda.tunable.enable()
    with pytest.raises(NotImplementedError, match="cudaHostRegister"):
        torch.cuda.cudart().cudaHostRegister(0, 1, 0)
    assert not hasattr(torch.cuda.cudart(), "cudaHostRegister")
    with pytest.raises(NotImplementedError):
        torch.cuda.ComplexFloatStorage(1)


def tf32_switches_reach_hf32() -> None:
    npu: Any = torch.npu
    assert npu.conv.allow_hf32 is True
    torch.backends.cudnn.allow_tf32 = False
    assert npu.conv.allow_hf32 is False
    torch.backends.cudnn.allow_tf32 = True
    assert npu.conv.allow_hf32 is True
    torch.backends.cuda.matmul.allow_tf32 = True
    assert npu.matmul.allow_hf32 is True
    torch.set_float32_matmul_precision("highest")
    assert npu.matmul.allow_hf32 is False
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert npu.conv.allow_hf32 is False
    assert npu.conv.allow_hf32 is True
    npu.conv.allow_hf32 = False
    assert torch.backends.cudnn.allow_tf32 is False
    npu.conv.allow_hf32 = True


def precision_names_reach_hf32() -> None:
    npu: Any = torch.npu
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert npu.matmul.allow_hf32 is True
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert npu.matmul.allow_hf32 is False
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert npu.conv.allow_hf32 is False
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    assert npu.conv.allow_hf32 is True


def _gelu_is_tanh() -> bool:
    """Whether GELU on the NPU computes tanh though erf is asked for, forward and backward."""
    x = torch.tensor([-2.3, 2.3], device="npu", requires_grad=True)
    y = torch.nn.functional.gelu(x)
    y.sum().backward()
    answers = []
    for form in ("none", "tanh"):
        other = x.detach().cpu().double().requires_grad_()
        expected = torch.nn.functional.gelu(other, approximate=form)
        expected.sum().backward()
        near = (y.detach().cpu() - expected).abs().max() < 1e-6
        answers.append((bool(near), bool((x.grad.cpu() - other.grad).abs().max() < 1e-6)))
    assert sorted(answers) == [(False, False), (True, True)], answers
    return answers[1] == (True, True)


def gelu_is_the_chips_own_again_after_restore() -> None:
    assert npu_patch.status().gelu == "asked" and not _gelu_is_tanh()
    assert npu_patch.restore().gelu == "" and _gelu_is_tanh()
    assert npu_patch.apply().gelu == "asked" and not _gelu_is_tanh()


def gelu_is_the_chips_own_where_the_variable_says_so() -> None:
    npu_patch.restore()
    os.environ["NPU_PATCH_GELU"] = "chip"
    try:
        assert npu_patch.apply().gelu == "chip" and _gelu_is_tanh()
    finally:
        del os.environ["NPU_PATCH_GELU"]
        npu_patch.restore()
        npu_patch.apply()


def another_value_of_the_variable_is_named_and_ignored() -> None:
    npu_patch.restore()
    os.environ["NPU_PATCH_GELU"] = "Chip"
    try:
        with _warnings() as given:
            assert npu_patch.apply().gelu == "asked"
    finally:
        del os.environ["NPU_PATCH_GELU"]
    assert given == ["NPU_PATCH_GELU=Chip is ignored: it may be unset, or chip."]


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what npu_patch warns of, as if nothing had been said before."""
    given: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: given.append(record.getMessage())
    logger = logging.getLogger("npu_patch")
    said, npu_patch._state.said = npu_patch._state.said, set()
    logger.addHandler(handler)
    try:
        yield given
    finally:
        logger.removeHandler(handler)
        npu_patch._state.said = said


def gelu_has_its_form_where_cann_lacks_the_operator() -> None:
    def absent(*tensors: object, approximate: str) -> NoReturn:
        raise RuntimeError("aclnnGeluV2 or aclnnGeluV2GetWorkspaceSize not in libopapi.so, or ...")

    import tests.cuda_idioms_gelu as idioms

    names = ("npu_gelu", "npu_gelu_backward")
    originals = [getattr(torch.ops.npu, name) for name in names]
    npu_patch.restore()
    for name in names:
        setattr(torch.ops.npu, name, types.SimpleNamespace(default=absent))
    try:
        npu_patch.apply()
        with _warnings() as given:
            for _ in range(2):
                idioms.gelu_has_the_form_asked_for()
                idioms.gelu_has_the_gradient_of_its_form()
        assert sorted(given) == [
            f"This host has no {name}: GELU is put together from other operators, and slower."
            for name in names
        ]
        npu_patch.restore()
        for name in names:  # as in a torch_npu that never had it
            setattr(torch.ops.npu, name, None)
        npu_patch.apply()
        with _warnings():
            idioms.gelu_has_the_gradient_of_its_form()
    finally:
        npu_patch.restore()
        for name, original in zip(names, originals, strict=True):
            setattr(torch.ops.npu, name, original)
        npu_patch.apply()


def an_error_of_gelu_is_raised() -> None:
    x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="approximate argument must be either none or tanh"):
        torch.nn.functional.gelu(x, approximate="sigmoid")


def channels_last_is_warned_of_once() -> None:
    with _warnings() as given:
        for _ in range(2):
            torch.ones(1, 2, 3, 4).to("cuda", memory_format=torch.channels_last)
            torch.nn.Conv2d(1, 1, 1).cuda().to(memory_format=torch.channels_last)
    assert given == [
        "On an NPU channels_last, which torch_npu does not have, is taken as contiguous."
    ]


def channels_last_is_refused_again_after_restore() -> None:
    x, contiguous = torch.ones(1, 2, 3, 4, device="npu"), torch.Tensor.contiguous
    npu_patch.restore()
    try:
        for call in (torch.Tensor.contiguous, contiguous):
            with pytest.raises(RuntimeError, match="contiguous"):
                call(x, memory_format=torch.channels_last)
    finally:
        npu_patch.apply()


def back_ends_are_named_exactly() -> None:
    assert npu_patch.hccl("nccl") == "hccl"
    assert npu_patch.hccl("NCCL") == "hccl"
    assert npu_patch.hccl("cpu:gloo,cuda:nccl") == "cpu:gloo,npu:hccl"
    assert npu_patch.hccl("gloo") == "gloo"
    assert npu_patch.hccl("my_nccl_plugin") == "my_nccl_plugin"
    assert npu_patch.hccl(None) is None


def devices_are_named_exactly() -> None:
    for text in (
        "cuda_ckpt",
        "/data/cuda:0",
        "cuda:128",
        "cuda:01",
        "cuda: 0",
        "CUDA",
        "xcuda",
        "",
    ):
        assert npu_patch.npu_device(text) is text
    for value in (0, None, torch.float32, [], {"cuda": 1}, torch.ones(1)):
        assert npu_patch.npu_device(value) is value
    assert str(npu_patch.npu_device("cuda:127")) == "npu:127"


def an_original_device_of_cuda_is_understood() -> None:
    npu_patch.restore()
    early = torch.device("cuda:1")
    npu_patch.apply()
    assert early.type == "cuda"
    assert torch.ones(1, device=early).get_device() == 1
    assert torch.ones(1).to(early).get_device() == 1
    assert torch.ones(1).cuda(early).get_device() == 1
    assert torch.nn.Linear(1, 1).to(early).weight.get_device() == 1
    assert torch.device(early) == torch.device("cuda:1")
    torch.cuda.synchronize(early)
    assert torch.cuda.Stream(early).device == torch.device("cuda:1")


def annotations_with_the_original_device_are_scripted() -> None:
    original = type(torch.ones(1).device)
    annotations = torch.jit.annotations
    for device in (original, torch.device):
        kind = annotations.try_ann_to_type(device, None)
        assert str(kind) == "Device"


def accelerator_chooses_the_npu_by_itself() -> None:
    if importlib.util.find_spec("accelerate") is None:
        return
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    accelerator = Accelerator()
    assert str(accelerator.device).startswith("npu")
    assert accelerator.distributed_type == DistributedType.NO


def transformers_chooses_the_npu_by_itself() -> None:
    from transformers.utils import is_torch_cuda_available, is_torch_npu_available

    assert is_torch_npu_available()
    assert not is_torch_cuda_available()


def _wrappers_passed(layers: int) -> list[str]:
    """Name the functions of npu_patch that a DINOv3 forward calls."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2
    )
    model = DINOv3ViTModel(config).eval().to("cuda")
    x = torch.zeros(1, 3, 32, 32)
    passed: list[str] = []

    def note(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == npu_patch.__file__:
            passed.append(frame.f_code.co_name)

    with torch.inference_mode():
        model(x.to("cuda"))
        sys.setprofile(note)
        try:
            model(x.to("cuda"))
        finally:
            sys.setprofile(None)
    return passed


def a_block_of_dinov3_passes_few_wrappers() -> None:
    few, many = Counter(_wrappers_passed(2)), Counter(_wrappers_passed(12))
    added = many - few
    # GELU's kernel and what it calls; Tensor.contiguous in attention.
    assert set(added) == {"gelu", "compute", "wrapper"} and added.total() <= 10 * 4, added


def torch_compile_is_off_until_restored() -> None:
    def increment(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    compiled: list[torch.fx.GraphModule] = []

    def note(module: torch.fx.GraphModule, _: object) -> object:
        compiled.append(module)
        return module.forward

    import torch._dynamo.config as dynamo  # reads the variable, or was imported before

    for _ in range(2):
        assert os.environ["TORCH_COMPILE_DISABLE"] == "1" and dynamo.disable
        assert torch.compile(increment, backend=note)(torch.ones(1)).item() == 2.0
        assert not compiled
        npu_patch.restore()
        assert "TORCH_COMPILE_DISABLE" not in os.environ and not dynamo.disable
        npu_patch.apply()
    npu_patch.restore()
    torch._dynamo.reset()
    assert torch.compile(increment, backend=note)(torch.ones(1)).item() == 2.0
    assert len(compiled) == 1
    npu_patch.apply()


def torch_compile_stays_as_the_user_set_it() -> None:
    import torch._dynamo.config as dynamo

    npu_patch.restore()
    os.environ["TORCH_COMPILE_DISABLE"] = "0"
    npu_patch.apply()
    assert os.environ["TORCH_COMPILE_DISABLE"] == "0" and not dynamo.disable
    npu_patch.restore()
    assert os.environ.pop("TORCH_COMPILE_DISABLE") == "0"
    npu_patch.apply()
