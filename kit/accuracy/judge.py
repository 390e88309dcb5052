"""The verdict on two tensors: the published thresholds, no token left out, nothing infinite."""

from dataclasses import dataclass, replace

import torch

from kit.accuracy.limits import LIMITS, Arithmetic, Limits
from kit.statistics import TokenErrors, VectorError, compare, compare_tokens


@dataclass(frozen=True)
class Judgement:
    """One tensor of a device, judged against its reference.

    Attributes:
        arithmetic: the row of the limits' table that was used.
        comparison: of the whole tensor as one vector.
        tokens: of each vector along the last axis.
        relative_error_passed: the whole vector's relative error is below its limit.
        cosine_passed: the whole vector's cosine is above its limit.
        tokens_passed: no single token is beyond its limit.
        reasons: why it fails, one sentence each; none where it passes.
    """

    arithmetic: Arithmetic
    comparison: VectorError
    tokens: TokenErrors
    relative_error_passed: bool
    cosine_passed: bool
    tokens_passed: bool
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is inside its limit and finite."""
        return not self.reasons

    def with_reasons(self, reasons: tuple[str, ...]) -> "Judgement":
        """Return the same judgement with other reasons."""
        return replace(self, reasons=reasons)


def judge(reference: torch.Tensor, measured: torch.Tensor, arithmetic: Arithmetic) -> Judgement:
    """Judge `measured` against `reference`.

    Args:
        reference: what is held to be right; any floating dtype, any device.
        measured: the same shape; the last axis is a token's vector.
        arithmetic: what `measured` was computed in (limits.arithmetic_of).

    Raises:
        ValueError: where the shapes differ or the tensors are empty.
    """
    limits = LIMITS[arithmetic]
    whole = compare(reference, measured)
    tokens = compare_tokens(reference, measured)
    error_passed = whole.relative_error < limits.relative_error  # False for infinity
    cosine_passed = whole.cosine > limits.cosine  # False for NaN
    tokens_passed = tokens.worst_relative < limits.token_relative_error
    reasons = failures(whole, tokens, limits)
    return Judgement(arithmetic, whole, tokens, error_passed, cosine_passed, tokens_passed, reasons)


def failures(whole: VectorError, tokens: TokenErrors, limits: Limits) -> tuple[str, ...]:
    """Return a sentence for each limit that is not kept."""
    if not whole.finite:
        return (
            f"{whole.broken_count} values are NaN or infinite, the first at {whole.broken} "
            f"({'on both sides' if whole.broken_side == 'both' else whole.broken_side})",
        )
    found = []
    if not whole.relative_error < limits.relative_error:
        found.append(
            f"relative error {whole.relative_error:.3g} is not below {limits.relative_error:g}"
        )
    if not whole.cosine > limits.cosine:
        found.append(f"cosine {whole.cosine:.6f} is not above {limits.cosine:g}")
    if not tokens.worst_relative < limits.token_relative_error:
        found.append(
            f"token {tokens.worst} is off by {tokens.worst_relative:.3g}, "
            f"not below {limits.token_relative_error:g}"
        )
    return tuple(found)
