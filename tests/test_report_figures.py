"""Every number comes from a record; no content of a record makes the report fail."""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.language import load_words
from kit.records import RECORDS
from kit.report.load import SCRIPTS, load_records
from kit.report.render import Filters, files
from kit.report.verdict import conclude
from tests.report_records import NOW, Json, everything, write

MIB = 1 << 20
NUMBER = re.compile(r"(?<![\w.+-])-?\d+(?:\.\d+)*(?:e[+-]?\d+)?(?![\w])")
# The console's own words, a cosine's form, and what the report counts: no figures of a record.
WORDS = (
    r"first 5 values",
    r"1\u00a0-\u00a0(?=\d)",
    r"\d+ claims of the records",
    r"记录中的 \d+ 项",
)
Place = tuple[str | int, ...]


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
    return files(folder, language, NOW)[folder / "report.md"].decode()


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
    tensors = [
        records["accuracy"]["results"][name] for name in ("pooler_output", "last_hidden_state")
    ]
    numbers.append(max(tensor["relative_error"] for tensor in tensors) / 0.01)  # of the limit
    return inside, numbers


def is_from_record(token: str, behind: str, numbers: list[float]) -> bool:
    """Return whether a number stands in a record, rounded as it is here and in its unit there."""
    units = {" %": 100.0, "\u00a0%": 100.0, " MiB": 1 / MIB}
    scale = next((one for unit, one in units.items() if behind.startswith(unit)), 1.0)
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
        text = re.sub(words, " ", text)
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
    assert strangers(text.replace("0.006521", "0.006528"), records)[0] == "0.006528"
    assert strangers(text + "\n77.7 %", records) == ["77.7"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_holds_a_figure(language: str) -> None:
    for name, text in leaves(load_words(language)):
        assert not NUMBER.search(str(text)), name


def test_a_number_that_changes_in_a_record_changes_in_the_report(tmp_path: Path) -> None:
    before = markdown(write(tmp_path, everything()))
    records = everything()
    records["accuracy"]["results"]["pooler_output"]["cosine"] = 0.999987
    records["benchmark"]["results"]["latency"]["p90_ms"] = 8.7654
    after = markdown(write(tmp_path, records))
    assert "0.999987" in after and "0.999987" not in before
    assert "| `p90_ms` | 8.77 ms |" in after


def test_cosines_errors_and_shares_read_as_what_they_are() -> None:
    one = Filters(load_words("en"))
    cosines = {
        0.999979: "0.999979",
        1 - 4.2e-8: "1\u00a0-\u00a04.2e-08",
        1.0: "1.000000",
        None: "not finite",
    }
    assert {value: one.cosine(value).text for value in cosines} == cosines
    errors = {0.006521: "0.006521", 4.137e-7: "4.14e-07", 0.0: "0.000000", None: "not finite"}
    assert {value: one.error(value, 6).text for value in errors} == errors
    shares = {0.006521: "0.65 %", 1.4e-6: "0.00014 %", 0.0: "0.00 %", None: "–"}
    assert {value: one.percent(value, ".2f").text for value in shares} == shares
    assert one.number(10**400).kind == "bad"


# ---- Any content ---------------------------------------------------------------------------------


def variants(hint: Any, value: Any) -> list[Any]:  # noqa: ANN401 - a type and JSON
    """Return other values of a field's type, the hardest ones that a record may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        choices = [one for one in arguments if one is not type(None)]
        return [None, *(found for choice in choices for found in variants(choice, value))]
    if origin is typing.Literal:
        return list(arguments)
    if origin is tuple:
        return [[], [*value, *value, value[0]]] if value else [[]]
    plain: dict[object, list[Any]] = {
        float: [0.0, -1.5, 1.7e308, -1e-320],
        int: [0, -7, 10**400],
        bool: [True, False],
        str: ["", "\x00|<b>`\n\u2028{w}{{ w }}%s", "x" * 5000],
    }
    return plain.get(hint, [])


def fields(kind: type, value: Json) -> Iterator[tuple[Json, str, Any]]:
    """Yield every field of a record with its object and type, those inside come first."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, below = hints[field.name], value[field.name]
        inner = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        for one in below if isinstance(below, list) else [below]:
            if inner and isinstance(one, dict):
                yield from fields(typing.cast(type, inner[0]), one)
        if field.name not in ("schema_version", "script", "started_at"):
            yield value, field.name, hint


@pytest.mark.extended
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_value_of_a_field_makes_the_verdict_fail(tmp_path: Path, script: str) -> None:
    write(tmp_path, everything(), pictures=False)
    record, words, tried = everything()[script], load_words("zh"), set()
    for part, name, hint in fields(RECORDS[script], record):
        if (id(hint), name) in tried:
            continue  # one row of a table stands for all
        tried.add((id(hint), name))
        kept = part[name]
        for value in variants(hint, kept):
            part[name] = value
            (tmp_path / f"{script}.json").write_text(json.dumps(record))
            found = load_records(tmp_path)
            assert getattr(found, script) is not None, (name, value)
            assert conclude(found, words, NOW).checks
        part[name] = kept
    assert len(tried) > 30


@pytest.mark.parametrize("number", range(5))
def test_no_values_of_all_fields_make_the_report_fail(tmp_path: Path, number: int) -> None:
    for keep_lists in (True, False):
        records = everything()
        for script, record in records.items():
            for part, name, hint in list(fields(RECORDS[script], record)):
                found = variants(hint, part[name])
                if found and not (keep_lists and isinstance(part[name], list | dict)):
                    part[name] = found[number % len(found)]
        write(tmp_path, records)
        assert load_records(tmp_path).problems == {}
        for language in ("en", "zh"):
            assert len(files(tmp_path, language, NOW)) == 2
