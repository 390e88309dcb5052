"""What a record claims, computed again from what it stands on: samples, rows, the kit's limits.

Records are plain files, and whoever can write them can change them. A figure that was changed by
itself contradicts the others: an error of e forces a cosine of at least sqrt(1 - e^2), a mean
follows from its samples. What nothing in a record can confirm is a claim that says so.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kit import records as kit_records
from kit.accuracy.limits import LIMITS, SMALLEST_ALONE, SMALLEST_LIMIT, arithmetic_of
from kit.records import AccuracyResults, LimitsInfo, Products, Record
from kit.report.load import Records, started_at

Method = Literal["samples", "rows", "limits", "bounds", "fields", "images", "clock", "none"]
OUTPUTS = ("pooler_output", "last_hidden_state")
TOLERANCE = 1e-6  # relative: a record keeps every digit, numpy's releases may round differently
PRODUCTS = {"matrix product": "matmul_fp32", "convolution": "convolution_fp32"}
CHECKED_ROWS = 1000  # no run measures as many; a file made to be slow stops here
FIGURES: dict[str, Callable[[NDArray[np.float64]], object]] = {
    "iterations": len,
    "mean_ms": np.mean,
    "stddev_ms": np.std,
    "min_ms": np.min,
    "max_ms": np.max,
    "p50_ms": lambda samples: np.percentile(samples, 50),
    "p90_ms": lambda samples: np.percentile(samples, 90),
    "p99_ms": lambda samples: np.percentile(samples, 99),
}


@dataclass(frozen=True)
class Claim:
    """One claim of a record, and what comes out where it is computed again."""

    file: str  # the record's
    field: str  # the claim's place in it
    recorded: str
    computed: str  # what comes out, or what it must be within
    method: Method  # what it was computed from; 'none' where nothing in the record can confirm it
    agrees: bool | None  # None for a claim that nothing confirms


@dataclass(frozen=True)
class Part:
    """A part of a record and its place, such as results.ladder[2]; makes claims of its fields.

    `recorded` is what the record says, where that is not the value of the field as it stands.
    """

    record: Any
    value: Any
    place: str = ""

    def at(self, field: str) -> "Part":
        """Return a part of this one."""
        place = f"{self.place}.{field}" if self.place else field
        return Part(self.record, attrgetter(field)(self.value), place)

    def rows(self, field: str) -> Iterator["Part"]:
        """Yield the entries of a list, as many as are checked."""
        whole = self.at(field)
        for number, row in enumerate(whole.value[:CHECKED_ROWS]):
            yield Part(self.record, row, f"{whole.place}[{number}]")

    def claim(
        self, field: str, recorded: object, computed: str, method: Method, agrees: bool | None
    ) -> Claim:
        """Return a claim of one field."""
        file, place = f"{self.record.script}.json", self.at(field).place
        return Claim(file, place, shown(recorded), computed, method, agrees)

    def same(self, field: str, computed: object, method: Method, recorded: object = ...) -> Claim:
        """Return the check that a claim is what comes out, floats up to their rounding."""
        recorded = self.at(field).value if recorded is ... else recorded
        agrees = recorded == computed
        if isinstance(recorded, float) or isinstance(computed, float):
            both = real(recorded), real(computed)
            agrees = math.isclose(*both, rel_tol=TOLERANCE, abs_tol=1e-15)
        return self.claim(field, recorded, shown(computed), method, agrees)

    def within(
        self, field: str, least: float, most: float, method: Method = "bounds",
        recorded: object = ...,
    ) -> Claim:  # fmt: skip
        """Return the check that a claim lies between two bounds, give or take their rounding."""
        recorded = self.at(field).value if recorded is ... else recorded
        low, high = real(least), real(most)
        slack = TOLERANCE * max(abs(low), abs(high) if math.isfinite(high) else 0.0) + 1e-12
        agrees = low - slack <= real(recorded) <= high + slack
        return self.claim(field, recorded, f"{shown(least)} … {shown(most)}", method, agrees)

    def open(self, field: str, *, long: bool = False) -> Claim:
        """Return a claim that nothing in the record can confirm; a long one is not shown."""
        return self.claim(field, "…" if long else self.at(field).value, "", "none", None)


def shown(value: object) -> str:
    """Return a value for a sentence, as JSON has it where that is short."""
    if isinstance(value, float):
        return f"{value:.6g}".replace("inf", "∞")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(shown(one) for one in value[:8])}{', …' if len(value) > 8 else ''}]"
    return str(value)


def real(value: object) -> float:
    """Return a number as a float: NaN for none, infinity for one beyond every float."""
    if not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def ratio(one: float | None, other: float | None) -> float:
    """Return one / other; NaN where there is none."""
    return real(one) / real(other) if real(other) else math.nan


def median(samples: tuple[float, ...] | None) -> float | None:
    """Return the median of some samples; None of none."""
    return float(np.median(samples)) if samples else None


def is_inside(
    limits: LimitsInfo, error: float | None, cosine: float | None, token: float | None = 0.0
) -> bool:
    """Return whether an output's figures keep the limits: the whole's, and its worst token's."""
    if error is None or cosine is None or token is None:
        return False
    within = error < limits.relative_error and cosine > limits.cosine
    return within and token < limits.token_relative_error


