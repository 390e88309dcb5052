"""Switch known causes of a difference one by one, and say what each removes.

On the device a cause is switched off and the device computes again. On the reference's side the
CPU, computing in the declared arithmetic, imitates a further cause that the device may have
without saying so; where the device then agrees, that is what it does.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.arithmetic import Declared, in_declared_type
from kit.accuracy.results import finite
from kit.accuracy.sides import Side
from kit.accuracy.single import Sides
from kit.device.device import device_errors, reduced_fp32
from kit.model import model as models
from kit.model.model import forward
from kit.records import Cause, FloatMode
from kit.statistics import compare


class ErfGelu(nn.Module):
    """GELU written out with the error function, past any kernel of its own.

    Source: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the normal distribution's function at x."""
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


@dataclass(frozen=True)
class Switch:
    """One cause.

    Attributes:
        cause: what is switched.
        where: on the device, or imitated by the reference.
        run: returns last_hidden_state with the switch, on the CPU.
        note: why it cannot be tried; empty where it can.
    """

    cause: str
    where: Literal["device", "reference"]
    run: Callable[[], torch.Tensor]
    note: str = ""


@contextlib.contextmanager
def gelu_replaced(model: PreTrainedModel, make: Callable[[], nn.Module]) -> Iterator[None]:
    """Replace every GELU of the model in the block."""
    before: list[tuple[nn.Module, str, nn.Module]] = []
    for path, module in list(model.named_modules()):
        if "GELU" in type(module).__name__ or type(module) is ErfGelu:
            owner, _, name = path.rpartition(".")
            parent = model.get_submodule(owner)
            before.append((parent, name, module))
            setattr(parent, name, make())
    try:
        yield
    finally:
        for parent, name, module in before:
            setattr(parent, name, module)


