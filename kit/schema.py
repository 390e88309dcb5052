"""The JSON Schema of a record, derived from its dataclasses, so that the two cannot differ.

python3 -m kit.schema     writes docs/schema/<script>.schema.json and docs/records.md again
"""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

from kit.accuracy.record import AccuracyRecord
from kit.benchmark.record import BenchmarkRecord
from kit.inference.record import InferenceRecord
from kit.records import Record

RECORDS: dict[str, type[Record]] = {
    "inference": InferenceRecord,
    "accuracy": AccuracyRecord,
    "benchmark": BenchmarkRecord,
}
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schema"
PLAIN_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def record_schema(record: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record class.

    Every field is required and no other is allowed; None is null.

    Raises:
        TypeError: for a field whose type JSON does not have.
    """
    definitions: dict[str, Any] = {}
    schema = object_schema(record, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": record.__name__,
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def object_schema(dataclass: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a dataclass as an object, the dataclasses in it being added to definitions."""
    hints = typing.get_type_hints(dataclass)
    properties = {}
    for field in dataclasses.fields(dataclass):
        properties[field.name] = {
            "description": field.metadata["description"],
            **type_schema(hints[field.name], definitions),
        }
    return {
        "type": "object",
        "description": (dataclass.__doc__ or "").splitlines()[0],
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def type_schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - a hint is a type, an alias or a Literal
    """Return the schema of one annotation.

    Raises:
        TypeError: for an annotation that JSON does not have.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # named before it is described: it may hold itself
            definitions[hint.__name__] = object_schema(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if hint in PLAIN_TYPES:
        return {"type": PLAIN_TYPES[hint]}
    if hint is type(None):
        return {"type": "null"}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [type_schema(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": type_schema(arguments[0], definitions)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": type_schema(arguments[1], definitions)}
    raise TypeError(f"{hint} has no JSON form")


def schema_text(script: str) -> str:
    """Return the schema file of one script's record."""
    return json.dumps(record_schema(RECORDS[script]), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every script's schema file, and docs/records.md."""
    from kit import record_docs  # it imports this module

    FOLDER.mkdir(parents=True, exist_ok=True)
    for script in RECORDS:
        (FOLDER / f"{script}.schema.json").write_text(schema_text(script), encoding="utf-8")
    record_docs.FILE.write_text(record_docs.text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
