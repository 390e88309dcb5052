"""What a record claims, computed again from what it stands on: samples, rows, the kit's limits.

Records are plain files, and whoever can write them can change them. A figure that was changed by
itself contradicts the others: an error of e forces a cosine of at least sqrt(1 - e^2), a mean
follows from its samples. What nothing in a record can confirm is a claim that says so.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kit.accuracy.limits import LIMITS, SMALLEST_LIMIT, Arithmetic, arithmetic_of
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BenchmarkRecord,
    BenchmarkResults,
    InferenceRecord,
    LadderRow,
    Latency,
    Limit,
    LimitsInfo,
    OperatorError,
    Products,
    Ranks,
    Record,
    Regression,
    RowCheck,
    Statistics,
    TensorAccuracy,
)
from kit.report.load import Records, started_at

Method = Literal["samples", "rows", "limits", "bounds", "fields", "images", "clock", "none"]
PUBLISHED = LIMITS["fp32"]
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
    """One claim of a record, and what comes out where it is computed again.

    Attributes:
        file: the record's file.
        field: the claim's place in it.
        recorded: what stands there.
        computed: what comes out, or what it must be within.
        method: what it was computed from; 'none' where nothing in the record can confirm it.
        agrees: whether the two agree; None for a claim that nothing confirms.
    """

    file: str
    field: str
    recorded: str
    computed: str
    method: Method
    agrees: bool | None


@dataclass(frozen=True)
class Checks:
    """Makes the claims of one record; a place in it reads as results.ladder[2].mode."""

    record: Record

    def at(self, field: str) -> Any:  # noqa: ANN401 - whatever the record holds there
        """Return what stands at a place."""
        value: Any = self.record
        for name in re.findall(r"\w+", field):
            value = value[int(name)] if name.isdigit() else getattr(value, name)
        return value

    def rows(self, field: str) -> Iterator[tuple[str, Any]]:
        """Yield the entries of a list with their places."""
        for number, row in enumerate(self.at(field)[:CHECKED_ROWS]):
            yield f"{field}[{number}]", row

    def claim(
        self, field: str, recorded: object, computed: str, method: Method, *, agrees: bool | None
    ) -> Claim:
        """Return a claim of this record."""
        file = f"{self.record.script}.json"
        return Claim(file, field, shown(recorded), computed, method, agrees)

    def same(self, field: str, computed: object, method: Method, recorded: object = ...) -> Claim:
        """Return the check that a claim is what comes out; `recorded` is what stands there."""
        recorded = self.at(field) if recorded is ... else recorded
        agrees = alike(recorded, computed)
        return self.claim(field, recorded, shown(computed), method, agrees=agrees)

    def within(
        self, field: str, least: float, most: float, method: Method = "bounds",
        recorded: object = ...,
    ) -> Claim:  # fmt: skip
        """Return the check that a claim lies between two bounds, give or take their rounding."""
        recorded = self.at(field) if recorded is ... else recorded
        low, high = real(least), real(most)
        slack = TOLERANCE * max(abs(low), abs(high) if math.isfinite(high) else 0.0) + 1e-12
        agrees = low - slack <= real(recorded) <= high + slack
        bounds = f"{shown(least)} … {shown(most)}"
        return self.claim(field, recorded, bounds, method, agrees=agrees)

    def open(self, field: str, *, long: bool = False) -> Claim:
        """Return a claim that nothing in the record can confirm; a long one is not shown."""
        return self.claim(field, "…" if long else self.at(field), "", "none", agrees=None)


def shown(value: object) -> str:
    """Return a value for a sentence, as JSON has it where that is short."""
    if isinstance(value, float):
        return f"{value:.6g}".replace("inf", "∞")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(shown(one) for one in value[:8])}{', …' if len(value) > 8 else ''}]"
    return str(value)


def alike(recorded: object, computed: object) -> bool:
    """Return whether two values are equal, floats up to their rounding."""
    if isinstance(recorded, float) or isinstance(computed, float):
        both = (real(recorded), real(computed))
        return math.isclose(*both, rel_tol=TOLERANCE, abs_tol=1e-15)
    return recorded == computed


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
    over, under = real(one), real(other)
    return over / under if under else math.nan


def check(records: Records, now: datetime) -> Iterator[Claim]:
    """Yield every claim of the records that was computed again, and those that cannot be.

    Args:
        records: those of one folder.
        now: when this is asked.
    """
    for record in records.found():
        checks = Checks(record)
        yield from check_header(checks, now)
        match record:
            case InferenceRecord():
                yield from check_inference(checks)
            case BenchmarkRecord():
                yield from check_benchmark(checks)
            case AccuracyRecord():
                yield from check_accuracy(checks, record)


def check_header(checks: Checks, now: datetime) -> Iterator[Claim]:
    """Yield what every record claims of its device, weights and time."""
    record, device = checks.record, checks.record.device
    kind, _, index = device.torch_device.partition(":")
    yield checks.same("device.type", kind, "fields")
    if index:
        yield checks.same("device.index", index, "fields", str(device.index))
    if device.type == "npu":
        for field in ("environment.torch_npu", "environment.cann"):
            yield checks.same(field, checks.at(field) or "…", "fields")
    if started_at(record) > now + timedelta(days=1):
        yield checks.claim("started_at", record.started_at, str(now), "clock", agrees=False)
    yield checks.open("environment", long=True)
    yield checks.open("device.name")
    rows = checks.rows("device.arithmetic.operators") if device.arithmetic else ()
    for place, row in rows:
        if row.found == row.nearest:
            yield checks.within(f"{place}.residual", 0, row.tolerance)
        yield checks.open(f"{place}.found")
        setting = PRODUCTS.get(row.operator)
        if setting and record.model.dtype == "fp32" and row.found in get_args(Products):
            yield checks.same(f"device.{setting}", row.found, "rows")
    yield checks.open("model.sha256")
    yield checks.open("input.sha256")


def check_inference(checks: Checks) -> Iterator[Claim]:
    """Yield what inference.py claims of its first image."""
    samples, images = checks.at("results.samples_ms"), checks.at("results.images")
    median = float(np.median(samples)) if samples else None
    yield checks.same("results.latency_ms", median, "samples")
    yield checks.same("results.repeats.forwards", len(samples), "samples")
    yield checks.same("input.images", len(images), "rows")
    if images:
        first = images[0]
        yield checks.same("results.latency_ms", first.latency_ms, "images")
        yield checks.same("results.pooler_output.first_values", first.first_values, "images")
        yield checks.same("input.sha256", first.sha256, "images")
    for name in OUTPUTS:
        yield checks.same(f"results.{name}.device", checks.record.device.torch_device, "fields")
    yield checks.open("results.samples_ms")


# ---- benchmark.json ------------------------------------------------------------------------------


def check_benchmark(checks: Checks) -> Iterator[Claim]:
    """Yield what benchmark.py claims of its samples and rows."""
    results: BenchmarkResults = checks.at("results")
    if results.latency is not None:
        yield from check_latency(checks, "results.latency", 1)
    limits = results.limit.precisions if results.limit else ()
    main = limits[0].precision if limits else ""
    yield from check_sweep(checks, "results.throughput", main)
    for place, row in checks.rows("results.ladder"):
        yield from check_mode(checks, place, row)
    passing = sorted(
        (row for row in results.ladder if row.verdict != "FAIL"), key=lambda row: row.latency.p50_ms
    )
    published = (row.mode for row in passing if row.within_published_limits)
    fastest = next((row.mode for row in passing), None)
    yield checks.same("results.fastest_passing_mode", fastest, "rows")
    yield checks.same("results.fastest_published_mode", next(published, None), "rows")
    if results.ranks is not None:
        yield from check_ranks(checks, results.ranks)
    if results.regression is not None:
        yield from check_regression(checks, results.regression)
    for field in ("phases", "memory", "harness", "limit"):
        yield checks.open(f"results.{field}", long=True)


def check_latency(checks: Checks, place: str, batch: int) -> Iterator[Claim]:
    """Yield the figures of a list of times beside those of its samples."""
    latency: Statistics = checks.at(place)
    samples = np.asarray(latency.samples_ms, dtype=np.float64)
    for name, compute in FIGURES.items():
        figure = compute(samples) if len(samples) else None
        yield checks.same(f"{place}.{name}", figure, "samples")
    lowest = float(samples.min()) if len(samples) else 0.0
    yield checks.within(f"{place}.samples_ms", 1e-9, math.inf, recorded=lowest)
    if isinstance(latency, Latency):
        yield checks.same(f"{place}.batch_size", batch, "rows")
        for side in ("device", "host"):
            times = getattr(latency, f"{side}_samples_ms")
            median = float(np.median(times)) if times else None
            yield checks.same(f"{place}.{side}_p50_ms", median, "samples")
        if latency.check is not None:
            yield from check_row(checks, f"{place}.check", latency.check, latency)


def check_row(checks: Checks, place: str, one: RowCheck, latency: Latency) -> Iterator[Claim]:
    """Yield a row's check beside the kit's limits, and what it looked at beside its forwards."""
    figures = one.relative_error, one.cosine_similarity, one.token_relative_error
    if one.verdict != "FAIL":
        limits = {str(name): row for name, row in LIMITS.items()}.get(one.arithmetic)
        inside = limits is not None and is_inside(limits, *figures) and not one.reasons
        inside = inside and one.repeats.largest_difference is not None
        yield checks.same(f"{place}.verdict", one.verdict if inside else "FAIL", "limits")
        yield checks.same(f"{place}.images", 2 * latency.batch_size, "rows")
        yield checks.within(f"{place}.repeats.forwards", latency.iterations, math.inf)
    if one.within_published_limits and (
        one.verdict == "FAIL" or not is_inside(PUBLISHED, *figures)
    ):
        yield checks.same(f"{place}.within_published_limits", False, "limits")
    yield from check_cosine(checks, f"{place}.cosine_similarity", *figures[:2])


def check_utilization(checks: Checks, place: str, precision: str) -> Iterator[Claim]:
    """Yield a row's share of the limit beside its times and the recorded rates; none above 1."""
    row, share = checks.at(place), None
    limit: Limit | None = checks.at("results.limit")
    found = () if limit is None else limit.precisions
    reached = next((one for one in found if one.precision == precision), None)
    if row.utilization is not None and row.latency is not None and limit and reached:
        flops = real(row.latency.batch_size) * real(limit.flops_per_image)
        computing = ratio(flops, reached.flops_per_s)
        reading = ratio(real(reached.weight_bytes), limit.bytes_per_s)
        share = ratio(max(computing, reading) * 1e3, row.latency.mean_ms)
        yield checks.within(f"{place}.utilization", 0.0, 1.0)
    yield checks.same(f"{place}.utilization", share, "rows")
    if row.bound is not None:
        yield checks.open(f"{place}.bound")


