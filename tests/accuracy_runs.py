"""Run accuracy.py in the tests: in this process, or as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from kit.run import ROOT
from tests.schemas import hold_to_schema

SCRIPT = ROOT / "accuracy.py"
FOLDER_COUNT = 11
Run = Callable[..., tuple[int, Path]]


def record_of(folder: Path) -> dict[str, Any]:
    """Return the record of a run, held to its schema."""
    record: dict[str, Any] = json.loads((folder / "accuracy.json").read_text("utf-8"))
    hold_to_schema(record)
    return record


def results_of(folder: Path) -> dict[str, Any]:
    """Return the results in the record of a run."""
    results: dict[str, Any] = record_of(folder)["results"]
    return results


def run_process(*options: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run accuracy.py in a process of its own and return what it printed."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
        timeout=120,
    )


def make_images(folder: Path, count: int) -> Path:
    """Make so many different small images in folder and return it."""
    folder.mkdir()
    red, green = Image.linear_gradient("L"), Image.radial_gradient("L")
    for number in range(count):
        blue = red.rotate(37 * number)
        image = Image.merge("RGB", (green.rotate(11 * number), blue, red))
        image.resize((70 + number, 60)).save(folder / f"{number:03}.png")
    return folder


def options_of(tmp_path: Path, images: Path, weights: Path, *more: str) -> list[str]:
    """Return the options of a run over a folder of images."""
    return ["--device", "cpu", "--output-dir", str(tmp_path / "out"), "--weights", str(weights),
            "--image", str(images), "--batch-size", "3", "--workers", "1", *more]  # fmt: skip


def without_history(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results without what tells how they came about."""
    folder = {key: value for key, value in results["folder"].items()
              if key not in ("cached", "ranks")}  # fmt: skip
    return results | {"folder": folder}
