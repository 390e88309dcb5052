#!/usr/bin/env python3
"""What does it cost to find out what a device computes in?

Every run on an accelerator does it once. Here it is done again and again in one process, on the
device that there is, the CPU where there is none: the first time, and the median of the others.

    python3 benchmarks/fingerprint_cost.py
    python3 tests/fake_cann/run.py benchmarks/fingerprint_cost.py
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import npu_patch  # isort: skip - it makes the imports of torch below safe on any host

import torch

from kit.device.arithmetic import measure
from kit.device.device import choose


def main() -> None:
    """Print a line per data type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="after the first (default: 15)")
    runs = parser.parse_args().runs
    status = npu_patch.status()
    device = choose("auto", patched=status.applied, patch_reason=status.reason)
    own_gelu = npu_patch.chips_gelu if status.gelu == "asked" else None
    threads = torch.get_num_threads()
    print(f"{device.name}, torch {torch.__version__}, {threads} threads of the host's")
    for dtype in ("fp32", "bf16", "fp16"):
        times_ms = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            measure(device, dtype, {}, own_gelu=own_gelu)
            times_ms.append((time.perf_counter() - start) * 1e3)
        first, *warm = times_ms
        print(
            f"{dtype}: first {first:.0f} ms, then median {statistics.median(warm):.0f} ms "
            f"({min(warm):.0f} to {max(warm):.0f})"
        )


if __name__ == "__main__":
    main()
