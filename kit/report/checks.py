"""What a record claims, computed again from what it stands on: samples, rows, the kit's limits.

Records are plain files, and whoever can write them can change them. A figure that was changed by
itself contradicts the others: an error of e forces a cosine of at least sqrt(1 - e^2), a mean
follows from its samples. What nothing in a record can confirm is a claim that says so.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kit.accuracy.limits import LIMITS, SMALLEST_LIMIT, Arithmetic, arithmetic_of
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BenchmarkRecord,
    ImageAccuracy,
    InferenceRecord,
    LadderRow,
    Latency,
    LimitsInfo,
    OperatorError,
    Products,
    Ranks,
    Record,
    Regression,
    RowCheck,
    Statistics,
    TensorAccuracy,
    ThroughputRow,
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
    """Makes the checks of one file."""

    file: str

    def same(self, field: str, recorded: object, computed: object, method: Method) -> Claim:
        """Return the check that a claim is what comes out."""
        agrees = alike(recorded, computed)
        return Claim(self.file, field, shown(recorded), shown(computed), method, agrees)

    def within(
        self, field: str, recorded: float, least: float, most: float, method: Method = "bounds"
    ) -> Claim:
        """Return the check that a claim lies between two bounds, give or take their rounding."""
        low, high = real(least), real(most)
        slack = TOLERANCE * max(abs(low), abs(high) if math.isfinite(high) else 0.0) + 1e-12
        agrees = low - slack <= real(recorded) <= high + slack
        bounds = f"{shown(least)} … {shown(most)}"
        return Claim(self.file, field, shown(recorded), bounds, method, agrees)

    def open(self, field: str, recorded: object) -> Claim:
        """Return a claim that nothing in the record can confirm."""
        return Claim(self.file, field, shown(recorded), "", "none", None)


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
        yield from check_header(record, now)
    if records.inference is not None:
        yield from check_inference(records.inference)
    if records.benchmark is not None:
        yield from check_benchmark(records.benchmark)
    if records.accuracy is not None:
        yield from check_accuracy(records.accuracy)


def check_header(record: Record, now: datetime) -> Iterator[Claim]:
    """Yield what every record claims of its device, weights and time."""
    checks, device = Checks(f"{record.script}.json"), record.device
    kind, _, index = device.torch_device.partition(":")
    yield checks.same("device.type", device.type, kind, "fields")
    if index:
        yield checks.same("device.index", str(device.index), index, "fields")
    if device.type == "npu":
        for field in ("torch_npu", "cann"):
            version = getattr(record.environment, field)
            yield checks.same(f"environment.{field}", version, version or "…", "fields")
    if started_at(record) > now + timedelta(days=1):
        yield Claim(checks.file, "started_at", record.started_at, str(now), "clock", False)
    yield checks.open("environment", "…")
    yield checks.open("device.name", device.name)
    rows = device.arithmetic.operators if device.arithmetic else ()
    for number, row in enumerate(rows[:CHECKED_ROWS]):
        place = f"device.arithmetic.operators[{number}]"
        if row.found == row.nearest:
            yield checks.within(f"{place}.residual", real(row.residual), 0, row.tolerance)
        yield checks.open(f"{place}.found", row.found)
        setting = PRODUCTS.get(row.operator)
        if setting and record.model.dtype == "fp32" and row.found in get_args(Products):
            yield checks.same(f"device.{setting}", getattr(device, setting), row.found, "rows")
    yield checks.open("model.sha256", record.model.sha256)
    yield checks.open("input.sha256", record.input.sha256)


def check_inference(record: InferenceRecord) -> Iterator[Claim]:
    """Yield what inference.py claims of its first image."""
    checks, results, images = Checks("inference.json"), record.results, record.results.images
    samples = results.samples_ms
    median = float(np.median(samples)) if samples else None
    yield checks.same("results.latency_ms", results.latency_ms, median, "samples")
    yield checks.same("results.repeats.forwards", results.repeats.forwards, len(samples), "samples")
    yield checks.same("input.images", record.input.images, len(images), "rows")
    if images:
        first = images[0]
        pooled = results.pooler_output.first_values
        yield checks.same("results.latency_ms", results.latency_ms, first.latency_ms, "images")
        yield checks.same(
            "results.pooler_output.first_values", pooled, first.first_values, "images"
        )
        yield checks.same("input.sha256", record.input.sha256, first.sha256, "images")
    for name in OUTPUTS:
        place, device = f"results.{name}.device", getattr(results, name).device
        yield checks.same(place, device, record.device.torch_device, "fields")
    yield checks.open("results.samples_ms", samples)


# ---- benchmark.json ------------------------------------------------------------------------------


def check_benchmark(record: BenchmarkRecord) -> Iterator[Claim]:
    """Yield what benchmark.py claims of its samples and rows."""
    checks, results = Checks("benchmark.json"), record.results
    if results.latency is not None:
        yield from check_latency(checks, "results.latency", results.latency, 1)
    yield from check_sweep(checks, "results.throughput", results.throughput)
    for number, row in enumerate(results.ladder[:CHECKED_ROWS]):
        yield from check_mode(checks, f"results.ladder[{number}]", row, record.device.type == "cpu")
    passing = sorted(
        (row for row in results.ladder if row.verdict != "FAIL"), key=lambda row: row.latency.p50_ms
    )
    published = (row.mode for row in passing if row.within_published_limits)
    fastest = next((row.mode for row in passing), None), next(published, None)
    for name, mode in zip(("fastest_passing_mode", "fastest_published_mode"), fastest, strict=True):
        yield checks.same(f"results.{name}", getattr(results, name), mode, "rows")
    if results.ranks is not None:
        yield from check_ranks(checks, results.ranks)
    if results.regression is not None:
        yield from check_regression(checks, results.regression)
    for field in ("phases", "memory", "harness"):
        yield checks.open(f"results.{field}", "…")


def check_latency(checks: Checks, place: str, latency: Statistics, batch: int) -> Iterator[Claim]:
    """Yield the figures of a list of times beside those of its samples."""
    samples = np.asarray(latency.samples_ms, dtype=np.float64)
    computed = {
        name: compute(samples) if len(samples) else None for name, compute in FIGURES.items()
    }
    for name, value in computed.items():
        recorded = getattr(latency, name)
        yield checks.same(f"{place}.{name}", recorded, value, "samples")
    lowest = float(samples.min()) if len(samples) else 0.0
    yield checks.within(f"{place}.samples_ms", lowest, 1e-9, math.inf)
    if isinstance(latency, Latency):
        yield checks.same(f"{place}.batch_size", latency.batch_size, batch, "rows")
        for side in ("device", "host"):
            times = getattr(latency, f"{side}_samples_ms")
            median = float(np.median(times)) if times else None
            recorded = getattr(latency, f"{side}_p50_ms")
            yield checks.same(f"{place}.{side}_p50_ms", recorded, median, "samples")
        if latency.check is not None:
            yield from check_row(checks, f"{place}.check", latency.check, latency)


def check_row(checks: Checks, place: str, one: RowCheck, latency: Latency) -> Iterator[Claim]:
    """Yield a row's check beside the kit's limits, and what it looked at beside its forwards."""
    if one.verdict != "FAIL":
        limits = {str(name): row for name, row in LIMITS.items()}.get(one.arithmetic)
        inside = limits is not None and row_inside(one, limits) and not one.reasons
        inside = inside and one.repeats.largest_difference is not None
        verdict = one.verdict if inside else "FAIL"
        yield checks.same(f"{place}.verdict", one.verdict, verdict, "limits")
        yield checks.same(f"{place}.images", one.images, 2 * latency.batch_size, "rows")
        forwards = one.repeats.forwards
        yield checks.within(f"{place}.repeats.forwards", forwards, latency.iterations, math.inf)
    if one.within_published_limits and (one.verdict == "FAIL" or not row_inside(one, PUBLISHED)):
        yield checks.same(f"{place}.within_published_limits", True, False, "limits")
    yield from check_cosine(checks, place, one.relative_error, one.cosine_similarity)


def check_sweep(checks: Checks, place: str, rows: Sequence[ThroughputRow]) -> Iterator[Claim]:
    """Yield the throughput of each batch size beside its times."""
    for number, row in enumerate(rows[:CHECKED_ROWS]):
        here, latency = f"{place}[{number}]", row.latency
        if latency is None:
            yield checks.same(f"{here}.throughput_ips", row.throughput_ips, None, "samples")
            continue
        yield from check_latency(checks, f"{here}.latency", latency, row.batch_size)
        mean = float(np.mean(latency.samples_ms)) if latency.samples_ms else math.nan
        rate = ratio(real(row.batch_size) * 1e3, mean)
        figures = (None, None) if row.status == "failed" else (mean, rate)
        yield checks.same(f"{here}.avg_latency_ms", row.avg_latency_ms, figures[0], "samples")
        yield checks.same(f"{here}.throughput_ips", row.throughput_ips, figures[1], "samples")
        if row.queued_throughput_ips is not None:
            yield checks.open(f"{here}.queued_throughput_ips", row.queued_throughput_ips)


def check_mode(checks: Checks, place: str, row: LadderRow, on_cpu: bool) -> Iterator[Claim]:
    """Yield a mode's best throughput and verdict beside its rows and the kit's limits."""
    yield from check_latency(checks, f"{place}.latency", row.latency, 1)
    yield from check_sweep(checks, f"{place}.throughput", row.throughput)
    best = max(
        (one for one in row.throughput if one.throughput_ips is not None),
        key=lambda one: one.throughput_ips or 0.0,
        default=None,
    )
    rate, batch = (None, None) if best is None else (best.throughput_ips, best.batch_size)
    yield checks.same(f"{place}.best_throughput_ips", row.best_throughput_ips, rate, "rows")
    yield checks.same(f"{place}.best_batch_size", row.best_batch_size, batch, "rows")
    every = [row.latency, *(one.latency for one in row.throughput if one.latency is not None)]
    found = [one.check for one in every if one.check is not None]
    verdict = "SELF-CHECK" if on_cpu else "PASS"
    if any(one.verdict != verdict for one in found):
        verdict = "FAIL"
    yield checks.same(f"{place}.verdict", row.verdict, verdict, "rows")
    published = all(one.within_published_limits for one in found)
    recorded = row.within_published_limits
    yield checks.same(f"{place}.within_published_limits", recorded, published, "rows")
    figures = ("relative_error", max), ("cosine_similarity", min), ("max_abs_diff", max)
    for name, choose in figures:
        values = [getattr(one, name) for one in found]
        worst = None if None in values or not values else choose(values)
        yield checks.same(f"{place}.{name}", getattr(row, name), worst, "rows")


def row_inside(one: RowCheck, limits: LimitsInfo) -> bool:
    """Return whether the figures of a row's check keep the limits."""
    token = one.token_relative_error
    inside = is_inside(one.relative_error, one.cosine_similarity, limits)
    return inside and token is not None and token < limits.token_relative_error


