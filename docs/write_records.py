#!/usr/bin/env python3
"""Write docs/schema/ and docs/records.md again, from the dataclasses of kit/records.py.

The comment beside or above a field is its description.

python3 docs/write_records.py
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from kit import records  # noqa: E402 - found by the line above

MARK = "<!-- What follows is written by python3 docs/write_records.py. -->\n"


def schema(record: type[records.Record]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a record: every field is required, no other allowed."""
    _, parts = msgspec.json.schema_components([record], ref_template="#/$defs/{name}")
    parts = json.loads(json.dumps(parts))  # a default that is a tuple is a list there
    for name, part in parts.items():
        comments = _comments(getattr(records, name))
        part["properties"] = {
            key: {"description": comments[key], **part["properties"][key]} for key in comments
        }
        part |= {"required": list(comments), "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **parts.pop(record.__name__),
        "$defs": dict(sorted(parts.items())),
    }


def _comments(kind: type) -> dict[str, str]:
    """Return the comment on each field of a dataclass, inherited ones first."""
    found: dict[str, str] = {}
    above: list[str] = []
    sources = map(inspect.getsource, kind.mro()[-2::-1])
    for line in "\n".join(sources).split("\n"):
        if field := re.match(r"    (\w+): [^#]+?(?:  # (.+))?$", line):
            found[field[1]] = field[2] or " ".join(above)
        comment = re.match(r"    # (.+)", line)
        above = [*above, comment[1]] if comment else []
    return found


def documentation() -> str:
    """Return docs/records.md: its introduction as it is, the tables as the types are."""
    introduction = (DOCS / "records.md").read_text(encoding="utf-8").partition(MARK)[0]
    shared, known = schema(records.Record), set[str]()
    parts = [introduction + MARK, "## In every record\n", _table(shared)]
    parts += _objects(shared["properties"], shared["$defs"], known)
    for script, record in records.RECORDS.items():
        whole = schema(record)
        parts.append(f"## `results` of {script}.json\n")
        parts += _objects(whole["properties"], whole["$defs"], known)
    return "\n".join(parts)


def _objects(part: object, whole: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """Yield heading, sentence and table of each object in a part that is not yet known."""
    for name in re.findall(r"#/\$defs/(\w+)", json.dumps(part)):
        if name not in known:
            known.add(name)
            yield f"### {name}\n\n{whole[name]['description']}\n\n{_table(whole[name])}"
            yield from _objects(whole[name], whole, known)


def _table(part: Mapping[str, Any]) -> str:
    """Return one row per field."""
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    for name, entry in part["properties"].items():
        meaning = entry["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_words(entry)} | {meaning} |")
    return "\n".join([*lines, ""])


def _type_words(field: Mapping[str, Any]) -> str:
    """Return a field's type as a reader sees it, with a link where it is an object."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type_words(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        return f"list of {_type_words(field['items'])}"
    if field["type"] == "object":
        return f"names to {_type_words(field['additionalProperties'])}"
    return str(field["type"])


def main() -> int:
    """Write every record's JSON Schema, and docs/records.md."""
    for script, record in records.RECORDS.items():
        text = json.dumps(schema(record), indent=2, ensure_ascii=False)
        (DOCS / "schema" / f"{script}.schema.json").write_text(f"{text}\n", encoding="utf-8")
    (DOCS / "records.md").write_text(documentation(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