def check(records: Records, now: datetime) -> Iterator[Claim]:
    """Yield every claim of a folder's records that was computed again, and those that cannot be."""
    for record in records.found():
        part = Part(record, record)
        yield from check_header(part, now)
        if record is records.inference:
            yield from check_inference(part)
        elif record is records.benchmark:
            yield from check_benchmark(part)
        else:
            yield from check_accuracy(part)


def check_header(part: Part, now: datetime) -> Iterator[Claim]:
    """Yield what every record claims of its device, weights and time."""
    record: Record = part.record
    device, environment = record.device, record.environment
    kind, _, index = device.torch_device.partition(":")
    yield part.same("device.type", kind, "fields")
    if index:
        yield part.same("device.index", index, "fields", str(device.index))
    if device.type == "npu":
        yield part.same("environment.torch_npu", environment.torch_npu or "…", "fields")
        yield part.same("environment.cann", environment.cann or "…", "fields")
    if started_at(record) > now + timedelta(days=1):
        yield part.claim("started_at", record.started_at, str(now), "clock", agrees=False)
    yield part.open("environment", long=True)
    yield part.open("device.name")
    for row in part.rows("device.arithmetic.operators") if device.arithmetic else ():
        found, operator = row.value.found, row.value.operator
        if found == row.value.nearest:
            yield row.within("residual", 0, row.value.tolerance)
        yield row.open("found")
        if operator in PRODUCTS and record.model.dtype == "fp32" and found in get_args(Products):
            yield part.same(f"device.{PRODUCTS[operator]}", found, "rows")
    yield part.open("model.sha256")
    yield part.open("input.sha256")


def check_inference(part: Part) -> Iterator[Claim]:
    """Yield what inference.py claims of its first image."""
    record: kit_records.InferenceRecord = part.record
    results = record.results
    yield part.same("results.latency_ms", median(results.samples_ms), "samples")
    yield part.same("results.repeats.forwards", len(results.samples_ms), "samples")
    yield part.same("input.images", len(results.images), "rows")
    for first in results.images[:1]:
        yield part.same("results.latency_ms", first.latency_ms, "images")
        yield part.same("results.pooler_output.first_values", first.first_values, "images")
        yield part.same("input.sha256", first.sha256, "images")
    for name in OUTPUTS:
        yield part.same(f"results.{name}.device", record.device.torch_device, "fields")
    yield part.open("results.samples_ms")


# ---- benchmark.json ------------------------------------------------------------------------------