def is_inside(error: float | None, cosine: float | None, limits: LimitsInfo) -> bool:
    """Return whether a whole vector's figures keep the limits."""
    if error is None or cosine is None:
        return False
    return error < limits.relative_error and cosine > limits.cosine


def check_cosine(
    checks: Checks, place: str, error: float | None, cosine: float | None
) -> Iterator[Claim]:
    """Yield a cosine beside the least that a relative error leaves: ||d - r|| <= e ||r||."""
    if error is not None and cosine is not None:
        least = math.sqrt(1 - error**2) if 0 <= error < 1 else -1.0
        yield checks.within(f"{place}.cosine", cosine, least, 1.0)


def check_ranks(checks: Checks, ranks: Ranks) -> Iterator[Claim]:
    """Yield what torchrun's ranks come to."""
    yield checks.same("results.ranks.world_size", ranks.world_size, len(ranks.ranks), "rows")
    for number, rank in enumerate(ranks.ranks[:CHECKED_ROWS]):
        place = f"results.ranks.ranks[{number}].latency"
        yield from check_latency(checks, place, rank.latency, 1)
    for number, row in enumerate(ranks.throughput[:CHECKED_ROWS]):
        alone = real(ranks.world_size) * row.alone_throughput_ips
        share = ratio(row.total_throughput_ips, alone)
        place = f"results.ranks.throughput[{number}].scaling_efficiency"
        yield checks.same(place, row.scaling_efficiency, share, "rows")
        yield checks.open(f"results.ranks.throughput[{number}]", row.total_throughput_ips)