def check_sweep(checks: Checks, place: str, precision: str) -> Iterator[Claim]:
    """Yield the throughput of each batch size beside its times."""
    for here, row in checks.rows(place):
        latency = row.latency
        if latency is None:
            yield checks.same(f"{here}.throughput_ips", None, "samples")
            continue
        yield from check_latency(checks, f"{here}.latency", row.batch_size)
        mean = float(np.mean(latency.samples_ms)) if latency.samples_ms else math.nan
        rate = ratio(real(row.batch_size) * 1e3, mean)
        figures = (None, None) if row.status == "failed" else (mean, rate)
        yield checks.same(f"{here}.avg_latency_ms", figures[0], "samples")
        yield checks.same(f"{here}.throughput_ips", figures[1], "samples")
        yield from check_utilization(checks, here, precision)
        if row.queued_throughput_ips is not None:
            yield checks.open(f"{here}.queued_throughput_ips")


def check_mode(checks: Checks, place: str, row: LadderRow) -> Iterator[Claim]:
    """Yield a mode's best throughput and verdict beside its rows and the kit's limits."""
    yield from check_latency(checks, f"{place}.latency", 1)
    precision = f"{'strict-' * row.strict_fp32}{row.dtype}{'-fast-math' * row.fast_math}"
    yield from check_utilization(checks, place, precision)
    yield from check_sweep(checks, f"{place}.throughput", precision)
    best = max(
        (one for one in row.throughput if one.throughput_ips is not None),
        key=lambda one: one.throughput_ips or 0.0,
        default=None,
    )
    rate, batch = (None, None) if best is None else (best.throughput_ips, best.batch_size)
    yield checks.same(f"{place}.best_throughput_ips", rate, "rows")
    yield checks.same(f"{place}.best_batch_size", batch, "rows")
    every = [row.latency, *(one.latency for one in row.throughput if one.latency is not None)]
    found = [one.check for one in every if one.check is not None]
    verdict = "SELF-CHECK" if checks.record.device.type == "cpu" else "PASS"
    if any(one.verdict != verdict for one in found):
        verdict = "FAIL"
    yield checks.same(f"{place}.verdict", verdict, "rows")
    published = all(one.within_published_limits for one in found)
    yield checks.same(f"{place}.within_published_limits", published, "rows")
    figures = ("relative_error", max), ("cosine_similarity", min), ("max_abs_diff", max)
    for name, choose in figures:
        values = [getattr(one, name) for one in found]
        worst = None if None in values or not values else choose(values)
        yield checks.same(f"{place}.{name}", worst, "rows")


