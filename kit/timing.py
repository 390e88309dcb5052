"""From samples to figures: statistics, what a sample count supports, steadiness, noise.

Pure functions on lists of milliseconds; nothing here measures, prints or knows a device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.records import described

PERCENTILES = (50, 90, 99)
STEADY_TOLERANCE = 0.03  # of the median: a smaller step from window to window is no warm-up
NOISE_FACTOR = 2.0  # standard errors within which two windows count as equal
VARIATION_LIMIT = 0.10  # standard deviation over mean above which a warning is due
DRIFT_TOLERANCE = 0.05  # of the median, from the first third of the samples to the last
OUTLIER_FACTOR = 1.5  # a sample this many times the median is an outlier
NORMAL_MAD = 1.4826  # standard deviation over median absolute deviation, normal distribution
NORMAL_STEP = 0.9539  # median step between neighbours over standard deviation, the same
MEDIAN_ERROR = 1.2533  # standard error of the median over that of the mean, the same: sqrt(pi/2)


@dataclass(frozen=True)
class Statistics:
    """Figures of a list of times, under the names that the published report uses."""

    iterations: int = described("How many samples the figures stand on.")
    mean_ms: float = described("Arithmetic mean, in ms.")
    stddev_ms: float = described("Standard deviation of the samples (numpy.std), in ms.")
    min_ms: float = described("Smallest sample, in ms.")
    max_ms: float = described("Largest sample, in ms.")
    p50_ms: float = described("50th percentile, linear between samples (numpy.percentile), in ms.")
    p90_ms: float = described("90th percentile, linear between samples, in ms.")
    p99_ms: float = described("99th percentile, linear between samples, in ms.")
    unsupported: tuple[str, ...] = described(
        "Names of the figures above that so few samples cannot support: a percentile p needs "
        "100 / (100 - p) samples, a standard deviation two."
    )
    samples_ms: tuple[float, ...] = described("Every sample in the order it was taken, in ms.")


def statistics(samples_ms: Sequence[float]) -> Statistics:
    """Return the figures of at least one sample, each in ms.

    Raises:
        ValueError: for no samples.
    """
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

    Args:
        before: samples of the earlier window.
        after: samples of the later one.
        tolerance: share of the earlier median that counts as no move.
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
    if mean > 0 and deviation > VARIATION_LIMIT * mean:
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