def check_benchmark(record: Part) -> Iterator[Claim]:
    """Yield what benchmark.py claims of its samples and rows."""
    part = record.at("results")
    results: kit_records.BenchmarkResults = part.value
    if results.latency is not None:
        yield from check_latency(part.at("latency"))
    limits = results.limit.precisions if results.limit else ()
    yield from check_sweep(part, limits[0].precision if limits else "")
    for row in part.rows("ladder"):
        yield from check_mode(row)
    passing = [row for row in results.ladder if row.verdict != "FAIL"]
    passing.sort(key=lambda row: row.latency.p50_ms)
    published = [row.mode for row in passing if row.within_published_limits]
    fastest = passing[0].mode if passing else None
    yield part.same("fastest_passing_mode", fastest, "rows")
    yield part.same("fastest_published_mode", published[0] if published else None, "rows")
    if results.ranks is not None:
        yield from check_ranks(part.at("ranks"))
    if results.regression is not None:
        yield from check_regression(part.at("regression"))
    for field in ("phases", "memory", "harness", "limit"):
        yield part.open(field, long=True)


def check_latency(part: Part, batch: int = 1) -> Iterator[Claim]:
    """Yield the figures of a list of times beside those of its samples."""
    latency: kit_records.Statistics = part.value
    samples = np.asarray(latency.samples_ms, dtype=np.float64)
    for name, compute in FIGURES.items():
        yield part.same(name, compute(samples) if len(samples) else None, "samples")
    lowest = float(samples.min()) if len(samples) else 0.0
    yield part.within("samples_ms", 1e-9, math.inf, recorded=lowest)
    if isinstance(latency, kit_records.Latency):
        yield part.same("batch_size", batch, "rows")
        yield part.same("device_p50_ms", median(latency.device_samples_ms), "samples")
        yield part.same("host_p50_ms", median(latency.host_samples_ms), "samples")
        if latency.check is not None:
            yield from check_row(part.at("check"), latency)


def check_row(part: Part, latency: kit_records.Latency) -> Iterator[Claim]:
    """Yield a row's check beside the kit's limits, and what it looked at beside its forwards."""
    one: kit_records.RowCheck = part.value
    figures = one.relative_error, one.cosine_similarity, one.token_relative_error
    if one.verdict != "FAIL":
        limits = {str(name): row for name, row in LIMITS.items()}.get(one.arithmetic)
        inside = limits is not None and is_inside(limits, *figures) and not one.reasons
        inside = inside and one.repeats.largest_difference is not None
        yield part.same("verdict", one.verdict if inside else "FAIL", "limits")
        yield part.same("images", 2 * latency.batch_size, "rows")
        yield part.within("repeats.forwards", latency.iterations, math.inf)
    published = one.verdict != "FAIL" and is_inside(LIMITS["fp32"], *figures)
    if one.within_published_limits and not published:
        yield part.same("within_published_limits", False, "limits")
    yield from check_cosine(part, "cosine_similarity")


def check_cosine(part: Part, field: str = "cosine") -> Iterator[Claim]:
    """Yield a cosine beside the least that a relative error leaves: ||d - r|| <= e ||r||."""
    error = part.value.relative_error
    if error is not None and getattr(part.value, field) is not None:
        yield part.within(field, math.sqrt(1 - error**2) if 0 <= error < 1 else -1.0, 1.0)


def check_utilization(part: Part, precision: str) -> Iterator[Claim]:
    """Yield a row's share of the limit beside its times and the recorded rates; none above 1."""
    row, share = part.value, None
    limit: kit_records.Limit | None = part.record.results.limit
    found = () if limit is None else limit.precisions
    reached = next((one for one in found if one.precision == precision), None)
    if row.utilization is not None and row.latency is not None and limit and reached:
        flops = real(row.latency.batch_size) * real(limit.flops_per_image)
        computing = ratio(flops, reached.flops_per_s)
        reading = ratio(reached.weight_bytes, limit.bytes_per_s)
        share = ratio(max(computing, reading) * 1e3, row.latency.mean_ms)
        yield part.within("utilization", 0.0, 1.0)
    yield part.same("utilization", share, "rows")
    if row.bound is not None:
        yield part.open("bound")


