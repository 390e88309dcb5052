"""The one table of limits, each with its reason, and the console block that stands on it.

A module of its own, without torch: the report holds every record against this table again, on
machines that have no torch too.
"""

from dataclasses import replace
from typing import Literal

from kit.options import BUDGET_FACTOR
from kit.output import RULE
from kit.records import AccuracyResults, LimitsInfo, Products, TensorAccuracy

CRITERION = "vector-level relative error < 1% and cosine similarity > 0.999"
SELF_CHECK_CRITERION = "no accelerator: the CPU was held against its own fp64 reference"

# Two fp32 implementations of one function (exp, erf, rsqrt) may differ by some units in the
# last place where the CPU's own happens to be exact, so what is below this is always explained.
SMALLEST_LIMIT = 2.0**-20
# The same where products are rounded, for what is then held by itself: a sum in another order
# (device/arithmetic.py has its reason); a result stored in 16 bits, where the bias is added before
# or after; and the scale of attention's scores, where 2^-9 is a rounding of bf16, which no kernel's
# roundings add up to.
SMALLEST_ALONE = {"sum": 8e-6, "fp16": 2.0**-10, "bf16": 2.0**-7, "scores": 2.0**-9}

Arithmetic = Literal["fp32", "hf32", "tf32", "bf16", "fp16"]

# A token whose cosine is just 0.999 has the relative error sqrt(1 - 0.999^2) = 4.5 %. An operator
# inside the model may cancel to almost nothing, where rounding is large for one token: only a
# quarter of it (bf16: half) is beyond every rounding. Its whole result is held to the output's own
# limit, for what it does alone must not need later blocks to dilute it. RoPE and norms only scale
# and add: bf16, the coarsest type that a device may store in without saying so, rounds by 2^-8.
PUBLISHED = LimitsInfo(
    "fp32", 0.01, 0.999, 0.045, 0.01, 2.0**-8, 0.25, BUDGET_FACTOR,
    "the published report's 1 % and 0.999; a token at cosine 0.999 is 4.5 % off",
)  # fmt: skip
AS_FP32: dict[Arithmetic, str] = {
    "hf32": "as fp32: HF32's 11 mantissa bits, 2.4e-4 at most per input, stay far below 1 %",
    "tf32": "as fp32: TF32's 10 mantissa bits, 4.9e-4 at most per input, stay far below 1 %",
    "fp16": "10 mantissa bits, 4.9e-4 at most per rounding: about 0.2 % after 12 blocks; "
    "what is beyond 65504 becomes infinite and fails on its own",
}
LIMITS: dict[Arithmetic, LimitsInfo] = {
    "fp32": PUBLISHED,
    "bf16": LimitsInfo(
        "bf16", 0.05, 0.998, 0.15, 0.05, 0.05, 0.5, BUDGET_FACTOR,
        "7 mantissa bits, 3.9e-3 at most per rounding: a ViT-B of 12 blocks comes to about 1 %, "
        "and trained weights amplify; 5 % off is cosine 0.99875",
    ),
    **{name: replace(PUBLISHED, arithmetic=name, reason=why) for name, why in AS_FP32.items()},
}  # fmt: skip


def arithmetic_of(dtype: str, *products: Products) -> Arithmetic:
    """Return the row of LIMITS for a run's --dtype and what its fp32 products compute with.

    The first that is reduced counts. bf16 inputs have fp16's row: fp32 stays below the published
    1 % whatever its products are rounded to.
    """
    if dtype != "fp32":
        half: dict[str, Arithmetic] = {"bf16": "bf16", "fp16": "fp16"}
        return half[dtype]
    for one in products:
        if one != "fp32":
            reduced: dict[Products, Arithmetic] = {"hf32": "hf32", "tf32": "tf32"}
            return reduced.get(one, "fp16")
    return "fp32"


# ---- The console block that holds the outputs against the limits ---------------------------------


def validation_block(results: AccuracyResults) -> list[str]:
    """Return the block that every published report of this model has."""
    lines = [RULE, "Accuracy Validation Results", RULE]
    for name in ("pooler_output", "last_hidden_state"):
        tensor: TensorAccuracy = getattr(results, name)
        error_mark, cosine_mark, overall = (
            mark(passed, results)
            for passed in (tensor.relative_error_passed, tensor.cosine_passed, tensor.passed)
        )
        lines += [
            f"{name}:",
            f"Shape: {tensor.shape}",
            f"Vector Relative Error: {number(tensor.relative_error, '.6f')} ({error_mark})",
            f"Cosine Similarity: {number(tensor.cosine, '.6f')} ({cosine_mark})",
            f"MSE: {number(tensor.mse, '.10f')}",
            f"Max Absolute Diff: {number(tensor.max_abs_diff, '.6f')}",
            f"Overall: {overall}",
        ]
    return [*lines, RULE, f"OVERALL: {overall_text(results)}", RULE]


def mark(passed: bool, results: AccuracyResults) -> str:
    """Return PASS or FAIL; a CPU against itself never passes, it checks itself."""
    if not passed:
        return "FAIL"
    return "SELF-CHECK" if results.reference == "CPU fp64" else "PASS"


def overall_text(results: AccuracyResults) -> str:
    """Return what stands behind OVERALL."""
    tensors = (results.pooler_output, results.last_hidden_state)
    inside = all(t.relative_error_passed and t.cosine_passed for t in tensors)
    criterion = CRITERION
    if results.limits.arithmetic in ("bf16", "fp16"):
        criterion = (
            f"vector-level relative error < {results.limits.relative_error:.0%} and cosine "
            f"similarity > {results.limits.cosine:g}, the limits of {results.limits.arithmetic}"
        )
    if results.outcome == "fail":
        return f"FAIL ({results.reasons[0] if inside and results.reasons else criterion})"
    if results.reference == "CPU fp64":
        return f"SELF-CHECK ({SELF_CHECK_CRITERION})"
    return f"PASS ({criterion})"


def number(value: float | None, form: str) -> str:
    """Return a figure as text; what is not finite is said so."""
    return "not finite" if value is None else format(value, form)
