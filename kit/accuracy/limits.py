"""The one table of limits, by the arithmetic that a run declares, each with its reason.

A module of its own, without torch: the report holds every record against this table again, on
machines that have no torch too.
"""

from typing import Literal

from kit.options import BUDGET_FACTOR
from kit.records import LimitsInfo, Products

# Two fp32 implementations of one function (exp, erf, rsqrt) may differ by some units in the
# last place where the CPU's own happens to be exact, so what is below this is always explained.
SMALLEST_LIMIT = 2.0**-20

Arithmetic = Literal["fp32", "hf32", "tf32", "bf16", "fp16"]

# A token whose cosine is just 0.999 has the relative error sqrt(1 - 0.999^2) = 4.5 %. An operator
# inside the model may cancel to almost nothing, where rounding is large for one token: only a
# quarter of it (bf16: half) is beyond every rounding. Its whole result is held to the output's own
# limit, for what it does alone must not need later blocks to dilute it. RoPE and norms only scale
# and add: bf16, the coarsest type that a device may store in without saying so, rounds by 2^-8.
LIMITS: dict[Arithmetic, LimitsInfo] = {
    "fp32": LimitsInfo(
        "fp32", 0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, BUDGET_FACTOR,
        "the published report's 1 % and 0.999; a token at cosine 0.999 is 4.5 % off",
    ),
    "hf32": LimitsInfo(
        "hf32", 0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, BUDGET_FACTOR,
        "as fp32: HF32's 11 mantissa bits, 2.4e-4 at most per input, stay far below 1 %",
    ),
    "tf32": LimitsInfo(
        "tf32", 0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, BUDGET_FACTOR,
        "as fp32: TF32's 10 mantissa bits, 4.9e-4 at most per input, stay far below 1 %",
    ),
    "bf16": LimitsInfo(
        "bf16", 0.05, 0.998, 0.15, 0.05, 0.05, 0.5, BUDGET_FACTOR,
        "7 mantissa bits, 3.9e-3 at most per rounding: a ViT-B of 12 blocks comes to about 1 %, "
        "and trained weights amplify; 5 % off is cosine 0.99875",
    ),
    "fp16": LimitsInfo(
        "fp16", 0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, BUDGET_FACTOR,
        "10 mantissa bits, 4.9e-4 at most per rounding: about 0.2 % after 12 blocks; "
        "what is beyond 65504 becomes infinite and fails on its own",
    ),
}  # fmt: skip


def arithmetic_of(dtype: str, *products: Products) -> Arithmetic:
    """Return the row of LIMITS for a run.

    Args:
        dtype: fp32, bf16 or fp16, as --dtype has it.
        products: what fp32 matrix products, attention and convolutions compute with; the first
            that is reduced counts. bf16 inputs have fp16's row: fp32 stays below the published
            1 % whatever its products are rounded to.

    Raises:
        KeyError: for another dtype.
    """
    if dtype != "fp32":
        half: dict[str, Arithmetic] = {"bf16": "bf16", "fp16": "fp16"}
        return half[dtype]
    for one in products:
        if one != "fp32":
            return "fp16" if one == "bf16" else one
    return "fp32"
