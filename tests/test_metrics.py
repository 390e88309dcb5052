"""The metrics against numpy, in fp64, at every scale."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from kit.accuracy import examine
from kit.accuracy.examine import Distance, SideName
from kit.accuracy.limits import LIMITS
from kit.accuracy.references import Declared
from kit.accuracy.verdict import judge
from kit.records import Percentile
from kit.statistics import (
    as_colours,
    compare,
    compare_tokens,
    percentiles_of,
    principal_components,
    ratio,
)

STORED = Path(__file__).resolve().parent / "data" / "metrics.safetensors"
Wide = npt.NDArray[np.longdouble]


def numpy_figures(reference: torch.Tensor, measured: torch.Tensor) -> dict[str, float]:
    """Compute the same figures with numpy's widest type, straight from their definitions."""
    expected, found = (
        t.to(torch.float64).numpy().astype(np.longdouble).ravel() for t in (reference, measured)
    )
    difference = found - expected
    norm = np.sqrt((expected * expected).sum())
    other = np.sqrt((found * found).sum())
    return {
        "relative_error": float(np.sqrt((difference * difference).sum()) / norm),
        "cosine": float((expected * found).sum() / norm / other),
        "mse": float((difference * difference).mean()),
        "max_abs_diff": float(np.abs(difference).max()),
    }