def check_regression(checks: Checks, regression: Regression) -> Iterator[Claim]:
    """Yield the comparison with a baseline beside its own figures."""
    worse = False
    for number, one in enumerate(regression.comparisons[:CHECKED_ROWS]):
        place = f"results.regression.comparisons[{number}]"
        yield checks.same(f"{place}.ratio", one.ratio, ratio(one.new_ms, one.old_ms), "rows")
        slower = one.new_ms > one.old_ms * (1 + regression.max_regression_percent / 100)
        if slower and one.new_ms - one.old_ms > one.noise_ms:
            yield checks.same(f"{place}.status", one.status, "regression", "rows")
        worse = worse or one.status == "regression"
    yield checks.same("results.regression.passed", regression.passed, not worse, "rows")


# ---- accuracy.json -------------------------------------------------------------------------------


def check_accuracy(record: AccuracyRecord) -> Iterator[Claim]:
    """Yield what accuracy.py claims beside the kit's limits, and its figures beside each other."""
    checks, results, device = Checks("accuracy.json"), record.results, record.device
    limits = LIMITS[arithmetic(record)]
    for field in fields(limits):
        if field.name not in ("budget_factor", "reason"):  # an option, and words
            recorded, kits = getattr(results.limits, field.name), getattr(limits, field.name)
            yield checks.same(f"results.limits.{field.name}", recorded, kits, "limits")
    for name in OUTPUTS:
        tensor = getattr(results, name)
        yield checks.same(f"results.{name}.device", tensor.device, device.torch_device, "fields")
        yield from check_tensor(checks, f"results.{name}", tensor, limits, results)
    errors = [part.relative_error for part in results.parts if part.relative_error is not None]
    whole = results.last_hidden_state.relative_error
    if len(errors) == len(results.parts) > 1 and whole is not None:
        place = "results.last_hidden_state.relative_error"
        yield checks.within(place, whole, min(errors), max(errors))
    yield from check_verdict(checks, results, limits, device.type == "cpu")
    yield from check_more(checks, results)
    yield checks.open("results.blocks", "…")
    if results.explain:
        yield checks.open("results.explain", "…")


