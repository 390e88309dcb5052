"""From samples to figures: latencies in ms, and how far one tensor is from another.

Pure functions. Of two tensors `reference` is what is held to be right, `measured` what is judged;
both may be of any floating dtype and on any device, and every figure is computed in fp64 on the
CPU. Sums of squares are taken of values scaled by a power of two, so that nothing overflows or
vanishes at any scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kit.records import Percentile, Statistics

PERCENTILES = (50, 90, 99)
STEADY_TOLERANCE = 0.03  # of the median: a smaller step from window to window is no warm-up
NOISE_FACTOR = 2.0  # standard errors within which two windows count as equal
VARIATION_LIMIT = 0.10  # standard deviation over mean above which a warning is due
DRIFT_TOLERANCE = 0.05  # of the median, from the first third of the samples to the last
OUTLIER_FACTOR = 1.5  # a sample this many times the median is an outlier
NORMAL_MAD = 1.4826  # standard deviation over median absolute deviation, normal distribution
NORMAL_STEP = 0.9539  # median step between neighbours over standard deviation, the same
MEDIAN_ERROR = 1.2533  # standard error of the median over that of the mean, the same: sqrt(pi/2)


def statistics(samples_ms: Sequence[float]) -> Statistics:
    """Return the figures of samples in ms; ValueError where there are none."""
    if not samples_ms:
        raise ValueError("statistics of no samples")
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, PERCENTILES))
    return Statistics(
        iterations=len(values),
        mean_ms=float(values.mean()),
        stddev_ms=float(values.std()),
        min_ms=float(values.min()),
        max_ms=float(values.max()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        unsupported=unsupported(len(values)),
        samples_ms=tuple(float(value) for value in samples_ms),
    )


def samples_needed(percentile: int) -> int:
    """Return how many samples a percentile needs: so many that one of them can lie beyond it."""
    return math.ceil(100 / (100 - percentile))


def unsupported(count: int) -> tuple[str, ...]:
    """Return the names of the figures that `count` samples cannot support."""
    names = [f"p{p}_ms" for p in PERCENTILES if count < samples_needed(p)]
    return ("stddev_ms", *names) if count < 2 else tuple(names)


def median(samples_ms: Sequence[float]) -> float:
    """Return the median of at least one sample."""
    return float(np.median(samples_ms))


def step_noise(samples_ms: Sequence[float]) -> float:
    """Return the samples' standard deviation, estimated from the steps between neighbours.

    A drift hardly enters it, as it makes every single step small (after von Neumann's ratio).
    """
    if len(samples_ms) < 2:
        return 0.0
    return float(np.median(np.abs(np.diff(samples_ms)))) / NORMAL_STEP


def shifted(before: Sequence[float], after: Sequence[float], tolerance: float) -> bool:
    """Return whether the median moved from one window to the next, beyond noise and tolerance.

    The tolerance is a share of the earlier window's median.
    """
    error = MEDIAN_ERROR * step_noise([*before, *after])
    noise = NOISE_FACTOR * error * math.sqrt(1 / len(before) + 1 / len(after))
    return abs(median(after) - median(before)) > max(tolerance * median(before), noise)


def is_steady(samples_ms: Sequence[float], window: int) -> bool:
    """Return whether the last two windows of samples agree; False where there are not so many.

    Windows twice, four times ... as long must agree too, as far as the samples reach: noise that
    hides a drift between two short ones does not hide it between two long ones.
    """
    if len(samples_ms) < 2 * window:
        return False
    while 2 * window <= len(samples_ms):
        before, after = samples_ms[-2 * window : -window], samples_ms[-window:]
        if shifted(before, after, STEADY_TOLERANCE):
            return False
        window *= 2
    return True


def spread(samples_ms: Sequence[float]) -> float:
    """Return the samples' standard deviation as their median absolute deviation tells it, in ms.

    Single outliers do not enter it.
    """
    values = np.asarray(samples_ms, dtype=np.float64)
    return float(NORMAL_MAD * np.median(np.abs(values - np.median(values))))


def dispersion_warnings(samples_ms: Sequence[float]) -> list[str]:
    """Return what makes samples doubtful: they vary, some stand far out, they drift."""
    count = len(samples_ms)
    if count < 2:
        return []
    found = []
    mean, deviation = float(np.mean(samples_ms)), float(np.std(samples_ms))
    outliers = sum(sample > OUTLIER_FACTOR * median(samples_ms) for sample in samples_ms)
    if deviation > VARIATION_LIMIT * mean:
        found.append(
            f"varies by {deviation / mean:.0%} of the mean: "
            "something else may be using the device or the host"
        )
    if outliers:
        found.append(
            f"{outliers} of {count} samples took more than {OUTLIER_FACTOR:g} times the median: "
            "the percentiles say more than the mean"
        )
    third = count // 3
    if third >= 3 and shifted(samples_ms[:third], samples_ms[-third:], DRIFT_TOLERANCE):
        change = median(samples_ms[-third:]) / median(samples_ms[:third]) - 1
        found.append(
            f"drifted by {change:+.0%} from the first third of the samples to the last: "
            "not steady, raise --warmup"
        )
    return found


TOKEN_PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class VectorError:
    """How far `measured` is from `reference`, all elements taken as one vector.

    Where a value is not finite the relative error is infinite and the other figures are NaN.
    """

    # ||measured - reference|| / ||reference||, Euclidean; 0 where both are zero everywhere,
    # infinite where only the reference is.
    relative_error: float
    cosine: float  # of the angle between the two; 1 where both are zero, 0 where one is
    mse: float  # mean of the squared differences
    max_abs_diff: float
    identical: bool  # whether the two are equal to the last bit, as values
    broken: str = ""  # how many values are NaN or infinite, and where the first is


@dataclass(frozen=True)
class TokenErrors:
    """How far each token (one vector along the last axis) of `measured` is from `reference`."""

    relative: torch.Tensor  # fp64, one per token, in the order of the leading axes flattened
    cosine: torch.Tensor  # the same
    worst: int  # position of the largest relative error

    @property
    def worst_relative(self) -> float:
        """Relative error of the worst token."""
        return float(self.relative[self.worst])

    @property
    def worst_cosine(self) -> float:
        """Cosine of the worst token."""
        return float(self.cosine[self.worst])


def finite(value: float) -> float | None:
    """Return the value, None where it is NaN or infinite, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def compare(reference: torch.Tensor, measured: torch.Tensor) -> VectorError:
    """Compare two tensors of one shape as two vectors; ValueError as in checked_pair."""
    expected, found = checked_pair(reference, measured)
    relative, cosine = row_errors(expected.reshape(1, -1), found.reshape(1, -1))
    if cosine.isnan():
        broken = broken_values(expected, found)
        return VectorError(math.inf, math.nan, math.nan, math.nan, identical=False, broken=broken)
    difference = found - expected
    return VectorError(
        relative_error=float(relative),
        cosine=float(cosine),
        mse=float(difference.square().mean()),
        max_abs_diff=float(difference.abs().max()),
        identical=bool(torch.equal(expected, found)),
    )


def compare_tokens(reference: torch.Tensor, measured: torch.Tensor) -> TokenErrors:
    """Compare two tensors by token, the last axis; ValueError as in checked_pair."""
    expected, found = checked_pair(reference, measured)
    width = expected.shape[-1]
    relative, cosine = row_errors(expected.reshape(-1, width), found.reshape(-1, width))
    return TokenErrors(relative, cosine, int(relative.argmax()))


def checked_pair(
    reference: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both in fp64 on the CPU; ValueError for different shapes or nothing to compare."""
    if reference.shape != measured.shape:
        raise ValueError(
            f"shapes differ: reference {tuple(reference.shape)}, measured {tuple(measured.shape)}"
        )
    if reference.numel() == 0:
        raise ValueError(f"nothing to compare in tensors of shape {tuple(reference.shape)}")
    expected, found = (t.detach().to("cpu").to(torch.float64) for t in (reference, measured))
    return expected, found


def broken_values(reference: torch.Tensor, measured: torch.Tensor) -> str:
    """Say how many elements are NaN or infinite on either side, one at least, and where."""
    sides = {"reference": ~torch.isfinite(reference), "measured": ~torch.isfinite(measured)}
    either = sides["reference"] | sides["measured"]
    place = tuple(either.nonzero()[0].tolist())
    on = [side for side, broken in sides.items() if broken[place]]
    where = on[0] if len(on) == 1 else "on both sides"
    return f"{int(either.sum())} values are NaN or infinite, the first at {place} ({where})"


def row_errors(
    reference: torch.Tensor, measured: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's relative error and cosine, of two fp64 matrices of one shape.

    A row whose reference is zero has the error 0 where `measured` is zero too, else infinity. One
    that holds a NaN or infinity has the error infinity and the cosine NaN.
    """
    (left, of_left), (right, of_right) = scaled(reference), scaled(measured)
    common = torch.maximum(of_left, of_right)
    # Powers of two round nothing; without them squares overflow or vanish.
    difference, of_both = scaled(right * (of_right / common) - left * (of_left / common))
    norm, other, error = (torch.linalg.vector_norm(t, dim=1) for t in (left, right, difference))
    relative = error / norm * (of_both * (common / of_left)).flatten()
    relative = relative.nan_to_num(nan=0.0, posinf=math.inf)  # 0 / 0 is 0
    cosine = ((left * right).sum(dim=1) / (norm * other)).clamp(-1, 1)
    both_zero = ((norm == 0) & (other == 0)).to(cosine)
    cosine = torch.where((norm == 0) | (other == 0), both_zero, cosine)
    finite = torch.isfinite(norm) & torch.isfinite(other)
    return torch.where(finite, relative, math.inf), torch.where(finite, cosine, math.nan)


def scaled(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows over the powers of two above their largest elements, and these, 1 of zeros."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(max=1023)
    powers = torch.ldexp(torch.ones_like(largest), exponent)
    return rows / powers, powers


def ratio(error: float, norm: float) -> float:
    """Return error / norm: 0 for 0 / 0, infinite for anything else over 0."""
    if norm == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / norm


def percentiles_of(errors: torch.Tensor) -> tuple[Percentile, ...]:
    """Return TOKEN_PERCENTILES of a vector as numpy has them, by linear interpolation."""
    ordered = errors.sort().values
    found = []
    for percent in TOKEN_PERCENTILES:
        position = (len(ordered) - 1) * percent / 100
        low = math.floor(position)
        below, above = float(ordered[low]), float(ordered[math.ceil(position)])
        # numpy.percentile makes NaN of two infinities.
        error = below if above == below else below + (above - below) * (position - low)
        found.append(Percentile(percent, finite(error)))
    return tuple(found)


CONTRAST = 2.0  # the sigmoid's slope that DINOv3's authors draw features with
Tokens = npt.NDArray[np.floating]


def principal_components(tokens: Tokens, basis_of: Tokens | None = None) -> Tokens:
    """Return tokens, patches x width, on the first three principal components, whitened.

    `basis_of` are the tokens whose mean, components and spread are the basis, these by default: of
    them each column has mean 0 and standard deviation 1, and its largest entry by magnitude is
    positive, so that the same features give the same colours. Zeros where there is no variance.
    """
    wide = tokens.astype(np.float64)
    basis = wide if basis_of is None else basis_of.astype(np.float64)
    mean = basis.mean(axis=0)
    left, values, components = np.linalg.svd(basis - mean, full_matrices=False)
    usable = min(3, int((values > values.max(initial=0.0) * 1e-10).sum()))
    scores = np.zeros((len(tokens), 3))
    peaks = np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0)[0, :usable]
    scale = np.sqrt(len(basis)) * np.sign(peaks) / values[:usable]
    scores[:, :usable] = (wide - mean) @ components[:usable].T * scale
    return scores


def as_colours(components: Tokens) -> Tokens:
    """Return whitened components as parts of red, green and blue, from 0 to 1."""
    shares: Tokens = 1.0 / (1.0 + np.exp(-CONTRAST * components))
    return shares
