"""Read a record that may be damaged: a tolerant view of its values, and a list of what it lacks.

Standard library only. Nothing here raises for a missing or strange value: a report of a damaged
record says "missing" in its place.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, Literal


class Missing:
    """The type of MISSING: no value at this place, or one of the wrong kind."""


MISSING: Final = Missing()


@dataclasses.dataclass(frozen=True)
class Node:
    """One place in a record, there or not.

    Attributes:
        value: what the JSON has there; None for null, MISSING where there is nothing.
    """

    value: object = MISSING

    def at(self, *keys: str) -> "Node":
        """Return the place below this one; MISSING where the way there ends early."""
        value = self.value
        for key in keys:
            if not isinstance(value, dict):
                return Node(None) if value is None else Node()
            value = value.get(key, MISSING)
        return Node(value)

    @property
    def missing(self) -> bool:
        """Whether there is nothing."""
        return self.value is MISSING

    @property
    def null(self) -> bool:
        """Whether there is a null."""
        return self.value is None

    @property
    def there(self) -> bool:
        """Whether there is a value."""
        return not (self.missing or self.null)

    def number(self) -> float | None:
        """Return a finite number; None for anything else."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return value if math.isfinite(value) else None
        except OverflowError:  # a whole number beyond every float
            return None

    def text(self) -> str | None:
        """Return a text; None for anything else."""
        return self.value if isinstance(self.value, str) else None

    def flag(self) -> bool | None:
        """Return true or false; None for anything else."""
        return self.value if isinstance(self.value, bool) else None

    def items(self) -> "list[Node]":
        """Return the entries of an array; none for anything else."""
        return [Node(value) for value in self.value] if isinstance(self.value, list) else []

    def pairs(self) -> "list[tuple[str, Node]]":
        """Return the entries of an object; none for anything else."""
        if not isinstance(self.value, dict):
            return []
        return [(str(key), Node(value)) for key, value in self.value.items()]

    def texts(self) -> list[str]:
        """Return the texts in an array."""
        return [text for item in self.items() if (text := item.text()) is not None]

    def numbers(self) -> list[float]:
        """Return the finite numbers in an array."""
        return [number for item in self.items() if (number := item.number()) is not None]


def damage(value: object, hint: Any, path: str = "") -> Iterator[str]:  # noqa: ANN401 - a hint is a type, an alias or a Literal
    """Yield the path of every place in `value` that is missing or not of the type `hint`.

    Fields that the dataclasses do not have are no damage: a later minor version adds some.

    Args:
        value: parsed JSON.
        hint: a record's dataclass, or the annotation of one of its fields.
        path: of `value` itself.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        yield from damage_of_union(value, arguments, path)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield from damage_of_object(value, hint, path)
    elif origin is tuple and isinstance(value, list):
        for number, item in enumerate(value):
            yield from damage(item, arguments[0], f"{path}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from damage(item, arguments[1], f"{path}.{key}")
    elif not is_plain(value, hint, origin, arguments):
        yield path


def damage_of_object(value: object, dataclass: type, path: str) -> Iterator[str]:
    """Yield the damage of an object that should have a dataclass's fields."""
    if not isinstance(value, dict):
        yield path
        return
    for name, hint in hints_of(dataclass).items():
        below = f"{path}.{name}" if path else name
        if name in value:
            yield from damage(value[name], hint, below)
        else:
            yield below


@cache
def hints_of(dataclass: type) -> dict[str, Any]:
    """Return a dataclass's fields and their types; reading them is slow."""
    hints = typing.get_type_hints(dataclass)
    return {field.name: hints[field.name] for field in dataclasses.fields(dataclass)}


def damage_of_union(value: object, choices: tuple[Any, ...], path: str) -> Iterator[str]:
    """Yield the damage of a value that may be one of several types, null among them."""
    if value is None and type(None) in choices:
        return
    found = [list(damage(value, choice, path)) for choice in choices if choice is not type(None)]
    yield from min(found, key=len)


def is_plain(value: object, hint: object, origin: object, choices: tuple[Any, ...]) -> bool:
    """Return whether a text, number, truth value or null is of the type."""
    if origin is Literal:
        return value in choices
    if hint is float:
        return Node(value).number() is not None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and origin is None and isinstance(value, hint)