def check_sweep(part: Part, precision: str) -> Iterator[Claim]:
    """Yield the throughput of each batch size beside its times."""
    for here in part.rows("throughput"):
        row: kit_records.ThroughputRow = here.value
        if row.latency is None:
            yield here.same("throughput_ips", None, "samples")
            continue
        yield from check_latency(here.at("latency"), row.batch_size)
        mean = float(np.mean(row.latency.samples_ms)) if row.latency.samples_ms else math.nan
        rate = ratio(real(row.batch_size) * 1e3, mean)
        failed = row.status == "failed"
        yield here.same("avg_latency_ms", None if failed else mean, "samples")
        yield here.same("throughput_ips", None if failed else rate, "samples")
        yield from check_utilization(here, precision)
        if row.queued_throughput_ips is not None:
            yield here.open("queued_throughput_ips")


def check_mode(part: Part) -> Iterator[Claim]:
    """Yield a mode's best throughput and verdict beside its rows and the kit's limits."""
    row: kit_records.LadderRow = part.value
    yield from check_latency(part.at("latency"))
    precision = f"{'strict-' * row.strict_fp32}{row.dtype}{'-fast-math' * row.fast_math}"
    yield from check_utilization(part, precision)
    yield from check_sweep(part, precision)
    measured = [one for one in row.throughput if one.throughput_ips is not None]
    best = max(measured, key=lambda one: one.throughput_ips or 0.0, default=None)
    yield part.same("best_throughput_ips", best and best.throughput_ips, "rows")
    yield part.same("best_batch_size", best and best.batch_size, "rows")
    every = [row.latency, *(one.latency for one in row.throughput)]
    found = [one.check for one in every if one is not None and one.check is not None]
    verdict = "SELF-CHECK" if part.record.device.type == "cpu" else "PASS"
    right = all(one.verdict == verdict for one in found)
    yield part.same("verdict", verdict if right else "FAIL", "rows")
    published = all(one.within_published_limits for one in found)
    yield part.same("within_published_limits", published, "rows")
    for name, worst in (("relative_error", max), ("cosine_similarity", min), ("max_abs_diff", max)):
        values = [getattr(one, name) for one in found]
        yield part.same(name, worst(values) if values and None not in values else None, "rows")


def check_ranks(part: Part) -> Iterator[Claim]:
    """Yield what torchrun's ranks come to."""
    ranks: kit_records.Ranks = part.value
    yield part.same("world_size", len(ranks.ranks), "rows")
    for rank in part.rows("ranks"):
        yield from check_latency(rank.at("latency"))
    for here in part.rows("throughput"):
        row: kit_records.ScalingRow = here.value
        share = ratio(row.total_throughput_ips, real(ranks.world_size) * row.alone_throughput_ips)
        yield here.same("scaling_efficiency", share, "rows")
        yield here.open("total_throughput_ips")


def check_regression(part: Part) -> Iterator[Claim]:
    """Yield the comparison with a baseline beside its own figures."""
    allowed, worse = 1 + part.value.max_regression_percent / 100, False
    for here in part.rows("comparisons"):
        one: kit_records.Comparison = here.value
        yield here.same("ratio", ratio(one.new_ms, one.old_ms), "rows")
        if one.new_ms > one.old_ms * allowed and one.new_ms - one.old_ms > one.noise_ms:
            yield here.same("status", "regression", "rows")
        worse = worse or one.status == "regression"
    yield part.same("passed", not worse, "rows")


# ---- accuracy.json -------------------------------------------------------------------------------