def check_more(checks: Checks, results: AccuracyResults) -> Iterator[Claim]:
    """Yield the cells of the coverage beside the kit's limits, and the soak beside its batches."""
    for number, cell in enumerate(results.coverage[:CHECKED_ROWS]):
        place, token = f"results.coverage[{number}]", cell.token_relative_error
        dtype = cell.mode.partition("-")[0]
        limits = LIMITS["bf16" if dtype == "bf16" else "fp16" if dtype == "fp16" else "fp32"]
        inside = is_inside(cell.relative_error, cell.cosine, limits) and token is not None
        inside = inside and real(token) < limits.token_relative_error
        yield checks.same(f"{place}.passed", cell.passed, inside, "limits")
        yield from check_cosine(checks, place, cell.relative_error, cell.cosine)
    if (soak := results.soak) is not None:
        batches = soak.batches[:CHECKED_ROWS]
        done = sum(one.forwards for one in batches)
        yield checks.within("results.soak.forwards", soak.forwards, done, done + 1, "rows")
        same = all(one.distinct_results <= 1 for one in batches)
        yield checks.same(
            "results.soak.first_deviation", soak.first_deviation is None, same, "rows"
        )


def more_passed(results: AccuracyResults) -> bool:
    """Return whether coverage, soak and the comparison with another device found nothing wrong."""
    soak, against = results.soak, results.against
    return (
        all(cell.passed for cell in results.coverage)
        and (soak is None or (soak.beyond_limits == 0 and soak.end != "device error"))
        and (against is None or against.failed == 0)
    )


def arithmetic(record: Record) -> Arithmetic:
    """Return the row of the limits' table that a run is held to."""
    device, dtype = record.device, record.model.dtype
    if dtype not in ("fp32", "bf16", "fp16"):
        return "fp32"  # the strictest
    rows = device.arithmetic.operators if device.arithmetic else ()
    attention = next((row.found for row in rows if row.operator == "attention"), "fp32")
    known: Products = next((one for one in get_args(Products) if one == attention), "fp32")
    return arithmetic_of(dtype, device.matmul_fp32, known, device.convolution_fp32)


def check_tensor(
    checks: Checks, place: str, tensor: TensorAccuracy, limits: LimitsInfo, results: AccuracyResults
) -> Iterator[Claim]:
    """Yield one tensor's flags beside the limits, and its figures beside each other."""
    error, cosine, token = tensor.relative_error, tensor.cosine, tensor.worst_token.relative_error
    flags = {
        "relative_error_passed": error is not None and error < limits.relative_error,
        "cosine_passed": cosine is not None and cosine > limits.cosine,
    }
    for name, flag in flags.items():
        yield checks.same(f"{place}.{name}", getattr(tensor, name), flag, "limits")
    passed = all(flags.values()) and token is not None and token < limits.token_relative_error
    yield checks.same(f"{place}.passed", tensor.passed, passed, "limits")
    yield from check_cosine(checks, place, error, cosine)
    if error is None:
        return
    if token is not None:
        yield checks.within(f"{place}.worst_token.relative_error", token, error, math.inf)
        tail = tuple(real(one.relative_error) for one in tensor.token_percentiles)
        rising = tuple(min(one, token) for one in sorted(tail))
        yield checks.same(f"{place}.token_percentiles", tail, rising, "bounds")
    if tensor.mse is not None and tensor.max_abs_diff is not None:
        count = math.prod(map(real, tensor.shape))
        root = math.sqrt(max(tensor.mse, 0.0))
        most = root * math.sqrt(max(count, 1.0))
        yield checks.within(f"{place}.max_abs_diff", tensor.max_abs_diff, root, most)
    against, cpu = tensor.fp64_relative_error, tensor.cpu_fp64_relative_error
    if against is not None and cpu is not None:
        # Of device, CPU and fp64 no two are further apart than both are from the third.
        reach = 0.0 if results.reference == "CPU fp64" else cpu * (1 + error)
        slack = 1e-3 * against
        low, high = against - reach - slack, against + reach + slack
        yield checks.within(f"{place}.relative_error", error, low, high)
    if tensor.identical_bits and results.reference == "CPU fp32":
        yield checks.same(f"{place}.identical_bits", error, 0.0, "fields")
    yield checks.open(f"{place}.relative_error", error)


