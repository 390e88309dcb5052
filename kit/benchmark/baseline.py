"""The comparison with an earlier record. Standard library only, until there is one to compare."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kit import outside
from kit.errors import KitError, one_line
from kit.options import BenchmarkOptions
from kit.records import (
    BenchmarkRecord,
    BenchmarkResults,
    Comparison,
    MetricStatus,
    RecordError,
    Regression,
    decode,
)

if TYPE_CHECKING:
    from kit.benchmark.run import Run

LARGEST_BYTES = 64 << 20
ENOUGH_TO_BE_APART = 8  # samples of both runs: 4 and 4 of one kind fall apart 1 time in 35
SHORTEST_MS, LONGEST_MS = 1e-6, 1e12  # a nanosecond, 30 years: no sample is beyond


def load(path: Path) -> BenchmarkRecord:
    """Read an earlier record.

    A KitError where it is none of a complete run of benchmark.py, or msgspec is missing.
    """
    content = outside.read_bytes(path, "--baseline", LARGEST_BYTES)
    try:
        record = decode(content, BenchmarkRecord)
    except ModuleNotFoundError as error:
        raise KitError(f"--baseline needs {error.name}: pip install {error.name}") from error
    except RecordError as error:
        raise KitError(
            f"--baseline {path} is no benchmark.json of this kit ({one_line(error)}): measure again"
        ) from error
    if record.status != "complete":
        raise KitError(f"--baseline {path} is of a run that was interrupted: measure again")
    samples = [sample for one in samples_of(record.results).values() for sample in one]
    if not samples or not all(SHORTEST_MS <= sample <= LONGEST_MS for sample in samples):
        raise KitError(f"--baseline {path} has no samples, or impossible ones: measure again")
    try:
        datetime.fromisoformat(record.started_at)
    except ValueError as error:
        raise KitError(
            f"--baseline {path} has started_at {record.started_at[:40]!r}, which is no time: "
            "measure again"
        ) from error
    return record


def require_same(options: BenchmarkOptions, old: BenchmarkRecord, run: "Run") -> None:
    """Raise a KitError, which names what differs, where this is not the earlier measurement."""
    setup, ranks = run.setup, old.results.ranks
    pairs = [
        ("device", old.device.name, setup.device.name),
        ("device type", old.device.type, setup.device.type),
        ("mode", old.results.mode, run.results.mode),
        ("weights' sha256", old.model.sha256, setup.model_info.sha256),
        ("input shape", old.input.shape, run.input_shape),
        ("number of ranks", ranks.world_size if ranks else 1, run.group.size),
    ]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise KitError(
                f"--baseline {options.baseline} is of another {name} ({one_line(theirs, 100)}, "
                f"here {ours}): only runs of the same device, mode and weights compare"
            )


def compared(
    options: BenchmarkOptions, old: BenchmarkRecord, results: BenchmarkResults
) -> BenchmarkResults:
    """Return the results with the comparison of every figure that the earlier run has too."""
    before, now = samples_of(old.results), samples_of(results)
    limit = options.max_regression
    comparisons = tuple(
        comparison(name, before[name], now[name], limit) for name in now if name in before
    )
    regression = Regression(
        baseline=str(options.baseline),
        baseline_started_at=old.started_at,
        max_regression_percent=limit,
        comparisons=comparisons,
        passed=all(one.status != "regression" for one in comparisons),
    )
    return replace(results, regression=regression)


def samples_of(results: BenchmarkResults) -> dict[str, Sequence[float]]:
    """Return the samples in ms of a run's figures by their names; no failed ones."""
    samples: dict[str, Sequence[float]] = {}
    latency = results.latency
    if latency is not None and latency.check is not None and latency.check.verdict != "FAIL":
        samples["latency at batch 1"] = latency.samples_ms
    for row in results.throughput:
        if row.latency is not None and row.status == "measured":
            samples[f"batch {row.batch_size}"] = row.latency.samples_ms
    passing = (one for one in results.ladder if one.verdict != "FAIL")
    return samples | {one.mode: one.latency.samples_ms for one in passing}


def comparison(
    name: str, old: Sequence[float], new: Sequence[float], max_regression_percent: float
) -> Comparison:
    """Compare two runs' samples by their medians.

    A difference within the spread of both runs' samples together (the root of the sum of the
    squares) is noise, whatever the limit; unless the two runs have no range in common.
    """
    from kit import statistics  # torch

    old_ms, new_ms = statistics.median(old), statistics.median(new)
    noise_ms = math.hypot(statistics.spread(old), statistics.spread(new))
    status: MetricStatus = "same"
    apart = min(new) > max(old) or min(old) > max(new)
    if abs(new_ms - old_ms) > noise_ms or (apart and len(old) + len(new) >= ENOUGH_TO_BE_APART):
        status = "slower" if new_ms > old_ms else "faster"
        if new_ms > old_ms * (1 + max_regression_percent / 100):
            status = "regression"
    return Comparison(name, old_ms, new_ms, new_ms / old_ms, noise_ms, status)
