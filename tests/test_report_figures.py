"""Every number comes from a record; what a record lacks is said to be missing."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from kit import records
from kit.report import model, render, shelf, texts
from kit.report.fields import Node, damage
from tests.report_records import Json, everything, write

MIB = 1 << 20
NUMBER = re.compile(r"(?<![\w.+-])-?\d+(?:\.\d+)*(?:e[+-]?\d+)?(?![\w])")
# The console's own words, and a token's ordinal: no figures.
Place = tuple[str | int, ...]
WORDS = ("first 5 values",)


def leaves(value: object, path: Place = ()) -> Iterator[tuple[Place, object]]:
    """Yield every place in a JSON value that holds no other."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path, value


def markdown(folder: Path, language: str = "en") -> str:
    return render.markdown(model.build(shelf.load(folder), language))


def known_numbers(records: dict[str, Json]) -> tuple[set[str], list[float]]:
    """Return the numbers inside the records' texts, and the records' numbers themselves."""
    inside: set[str] = set()
    numbers: list[float] = []
    for record in records.values():
        for path, value in leaves(record):
            for text in (value, *path):
                if isinstance(text, str):
                    inside |= set(re.findall(r"-?\d+(?:\.\d+)*(?:e[+-]?\d+)?", text))
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.append(value)
    return inside, numbers


def is_from_record(token: str, behind: str, numbers: list[float]) -> bool:
    """Return whether a number stands in a record, rounded as it is here and in its unit there."""
    scale = 100.0 if behind.startswith(" %") else 1 / MIB if behind.startswith(" MiB") else 1.0
    mantissa = token.split("e", maxsplit=1)[0]
    places = len(mantissa.partition(".")[2])
    digits = len(mantissa.replace(".", "").lstrip("-0")) or 1
    forms = (f".{places}f", f".{digits}g", f"#.{digits}g")
    for number in numbers:
        if token in {format(number * scale, form) for form in forms}:
            return True
        if token == str(np.float32(number)):
            return True
    return False


def strangers(text: str, records: dict[str, Json]) -> list[str]:
    """Return the numbers of a report that no record has."""
    inside, numbers = known_numbers(records)
    for _, value in leaves(records):
        if isinstance(value, str) and len(value) > 6:
            text = text.replace(value, " ")
    for words in WORDS:
        text = text.replace(words, " ")
    return [
        found.group()
        for found in NUMBER.finditer(text)
        if found.group() not in inside
        and not is_from_record(found.group(), text[found.end() : found.end() + 4], numbers)
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_number_of_the_markdown_is_found_again_in_a_record(
    tmp_path: Path, language: str
) -> None:
    records = everything()
    text = markdown(write(tmp_path, records), language)
    assert len(NUMBER.findall(text)) > 250
    assert strangers(text, records) == []


def test_the_search_for_numbers_finds_one_that_no_record_has(tmp_path: Path) -> None:
    records = everything()
    text = markdown(write(tmp_path, records))
    assert strangers(text.replace("0.006521", "0.006528"), records) == ["0.006528"]
    assert strangers(text + "\n77.7 %", records) == ["77.7"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_holds_a_figure(language: str) -> None:
    for name, text in vars(texts.load(language)).items():
        assert not NUMBER.search(text), name


def test_a_number_that_changes_in_a_record_changes_in_the_report(tmp_path: Path) -> None:
    before = markdown(write(tmp_path, everything()))
    records = everything()
    records["accuracy"]["results"]["pooler_output"]["cosine"] = 0.999123
    records["benchmark"]["results"]["latency"]["p90_ms"] = 8.765
    after = markdown(write(tmp_path, records))
    assert "0.999123" in after and "0.999123" not in before
    assert "| `p90_ms` | 8.77 ms |" in after or "| `p90_ms` | 8.76 ms |" in after


def in_memory(records: dict[str, Json]) -> dict[str, bytes]:
    """Return records as files that are about to be written."""
    return {f"{script}.json": json.dumps(record).encode() for script, record in records.items()}


def removed(record: Json, path: Place) -> Json:
    changed = copy.deepcopy(record)
    part: Any = changed
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return changed


def places(value: object, path: Place = ()) -> Iterator[Place]:
    """Yield every field of a record, those of the first entry of a list too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from places(value[0], (*path, 0))


@pytest.mark.parametrize("script", ["inference", "benchmark", "accuracy"])
def test_a_field_removed_is_missing_and_never_a_blank_or_a_crash(
    tmp_path: Path, script: str
) -> None:
    records = everything()
    write(tmp_path, records, pictures=False)
    for path in places(records[script]):
        if path[:2] == ("environment", "variables") and len(path) > 2:
            continue  # which variables were set is free
        changed = {**records, script: removed(records[script], path)}
        report = model.build(shelf.load(tmp_path, in_memory(changed)), "en")
        text = render.markdown(report)
        assert "missing" in text.lower(), path
        assert report.verdict.state != "validated", path
        field = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(key) for key in path))
        assert any(field in sentence for sentence in report.verdict.lacking), path
        assert "|  |" not in text and "``" not in text.replace("```", ""), path


@pytest.mark.parametrize("strange", [None, "\x00|<b>`\n", -1e308, [], {}, True])
def test_a_field_of_a_strange_value_never_crashes(tmp_path: Path, strange: object) -> None:
    records = everything()
    for script in records:
        for path in list(places(records[script]))[::5]:
            changed = copy.deepcopy(records[script])
            part: Any = changed
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = strange
            found = shelf.load(tmp_path, in_memory({**records, script: changed}))
            report = model.build(found, "zh")
            render.markdown(report)
    assert render.html(report)


@pytest.mark.parametrize("script", ["inference", "benchmark", "accuracy"])
def test_damage_is_what_the_schema_refuses(script: str) -> None:
    record = everything()[script]
    validator = jsonschema.Draft202012Validator(records.schema(records.RECORDS[script]))
    assert validator.is_valid(record), list(validator.iter_errors(record))
    assert list(damage(record, records.RECORDS[script])) == []
    for path in places(record):
        if path[:2] == ("environment", "variables") and len(path) > 2:
            continue
        changed = removed(record, path)
        assert not validator.is_valid(changed)
        assert len(list(damage(changed, records.RECORDS[script]))) == 1, path


def test_a_node_answers_for_any_value() -> None:
    node = Node({"a": {"b": [1, "x", None, float("inf"), 10**400]}})
    assert node.at("a", "b").numbers() == [1]
    assert node.at("a", "b").texts() == ["x"]
    assert node.at("a", "c", "d").missing
    assert Node({"a": None}).at("a", "b").null
    assert Node(True).number() is None
