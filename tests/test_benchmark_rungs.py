"""The ladder's further rungs: channels-last, torch.compile, oneDNN's fast-math, and the command."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import benchmark
from kit.benchmark import modes, run
from kit.benchmark.modes import without_compiler, without_fast_math
from kit.device.device import Device
from kit.device.health import HealthChecks
from kit.model.model import forward, load
from kit.model.preprocessing import Preprocessing
from kit.model.runner import Images, run_mode
from kit.model.setup import Setup
from kit.options import Mode
from kit.records import DeviceArithmetic, DeviceInfo, ModelInfo, Products
from tests import report_records
from tests.benchmark_runs import Go, record_of

pytest_plugins = ["tests.benchmark_plugin"]  # for the fixture `go`

CPU = Device("cpu", None, "a processor", 1, torch.device("cpu"))
NPU = Device("npu", 0, "Ascend910", 1, torch.device("cpu"))
QUICK = ("--size", "32", "--no-report")
GPU = Device("cuda", 0, "a GPU", 1, torch.device("cpu"))


def test_images_and_weights_lie_channels_last_and_the_features_stay(tiny_weights: Path) -> None:
    info = ModelInfo(None, "random", "", "", 0, "fp32", "sdpa")
    model, checks = load(tiny_weights, "sdpa"), HealthChecks(CPU)
    setup = Setup(CPU, torch.float32, model, Preprocessing(), info, checks, 0.0)
    pixels = torch.randn(2, 3, 32, 32)
    images = Images(pixels, forward(setup.model, pixels))
    mode = Mode("fp32", "sdpa", channels_last=True)
    with run_mode(setup, mode, images, keep=True) as runner:
        batch = runner.input(2)
        assert batch.stride() == (3 * 32 * 32, 1, 3 * 32, 3)
        weight = next(one for one in runner.model.parameters() if one.dim() == 4)
        assert weight.is_contiguous(memory_format=torch.channels_last)
        with runner.forwards(batch) as call:
            torch.testing.assert_close(call().pooler_output, images.expected.pooler_output)
    assert next(p for p in setup.model.parameters() if p.dim() == 4).is_contiguous()


def test_a_compiled_mode_is_measured_and_checked_with_its_compilation_apart(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Dynamo's own back end: the graph is taken and checked, and no C++ is made of it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    code, folder = go("--modes", "fp32,fp32-compile", *QUICK)
    assert code == 0
    eager, compiled = record_of(folder)["results"]["ladder"]
    assert (eager["compiled"], eager["compile_ms"]) == (False, None)
    assert compiled["compiled"] and compiled["verdict"] == "SELF-CHECK"
    assert compiled["relative_error"] < 1e-5
    assert compiled["compile_ms"] > compiled["latency"]["max_ms"]
    assert [row["batch_size"] for row in compiled["throughput"]] == [1, 2]
    line = next(
        x for x in capsys.readouterr().out.splitlines() if x.startswith("fp32-sdpa-compile")
    )
    assert line.endswith(f"(compiled in {compiled['compile_ms'] / 1e3:.1f} s)")


@pytest.mark.extended
def test_what_inductor_makes_of_the_model_computes_the_same(go: Go) -> None:
    mode = "fp32-sdpa-channels-last-compile"
    code, folder = go("--modes", mode, *QUICK, "--batch-sizes", "1")
    assert code == 0
    (row,) = record_of(folder)["results"]["ladder"]
    assert (row["mode"], row["verdict"]) == (mode, "SELF-CHECK")
    assert row["relative_error"] < 1e-5
    assert row["compile_ms"] > 10 * row["latency"]["p50_ms"]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (lambda model: model, "torch.compile found nothing to compile"),
        (partial(torch.compile, backend=lambda graph, inputs: 1 // 0), "ZeroDivisionError"),
    ],
)
def test_a_mode_that_cannot_be_compiled_is_named_with_the_reason(
    go: Go, monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., object], reason: str
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    code, folder = go("--modes", "fp32,bf16-compile", *QUICK, "--batch-sizes", "1")
    assert code == 0
    (skipped,) = record_of(folder)["results"]["skipped_modes"]
    assert skipped["mode"] == "bf16-sdpa-compile"
    assert skipped["reason"].startswith("bf16-sdpa-compile, batch 1 cannot be compiled: ")
    assert reason in skipped["reason"]


def test_nothing_is_compiled_once_the_budget_is_used_up(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.Budget, "left_s", lambda self: 0.0)
    code, folder = go(
        "--modes", "fp32,fp32-compile", *QUICK, "--batch-sizes", "1", "--budget", "1",
    )  # fmt: skip
    assert code == 0
    (skipped,) = record_of(folder)["results"]["skipped_modes"]
    assert skipped["reason"] == "--budget 1 is used up before it is compiled: raise it"


def test_a_compiled_mode_is_not_compiled_again_for_its_sweep_once_the_budget_is_used_up(
    go: Go, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    left = lambda self: 100.0 if self.done < self.modes else 0.0  # noqa: E731 - a method's body
    monkeypatch.setattr(run.Budget, "left_s", left)
    code, folder = go("--modes", "fp32,fp32-compile", *QUICK)
    assert code == 0
    plain, compiled = record_of(folder)["results"]["ladder"]
    assert len(plain["throughput"]) == 2
    assert (compiled["verdict"], compiled["throughput"]) == ("SELF-CHECK", [])
    words = "The sweep of fp32-sdpa-compile ends early: --budget 120 is used up before it is"
    assert words in capsys.readouterr().out


def test_where_torch_compile_has_no_compiler_the_reason_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    words = "torch.compile needs a C++ compiler, and /nowhere/g++ is not found: install it"
    assert without_compiler(CPU) == words
    monkeypatch.setenv("CXX", os.devnull)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert without_compiler(CPU) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert without_compiler(GPU) == "torch.compile needs Triton here: pip install triton"
    assert str(without_compiler(NPU)).startswith("torch.compile is off under npu_patch")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert without_compiler(CPU) == "TORCH_COMPILE_DISABLE=1 turns torch.compile off"


def test_the_cpu_has_channels_last_and_compiled_modes_where_they_are_named() -> None:
    compiled = Mode("bf16", "sdpa", compiled=True)
    plain = Mode("bf16", "sdpa", channels_last=True)
    reason = partial(modes.missing_rung, device=CPU)
    assert reason(plain, named=False) == "measured where --modes names it"
    assert reason(plain, named=True) is None
    assert modes.missing_rung(plain, GPU, named=False) is None
    assert str(modes.missing_rung(compiled, NPU, named=True)).startswith("torch.compile is off")


NO_GELU = replace(report_records.ARITHMETIC, operators=report_records.ARITHMETIC.operators[:2])
TWICE_ERF = replace(
    report_records.ARITHMETIC,
    operators=tuple(replace(one, found="erf") for one in report_records.ARITHMETIC.operators),
)


def why_missing(
    mode: Mode,
    device: Device = NPU,
    *,
    own_gelu: bool = True,
    measured: DeviceArithmetic | None = report_records.ARITHMETIC,
    matmul: Products = "fp32",
    config: type[transformers.PretrainedConfig] = transformers.DINOv3ViTConfig,
    named: bool = True,
) -> str | None:
    """Return why a device of these properties has no such mode."""
    setup: Any = SimpleNamespace(device=device, model=SimpleNamespace(config=config()))
    known: DeviceInfo = report_records.header("benchmark")["device"]
    known = replace(known, arithmetic=measured, matmul_fp32=matmul)
    context: Any = SimpleNamespace() if own_gelu else None
    return modes.missing(mode, setup, known, context, named=named)


def test_the_chips_own_gelu_is_a_mode_where_it_is_another_than_the_models() -> None:
    mode = Mode("fp32", "sdpa", chip_gelu=True)
    assert why_missing(mode) is None  # erf, and the chip's tanh
    assert why_missing(mode, measured=TWICE_ERF) == "the chip's own GELU is erf, too"
    assert why_missing(mode, measured=NO_GELU) is why_missing(mode, measured=None) is None
    assert why_missing(mode, own_gelu=False) == "GELU is the device's own in every mode"
    plain = replace(mode, chip_gelu=False)
    assert why_missing(plain, measured=TWICE_ERF) is why_missing(plain, own_gelu=False) is None


def test_strict_fp32_is_a_mode_where_it_changes_the_products() -> None:
    strict = Mode("strict-fp32", "sdpa")
    known: tuple[Products, ...] = ("fp32", "hf32", "tf32")
    assert {why_missing(strict, matmul=matmul) for matmul in known} == {None}
    assert why_missing(strict, matmul="fp16") == (
        "fp32 products are fp16 here, whatever is set: the same as fp32"
    )
    assert why_missing(Mode("fp32", "sdpa"), matmul="fp16") is None


def test_the_cpu_has_neither_graphs_nor_strict_fp32_and_other_devices_may() -> None:
    graph, strict = Mode("fp32", "sdpa", graph=True), Mode("strict-fp32", "sdpa")
    assert why_missing(graph, CPU) == "the CPU has no graph capture"
    assert str(why_missing(strict, CPU)).startswith("the CPU computes fp32 without HF32 or TF32")
    assert why_missing(Mode("fp32", "sdpa"), CPU) is None
    assert why_missing(graph) is why_missing(strict) is None


def test_a_model_without_attention_has_no_eager_attention() -> None:
    without = partial(why_missing, config=transformers.ConvNextConfig)
    assert without(Mode("fp32", "eager")) == "the model has no attention"
    assert without(Mode("fp32", "sdpa")) is why_missing(Mode("fp32", "eager")) is None


def test_a_rung_of_the_ladder_alone_is_asked_for_more_than_other_modes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, compiled = Mode("bf16", "sdpa", channels_last=True), Mode("bf16", "sdpa", compiled=True)
    assert why_missing(plain, named=False) == "measured where --modes names it"
    assert why_missing(plain, named=True) is why_missing(plain, GPU, named=False) is None
    assert why_missing(Mode("bf16", "sdpa"), named=False) is None
    for named in (True, False):  # naming it would not help
        assert str(why_missing(compiled, named=named)).startswith("torch.compile is off")
    monkeypatch.setattr(modes, "products_with_fast_math", lambda device: "bf16")
    fast = Mode("fp32", "sdpa", fast_math=True)
    assert why_missing(fast, CPU, named=False) is None
    assert why_missing(fast) == "oneDNN's fast-math is the CPU's"
    both = replace(fast, compiled=True)
    assert why_missing(both) == "oneDNN's fast-math is the CPU's"
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert why_missing(both, CPU) == "TORCH_COMPILE_DISABLE=1 turns torch.compile off"
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "0")
    monkeypatch.delenv("CXX", raising=False)
    asked: list[str] = []

    def which(name: str) -> str:
        asked.append(name)
        return name

    monkeypatch.setattr("shutil.which", which)
    for platform in ("linux", "darwin"):
        monkeypatch.setattr("sys.platform", platform)
        assert why_missing(both, CPU) is None
    assert asked == ["g++", "clang++"]
    monkeypatch.setattr("importlib.util.find_spec", {"triton": SimpleNamespace()}.get)
    assert why_missing(compiled, GPU) is None


def test_fast_math_is_left_out_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Mode("fp32", "sdpa", fast_math=True)
    assert without_fast_math(mode, NPU) == "oneDNN's fast-math is the CPU's"
    monkeypatch.setattr(modes, "products_with_fast_math", lambda device: "bf16")
    assert without_fast_math(mode, CPU) is None
    bf16 = Mode("bf16", "sdpa", fast_math=True)
    assert without_fast_math(bf16, CPU) == "oneDNN's fast-math is for products in fp32"
    monkeypatch.setattr(modes, "products_with_fast_math", lambda device: "fp32")
    assert "stay in fp32" in str(without_fast_math(mode, CPU))


def test_what_fast_math_computes_in_is_measured_and_the_setting_restored() -> None:
    before = torch.get_float32_matmul_precision()
    assert modes.products_with_fast_math(CPU) in {"fp32", "bf16"}
    assert torch.get_float32_matmul_precision() == before


def test_what_fast_math_computes_in_is_measured_while_it_is_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probe(*_: object) -> object:
        setting = torch.get_float32_matmul_precision()
        return SimpleNamespace(matmul=lambda: SimpleNamespace(found=setting))

    monkeypatch.setattr(modes, "Probe", probe)
    assert modes.products_with_fast_math(replace(CPU, name="another")) == "medium"


def test_a_mode_with_fast_math_is_held_to_the_limits_of_reduced_products(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "products_with_fast_math", lambda device: "bf16")
    code, folder = go("--modes", "fp32,fp32-fast-math", *QUICK, "--batch-sizes", "1")
    assert code == 0
    plain, fast = record_of(folder)["results"]["ladder"]
    assert (plain["fast_math"], fast["fast_math"]) == (False, True)
    checks = [row["latency"]["check"]["arithmetic"] for row in (plain, fast)]
    assert checks == ["fp32", "fp16"]


def test_the_command_for_the_fastest_mode_names_what_this_run_was_given(
    go: Go, capsys: pytest.CaptureFixture[str], tiny_weights: Path
) -> None:
    code, folder = go("--modes", "fp32", *QUICK, "--batch-sizes", "1")
    assert code == 0
    command = record_of(folder)["results"]["fastest_passing_command"]
    assert command.startswith("python3 benchmark.py --modes fp32-sdpa --device cpu --weights ")
    assert f" --weights {tiny_weights} --image " in command and command.endswith(" --size 32")
    lines = capsys.readouterr().out.splitlines()
    assert f"Run it with: {command}" in lines
    host = next(line for line in lines if line.startswith("Host: "))
    assert host.startswith(f"Host: threads {torch.get_num_threads()}; ")
    assert host.endswith("; OMP_NUM_THREADS=1")
    options = benchmark.parse_options(["--image", "my photo.jpg", "--modes", "bf16"])
    assert run.command(options, "bf16-sdpa") == (
        "python3 benchmark.py --modes bf16-sdpa --image 'my photo.jpg'"
    )
