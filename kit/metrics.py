"""Pure functions on two tensors: how far one is from the other, in fp64 on the CPU.

`reference` is what is held to be right, `measured` what is judged. Both may be of any floating
dtype and on any device; every figure is computed in fp64 on the CPU. Sums of squares are taken
of values scaled by a power of two, so that nothing overflows or vanishes at any scale.
"""

import math
from dataclasses import dataclass

import torch

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Comparison:
    """How far `measured` is from `reference`, all elements taken as one vector.

    Attributes:
        shape: of both tensors.
        relative_error: ||measured - reference|| / ||reference||, Euclidean; 0 where both are
            zero everywhere, infinite where only the reference is or where a value is not finite.
        cosine: of the angle between the two; 1 where both are zero, 0 where one is, NaN where
            a value is not finite.
        mse: mean of the squared differences; NaN or infinite where a value is not finite.
        max_abs_diff: largest difference by magnitude; NaN where a value is not finite.
        reference_norm: ||reference||.
        broken: first place of a NaN or infinity on either side; None where all are finite.
        broken_side: the side that `broken` is on; both where it is in both tensors.
        broken_count: how many elements are NaN or infinite on either side.
        identical: whether the two are equal to the last bit, as values.
    """

    shape: tuple[int, ...]
    relative_error: float
    cosine: float
    mse: float
    max_abs_diff: float
    reference_norm: float
    broken: tuple[int, ...] | None
    broken_side: str | None
    broken_count: int
    identical: bool

    @property
    def finite(self) -> bool:
        """Whether every value on both sides is finite."""
        return self.broken_count == 0


@dataclass(frozen=True)
class TokenErrors:
    """How far each token (one vector along the last axis) of `measured` is from `reference`.

    Attributes:
        relative: fp64, one per token, in the order of the leading axes flattened.
        cosine: fp64, the same.
        worst: position of the largest relative error; of the first NaN where there is one.
        percentiles: (percent, relative error) by linear interpolation, as numpy has it.
    """

    relative: torch.Tensor
    cosine: torch.Tensor
    worst: int
    percentiles: tuple[tuple[float, float], ...]

    @property
    def worst_relative(self) -> float:
        """Relative error of the worst token."""
        return float(self.relative[self.worst])

    @property
    def worst_cosine(self) -> float:
        """Cosine of the worst token."""
        return float(self.cosine[self.worst])


