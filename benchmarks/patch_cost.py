"""What npu_patch costs, beside torch_npu's own transfer_to_npu, in one run.

Measured: the import beyond torch and torch_npu; what the patch adds to single calls, those that
name no CUDA device and those that do; and the host's cost of a DINOv3 ViT-B/16 forward against the
same forward written for torch.npu. On the emulated NPU (tests/fake_cann/README.md) operators do not
compute with FAKECANN_NOOP=1, so that only the host's cost is left.

What comes out: a table of medians in microseconds or milliseconds, each beside the plain one.

    python3 tests/fake_cann/run.py benchmarks/patch_cost.py
    python3 tests/fake_cann/run.py benchmarks/patch_cost.py --rounds 60 --layers 12

Every row alternates between the plain call and the patched one in small batches, and gives the
median of the differences: a machine that others use changes its speed within a second.
"""

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BATCH = 400  # calls between two looks at the clock
PATCHES = ("npu_patch", "transfer_to_npu")
Call = Callable[[], object]

# Code run once for both, then the same call without and with the patch. `T` and `D` are torch's
# Tensor.to and device, taken anew for each side.
SETUP = """
import torch
from torch.nn import functional
x = torch.ones(2); y = torch.ones(2); on_npu = torch.ones(2, device="npu"); model = torch.nn.ReLU()
cpu = torch.device("cpu"); there = on_npu.device; leaf = on_npu.clone().requires_grad_()
"""
# name: the call; {device} is "npu:0" without the patch and "cuda:0" with it
NO_DEVICE = {
    "torch.ones(2)": "torch.ones(2)",
    "torch.ones(2, device='cpu')": "torch.ones(2, device='cpu')",
    "torch.tensor([1.0])": "torch.tensor([1.0])",
    "x.to(torch.float32)": "x.to(torch.float32)",
    "x.to('cpu')": "x.to('cpu')",
    "x.to(y)": "x.to(y)",
    "x.new_zeros(2)": "x.new_zeros(2)",
    "x.type()": "x.type()",
    "x.is_cuda": "x.is_cuda",
    "torch.device('cpu')": "torch.device('cpu')",
    "cpu.type": "cpu.type",
    "isinstance(cpu, torch.device)": "isinstance(cpu, torch.device)",
    "torch.autocast('cpu')": "torch.autocast('cpu')",
    "torch.is_autocast_enabled('cpu')": "torch.is_autocast_enabled('cpu')",
    "torch.Generator()": "torch.Generator()",
}
DEVICE = {
    "torch.device(D)": "torch.device('{device}')",
    "torch.empty(2, device=D)": "torch.empty(2, device='{device}')",
    "x.to(D)": "on_npu.to('{device}')",
    "x.to(torch.device(D))": "on_npu.to(torch.device('{device}'))",
    "x.cuda() / x.npu()": "on_npu.{method}()",
    "x.device.type": "there.type",
    "x.is_cuda / x.is_npu": "on_npu.{is_there}",
    "is_available()": "torch.{module}.is_available()",
    "current_device()": "torch.{module}.current_device()",
    "module.to(D)": "model.to('{device}')",
}
# GELU in the form that is asked for, by kernels in Python, beside torch_npu's own
GELU = {
    "gelu(x)": "functional.gelu(on_npu)",
    "gelu_(x)": "torch._C._nn.gelu_(on_npu)",
    "gelu(x), backward": "functional.gelu(leaf).backward(on_npu)",
}
# title, rows, what npu_patch may add to each in microseconds
GROUPS = (("no CUDA device", NO_DEVICE, 0.5), ("a CUDA device", DEVICE, 1.5), ("GELU", GELU, 8.0))
PLAIN = {"device": "npu:0", "method": "npu", "is_there": "is_npu", "module": "npu"}
PATCHED = {"device": "cuda:0", "method": "cuda", "is_there": "is_cuda", "module": "cuda"}


def time_batch(call: Call) -> float:
    """Return the microseconds of one call, over a batch."""
    start = time.thread_time()  # what this thread computes: others may use the machine too
    for _ in range(BATCH):
        call()
    return (time.thread_time() - start) / BATCH * 1e6


def differences(
    plain: Call, patched: Call, switch: Callable[[bool], None], rounds: int
) -> tuple[float, float]:
    """Return the median microseconds of the plain call, and of what the patch adds to it."""
    plains, added = [], []
    for _ in range(rounds):
        switch(False)
        first = time_batch(plain)
        switch(True)
        second = time_batch(patched)
        plains.append(first)
        added.append(second - first)
    return statistics.median(plains), statistics.median(added)


def compile_call(expression: str, scope: dict[str, Any]) -> Call:
    """Make a function of an expression; its cost is on both sides alike."""
    call: Call = eval(f"lambda: {expression}", scope)
    return call


def measure_calls(rounds: int) -> dict[str, tuple[float, float]]:
    """Measure npu_patch's calls: restore and apply between the batches."""
    import npu_patch

    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(SETUP, scope)

    def switch(on: bool) -> None:
        npu_patch.apply() if on else npu_patch.restore()

    rows = {}
    for name, code in {**NO_DEVICE, **DEVICE, **GELU}.items():
        plain = compile_call(code.format(**PLAIN), scope)
        patched = compile_call(code.format(**PATCHED), scope)
        rows[name] = differences(plain, patched, switch, rounds)
    switch(True)
    return rows


