"""What a sound port may do otherwise, and faults that leave no trace to be seen."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.references import Declared
from tests.accuracy_injections import Function, edit, flip_bit, replace
from tests.accuracy_input_faults import dinov3_function
from tests.accuracy_model import Case, layers


def eager(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


def every_block(name: str, make: Callable[[nn.Module], nn.Module]) -> Callable[..., None]:
    """Return an injection that replaces one module in every block."""

    def inject(model: PreTrainedModel) -> None:
        for number in range(len(layers(model))):
            replace(name, make, number)(model)

    return inject


def linear_in_two_halves(module: nn.Module) -> nn.Module:
    """Return a linear layer that adds up its products in two parts, as a tiled kernel does."""
    assert isinstance(module, nn.Linear)
    weight, bias = module.weight, module.bias
    half = weight.shape[1] // 2
    return Function(
        lambda x: x[..., half:] @ weight[:, half:].T + (x[..., :half] @ weight[:, :half].T + bias)
    )


def linear_in_fp64(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.Linear)
    weight, bias = module.weight.double(), module.bias.double()
    return Function(lambda x: (x.double() @ weight.T + bias).float())


def norm_by_hand(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.LayerNorm)
    weight, bias, eps = module.weight, module.bias, module.eps

    def forward(x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight + bias
        )

    return Function(forward)


def erf_by_hand(_: nn.Module) -> nn.Module:
    return Function(lambda x: 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5))))


def convolution_as_product(model: PreTrainedModel) -> None:
    convolution = model.get_submodule("embeddings.patch_embeddings")
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight.flatten(1), convolution.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        columns = nn.functional.unfold(x, 16, stride=16)
        assert bias is not None
        found = weight @ columns + bias[:, None]
        return found.reshape(len(x), -1, 4, 4)

    convolution.forward = forward  # type: ignore[method-assign,assignment] # the variation


def tables_in_fp64(model: PreTrainedModel) -> None:
    rope: Any = model.get_submodule("rope_embeddings")
    plain = rope.forward
    rope.inv_freq = rope.inv_freq.double()

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table.float() for table in plain(x.double()))

    rope.forward = forward


def softmax_in_base_two(model: PreTrainedModel) -> None:
    """Compute the softmax with powers of two, as fused kernels do."""
    eager(model)


@contextmanager
def base_two_softmax() -> Iterator[None]:
    plain = nn.functional.softmax

    def softmax(x: torch.Tensor, dim: int = -1, **_: object) -> torch.Tensor:
        powers = torch.exp2((x - x.amax(dim, keepdim=True)) * math.log2(math.e))
        return powers / powers.sum(dim, keepdim=True)

    nn.functional.softmax = softmax  # type: ignore[assignment] # the variation
    try:
        yield
    finally:
        nn.functional.softmax = plain


def rotary_in_one_product(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate with complex numbers instead of sines and cosines apart."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        prefix, patches = x[..., : -cos.shape[0], :], x[..., -cos.shape[0] :, :]
        half = cos.shape[-1] // 2
        pairs = torch.complex(patches[..., :half], patches[..., half:])
        pairs = pairs * torch.complex(cos[:, :half], sin[:, :half])
        return torch.cat([prefix, torch.cat([pairs.real, pairs.imag], -1)], dim=-2)

    return turned(q), turned(k)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_others(pixels: torch.Tensor) -> torch.Tensor:
    """Put the image at the front of a batch of three."""
    return torch.cat([pixels, pixels.flip(2), pixels.flip(3)])


def with_others_in_another_order(pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([pixels, pixels.flip(3), pixels.flip(2), pixels * 0.5])


HARMLESS = (
    Case("nothing changed"),
    Case("eager attention", model=eager),
    Case("softmax in base two", model=softmax_in_base_two, during=base_two_softmax),
    Case("batch of three", pixels=with_others),
    Case("batch of four, other order", pixels=with_others_in_another_order),
    Case("two threads", during=lambda: threads(2)),
    Case("channels-last input", pixels=lambda x: x.to(memory_format=torch.channels_last)),
    Case("HF32 convolution, declared", declared=Declared("fp32", "fp32", "hf32")),
    Case("HF32 everywhere, declared", declared=Declared("fp32", "hf32", "hf32")),
    Case("TF32 everywhere, declared", declared=Declared("fp32", "tf32", "tf32")),
    Case("bf16, declared", declared=Declared("bf16")),
    Case("fp16, declared", declared=Declared("fp16")),
    Case("bf16 with eager attention", model=eager, declared=Declared("bf16")),
    Case("products in two parts", model=every_block("mlp.down_proj", linear_in_two_halves)),
    Case("products in fp64", model=every_block("mlp.up_proj", linear_in_fp64)),
    Case("LayerNorm by hand", model=every_block("norm1", norm_by_hand)),
    Case("erf GELU by hand", model=every_block("mlp.act_fn", erf_by_hand)),
    Case("convolution as a product", model=convolution_as_product),
    Case("RoPE tables in fp64", model=tables_in_fp64),
    Case("RoPE by complex numbers",
         during=lambda: dinov3_function("apply_rotary_pos_emb", rotary_in_one_product)),
)  # fmt: skip


def mask_token(model: PreTrainedModel) -> None:
    embedding: Any = model.get_submodule("embeddings")
    embedding.mask_token.data.add_(1)


UNSEEN = (
    Case("mask token changed", model=mask_token,
         unseen="inference never uses it"),
    Case("one weight's lowest mantissa bit flipped",
         model=edit("mlp.down_proj.weight", flip_bit(0)),
         unseen="6e-8 of one weight of 8192: below the rounding of a single product"),
    Case("LayerNorm epsilon 1.1e-5 instead of 1e-5",
         model=lambda m: setattr(layers(m)[2].get_submodule("norm1"), "eps", 1.1e-5),
         unseen="5e-7 of the result where the variance is one: within the smallest limit"),
    Case("weights 1e-8 stale", model=edit("mlp.up_proj.weight", lambda w: w * (1 + 1e-8)),
         unseen="below fp32's own resolution: the weights are the same bits"),
    Case("HF32 convolution left out, declared", declared=Declared("fp32", "fp32", "hf32"),
         model=lambda m: None, unseen="a device more exact than it declares is no fault"),
)  # fmt: skip
