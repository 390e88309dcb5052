"""How much does inference.py cost beside the shortest script that does the same forwards?

Both load the same safetensors of full size and run forwards on the CPU, each in a process of its
own, in turns, so that a noisy machine hits both alike. inference.py takes its latency from as many
forwards as fit into a second, also hashes the weights, checks its input, draws the picture and
writes its record. The script by hand makes as many forwards as inference.py has just made; and once
more only two, one to warm up and one to time. Printed: the median of each, and the median of the
ratios of neighbouring runs.

    python3 benchmarks/start_to_finish.py
    python3 benchmarks/start_to_finish.py --runs 15
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

# What somebody would write by hand, with the image already in a tensor.
BY_HAND = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
pixels = torch.zeros(1, 3, 224, 224)
with torch.inference_mode():
    for _ in range(int(sys.argv[2])):
        output = model(pixels)
print(output.pooler_output[0, :5])
"""


def save_weights(folder: Path) -> None:
    """Save a ViT-B/16 with random weights: 343 MB."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import npu_patch\n"
        "from kit.model.model import random_model\n"
        f"random_model(0, 'sdpa').save_pretrained({str(folder)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def seconds(command: list[str]) -> float:
    """Return the wall-clock time of a command, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Run both in turns and print medians and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="runs of each (default: 9)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        weights, output = Path(name, "weights"), Path(name, "output")
        save_weights(weights)
        by_hand = [sys.executable, "-c", BY_HAND, str(weights)]
        ours = [sys.executable, str(ROOT / "inference.py"), "--device", "cpu"]
        ours += ["--weights", str(weights), "--output-dir", str(output)]
        for command in ([*by_hand, "2"], ours):  # file caches and compiled modules are warm then
            seconds(command)
        rows: list[tuple[float, float, float]] = []
        for _ in range(runs):
            took_s = seconds(ours)
            record = json.loads((output / "inference.json").read_bytes())
            forwards = 1 + len(record["results"]["samples_ms"])
            rows.append((took_s, seconds([*by_hand, str(forwards)]), seconds([*by_hand, "2"])))
    names = ("inference.py", "by hand, as many forwards", "by hand, two forwards")
    for place, name in enumerate(names):
        took_s = statistics.median(row[place] for row in rows)
        ratio = statistics.median(row[0] / row[place] for row in rows)
        print(f"{name:<26}{took_s:6.2f} s  inference.py takes {ratio:.3f} of it")


if __name__ == "__main__":
    main()
