"""What does accuracy.py cost beside the forwards that its report needs, and how much memory?

One image: a report needs the device's forward, the CPU's in fp32 and in fp64, and once more in
fp64 and in the declared arithmetic on the device's own inputs. These five forwards, bare, and the
whole measurement take turns in one process; then comes the small set of other batches and sizes
that each run checks too. A folder: how busy device thread and reference thread
are at once, and how peak memory grows with the number of images. All on the CPU, ViT-B/16 with
random weights for the image, a tiny model for the folder.

    python3 benchmarks/accuracy_cost.py
    python3 benchmarks/accuracy_cost.py --runs 41 --images 5000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import npu_patch  # isort: skip # noqa: E402 - before torch, from the folder added above


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock time of some work, and the processor's time for it."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def one_image(runs: int) -> None:
    """Print the measurement's time beside its bare forwards', and its peak memory."""
    from kit.run import quick_imports

    with quick_imports():  # as accuracy.py does, and keep_freed_memory too; both serve both sides
        import torch

        from accuracy import parse_options
        from kit.accuracy.coverage import cover
        from kit.accuracy.measure import keep_freed_memory, measure
        from kit.accuracy.references import make_sides
        from kit.device.device import choose
        from kit.device.health import HealthChecks
        from kit.device.meters import host_peak_bytes
        from kit.model import model as models
        from kit.model import preprocessing
        from kit.model.images import decode
        from kit.model.setup import Setup
        from kit.output import RunLog
        from kit.records import ModelInfo

    keep_freed_memory()
    before = host_peak_bytes() or 0
    model = models.random_model(0, "sdpa")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    device = choose("cpu", patched=False, patch_reason="")
    info = ModelInfo(None, "random", "", "", 0, "fp32", "sdpa")
    steps = preprocessing.Preprocessing()
    setup = Setup(device, torch.float32, model, steps, info, HealthChecks(device), 0.0)
    log = RunLog(silent=True)
    sides = make_sides(setup, 10.0, log)
    image = decode(ROOT / "data" / "sample.jpg")
    pixels = preprocessing.preprocess(image.pixels, steps)
    exact = sides.references.fp64.model

    def forwards() -> None:
        with torch.inference_mode():
            for _ in range(3):
                model(pixels)
            for _ in range(2):
                exact(pixels.double())

    results = measure(sides, image, pixels, log).results
    grown = (host_peak_bytes() or 0) - before  # as accuracy.py has it, before anything is repeated
    forwards()
    pairs = [
        (seconds(forwards), seconds(lambda: measure(sides, image, pixels, log)))
        for _ in range(runs)
    ]
    print_ratios(pairs)
    options = parse_options(["--device", "cpu"])
    small = [seconds(lambda: cover(options, sides, pixels, results, log)) for _ in range(runs)]
    for clock, name in enumerate(("wall-clock", "processor")):
        ours = statistics.median(one[1][clock] for one in pairs)
        more = statistics.median(one[clock] for one in small)
        print(f"{name:10} time of the small set: {more:.2f} s, {more / ours:.2f} measurements")
    print(f"peak memory over the imports' {before / 1e6:.0f} MB: {grown / 1e6:.0f} MB, ")
    print(f"  {grown / weights:.2f} times the weights of {weights / 1e6:.0f} MB")
    print("  allowed: the weights twice and the fp64 copy, 4.00 times")


def print_ratios(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    """Print both clocks' ratios of turns: (wall, processor) of forwards and of the measurement."""
    for clock, name in enumerate(("wall-clock", "processor")):
        bare = statistics.median(pair[0][clock] for pair in pairs)
        ours = statistics.median(pair[1][clock] for pair in pairs)
        ratios = sorted(pair[1][clock] / pair[0][clock] for pair in pairs)
        best = min(pair[1][clock] for pair in pairs) / min(pair[0][clock] for pair in pairs)
        print(
            f"{name:10} time: five forwards {bare:.2f} s, the measurement {ours:.2f} s, ratio "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
            f"of the fastest two {best:.3f}"
        )


FOLDER_RUN = """
import json, sys, time
sys.path.insert(0, sys.argv.pop(1))
import accuracy
from kit.accuracy.folder import FolderRun
from kit.device.meters import host_peak_bytes
busy = {"device": [], "reference": []}
def timed(name, key):
    plain = getattr(FolderRun, name)
    def call(*a):
        start = time.perf_counter(); found = plain(*a)
        busy[key].append((start, time.perf_counter())); return found
    setattr(FolderRun, name, call)
timed("device_features", "device"); timed("reference", "reference")
start = time.perf_counter(); code = accuracy.main(sys.argv[1:]); wall = time.perf_counter() - start
peak = host_peak_bytes()
print(json.dumps({"code": code, "wall": wall, "peak": peak, **busy}))
"""


def folder(counts: list[int]) -> None:
    """Print memory over the number of images, and how far device and references overlap."""
    from PIL import Image

    from tests.models import save_tiny_vit

    with tempfile.TemporaryDirectory() as name:
        weights = save_tiny_vit(Path(name, "weights"))
        with Image.open(ROOT / "data" / "sample.jpg") as sample:
            small = sample.resize((160, 107))
        for count in counts:
            images = Path(name, f"images-{count}")
            images.mkdir()
            for number in range(count):
                small.putpixel((number % 160, number // 160), (number % 251, 0, 255))
                small.save(images / f"{number:05}.png", compress_level=0)
            command = [sys.executable, "-c", FOLDER_RUN, str(ROOT), "--device", "cpu",
                       "--weights", str(weights), "--image", str(images), "--workers", "1",
                       "--no-references", "--output-dir", str(Path(name, "out"))]  # fmt: skip
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{count:6} images: {found['wall']:7.1f} s, peak {found['peak'] / 1e6:6.0f} MB, "
                f"a reference under way for {overlap(found):.0%} of the device's time"
            )


def overlap(found: dict[str, list[list[float]]]) -> float:
    """Return the share of the device's time in which a reference was being computed too."""
    total = sum(end - start for start, end in found["device"])
    shared, references = 0.0, sorted(map(tuple, found["reference"]))
    for start, end in found["device"]:
        shared += sum(max(0.0, min(end, last) - max(start, first)) for first, last in references)
    return shared / total


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="turns for one image (default: 15)")
    parser.add_argument("--images", type=int, default=2000, help="largest folder (default: 2000)")
    arguments = parser.parse_args()
    print(f"npu_patch: {npu_patch.status().reason}")
    one_image(arguments.runs)
    folder([10, arguments.images // 10, arguments.images])


if __name__ == "__main__":
    main()
