"""The records: their JSON Schema, their documentation, and the example that gathers them."""

import copy
import csv
import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from kit import records
from tests.report_records import everything, write
from tests.schemas import DOCS, shipped_schema

WRITER = runpy.run_path(str(DOCS / "write_records.py"))


@pytest.mark.parametrize("script", records.RECORDS)
def test_the_shipped_schema_is_that_of_the_dataclasses(script: str) -> None:
    shipped = shipped_schema(script)
    assert shipped == WRITER["schema"](records.RECORDS[script]), "run python3 docs/write_records.py"
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_a_record_with_a_field_removed_or_added_does_not_pass(
    run_inference: Callable[..., tuple[int, Path]],
) -> None:
    _, folder = run_inference()
    record = json.loads((folder / "inference.json").read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(shipped_schema("inference"))
    assert validator.is_valid(record)
    for name in record:
        smaller = copy.deepcopy(record)
        del smaller[name]
        assert not validator.is_valid(smaller), name
    record["device"]["extra"] = 1
    assert not validator.is_valid(record)


@pytest.mark.parametrize("script", records.RECORDS)
def test_every_field_is_described(script: str) -> None:
    whole = shipped_schema(script)
    for part in (whole, *whole["$defs"].values()):
        for name, field in part["properties"].items():
            assert field["description"], name


COLLECT = DOCS / "collect.py"


def test_the_shipped_documentation_is_that_of_the_dataclasses() -> None:
    shipped = (DOCS / "records.md").read_text(encoding="utf-8")
    assert shipped == WRITER["documentation"](), "run python3 docs/write_records.py"
    assert f"`schema_version` is `{records.SCHEMA_VERSION}`" in shipped


@pytest.mark.parametrize("script", records.RECORDS)
def test_every_field_of_every_object_is_in_it(script: str) -> None:
    text = WRITER["documentation"]()
    whole = shipped_schema(script)
    for name, part in whole["$defs"].items():
        section = text.split(f"### {name}\n")[1].split("\n#")[0]
        for field, described in part["properties"].items():
            assert f"| `{field}` |" in section, (name, field)
            assert described["description"].replace("|", "\\|") in section


def test_every_link_in_it_leads_somewhere() -> None:
    text = WRITER["documentation"]()
    headings = {line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    for link in links:
        if link.startswith("#"):
            assert link[1:] in headings, link
        else:
            assert (DOCS / link).is_file(), link


def collect(*folders: Path) -> tuple[int, list[dict[str, str]], str]:
    done = subprocess.run(
        [sys.executable, "-I", str(COLLECT), *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, list(csv.DictReader(io.StringIO(done.stdout))), done.stderr


def test_many_hosts_make_one_table(tmp_path: Path) -> None:
    first = everything()
    second = everything()
    del second["accuracy"], second["inference"]
    second["benchmark"]["device"]["name"] = 'Ascend310, "P3"'
    folders = [write(tmp_path / "a", first), write(tmp_path / "b", second), tmp_path / "none"]
    code, rows, error = collect(*folders)
    assert (code, error) == (0, "")
    assert [row["folder"] for row in rows] == [str(folder) for folder in folders]
    assert [row["device"] for row in rows] == ["Ascend910_9362", 'Ascend310, "P3"', ""]
    assert [row["verdict"] for row in rows] == ["pass", "", ""]
    latency = first["benchmark"]["results"]["latency"]["p50_ms"]
    assert [row["p50_ms"] for row in rows] == [str(latency), str(latency), ""]
    best = max(row["throughput_ips"] or 0 for row in first["benchmark"]["results"]["throughput"])
    assert rows[0]["best_throughput_ips"] == str(best)
    assert rows[0]["best_batch_size"] == "8"


@pytest.mark.parametrize(
    ("content", "words"), [("{", "Expecting"), ("[]", "no JSON object"), ("{}", "schema version")]
)
def test_a_record_that_cannot_be_read_is_named_and_the_rest_is_kept(
    tmp_path: Path, content: str, words: str
) -> None:
    folder = write(tmp_path / "a", everything())
    (folder / "benchmark.json").write_text(content)
    code, rows, error = collect(folder)
    assert code == 1
    assert f"left out: {folder / 'benchmark.json'}: " in error and words in error
    assert rows[0]["verdict"] == "pass" and rows[0]["p50_ms"] == ""


def test_a_field_that_a_record_lacks_is_empty(tmp_path: Path) -> None:
    records = everything()
    del records["accuracy"]["environment"]
    records["benchmark"]["results"]["throughput"] = None
    code, rows, _ = collect(write(tmp_path / "a", json.loads(json.dumps(records))))
    assert code == 0
    assert rows[0]["torch"] == rows[0]["best_throughput_ips"] == ""