def stored() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a reference and a measurement of 1 x 7 x 16, fp32, as they were once recorded."""
    tensors = load_file(STORED)
    return tensors["reference"], tensors["measured"]


def test_the_figures_are_numpys_on_stored_tensors() -> None:
    reference, measured = stored()
    expected, found = numpy_figures(reference, measured), compare(reference, measured)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name
    # Recorded when the tensors were, so that a change of both sides shows too.
    assert found.relative_error == pytest.approx(0.010139103, rel=1e-6)
    assert found.max_abs_diff == pytest.approx(0.024801254, rel=1e-6)


@pytest.mark.parametrize("power", range(-30, 31, 5))
def test_the_figures_hold_at_scales_from_1e_30_to_1e30(power: int) -> None:
    reference, measured = (t.to(torch.float64) * 10.0**power for t in stored())
    expected, found = numpy_figures(reference, measured), compare(reference, measured)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-11), name
    tokens = compare_tokens(reference, measured)
    plain = compare_tokens(*stored())
    assert torch.allclose(tokens.relative, plain.relative, rtol=1e-11, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_no_sum_of_squares_overflows_or_vanishes(scale: float) -> None:
    reference, measured = (t.to(torch.float64) * scale for t in stored())
    found = compare(reference, measured)
    assert found.relative_error == pytest.approx(compare(*stored()).relative_error, rel=1e-9)
    assert found.cosine == pytest.approx(compare(*stored()).cosine, rel=1e-12)


def test_scales_that_differ_from_token_to_token_do_not_hide_the_small_ones() -> None:
    reference = torch.tensor([[1e20, 0.0], [1e-20, 0.0]], dtype=torch.float64)
    measured = torch.tensor([[1e20, 0.0], [2e-20, 0.0]], dtype=torch.float64)
    assert compare(reference, measured).relative_error < 1e-30
    tokens = compare_tokens(reference, measured)
    assert tokens.worst == 1
    assert tokens.worst_relative == pytest.approx(1.0)


def test_zeros_on_both_sides_agree_and_on_one_side_do_not() -> None:
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert compare(zero, zero).relative_error == 0
    assert compare(zero, zero).cosine == 1
    assert compare(zero, one).relative_error == math.inf
    assert compare(zero, one).cosine == 0
    assert compare(one, zero).relative_error == 1
    assert compare(one, zero).cosine == 0
    assert compare_tokens(zero, one).worst_relative == math.inf
    assert compare_tokens(zero, zero).worst_cosine == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "measured", "both"])
def test_what_is_not_finite_has_its_place_and_its_side(value: float, side: str) -> None:
    reference, measured = torch.ones(1, 4, 3), torch.ones(1, 4, 3)
    if side != "measured":
        reference[0, 2, 1] = value
    if side != "reference":
        measured[0, 2, 1] = value
    found = compare(reference, measured)
    where = "on both sides" if side == "both" else side
    assert found.broken == f"1 values are NaN or infinite, the first at (0, 2, 1) ({where})"
    assert found.relative_error == math.inf
    assert all(math.isnan(n) for n in (found.cosine, found.mse, found.max_abs_diff))
    assert found.identical is False
    tokens = compare_tokens(reference, measured)
    assert tokens.worst == 2
    assert math.isinf(tokens.worst_relative)
    assert math.isnan(tokens.worst_cosine)
    assert not judge(reference, measured, "fp32").passed


def test_one_wrong_token_of_201_hides_in_the_whole_and_not_among_the_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(1, 201, 64, generator=generator)
    reference[0, :100] *= 20
    measured = reference.clone()
    measured[0, 150] = 0
    judged = judge(reference, measured, "fp32")
    assert judged.relative_error_passed
    assert judged.cosine_passed
    assert "token 150 is off by 1, not below 0.045" in judged.reasons
    assert not judged.passed
    assert judged.tokens.worst == 150


def distances(
    reference: torch.Tensor, *measured: torch.Tensor, token_axis: int = -1
) -> list[Distance]:
    """Return how far each of up to three tensors is from the reference."""
    names: tuple[SideName, ...] = ("imitation", "fp32", "device")
    sides = dict(zip(names, measured, strict=False))
    return list(examine.distances(reference, sides, token_axis).values())


@pytest.mark.parametrize("power", [-30, 0, 30])
def test_several_distances_at_once_are_the_single_comparisons(power: int) -> None:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(2, 7, 16, generator=generator, dtype=torch.float64) * 10.0**power
    reference[0, 3] = 0
    measured = [
        (reference * (1 + eps * torch.randn(2, 7, 16, generator=generator))).to(dtype)
        for eps, dtype in ((1e-3, torch.float64), (1e-6, torch.float32), (0.0, torch.float64))
    ]
    for found, tensor in zip(distances(reference, *measured), measured, strict=True):
        whole, tokens = compare(reference, tensor), compare_tokens(reference, tensor)
        assert found.error == pytest.approx(whole.relative_error, rel=1e-12)
        assert found.token_error == pytest.approx(tokens.worst_relative, rel=1e-12)
        assert found.token == tokens.worst


def test_a_distance_to_what_is_not_finite_is_infinite_and_the_others_are_not_touched() -> None:
    reference = torch.ones(3, 4, dtype=torch.float64)
    broken = reference.clone()
    broken[1, 2] = torch.nan
    first, second = distances(reference, broken, reference * 2)
    assert (first.error, first.token_error, first.token) == (math.inf, math.inf, 1)
    assert (second.error, second.token_error) == (1.0, 1.0)


@pytest.mark.filterwarnings("error")
def test_a_distance_beyond_fp64_is_infinite_without_a_warning() -> None:
    reference = torch.full((2, 4), 1e200, dtype=torch.float64)
    for measured in (reference * 2, reference * 0, reference * torch.inf):
        (found,) = distances(reference, measured)
        assert found.error == math.inf


def test_distances_of_vectors_numbers_and_nothing() -> None:
    for shape in ((4,), ()):
        reference = torch.full(shape, 2.0, dtype=torch.float64)
        (found,) = distances(reference, reference * 1.5)
        assert (found.error, found.token_error, found.token) == (0.5, 0.5, 0)
    (found,) = distances(torch.ones(0, 4, dtype=torch.float64), torch.ones(0, 4))
    assert (found.error, found.token_error) == (0.0, 0.0)


def test_a_token_that_should_be_zero_and_is_not_is_infinitely_off() -> None:
    reference = torch.ones(3, 4, dtype=torch.float64)
    reference[2] = 0
    (found,) = distances(reference, reference + 1e-9)
    assert (found.token, found.token_error) == (2, math.inf)
    assert found.error < 1e-8


def test_each_tokens_figures_are_those_of_its_own_two_vectors() -> None:
    generator = torch.Generator().manual_seed(7)
    reference = torch.randn(5, 9, 16, dtype=torch.float64, generator=generator)
    reference *= torch.logspace(-150, 150, 45, dtype=torch.float64).reshape(5, 9, 1)
    noise = torch.randn(5, 9, 16, dtype=torch.float64, generator=generator)
    measured = reference * (3 + noise)
    measured[1, 2] = -reference[1, 2]
    found = compare_tokens(reference, measured)
    for token, (expected, other) in enumerate(
        zip(reference.reshape(45, 16), measured.reshape(45, 16), strict=True)
    ):
        figures = numpy_figures(expected, other)
        assert float(found.cosine[token]) == pytest.approx(figures["cosine"], rel=1e-12)
        assert float(found.relative[token]) == pytest.approx(figures["relative_error"], rel=1e-12)
    assert float(found.cosine[11]) == -1


def test_the_cosine_of_a_token_that_is_zero_on_one_side_only_is_zero() -> None:
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert compare_tokens(zero, one).worst_cosine == 0
    assert compare_tokens(one, zero).worst_cosine == 0
    assert compare_tokens(one, zero).worst_relative == 1


def test_rounding_takes_no_cosine_beyond_one() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2000, 7, dtype=torch.float64, generator=generator)
    for sign in (1.0, -1.0):
        cosines = compare_tokens(vectors, sign * vectors).cosine
        assert 1 - 1e-15 <= float(cosines.abs().min()) <= float(cosines.abs().max()) <= 1
        for vector in vectors[:200]:
            assert abs(compare(vector, sign * vector).cosine) <= 1


def test_the_largest_numbers_of_fp64_are_compared_as_others_are() -> None:
    large = torch.full((2, 3), 1.7e308, dtype=torch.float64)
    small = large / 2.0**900
    assert compare(large, large / 2).relative_error == 0.5
    assert compare_tokens(large, large / 2).worst_relative == 0.5
    assert compare(small, large).relative_error == pytest.approx(2.0**900, rel=1e-12)
    assert compare(large, small).relative_error == 1
    tiny, wide = small / small * 1e-200, large / large * 1e100
    assert compare(tiny, wide).mse == compare(wide, tiny).mse == pytest.approx(1e200, rel=1e-12)


def test_tensors_of_the_two_ends_of_fp64_are_compared_too() -> None:
    large = torch.tensor([1e300, 1e300], dtype=torch.float64)
    small = torch.tensor([1e-300, 1e-300], dtype=torch.float64)
    assert compare(large, small).relative_error == 1
    assert compare(small, large).relative_error == math.inf
    mixed = torch.tensor([1e200, 1e-200, 0.0], dtype=torch.float64)
    assert compare(mixed, 2 * mixed).relative_error == pytest.approx(1)
    assert compare(mixed, 2 * mixed).cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("error", "norm", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (0.5, 0.0, math.inf), (3.0, 1.0, 3.0), (3.0, 2.0, 1.5)],
)
def test_an_error_over_a_norm_of_zero_is_infinite_unless_it_is_zero_too(
    error: float, norm: float, expected: float
) -> None:
    assert ratio(error, norm) == expected


def test_a_percentile_that_is_one_of_the_values_is_that_value_beside_infinity_too() -> None:
    values = torch.tensor([math.inf, 1.0, 2.0], dtype=torch.float64)
    assert percentiles_of(values)[0] == Percentile(50.0, 2.0)
    assert percentiles_of(values)[-1] == Percentile(99.9, None)


def test_percentiles_are_numpys_linear_ones() -> None:
    values = torch.rand(37, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for found in percentiles_of(values):
        right = np.percentile(values.numpy(), found.percent)
        assert found.relative_error == pytest.approx(right, rel=1e-12)


def test_the_principal_components_are_the_eigenvectors_of_the_covariance() -> None:
    generator = np.random.default_rng(4)
    tokens = generator.normal(size=(40, 6)) * [9.0, 5.0, 3.0, 1.0, 0.5, 0.1] + 20.0
    others = generator.normal(size=(11, 6)) + 20.0
    _, vectors = np.linalg.eigh(np.cov(tokens.T, bias=True))
    strongest = vectors[:, ::-1][:, :3]
    scores = (tokens - tokens.mean(axis=0)) @ strongest
    peaks = np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0)
    scale = np.sign(peaks) / scores.std(axis=0)
    assert principal_components(tokens) == pytest.approx(scores * scale, abs=1e-9)
    assert principal_components(others, tokens) == pytest.approx(
        (others - tokens.mean(axis=0)) @ strongest * scale, abs=1e-9
    )


def test_components_are_whitened_at_every_scale() -> None:
    tokens = np.random.default_rng(5).normal(size=(40, 6))
    assert principal_components(tokens * 1e-30) == pytest.approx(principal_components(tokens))


def test_features_without_variance_have_no_components() -> None:
    assert not principal_components(np.full((5, 4), 3.0)).any()
    line = principal_components(np.outer([1.0, 0.0, -2.0], [1.0, 2.0]))
    assert line[:, 0] == pytest.approx(np.array([-4, -1, 5]) / 14**0.5)
    assert not line[:, 1:].any()


def test_colours_are_the_logistic_function_of_twice_the_components() -> None:
    assert as_colours(np.array([0.0, 0.5, -1.0])) == pytest.approx([0.5, 0.7310586, 0.1192029])


def test_tensors_of_different_shapes_or_without_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compare(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(torch.ones(0, 3), torch.ones(0, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_compared_in_fp64(dtype: torch.dtype) -> None:
    reference = torch.linspace(-3, 3, 30, dtype=torch.float64).reshape(3, 10)
    measured = reference.to(dtype)
    expected = numpy_figures(reference, measured)
    found = compare(reference, measured)
    assert found.relative_error == pytest.approx(expected["relative_error"], rel=1e-12, abs=1e-18)
    assert found.identical == (dtype == torch.float64)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 33),
    st.integers(-83, 83),
    st.floats(-12, 1),
)
def test_properties_of_the_figures(
    seed: int, tokens: int, width: int, scale_power: int, error_power: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    measured = reference + 10.0**error_power * noise
    scale = 2.0**scale_power  # which rounds nothing
    plain, scaled = compare(reference, measured), compare(reference * scale, measured * scale)
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-9)
    assert scaled.max_abs_diff == pytest.approx(plain.max_abs_diff * scale, rel=1e-9)
    assert -1 <= plain.cosine <= 1
    if plain.relative_error < 1:  # the angle of a ball of that radius around the reference
        assert plain.cosine >= math.sqrt(1 - plain.relative_error**2) - 1e-12
    each = compare_tokens(reference, measured)
    assert each.worst_relative >= plain.relative_error * (1 - 1e-12)
    errors = [found.relative_error or 0.0 for found in percentiles_of(each.relative)]
    assert errors == sorted(errors)
    order = torch.randperm(tokens, generator=generator)
    shuffled = compare(reference[order], measured[order])
    assert shuffled.relative_error == pytest.approx(plain.relative_error, rel=1e-12)


def test_the_limits_follow_from_what_the_run_declares() -> None:
    assert Declared("fp32", "fp32", "fp32").arithmetic == "fp32"
    assert Declared("fp32", "fp32", "hf32").arithmetic == "hf32"
    assert Declared("fp32", "tf32", "fp32").arithmetic == "tf32"
    assert Declared("bf16", "fp32", "hf32").arithmetic == "bf16"
    for name, limits in LIMITS.items():
        assert limits.arithmetic == name
        assert limits.reason, name
    assert (LIMITS["fp32"].relative_error, LIMITS["fp32"].cosine) == (0.01, 0.999)


def test_tokens_on_the_second_axis_are_counted_row_by_row() -> None:
    reference = torch.ones(1, 3, 2, 4, dtype=torch.float64)
    measured = reference.clone()
    measured[0, :, 1, 2] = 5
    (found,) = distances(reference, measured, token_axis=1)
    assert (found.token, found.token_error) == (6, 4.0)
