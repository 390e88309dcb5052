"""How far several tensors are from one reference: what an examination asks of every operator."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kit.statistics import ratio


@dataclass(frozen=True)
class Distance:
    """How far one tensor is from a reference; infinite where a value is not finite on either side.

    Attributes:
        error: relative error of the whole tensor.
        token_error: of the worst token.
        token: position of the worst token among all.
    """

    error: float
    token_error: float
    token: int


@dataclass(frozen=True)
class TokenNorms:
    """Euclidean norms of every token; all that is kept of tensors that were compared.

    Attributes:
        reference: of the reference's tokens, fp64, one per token.
        differences: of each measured tensor's difference from the reference, the same.
    """

    reference: torch.Tensor
    differences: tuple[torch.Tensor, ...]

    def distances(self) -> list[Distance]:
        """Return how far each measured tensor is; nothing differs in one without elements."""
        norms = self.reference.numpy()  # whose operators cost less than torch's on so few numbers
        norm = math.sqrt(norms @ norms)
        return [distance(errors.numpy(), norms, norm) for errors in self.differences]


def distance(errors: NDArray[np.float64], norms: NDArray[np.float64], norm: float) -> Distance:
    """Return what the tokens' norms come to.

    Args:
        errors: of each token's difference.
        norms: of each token of the reference.
        norm: of the whole reference.
    """
    if errors.size == 0:
        return Distance(0.0, 0.0, 0)
    relative = np.zeros_like(errors)
    with np.errstate(all="ignore"):  # what is not finite is told apart below
        np.divide(errors, norms, out=relative, where=errors != 0)
    relative[~np.isfinite(relative)] = math.inf
    token = int(relative.argmax())
    whole = math.sqrt(errors @ errors)
    if math.isfinite(whole) and math.isfinite(norm):
        return Distance(ratio(whole, norm), float(relative[token]), token)
    return Distance(math.inf, math.inf, token)


class Room:
    """Room for many tensors' norms in few pieces of memory.

    They are kept while tensors of megabytes come and go. Each in a place of its own, they would
    leave the allocator no large piece to use again.
    """

    NUMBERS = 1 << 20

    def __init__(self) -> None:
        """Make the first piece; the system gives a page of it when it is written."""
        self._free = torch.empty(self.NUMBERS, dtype=torch.float64)

    def take(self, shape: torch.Size) -> torch.Tensor:
        """Return an fp64 tensor of this shape, not initialized."""
        count = shape.numel()
        if count > len(self._free):
            self._free = torch.empty(max(count, self.NUMBERS), dtype=torch.float64)
        taken, self._free = self._free[:count], self._free[count:]
        return taken.view(shape)


def token_norms(
    room: Room, reference: torch.Tensor, *measured: torch.Tensor, token_axis: int = -1
) -> TokenNorms:
    """Hold several tensors against one reference, in a fraction of metrics.compare's time.

    Little is done here, because the tensors are in the processor's cache only now: the figures
    are worked out from the norms later. Without the scaling that metrics.compare does: in fp64 a
    value from 1e-150 to 1e150 neither overflows nor vanishes.

    Args:
        room: where the norms are kept.
        reference: in fp64 on the CPU.
        measured: of the reference's shape, any dtype, on the CPU.
        token_axis: the axis that is a token's vector.
    """
    sizes = list(reference.shape)
    if sizes:
        del sizes[token_axis]
    tokens = torch.Size(sizes)
    difference = torch.empty_like(reference)

    def norms_of(tensor: torch.Tensor) -> torch.Tensor:
        norms = room.take(tokens)
        torch.linalg.vector_norm(tensor, dim=token_axis, out=norms)
        return norms.flatten()

    return TokenNorms(
        norms_of(reference),
        tuple(norms_of(difference.copy_(tensor).sub_(reference)) for tensor in measured),
    )
