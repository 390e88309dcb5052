"""Ways to change one part of a model, as a faulty or another port would have it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.model.model import Features
from tests.accuracy_model import layers

BLOCK = 2
Inject = Callable[[PreTrainedModel], object]
Change = Callable[[torch.Tensor], torch.Tensor]


def module_of(model: PreTrainedModel, name: str, block: int = BLOCK) -> nn.Module:
    return layers(model)[block].get_submodule(name)


def edit(name: str, change: Change, block: int = BLOCK) -> Inject:
    """Return an injection that changes one parameter of a block, for example mlp.up_proj.bias."""
    path, _, attribute = name.rpartition(".")

    def inject(model: PreTrainedModel) -> None:
        parameter = getattr(module_of(model, path, block), attribute)
        parameter.data = change(parameter.data.clone()).contiguous()

    return inject


def output(name: str, change: Change, block: int = BLOCK) -> Inject:
    """Return an injection that changes what one module of a block returns."""

    def inject(model: PreTrainedModel) -> None:
        module = layers(model)[block].get_submodule(name) if name else layers(model)[block]
        plain = module.forward

        def changed(*args: object, **kwargs: object) -> object:
            found = plain(*args, **kwargs)
            if isinstance(found, tuple):
                return (change(found[0]), *found[1:])
            return change(found)

        module.forward = changed

    return inject


def replace(name: str, make: Callable[[nn.Module], nn.Module], block: int = BLOCK) -> Inject:
    """Return an injection that replaces one module of a block."""
    path, _, attribute = name.rpartition(".")

    def inject(model: PreTrainedModel) -> None:
        owner = module_of(model, path, block) if path else layers(model)[block]
        setattr(owner, attribute, make(getattr(owner, attribute)))

    return inject


def exchange(first: str, second: str) -> Inject:
    """Return an injection that exchanges two modules of a block."""

    def inject(model: PreTrainedModel) -> None:
        left, right = module_of(model, first), module_of(model, second)
        state = copy.deepcopy(left.state_dict())
        left.load_state_dict(copy.deepcopy(right.state_dict()), strict=False)
        right.load_state_dict(state, strict=False)

    return inject


class Function(nn.Module):
    """A module out of a function."""

    def __init__(self, function: Change) -> None:
        """Call `function`."""
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return function(x)."""
        return self.function(x)


def in_type(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    """Return what makes a module compute in `dtype` and hand fp32 back."""

    def make(module: nn.Module) -> nn.Module:
        narrow = copy.deepcopy(module).to(dtype)
        return Function(lambda x: narrow(x.to(dtype)).float())

    return make


def scaling(change: Callable[[float], float]) -> Inject:
    def inject(model: PreTrainedModel) -> None:
        attention = module_of(model, "attention")
        attention.scaling = change(attention.scaling)  # type: ignore[arg-type,assignment] # a float

    return inject


def attribute(name: str, key: str, value: object, block: int = BLOCK) -> Inject:
    return lambda model: setattr(module_of(model, name, block), key, value)


def swap_rows(model: PreTrainedModel) -> None:
    q = module_of(model, "attention.q_proj.weight".removesuffix(".weight"))
    k = module_of(model, "attention.k_proj")
    assert isinstance(q, nn.Linear)
    assert isinstance(k, nn.Linear)
    rows = q.weight.data[3:5].clone()
    q.weight.data[3:5] = k.weight.data[3:5]
    k.weight.data[3:5] = rows


def flip_bit(bit: int, row: int = 5, column: int = 9) -> Change:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(torch.int32)[row, column] ^= 1 << bit
        return weight

    return change


def at(index: tuple[int, ...], value: float) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[index] = value
        return changed

    return change


def exchange_tokens(tensor: torch.Tensor) -> torch.Tensor:
    order = list(range(tensor.shape[1]))
    order[8], order[9] = 9, 8
    return tensor[:, order]


def dead_head(context: torch.Tensor) -> torch.Tensor:
    changed = context.clone()
    changed[..., 16:32] = 0
    return changed


def before_projection(change: Change) -> Inject:
    """Return an injection that changes the attention's context before its output projection."""

    def inject(model: PreTrainedModel) -> None:
        module_of(model, "attention.o_proj").register_forward_pre_hook(
            lambda _, args: (change(args[0]),), prepend=True
        )

    return inject


def heads_in_another_order(context: torch.Tensor) -> torch.Tensor:
    order = [*range(16, 32), *range(16), *range(32, 64)]
    return context[..., order]


def exchange_blocks(model: PreTrainedModel) -> None:
    blocks = layers(model)
    blocks[2], blocks[4] = blocks[4], blocks[2]


def skip_block(model: PreTrainedModel) -> None:
    layers(model)[BLOCK].forward = lambda x, *_, **__: x


def block_twice(model: PreTrainedModel) -> None:
    block = layers(model)[BLOCK]
    plain = block.forward
    block.forward = lambda x, *a, **k: plain(plain(x, *a, **k), *a, **k)


def without_residual(model: PreTrainedModel) -> None:
    block = layers(model)[BLOCK]
    parts: Any = block

    def forward(x: torch.Tensor, *_: object, **kwargs: object) -> object:
        hidden = parts.attention(parts.norm1(x), **kwargs)[0]
        hidden = parts.drop_path(parts.layer_scale1(hidden))
        return hidden + parts.drop_path(parts.layer_scale2(parts.mlp(parts.norm2(hidden))))

    block.forward = forward


def unbiased_norm(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.LayerNorm)
    weight, bias, eps = module.weight, module.bias, module.eps
    return Function(
        lambda x: (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * weight + bias
        )
    )


def rms_norm(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.LayerNorm)
    weight, bias = module.weight, module.bias
    return Function(lambda x: x / x.square().mean(-1, keepdim=True).sqrt() * weight + bias)


def final_norm(change: Callable[[nn.Module], object]) -> Inject:
    return lambda model: change(model.get_submodule("norm"))


def pooled_from_a_register(features: Features) -> Features:
    return Features(features.last_hidden_state[:, 1], features.last_hidden_state)


def quick_gelu(_: nn.Module) -> nn.Module:
    return Function(lambda x: x * torch.sigmoid(1.702 * x))


def perturbed(amount: float) -> Change:
    def change(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        return weight * (1 + amount * noise)

    return change
