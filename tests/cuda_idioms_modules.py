"""CUDA idioms about modules, training, data loading and files of weights."""

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn


def module_cuda() -> None:
    model = nn.Linear(2, 2)
    assert model.cuda() is model
    assert next(model.parameters()).is_cuda


def module_cuda_by_index() -> None:
    assert nn.Linear(2, 2).cuda(1).weight.get_device() == 1


def module_cuda_by_name_and_device() -> None:
    assert nn.Linear(2, 2).cuda("cuda:1").weight.get_device() == 1
    assert nn.Linear(2, 2).cuda(device=torch.device("cuda:1")).weight.get_device() == 1


def module_to_by_name() -> None:
    assert nn.Linear(2, 2).to("cuda").weight.is_cuda


def module_to_by_device_and_dtype() -> None:
    model = nn.Linear(2, 2).to(torch.device("cuda"), torch.float16)
    assert model.weight.is_cuda and model.weight.dtype == torch.float16


def module_to_by_keyword() -> None:
    model = nn.Linear(2, 2).to(device="cuda:1", dtype=torch.bfloat16, non_blocking=True)
    assert model.weight.get_device() == 1


def module_to_by_index() -> None:
    assert nn.Linear(2, 2).to(1).weight.get_device() == 1


def module_to_a_tensor() -> None:
    assert nn.Linear(2, 2).to(torch.ones(1, device="cuda")).weight.is_cuda


def module_half_cuda_and_back() -> None:
    model = nn.Linear(2, 2).half().cuda()
    assert model.weight.dtype == torch.float16
    assert not model.cpu().weight.is_cuda


def module_made_on_the_device() -> None:
    layers = (
        nn.Linear(2, 2, device="cuda"),
        nn.Conv2d(1, 1, 1, device=torch.device("cuda")),
        nn.LayerNorm(2, device="cuda:0"),
        nn.Embedding(2, 2, device="cuda"),
    )
    assert all(layer.weight.is_cuda for layer in layers)


def module_from_meta() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert model.to_empty(device="cuda").weight.is_cuda


def module_type_by_class() -> None:
    assert nn.Linear(2, 2).type(torch.cuda.HalfTensor).weight.is_cuda


def module_with_buffers() -> None:
    model = nn.BatchNorm1d(3).cuda()
    assert model.running_mean is not None and model.running_mean.is_cuda


def lazy_module_moves() -> None:
    assert nn.LazyLinear(2).cuda().weight.device.type == "cuda"
    assert nn.LazyLinear(2).to("cuda").weight.device.type == "cuda"


def parameters_device_is_compared() -> None:
    model = nn.Linear(2, 2).to("cuda:1")
    assert {p.device for p in model.parameters()} == {torch.device("cuda:1")}


def sequential_forward() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)).cuda().eval()
    with torch.no_grad():
        y = model(torch.ones(3, 4).cuda())
    assert y.is_cuda and y.shape == (3, 2)


def forward_agrees_with_the_host() -> None:
    model = nn.Linear(4, 4).eval()
    x = torch.arange(8.0).reshape(2, 4)
    with torch.inference_mode():
        expected = model(x)
        assert torch.allclose(model.cuda()(x.cuda()).cpu(), expected, atol=1e-5)


def training_step() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = nn.Linear(4, 1).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.ones(8, 4, device=device), torch.zeros(8, 1, device=device)
    first = ((model(x) - y) ** 2).mean()
    first.backward()
    optimizer.step()
    assert ((model(x) - y) ** 2).mean().item() < first.item()


def loss_weights_follow() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3)).cuda()
    assert loss.weight is not None and loss.weight.is_cuda


def optimizer_state_is_there() -> None:
    weight = nn.Parameter(torch.ones(2, device="cuda"))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, foreach=False)
    (weight * 2).sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].is_cuda


def state_dict_travels() -> None:
    model = nn.Linear(2, 2).cuda()
    copy_ = nn.Linear(2, 2)
    copy_.load_state_dict(model.state_dict())
    assert torch.equal(copy_.weight, model.weight.cpu())


def model_file_is_loaded_on_the_device() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cuda.pth"
        torch.save(nn.Linear(2, 2).state_dict(), file)
        state = torch.load(file, map_location="cuda:0", weights_only=True)
    model = nn.Linear(2, 2).cuda()
    model.load_state_dict(state)
    assert state["weight"].is_cuda


def safetensors_are_loaded_on_the_device() -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.safetensors")
        save_file({"w": torch.arange(3.0)}, file)
        assert load_file(file, device="cuda")["w"].is_cuda
        assert load_file(file, device="cuda:1")["w"].get_device() == 1
        with safe_open(file, framework="pt", device="cuda:0") as opened:
            assert opened.get_tensor("w").is_cuda


def from_pretrained_with_a_device_map() -> None:
    from transformers import AutoModel, DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with tempfile.TemporaryDirectory() as folder:
        DINOv3ViTModel(config).save_pretrained(folder)
        for device_map in ("cuda", "cuda:0", {"": "cuda:0"}, {"": 0}, torch.device("cuda")):
            try:
                model = AutoModel.from_pretrained(folder, device_map=device_map)
            except (ImportError, ValueError) as error:
                if "accelerate" in str(error):  # which device_map needs
                    model = AutoModel.from_pretrained(folder).to("cuda")
                else:
                    raise
            assert next(model.parameters()).is_cuda


def transformers_model_forward() -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = DINOv3ViTModel(config).eval().to("cuda")
    with torch.inference_mode():
        out = model(torch.zeros(1, 3, 32, 32, device="cuda"))
    assert out.pooler_output.is_cuda


def deepcopy_of_a_module() -> None:
    assert copy.deepcopy(nn.Linear(2, 2).cuda()).weight.is_cuda


def loader_pins_memory() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    loader = torch.utils.data.DataLoader(data, batch_size=4, pin_memory=True)
    for (x,) in loader:
        assert x.is_pinned()
        assert x.cuda(non_blocking=True).is_cuda


def loader_pins_for_a_named_device() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(4.0))
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, pin_memory=True, pin_memory_device="cuda"
    )
    assert all(x.is_pinned() for (x,) in loader)


def loader_with_workers() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1)
    assert sum(float(x.to("cuda").sum()) for (x,) in loader) == 28.0


def loader_with_a_generator_of_the_device() -> None:
    generator = torch.Generator(device="cuda").manual_seed(1)
    assert torch.randn(2, generator=generator, device="cuda").is_cuda


def packed_sequences_move() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert packed.cuda().is_cuda
    assert packed.to("cuda").data.is_cuda
    assert not packed.is_cuda


def checkpointed_layers() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = nn.Linear(2, 2).cuda()
    x = torch.ones(1, 2, device="cuda", requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.is_cuda


def hooks_see_the_device() -> None:
    seen: list[bool] = []
    model = nn.Linear(2, 2).cuda()
    model.register_forward_hook(lambda module, args, output: seen.append(output.is_cuda))
    model(torch.ones(1, 2).cuda())
    assert seen == [True]


def data_parallel_on_one_device() -> None:
    model = nn.DataParallel(nn.Linear(2, 2).cuda(), device_ids=[0])
    assert model(torch.ones(2, 2).cuda()).is_cuda


def clip_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, device="cuda"))
    (weight * 3).sum().backward()
    norm = nn.utils.clip_grad_norm_([weight], 1.0)
    assert norm.is_cuda


def swa_model_averages() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2), device="cuda")
    assert next(averaged.parameters()).is_cuda
