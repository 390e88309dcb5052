"""The declared arithmetic on the CPU: what a device's mode rounds is rounded here too.

HF32 and TF32 round the inputs of matrix products or convolutions and add up in fp32. bf16 and
fp16 store every result in that type while a matrix product or convolution adds up in fp32, on
an NPU's cube unit as on a GPU's tensor cores.

Sources: HF32 has fp32's exponent and 11 mantissa bits, rounded to nearest, ties to even (CANN,
--allow_hf32 and SetHF32); TF32 has 10 mantissa bits (NVIDIA, A100 whitepaper).
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from kit.accuracy.limits import Arithmetic, arithmetic_of
from kit.records import FloatMode

FP32_MANTISSA_BITS = 23
MANTISSA_BITS: dict[FloatMode, int] = {"hf32": 11, "tf32": 10}
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

aten = torch.ops.aten
# Operators whose inputs a reduced fp32 mode rounds, and where these inputs stand.
PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 2),
    aten._scaled_dot_product_attention_math.default: (0, 1, 2),
}
CONVOLUTIONS = {aten.convolution.default: (0, 1)}
# Where the CPU may lack a fast half kernel, fp32 arithmetic on the half inputs is the same.
ADDED_UP_IN_FP32 = frozenset(
    {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
    | set(CONVOLUTIONS)
)


@dataclass(frozen=True)
class Declared:
    """What a run says it computes with.

    Attributes:
        dtype: fp32, bf16 or fp16.
        matmul: what an fp32 matrix product computes with.
        convolution: what an fp32 convolution computes with.
    """

    dtype: str = "fp32"
    matmul: FloatMode = "fp32"
    convolution: FloatMode = "fp32"

    @property
    def arithmetic(self) -> Arithmetic:
        """The row of the limits' table."""
        return arithmetic_of(self.dtype, self.matmul, self.convolution)

    @property
    def plain(self) -> bool:
        """Whether it is fp32 throughout, which the CPU computes as it is."""
        return self.arithmetic == "fp32"

    def __str__(self) -> str:
        """Return it in words, for reports."""
        if self.dtype != "fp32":
            return self.dtype
        return f"fp32 (matrix products {self.matmul}, convolutions {self.convolution})"


def round_mantissa(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """Return fp32 values rounded to `bits` mantissa bits, to nearest, ties to even.

    Infinities and NaN stay; subnormal numbers are rounded at the same bit position.
    """
    shift = FP32_MANTISSA_BITS - bits
    pattern = tensor.contiguous().view(torch.int32)
    odd = (pattern >> shift) & 1
    rounded = (pattern + odd + ((1 << (shift - 1)) - 1)) & -(1 << shift)
    return torch.where(torch.isfinite(tensor), rounded.view(torch.float32), tensor)


class ReducedFp32(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base is untyped
    """Rounds the inputs of fp32 matrix products and convolutions while it is active."""

    def __init__(self, declared: Declared) -> None:
        """Round as `declared` says."""
        super().__init__()  # type: ignore[no-untyped-call] # torch's own base is untyped
        self.rounded: dict[object, tuple[tuple[int, ...], int]] = {}
        for mode, operators in ((declared.matmul, PRODUCTS), (declared.convolution, CONVOLUTIONS)):
            if mode != "fp32":
                places = operators.items()
                self.rounded |= {name: (where, MANTISSA_BITS[mode]) for name, where in places}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator of torch's own untyped kind
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run one operator, its inputs rounded where it is one of those."""
        if func in self.rounded:
            places, bits = self.rounded[func]
            args = tuple(
                round_mantissa(value, bits)
                if index in places and value.dtype == torch.float32
                else value
                for index, value in enumerate(args)
            )
        return func(*args, **(kwargs or {}))


class HalfProducts(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base is untyped
    """Computes half-precision matrix products and convolutions in fp32 and rounds the result."""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator of torch's own untyped kind
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run one operator, in fp32 where it is one of those."""
        if func not in ADDED_UP_IN_FP32:
            return func(*args, **(kwargs or {}))
        half = next(value.dtype for value in args if isinstance(value, torch.Tensor))
        wide = (value.float() if isinstance(value, torch.Tensor) else value for value in args)
        return func(*wide, **(kwargs or {})).to(half)


def rounding(declared: Declared) -> AbstractContextManager[object]:
    """Return the context in which the CPU rounds as `declared` says; use it without gradients.

    inference_mode must be off: it hands composite operators to the mode undivided.
    """
    if declared.dtype != "fp32":
        return HalfProducts()  # type: ignore[no-untyped-call] # torch's own base is untyped
    return nullcontext() if declared.plain else ReducedFp32(declared)


def in_declared_type(model: PreTrainedModel, declared: Declared) -> PreTrainedModel:
    """Return the CPU model with its weights in the declared type: itself for fp32, else a copy."""
    if declared.dtype == "fp32":
        return model
    return copy_in(model, HALF_TYPES[declared.dtype])


def copy_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of the model with its floating tensors in `dtype`; no other copy is made."""
    converted: dict[int, torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            changed = tensor.detach().to(dtype, copy=True)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            converted[id(tensor)] = (
                torch.nn.Parameter(changed, requires_grad=False) if is_parameter else changed
            )
    copied: PreTrainedModel = copy.deepcopy(model, converted)
    return copied
