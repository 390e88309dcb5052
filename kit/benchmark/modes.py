"""The ways to run the model that are measured against each other. Standard library only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kit.arguments import ATTENTIONS
from kit.errors import KitError

Precision = Literal["fp32", "strict-fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
GRAPH = "graph"
NAME = re.compile(
    rf"(?P<precision>{'|'.join(PRECISIONS)})"
    rf"(-(?P<attention>{'|'.join(ATTENTIONS)}))?(?P<graph>-{GRAPH})?"
)


@dataclass(frozen=True)
class Mode:
    """One way to run the model.

    Attributes:
        precision: compute type; fp32 leaves HF32 and TF32 as the device has them by default,
            strict-fp32 turns them off.
        attention: sdpa or eager.
        graph: captured once and replayed, instead of given to the device operator by operator.
    """

    precision: Precision
    attention: str
    graph: bool = False

    @property
    def name(self) -> str:
        """As options and reports have it, for example bf16-sdpa-graph."""
        return f"{self.precision}-{self.attention}" + (f"-{GRAPH}" if self.graph else "")

    @property
    def dtype(self) -> str:
        """fp32, bf16 or fp16, as --dtype has it."""
        return "fp32" if self.strict else self.precision

    @property
    def strict(self) -> bool:
        """Whether HF32 and TF32 are turned off."""
        return self.precision == "strict-fp32"

    @property
    def eager(self) -> "Mode":
        """The same mode without graph capture."""
        return Mode(self.precision, self.attention)


def of_options(dtype: str, attention: str, strict: bool) -> Mode:
    """Return the mode that --dtype, --attention and --strict-fp32 ask for."""
    precision: Precision = "strict-fp32" if strict and dtype == "fp32" else precision_of(dtype)
    return Mode(precision, attention)


def precision_of(text: str) -> Precision:
    """Return text as a precision.

    Raises:
        KitError: for any other text.
    """
    for precision in PRECISIONS:
        if precision == text:
            return precision
    raise KitError(f"{text!r} is none of {', '.join(PRECISIONS)}")


def parse(text: str, base: Mode) -> tuple[Mode, ...]:
    """Return the modes that --modes asks for, each once.

    Args:
        text: `all`, or names with commas between them; a name without an attention takes the
            base mode's.
        base: the mode of the other options; `all` begins with it.

    Raises:
        KitError: for a name that is no mode.
    """
    if text == "all":
        rest = every_mode(first_attention=base.attention)
        return tuple(dict.fromkeys((base, *rest)))
    return tuple(dict.fromkeys(parse_name(name.strip(), base) for name in text.split(",")))


def parse_name(name: str, base: Mode) -> Mode:
    """Return the mode of one name.

    Raises:
        KitError: where it is none.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise KitError(
            f"--modes: {name!r} is no mode: use all, or names such as fp32, bf16-sdpa, "
            f"strict-fp32-eager, fp16-sdpa-{GRAPH} with commas between them"
        )
    return Mode(
        precision_of(match["precision"]), match["attention"] or base.attention, bool(match["graph"])
    )


def every_mode(first_attention: str) -> Sequence[Mode]:
    """Return all modes: by precision, then attention, eager before graph."""
    attentions = sorted(ATTENTIONS, key=lambda attention: attention != first_attention)
    return [
        Mode(precision, attention, graph)
        for precision in PRECISIONS
        for attention in attentions
        for graph in (False, True)
    ]
