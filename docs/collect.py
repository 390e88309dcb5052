#!/usr/bin/env python3
"""Gather the records of many hosts into one table: CSV on stdout, one row per folder.

A record that is not there leaves its columns empty; one that cannot be read is named on stderr
and ends with exit code 1. docs/records.md says what each field means.

python3 docs/collect.py host-a/output host-b/output > hosts.csv
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

SCHEMA_MAJOR = "2"
# The environment is taken from the first record that is there, in this order.
SCRIPTS = ("accuracy", "benchmark", "inference")
COLUMNS = {
    "device": ("*", "device", "name"),
    "cann": ("*", "environment", "cann"),
    "driver": ("*", "environment", "driver"),
    "torch": ("*", "environment", "torch"),
    "torch_npu": ("*", "environment", "torch_npu"),
    "transformers": ("*", "environment", "transformers"),
    "git_commit": ("*", "environment", "git_commit"),
    "weights_source": ("*", "model", "source"),
    "weights_sha256": ("*", "model", "sha256"),
    "dtype": ("*", "model", "dtype"),
    "inference_latency_ms": ("inference", "results", "latency_ms"),
    "p50_ms": ("benchmark", "results", "latency", "p50_ms"),
    "p90_ms": ("benchmark", "results", "latency", "p90_ms"),
    "fastest_passing_mode": ("benchmark", "results", "fastest_passing_mode"),
    "verdict": ("accuracy", "results", "outcome"),
    "pooler_relative_error": ("accuracy", "results", "pooler_output", "relative_error"),
    "relative_error": ("accuracy", "results", "last_hidden_state", "relative_error"),
    "cosine": ("accuracy", "results", "last_hidden_state", "cosine"),
}


def load(path: Path) -> object:
    """Return a record.

    Raises:
        ValueError: where it is none that this script knows.
        OSError: where it cannot be read.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    version = str(record.get("schema_version"))
    if version.partition(".")[0] != SCHEMA_MAJOR:
        raise ValueError(f"schema version {version}, this script knows {SCHEMA_MAJOR}")
    return record


def field(value: object, path: Sequence[str]) -> object:
    """Return what lies at a path of names; None where the way there ends."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def best_throughput(record: object) -> tuple[object, object]:
    """Return the most images per second in a benchmark's sweep, and its batch size."""
    rows = field(record, ("results", "throughput"))
    measured = [
        row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(field(row, ("throughput_ips",)), int | float)
    ]
    if not measured:
        return None, None
    best = max(measured, key=lambda row: float(row["throughput_ips"]))
    return best["throughput_ips"], best.get("batch_size")


def row_of(folder: Path) -> tuple[list[object], list[str]]:
    """Return a folder's row, and what could not be read."""
    records: dict[str, object] = {}
    problems = []
    for script in SCRIPTS:
        path = folder / f"{script}.json"
        try:
            records[script] = load(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    first = next(iter(records.values()), None)
    values = [
        field(first if script == "*" else records.get(script), path)
        for script, *path in COLUMNS.values()
    ]
    return [str(folder), *values, *best_throughput(records.get("benchmark"))], problems


def main(argv: Sequence[str]) -> int:
    """Write the table of the folders in argv; return 0, or 1 where a record was left out."""
    if not argv or argv[0].startswith("-"):
        sys.stderr.write(__doc__ or "")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["folder", *COLUMNS, "best_throughput_ips", "best_batch_size"])
    problems = []
    for folder in argv:
        row, found = row_of(Path(folder))
        table.writerow(row)
        problems += found
    sys.stderr.writelines(f"left out: {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