def check_accuracy(record: Part) -> Iterator[Claim]:
    """Yield what accuracy.py claims beside the kit's limits, and its figures beside each other."""
    part, device, limits = record.at("results"), record.value.device, held_to(record.value)
    results: AccuracyResults = part.value
    for field in fields(limits):
        if field.name not in ("budget_factor", "reason"):  # an option, and words
            yield part.same(f"limits.{field.name}", getattr(limits, field.name), "limits")
    for name in OUTPUTS:
        yield part.same(f"{name}.device", device.torch_device, "fields")
        yield from check_tensor(part.at(name), limits)
    errors = [one.relative_error for one in results.parts if one.relative_error is not None]
    whole = results.last_hidden_state.relative_error
    if len(errors) == len(results.parts) > 1 and whole is not None:
        yield part.within("last_hidden_state.relative_error", min(errors), max(errors))
    yield from check_blocks(part)
    yield from check_more(part, limits)
    yield from check_verdict(part, on_cpu=device.type == "cpu")
    yield part.open("blocks", long=True)
    if results.explain:
        yield part.open("explain", long=True)


def held_to(record: Record) -> LimitsInfo:
    """Return the row of the limits' table that a run is held to; the strictest for no dtype."""
    device, dtype = record.device, record.model.dtype
    if dtype not in ("fp32", "bf16", "fp16"):
        return LIMITS["fp32"]
    rows = device.arithmetic.operators if device.arithmetic else ()
    attention = next((row.found for row in rows if row.operator == "attention"), "fp32")
    known: Products = next((one for one in get_args(Products) if one == attention), "fp32")
    return LIMITS[arithmetic_of(dtype, device.matmul_fp32, known, device.convolution_fp32)]


def check_tensor(part: Part, limits: LimitsInfo) -> Iterator[Claim]:
    """Yield one tensor's flags beside the limits, and its figures beside each other."""
    tensor: kit_records.TensorAccuracy = part.value
    reference = part.record.results.reference
    error, cosine, token = tensor.relative_error, tensor.cosine, tensor.worst_token.relative_error
    small, alike = error is not None and error < limits.relative_error, cosine is not None
    yield part.same("relative_error_passed", small, "limits")
    yield part.same("cosine_passed", alike and real(cosine) > limits.cosine, "limits")
    yield part.same("passed", is_inside(limits, error, cosine, token), "limits")
    yield from check_cosine(part)
    if error is None:
        return
    if token is not None:
        yield part.within("worst_token.relative_error", error, math.inf)
        tail = tuple(real(one.relative_error) for one in tensor.token_percentiles)
        rising = tuple(min(one, token) for one in sorted(tail))
        yield part.same("token_percentiles", rising, "bounds", tail)
    if tensor.mse is not None and tensor.max_abs_diff is not None:
        root = math.sqrt(max(tensor.mse, 0.0))
        most = root * math.sqrt(max(math.prod(map(real, tensor.shape)), 1.0))
        yield part.within("max_abs_diff", root, most)
    against, cpu = tensor.fp64_relative_error, tensor.cpu_fp64_relative_error
    if against is not None and cpu is not None:
        # Of device, CPU and fp64 no two are further apart than both are from the third.
        reach = 0.0 if reference == "CPU fp64" else cpu * (1 + error)
        slack = 1e-3 * against
        yield part.within("relative_error", against - reach - slack, against + reach + slack)
    if tensor.identical_bits and reference == "CPU fp32":
        yield part.same("identical_bits", 0.0, "fields", error)
    yield part.open("relative_error")


