#!/usr/bin/env python3
"""What a forward costs the host on an NPU: operator by operator, and as a graph replay.

For the emulated NPU with operators that do not compute, so that only the host's own work is left:

    FAKECANN_NOOP=1 python3 tests/fake_cann/run.py benchmarks/npu_host_cost.py

The full ViT-B/16 with random weights, batch 1; medians of synchronized forwards, side by side in
one run, a round of each mode after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import npu_patch  # isort: skip - it makes the imports of torch below safe on any host

import torch

from kit.device.device import choose
from kit.device.health import HealthChecks
from kit.device.meters import Stopwatch
from kit.model import model as models
from kit.model.preprocessing import Preprocessing
from kit.model.runner import Images, run_mode
from kit.model.setup import Setup
from kit.options import Mode, parse_modes
from kit.records import ModelInfo


class NoChecks(HealthChecks):
    """Asks nothing: operators that do not compute know no answers."""

    def after(self, phase: str) -> None:
        """Do nothing."""


def main() -> int:
    """Print a line per mode, and the ratio of eager to graph."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    status = npu_patch.status()
    device = choose("auto", patched=status.applied, patch_reason=status.reason)
    if device.type == "cpu":
        print(f"no NPU and no GPU here: {status.message}", file=sys.stderr)
        return 2
    model = models.random_model(0, "sdpa")
    info = ModelInfo(None, "random", "", type(model).__name__, 0, "fp32", "sdpa")
    setup = Setup(device, torch.float32, model, Preprocessing(), info, NoChecks(device), 0.0)
    stopwatch = Stopwatch(device)
    pixels = torch.zeros(2, 3, 224, 224)
    images = Images(pixels, models.forward(model, pixels))
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        calls = {}
        for mode in parse_modes("all", Mode("fp32", "sdpa")):
            if mode.precision in ("fp32", "bf16") and not (mode.chip_gelu or mode.speed_only):
                runner = stack.enter_context(run_mode(setup, mode, images, keep=True))
                calls[mode] = stack.enter_context(runner.forwards(runner.input(1)))
        for number in range(rounds + 2):
            for mode, call in calls.items():
                wall_ms = stopwatch.time(call).wall_ms
                if number > 1:  # the first two rounds are the warm-up
                    found.setdefault(mode.name, []).append(wall_ms)
    print(f"{device.name}, torch {torch.__version__}, batch 1, {rounds} rounds, medians")
    for name, times in found.items():
        eager = found[name.removesuffix("-graph")]
        ratio = statistics.median(a / b for a, b in zip(eager, times, strict=True))
        note = f"  eager is {ratio:.0f} times this" if name.endswith("-graph") else ""
        print(f"{name:20} {statistics.median(times):8.3f} ms{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
