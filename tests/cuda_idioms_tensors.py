"""CUDA idioms about tensors: making them on the device, moving them, asking where they are."""

import copy
import io
import pickle
import tempfile
from pathlib import Path

import torch


def factories_take_a_name() -> None:
    for make in (torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn):
        assert make(2, 3, device="cuda").is_cuda


def factories_take_a_device() -> None:
    device = torch.device("cuda:1")
    for x in (torch.full((2,), 3.0, device=device), torch.arange(4, device=device)):
        assert x.get_device() == 1


def factories_take_an_index() -> None:
    assert torch.ones(2, device=1).get_device() == 1


def factory_of_a_range() -> None:
    assert torch.linspace(0, 1, 5, device="cuda").is_cuda
    assert torch.logspace(0, 1, 5, device="cuda").is_cuda
    assert torch.eye(3, device="cuda").sum().item() == 3


def factory_of_random_integers() -> None:
    x = torch.randint(0, 9, (8,), device="cuda")
    assert x.is_cuda and int(x.max()) < 9
    assert sorted(torch.randperm(5, device="cuda").tolist()) == [0, 1, 2, 3, 4]


def factory_of_normals() -> None:
    assert torch.normal(0.0, 1.0, (3,), device="cuda").is_cuda


def factories_like_another() -> None:
    x = torch.ones(2)
    for make in (torch.ones_like, torch.zeros_like, torch.empty_like, torch.rand_like):
        assert make(x, device="cuda").is_cuda
    assert torch.full_like(x, 2.0, device="cuda:1").get_device() == 1
    assert torch.randint_like(x, 5, device="cuda").is_cuda


def tensor_from_a_list() -> None:
    x = torch.tensor([1.0, 2.0], device="cuda")
    assert x.is_cuda and x.tolist() == [1.0, 2.0]


def tensor_from_a_list_with_gradient() -> None:
    assert torch.tensor([1.0], device="cuda", requires_grad=True).requires_grad


def as_tensor_moves() -> None:
    assert torch.as_tensor([1, 2], device="cuda").is_cuda
    assert torch.as_tensor(torch.ones(1), device=torch.device("cuda")).is_cuda


def asarray_moves() -> None:
    assert torch.asarray([1.0, 2.0], device="cuda").is_cuda


def from_numpy_then_cuda() -> None:
    import numpy as np

    x = torch.from_numpy(np.arange(3, dtype=np.float32)).cuda()
    assert x.cpu().numpy().tolist() == [0.0, 1.0, 2.0]


def empty_strided_and_permuted() -> None:
    assert torch.empty_strided((2, 3), (3, 1), device="cuda").is_cuda
    assert torch.empty_permuted((2, 3), (1, 0), device="cuda").is_cuda


def scalar_tensor() -> None:
    assert torch.scalar_tensor(3.0, device="cuda").item() == 3.0


def triangular_indices() -> None:
    assert torch.tril_indices(3, 3, device="cuda").is_cuda
    assert torch.triu_indices(3, 3, device="cuda").is_cuda


def complex_window_and_frequencies() -> None:
    assert torch.hann_window(8, device="cuda").is_cuda
    assert torch.fft.fftfreq(8, device="cuda").is_cuda
    assert torch.fft.rfftfreq(8, device="cuda").is_cuda


def sparse_coo() -> None:
    x = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (2,), device="cuda")
    assert x.is_cuda


def sparse_compressed() -> None:
    rows, columns = torch.tensor([0, 1]), torch.tensor([0])
    assert torch.sparse_csr_tensor(rows, columns, torch.ones(1), device="cuda").is_cuda
    assert torch.sparse_csc_tensor(rows, columns, torch.ones(1), device="cuda").is_cuda


def sparse_blocks() -> None:
    rows, columns, values = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1, 1, 1)
    assert torch.sparse_bsr_tensor(rows, columns, values, device="cuda").is_cuda
    assert torch.sparse_bsc_tensor(rows, columns, values, device="cuda").is_cuda


def nested_tensor() -> None:
    assert torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], device="cuda").is_cuda
    assert torch.nested.as_nested_tensor([torch.ones(2)], device=torch.device("cuda")).is_cuda


def tensor_from_a_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cuda"
        file.write_bytes(bytes(16))
        assert torch.from_file(str(file), size=4).shape == (4,)


def new_tensors_by_name() -> None:
    x = torch.ones(2)
    made = (
        x.new_empty(2, device="cuda"),
        x.new_zeros(2, device="cuda"),
        x.new_ones(2, device="cuda"),
        x.new_full((2,), 1.0, device="cuda"),
        x.new_tensor([1.0], device="cuda"),
        x.new_empty_strided((2,), (1,), device="cuda"),
    )
    assert all(y.is_cuda for y in made)


