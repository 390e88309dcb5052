"""Faults on demand: each environment variable does what its line in the README says.

Every child works on one device with a stack of ten GELUs, whose values are known.
"""

import json
import math
import re
from dataclasses import dataclass

import pytest

from tests.emulated_npu import EmulatedNpu

# Ten layers x -> gelu(x) on two tokens; prints one JSON line: which call raised what, the values.
LAYERS = """
import json, sys
import torch
from torch.nn import functional as F

def step(name, action):
    try:
        return action()
    except RuntimeError as error:
        if report["error"] is None:
            report.update(error=str(error), raised_at=name)
        return None

report = {"raised_at": None, "error": None}
x = torch.full((1, 2, 4), 3.0, device="npu")
for layer in range(1, 11):
    y = step(f"layer {layer}", lambda: F.gelu(x))
    if y is None:
        break
    x = y
step("synchronize", torch.npu.synchronize)
values = step("copy", lambda: x.cpu())
report["values"] = None if values is None else [str(v) for v in values.flatten().tolist()]
print("REPORT " + json.dumps(report), flush=True)
"""


@dataclass(frozen=True)
class LayersReport:
    """What the child saw: the values of its eight numbers, or where an error was raised."""

    values: list[float] | None
    raised_at: str | None
    error: str | None
    stderr: str


def run_layers(npu_host: EmulatedNpu, **environment: str) -> LayersReport:
    finished = npu_host.run_code(LAYERS, environment=environment)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT ")[1])
    values = report["values"] and [float(value) for value in report["values"]]
    return LayersReport(values, report["raised_at"], report["error"], finished.stderr)


@pytest.fixture(scope="module")
def right_values(npu_host: EmulatedNpu) -> list[float]:
    """Return what the layers compute without a fault."""
    values = run_layers(npu_host).values
    assert values is not None
    return values


@pytest.mark.parametrize("call", [1, 5, 10])
def test_a_failed_launch_raises_at_its_own_call_without_the_task_queue(
    npu_host: EmulatedNpu, call: int
) -> None:
    report = run_layers(npu_host, FAKECANN_FAIL=f"aclnnGelu:{call}", TASK_QUEUE_ENABLE="0")
    assert report.raised_at == f"layer {call}"
    assert "aclnnGelu" in str(report.error)


def test_a_failed_launch_in_the_task_queue_is_raised_later_and_names_the_operator(
    npu_host: EmulatedNpu,
) -> None:
    report = run_layers(npu_host, FAKECANN_FAIL="aclnnGelu:5", TASK_QUEUE_ENABLE="1")
    assert report.raised_at is not None
    assert "aclnnGelu" in str(report.error)


@pytest.mark.parametrize("asynchronous", ["0", "1"])
def test_an_aborted_kernel_fails_the_next_wait_and_names_the_operator(
    npu_host: EmulatedNpu, asynchronous: str
) -> None:
    report = run_layers(
        npu_host,
        FAKECANN_ABORT="aclnnGelu:5",
        FAKECANN_ASYNC=asynchronous,
        TASK_QUEUE_ENABLE="0",
    )
    assert report.raised_at == "synchronize"
    assert "507015" in str(report.error)
    assert "[fake_cann] aclnnGelu: injected abort" in report.stderr


def test_nan_comes_at_the_call_that_was_named(
    npu_host: EmulatedNpu, right_values: list[float]
) -> None:
    values = run_layers(npu_host, FAKECANN_NAN="aclnnGelu:10").values
    assert values is not None
    assert all(math.isnan(value) for value in values)
    assert run_layers(npu_host, FAKECANN_NAN="aclnnGelu:11").values == right_values


def test_one_wrong_token_leaves_the_others_alone(
    npu_host: EmulatedNpu, right_values: list[float]
) -> None:
    values = run_layers(npu_host, FAKECANN_WRONG_TOKEN="aclnnGelu:10:1").values
    assert values is not None
    assert values[:4] == right_values[:4]
    assert all(abs(a - b) > 0.5 for a, b in zip(values[4:], right_values[4:], strict=True))


def test_an_operator_can_be_off_by_a_factor(
    npu_host: EmulatedNpu, right_values: list[float]
) -> None:
    values = run_layers(npu_host, FAKECANN_WRONG="aclnnGelu:10:1.5").values
    assert values == pytest.approx([1.5 * value for value in right_values])


def test_a_vanished_device_answers_every_later_call_with_an_error(npu_host: EmulatedNpu) -> None:
    source = """
import torch
other = torch.ones(2, device="npu:1")
x = torch.ones(2, device="npu:0")
errors = []
for action in (lambda: torch.nn.functional.gelu(x), lambda: x.cpu(), torch.npu.synchronize,
               torch.npu.mem_get_info, lambda: torch.npu.Event().record(),
               lambda: torch.empty(1 << 28, device="npu:0")):
    try:
        action()
    except RuntimeError as error:
        errors.append("507010" in str(error) or "heartbeat" in str(error))
print("errors", errors)
print("other", (other + 1).cpu().tolist())
"""
    finished = npu_host.run_code(
        source, environment={"FAKECANN_LOST": "aclnnGelu:1", "TASK_QUEUE_ENABLE": "0"}
    )
    assert f"errors {[True] * 6}" in finished.stdout, finished.stdout + finished.stderr
    assert "other [2.0, 2.0]" in finished.stdout, finished.stderr
    assert finished.returncode == 0, finished.stderr