def check_blocks(part: Part) -> Iterator[Claim]:
    """Yield what is said of each block beside its operator, and the first that is unexplained."""
    factor = part.value.limits.budget_factor
    for here in part.rows("blocks"):
        block: kit_records.BlockAccuracy = here.value
        worst = block.worst_operator
        if worst is not None:
            known = (SMALLEST_LIMIT, *SMALLEST_ALONE.values())
            least = worst.smallest_limit if worst.smallest_limit in known else SMALLEST_LIMIT
            yield here.same("worst_operator.smallest_limit", least, "limits")
            times = None  # as often its limit, of the whole or of a token, where both are finite
            if worst.relative_error is not None and worst.token_error is not None:
                whole = max(factor * worst.expected_error, least)
                token = max(factor * worst.expected_token_error, least)
                times = max(worst.relative_error / whole, worst.token_error / token)
            yield here.same("worst_operator.times_limit", times, "fields")
            explained = worst.times_limit is not None and worst.times_limit <= 1
            yield here.same("explained", explained, "rows")
        limit = max(factor * block.expected_error, SMALLEST_LIMIT)
        if block.relative_error is None or block.relative_error > limit:
            yield here.same("sum_explained", False, "fields")
    yield part.same("first_unexplained_block", first_unexplained(part.value), "rows")


def first_unexplained(results: AccuracyResults) -> int | None:
    """Return the first block with an operator that is unexplained, else with such a sum."""
    blocks = results.blocks[:CHECKED_ROWS]
    found = [one.block for one in blocks if not one.explained]
    return next(iter(found + [one.block for one in blocks if not one.sum_explained]), None)


def check_more(part: Part, limits: LimitsInfo) -> Iterator[Claim]:
    """Yield folder and coverage beside the kit's limits, and the soak beside its batches."""
    results: AccuracyResults = part.value
    if (folder := results.folder) is not None:
        for here in part.rows("folder.worst"):
            image: kit_records.ImageAccuracy = here.value
            inside = is_inside(limits, image.pooler_relative_error, image.pooler_cosine)
            figures = image.relative_error, image.cosine, image.token_relative_error
            yield here.same("passed", inside and is_inside(limits, *figures), "limits")
        failing, most = sum(not image.passed for image in folder.worst), max(folder.failed, 0)
        yield part.within("folder.failed", failing, folder.images, recorded=most)
    for here in part.rows("coverage"):
        cell: kit_records.CoverageCell = here.value
        dtype = cell.mode.partition("-")[0]
        row = LIMITS["bf16" if dtype == "bf16" else "fp16" if dtype == "fp16" else "fp32"]
        inside = is_inside(row, cell.relative_error, cell.cosine, cell.token_relative_error)
        yield here.same("passed", inside, "limits")
        yield from check_cosine(here)
    if (soak := results.soak) is not None:
        batches = soak.batches[:CHECKED_ROWS]
        done = sum(one.forwards for one in batches)
        yield part.within("soak.forwards", done, done + 1, "rows")
        same, deviates = all(one.distinct_results <= 1 for one in batches), soak.first_deviation
        yield part.same("soak.first_deviation", same, "rows", deviates is None)


def check_verdict(part: Part, *, on_cpu: bool) -> Iterator[Claim]:
    """Yield the verdict beside what it follows from."""
    results: AccuracyResults = part.value
    folder, soak, against = results.folder, results.soak, results.against
    passed = (
        all(getattr(results, name).passed for name in OUTPUTS)
        and (folder is None or folder.failed == 0)
        and all(cell.passed for cell in results.coverage)
        and (soak is None or (soak.beyond_limits == 0 and soak.end != "device error"))
        and (against is None or against.failed == 0)
    )
    outcome = results.outcome
    expected = "pass" if first_unexplained(results) is None else "unexplained"
    if outcome == "fail" or not passed:  # a wrong operator fails outputs that are inside
        expected = "fail"
    elif on_cpu:
        expected = "self-check"
    word = {"fail": "FAIL", "self-check": "SELF-CHECK"}.get(outcome, "PASS")
    yield part.same("reference", "CPU fp64" if on_cpu else "CPU fp32", "fields")
    yield part.same("outcome", expected, "limits")
    yield part.same("verdict", word, "fields", results.verdict[: len(word)])
