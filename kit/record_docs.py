"""The records' documentation, field by field, from their dataclasses, so that it cannot go stale.

python3 -m kit.schema     writes docs/records.md again, with the schema files
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kit import schema
from kit.records import SCHEMA_VERSION, Record

FILE = schema.FOLDER.parent / "records.md"
INTRODUCTION = f"""# The records

<!-- Written by python3 -m kit.schema from the dataclasses of the records. -->

Each script leaves one JSON object: `output/inference.json`, `output/benchmark.json`,
`output/accuracy.json`. They are for programs: files appear whole or not at all, every field below
is always there, a value that is not known or does not apply is `null`, and no number is NaN or
infinite. The same as JSON Schema (2020-12): [inference](schema/inference.schema.json),
[benchmark](schema/benchmark.schema.json), [accuracy](schema/accuracy.schema.json).

**Version.** `schema_version` is `{SCHEMA_VERSION}` here. The number before the point changes when a
field goes or changes its meaning: refuse what you do not know. The number behind it changes when
fields are added: ignore those.

**Units** stand at the end of a name: `_ms` milliseconds, `_ns` nanoseconds, `_bytes` bytes, `_ips`
images per second, `_percent` per cent. `relative_error`, `cosine` and shares have none.

**Many hosts in one table.** [collect.py](collect.py) needs nothing but Python. It reads folders
with records and writes CSV, one row per folder:

```bash
python3 docs/collect.py host-a/output host-b/output > hosts.csv
```
"""
Definitions = Mapping[str, Mapping[str, Any]]


def text() -> str:
    """Return docs/records.md."""
    shared = schema.record_schema(Record)
    parts = [INTRODUCTION, "## In every record\n", table(shared)]
    known = set(reached(shared, shared["$defs"]))
    parts += [definition(name, shared["$defs"]) for name in reached(shared, shared["$defs"])]
    for script, record in schema.RECORDS.items():
        whole = schema.record_schema(record)
        definitions: Definitions = whole["$defs"]
        results = whole["properties"]["results"]
        parts.append(f"## `results` of {script}.json\n")
        for name in reached({"properties": {"results": results}}, definitions):
            if name not in known:
                known.add(name)
                parts.append(definition(name, definitions))
    return "\n".join(parts)


def reached(part: Mapping[str, Any], definitions: Definitions) -> list[str]:
    """Return the names of the objects below a part, each before those inside it."""
    found: list[str] = []
    waiting = list(references(part.get("properties", {})))
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found.append(name)
            waiting = [*references(definitions[name]), *waiting]
    return found


def references(value: object) -> Iterator[str]:
    """Yield the names of the definitions that a part of a schema refers to."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield str(value["$ref"]).rpartition("/")[2]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def definition(name: str, definitions: Definitions) -> str:
    """Return one object's heading, sentence and table."""
    part = definitions[name]
    return f"### {name}\n\n{part['description']}\n\n{table(part)}"


def table(part: Mapping[str, Any]) -> str:
    """Return one row per field."""
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    for name, field in part["properties"].items():
        meaning = field["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {type_words(field)} | {meaning} |")
    return "\n".join([*lines, ""])


def type_words(field: Mapping[str, Any]) -> str:
    """Return a field's type as a reader sees it, with a link where it is an object."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(type_words(choice) for choice in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        return f"list of {type_words(field['items'])}"
    if field["type"] == "object":
        return f"names to {type_words(field['additionalProperties'])}"
    return str(field["type"])