def is_inside(
    limits: LimitsInfo, error: float | None, cosine: float | None, token: float | None = 0.0
) -> bool:
    """Return whether an output's figures keep the limits: the whole's, and its worst token's."""
    if error is None or cosine is None or token is None:
        return False
    within = error < limits.relative_error and cosine > limits.cosine
    return within and token < limits.token_relative_error


def check_cosine(
    checks: Checks, field: str, error: float | None, cosine: float | None
) -> Iterator[Claim]:
    """Yield a cosine beside the least that a relative error leaves: ||d - r|| <= e ||r||."""
    if error is not None and cosine is not None:
        yield checks.within(field, math.sqrt(1 - error**2) if 0 <= error < 1 else -1.0, 1.0)


def check_ranks(checks: Checks, ranks: Ranks) -> Iterator[Claim]:
    """Yield what torchrun's ranks come to."""
    yield checks.same("results.ranks.world_size", len(ranks.ranks), "rows")
    for place, _ in checks.rows("results.ranks.ranks"):
        yield from check_latency(checks, f"{place}.latency", 1)
    for place, row in checks.rows("results.ranks.throughput"):
        share = ratio(row.total_throughput_ips, real(ranks.world_size) * row.alone_throughput_ips)
        yield checks.same(f"{place}.scaling_efficiency", share, "rows")
        yield checks.open(f"{place}.total_throughput_ips")