def new_tensors_stay_on_the_device() -> None:
    x = torch.ones(2, device="cuda:1")
    assert x.new_zeros(3).get_device() == 1


def to_by_name() -> None:
    assert torch.ones(2).to("cuda").is_cuda
    assert torch.ones(2).to("cuda:1").get_device() == 1


def to_by_device() -> None:
    assert torch.ones(2).to(torch.device("cuda")).is_cuda


def to_by_index() -> None:
    assert torch.ones(2).to(1).get_device() == 1


def to_by_keyword() -> None:
    x = torch.ones(2).to(device="cuda", dtype=torch.float16, non_blocking=True)
    assert x.is_cuda and x.dtype == torch.float16


def to_by_position() -> None:
    x = torch.ones(2).to("cuda", torch.bfloat16, True, False)
    assert x.is_cuda and x.dtype == torch.bfloat16


def to_another_tensor() -> None:
    other = torch.ones(1, dtype=torch.float16, device="cuda")
    x = torch.ones(2).to(other)
    assert x.is_cuda and x.dtype == torch.float16


def to_a_dtype_stays() -> None:
    assert torch.ones(2, device="cuda:1").to(torch.float16).get_device() == 1


def to_the_same_device_is_the_same_object() -> None:
    x = torch.ones(2, device="cuda:0")
    assert x.to("cuda:0") is x
    assert x.cuda() is x


def cuda_without_arguments() -> None:
    assert torch.ones(2).cuda().is_cuda


def cuda_by_index() -> None:
    assert torch.ones(2).cuda(1).get_device() == 1


def cuda_by_name() -> None:
    assert torch.ones(2).cuda("cuda:1").get_device() == 1


def cuda_by_device() -> None:
    assert torch.ones(2).cuda(torch.device("cuda:1")).get_device() == 1


def cuda_by_keyword() -> None:
    assert torch.ones(2).cuda(device="cuda:1").get_device() == 1
    assert torch.ones(2).cuda(device=1, non_blocking=True).get_device() == 1


def cuda_non_blocking_by_position() -> None:
    assert torch.ones(2).pin_memory().cuda(0, True).is_cuda


def cuda_follows_the_current_device() -> None:
    with torch.cuda.device(1):
        assert torch.ones(2).cuda().get_device() == 1


def there_and_back() -> None:
    x = torch.arange(6.0)
    assert torch.equal(x.cuda().cpu(), x)
    assert torch.equal((x.cuda() * 2).to("cpu"), x * 2)


def between_devices() -> None:
    x = torch.arange(3.0, device="cuda:0")
    assert x.to("cuda:1").sum().item() == 3.0


def copy_into_a_tensor_of_the_device() -> None:
    x = torch.empty(3, device="cuda")
    x.copy_(torch.arange(3.0))
    assert x.tolist() == [0.0, 1.0, 2.0]


def is_cuda_of_both() -> None:
    assert torch.ones(1, device="cuda").is_cuda is True
    assert torch.ones(1).is_cuda is False
    assert torch.ones(1, device="meta").is_cuda is False


def get_device_is_the_index() -> None:
    assert torch.ones(1, device="cuda").get_device() == 0
    assert torch.ones(1).get_device() == -1


def type_names_take_a_tensor_there() -> None:
    x = torch.ones(2).type("torch.cuda.FloatTensor")
    assert x.is_cuda and x.dtype == torch.float32


def type_classes_take_a_tensor_there() -> None:
    assert torch.ones(2).type(torch.cuda.HalfTensor).dtype == torch.float16


def type_answers_with_the_device() -> None:
    assert torch.ones(2, device="cuda").type() == "torch.cuda.FloatTensor"
    assert torch.ones(2).type() == "torch.FloatTensor"


def legacy_types_construct() -> None:
    assert torch.cuda.FloatTensor([1.0, 2.0]).is_cuda
    assert torch.cuda.LongTensor(3).dtype == torch.int64
    assert torch.cuda.ByteTensor([1]).tolist() == [1]


def legacy_types_recognise() -> None:
    x = torch.ones(2, device="cuda")
    assert isinstance(x, torch.cuda.FloatTensor)
    assert not isinstance(x.cpu(), torch.cuda.FloatTensor)
    assert not isinstance(x, torch.cuda.HalfTensor)