def test_memory_runs_out_at_the_size_that_was_set(npu_host: EmulatedNpu) -> None:
    source = """
import torch
torch.npu.set_device(0)
print("total", torch.npu.get_device_properties(0).total_memory, torch.npu.mem_get_info()[1])
kept = torch.empty(300 << 20, dtype=torch.uint8, device="npu")
try:
    torch.empty(300 << 20, dtype=torch.uint8, device="npu")
except torch.OutOfMemoryError as error:
    print("caught", str(error)[:60])
del kept
torch.npu.empty_cache()
torch.empty(300 << 20, dtype=torch.uint8, device="npu")
print("again")
"""
    finished = npu_host.run_code(source, environment={"FAKECANN_HBM_GIB": "0.5"})
    assert "total 536870912 536870912" in finished.stdout, finished.stdout + finished.stderr
    assert "caught NPU out of memory" in finished.stdout
    assert "again" in finished.stdout


CALLS = {
    "ones": "torch.ones(2, device='npu').sum().item()",
    "memory": "torch.empty(300 << 20, dtype=torch.uint8, device='npu')",
    "gelu": "torch.nn.functional.gelu(torch.ones(2, device='npu'))",
    "graph": "torch.npu.graph(torch.npu.NPUGraph()).__enter__()",
}


@pytest.mark.parametrize(
    ("environment", "call", "cause"),
    [
        (
            {"FAKECANN_FAIL": "aclInit:*:500001"},
            "ones",
            "EC0010: .* Failed to import Python module .*`np.float_` was removed",
        ),
        pytest.param(
            {"FAKECANN_FAIL": "aclSetCompileopt", "FAKECANN_VERSION": "8.2.RC1"},
            "ones",
            "EC0010: .*np.float_",
            marks=pytest.mark.extended,
        ),
        ({"FAKECANN_FAIL": "aclrtSetDevice"}, "ones", "injected failure of aclrtSetDevice"),
        (
            {"FAKECANN_FAIL": "aclnnGelu:1:561103"},
            "gelu",
            "EZ9999: .* Cannot find bin of op Gelu",
        ),
        ({"FAKECANN_FAIL": "aclnnGelu:1:500002"}, "gelu", "E40021: .* No module named 'attr'"),
        pytest.param(
            {"FAKECANN_FAIL": "aclmdlRICaptureBegin"},
            "graph",
            "EE1023: .* too many streams",
            marks=pytest.mark.extended,
        ),
        (
            {"FAKECANN_OOM": "207018", "FAKECANN_HBM_GIB": "0.25"},
            "memory",
            "EL0004: .* Failed to allocate memory",
        ),
        ({"FAKECANN_FAIL": "aclnnGelu:1:207018"}, "gelu", "EL0004: .* Failed to allocate memory"),
        pytest.param(
            {"FAKECANN_FAIL": "aclrtMalloc"},
            "ones",
            "EL0004: .* Failed to allocate memory",
            marks=pytest.mark.extended,
        ),
    ],
)
def test_an_error_has_its_cause_in_a_later_line_as_cann_says_it(
    npu_host: EmulatedNpu, environment: dict[str, str], call: str, cause: str
) -> None:
    source = f"""
import torch
try:
    {CALLS[call]}
except RuntimeError as error:
    print(type(error).__name__, error)
"""
    finished = npu_host.run_code(source, environment={**environment, "TASK_QUEUE_ENABLE": "0"})
    assert finished.returncode == 0, finished.stderr
    first, *others = finished.stdout.splitlines()
    code = environment.get("FAKECANN_OOM") or environment["FAKECANN_FAIL"].split(":")[-1]
    assert first.split()[0] == ("OutOfMemoryError" if "EL0004" in cause else "RuntimeError")
    assert not code.isdigit() or f"error code is {code}" in first
    found = [index for index, line in enumerate(others) if re.search(cause, line)]
    assert found, finished.stdout
    assert found[0] >= 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FAKECANN_NAN", "Gelu", "'Gelu' is neither * nor the name of an aclnn operator"),
        ("FAKECANN_FAIL", "aclnnGelu:0", "calls are counted from 1"),
        ("FAKECANN_DELAY_US", "fast", "'fast' is not a number of at least 0"),
        ("FAKECANN_GELU", "sigmoid", "'sigmoid' is none of tanh, erf"),
        ("FAKECANN_NANS", "aclnnGelu", "no such variable"),
    ],
)
def test_a_misspelt_fault_ends_the_process_instead_of_injecting_nothing(
    npu_host: EmulatedNpu, variable: str, value: str, message: str
) -> None:
    finished = npu_host.run_code("import torch_npu", environment={variable: value})
    assert finished.returncode == 96
    assert f"[fake_cann] {variable}: {message}" in finished.stderr
