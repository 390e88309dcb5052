"""What a device really computes in, found by small probes before anything is compared.

Settings and data types say what was asked for; a chip may do something else. Each probe runs one
operator on inputs from a fixed seed and holds the result against what every documented arithmetic
predicts, computed in fp64 on the CPU. The device computes in the one that is met within a
tolerance, or in none of the known ones: then the nearest is named with its distance.

The list is closed. An order of adding up, or the last places of exp and erf, is no arithmetic of
its own: the tolerances allow for them (TOLERANCES has the reasons) and are at least ten times
smaller than the distance between any two entries. What nobody documents explains no error.

Sources of the entries:
    hf32   fp32's exponent, 11 mantissa bits, rounded to nearest even (CANN, cubeMathType
           ALLOW_FP32_DOWN_PRECISION and SetHF32)
    tf32   fp32's exponent, 10 mantissa bits (NVIDIA, A100 whitepaper)
    fp16   CANN computes fp32 products in fp16 on Ascend 310P and 910A whatever was asked for
           (torch_npu, CalcuOpUtil.cpp)
    bf16   bfloat16 inputs, added up in fp32 (CANN's and NVIDIA's matrix units)
    fp16 in and out, bf16 in and out   the result is stored in that type, too, as the fp16 kernels
           that stand in for fp32 ones on these chips do
    tanh   aclnnGelu's documentation: x / (1 + exp(-1.5957691 (x + 0.044715 x^3)))
    erf    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016; aclnnGeluV2, approximate none
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.nn import functional

from kit.device.device import DTYPES, Device, device_errors
from kit.records import DeviceArithmetic, OperatorArithmetic, Products
from kit.statistics import finite

OwnGelu = Callable[[], AbstractContextManager[object]]
UNKNOWN = "none of the known ones"
CHIPS_GELU = "GELU of the chip"  # which npu_patch replaces
FP32_MANTISSA_BITS = 23
MANTISSA_BITS: dict[str, int] = {"hf32": 11, "tf32": 10}
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STORED = " in and out"  # behind a half type's name where the result is stored in it, too
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# DINOv3 ViT-B/16: 768 wide, 201 tokens, heads of 64, patches of 16 x 16 x 3 = 768 numbers.
WIDTH, ROWS, TOKENS, HEAD, PATCH = 768, 32, 201, 64, 16
COMPARED = 6  # every sixth number of a product's rows, which is enough and six times as fast
SMALL_ROWS = 2.0**-18  # fp16 has but 6 bits for numbers of this size, TF32 all of its 10
# Kernels that go block by block divide last, and add up what they have rounded or what they had.
ROUNDED_PROBABILITIES = ("after division", "before division", "before the sum")
# torch's own composite attention scales query and key before their product, each by the root.
ROOT_FIRST = "after division, scaled before the product"
TOLERANCES: dict[str, float] = {
    # The sum of n products in fp32, in any order, is off by about 2^-24 sqrt(n) of its size:
    # 1.7e-6 for n = 768. HF32 and TF32, the nearest two entries, are 1.0e-4 apart.
    "sum": 8e-6,
    # A result that is then stored in 16 bits is off by one place where the sum falls on the
    # other side of a tie, which the error above makes happen for 1 number in 300.
    "stored sum": 6e-5,
    # Functions of fp32 are off by some units in the last place, of 2^-24 each.
    "function": 16 * 2.0**-24,
    # In distances of GELU's two forms: some units in the last place of fp32, and of 16 bits.
    "form": 0.005,
    "stored form": 0.1,
}


@dataclass(frozen=True)
class Operators:
    """The operators that are probed, as torch has them; tests put others in their place."""

    matmul: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul
    convolution: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda image, weight: (
        functional.conv2d(image, weight, stride=PATCH)
    )
    attention: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = (
        functional.scaled_dot_product_attention
    )
    gelu: Callable[[torch.Tensor], torch.Tensor] = functional.gelu
    norm: Callable[[torch.Tensor], torch.Tensor] = lambda rows: functional.layer_norm(
        rows, rows.shape[-1:], eps=1e-5
    )
    softmax: Callable[[torch.Tensor], torch.Tensor] = lambda rows: functional.softmax(rows, -1)
    exp: Callable[[torch.Tensor], torch.Tensor] = torch.exp
    sin: Callable[[torch.Tensor], torch.Tensor] = torch.sin
    cos: Callable[[torch.Tensor], torch.Tensor] = torch.cos


def round_mantissa(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """Return fp32 values rounded to `bits` mantissa bits, to nearest, ties to even.

    Infinities and NaN stay; subnormal numbers are rounded at the same bit position.
    """
    shift = FP32_MANTISSA_BITS - bits
    pattern = tensor.contiguous().view(torch.int32)
    odd = (pattern >> shift) & 1
    rounded = (pattern + odd + ((1 << (shift - 1)) - 1)) & -(1 << shift)
    return torch.where(torch.isfinite(tensor), rounded.view(torch.float32), tensor)


def rounded_to(arithmetic: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return fp32 values as a matrix unit takes them in an arithmetic; fp32 again."""
    arithmetic = arithmetic.removesuffix(STORED)
    if arithmetic in MANTISSA_BITS:
        return round_mantissa(tensor, MANTISSA_BITS[arithmetic])
    if arithmetic in HALF_TYPES:
        return tensor.to(HALF_TYPES[arithmetic]).to(torch.float32)
    return tensor


