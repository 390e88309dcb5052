"""Warm-up, samples and the conditions of both, on devices of set speeds and by a set clock."""

import contextlib
import gc
import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.benchmark import measure
from kit.benchmark.measure import Meter, Plan
from kit.device.health import HealthChecks
from kit.device.meters import Sample
from kit.distributed import Group, Rank
from kit.errors import DeviceError
from kit.output import RunLog
from kit.records import Harness, WarmUp
from tests import report_records
from tests.test_benchmark_limit import SetSpeed

ALONE = Group(Rank())
MakeMeter = Callable[..., Meter]


class TwoRanks(Group):
    """A group whose other rank has twice what this one has."""

    def __init__(self) -> None:
        """Stand for the first of two."""
        super().__init__(Rank(0, 0, 2, 2))
        self.moments: list[str] = []

    def barrier(self, name: str) -> None:
        """Note what is waited for."""
        self.moments.append(name)

    def gather(self, own: Any, name: str) -> list[Any]:  # noqa: ANN401 - as Group has it
        """Return this rank's and the other's."""
        self.moments.append(name)
        return [own, 2 * own]


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> MakeMeter:
    """Make a meter of a device whose calls take set times, in ms, by a clock that they move on."""
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # half a second here, beside torch

    def made(times_ms: Iterable[float], group: Group = ALONE) -> Meter:
        times = iter(times_ms)

        def took_ms() -> float:
            nonlocal now_s
            took = next(times)
            now_s += took / 1e3
            return took

        stopwatch = SetSpeed(took_ms)
        return Meter(stopwatch, HealthChecks(stopwatch.device), group, RunLog(silent=True))

    return made


def nothing() -> Any:  # noqa: ANN401 - stands for features
    """Be a forward."""


def growing(first_ms: float) -> list[float]:
    """Return times that never become steady; no iterator, so that a test can be run again."""
    return [first_ms * 1.05**number for number in range(200)]


# ---- How many forwards ---------------------------------------------------------------------------


def test_the_forwards_are_as_many_as_asked_or_as_the_least_seconds_need() -> None:
    plan = Plan(iterations=4, warm_up=0, min_seconds=2.0)
    assert plan.count(1000.0, ALONE) == 4
    assert plan.count(500.0, ALONE) == 4
    assert plan.count(300.0, ALONE) == 7  # 6 would take 1.8 s
    assert replace(plan, min_seconds=2e-6).count(0.0, ALONE) == 4  # a microsecond each, at least
    assert replace(plan, min_seconds=9e-6).count(0.0, ALONE) == 9


def test_a_limit_of_time_shortens_a_measurement_to_five_forwards_at_least() -> None:
    plan = Plan(iterations=20, warm_up=0, limit_s=3.0)
    assert plan.count(100.0, ALONE) == 20
    assert plan.count(250.0, ALONE) == 12
    assert plan.count(290.0, ALONE) == 10
    assert plan.count(1000.0, ALONE) == 5
    assert replace(plan, iterations=2).count(1000.0, ALONE) == 2


def test_the_ranks_time_as_many_forwards_as_the_one_that_needs_most() -> None:
    assert Plan(iterations=4, warm_up=0).count(1.0, TwoRanks()) == 8


# ---- The warm-up ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times_ms", "least", "before", "forwards", "steady"),
    [
        (itertools.repeat(8.0), 0, [], 10, True),  # two windows that agree
        (itertools.repeat(8.0), 12, [], 12, True),
        (itertools.repeat(8.0), 12, [8.0] * 20, 20, True),
        (growing(0.1), 0, [], 100, False),
        (growing(0.1), 105, [], 105, False),
        (itertools.repeat(2000.0), 0, [], 6, False),  # after the fifth 10 s are not yet over
        (itertools.repeat(2000.0), 8, [], 8, False),
        (itertools.repeat(2000.0), 0, [4000.0], 5, False),  # what was made before counts
        (itertools.repeat(2000.5), 0, [4000.0], 4, False),
    ],
)
def test_a_warm_up_ends_when_it_is_steady_or_at_its_bound(
    meter: MakeMeter,
    times_ms: Iterable[float],
    least: int,
    before: list[float],
    forwards: int,
    steady: bool,
) -> None:
    plan = Plan(iterations=2, warm_up=least)
    found = meter(times_ms).measure(nothing, 1, plan, "a row", warm_up=before)
    assert (found.warm_up.iterations, found.warm_up.steady) == (forwards, steady)
    assert found.warm_up.samples_ms[: len(before)] == tuple(before)
    assert (found.warm_up.window, found.iterations) == (measure.WINDOW, 2)


