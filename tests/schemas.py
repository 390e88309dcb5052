"""The records' JSON Schema, as it is shipped."""

import json
from pathlib import Path
from typing import Any

import jsonschema

from kit.run import ROOT

DOCS: Path = ROOT / "docs"


def shipped_schema(script: str) -> dict[str, Any]:
    """Return the schema of a script's record, 'benchmark' or another."""
    found: dict[str, Any] = json.loads(
        (DOCS / "schema" / f"{script}.schema.json").read_text("utf-8")
    )
    return found


def hold_to_schema(record: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError where a record is not what its schema says."""
    jsonschema.validate(record, shipped_schema(record["script"]))
