"""How near the limit, and what holds it back: counts by hand, known rates, known bounds."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from kit import statistics
from kit.benchmark import limit
from kit.benchmark.limit import Operator
from kit.device.device import Device
from kit.device.meters import Sample, Stopwatch
from kit.errors import OutOfDeviceMemoryError
from kit.model import model as models
from kit.options import Mode, parse_modes
from kit.records import Latency, Limit, PrecisionLimit, Stage
from tests import report_records
from tests.models import TINY_VIT, save_tiny_convnext, save_tiny_dinov2

SIDE, WIDTH, INNER, BLOCKS = 32, 32, 64, 2
PATCHES = (SIDE // 16) ** 2
TOKENS = PATCHES + 5  # CLS and four registers
SHAPES = {
    (PATCHES, 3 * 16 * 16, WIDTH): 1,
    (TOKENS, WIDTH, WIDTH): 4 * BLOCKS,
    (TOKENS, WIDTH, INNER): BLOCKS,
    (TOKENS, INNER, WIDTH): BLOCKS,
}
PRODUCT_FLOPS = sum(2 * m * k * n * number for (m, k, n), number in SHAPES.items())
FLOPS = PRODUCT_FLOPS + BLOCKS * 2 * 2 * TOKENS * TOKENS * WIDTH


def tiny(attention: str = "sdpa") -> transformers.PreTrainedModel:
    """Return a tiny DINOv3 in evaluation mode."""
    config = transformers.DINOv3ViTConfig(**TINY_VIT)
    return transformers.AutoModel.from_config(config, attn_implementation=attention).eval()


# ---- What a forward asks for ---------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_flops_are_those_computed_by_hand_and_torch_s_own_count(attention: str) -> None:
    model, pixels = tiny(attention), torch.randn(1, 3, SIDE, SIDE)
    asked = limit.operators(model, pixels)
    assert sum(one.flops for one in asked) == FLOPS
    assert Counter(one.product for one in asked if one.product) == SHAPES
    if attention == "eager":  # torch's own has no formula for the CPU's sdpa
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(pixels)
        assert counter.get_total_flops() == FLOPS


def test_each_weight_is_read_once_and_views_move_nothing() -> None:
    model = tiny()
    asked = limit.operators(model, torch.randn(1, 3, SIDE, SIDE))
    used = sum(one.numel() for name, one in model.named_parameters() if "mask_token" not in name)
    assert sum(one.weights for one in asked) == used
    wide = next(one for one in asked if one.product == (TOKENS, WIDTH, INNER))
    assert wide.others == TOKENS * (WIDTH + INNER)  # addmm reads one and writes the other
    alone, zeros = torch.nn.Linear(8, 4), torch.zeros(2, 8)
    with limit.Operators(alone) as noted, torch.inference_mode():
        alone(zeros).view(8)[:3].t().expand(2, 3)
    assert noted.found == [Operator(2 * 2 * 8 * 4, 8 * 4 + 4, 2 * 8 + 2 * 4, (2, 8, 4))]
    with limit.Operators(alone) as noted, torch.inference_mode():
        zeros.relu_()  # in place it moves its tensor, though the result is the input's memory
    assert noted.found == [Operator(0, 0, 2 * 16)]
    with limit.Operators(alone) as noted, torch.inference_mode():
        zeros.sum().item()  # a number is no tensor that is moved
    assert noted.found == [Operator(0, 0, 16 + 1)]


@pytest.mark.parametrize("save", [save_tiny_convnext, save_tiny_dinov2])
def test_other_models_are_counted_as_torch_counts_them(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    model, pixels = models.load(save(tmp_path), "eager"), torch.randn(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels)
    asked = limit.operators(model, pixels)
    assert sum(one.flops for one in asked) == counter.get_total_flops() > 0


# ---- What the device reaches ---------------------------------------------------------------------


class SetSpeed(Stopwatch):
    """A device whose every call takes as long as it is told; it does compute."""

    def __init__(self, took_ms: Callable[[], float]) -> None:
        """Take so many ms, asked anew for each call."""
        super().__init__(Device("cpu", None, "set speed", 1, torch.device("cpu")))
        self.took_ms = took_ms

    def time(self, call: Callable[[], Any]) -> Sample[Any]:
        """Return the time that was set."""
        return Sample(self.took_ms(), None, None, call())


def test_the_rate_of_products_is_the_devices_and_the_best_batch_is_found() -> None:
    # 1 ms for up to four images: the rate doubles until then, and then no more.
    batch = 1

    def took_ms() -> float:
        return max(1.0, batch / 4)

    sizes = iter(range(10**6))

    def counted() -> float:
        nonlocal batch
        batch = 1 << (next(sizes) // (limit.TIMED * len(SHAPES)))
        return took_ms()

    rate, best = limit.products_rate(SetSpeed(counted), SHAPES, torch.float32, budget_s=60)
    assert best == 4
    assert rate == pytest.approx(4 * PRODUCT_FLOPS / (sum(SHAPES.values()) * 1e-3))


@pytest.mark.parametrize(
    ("rates", "tried", "found"),
    [
        ([100, 104, 108, 999], [1, 2, 4], (108, 4)),  # twice less than 5 % more
        ([100, 106, 111, 116, 999], [1, 2, 4, 8], (116, 8)),
        ([100, 105, 110, 999], [1, 2, 4], (110, 4)),  # just 5 % more is no gain
        ([100, 90, 106, 80, 106, 999], [1, 2, 4, 8, 16], (106, 4)),
        ([2**n for n in range(12)], [2**n for n in range(9)], (256, 256)),
        ([100, 120, None], [1, 2, 4], (120, 2)),  # None: no memory left
    ],
)
def test_the_batch_is_doubled_until_two_doublings_gain_nothing(
    monkeypatch: pytest.MonkeyPatch,
    rates: list[float | None],
    tried: list[int],
    found: tuple[float, int],
) -> None:
    batches: list[int] = []

    def rate_of(_: Stopwatch, __: object, ___: torch.dtype, batch: int, ____: float) -> float:
        batches.append(batch)
        if (rate := rates[len(batches) - 1]) is None:
            raise OutOfDeviceMemoryError("out of device memory")
        return rate

    monkeypatch.setattr(limit, "rate_of", rate_of)
    stopwatch = SetSpeed(lambda: 1.0)
    assert limit.products_rate(stopwatch, {(1, 1, 1): 1}, torch.float32, budget_s=60) == found
    assert batches == tried


def test_a_model_without_products_has_no_rate_of_them() -> None:
    with pytest.raises(ArithmeticError, match="the model has no matrix products"):
        limit.products_rate(SetSpeed(lambda: 1.0), {}, torch.float32)


def test_products_that_do_not_fit_at_all_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate_of(*_: object) -> float:
        raise OutOfDeviceMemoryError("out of device memory")

    monkeypatch.setattr(limit, "rate_of", rate_of)
    with pytest.raises(OutOfDeviceMemoryError):
        limit.products_rate(SetSpeed(lambda: 1.0), {(1, 1, 1): 1}, torch.float32)


def test_no_batch_is_tried_that_would_end_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, batches, deadlines = 100.0, [], []

    def rate_of(_: Stopwatch, __: object, ___: torch.dtype, batch: int, deadline: float) -> float:
        nonlocal now_s
        now_s += 1.0
        batches.append(batch)
        deadlines.append(deadline)
        return float(batch)

    monkeypatch.setattr(limit, "rate_of", rate_of)
    monkeypatch.setattr(limit, "time", SimpleNamespace(monotonic=lambda: now_s))
    stopwatch = SetSpeed(lambda: 1.0)
    found = limit.products_rate(stopwatch, {(1, 1, 1): 1}, torch.float32, budget_s=3.0)
    assert (found, batches) == ((2.0, 2), [1, 2])  # the third would end at 104, the budget at 103
    assert deadlines == [103.0, 103.0]


def test_the_rate_of_a_batch_counts_every_image_and_every_product() -> None:
    shapes = {(2, 3, 4): 5, (7, 1, 1): 2}
    flops = 3 * (2 * 2 * 3 * 4 * 5 + 2 * 7 * 2)
    stopwatch = SetSpeed(lambda: 2.0)
    rate = limit.rate_of(stopwatch, shapes, torch.float32, 3, math.inf)
    assert rate == pytest.approx(flops / (2.0 * 7) * 1e3)
    assert limit.rate_of(stopwatch, shapes, torch.bfloat16, 3, math.inf) == pytest.approx(rate)
    # Once the time is up the smallest product stands for all of them.
    assert limit.rate_of(stopwatch, shapes, torch.float32, 3, 0.0) == pytest.approx(
        3 * 2 * 2 * 3 * 4 / 2.0 * 1e3
    )
    # A device is given its products without waiting: a call is eight of them.
    stopwatch.device = Device("npu", 0, "set speed", 1, torch.device("cpu"))
    assert limit.rate_of(stopwatch, shapes, torch.float32, 3, math.inf) == pytest.approx(8 * rate)


def test_products_are_counted_to_the_very_end_of_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limit, "time", SimpleNamespace(monotonic=lambda: 100.0))
    rates = [
        limit.rate_of(SetSpeed(lambda: 2.0), {(2, 3, 4): 1, (8, 1, 1): 1}, torch.float32, 1, until)
        for until in (100.0, 99.0)
    ]
    assert rates == [pytest.approx((2 * 24 + 2 * 8) / 4e-3), pytest.approx(2 * 24 / 2e-3)]


def test_a_product_may_be_off_by_what_rounding_makes_and_no_more() -> None:
    left, right = torch.ones(4), torch.ones(4, 3)
    limit.require_product(left, right, torch.full((3,), 4.0 * 1.049))
    limit.require_product(left, 0 * right, torch.zeros(3))
    for found in (4.0 * 1.051, 4.0 * 0.949, -4.0, math.nan):
        with pytest.raises(ArithmeticError, match="a bare product came back wrong"):
            limit.require_product(left, right, torch.full((3,), found))


def test_an_expanded_tensor_has_the_elements_that_are_in_memory() -> None:
    assert limit.elements(torch.ones(3, 1, dtype=torch.float16).expand(3, 5)) == 3
    assert limit.elements(torch.ones(4, 5)[:2]) == 10


def test_a_convolution_in_groups_is_no_single_product() -> None:
    def found(groups: int) -> list[limit.Shape | None]:
        layer, image = torch.nn.Conv2d(4, 6, 3, groups=groups, bias=False), torch.ones(1, 4, 5, 7)
        with limit.Operators(layer) as noted, torch.inference_mode():
            layer(image)
        return [one.product for one in noted.found]

    assert found(1) == [(3 * 5, 4 * 3 * 3, 6)]
    assert found(2) == [None]


def test_a_copy_counts_what_it_reads_and_what_it_writes() -> None:
    assert limit.copy_rate(SetSpeed(lambda: 2.0), 1 << 20) == pytest.approx(2 * (1 << 20) / 2e-3)


def test_a_copy_is_of_so_many_bytes_and_is_looked_at() -> None:
    sizes: list[int] = []

    class Watched(SetSpeed):
        def time(self, call: Callable[[], Any]) -> Sample[Any]:
            sample = super().time(call)
            sizes.append(sample.output.nbytes)
            return sample

    limit.copy_rate(Watched(lambda: 2.0), 1 << 12)
    assert sizes == [1 << 12] * limit.TIMED

    class DoesNothing(SetSpeed):
        def time(self, call: Callable[[], Any]) -> Sample[Any]:
            return Sample(2.0, None, None, None)

    class CopiesHalf(SetSpeed):
        def time(self, call: Callable[[], Any]) -> Sample[Any]:
            sample = super().time(call)
            sample.output[len(sample.output) // 2 :] = 0
            return sample

    for wrong in (DoesNothing, CopiesHalf):
        with pytest.raises(ArithmeticError, match="a copy came back wrong"):
            limit.copy_rate(wrong(lambda: 2.0), 1 << 12)


def test_products_and_copies_that_come_back_wrong_are_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.zero_()

    monkeypatch.setattr(torch, "mm", wrong)
    with pytest.raises(ArithmeticError):  # with the first batch already
        limit.rate_of(SetSpeed(lambda: 1.0), {(2, 3, 4): 1}, torch.float32, 1, math.inf)
    model = tiny()
    asked = limit.operators(model, torch.randn(1, 3, SIDE, SIDE))
    found = limit.measure(SetSpeed(lambda: 1.0), asked, 1000, [Mode("bf16", "sdpa")])
    one = found.precisions[0]
    assert (one.flops_per_s, one.attainable_latency_ms) == (None, None)
    assert one.reason == "a bare product came back wrong"
    assert found.bytes_per_s is not None


# ---- What holds a forward back -------------------------------------------------------------------


def latency(wall: list[float], host: list[float] | None = None, batch: int = 1) -> Latency:
    """Return the times of a row."""
    times = vars(statistics.statistics(wall))
    host_samples = None if host is None else tuple(host)
    return replace(report_records.latency(batch, 10.0), **times, host_samples_ms=host_samples)


STEADY = [10.0, 10.1, 9.9, 10.0, 10.05]


@pytest.mark.parametrize(
    ("wall", "host", "compute", "memory", "bound"),
    [
        (STEADY, [one - 0.2 for one in STEADY], 1.0, 1.0, "host"),
        (STEADY, [0.5] * 5, 8.0, 1.0, "compute"),
        (STEADY, [0.5] * 5, 1.0, 8.0, "memory"),
        (STEADY, None, 8.0, 1.0, "compute"),
        (STEADY, None, 0.5, 6.0, "memory"),
        (STEADY, None, 4.0, 4.2, "undecided"),  # the two rates are not told apart
        (STEADY, None, 2.0, 1.0, "undecided"),  # most of the time is neither
        (STEADY, [9.0] * 5, 1.0, 1.0, "undecided"),  # the wait is within its noise of the limit
        (STEADY, [one - 0.2 for one in STEADY], 8.0, 1.0, "undecided"),  # the call waits itself
        ([8.0, 14.0, 10.0, 12.0, 6.0], None, 6.0, 3.2, "undecided"),  # within the samples' noise
        ([10.0] * 5, None, 4.0, 1.0, "compute"),  # just half of the time is enough
        ([10.0] * 5, None, 1.0, 4.0, "memory"),
        ([10.0] * 5, [9.0] * 5, 8.0, 1.0, "undecided"),  # a wait that is just the tolerance
        ([10.0] * 5, [9.5, 9.4, 9.6, 9.5, 9.5], 1.0, 1.0, "host"),
        ([8.0] * 5, None, 8.0, 7.2, "undecided"),  # apart by the tolerance of the larger
        ([10.0] * 5, None, 10.0, 9.0, "undecided"),
        ([10.0] * 5, [9.0] * 5, 1.0, 1.0, "undecided"),  # a wait of the tolerance is no host's
        # within its own noise the wait may be the tolerance
        ([10.0] * 5, [9.05, 9.0, 8.95, 8.9, 8.85], 8.0, 1.0, "undecided"),
        ([10.0] * 5, [8.75, 8.7, 8.65, 8.6, 8.55], 8.0, 1.0, "compute"),
    ],
)
def test_each_bound_is_named_where_its_inequality_holds_beyond_the_noise(
    wall: list[float], host: list[float] | None, compute: float, memory: float, bound: str
) -> None:
    assert limit.bound_of(latency(wall, host), compute, memory) == bound


@pytest.mark.parametrize(
    ("stages", "on_cpu", "ips", "slowest", "bound"),
    [
        ((5.0, 3.0, 0.4, 1.4), False, 200.0, "decode", "transfer"),
        ((1.0, 1.0, 9.0, 1.4), False, 1000 / 9, "copy", "transfer"),
        ((1.0, 1.0, 0.1, 8.0), False, 125.0, "forward", "compute"),
        ((8.1, 1.0, 0.1, 8.0), False, 1000 / 8.1, "decode", "undecided"),
        ((5.0, 5.0, 0.0, 90.0), True, 10.0, "forward", "compute"),
    ],
)
def test_a_stream_is_as_fast_as_its_slowest_stage_and_transfer_bound_where_that_is_no_forward(
    stages: tuple[float, ...], on_cpu: bool, ips: float, slowest: str, bound: str
) -> None:
    names: tuple[Stage, ...] = ("decode", "preprocessing", "copy", "forward")
    stages_ms = dict(zip(names, stages, strict=True))
    found = limit.pipeline(stages_ms, on_cpu=on_cpu)
    assert (round(found[0], 9), found[1]) == (round(ips, 9), slowest)
    assert limit.bound_of_stream(stages_ms, 0.05, "compute") == bound


def test_a_feed_that_is_slower_by_just_the_tolerance_is_undecided() -> None:
    def found(decode: float) -> str | None:
        return limit.bound_of_stream({"decode": decode, "forward": 10.0}, 0.0, "memory")

    assert [found(decode) for decode in (8.9, 9.0, 11.0, 11.1)] == [
        "memory", "undecided", "undecided", "transfer",
    ]  # fmt: skip


def test_operators_are_split_by_what_takes_them_longer() -> None:
    # 1e9 FLOP/s and 1e9 bytes/s: an operation takes as long as a byte.
    asked = [Operator(6000, 100, 10), Operator(1000, 400, 50), Operator(0, 0, 300)]
    assert limit.shares_ms(asked, 1, 4, 1e9, 1e9) == pytest.approx((6e-3, (1800 + 1200) * 1e-6))
    assert limit.shares_ms([Operator(1000, 250, 0)], 1, 4, 1e9, 1e9) == (1e-3, 0.0)  # as long
    # With more images the second's weights are read once, and its products are more.
    assert limit.shares_ms(asked, 10, 4, 1e9, 1e9) == pytest.approx((70e-3, 12e-3))


# ---- The record ----------------------------------------------------------------------------------

FOUND = Limit(
    flops_per_image=10**9,
    bytes_per_image=10**6,
    bytes_per_s=1e11,
    precisions=(
        PrecisionLimit("fp32", 1e12, 8, 4 * 10**8, 4.0, 1000.0, None),
        PrecisionLimit("bf16", 4e12, 8, 2 * 10**8, 2.0, 4000.0, None),
        PrecisionLimit("fp16", None, None, 2 * 10**8, None, None, "out of device memory"),
    ),
    bound=None,
    summary="",
    measuring_ms=1.0,
)
MODES = parse_modes("fp32-sdpa,fp32-eager,bf16-sdpa-graph,fp16-sdpa", Mode("fp32", "sdpa"))


def test_a_model_of_known_flops_on_a_device_of_known_rates_has_the_utilization_it_must() -> None:
    before = report_records.benchmark().results
    found = limit.applied(before, FOUND, [Operator(10**9, 10**8, 10**6)], MODES)
    for row in found.throughput[:4]:
        # 1 ms of products an image, and 4 ms of weights a batch
        least = max(row.batch_size * 1.0, 4.0)
        assert row.avg_latency_ms is not None
        assert row.utilization == pytest.approx(least / row.avg_latency_ms)
    assert (found.throughput[4].utilization, found.throughput[4].bound) == (None, None)
    by_mode = {row.mode: row for row in found.ladder}
    graph = by_mode["bf16-sdpa-graph"]
    assert graph.utilization == pytest.approx(2.0 / graph.latency.mean_ms)
    swept = graph.throughput[1]
    assert swept.avg_latency_ms is not None
    assert swept.utilization == pytest.approx(2.0 / swept.avg_latency_ms)
    failed = by_mode["fp16-sdpa"]
    assert (failed.utilization, failed.bound) == (None, None)
    share = (found.throughput[3].utilization or 0.0) * 100
    words = limit.summary(found, MODES[0])
    assert words.startswith(f"batch 8 in fp32 uses {share:.2g} % of what this device's own matrix")
    assert "; bf16-sdpa-graph at batch 8 would be the next step: " in words
    alone = replace(found, ladder=())
    assert limit.summary(alone, MODES[0]).endswith("matrix products reach")  # nothing else measured
    small = replace(alone, throughput=found.throughput[:1])
    assert limit.summary(small, MODES[0]).endswith("memory bandwidth allows")


def test_the_next_step_is_a_mode_that_passes_and_gains_more_than_the_tolerance() -> None:
    results = report_records.benchmark().results
    found = limit.applied(results, FOUND, [Operator(10**9, 10**8, 10**6)], MODES)
    best = max(found.ladder, key=lambda rung: rung.best_throughput_ips or 0.0)
    row = limit.best_row(found)
    assert row is not None and row.throughput_ips is not None
    gain = (best.best_throughput_ips or 0.0) / row.throughput_ips
    assert limit.summary(found, MODES[0]).endswith(f"next step: {gain:.1f} times the images/s")
    failed = replace(found, ladder=tuple(replace(one, verdict="FAIL") for one in found.ladder))
    assert "next step" not in limit.summary(failed, MODES[0])
    for share, told in ((1.09, False), (1.11, True)):
        near = replace(best, best_throughput_ips=share * row.throughput_ips)
        words = limit.summary(replace(found, ladder=(near,)), MODES[0])
        assert ("next step" in words) is told


def test_a_gain_of_just_the_tolerance_is_no_next_step() -> None:
    results = report_records.benchmark().results
    found = limit.applied(results, FOUND, [Operator(10**9, 10**8, 10**6)], MODES)
    row = replace(found.throughput[3], throughput_ips=10.0)
    for rate, told in ((11.0, False), (11.01, True)):
        near = replace(found.ladder[2], best_throughput_ips=rate)
        unswept = replace(near, best_throughput_ips=None)
        one = replace(found, throughput=(row,), ladder=(unswept, near))
        assert ("next step" in limit.summary(one, MODES[0])) is told
        as_fast = replace(one, ladder=(near, replace(near, mode="another")))
        assert (f"; {near.mode} at" in limit.summary(as_fast, MODES[0])) is told
        alone = replace(one, ladder=(unswept,))
        assert limit.summary(alone, MODES[0]).endswith("matrix products reach")


@pytest.mark.parametrize(
    ("products_ms", "what"),
    [
        (3.998, "memory bandwidth allows"),
        (4.0, "matrix products reach"),
        (4.002, "matrix products reach"),
    ],
)
def test_what_takes_longer_gives_the_limit_its_name(products_ms: float, what: str) -> None:
    one = replace(FOUND.precisions[0], flops_per_s=10**9 / products_ms * 1e3)  # weights: 4 ms
    near = replace(FOUND, precisions=(one,))
    results = replace(report_records.benchmark().results, ladder=())
    results = replace(results, throughput=results.throughput[:1])
    found = limit.applied(results, near, [Operator(10**9, 10**8, 10**6)], MODES)
    assert limit.summary(found, MODES[0]).endswith(what)


def test_a_forward_as_fast_as_its_limit_uses_all_of_it() -> None:
    results = replace(report_records.benchmark().results, ladder=())
    times = replace(report_records.latency(1, 4.0), mean_ms=4.0)
    row = replace(results.throughput[0], latency=times)
    found = limit.applied(replace(results, throughput=(row,)), FOUND, [], MODES)
    assert found.throughput[0].utilization == 1.0


def test_the_sentence_is_of_the_main_modes_precision() -> None:
    results = replace(report_records.benchmark().results, ladder=())
    found = limit.applied(results, FOUND, [Operator(10**9, 10**8, 10**6)], MODES)
    assert limit.summary(found, MODES[2]).startswith("batch 8 in bf16 uses ")


def test_a_row_that_is_not_measured_is_never_the_best() -> None:
    results = replace(report_records.benchmark().results, ladder=())
    found = limit.applied(results, FOUND, [Operator(10**9, 10**8, 10**6)], MODES)
    measured, faster = found.throughput[0], replace(found.throughput[3], status="interrupted")
    assert limit.best_row(replace(found, throughput=(faster, measured))) == measured
    assert limit.best_row(replace(found, throughput=(faster,))) is None
    words = "no share of the limit: no batch size was measured"
    assert limit.summary(replace(found, throughput=()), MODES[0]) == words


def test_a_row_without_a_check_has_its_share_of_the_limit() -> None:
    results = report_records.benchmark().results
    rung = results.ladder[0]
    rung = replace(rung, latency=replace(rung.latency, check=None))
    one = replace(results, ladder=(rung,))
    (found,) = limit.applied(one, FOUND, [Operator(10**9, 10**8, 10**6)], MODES).ladder
    assert found.utilization == pytest.approx(4.0 / rung.latency.mean_ms)


def test_a_row_that_was_not_measured_has_no_utilization() -> None:
    before = report_records.benchmark().results
    rows = tuple(replace(r, status="interrupted", utilization=None) for r in before.throughput)
    found = limit.applied(
        replace(before, throughput=rows), FOUND, [Operator(10**9, 10**8, 10**6)], MODES
    )
    assert {row.utilization for row in found.throughput} == {None}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("fp32-sdpa", "fp32"),
        ("strict-fp32-eager", "strict-fp32"),
        ("fp32-sdpa-fast-math", "fp32-fast-math"),
        ("bf16-sdpa-graph", "bf16"),
    ],
)
def test_what_decides_how_fast_products_are_is_precision_and_fast_math(
    name: str, precision: str
) -> None:
    (mode,) = parse_modes(name, Mode("fp32", "sdpa"))
    assert limit.precision_of(mode) == precision


def test_a_forward_faster_than_its_limit_has_no_utilization_and_the_reason_stands_there() -> None:
    slow = replace(FOUND, precisions=(replace(FOUND.precisions[0], flops_per_s=1.5e11),))
    before = replace(report_records.benchmark().results, ladder=())
    found = limit.applied(before, slow, [Operator(10**9, 10**8, 10**6)], MODES)
    assert [row.utilization is None for row in found.throughput[:4]] == [False, True, True, True]
    assert "less than its limit" in str(found.limit and found.limit.precisions[0].reason)
    assert limit.summary(found, MODES[0]).startswith("no share of the limit: a forward of batch")


def test_a_device_that_could_not_be_measured_has_no_utilization_but_a_reason() -> None:
    unknown = replace(FOUND, precisions=(replace(FOUND.precisions[2], precision="fp32"),))
    before = replace(report_records.benchmark().results, ladder=())
    found = limit.applied(before, unknown, [Operator(10**9, 10**8, 10**6)], MODES)
    assert {row.utilization for row in found.throughput} == {None}
    assert limit.summary(found, MODES[0]) == "no share of the limit: out of device memory"
    uncopied = replace(FOUND, bytes_per_s=None)
    found = limit.applied(before, uncopied, [Operator(10**9, 10**8, 10**6)], MODES)
    assert {row.utilization for row in found.throughput} == {None}


def test_what_the_device_reaches_becomes_the_least_time_and_the_most_images() -> None:
    asked = limit.operators(tiny(), torch.randn(1, 3, SIDE, SIDE))
    found = limit.measure(SetSpeed(lambda: 2.0), asked, 1000, [Mode("fp32", "sdpa")])
    assert found.flops_per_image == FLOPS
    assert found.bytes_per_image == 4 * sum(one.others for one in asked)
    assert found.bytes_per_s == pytest.approx(2 * limit.LEAST_COPIED_BYTES / 2e-3)
    one = found.precisions[0]
    assert one.flops_per_s is not None
    assert one.weight_bytes == 4000
    assert one.attainable_throughput_ips == pytest.approx(one.flops_per_s / FLOPS)
    assert one.attainable_latency_ms == pytest.approx(1e3 * FLOPS / one.flops_per_s)
    assert limit.least_ms(1, 10, 4000, 1e6, 1e6) == pytest.approx(4.0)  # the weights' bytes


def test_a_copy_that_came_back_wrong_is_the_reason_where_the_products_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy_rate(*_: object) -> float:
        raise ArithmeticError("a copy came back wrong")

    monkeypatch.setattr(limit, "copy_rate", copy_rate)
    asked = [Operator(48, 10, 10, (2, 3, 4))]
    found = limit.measure(SetSpeed(lambda: 1.0), asked, 1000, [Mode("fp32", "sdpa")])
    (one,) = found.precisions
    assert (found.bytes_per_s, one.reason) == (None, "a copy came back wrong")
    assert one.flops_per_s is not None and one.attainable_latency_ms is None


@pytest.mark.parametrize(
    ("parameters", "copied"),
    [(1000, 1 << 20), (10**7, 4 * 10**7), (10**9, 1 << 27)],
)
def test_each_precision_is_measured_once_and_as_many_bytes_copied_as_the_weights_have(
    monkeypatch: pytest.MonkeyPatch, parameters: int, copied: int
) -> None:
    asked: list[object] = []
    seconds = iter([1.0, 3.5])

    def products_rate(_: object, shapes: object, dtype: torch.dtype) -> tuple[float, int]:
        asked.append(dtype)
        return 1e12, 8

    def copy_rate(_: object, size: int) -> float:
        asked.append(size)
        return 1e11

    monkeypatch.setattr(limit, "products_rate", products_rate)
    monkeypatch.setattr(limit, "copy_rate", copy_rate)
    monkeypatch.setattr(limit, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    operators = [Operator(10**9, 10, 10, (2, 3, 4))]
    modes = parse_modes("fp32-sdpa,bf16,fp32-eager,fp32-graph", Mode("fp32", "sdpa"))
    found = limit.measure(SetSpeed(lambda: 1.0), operators, parameters, modes)
    assert asked == [copied, torch.float32, torch.bfloat16]
    assert [one.precision for one in found.precisions] == ["fp32", "bf16"]
    assert [one.weight_bytes for one in found.precisions] == [4 * parameters, 2 * parameters]
    assert [one.batch_size for one in found.precisions] == [8, 8]
    assert [one.attainable_latency_ms for one in found.precisions] == [
        max(1.0, 1e3 * size * parameters / 1e11) for size in (4, 2)
    ]
    assert found.measuring_ms == 2500.0


def test_a_product_and_a_copy_take_the_shortest_of_their_samples() -> None:
    times = iter([9.0, 2.0, 3.0])
    assert limit.shortest_ms(SetSpeed(lambda: next(times)), lambda: None) == 2.0
