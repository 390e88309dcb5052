"""The comparison with an earlier record. Standard library only, until there is one to compare."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError
from kit.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from kit.benchmark.found import Found
    from kit.model.setup import Setup
    from kit.records import Comparison, MetricStatus, Regression

ENOUGH_TO_BE_APART = 8  # samples of both runs: 4 and 4 of one kind fall apart 1 time in 35


@dataclass(frozen=True)
class Baseline:
    """An earlier record.

    Attributes:
        path: of its file.
        record: its content.
    """

    path: Path
    record: dict[str, Any]

    def require_same(
        self, setup: "Setup", mode: str, world_size: int, shape: Sequence[int]
    ) -> None:
        """Check that the earlier run is the same measurement as this one.

        Raises:
            KitError: naming what differs.
        """
        results, device, model = (self.record[key] for key in ("results", "device", "model"))
        ranks = results["ranks"]
        pairs = [
            ("device", device["name"], setup.device.name),
            ("device type", device["type"], setup.device.type),
            ("mode", results["mode"], mode),
            ("weights' sha256", model["sha256"], setup.model_info.sha256),
            ("input shape", list(self.record["input"]["shape"]), list(shape)),
            ("number of ranks", ranks["world_size"] if ranks else 1, world_size),
        ]
        for name, theirs, ours in pairs:
            if theirs != ours:
                raise KitError(
                    f"--baseline {self.path} is of another {name} ({theirs}, here {ours}): "
                    "only runs of the same device, mode and weights compare"
                )

    def compare(self, found: "Found", max_regression_percent: float) -> "Regression":
        """Return the comparison of every figure that both runs have."""
        from kit.records import Regression

        old, new = samples_of_record(self.record["results"]), samples_of_run(found)
        comparisons = tuple(
            compared(name, old[name], new[name], max_regression_percent)
            for name in new
            if name in old
        )
        return Regression(
            baseline=str(self.path),
            baseline_started_at=self.record["started_at"],
            max_regression_percent=max_regression_percent,
            comparisons=comparisons,
            passed=all(one.status != "regression" for one in comparisons),
        )


def load(path: Path) -> Baseline:
    """Read an earlier record.

    Raises:
        KitError: where it is none of a complete run of benchmark.py.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(
            f"--baseline {path}: {error.strerror or error}; give an earlier benchmark.json"
        ) from error
    except ValueError as error:
        raise KitError(f"--baseline {path} is no JSON ({error}): give a benchmark.json") from error
    if not isinstance(record, dict) or record.get("script") != "benchmark":
        raise KitError(f"--baseline {path} is no record of benchmark.py: give a benchmark.json")
    version = str(record.get("schema_version"))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise KitError(
            f"--baseline {path} has schema version {version}, this kit reads {SCHEMA_VERSION}: "
            "measure again"
        )
    if record.get("status") != "complete":
        raise KitError(f"--baseline {path} is of a run that was interrupted: measure again")
    try:
        if not samples_of_record(record["results"]):
            raise ValueError("no samples")
        for keys in (("device", "name"), ("device", "type"), ("model", "sha256"),
                     ("input", "shape"), ("results", "mode"), ("results", "ranks")):  # fmt: skip
            record[keys[0]][keys[1]]
        record["started_at"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KitError(
            f"--baseline {path} is damaged ({type(error).__name__}: {error}): measure again"
        ) from error
    return Baseline(path, record)


def samples_of_record(results: dict[str, Any]) -> dict[str, list[float]]:
    """Return the samples of an earlier record's figures by their names.

    Raises:
        KeyError, TypeError, ValueError: where it is damaged.
    """
    found = {"latency at batch 1": numbers(results["latency"]["samples_ms"])}
    for row in results["throughput"]:
        if row["status"] == "measured":
            found[f"batch {row['batch_size']}"] = numbers(row["latency"]["samples_ms"])
    for row in results["ladder"]:
        found[row["mode"]] = numbers(row["latency"]["samples_ms"])
    return found


def numbers(values: Sequence[object]) -> list[float]:
    """Return values as positive finite floats, at least one.

    Raises:
        ValueError: for anything else.
    """
    found = [float(value) for value in values if isinstance(value, int | float)]
    if not found or len(found) != len(values) or not all(0 < f < math.inf for f in found):
        raise ValueError("samples that are no positive numbers")
    return found


def samples_of_run(found: "Found") -> dict[str, Sequence[float]]:
    """Return the samples of this run's figures by their names."""
    samples: dict[str, Sequence[float]] = {}
    if found.latency is not None:
        samples["latency at batch 1"] = found.latency.samples_ms
    for row in found.throughput:
        if row.latency is not None and row.status == "measured":
            samples[f"batch {row.batch_size}"] = row.latency.samples_ms
    for rung in found.ladder:
        samples[rung.mode] = rung.latency.samples_ms
    return samples


def compared(
    name: str, old: Sequence[float], new: Sequence[float], max_regression_percent: float
) -> "Comparison":
    """Compare two runs' samples by their medians.

    A difference within the spread of both runs' samples together (the root of the sum of the
    squares) is noise, whatever the limit; unless the two runs have no range in common.
    """
    from kit import statistics
    from kit.records import Comparison

    old_ms, new_ms = statistics.median(old), statistics.median(new)
    noise_ms = math.hypot(statistics.spread(old), statistics.spread(new))
    status: MetricStatus = "same"
    apart = min(new) > max(old) or min(old) > max(new)
    if abs(new_ms - old_ms) > noise_ms or (apart and len(old) + len(new) >= ENOUGH_TO_BE_APART):
        status = "slower" if new_ms > old_ms else "faster"
        if new_ms > old_ms * (1 + max_regression_percent / 100):
            status = "regression"
    return Comparison(name, old_ms, new_ms, new_ms / old_ms, noise_ms, status)