def to_fp64(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values on the CPU in fp64, outside of any autograd graph."""
    return tensor.detach().to("cpu").to(torch.float64)


def scale_of(*tensors: torch.Tensor) -> float:
    """Return the power of two just above the largest magnitude; 1 where all are zero."""
    largest = max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return 1.0
    return math.ldexp(1.0, min(math.frexp(largest)[1], 1023))


def compare(reference: torch.Tensor, measured: torch.Tensor) -> Comparison:
    """Compare two tensors of one shape as two vectors.

    Raises:
        ValueError: where the shapes differ or there is nothing to compare.
    """
    expected, found = checked_pair(reference, measured)
    place, side, count = first_broken(expected, found)
    if count:
        nan = math.nan
        return Comparison(
            tuple(expected.shape), math.inf, nan, nan, nan, nan, place, side, count, False
        )
    scale = scale_of(expected, found)
    scaled_expected, scaled_found = expected / scale, found / scale
    difference = scaled_found - scaled_expected
    norm, error = norm_of(scaled_expected), norm_of(difference)
    mse = float(difference.square().mean()) * scale * scale
    return Comparison(
        shape=tuple(expected.shape),
        relative_error=ratio(error, norm),
        cosine=cosine_of(scaled_expected.flatten(), scaled_found.flatten()),
        mse=mse,
        max_abs_diff=float(difference.abs().max()) * scale,
        reference_norm=norm * scale,
        broken=None,
        broken_side=None,
        broken_count=0,
        identical=bool(torch.equal(expected, found)),
    )


def checked_pair(
    reference: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both tensors in fp64 on the CPU.

    Raises:
        ValueError: where the shapes differ or there is nothing to compare.
    """
    if reference.shape != measured.shape:
        raise ValueError(
            f"shapes differ: reference {tuple(reference.shape)}, measured {tuple(measured.shape)}"
        )
    if reference.numel() == 0:
        raise ValueError(f"nothing to compare in tensors of shape {tuple(reference.shape)}")
    return to_fp64(reference), to_fp64(measured)


def first_broken(
    reference: torch.Tensor, measured: torch.Tensor
) -> tuple[tuple[int, ...] | None, str | None, int]:
    """Return the first place that is NaN or infinite, its side, and how many there are."""
    in_reference, in_measured = ~torch.isfinite(reference), ~torch.isfinite(measured)
    either = in_reference | in_measured
    count = int(either.sum())
    if count == 0:
        return None, None, 0
    place = tuple(int(i) for i in either.nonzero()[0])
    if bool(in_reference[place]) and bool(in_measured[place]):
        return place, "both", count
    return place, "reference" if bool(in_reference[place]) else "measured", count


def norm_of(vector: torch.Tensor) -> float:
    """Return the Euclidean norm of all elements; they are scaled to at most 1 first."""
    scale = scale_of(vector)
    return float(torch.linalg.vector_norm(vector / scale)) * scale


def ratio(error: float, norm: float) -> float:
    """Return error / norm: 0 for 0 / 0, infinite for anything else over 0."""
    if norm == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / norm


def cosine_of(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the cosine between two vectors: 1 where both are zero, 0 where one is."""
    norms = norm_of(left), norm_of(right)
    if 0.0 in norms:
        return 1.0 if norms[0] == norms[1] else 0.0
    return max(-1.0, min(1.0, float(torch.dot(left / norms[0], right / norms[1]))))


def compare_tokens(reference: torch.Tensor, measured: torch.Tensor) -> TokenErrors:
    """Compare two tensors token by token; the last axis is a token's vector.

    A token whose reference is zero has the error 0 where `measured` is zero too, else infinity.
    One that holds a NaN or infinity has the error infinity and the cosine NaN.

    Raises:
        ValueError: where the shapes differ or there is nothing to compare.
    """
    expected, found = checked_pair(reference, measured)
    expected, found = (t.reshape(-1, t.shape[-1]) for t in (expected, found))
    finite = (torch.isfinite(expected) & torch.isfinite(found)).all(dim=1)
    scale = torch.maximum(expected.abs(), found.abs()).amax(dim=1, keepdim=True)
    scale = torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))
    scale = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent.clamp(max=1023))
    expected, found = expected / scale, found / scale  # by a power of two, which rounds nothing
    norm = torch.linalg.vector_norm(expected, dim=1)
    found_norm = torch.linalg.vector_norm(found, dim=1)
    error = torch.linalg.vector_norm(found - expected, dim=1)
    infinity = torch.full_like(error, math.inf)
    relative = torch.where(norm > 0, error / norm, torch.where(error > 0, infinity, error))
    relative = torch.where(finite, relative, infinity)
    product = norm * found_norm
    dot = (expected * found).sum(dim=1)
    both_zero = ((norm == 0) & (found_norm == 0)).to(torch.float64)
    cosine = torch.where(product > 0, (dot / product).clamp(-1, 1), both_zero)
    cosine = torch.where(finite, cosine, torch.full_like(cosine, math.nan))
    return TokenErrors(relative, cosine, int(relative.argmax()), percentiles_of(relative))


def percentiles_of(values: torch.Tensor) -> tuple[tuple[float, float], ...]:
    """Return PERCENTILES of a vector by linear interpolation; infinite ones stay infinite."""
    ordered = values.sort().values
    found = []
    for percent in PERCENTILES:
        position = (len(ordered) - 1) * percent / 100
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        below, above = float(ordered[low]), float(ordered[high])
        between = position - low
        found.append((percent, below if between == 0 else below + (above - below) * between))
    return tuple(found)