def measure_one_side(rounds: int, side: dict[str, str]) -> dict[str, float]:
    """Measure the calls of a patch that cannot be undone, in this process."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(SETUP, scope)
    rows = {}
    for name, code in {**NO_DEVICE, **DEVICE, **GELU}.items():
        call = compile_call(code.format(**side), scope)
        rows[name] = statistics.median(time_batch(call) for _ in range(rounds))
    return rows


def measure_import(module: str) -> float:
    """Return the seconds that importing a patch takes after torch and torch_npu."""
    importlib.import_module("torch_npu")
    start = time.perf_counter()
    importlib.import_module(module)
    return time.perf_counter() - start


def measure_forward(layers: int, rounds: int, transfer: bool) -> tuple[float, float]:
    """Return the median milliseconds of a forward written for torch.npu, and of the patched one.

    npu_patch goes on and off between them. transfer_to_npu stays on for both, so that its own
    process has only one side; the caller takes the plain one from the other process.
    """
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    import npu_patch

    config = DINOv3ViTConfig(num_hidden_layers=layers, num_register_tokens=4)
    model = DINOv3ViTModel(config).eval().to("npu")
    x = torch.zeros(1, 3, 224, 224, device="npu")
    npu: Any = torch.npu  # type: ignore[attr-defined]

    def forward(device: str, module: ModuleType) -> float:
        start = time.thread_time()  # this thread's: torch_npu's queue has a thread of its own
        with torch.inference_mode():
            model(x.to(device))
        milliseconds = (time.thread_time() - start) * 1e3
        module.synchronize()
        return milliseconds

    def side(device: str, module: ModuleType) -> float:
        times = [forward(device, module) for _ in range(7)]
        return statistics.median(times[2:])  # the interpreter adapts to what was switched

    plains, patches = [], []
    gc.disable()
    for turn in range(rounds):
        if transfer:
            patches.append(side("cuda", torch.cuda))
            continue
        for on in (True, False) if turn % 2 else (False, True):  # neither is always the second
            npu_patch.apply() if on else npu_patch.restore()
            if on:
                patches.append(side("cuda", torch.cuda))
            else:
                plains.append(side("npu", npu))
    gc.enable()
    if transfer:
        return statistics.median(patches), 1.0
    ratios = [patched / plain for plain, patched in zip(plains, patches, strict=True)]
    return statistics.median(plains), statistics.median(ratios)


def child(task: str, rounds: int, layers: int) -> object:
    """Do one task of a child process and return what it prints."""
    if task.startswith("import:"):
        return measure_import(task.partition(":")[2])
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    importlib.import_module("torch_npu")
    if task.startswith("transfer"):
        importlib.import_module("torch_npu.contrib.transfer_to_npu")
    if task == "calls":
        return measure_calls(rounds)
    if task in {"plain calls", "transfer calls"}:
        return measure_one_side(rounds, PATCHED if task.startswith("transfer") else PLAIN)
    return measure_forward(layers, rounds, task.startswith("transfer"))


def run_child(task: str, arguments: argparse.Namespace) -> Any:  # noqa: ANN401 - JSON
    """Run one task in a process of its own, and return what it measured."""
    environment = {**os.environ, "FAKECANN_NOOP": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, "--task", task]
    command += ["--rounds", str(arguments.rounds), "--layers", str(arguments.layers)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Run every measurement in a process of its own and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25, help="repetitions of each row")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the DINOv3 model")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(child(arguments.task, arguments.rounds, arguments.layers)))
        return 0
    seconds = {
        module: statistics.median(run_child(f"import:{module}", arguments) for _ in range(5))
        for module in ("npu_patch", "torch_npu.contrib.transfer_to_npu")
    }
    print("import after torch and torch_npu, s (median of 5)")
    for module, value in seconds.items():
        print(f"  {module:<44} {value:8.3f}")
    calls = run_child("calls", arguments)
    plain, transfer = run_child("plain calls", arguments), run_child("transfer calls", arguments)
    print(
        "\none call, us: without a patch, what npu_patch adds, what transfer_to_npu adds (medians)"
    )
    for title, rows, limit in GROUPS:
        print(f"  {title} (limit for npu_patch {limit} us)")
        for name in rows:
            before, added = calls[name]
            print(
                f"    {name:<40} {before:8.2f} {added:+8.2f} {transfer[name] - plain[name]:+8.2f}"
            )
    milliseconds, ratio = run_child("forward", arguments)
    other, _ = run_child("transfer forward", arguments)
    print(
        "\nDINOv3 forward, host cost, ms (median), and its ratio to the one written for torch.npu"
    )
    print(f"  {'written for torch.npu':<44} {milliseconds:8.2f}")
    print(f"  {'npu_patch':<44} {milliseconds * ratio:8.2f} {ratio:8.4f}")
    print(f"  {'transfer_to_npu':<44} {other:8.2f} {other / milliseconds:8.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
