"""Statistics, what a sample count supports, steadiness and dispersion, as pure functions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import statistics

positive_ms = st.floats(min_value=1e-4, max_value=1e6)


def noisy(count: int, mean: float, share: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, share * mean) for _ in range(count)]


@given(st.lists(positive_ms, min_size=1, max_size=300))
def test_the_figures_are_numpys_on_the_stored_samples(samples: list[float]) -> None:
    found = statistics.statistics(samples)
    values = np.array(found.samples_ms)
    assert list(values) == samples
    assert found.iterations == len(samples)
    assert found.mean_ms == np.mean(values)
    assert found.stddev_ms == np.std(values)
    assert (found.min_ms, found.max_ms) == (np.min(values), np.max(values))
    assert found.p50_ms == np.percentile(values, 50, method="linear")
    assert found.p90_ms == np.percentile(values, 90, method="linear")
    assert found.p99_ms == np.percentile(values, 99, method="linear")


def test_statistics_of_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.statistics([])


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, ("stddev_ms", "p50_ms", "p90_ms", "p99_ms")),
        (2, ("p90_ms", "p99_ms")),
        (9, ("p90_ms", "p99_ms")),
        (10, ("p99_ms",)),
        (20, ("p99_ms",)),
        (99, ("p99_ms",)),
        (100, ()),
    ],
)
def test_a_percentile_is_supported_once_a_sample_can_lie_beyond_it(
    count: int, names: tuple[str, ...]
) -> None:
    assert statistics.statistics([1.0] * count).unsupported == names


@pytest.mark.parametrize(
    ("percentile", "count"), [(50, 2), (66, 3), (67, 4), (90, 10), (97, 34), (99, 100)]
)
def test_a_percentile_needs_a_whole_number_of_samples_not_one_too_few(
    percentile: int, count: int
) -> None:
    assert statistics.samples_needed(percentile) == count


def test_a_step_of_three_percent_between_windows_is_steady_and_a_larger_one_is_not() -> None:
    assert statistics.is_steady([100.0] * 5 + [103.0] * 5, window=5)
    assert not statistics.is_steady([100.0] * 5 + [103.2] * 5, window=5)
    assert not statistics.is_steady([103.2] * 5 + [100.0] * 5, window=5)


def test_too_few_samples_are_not_steady() -> None:
    assert not statistics.is_steady([5.0] * 9, window=5)
    assert statistics.is_steady([5.0] * 10, window=5)


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_one_value_is_steady_soon(seed: int) -> None:
    samples = noisy(20, 8.0, 0.05, seed)
    assert any(statistics.is_steady(samples[:count], window=5) for count in range(10, 21))


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_hide_a_drift_for_long(seed: int) -> None:
    samples = [(8.0 + 0.4 * i) * factor for i, factor in enumerate(noisy(60, 1.0, 0.05, seed))]
    assert not any(statistics.is_steady(samples[:count], window=5) for count in range(20, 61))


@pytest.mark.parametrize("seed", range(20))
def test_a_drift_of_two_percent_per_forward_is_not_steady(seed: int) -> None:
    quiet = noisy(60, 1.0, 0.002, seed)
    samples = [8.0 * 1.02**i * factor for i, factor in enumerate(quiet)]
    assert not any(statistics.is_steady(samples[: 10 + i], window=5) for i in range(50))


def test_a_first_slow_window_is_not_steady_and_the_next_two_equal_ones_are() -> None:
    samples = [90.0, 40.0, 12.0, 9.0, 8.5, 8.0, 8.1, 8.0, 8.1, 8.0]
    assert not statistics.is_steady(samples, window=5)
    assert statistics.is_steady([*samples, 8.1, 8.0, 8.0, 8.1, 8.0], window=5)


def test_a_step_within_the_noise_of_two_windows_is_no_move() -> None:
    # Steps of 4 between neighbours: noise 2 x 1.2533 x 4 / 0.9539 x sqrt(1/8 + 1/8) = 5.25, while
    # for windows of 8 and 32 it is 4.15.
    assert not statistics.shifted([98.0, 102.0] * 4, [103.0, 107.0] * 4, tolerance=0.0)
    assert statistics.shifted([98.0, 102.0] * 4, [103.5, 107.5] * 4, tolerance=0.0)
    assert not statistics.shifted([98.0, 102.0] * 4, [102.0, 106.0] * 16, tolerance=0.0)
    assert statistics.shifted([98.0, 102.0] * 4, [102.3, 106.3] * 16, tolerance=0.0)
    assert statistics.shifted([98.0, 102.0] * 16, [102.3, 106.3] * 4, tolerance=0.0)


def test_a_step_of_the_tolerance_is_no_move_and_a_larger_one_is() -> None:
    assert not statistics.shifted([100.0, 100.0], [103.0, 103.0], tolerance=0.03)
    assert statistics.shifted([100.0, 100.0], [103.5, 103.5], tolerance=0.03)


def test_two_samples_have_a_noise_and_one_has_none() -> None:
    assert statistics.step_noise([5.0, 7.0]) == pytest.approx(2 / 0.9539)
    assert statistics.step_noise([5.0]) == 0


def test_each_warning_begins_just_beyond_its_limit() -> None:
    assert statistics.dispersion_warnings([9.0, 11.0]) == []  # 10 % of the mean
    assert len(statistics.dispersion_warnings([0.89, 1.11])) == 1
    steady = [10.0] * 28
    assert statistics.dispersion_warnings([*steady, 15.0]) == []  # 1.5 times the median
    drifted = [100.0] * 6 + [106.0] * 3
    assert statistics.dispersion_warnings(drifted) == [
        "drifted by +6% from the first third of the samples to the last: not steady, raise --warmup"
    ]
    assert statistics.dispersion_warnings(drifted[1:]) == []  # too few to say so


def test_quiet_samples_give_no_warning() -> None:
    assert statistics.dispersion_warnings(noisy(30, 8.0, 0.01, seed=1)) == []
    assert statistics.dispersion_warnings([8.0]) == []


def test_wide_samples_outliers_and_a_drift_are_each_named() -> None:
    wide = statistics.dispersion_warnings(noisy(60, 8.0, 0.15, seed=2))
    assert "varies by 1" in wide[0]
    outlier = statistics.dispersion_warnings([8.0] * 29 + [13.0])
    assert outlier == [
        "varies by 11% of the mean: something else may be using the device or the host",
        "1 of 30 samples took more than 1.5 times the median: "
        "the percentiles say more than the mean",
    ]
    drift = statistics.dispersion_warnings([8.0 + 0.05 * i for i in range(30)])
    assert len(drift) == 1
    assert drift[0].startswith("drifted by +12% from the first third")


@given(st.lists(positive_ms, min_size=2, max_size=100), positive_ms)
def test_spread_and_noise_scale_with_the_samples(samples: list[float], factor: float) -> None:
    scaled = [sample * factor for sample in samples]
    assert math.isclose(
        statistics.spread(scaled),
        statistics.spread(samples) * factor,
        rel_tol=1e-6,
        abs_tol=1e-6 * factor,
    )
    assert statistics.step_noise(samples) >= 0


def test_spread_is_the_standard_deviation_of_normal_samples_and_ignores_outliers() -> None:
    samples = noisy(4000, 10.0, 0.03, seed=3)
    assert statistics.spread(samples) == pytest.approx(0.3, rel=0.05)
    assert statistics.step_noise(samples) == pytest.approx(0.3, rel=0.05)
    assert statistics.spread([*samples, *[1000.0] * 20]) == pytest.approx(0.3, rel=0.05)