def check_verdict(
    checks: Checks, results: AccuracyResults, limits: LimitsInfo, on_cpu: bool
) -> Iterator[Claim]:
    """Yield the verdict beside what it follows from."""
    reference = "CPU fp64" if on_cpu else "CPU fp32"
    yield checks.same("results.reference", results.reference, reference, "fields")
    blocks = results.blocks[:CHECKED_ROWS]
    for number, block in enumerate(blocks):
        place, worst = f"results.blocks[{number}]", block.worst_operator
        if worst is not None:
            times = times_limit(worst, results.limits.budget_factor)
            field = f"{place}.worst_operator.times_limit"
            yield checks.same(field, worst.times_limit, times, "fields")
            explained = worst.times_limit is not None and worst.times_limit <= 1
            yield checks.same(f"{place}.explained", block.explained, explained, "rows")
        limit = max(results.limits.budget_factor * block.expected_error, SMALLEST_LIMIT)
        if block.relative_error is None or block.relative_error > limit:
            yield checks.same(f"{place}.sum_explained", block.sum_explained, False, "fields")
    first = next((one.block for one in blocks if not one.explained), None)
    if first is None:
        first = next((one.block for one in blocks if not one.sum_explained), None)
    recorded = results.first_unexplained_block
    yield checks.same("results.first_unexplained_block", recorded, first, "rows")
    folder = results.folder
    if folder is not None:
        for number, image in enumerate(folder.worst[:CHECKED_ROWS]):
            inside = image_inside(image, limits)
            yield checks.same(
                f"results.folder.worst[{number}].passed", image.passed, inside, "limits"
            )
        most = folder.failed if folder.failed > 0 else 0
        failing = sum(not image.passed for image in folder.worst)
        yield checks.within("results.folder.failed", most, failing, folder.images)
    passed = results.pooler_output.passed and results.last_hidden_state.passed
    passed = passed and (folder is None or folder.failed == 0) and more_passed(results)
    outcome = results.outcome
    if outcome == "fail" or not passed:  # a wrong operator fails a run whose outputs are inside
        yield checks.same("results.outcome", outcome, "fail", "limits")
    else:
        clean = "self-check" if on_cpu else "pass" if first is None else "unexplained"
        yield checks.same("results.outcome", outcome, clean, "limits")
    word = {"fail": "FAIL", "self-check": "SELF-CHECK"}.get(outcome, "PASS")
    yield checks.same("results.verdict", results.verdict[: len(word)], word, "fields")


def times_limit(operator: OperatorError, factor: float) -> float | None:
    """Return how many times its limit an operator's error is; None where it is not finite."""
    if operator.relative_error is None or operator.token_error is None:
        return None
    return max(
        operator.relative_error / max(factor * operator.expected_error, SMALLEST_LIMIT),
        operator.token_error / max(factor * operator.expected_token_error, SMALLEST_LIMIT),
    )


def image_inside(image: ImageAccuracy, limits: LimitsInfo) -> bool:
    """Return whether one image of a folder keeps every limit."""
    token = image.token_relative_error
    return (
        is_inside(image.pooler_relative_error, image.pooler_cosine, limits)
        and is_inside(image.relative_error, image.cosine, limits)
        and token is not None
        and token < limits.token_relative_error
    )


def contradictions(checks: Iterable[Claim]) -> list[Claim]:
    """Return the claims that contradict what they stand on."""
    return [one for one in checks if one.agrees is False]