@pytest.mark.parametrize(
    ("left_s", "bound_s"),
    [(16.0, 4.0), (400.0, 10.0), (1.0, 0.25), (0.5, 0.25)],  # a second, however little is left
)
def test_a_hurried_warm_up_has_a_quarter_of_what_is_left_however_many_were_asked(
    meter: MakeMeter, left_s: float, bound_s: float
) -> None:
    plan = Plan(iterations=3, warm_up=99, until=1000.0 + left_s, limit_s=5.0)
    took_ms = meter(growing(100.0)).measure(nothing, 1, plan, "a row").warm_up.samples_ms
    assert sum(took_ms[:-1]) <= bound_s * 1e3 < sum(took_ms)


def test_a_hurried_warm_up_that_has_the_time_is_as_long_as_asked(meter: MakeMeter) -> None:
    plan = Plan(iterations=3, warm_up=15, until=1100.0, limit_s=5.0)
    found = meter(itertools.repeat(8.0)).measure(nothing, 1, plan, "a row")
    assert found.warm_up.iterations == 15


def test_a_warm_up_whose_time_is_over_before_it_begins_is_one_forward(meter: MakeMeter) -> None:
    warmed: list[float] = []
    meter([5.0]).warm_up(nothing, Plan(iterations=3, warm_up=0, until=900.0), "a row", warmed)
    assert warmed == [5.0]


# ---- The samples ---------------------------------------------------------------------------------


def test_the_last_window_of_the_warm_up_says_how_many_forwards_there_is_time_for(
    meter: MakeMeter,
) -> None:
    before = [2000.0, 1700.0, 1400.0, 1200.0, 1000.0, 850.0, 750.0]
    plan = Plan(iterations=20, warm_up=0, limit_s=2.0)
    found = meter(itertools.repeat(200.0)).measure(nothing, 1, plan, "a row", warm_up=before)
    assert (found.warm_up.iterations, found.iterations) == (13, 10)  # the median of all is 750 ms


@pytest.mark.parametrize(("sample_ms", "samples"), [(125.0, 8), (31.25, 33)])
def test_samples_are_added_five_at_a_time_until_the_least_seconds_are_over(
    meter: MakeMeter, sample_ms: float, samples: int
) -> None:
    times = itertools.chain([125.0] * 10, itertools.repeat(sample_ms))
    plan = Plan(iterations=4, warm_up=0, min_seconds=1.0)
    assert meter(times).measure(nothing, 1, plan, "a row").iterations == samples


def test_all_ranks_go_on_until_the_fastest_one_has_measured_long_enough(meter: MakeMeter) -> None:
    class OtherIsFaster(TwoRanks):
        def gather(self, own: Any, name: str) -> list[Any]:  # noqa: ANN401 - as above
            return [own, own / 2] if "times" in name else [own, own]

    plan = Plan(iterations=4, warm_up=0, min_seconds=1.0)
    alone = meter(itertools.repeat(125.0)).measure(nothing, 1, plan, "a row")
    both = meter(itertools.repeat(125.0), OtherIsFaster()).measure(nothing, 1, plan, "a row")
    assert (alone.iterations, both.iterations) == (8, 18)


def test_only_what_all_ranks_measure_together_waits_for_the_others(meter: MakeMeter) -> None:
    group = TwoRanks()
    plan = Plan(iterations=4, warm_up=0)
    apart = meter(itertools.repeat(8.0), group).measure(nothing, 1, plan, "a row", together=False)
    assert (apart.iterations, group.moments) == (4, [])
    found = meter(itertools.repeat(8.0), group).measure(nothing, 1, plan, "a row")
    assert (found.iterations, group.moments[0]) == (8, "the start of a row")


def test_a_device_is_asked_whether_it_still_computes_once_a_row_is_measured(
    meter: MakeMeter,
) -> None:
    asked: list[str] = []
    health: Any = SimpleNamespace(after=asked.append)
    watched = replace(meter(itertools.repeat(8.0)), health=health)
    watched.measure(nothing, 1, Plan(iterations=2, warm_up=0), "a row")
    assert asked == ["a row"]


