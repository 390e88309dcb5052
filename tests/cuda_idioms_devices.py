"""CUDA idioms about devices: naming them, choosing them, asking about them, comparing them."""

import copy
import io
import pickle

import torch
import torch.cuda as cuda_module


def is_available_chooses_the_device() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert torch.ones(1, device=device).is_cuda


def device_count_is_positive() -> None:
    assert torch.cuda.device_count() == 2


def current_device_is_an_index() -> None:
    assert torch.cuda.current_device() == 0


def set_device_by_index() -> None:
    torch.cuda.set_device(1)
    assert torch.ones(1, device="cuda").get_device() == 1
    torch.cuda.set_device(0)


def set_device_by_name() -> None:
    torch.cuda.set_device("cuda:1")
    assert torch.cuda.current_device() == 1
    torch.cuda.set_device(0)


def set_device_by_device() -> None:
    torch.cuda.set_device(torch.device("cuda", 1))
    assert torch.cuda.current_device() == 1
    torch.cuda.set_device(torch.device("cuda:0"))
    assert torch.cuda.current_device() == 0


def device_context_by_index() -> None:
    with torch.cuda.device(1):
        assert torch.ones(1, device="cuda").get_device() == 1
    assert torch.cuda.current_device() == 0


def device_context_by_name() -> None:
    with torch.cuda.device("cuda:1"):
        assert torch.cuda.current_device() == 1
    assert torch.cuda.current_device() == 0


def device_context_by_device() -> None:
    with torch.cuda.device(torch.device("cuda:1")):
        assert torch.zeros(2).cuda().get_device() == 1


def device_context_of_none_changes_nothing() -> None:
    with torch.cuda.device(None):
        assert torch.cuda.current_device() == 0


def device_of_a_tensor() -> None:
    there = torch.ones(1, device="cuda:1")
    with torch.cuda.device_of(there):
        assert torch.cuda.current_device() == 1


def device_name_by_every_form() -> None:
    named = {
        torch.cuda.get_device_name(),
        torch.cuda.get_device_name(0),
        torch.cuda.get_device_name("cuda:0"),
        torch.cuda.get_device_name(torch.device("cuda")),
        torch.cuda.get_device_name(device=torch.device("cuda:0")),
    }
    assert len(named) == 1
    assert named.pop()


def device_properties_have_name_and_memory() -> None:
    properties = torch.cuda.get_device_properties(0)
    assert properties.total_memory > 1 << 30
    assert properties.name == torch.cuda.get_device_name(0)


def device_properties_have_capability_and_processors() -> None:
    properties = torch.cuda.get_device_properties(device=torch.device("cuda:0"))
    assert (properties.major, properties.minor) == torch.cuda.get_device_capability(0)
    assert properties.multi_processor_count > 0


def capability_is_compared() -> None:
    major, minor = torch.cuda.get_device_capability()
    assert major >= 7
    assert minor >= 0
    assert torch.cuda.get_device_capability("cuda:1") >= (7, 0)


def bf16_support_is_asked() -> None:
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    assert torch.ones(1, device="cuda", dtype=dtype).dtype == torch.bfloat16


def peer_access_by_keyword() -> None:
    assert isinstance(torch.cuda.can_device_access_peer(device=0, peer_device=1), bool)


def an_index_out_of_range_raises() -> None:
    try:
        torch.ones(1, device="cuda:99")
    except (RuntimeError, AssertionError):
        return
    raise AssertionError("cuda:99 exists")


def device_equals_the_tensors_device() -> None:
    x = torch.ones(1).to("cuda:0")
    assert torch.device("cuda:0") == x.device
    assert x.device == torch.device("cuda", 0)
    assert torch.device("cuda:1") != x.device


def device_without_index_takes_the_current_one() -> None:
    x = torch.ones(1, device=torch.device("cuda"))
    assert x.device.index == torch.cuda.current_device()


def device_type_guards_a_branch() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        raise AssertionError("the program would take the CPU's branch")
    assert device.type in ("cuda", "mps")
    assert "cuda" in device.type
    assert device.type.startswith("cuda") and not device.type.startswith(("cpu", "mps"))