def measure(
    device: Device,
    dtype: str,
    asked: Mapping[str, str],
    operators: Operators | None = None,
    own_gelu: OwnGelu | None = None,
) -> DeviceArithmetic:
    """Return what the device computes in.

    Args:
        device: idle, or with work in its queue.
        dtype: fp32, bf16 or fp16: the inputs' type.
        asked: what was asked for, by operator; what is not named is asked for in `dtype`.
        operators: what is probed; torch's own by default.
        own_gelu: makes a context in which GELU is the chip's own; None where it always is.

    Raises DeviceError where the device fails.
    """
    probe = Probe(device, DTYPES[dtype], operators or Operators())
    angles = torch.linspace(-7, 7, 4096)  # the rotary embedding's reach 2 pi
    with device_errors("measuring its arithmetic"):
        matches = [
            probe.matmul(),
            probe.convolution(),
            probe.attention(),
            probe.gelu(),
            probe.function("norm", probe.operators.norm, normal(ROWS, WIDTH, seed=7)),
            probe.function("softmax", probe.operators.softmax, 3 * normal(ROWS, TOKENS, seed=8)),
            probe.function("exp", probe.operators.exp, torch.linspace(-20, 1, 4096)),
            probe.function("sin", probe.operators.sin, angles),
            probe.function("cos", probe.operators.cos, angles),
        ]
        if own_gelu is not None:
            with own_gelu():
                matches.insert(4, replace(probe.gelu(), operator=CHIPS_GELU))
        overflow, repeatable = probe.overflow(), probe.repeatable()
    rows = tuple(
        OperatorArithmetic(
            operator=one.operator,
            asked=asked.get(one.operator, dtype),
            found=one.found,
            nearest=one.nearest,
            residual=finite(one.residual),
            tolerance=one.tolerance,
        )
        for one in matches
    )
    return DeviceArithmetic(operators=rows, overflow=overflow, repeatable=repeatable)


def found(measured: DeviceArithmetic | None, operator: str) -> str | None:
    """Return what an operator was found to compute in; None where it was not measured."""
    rows = measured.operators if measured else ()
    return next((row.found for row in rows if row.operator == operator), None)


def multiplies_in(measured: DeviceArithmetic | None, operator: str, set_to: Products) -> Products:
    """Return what an operator multiplies in: as found, or as set where that is not documented."""
    name = found(measured, operator)
    return next((known for known in get_args(Products) if known == name), set_to)


def residual_words(row: OperatorArithmetic) -> str:
    """Return the distance from the nearest entry, for a reader."""
    return "not finite" if row.residual is None else f"{row.residual:.2g}"


def is_less_exact(row: OperatorArithmetic) -> bool:
    """Return whether an operator is less exact than what was asked for, or nobody knows what."""
    if row.found == row.asked:
        return False
    order = ("fp32", *MANTISSA_BITS, "fp16", f"fp16{STORED}", "bf16", f"bf16{STORED}")
    if row.found in order and row.asked in order:
        return order.index(row.found) > order.index(row.asked)
    return True


