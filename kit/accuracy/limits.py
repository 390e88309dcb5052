"""The one table of limits, by the arithmetic that a run declares, each with its reason.

A module of its own, without torch: the report holds every record against this table again, on
machines that have no torch too.
"""

from dataclasses import dataclass
from typing import Literal

from kit.records import FloatMode

Arithmetic = Literal["fp32", "hf32", "tf32", "bf16", "fp16"]

# A figure that is beyond this many times what the declared arithmetic explains is unexplained.
BUDGET_FACTOR = 10.0


@dataclass(frozen=True)
class Limits:
    """What a run in one arithmetic may differ from its reference.

    Attributes:
        relative_error: of the whole vector, must be below.
        cosine: of the whole vector, must be above.
        token_relative_error: of the worst single token of an output, must be below.
        operator_error: of any operator's whole result inside the model, on the device's own
            input of the block; what is beyond it, and beyond its budget, is wrong and not rounded.
        rope_and_norm_error: the same for a rotary embedding or norm before which all in the block
            is explained.
        operator_token_error: of the worst single token of any operator's result, the same.
        unit_roundoff: half the distance of 1 to the next number of the narrowest type used.
        reason: why these.
    """

    relative_error: float
    cosine: float
    token_relative_error: float
    operator_error: float
    rope_and_norm_error: float
    operator_token_error: float
    unit_roundoff: float
    reason: str


# A token whose cosine is just 0.999 has the relative error sqrt(1 - 0.999^2) = 4.5 %. An operator
# inside the model may cancel to almost nothing, where rounding is large for one token: only a
# quarter of it (bf16: half) is beyond every rounding. Its whole result is held to the output's own
# limit, for what it does alone must not need later blocks to dilute it. RoPE and norms only scale
# and add: bf16, the coarsest type that a device may store in without saying so, rounds by 2^-8.
LIMITS: dict[Arithmetic, Limits] = {
    "fp32": Limits(
        0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, 2.0**-24,
        "the published report's 1 % and 0.999; a token at cosine 0.999 is 4.5 % off",
    ),
    "hf32": Limits(
        0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, 2.0**-12,
        "as fp32: HF32's 11 mantissa bits, 2.4e-4 at most per input, stay far below 1 %",
    ),
    "tf32": Limits(
        0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, 2.0**-11,
        "as fp32: TF32's 10 mantissa bits, 4.9e-4 at most per input, stay far below 1 %",
    ),
    "bf16": Limits(
        0.05, 0.998, 0.15, 0.05, 0.05, 0.5, 2.0**-8,
        "7 mantissa bits, 3.9e-3 at most per rounding: a ViT-B of 12 blocks comes to about 1 %, "
        "and trained weights amplify; 5 % off is cosine 0.99875",
    ),
    "fp16": Limits(
        0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, 2.0**-11,
        "10 mantissa bits, 4.9e-4 at most per rounding: about 0.2 % after 12 blocks; "
        "what is beyond 65504 becomes infinite and fails on its own",
    ),
}  # fmt: skip


def arithmetic_of(dtype: str, matmul: FloatMode, convolution: FloatMode) -> Arithmetic:
    """Return the row of LIMITS for a run.

    Args:
        dtype: fp32, bf16 or fp16, as --dtype has it.
        matmul: what an fp32 matrix product computes with.
        convolution: what an fp32 convolution computes with.

    Raises:
        KeyError: for another dtype.
    """
    if dtype != "fp32":
        return {"bf16": "bf16", "fp16": "fp16"}[dtype]  # type: ignore[return-value] # a literal
    for mode in (matmul, convolution):
        if mode != "fp32":
            return mode
    return "fp32"