def device_type_of_a_tensor_names_the_autocast() -> None:
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast(device_type=x.device.type, dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


def device_type_finds_its_module() -> None:
    x = torch.ones(1, device="cuda")
    getattr(torch, x.device.type).synchronize()
    torch.get_device_module(x.device).synchronize()
    torch.get_device_module("cuda").synchronize()


def device_type_survives_pickle_and_format() -> None:
    device_type = torch.device("cuda:1").type
    again = pickle.loads(pickle.dumps(device_type))
    assert torch.device(again, 1) == torch.device("cuda:1")
    assert torch.device(f"{device_type}:1") == torch.device("cuda:1")


def device_from_type_and_index() -> None:
    assert torch.device("cuda", 1).index == 1
    assert torch.device(type="cuda", index=1) == torch.device("cuda:1")
    assert torch.device("cuda", index=0) == torch.device(device="cuda:0")


def device_from_a_device() -> None:
    assert torch.device(torch.device("cuda:1")) == torch.device("cuda:1")


def device_from_rank() -> None:
    rank = 1
    device = torch.device(f"cuda:{rank}")
    assert torch.zeros(1, device=device).get_device() == rank


def device_is_an_instance() -> None:
    x = torch.ones(1, device="cuda")
    assert isinstance(x.device, torch.device)
    assert isinstance(torch.device("cuda"), (str, torch.device))
    assert not isinstance("cuda", torch.device)
    assert type(x.device) == torch.device  # noqa: E721 - some compare so


def device_is_a_key() -> None:
    cache = {torch.device("cuda:0"): "here"}
    assert cache[torch.ones(1, device="cuda:0").device] == "here"


def device_is_pickled_and_copied() -> None:
    device = torch.device("cuda:1")
    assert pickle.loads(pickle.dumps(device)) == device
    assert copy.deepcopy({"device": device})["device"] == device


def device_class_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(torch.device)) is torch.device


def device_is_saved_in_a_checkpoint() -> None:
    file = io.BytesIO()
    torch.save({"device": torch.device("cuda:1")}, file)
    file.seek(0)
    assert torch.load(file)["device"] == torch.device("cuda:1")


def device_in_an_annotation() -> None:
    def move(x: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
        return x.to(device)

    assert move(torch.ones(1), torch.device("cuda")).is_cuda
    assert torch.device in move.__annotations__["device"].__args__


def device_dispatches_by_type() -> None:
    import functools

    @functools.singledispatch
    def describe(value: object) -> str:
        return "other"

    @describe.register(torch.device)
    def _(value: torch.device) -> str:
        return "device"

    assert describe(torch.device("cuda:0")) == "device"
    assert describe("cuda:0") == "other"


def device_as_a_context() -> None:
    with torch.device("cuda"):
        assert torch.ones(2).is_cuda
        assert torch.nn.Linear(2, 2).weight.is_cuda
    assert not torch.ones(2).is_cuda


def default_device_is_set() -> None:
    torch.set_default_device("cuda")
    try:
        assert torch.zeros(1).is_cuda
        assert torch.get_default_device().type == "cuda"
    finally:
        torch.set_default_device(None)
    assert not torch.zeros(1).is_cuda


def default_device_by_device() -> None:
    torch.set_default_device(torch.device("cuda:1"))
    try:
        assert torch.randn(2).get_device() == 1
    finally:
        torch.set_default_device(None)


def the_other_type_is_untouched() -> None:
    assert torch.device("cpu").type == "cpu"
    assert torch.device("meta").type == "meta"
    assert str(torch.device("cpu", 0)) == "cpu:0"


def a_wrong_device_is_an_error() -> None:
    for text in ("cuda:", "cuda:x", "cudas", "cuda:-1", "cuda:0:1"):
        try:
            torch.device(text)
        except RuntimeError:
            continue
        raise AssertionError(text)


def module_imported_as_a_name() -> None:
    assert cuda_module.is_available()
    assert cuda_module is torch.cuda
    cuda_module.synchronize()


def functions_imported_from_the_module() -> None:
    from torch.cuda import current_device, device_count, is_available, synchronize

    synchronize()
    assert is_available()
    assert current_device() < device_count()


def accelerator_api_agrees() -> None:
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    assert torch.accelerator.device_count() == torch.cuda.device_count()


def cuda_is_built() -> None:
    assert torch.backends.cuda.is_built()


def is_initialized_after_use() -> None:
    torch.cuda.init()
    assert torch.cuda.is_initialized()


def tf32_support_is_asked() -> None:
    assert torch.cuda.is_tf32_supported()


def visible_device_loop() -> None:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    assert len(names) == torch.cuda.device_count()


def subclass_checks_of_device() -> None:
    assert issubclass(torch.device, torch.device)
    assert isinstance(torch.device, type)
    assert torch.device.__name__ == "device"
    assert repr(torch.device) == "<class 'torch.device'>"