def check_regression(checks: Checks, regression: Regression) -> Iterator[Claim]:
    """Yield the comparison with a baseline beside its own figures."""
    worse = False
    for place, one in checks.rows("results.regression.comparisons"):
        yield checks.same(f"{place}.ratio", ratio(one.new_ms, one.old_ms), "rows")
        slower = one.new_ms > one.old_ms * (1 + regression.max_regression_percent / 100)
        if slower and one.new_ms - one.old_ms > one.noise_ms:
            yield checks.same(f"{place}.status", "regression", "rows")
        worse = worse or one.status == "regression"
    yield checks.same("results.regression.passed", not worse, "rows")


# ---- accuracy.json -------------------------------------------------------------------------------


def check_accuracy(checks: Checks, record: AccuracyRecord) -> Iterator[Claim]:
    """Yield what accuracy.py claims beside the kit's limits, and its figures beside each other."""
    results, limits = record.results, LIMITS[arithmetic(record)]
    for field in fields(limits):
        if field.name not in ("budget_factor", "reason"):  # an option, and words
            kits = getattr(limits, field.name)
            yield checks.same(f"results.limits.{field.name}", kits, "limits")
    for name in OUTPUTS:
        yield checks.same(f"results.{name}.device", record.device.torch_device, "fields")
        yield from check_tensor(checks, f"results.{name}", limits, results.reference)
    errors = [part.relative_error for part in results.parts if part.relative_error is not None]
    whole = results.last_hidden_state.relative_error
    if len(errors) == len(results.parts) > 1 and whole is not None:
        place = "results.last_hidden_state.relative_error"
        yield checks.within(place, min(errors), max(errors))
    yield from check_blocks(checks, results)
    yield from check_more(checks, results, limits)
    yield from check_verdict(checks, results, on_cpu=record.device.type == "cpu")
    yield checks.open("results.blocks", long=True)
    if results.explain:
        yield checks.open("results.explain", long=True)