def test_the_bar_moves_on_by_one_with_each_forward(meter: MakeMeter) -> None:
    shown: dict[tuple[int | None, str], list[int]] = {}

    class Shown(RunLog):
        @contextlib.contextmanager
        def bar(
            self, total: int | None, label: str, unit: str = "forward"
        ) -> Iterator[Callable[[int], object]]:
            yield shown.setdefault((total, label), []).append

    watched = replace(meter(itertools.repeat(8.0)), log=Shown(silent=True))
    watched.measure(nothing, 1, Plan(iterations=3, warm_up=0), "a row")
    assert shown == {(None, "a row, warm-up"): [1] * 10, (3, "a row"): [1] * 3}


def test_the_features_of_every_timed_forward_and_of_no_other_are_watched(meter: MakeMeter) -> None:
    numbers = itertools.count()
    seen: list[Any] = []
    call: Any = lambda: next(numbers)  # noqa: E731 - a forward
    plan = Plan(iterations=3, warm_up=0)
    meter(itertools.repeat(8.0)).measure(call, 1, plan, "a row", watch=seen.append)
    assert seen == [10, 11, 12]


@pytest.mark.parametrize(
    ("number", "words"),
    [(2, "while warming up a row, forward 2: "), (13, "while measuring a row, forward 3: ")],
)
def test_a_device_that_fails_is_an_error_that_names_the_forward(
    meter: MakeMeter, number: int, words: str
) -> None:
    numbers = itertools.count(1)

    def call() -> Any:  # noqa: ANN401 - a forward
        if next(numbers) == number:
            raise RuntimeError("the device is gone")

    with pytest.raises(DeviceError, match=words):
        meter(itertools.repeat(8.0)).measure(call, 1, Plan(iterations=4, warm_up=0), "a row")


@pytest.mark.parametrize(("number", "samples"), [(3, None), (11, None), (13, 2)])
def test_ctrl_c_keeps_the_samples_until_then(
    meter: MakeMeter, number: int, samples: int | None
) -> None:
    numbers = itertools.count(1)

    def call() -> Any:  # noqa: ANN401 - a forward
        if next(numbers) == number:
            raise KeyboardInterrupt

    with pytest.raises(measure.Interrupted) as caught:
        meter(itertools.repeat(8.0)).measure(call, 3, Plan(iterations=4, warm_up=0), "a row")
    found = caught.value.latency
    assert (found and (found.iterations, found.batch_size, found.warm_up.iterations)) == (
        samples and (samples, 3, 10)
    )


def test_the_clocks_that_there_are_have_their_medians_beside_the_hosts() -> None:
    both = [Sample(wall, wall / 4, wall / 2, None) for wall in (8.0, 4.0, 12.0)]
    found = measure.latency_of(2, 5, [8.0] * 10, both)
    assert (found.batch_size, found.iterations, found.check) == (2, 3, None)
    assert found.samples_ms == (8.0, 4.0, 12.0)
    assert found.device_samples_ms == (4.0, 2.0, 6.0)
    assert found.host_samples_ms == (2.0, 1.0, 3.0)
    assert (found.p50_ms, found.device_p50_ms, found.host_p50_ms) == (8.0, 4.0, 2.0)
    assert found.warm_up == WarmUp(10, True, 5, (8.0,) * 10)
    alone = measure.latency_of(2, 5, [8.0] * 9, [Sample(8.0, None, None, None)])
    assert (alone.device_samples_ms, alone.device_p50_ms) == (None, None)
    assert (alone.host_samples_ms, alone.host_p50_ms) == (None, None)
    assert not alone.warm_up.steady


def test_garbage_is_not_collected_while_a_forward_is_timed(meter: MakeMeter) -> None:
    seen: set[bool] = set()
    call: Any = lambda: seen.add(gc.isenabled())  # noqa: E731 - a forward
    meter(itertools.repeat(8.0)).measure(call, 1, Plan(iterations=2, warm_up=0), "a row")
    assert (seen, gc.isenabled()) == ({False}, True)


def test_garbage_is_collected_before_the_block_and_not_within_it() -> None:
    class Ring:
        """What refers to itself, and only the collector finds."""

        def __init__(self) -> None:
            self.itself = self

    assert gc.isenabled()
    try:
        gone = weakref.ref(Ring())
        with measure.collector_off():
            assert gone() is None
            assert not gc.isenabled()
        assert gc.isenabled()
        gc.disable()
        with measure.collector_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


