"""The fixture `go`, for test modules that name this one in pytest_plugins."""

from pathlib import Path

import pytest

from tests.benchmark_runs import Go, run


@pytest.fixture
def go(tiny_weights: Path, photo: Path, tmp_path: Path) -> Go:
    """Run benchmark.py on the tiny model; returns the exit code and the output folder."""

    def call(*options: str, weights: Path = tiny_weights) -> tuple[int, Path]:
        folder = tmp_path / "output"
        return run(folder, weights, photo, *options), folder

    return call