def arithmetic(record: Record) -> Arithmetic:
    """Return the row of the limits' table that a run is held to."""
    device, dtype = record.device, record.model.dtype
    if dtype not in ("fp32", "bf16", "fp16"):
        return "fp32"  # the strictest
    rows = device.arithmetic.operators if device.arithmetic else ()
    attention = next((row.found for row in rows if row.operator == "attention"), "fp32")
    known: Products = next((one for one in get_args(Products) if one == attention), "fp32")
    return arithmetic_of(dtype, device.matmul_fp32, known, device.convolution_fp32)


def check_tensor(checks: Checks, place: str, limits: LimitsInfo, reference: str) -> Iterator[Claim]:
    """Yield one tensor's flags beside the limits, and its figures beside each other."""
    tensor: TensorAccuracy = checks.at(place)
    error, cosine, token = tensor.relative_error, tensor.cosine, tensor.worst_token.relative_error
    flags = {
        "relative_error_passed": error is not None and error < limits.relative_error,
        "cosine_passed": cosine is not None and cosine > limits.cosine,
        "passed": is_inside(limits, error, cosine, token),
    }
    for name, flag in flags.items():
        yield checks.same(f"{place}.{name}", flag, "limits")
    yield from check_cosine(checks, f"{place}.cosine", error, cosine)
    if error is None:
        return
    if token is not None:
        yield checks.within(f"{place}.worst_token.relative_error", error, math.inf)
        tail = tuple(real(one.relative_error) for one in tensor.token_percentiles)
        rising = tuple(min(one, token) for one in sorted(tail))
        yield checks.same(f"{place}.token_percentiles", rising, "bounds", tail)
    if tensor.mse is not None and tensor.max_abs_diff is not None:
        root = math.sqrt(max(tensor.mse, 0.0))
        most = root * math.sqrt(max(math.prod(map(real, tensor.shape)), 1.0))
        yield checks.within(f"{place}.max_abs_diff", root, most)
    against, cpu = tensor.fp64_relative_error, tensor.cpu_fp64_relative_error
    if against is not None and cpu is not None:
        # Of device, CPU and fp64 no two are further apart than both are from the third.
        reach = 0.0 if reference == "CPU fp64" else cpu * (1 + error)
        slack = 1e-3 * against
        low, high = against - reach - slack, against + reach + slack
        yield checks.within(f"{place}.relative_error", low, high)
    if tensor.identical_bits and reference == "CPU fp32":
        yield checks.same(f"{place}.identical_bits", 0.0, "fields", error)
    yield checks.open(f"{place}.relative_error")


def check_blocks(checks: Checks, results: AccuracyResults) -> Iterator[Claim]:
    """Yield what is said of each block beside its operator, and the first that is unexplained."""
    for place, block in checks.rows("results.blocks"):
        worst = block.worst_operator
        if worst is not None:
            times = times_limit(worst, results.limits.budget_factor)
            yield checks.same(f"{place}.worst_operator.times_limit", times, "fields")
            explained = worst.times_limit is not None and worst.times_limit <= 1
            yield checks.same(f"{place}.explained", explained, "rows")
        limit = max(results.limits.budget_factor * block.expected_error, SMALLEST_LIMIT)
        if block.relative_error is None or block.relative_error > limit:
            yield checks.same(f"{place}.sum_explained", False, "fields")
    yield checks.same("results.first_unexplained_block", first_unexplained(results), "rows")


