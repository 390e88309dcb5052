"""Faults of a port inside its blocks and behind them; block 2 has most of them."""

import torch
from torch import nn

from tests.accuracy_injections import (
    BLOCK,
    Inject,
    at,
    attribute,
    before_projection,
    block_twice,
    dead_head,
    edit,
    exchange,
    exchange_blocks,
    exchange_tokens,
    final_norm,
    flip_bit,
    heads_in_another_order,
    in_type,
    output,
    perturbed,
    pooled_from_a_register,
    quick_gelu,
    replace,
    rms_norm,
    scaling,
    skip_block,
    swap_rows,
    unbiased_norm,
    without_residual,
)
from tests.accuracy_model import BLOCKS, Case


def case(name: str, inject: Inject, operator: str | None, block: int | None = BLOCK) -> Case:
    return Case(name, model=inject, operator=operator, block=block)


ATTENTION_FAULTS = (
    case("attention scale 1/d instead of 1/sqrt(d)", scaling(lambda s: s * s), "attention"),
    case("attention scale 1 % too large", scaling(lambda s: s * 1.01), "attention"),
    case("rows of q and k exchanged", swap_rows, "attention"),
    case("q and k exchanged", exchange("attention.q_proj", "attention.k_proj"), "attention"),
    case("v weight transposed", edit("attention.v_proj.weight", lambda w: w.mT), "attention"),
    case("q bias missing", edit("attention.q_proj.bias", torch.zeros_like), "attention"),
    case("v bias missing", edit("attention.v_proj.bias", torch.zeros_like), "attention"),
    case("o bias missing", edit("attention.o_proj.bias", torch.zeros_like), "attention"),
    case("one dead head", before_projection(dead_head), "attention"),
    case("two heads exchanged", before_projection(heads_in_another_order), "attention"),
    case("bf16 in one matmul", replace("attention.q_proj", in_type(torch.bfloat16)), "attention"),
    case("fp16 in one matmul", replace("attention.o_proj", in_type(torch.float16)), "attention"),
    case("one NaN in the context", before_projection(at((0, 7, 3), torch.nan)), "attention"),
    case("one token's context zero", before_projection(at((0, 7), 0)), "attention"),
)
SCALE_AND_NORM_FAULTS = (
    case("LayerScale missing", replace("layer_scale1", lambda _: nn.Identity()), "layer scale"),
    case("LayerScales exchanged", exchange("layer_scale1", "layer_scale2"), "layer scale"),
    case("LayerNorm epsilon 1e-6", attribute("norm1", "eps", 1e-6), "norm"),
    case("LayerNorm epsilon 1e-3", attribute("norm2", "eps", 1e-3), "norm"),
    case("LayerNorm bias missing", edit("norm1.bias", torch.zeros_like), "norm"),
    case("unbiased variance in LayerNorm", replace("norm2", unbiased_norm), "norm"),
    case("RMSNorm instead of LayerNorm", replace("norm1", rms_norm), "norm"),
    case("norm1 and norm2 exchanged", exchange("norm1", "norm2"), "norm"),
    case("final norm missing", final_norm(
        lambda norm: setattr(norm, "forward", lambda x: x)), "norm", BLOCKS),
    case("final norm epsilon 1e-3", final_norm(lambda n: setattr(n, "eps", 1e-3)), "norm", BLOCKS),
)  # fmt: skip
UP, DOWN = "mlp.up_proj.weight", "mlp.down_proj.weight"
MLP_FAULTS = (
    case("tanh instead of erf GELU", replace("mlp.act_fn", lambda _: nn.GELU("tanh")), "MLP"),
    case("quick GELU", replace("mlp.act_fn", quick_gelu), "MLP"),
    case("up bias missing", edit("mlp.up_proj.bias", torch.zeros_like), "MLP"),
    case("stale weights in one layer", edit(UP, perturbed(0.01)), "MLP"),
    case("weights 0.01 % stale", edit(DOWN, perturbed(1e-4)), "MLP"),
    case("weights rounded to bf16", edit(UP, lambda w: w.bfloat16().float()), "MLP"),
    case("one weight's exponent bit flipped", edit(UP, flip_bit(27)), "MLP"),
    case("one weight's sign flipped", edit(DOWN, flip_bit(31)), "MLP"),
    case("one weight's top mantissa bit flipped", edit(DOWN, flip_bit(22)), "MLP"),
    case("one weight's mantissa bit 12 flipped", edit(DOWN, flip_bit(12)), "MLP"),
    case("one infinity in the MLP", output("mlp.act_fn", at((0, 7, 3), torch.inf)), "MLP"),
)
BLOCK_FAULTS = (
    case("two layers exchanged", exchange_blocks, None, 2),
    case("one layer left out", skip_block, None),
    case("one layer twice", block_twice, None),
    case("residual missing", without_residual, "residual"),
    case("one wrong token", output("", at((0, 11), 0)), "residual"),
    case("two tokens exchanged", output("", exchange_tokens), "residual"),
    case("fault in the last block", edit("mlp.up_proj.bias", torch.zeros_like, 5), "MLP", 5),
    case("fault in the first block", edit("mlp.up_proj.bias", torch.zeros_like, 0), "MLP", 0),
    Case("pooled from a register", features=pooled_from_a_register, block=None),
    Case("another image", block=-1, operator="input", pixels=lambda x: x.flip(2).roll(9, 3)),
)
