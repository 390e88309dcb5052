"""Where a token lies: CLS, a register, or a patch's row and column."""

from dataclasses import dataclass
from typing import Literal

from kit.accuracy.stages import Stages

TokenKind = Literal["CLS", "register", "patch", "vector"]


@dataclass(frozen=True)
class Place:
    """The place of one token.

    Attributes:
        token: position among the tokens, from 0.
        kind: what it is; 'vector' where the tensor has no such tokens.
        row, column: of a patch, from 0 at the top left; None for others.
        words: the same for a reader.
    """

    token: int
    kind: TokenKind
    row: int | None
    column: int | None
    words: str


def place_of(token: int, stages: Stages, grid: tuple[int, int]) -> Place:
    """Return the place of a token.

    Args:
        token: position among CLS, registers and patches row by row. A model without CLS and
            registers, such as a ConvNeXt, puts its pooled vector first and patches after it.
        stages: of the model.
        grid: rows and columns of patches.
    """
    prefix = 1 if stages.prefix_tokens is None else stages.prefix_tokens
    if token == 0 and prefix > 0:
        return Place(token, "CLS", None, None, "the CLS token")
    if token < prefix:
        return Place(token, "register", None, None, f"register {token - 1}")
    patch = token - prefix
    if patch >= grid[0] * grid[1]:
        return Place(token, "vector", None, None, f"vector {token}")
    row, column = divmod(patch, grid[1])
    return Place(token, "patch", row, column, f"the patch in row {row}, column {column}")
