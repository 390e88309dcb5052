"""Run benchmark.py in this process on a tiny model, and read what it leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
from kit.device.meters import Sample, Stopwatch
from tests.schemas import hold_to_schema

QUICK = ("--device", "cpu", "--iterations", "4", "--batch-sizes", "1,2", "--warmup", "0")


def run(folder: Path, weights: Path, photo: Path, *options: str) -> int:
    """Run with few short measurements; later options win over these."""
    fixed = ["--output-dir", str(folder), "--weights", str(weights), "--image", str(photo)]
    return benchmark.main([*fixed, *QUICK, *options])


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record, held to its schema."""
    record: dict[str, Any] = json.loads((folder / "benchmark.json").read_text("utf-8"))
    hold_to_schema(record)
    return record


def before_call(number: int, action: Callable[[], None]) -> Callable[..., Sample[Any]]:
    """Return a Stopwatch.time that does something before its call of that number, from 1 on."""
    count = 0
    original = Stopwatch.time

    def time(self: Stopwatch, call: Callable[[], Any]) -> Sample[Any]:
        nonlocal count
        count += 1
        if count == number:
            action()
        return original(self, call)

    return time


Go = Callable[..., tuple[int, Path]]