@contextlib.contextmanager
def attention_replaced(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Use another attention implementation in the block."""
    before = str(model.config._attn_implementation)
    models.use_attention(model, attention)
    try:
        yield
    finally:
        models.use_attention(model, before)


def explain(sides: Sides, pixels: torch.Tensor) -> tuple[Cause, ...]:
    """Try every switch that fits the device and the model.

    Args:
        sides: device and references.
        pixels: preprocessed, float32 on the CPU, 1 x 3 x rows x columns.

    Raises:
        DeviceError: where the device fails or no longer computes.
    """
    truth = sides.references.truth.features(pixels).last_hidden_state
    plain = on_device(sides, sides.model, pixels)
    declared = sides.references.budget.features(pixels).last_hidden_state
    errors = {
        "device": compare(truth, plain).relative_error,
        "reference": compare(declared, plain).relative_error,
    }
    found = []
    for switch in (*device_switches(sides, pixels), *reference_switches(sides, pixels)):
        before = errors[switch.where]
        if switch.note:
            found.append(Cause(switch.cause, switch.where, None, finite(before), None, switch.note))
            continue
        tensor = switch.run()
        pair = (truth, tensor) if switch.where == "device" else (tensor, plain)
        found.append(cause_of(switch, before, compare(*pair).relative_error))
    sides.setup.health.after("the explanation")
    return tuple(found)


def cause_of(switch: Switch, before: float, after: float) -> Cause:
    """Return what a switch did."""
    known = math.isfinite(before) and math.isfinite(after) and before > 0
    removes = max(0.0, 1 - after / before) if known else None
    return Cause(switch.cause, switch.where, finite(after), finite(before), removes, "")


def on_device(
    sides: Sides,
    model: PreTrainedModel,
    pixels: torch.Tensor,
    context: AbstractContextManager[object] | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute on the device within a context and return last_hidden_state on the CPU."""
    target, dtype = sides.setup.device.torch_device, dtype or sides.setup.dtype
    with device_errors("explaining the difference"), context or contextlib.nullcontext():
        features = forward(model, pixels.to(target, dtype))
        return features.last_hidden_state.cpu()


def device_switches(sides: Sides, pixels: torch.Tensor) -> Sequence[Switch]:
    """Return the switches on the device."""
    model, declared = sides.model, sides.references.declared
    label = "TF32" if sides.setup.device.type == "cuda" else "HF32"
    fp32 = declared.dtype == "fp32"

    def mode(name: str, now: FloatMode, *, matmul: bool, convolution: bool) -> Switch:
        note = ""
        if sides.self_check:
            note = f"the CPU has no {label}"
        elif not fp32:
            note = f"{declared.dtype} does not use it"
        elif now == "fp32":
            note = "off already"
        switched = reduced_fp32(matmul=matmul, convolution=convolution)
        return Switch(
            f"{label} {name} off", "device", lambda: on_device(sides, model, pixels, switched), note
        )

    switches = [
        mode("convolution", declared.convolution, matmul=declared.matmul != "fp32",
             convolution=False),
        mode("matrix products", declared.matmul, matmul=False,
             convolution=declared.convolution != "fp32"),
    ]  # fmt: skip
    if models.has_attention(model.config):
        other = "eager" if model.config._attn_implementation == "sdpa" else "sdpa"
        switches.append(
            Switch(
                f"{other} attention",
                "device",
                lambda: on_device(sides, model, pixels, attention_replaced(model, other)),
            )
        )
    switches.append(
        Switch(
            "GELU written out with erf",
            "device",
            lambda: on_device(sides, model, pixels, gelu_replaced(model, ErfGelu)),
        )
    )
    note = "fp32 already" if fp32 else ""
    switches.append(Switch("fp32 throughout", "device", lambda: in_fp32(sides, pixels), note))
    return switches


def in_fp32(sides: Sides, pixels: torch.Tensor) -> torch.Tensor:
    """Compute on the device in fp32, from the reference's own weights."""
    with device_errors("moving the fp32 model to the device"):
        model = copy.deepcopy(sides.references.cpu.model).to(sides.setup.device.torch_device)
    return on_device(sides, model, pixels, dtype=torch.float32)


def reference_switches(sides: Sides, pixels: torch.Tensor) -> Sequence[Switch]:
    """Return the causes that the CPU imitates."""
    declared, model = sides.references.declared, sides.references.cpu.model
    base = sides.references.budget

    def arithmetic(name: str, imitated: Declared) -> Switch:
        def run() -> torch.Tensor:
            copied = in_declared_type(model, imitated)
            dtype = next(copied.parameters()).dtype
            return Side(copied, dtype, imitated).features(pixels).last_hidden_state

        note = "declared already" if imitated == declared else ""
        return Switch(name, "reference", run, note)

    def tanh() -> torch.Tensor:
        with gelu_replaced(base.model, lambda: nn.GELU("tanh")):
            return base.features(pixels).last_hidden_state

    reduced: FloatMode = "tf32" if sides.setup.device.type == "cuda" else "hf32"
    label = reduced.upper()
    switches = [
        arithmetic(f"{label} convolution", Declared("fp32", "fp32", reduced)),
        arithmetic(f"{label} matrix products too", Declared("fp32", reduced, reduced)),
        arithmetic("bf16 throughout", Declared("bf16")),
        arithmetic("fp16 throughout", Declared("fp16")),
        Switch("tanh form of GELU", "reference", tanh),
    ]
    rope = [module for module in base.model.modules() if hasattr(module, "inv_freq")]
    if rope:
        run = with_bf16_periods(base, rope[0], pixels)
        switches.append(Switch("RoPE periods in bf16", "reference", run))
    return switches


def with_bf16_periods(
    side: Side, rope: nn.Module, pixels: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return what computes with the rotary embedding's periods rounded to bf16.

    DINOv3's original code keeps the periods, the inverses of inv_freq, in bf16.
    """

    def run() -> torch.Tensor:
        before: torch.Tensor = rope.inv_freq  # type: ignore[assignment] # a buffer
        rope.inv_freq = 1 / (1 / before).to(torch.bfloat16).to(before.dtype)
        try:
            return side.features(pixels).last_hidden_state
        finally:
            rope.inv_freq = before

    return run