@dataclass(frozen=True)
class Match:
    """Which entry of the list an operator's result is nearest to."""

    operator: str
    nearest: str  # the entry
    residual: float  # relative distance from what the entry predicts
    tolerance: float  # below which it is that entry

    @property
    def found(self) -> str:
        """The entry where it is met, else that it is none."""
        return self.nearest if self.residual <= self.tolerance else UNKNOWN


class Probe:
    """Runs operators on a device on inputs of one type, and says which entry each one meets."""

    def __init__(self, device: Device, dtype: torch.dtype, operators: Operators) -> None:
        """Probe nothing yet."""
        self.device = device
        self.dtype = dtype
        self.operators = operators

    def run(self, call: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Return what the device computes from inputs in the probe's type, in fp64 on the CPU."""
        with torch.no_grad():
            moved = (tensor.to(self.device.torch_device, self.dtype) for tensor in inputs)
            return call(*moved).to("cpu").to(torch.float64)

    def inputs(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the device is given, in fp32."""
        return tuple(tensor.to(self.dtype).to(torch.float32) for tensor in tensors)

    def matmul(self) -> Match:
        """Probe a matrix product, half of its rows so small that fp16 is short of bits."""
        left, right = normal(ROWS, WIDTH, seed=1), normal(WIDTH, WIDTH, seed=2)
        if self.dtype == torch.float32:
            left[::2] *= SMALL_ROWS
        result = self.run(self.operators.matmul, left, right)
        return self.product("matrix product", result[:, ::COMPARED], left, right[:, ::COMPARED])

    def convolution(self) -> Match:
        """Probe the patch embedding: patches of 16 x 16 x 3 to 768 numbers, a matrix product."""
        side = 6 * PATCH
        image, weight = normal(1, 3, side, side, seed=3), normal(WIDTH, 3, PATCH, PATCH, seed=4)
        if self.dtype == torch.float32:
            image.view(1, 3, side, -1, PATCH)[:, :, :, ::2] *= SMALL_ROWS
        result = self.run(self.operators.convolution, image, weight)
        patches = functional.unfold(image, PATCH, stride=PATCH)[0].T
        rows = result.flatten(2)[0].T[:, ::COMPARED]
        return self.product("convolution", rows, patches, weight.flatten(1).T[:, ::COMPARED])

    def product(
        self, operator: str, result: torch.Tensor, left: torch.Tensor, right: torch.Tensor
    ) -> Match:
        """Hold a product's rows against every way to round its inputs."""
        left, right = self.inputs(left, right)
        if self.dtype != torch.float32:
            name = name_of(self.dtype)
            exact = left.double() @ right.double()
            stored = exact.to(self.dtype).double()
            return Match(operator, name, rows_apart(stored, result), stored_tolerance(self.dtype))
        matches = []
        for name in ("fp32", *MANTISSA_BITS, *HALF_TYPES):
            exact = rounded_to(name, left).double() @ rounded_to(name, right).double()
            matches.append(Match(operator, name, rows_apart(exact, result), TOLERANCES["sum"]))
            if name in HALF_TYPES and is_stored_in(result, HALF_TYPES[name]):
                stored = exact.to(HALF_TYPES[name]).double()
                apart, tolerance = rows_apart(stored, result), stored_tolerance(HALF_TYPES[name])
                matches.append(Match(operator, name + STORED, apart, tolerance))
        return nearest(matches)

    def attention(self) -> Match:
        """Probe scaled dot product attention, its probabilities rounded as its inputs are.

        The first key has each query's largest score, so that a kernel which goes block by block
        knows the maximum from the start, and rounds what the others round.
        """
        query, key, value = (normal(1, 2, TOKENS, HEAD, seed=seed) for seed in (5, 6, 9))
        if self.dtype == torch.float32:
            value[:, 0] *= SMALL_ROWS
        key[:, :, 0] = 8 * functional.normalize(query.mean(2), dim=-1)
        query = query + key[:, :, :1]
        result = self.run(self.operators.attention, query, key, value).transpose(1, 2)
        query, key, value = self.inputs(query, key, value)
        if self.dtype != torch.float32:
            expected = attended("fp32", query, key, value, "after division").transpose(1, 2)
            apart = rows_apart(expected, result)
            return Match("attention", name_of(self.dtype), apart, 2 * UNIT_ROUNDOFF[self.dtype])
        matches = []
        for where in (*ROUNDED_PROBABILITIES, ROOT_FIRST):
            for name in ("fp32", *MANTISSA_BITS, *HALF_TYPES):
                expected = attended(name, query, key, value, where).transpose(1, 2)
                apart = rows_apart(expected, result)
                matches.append(Match("attention", name, apart, TOLERANCES["sum"]))
            if (met := nearest(matches)).found != UNKNOWN:
                return met
        return nearest(matches)

    def gelu(self) -> Match:
        """Probe GELU's form, where it is small enough that 16 bits tell the two forms apart."""
        x = torch.linspace(-4, -1, 2048)
        result = self.run(self.operators.gelu, x)
        (given,) = self.inputs(x)
        forms = {
            name: functional.gelu(given.double(), approximate=approximate).to(self.dtype).double()
            for name, approximate in (("erf", "none"), ("tanh", "tanh"))
        }
        scale = float((forms["tanh"] - forms["erf"]).norm())
        tolerance = TOLERANCES["form" if self.dtype == torch.float32 else "stored form"]
        return nearest(
            [
                Match("GELU", name, float((result - form).norm()) / scale, tolerance)
                for name, form in forms.items()
            ]
        )

    def function(
        self, operator: str, call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
    ) -> Match:
        """Hold a function against fp64, within some units in the last place."""
        (given,) = self.inputs(x)
        expected = call(given.double()).to(self.dtype).double()
        result = self.run(call, x)
        apart = float((result - expected).norm() / expected.norm())
        tolerance = TOLERANCES["function"]
        if self.dtype != torch.float32:
            tolerance = UNIT_ROUNDOFF[self.dtype]
        return Match(operator, name_of(self.dtype), apart, tolerance)

    def overflow(self) -> Literal["infinity", "saturates"]:
        """Probe what a product becomes that is beyond the type that it is computed in."""
        huge = torch.full((16, 16), 2.0**15 if self.dtype == torch.float16 else 2.0**120)
        result = self.run(self.operators.matmul, huge, huge)
        return "saturates" if bool(torch.isfinite(result).all()) else "infinity"

    def repeatable(self) -> bool:
        """Return whether the same product gives the same bits again."""
        left, right = normal(ROWS, WIDTH, seed=1), normal(WIDTH, WIDTH, seed=2)
        first, second = (self.run(self.operators.matmul, left, right) for _ in range(2))
        return torch.equal(first, second)


def attended(
    arithmetic: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: str
) -> torch.Tensor:
    """Return attention in fp64, its products' inputs rounded as the arithmetic rounds.

    Query, key and value are fp32, batch x heads x tokens x width; `where` is one of
    ROUNDED_PROBABILITIES, where the probabilities are rounded, or ROOT_FIRST.
    """
    scale = 1 / math.sqrt(HEAD)
    if where == ROOT_FIRST:
        query, key, scale = query * math.sqrt(scale), key * math.sqrt(scale), 1.0
    query, key, value = (rounded_to(arithmetic, tensor).double() for tensor in (query, key, value))
    scores = query @ key.mT * scale
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True)
    if where in ("after division", ROOT_FIRST):
        return rounded_to(arithmetic, (weights / total).float()).double() @ value
    weights = rounded_to(arithmetic, weights.float()).double()
    if where == "before the sum":
        total = weights.sum(-1, keepdim=True)
    return weights @ value / total


def nearest(matches: list[Match]) -> Match:
    """Return the entry that comes nearest, measured in its tolerance."""
    return min(matches, key=lambda match: match.residual / match.tolerance)


def rows_apart(expected: torch.Tensor, result: torch.Tensor) -> float:
    """Return the largest relative distance of two fp64 tensors over groups of rows.

    The even and the odd rows differ in size by far in some probes; each group counts by itself.
    """
    rows, found = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (expected, result))
    groups = zip((rows[::2], rows[1::2]), (found[::2], found[1::2]), strict=True)
    apart = [float((b - a).norm() / a.norm()) for a, b in groups]
    return max(math.inf if math.isnan(one) else one for one in apart)


def is_stored_in(result: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether every value is one of a 16-bit type."""
    return torch.equal(result.to(dtype).double(), result)


def stored_tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance of sums that are stored in a 16-bit type."""
    return TOLERANCES["stored sum"] * (8 if dtype == torch.bfloat16 else 1)


def name_of(dtype: torch.dtype) -> str:
    """Return a type's name as options have it."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Return normally distributed fp32 numbers, the same ones on every host."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
