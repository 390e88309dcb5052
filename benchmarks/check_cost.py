"""How much longer does benchmark.py take because every row is checked?

On the CPU, without a ladder: the whole script as it is, and with the check taken out of it (no
references, no comparison of forwards, no second batch), each in a process of its own, in turns.
Printed: the median of each, the median of the ratios of neighbouring runs, and what the record says
that its checks cost.

    python3 benchmarks/check_cost.py
    python3 benchmarks/check_cost.py --runs 9 --batch-sizes 1,2
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

UNCHECKED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import npu_patch, torch, benchmark
from kit.benchmark import check, run
from kit.model.runner import Images
from kit.model import preprocessing
from kit.records import Repeats, RowCheck
class NoChecker:
    def __init__(self, runner, call, pixel_values, first):
        self.call, self.bits_equal_eager = call, None
    def watch(self, features):
        pass
    def finish(self, name):
        repeats = Repeats(0, 0, 0.0)
        return RowCheck("SELF-CHECK", "fp32", True, 0, 0.0, 0.0, 1.0, 0.0, repeats, (), 0.0)
def one_image(setup, inputs, count, group, log):
    pixels = preprocessing.preprocess(inputs.first.pixels, setup.steps)
    return Images(pixels.repeat(2, 1, 1, 1), None)
run.Checker, run.different_images = NoChecker, one_image
sys.exit(benchmark.main())
"""


def seconds(command: list[str]) -> float:
    """Return the wall-clock time of a command, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def check_seconds(record: Path) -> float:
    """Return what the record says that its checks cost, the references included."""
    results = json.loads(record.read_text("utf-8"))["results"]
    rows = [results["latency"], *(row["latency"] for row in results["throughput"])]
    checks_ms: float = sum(row["check"]["check_ms"] for row in rows)
    return (checks_ms + float(results["phases"]["references_ms"])) / 1e3


def main() -> None:
    """Run both in turns and print medians and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--batch-sizes", default="1,2,4,8", help="default: benchmark.py's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rest = ["--device", "cpu", "--no-report", "--output-dir", folder]
        rest += ["--batch-sizes", options.batch_sizes]
        checked = [sys.executable, str(ROOT / "benchmark.py"), *rest]
        unchecked = [sys.executable, "-c", UNCHECKED, str(ROOT), *rest]
        pairs = []
        for _ in range(options.runs):
            bare = seconds(unchecked)
            pairs.append((bare, seconds(checked)))
        share = check_seconds(Path(folder, "benchmark.json"))
    print(f"without the check  {statistics.median(pair[0] for pair in pairs):6.1f} s")
    print(f"benchmark.py       {statistics.median(pair[1] for pair in pairs):6.1f} s")
    print(f"ratio              {statistics.median(pair[1] / pair[0] for pair in pairs):6.3f}")
    print(f"the record's own figure for checks and references in the last run: {share:.1f} s")


if __name__ == "__main__":
    main()
