"""The declared arithmetic on the CPU rounds as its definition says."""

import math
from typing import Literal

import pytest
import torch
from torch import nn

from kit.accuracy.references import (
    Declared,
    Imitation,
    References,
    Side,
    in_declared_type,
)
from kit.device.arithmetic import round_mantissa
from kit.model.model import use_attention
from tests.accuracy_model import good_pixels, layers, trained_like_model
from tests.trained_weights import small_trained_model


@pytest.mark.parametrize("bits", [10, 11])
def test_rounding_is_to_nearest_with_ties_to_even(bits: int) -> None:
    step = 2.0**-bits
    values = torch.tensor([1.0, 1 + 0.5 * step, 1 + 1.5 * step, 1 + 0.51 * step, -1 - 1.5 * step])
    expected = torch.tensor([1.0, 1.0, 1 + 2 * step, 1 + step, -1 - 2 * step])
    assert torch.equal(round_mantissa(values, bits), expected)


@pytest.mark.parametrize("bits", [10, 11])
def test_rounding_is_off_by_at_most_half_a_step_at_every_scale(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=generator) * 10.0 ** torch.randint(-30, 30, (10_000,))
    rounded = round_mantissa(values, bits)
    assert float(((rounded - values) / values).abs().max()) <= 2.0 ** -(bits + 1)
    assert torch.equal(round_mantissa(rounded, bits), rounded)


def test_rounding_to_seven_bits_is_bf16() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(round_mantissa(values, 7), values.bfloat16().float())


def test_rounding_leaves_infinity_and_nan() -> None:
    values = torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    assert torch.equal(round_mantissa(values, 11), values)
    assert bool(torch.isnan(round_mantissa(torch.tensor([math.nan]), 11)).all())


def test_hf32_rounds_the_inputs_of_convolutions_and_not_of_products() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 3, 8, 8, generator=generator)
    convolution, linear = nn.Conv2d(3, 4, 4), nn.Linear(8, 8)
    with torch.no_grad(), Imitation(Declared("fp32", "fp32", "hf32")):
        found, product = convolution(image), linear(image)
    with torch.no_grad():
        assert torch.equal(product, linear(image))
        assert not torch.equal(found, convolution(image))
        convolution.weight.copy_(round_mantissa(convolution.weight, 11))
        assert torch.equal(found, convolution(round_mantissa(image, 11)))  # the bias is not


def test_reduced_products_round_linear_layers_matmuls_and_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=generator)
    linear = nn.Linear(8, 8)
    attend = nn.functional.scaled_dot_product_attention
    with torch.no_grad(), Imitation(Declared("fp32", "tf32", "fp32")):
        found = linear(query), query @ key.mT, attend(query, key, value)
    narrow = [round_mantissa(tensor, 10) for tensor in (query, key, value)]
    with torch.no_grad():
        assert torch.equal(found[1], narrow[0] @ narrow[1].mT)
        assert torch.equal(found[2], attend(narrow[0], narrow[1], narrow[2]))
        linear.weight.copy_(round_mantissa(linear.weight, 10))
        assert torch.allclose(found[0], linear(narrow[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_products_agree_with_the_framework_within_their_own_rounding(
    dtype: Literal["bf16", "fp16"],
) -> None:
    model = in_declared_type(trained_like_model(), Declared(dtype))
    assert model is not trained_like_model()
    half = next(model.parameters()).dtype
    ours = Side(model, Declared(dtype)).features(good_pixels())
    theirs = Side(model, Declared()).features(good_pixels())
    assert ours.last_hidden_state.dtype == half
    apart = (ours.last_hidden_state.float() - theirs.last_hidden_state.float()).norm()
    assert float(apart / theirs.last_hidden_state.float().norm()) < 0.02


def test_plain_fp32_is_computed_as_it_is_and_shares_the_model() -> None:
    references = References(trained_like_model(), Declared())
    assert references.imitation is references.fp32
    assert references.fp32.model is trained_like_model()
    assert next(references.fp64.model.parameters()).dtype == torch.float64
    assert next(trained_like_model().parameters()).dtype == torch.float32


def test_fp64_is_exact_beyond_fp32_whatever_the_models_attention() -> None:
    sdpa = References(trained_like_model(), Declared()).fp64.features(good_pixels())
    eager = References(trained_like_model(), Declared())
    eager.fp64.model.set_attn_implementation("sdpa")
    assert eager.fp64.model.config._attn_implementation == "sdpa"
    plain = References(trained_like_model(), Declared()).fp32.features(good_pixels())
    apart = (plain.last_hidden_state.double() - sdpa.last_hidden_state).norm()
    assert 1e-9 < float(apart / sdpa.last_hidden_state.norm()) < 1e-5


def test_a_declared_arithmetic_has_its_row_and_its_words() -> None:
    assert Declared("fp32", "fp32", "hf32").arithmetic == "hf32"
    assert str(Declared("fp32", "fp32", "hf32")) == "fp32 (matrix products fp32, convolutions hf32)"
    assert str(Declared("bf16")) == "bf16"
    assert Declared().plain


def test_the_weights_that_are_like_trained_ones_have_what_training_leaves() -> None:
    model, streams, attention = small_trained_model(), [], []
    use_attention(model, "eager")
    for block in layers(model):
        block.register_forward_hook(lambda _, __, out: streams.append(out))
        block.get_submodule("attention").register_forward_hook(
            lambda _, __, out: attention.append(out[1])
        )
    with torch.no_grad():
        model(good_pixels())
    for stream in streams[:2]:
        hidden = stream[0] if isinstance(stream, tuple) else stream
        channels = hidden.abs().flatten(0, -2).median(0).values
        ratios = (channels / channels.median()).sort(descending=True).values
        assert all(100 < float(ratio) < 400 for ratio in ratios[:3])
        assert float(ratios[3]) < 20
    assert all(float(weights.amax(-1).mean()) > 0.3 for weights in attention)  # 1/21 is flat
    scales = torch.cat([p.detach() for name, p in model.named_parameters() if "lambda1" in name])
    assert float(scales.max() / scales.min()) > 500
    weight = layers(model)[0].get_parameter("mlp.up_proj.weight").detach()
    assert float((weight / weight.std()).pow(4).mean()) > 10  # 3 for normal numbers