def first_unexplained(results: AccuracyResults) -> int | None:
    """Return the first block with an operator that is unexplained, else with such a sum."""
    blocks = results.blocks[:CHECKED_ROWS]
    found = [one.block for one in blocks if not one.explained]
    return next(iter(found + [one.block for one in blocks if not one.sum_explained]), None)


def check_more(checks: Checks, results: AccuracyResults, limits: LimitsInfo) -> Iterator[Claim]:
    """Yield folder and coverage beside the kit's limits, and the soak beside its batches."""
    if (folder := results.folder) is not None:
        for place, image in checks.rows("results.folder.worst"):
            token = image.token_relative_error
            inside = is_inside(limits, image.pooler_relative_error, image.pooler_cosine)
            inside = inside and is_inside(limits, image.relative_error, image.cosine, token)
            yield checks.same(f"{place}.passed", inside, "limits")
        failing = sum(not image.passed for image in folder.worst)
        most = max(folder.failed, 0)
        yield checks.within("results.folder.failed", failing, folder.images, recorded=most)
    for place, cell in checks.rows("results.coverage"):
        dtype = cell.mode.partition("-")[0]
        row = LIMITS["bf16" if dtype == "bf16" else "fp16" if dtype == "fp16" else "fp32"]
        inside = is_inside(row, cell.relative_error, cell.cosine, cell.token_relative_error)
        yield checks.same(f"{place}.passed", inside, "limits")
        yield from check_cosine(checks, f"{place}.cosine", cell.relative_error, cell.cosine)
    if (soak := results.soak) is not None:
        batches = soak.batches[:CHECKED_ROWS]
        done = sum(one.forwards for one in batches)
        yield checks.within("results.soak.forwards", done, done + 1, "rows")
        same, deviates = all(one.distinct_results <= 1 for one in batches), soak.first_deviation
        yield checks.same("results.soak.first_deviation", same, "rows", deviates is None)


def check_verdict(checks: Checks, results: AccuracyResults, *, on_cpu: bool) -> Iterator[Claim]:
    """Yield the verdict beside what it follows from."""
    yield checks.same("results.reference", "CPU fp64" if on_cpu else "CPU fp32", "fields")
    outcome = results.outcome
    if outcome == "fail" or not passed(results):  # a wrong operator fails outputs that are inside
        yield checks.same("results.outcome", "fail", "limits")
    else:
        clean = "pass" if first_unexplained(results) is None else "unexplained"
        yield checks.same("results.outcome", "self-check" if on_cpu else clean, "limits")
    word = {"fail": "FAIL", "self-check": "SELF-CHECK"}.get(outcome, "PASS")
    yield checks.same("results.verdict", word, "fields", results.verdict[: len(word)])


def passed(results: AccuracyResults) -> bool:
    """Return whether outputs, folder, coverage, soak and another device's features all passed."""
    folder, soak, against = results.folder, results.soak, results.against
    return (
        results.pooler_output.passed
        and results.last_hidden_state.passed
        and (folder is None or folder.failed == 0)
        and all(cell.passed for cell in results.coverage)
        and (soak is None or (soak.beyond_limits == 0 and soak.end != "device error"))
        and (against is None or against.failed == 0)
    )


def times_limit(operator: OperatorError, factor: float) -> float | None:
    """Return how many times its limit an operator's error is; None where it is not finite."""
    if operator.relative_error is None or operator.token_error is None:
        return None
    return max(
        operator.relative_error / max(factor * operator.expected_error, SMALLEST_LIMIT),
        operator.token_error / max(factor * operator.expected_token_error, SMALLEST_LIMIT),
    )
