"""Switch known causes of a difference one by one, and say what each makes of it.

On the device a cause is switched off and the device computes again. On the reference's side the
CPU, computing in the declared arithmetic, imitates every other documented one, the closed list of
kit/device/arithmetic.py, operator by operator; where the device then agrees, that is what it does.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.references import Declared, Side, Sides, in_declared_type
from kit.device.arithmetic import MANTISSA_BITS, STORED
from kit.device.device import device_errors, reduced_fp32
from kit.model import model as models
from kit.model.model import forward
from kit.records import Cause, Products
from kit.statistics import compare, finite


class ErfGelu(nn.Module):
    """GELU written out with the error function, past any kernel of its own.

    Source: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the normal distribution's function at x."""
        return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


@dataclass(frozen=True)
class Switch:
    """One cause, what returns last_hidden_state on the CPU with it, and why it cannot be tried."""

    cause: str
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
    """Try every switch that fits the device and the model on one preprocessed image.

    Those of the reference come nearest first; none where the device's output has another shape
    than the CPU's. A DeviceError where the device fails or no longer computes.
    """
    fp64 = sides.references.fp64.features(pixels).last_hidden_state
    plain = on_device(sides, sides.model, pixels)
    imitation = sides.references.imitation.features(pixels).last_hidden_state
    if plain.shape != fp64.shape:
        return ()
    before = compare(fp64, plain).relative_error
    causes = [
        cause_of(switch, "device", before, lambda tensor: (fp64, tensor))
        for switch in device_switches(sides, pixels)
    ]
    before = compare(imitation, plain).relative_error
    imitated = [
        cause_of(switch, "reference", before, lambda tensor: (tensor, plain))
        for switch in reference_switches(sides, pixels)
    ]
    imitated.sort(key=lambda one: math.inf if one.relative_error is None else one.relative_error)
    sides.setup.health.after("the explanation")
    return (*causes, *imitated)


def cause_of(
    switch: Switch,
    where: Literal["device", "reference"],
    before: float,
    pair: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> Cause:
    """Try a switch and return what it did; `pair` makes the two tensors to be compared."""
    if switch.note:
        return Cause(switch.cause, where, None, finite(before), None, switch.note)
    after = compare(*pair(switch.run())).relative_error
    known = math.isfinite(before) and math.isfinite(after) and before > 0
    removes = max(0.0, 1 - after / before) if known else None
    return Cause(switch.cause, where, finite(after), finite(before), removes, "")


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


def device_switches(sides: Sides, pixels: torch.Tensor) -> Iterator[Switch]:
    """Yield the switches on the device."""
    model, declared = sides.model, sides.references.declared
    label = "TF32" if sides.setup.device.type == "cuda" else "HF32"
    fp32 = declared.dtype == "fp32"

    def on(context: AbstractContextManager[object]) -> Callable[[], torch.Tensor]:
        return lambda: on_device(sides, model, pixels, context)

    for name, now in (("convolution", declared.convolution), ("matrix products", declared.matmul)):
        note = "off already" if now == "fp32" else ""
        if sides.self_check:
            note = f"the CPU has no {label}"
        elif not fp32:
            note = f"{declared.dtype} does not use it"
        others = reduced_fp32(
            matmul=name == "convolution" and declared.matmul != "fp32",
            convolution=name != "convolution" and declared.convolution != "fp32",
        )
        yield Switch(f"{label} {name} off", on(others), note)
    if models.has_attention(model.config):
        other = "eager" if model.config._attn_implementation == "sdpa" else "sdpa"
        yield Switch(f"{other} attention", on(attention_replaced(model, other)))
    yield Switch("GELU written out with erf", on(gelu_replaced(model, ErfGelu)))
    yield Switch("fp32 throughout", lambda: in_fp32(sides, pixels), "fp32 already" if fp32 else "")


def in_fp32(sides: Sides, pixels: torch.Tensor) -> torch.Tensor:
    """Compute on the device in fp32, from the reference's own weights."""
    with device_errors("moving the fp32 model to the device"):
        model = copy.deepcopy(sides.references.fp32.model).to(sides.setup.device.torch_device)
    return on_device(sides, model, pixels, dtype=torch.float32)


def reference_switches(sides: Sides, pixels: torch.Tensor) -> Iterator[Switch]:
    """Yield the causes that the CPU imitates."""
    declared, model = sides.references.declared, sides.references.fp32.model
    for name, imitated in other_arithmetics(declared):
        note = "declared already" if str(imitated) == str(declared) else ""
        yield Switch(name, partial(imitate, model, imitated, pixels), note)
    base = sides.references.imitation
    rope = next((module for module in base.model.modules() if hasattr(module, "inv_freq")), None)
    if rope is not None:
        yield Switch("RoPE periods in bf16", partial(with_bf16_periods, base, rope, pixels))


def other_arithmetics(declared: Declared) -> Iterator[tuple[str, Declared]]:
    """Yield the declared arithmetic with each documented change that its type allows, named."""
    for name in get_args(Products) if declared.dtype == "fp32" else ():
        shown = name.upper() if name in MANTISSA_BITS else name
        products = replace(declared, matmul=name, attention=None)
        yield f"convolution: {shown}", replace(declared, convolution=name)
        if not name.endswith(STORED):
            yield f"attention: {shown}", replace(declared, attention=name)
        yield f"matrix products: {shown}", products
        yield f"matrix products and convolution: {shown}", replace(products, convolution=name)
    yield "bf16 throughout", Declared("bf16", gelu=declared.gelu)
    yield "fp16 throughout", Declared("fp16", gelu=declared.gelu)
    yield "erf form of GELU", replace(declared, gelu="erf")
    yield "tanh form of GELU", replace(declared, gelu="tanh")


def imitate(model: PreTrainedModel, declared: Declared, pixels: torch.Tensor) -> torch.Tensor:
    """Compute on the CPU in an arithmetic, from the fp32 model's weights."""
    side = Side(in_declared_type(model, declared), declared)
    return side.features(pixels).last_hidden_state


def with_bf16_periods(side: Side, rope: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Compute with the rotary embedding's periods rounded to bf16.

    DINOv3's original code keeps the periods, the inverses of inv_freq, in bf16.
    """
    before: torch.Tensor = rope.inv_freq  # type: ignore[assignment] # a buffer
    rope.inv_freq = 1 / (1 / before).to(torch.bfloat16).to(before.dtype)
    try:
        return side.features(pixels).last_hidden_state
    finally:
        rope.inv_freq = before
