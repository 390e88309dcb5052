"""Faults of a port before its first block: the image, the embedding, the rotary embedding."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

from kit.device.arithmetic import round_mantissa
from kit.model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, preprocess
from tests.accuracy_model import SIZE, STEPS, Case, picture


def other_steps(**changes: object) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the input that other preprocessing makes of the same image."""
    steps = dataclasses.replace(STEPS, **changes)  # type: ignore[arg-type] # fields by name
    return lambda _: preprocess(picture(), steps)


def without_antialias(_: torch.Tensor) -> torch.Tensor:
    image = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    small = nn.functional.interpolate(image, (SIZE, SIZE), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (small - mean) / std


def rounded_to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (((pixels * std + mean) * 255).round() / 255 - mean) / std


def edit_embedding(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[..., None]:
    """Return an injection that replaces a parameter of the embedding by a changed one."""

    def inject(model: PreTrainedModel) -> None:
        owner, _, attribute = f"embeddings.{name}".rpartition(".")
        parameter = getattr(model.get_submodule(owner), attribute)
        parameter.data = change(parameter.data.clone()).contiguous()

    return inject


def zero_first_register(tokens: torch.Tensor) -> torch.Tensor:
    tokens[:, 0] = 0
    return tokens


def embedding_output(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    """Return an injection that changes what the embedding returns."""

    def inject(model: PreTrainedModel) -> None:
        module = model.get_submodule("embeddings")
        plain = module.forward
        module.forward = lambda *a, **k: change(plain(*a, **k))

    return inject


def registers_last(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([tokens[:, :1], tokens[:, 5:], tokens[:, 1:5]], dim=1)


def patches_by_column(tokens: torch.Tensor) -> torch.Tensor:
    patches = tokens[:, 5:].reshape(1, 4, 4, -1).transpose(1, 2).flatten(1, 2)
    return torch.cat([tokens[:, :5], patches], dim=1)


def bf16_convolution(model: PreTrainedModel) -> None:
    convolution = model.get_submodule("embeddings.patch_embeddings")
    assert isinstance(convolution, nn.Conv2d)
    weight, bias = convolution.weight.bfloat16(), convolution.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        assert bias is not None
        found = nn.functional.conv2d(x.bfloat16(), weight, bias.bfloat16(), stride=16)
        return found.float()

    convolution.forward = forward  # type: ignore[method-assign,assignment] # the fault


Tables = tuple[torch.Tensor, torch.Tensor]


def tables(change: Callable[[torch.Tensor, torch.Tensor], Tables]) -> Callable[..., None]:
    """Return an injection that changes the rotary embedding's cosines and sines."""

    def inject(model: PreTrainedModel) -> None:
        rope = model.get_submodule("rope_embeddings")
        plain = rope.forward
        rope.forward = lambda x: change(*plain(x))

    return inject


def other_base(base: float) -> Callable[[PreTrainedModel], None]:
    def inject(model: PreTrainedModel) -> None:
        rope = model.get_submodule("rope_embeddings")
        head = 64 // 4
        rope.inv_freq = 1 / base ** torch.arange(0, 1, 4 / head)

    return inject


def swap_axes(table: torch.Tensor) -> torch.Tensor:
    """Exchange the quarters that hold rows and columns."""
    first, second = table.reshape(len(table), 2, 2, -1).unbind(-2)
    return torch.stack([second, first], dim=-2).flatten(-3)


@contextmanager
def dinov3_function(name: str, replacement: Callable[..., object]) -> Iterator[None]:
    """Replace one function of transformers' DINOv3 in the block."""
    plain = getattr(dinov3, name)
    setattr(dinov3, name, replacement)
    try:
        yield
    finally:
        setattr(dinov3, name, plain)


def half_turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, -first), dim=-1)


def interleaved(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


plain_rotary = dinov3.apply_rotary_pos_emb


def rotated_prefix_too(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: object
) -> Tables:
    prefix = q.shape[-2] - cos.shape[-2]
    wide = [torch.cat([table[:prefix], table]) for table in (cos, sin)]
    return (
        q * wide[0] + dinov3.rotate_half(q) * wide[1],
        k * wide[0] + dinov3.rotate_half(k) * wide[1],
    )


def query_only(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **_: object
) -> Tables:
    rotated: Tables = plain_rotary(q, k, cos, sin)
    return rotated[0], k


INPUT_FAULTS = tuple(
    Case(name, pixels=pixels, block=-1, operator="input")
    for name, pixels in (
        ("mean and std exchanged", other_steps(mean=IMAGENET_STD, std=IMAGENET_MEAN)),
        ("BGR instead of RGB", lambda x: x.flip(1)),
        ("resize without antialias", without_antialias),
        ("bicubic instead of bilinear", other_steps(interpolation="bicubic")),
        ("no normalization", other_steps(mean=None, std=None)),
        ("pixels not rescaled", other_steps(rescale_factor=None)),
        ("image mirrored", lambda x: x.flip(3)),
        ("image transposed", lambda x: x.transpose(2, 3)),
        ("image one pixel aside", lambda x: x.roll(1, 3)),
        ("resized image rounded to uint8", rounded_to_uint8),
        ("one NaN in the input", lambda x: x.index_fill(3, torch.tensor([9]), torch.nan)),
    )
)
EMBEDDING_FAULTS = tuple(
    Case(name, model=model, block=-1, operator="embedding")
    for name, model in (
        ("patch bias missing", edit_embedding("patch_embeddings.bias", torch.zeros_like)),
        ("patch kernel transposed", edit_embedding("patch_embeddings.weight", lambda w: w.mT)),
        ("patch convolution in bf16", bf16_convolution),
        ("one register zero", edit_embedding("register_tokens", zero_first_register)),
        ("CLS token zero", edit_embedding("cls_token", torch.zeros_like)),
        ("registers behind the patches", embedding_output(registers_last)),
        ("patches column by column", embedding_output(patches_by_column)),
        ("registers missing", embedding_output(lambda t: torch.cat([t[:, :1], t[:, 5:]], 1))),
    )
)
ROPE_FAULTS = tuple(
    Case(name, model=model, block=0, operator="RoPE")
    for name, model in (
        ("RoPE base 10000 instead of 100", other_base(10000.0)),
        ("RoPE base 99 instead of 100", other_base(99.0)),
        ("RoPE axes exchanged", tables(lambda c, s: (swap_axes(c), swap_axes(s)))),
        ("RoPE missing", tables(lambda c, s: (torch.ones_like(c), torch.zeros_like(s)))),
        ("RoPE one patch aside", tables(lambda c, s: (c.roll(1, 0), s.roll(1, 0)))),
        ("RoPE tables in bf16", tables(lambda c, s: (c.bfloat16().float(), s.bfloat16().float()))),
    )
) + tuple(
    Case(name, during=lambda n=n, f=f: dinov3_function(n, f), block=0, operator="RoPE")  # type: ignore[misc] # bound now
    for name, n, f in (
        ("RoPE turned the other way", "rotate_half", half_turned),
        ("RoPE pairs interleaved", "rotate_half", interleaved),
        ("RoPE on CLS and registers too", "apply_rotary_pos_emb", rotated_prefix_too),
        ("RoPE on the queries alone", "apply_rotary_pos_emb", query_only),
    )
)


def hf32(weight: torch.Tensor) -> torch.Tensor:
    return round_mantissa(weight, 11)


UNDECLARED = (
    Case(
        "HF32 convolution, declared fp32",
        model=edit_embedding("patch_embeddings.weight", hf32),
        block=-1,
        operator="embedding",
    ),
)