def legacy_default_tensor_type() -> None:
    torch.set_default_tensor_type("torch.cuda.FloatTensor")
    try:
        assert torch.ones(1).is_cuda
    finally:
        torch.set_default_tensor_type("torch.FloatTensor")
    torch.set_default_tensor_type(torch.cuda.FloatTensor)
    try:
        assert torch.ones(1).is_cuda
    finally:
        torch.set_default_tensor_type(torch.FloatTensor)


def pinned_memory() -> None:
    x = torch.ones(4).pin_memory()
    assert x.is_pinned()
    assert x.to("cuda", non_blocking=True).sum().item() == 4.0


def pinned_factory() -> None:
    assert torch.empty(4, pin_memory=True).is_pinned()


def pinned_for_a_named_device() -> None:
    assert torch.ones(4).pin_memory("cuda").is_pinned("cuda")


def storage_knows_its_device() -> None:
    x = torch.ones(2, device="cuda")
    assert x.untyped_storage().is_cuda
    assert x.untyped_storage().device.type == "cuda"


def storage_is_made_there() -> None:
    assert torch.UntypedStorage(8, device="cuda").is_cuda
    assert torch.UntypedStorage(8).cuda().is_cuda


def tensors_are_saved_and_loaded() -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0, device="cuda")}, file)
    file.seek(0)
    assert torch.load(file)["w"].is_cuda


def loaded_to_the_device() -> None:
    for location in ("cuda", "cuda:0", torch.device("cuda"), lambda storage, _: storage.cuda(0)):
        file = io.BytesIO()
        torch.save({"w": torch.arange(3.0)}, file)
        file.seek(0)
        assert torch.load(file, map_location=location)["w"].is_cuda


def loaded_by_a_dictionary() -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0, device="cuda:1")}, file)
    file.seek(0)
    assert torch.load(file, map_location={"cuda:1": "cuda:0"})["w"].get_device() == 0


def loaded_to_the_host() -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0, device="cuda")}, file)
    file.seek(0)
    assert not torch.load(file, map_location="cpu")["w"].is_cuda


def a_checkpoint_of_a_gpu_is_loaded() -> None:
    file = io.BytesIO()
    torch.save({"w": torch.arange(3.0)}, file)
    content = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as old, zipfile.ZipFile(content, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(entry.filename, data)
    content.seek(0)
    assert torch.load(content)["w"].is_cuda
    content.seek(0)
    assert torch.load(content, map_location={"cuda:0": "cuda:1"})["w"].get_device() == 1


def a_path_that_contains_cuda_stays() -> None:
    with tempfile.TemporaryDirectory(prefix="cuda_") as folder:
        file = str(Path(folder) / "cuda:0.pt")
        torch.save(torch.ones(1), file)
        assert Path(file).exists()
        assert torch.load(file, "cuda").is_cuda


def a_name_that_contains_cuda_stays() -> None:
    parameters = torch.nn.ParameterDict({"cuda0": torch.ones(1)})
    assert list(parameters) == ["cuda0"]
    assert dict(torch.nn.ModuleDict({"cuda0": torch.nn.ReLU()}).named_modules())["cuda0"]


def tensors_are_pickled_and_copied() -> None:
    x = torch.arange(3.0, device="cuda")
    assert pickle.loads(pickle.dumps(x)).is_cuda
    assert copy.deepcopy(x).is_cuda


def arithmetic_stays_there() -> None:
    x = torch.arange(6.0, device="cuda").reshape(2, 3)
    y = (x @ x.T + 1).relu().sum()
    assert y.is_cuda and y.item() == 87.0


def mixed_devices_are_an_error() -> None:
    try:
        torch.ones(2, device="cuda") + torch.ones(2)
    except RuntimeError:
        return
    raise AssertionError("tensors of two devices were added")


def gradient_is_there() -> None:
    x = torch.ones(3, device="cuda", requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad is not None and x.grad.is_cuda
    assert x.grad.tolist() == [2.0, 2.0, 2.0]


def tensor_subclass_moves() -> None:
    class Mine(torch.Tensor):
        pass

    x = torch.ones(2).as_subclass(Mine).cuda()
    assert isinstance(x, Mine) and x.is_cuda


def tensor_subclass_sees_the_call() -> None:
    seen: list[str] = []

    class Logging(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # noqa: ANN001,ANN206
            seen.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs or {})

    assert torch.ones(2).as_subclass(Logging).to("cuda").is_cuda
    assert "to" in seen


def record_stream() -> None:
    x = torch.ones(2, device="cuda")
    x.record_stream(torch.cuda.current_stream())
