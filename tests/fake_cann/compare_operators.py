"""Compare operators on the emulated NPU with the CPU's, one line of operator_cases.txt at a time.

    python3 tests/fake_cann/run.py tests/fake_cann/compare_operators.py [TEXT]

Runs the lines that contain TEXT (all by default) and prints those whose results differ or that
fail, then `N of M differ`. Exit code 1 when there is any.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

# An operator that is missing then raises at its own call and the others still run.
os.environ.setdefault("TASK_QUEUE_ENABLE", "0")
os.environ.setdefault("FAKECANN_STRICT", "0")
os.environ.setdefault("FAKECANN_GELU", "erf")  # without npu_patch it is tanh, as on chips

import torch
from torch import Tensor

CASES_FILE = Path(__file__).with_name("operator_cases.txt")
TOLERANCE = 2e-4


def assigned(tensor: Tensor, index: object, value: Tensor | float) -> Tensor:
    """Return `tensor` after `tensor[index] = value`."""
    tensor[index] = value  # type: ignore[index] # the cases hold every kind of index
    return tensor


def grads(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the function's result and the gradient of its sum for each input."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    result = function(*leaves)
    return (result.detach(), *torch.autograd.grad(result.sum(), leaves))


def evaluate(case: str, device: str) -> object:
    """Evaluate one line with the same random numbers on every device."""
    generator = torch.Generator().manual_seed(0)

    def t(*shape: int | list[float]) -> Tensor:
        if isinstance(shape[0], list):
            return torch.tensor(shape[0], dtype=torch.float32).to(device)
        return torch.randn([int(str(size)) for size in shape], generator=generator).to(device)

    names = {
        "F": torch.nn.functional,
        "assigned": assigned,
        "device": device,
        "grads": grads,
        "i": lambda *shape: (t(*shape) * 10).long(),
        "t": t,
        "torch": torch,
    }
    return eval(case, names)


def on_cpu(result: object) -> list[object]:
    """Flatten a result into CPU tensors and plain values."""
    if isinstance(result, Tensor):
        return [result.cpu()]
    if isinstance(result, tuple | list):
        return [part for element in result for part in on_cpu(element)]
    return [result]


def difference(case: str) -> str:
    """Say how the two results of a case differ, in one line; empty when they agree."""
    expected = on_cpu(evaluate(case, "cpu"))
    try:
        actual = on_cpu(evaluate(case, "npu"))
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def main() -> int:
    """Compare the cases that contain the text given on the command line, or all."""
    torch.npu.conv.allow_hf32 = False  # type: ignore[attr-defined] # added by torch_npu
    wanted = " ".join(sys.argv[1:])
    lines = [line for line in CASES_FILE.read_text().splitlines() if line and line[0] != "#"]
    cases = [line for line in lines if wanted in line]
    differ = 0
    for case in cases:
        problem = difference(case)
        differ += bool(problem)
        if problem:
            print(f"{case}\n    {problem}", flush=True)  # noqa: T201 - the report
    print(f"{differ} of {len(cases)} differ")  # noqa: T201 - the report
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