# ---- The conditions ------------------------------------------------------------------------------

QUIET = Harness(0.001, None, "a clock", 1.0, "off while timing", "performance", 4.0)


def test_the_conditions_are_the_hosts_and_those_that_it_does_not_tell_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = SimpleNamespace(implementation="a clock", resolution=0.5)
    monkeypatch.setattr(time, "get_clock_info", {"perf_counter": clock}.__getitem__)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 7.0, 9.0))
    monkeypatch.setattr(measure, "GOVERNOR", tmp_path / "governor")
    found = measure.harness(0.25)
    assert (found.overhead_ms, found.overhead_share, found.clock) == (0.25, None, "a clock")
    assert (found.clock_resolution_ns, found.garbage_collector) == (5e8, "off while timing")
    assert (found.cpu_governor, found.load_average) == (None, 0.5)
    (tmp_path / "governor").write_text("powersave\n")
    monkeypatch.delattr(os, "getloadavg")  # Windows has none
    found = measure.harness(0.25)
    assert (found.cpu_governor, found.load_average) == ("powersave", None)


@pytest.mark.parametrize(
    ("governor", "load", "cores", "words"),
    [
        ("performance", 4.0, 4, []),
        (None, None, 4, []),
        ("powersave", 0.0, 4, ["frequency policy is powersave"]),
        ("conservative", 4.1, 4, ["policy is conservative", "load 4.1 on 4 cores"]),
        ("performance", 1.5, None, ["load 1.5 on 1 cores"]),
        ("performance", 0.9, None, []),
    ],
)
def test_a_slow_policy_and_more_work_than_cores_are_warnings(
    monkeypatch: pytest.MonkeyPatch,
    governor: str | None,
    load: float | None,
    cores: int | None,
    words: list[str],
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    found = measure.host_warnings(replace(QUIET, cpu_governor=governor, load_average=load))
    assert len(found) == len(words)
    assert all(part in whole for part, whole in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("device_ms", "words"),
    [
        (None, None),
        (10.0, None),
        (8.81, None),  # 10 % and 0.2 ms are allowed
        (11.19, None),
        (8.79, "the device's clock says 8.79 ms where the host's says 10.00 ms"),
        (11.21, "the device's clock says 11.21 ms where the host's says 10.00 ms"),
    ],
)
def test_two_clocks_that_disagree_are_a_warning(device_ms: float | None, words: str | None) -> None:
    times = replace(
        report_records.latency(1, 10.0),
        p50_ms=10.0, samples_ms=(10.0,) * 12, device_p50_ms=device_ms,
    )  # fmt: skip
    assert measure.latency_warnings("a row", times) == ([f"a row: {words}"] if words else [])


def test_two_clocks_that_differ_by_just_what_is_allowed_are_no_warning() -> None:
    times = replace(
        report_records.latency(1, 10.0), p50_ms=0.0, samples_ms=(10.0,) * 12, device_p50_ms=0.2
    )
    assert measure.latency_warnings("a row", times) == []


def test_what_makes_a_latency_doubtful_is_one_line() -> None:
    warm_up = WarmUp(3, False, 5, (500.0, 1000.0, 2050.5))
    times = replace(
        report_records.latency(1, 10.0),
        p50_ms=10.0, samples_ms=(10.0,) * 11 + (16.0,), device_p50_ms=1.0, warm_up=warm_up,
    )  # fmt: skip
    (line,) = measure.latency_warnings("a row", times)
    first, *others = line.split("; ")
    assert first == (
        "a row: not steady after 3 warm-up forwards (3.6 s): the figures may still move"
    )
    assert [other.split()[0] for other in others] == ["varies", "1", "the"]


@pytest.mark.parametrize(("share", "warned"), [(None, False), (0.01, False), (0.011, True)])
def test_timing_that_costs_more_than_a_hundredth_of_a_forward_is_a_warning(
    share: float | None, warned: bool
) -> None:
    found = measure.harness_warnings(replace(QUIET, overhead_share=share))
    words = "Timing costs 0.001 ms, 1.1% of a batch-1 forward: this model is too small for these"
    assert [one.startswith(words) for one in found] == [True] * warned
