"""The JSON Schema that ships with the project."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from kit import schema


@pytest.mark.parametrize("script", schema.RECORDS)
def test_the_shipped_schema_is_that_of_the_dataclasses(script: str) -> None:
    shipped = (schema.FOLDER / f"{script}.schema.json").read_text("utf-8")
    assert shipped == schema.schema_text(script), "run python3 -m kit.schema"
    jsonschema.Draft202012Validator.check_schema(json.loads(shipped))


def test_a_record_with_a_field_removed_or_added_does_not_pass(
    run_inference: Callable[..., tuple[int, Path]],
) -> None:
    _, folder = run_inference()
    record = json.loads((folder / "inference.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(schema.record_schema(schema.RECORDS["inference"]))
    assert validator.is_valid(record)
    for name in record:
        smaller = copy.deepcopy(record)
        del smaller[name]
        assert not validator.is_valid(smaller), name
    record["device"]["extra"] = 1
    assert not validator.is_valid(record)


@pytest.mark.parametrize("script", schema.RECORDS)
def test_every_field_is_described(script: str) -> None:
    whole = schema.record_schema(schema.RECORDS[script])
    for part in (whole, *whole["$defs"].values()):
        for name, field in part["properties"].items():
            assert field["description"], name
