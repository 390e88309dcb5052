#!/usr/bin/env python3
"""benchmark.py's images per second beside what others measure of the same model.

In turns, each contender in a process of its own, with the same architecture (ViT-B/16 of DINOv3,
random weights, 224 x 224), batch and number of threads, in fp32 on the CPU: benchmark.py, a plain
transformers loop, optimum-benchmark, and timm's benchmark.py on timm's own implementation. Ratios
to the plain loop are taken within each round; their medians count, and what is within 5 % agrees.

The peers' packages come from the index, into an environment of their own; timm's script is in
none of its packages, so its path is given:

    python3 -m venv build/peers
    build/peers/bin/pip install -r requirements.txt transformers==4.57.6
    build/peers/bin/pip install timm optimum-benchmark==0.6.0
    git clone --depth 1 https://github.com/huggingface/pytorch-image-models build/timm
    build/peers/bin/python benchmarks/against_peers.py --timm build/timm/benchmark.py
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import npu_patch  # noqa: F401 # isort: skip - it makes the imports of torch below safe on any host

from tests.preprocessing_reference import define_torchvision_operators

WARM_UP = 3
AGREES = 0.05
TIMM_MODEL = "vit_base_patch16_dinov3"
# What a reader of the figure does not learn from each, read in their sources.
LEAVES_OUT = {
    "benchmark.py": "energy and training, which peers measure",
    "plain loop": "the spread, a warm-up that is tested, whether the features are right",
    "optimum-benchmark": "whether the features are right, whether the warm-up was enough; it waits "
    "for no device but CUDA's; its two thread options set each other's number (0.6.0)",
    "timm": "single samples (a mean alone), whether the features are right; it waits for no device "
    "but CUDA's; its model is another implementation",
}


def of_kit(options: argparse.Namespace) -> float:
    """Return the throughput in benchmark.py's record."""
    import benchmark

    folder = options.weights.parent / "output"
    code = benchmark.main(
        ["--device", "cpu", "--weights", str(options.weights), "--output-dir", str(folder),
         "--batch-sizes", str(options.batch), "--iterations", str(options.iterations),
         "--no-report"]
    )  # fmt: skip
    assert code == 0, f"benchmark.py ended with {code}"
    record = json.loads((folder / "benchmark.json").read_text("utf-8"))
    return float(record["results"]["throughput"][0]["throughput_ips"])


def of_plain_loop(options: argparse.Namespace) -> float:
    """Return what a loop over transformers' own model gives."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(options.weights).eval()
    pixels = torch.randn(options.batch, 3, 224, 224)
    took: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_UP + options.iterations):
            start = time.perf_counter()
            model(pixel_values=pixels)
            took.append(time.perf_counter() - start)
    return float(options.batch / statistics.mean(took[WARM_UP:]))


def of_optimum(options: argparse.Namespace) -> float:
    """Return optimum-benchmark's throughput of a forward."""
    import optimum_benchmark as peer

    config = peer.BenchmarkConfig(
        name="forward",
        launcher=peer.InlineConfig(),
        scenario=peer.InferenceConfig(
            iterations=options.iterations,
            duration=0,
            warmup_runs=WARM_UP,
            input_shapes={
                "batch_size": options.batch, "num_channels": 3, "height": 224, "width": 224,
            },
        ),
        backend=peer.PyTorchConfig(
            model=str(options.weights),
            device="cpu",
            library="transformers",
            task="feature-extraction",
            model_type="dinov3_vit",
        ),
    )  # fmt: skip
    return float(peer.Benchmark.launch(config).to_dict()["forward"]["throughput"]["value"])


def of_timm(options: argparse.Namespace) -> float:
    """Return the samples per second that timm's benchmark.py prints."""
    sys.argv = [
        str(options.timm), "--model", TIMM_MODEL, "--bench", "inference", "--device", "cpu",
        "--img-size", "224", "-b", str(options.batch), "--no-retry",
        "--num-warm-iter", str(WARM_UP), "--num-bench-iter", str(options.iterations),
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(options.timm), run_name="__main__")
    found = json.loads(printed.getvalue().partition("--result\n")[2])
    return float((found[0] if isinstance(found, list) else found)["infer_samples_per_sec"])


CONTENDERS: dict[str, Callable[[argparse.Namespace], float]] = {
    "benchmark.py": of_kit,
    "plain loop": of_plain_loop,
    "optimum-benchmark": of_optimum,
    "timm": of_timm,
}


def in_process(name: str, options: argparse.Namespace) -> float | str:
    """Return a contender's images per second, measured in a process of its own, or why not."""
    command = [sys.executable, __file__, "--contender", name, "--weights", str(options.weights)]
    for option in ("batch", "iterations", "timm"):
        if (value := getattr(options, option)) is not None:
            command += [f"--{option}", str(value)]
    variables = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return float(done.stdout.splitlines()[-1])


def save_model(folder: Path) -> Path:
    """Save the random ViT-B/16 that three of the contenders load, and return its folder."""
    from kit.model.model import random_model

    random_model(0, "sdpa").save_pretrained(folder)
    return folder


def ratio_to_loop(found: dict[str, list[float | str]], name: str) -> float | None:
    """Return the median of a contender's ratios to the plain loop; None without any."""
    pairs = zip(found[name], found["plain loop"], strict=True)
    ratios = [a / b for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    return statistics.median(ratios) if ratios else None


def table(found: dict[str, list[float | str]], options: argparse.Namespace) -> list[str]:
    """Return the rows: images per second, the ratio to the plain loop, what each leaves out."""
    words = f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds, "
    lines = [f"{words}{options.iterations} forwards each; {versions()}"]
    lines.append(f"{'':18} {'images/s':>9} {'to loop':>8}  agrees  what it leaves out")
    for name, values in found.items():
        if (ratio := ratio_to_loop(found, name)) is None:
            lines.append(f"{name:18} not measured: {values[-1]}")
            continue
        speed = statistics.median(one for one in values if isinstance(one, float))
        agrees = "yes" if abs(ratio - 1) <= AGREES else "no"
        lines.append(f"{name:18} {speed:>9.2f} {ratio:>8.3f}  {agrees:<6}  {LEAVES_OUT[name]}")
    return lines


def versions() -> str:
    """Return the versions of the packages that take part."""
    found = []
    for package in ("torch", "transformers", "timm", "optimum-benchmark"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def main() -> int:
    """Print the table; exit 1 where benchmark.py and the plain loop do not agree."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10, help="5 at least, for timm")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--timm", type=Path, help="benchmark.py of timm's repository")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        define_torchvision_operators()  # timm and transformers import it, be it built for CUDA
        print(f"\n{CONTENDERS[options.contender](options)}")
        return 0
    found: dict[str, list[float | str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.weights = save_model(Path(folder) / "weights")
        for number in range(options.rounds):
            for name in CONTENDERS:
                if name == "timm" and options.timm is None:
                    measured: float | str = "give --timm the path of its benchmark.py"
                else:
                    measured = in_process(name, options)
                found.setdefault(name, []).append(measured)
                print(f"round {number + 1}, {name}: {measured}", file=sys.stderr, flush=True)
    print("\n".join(table(found, options)))
    ratio = ratio_to_loop(found, "benchmark.py")
    return int(ratio is None or abs(ratio - 1) > AGREES)


if __name__ == "__main__":
    sys.exit(main())
