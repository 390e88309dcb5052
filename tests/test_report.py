"""The report: the verdict over all records, and what each state of them makes of it."""

import copy
import json
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.report import model, render, shelf, texts
from kit.report.blocks import Report
from kit.report.files import files
from tests import report_records
from tests.report_records import Json, everything, write

Edit = Callable[[dict[str, Json]], object]


def build(folder: Path, records: dict[str, Json], language: str = "en") -> Report:
    return model.build(shelf.load(write(folder, records)), language)


def test_everything_there_and_passed_is_validated(tmp_path: Path) -> None:
    verdict = build(tmp_path, everything()).verdict
    assert (verdict.state, verdict.failures, verdict.lacking) == ("validated", (), ())
    assert [row[1].kind for row in verdict.proofs.rows] == ["good", "good", "good"]


def accuracy_fails(records: dict[str, Json]) -> None:
    records["accuracy"]["results"].update(outcome="fail", reasons=["token 7 is off by 3.1"])


def baseline_fails(records: dict[str, Json]) -> None:
    regression = records["benchmark"]["results"]["regression"]
    regression["passed"] = False
    regression["comparisons"][0]["status"] = "regression"


def figure_beyond_its_limit(records: dict[str, Json]) -> None:
    records["accuracy"]["results"]["last_hidden_state"]["relative_error"] = 0.0101


def main_mode_fails(records: dict[str, Json]) -> None:
    records["benchmark"]["results"]["ladder"][0]["verdict"] = "FAIL"


def not_finite(records: dict[str, Json]) -> None:
    records["inference"]["results"]["pooler_output"]["finite"] = False


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (accuracy_fails, "token 7 is off by 3.1"),
        (baseline_fails, "Slower than the baseline: latency at batch 1"),
        (figure_beyond_its_limit, "claims to pass with a figure beyond its limit"),
        (main_mode_fails, "main mode fp32-sdpa fails"),
        (not_finite, "NaN or infinite"),
    ],
)
def test_a_failure_in_any_record_fails_the_whole(tmp_path: Path, edit: Edit, words: str) -> None:
    records = everything()
    edit(records)
    verdict = build(tmp_path, records).verdict
    assert verdict.state == "failed"
    assert any(words in failure for failure in verdict.failures), verdict.failures


def every(*keys: str, value: object) -> Edit:
    def edit(records: dict[str, Json]) -> None:
        for record in records.values():
            part = record
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value

    return edit


def in_one(script: str, *keys: str, value: object) -> Edit:
    return lambda records: every(*keys, value=value)({script: records[script]})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda records: records.pop("accuracy"), "accuracy.json is not there: run accuracy.py"),
        (every("model", "source", value="random"), "Random weights"),
        (every("device", "type", value="cpu"), "Computed on CPU, which validates no NPU"),
        (every("device", "type", value="cuda"), "Computed on GPU, which validates no NPU"),
        (in_one("inference", "device", "cpu_fallbacks", value=["aten::x"]), "py: aten::x"),
        (in_one("benchmark", "status", value="partial"), "benchmark.json is of a run that was"),
        (in_one("inference", "model", "sha256", value="ff" * 32), "Mixed records: infe"),
        (in_one("benchmark", "device", "name", value="Ascend310"), "name: Ascend310 ≠ Asc"),
        (in_one("inference", "environment", "torch", value="2.1"), "environment.torch: 2.1 ≠"),
        (in_one("benchmark", "environment", "git_commit", value="beef"), "git_commit: beef ≠"),
        (in_one("accuracy", "results", "outcome", value="self-check"), "held the CPU against"),
        (in_one("accuracy", "schema_version", value="2.0"), "schema version 2.0, this kit reads"),
        (in_one("accuracy", "script", value="benchmark"), "a record of 'benchmark'"),
    ],
)  # fmt: skip
def test_what_is_not_proven_is_named_and_nothing_is_validated(
    tmp_path: Path, edit: Edit, words: str
) -> None:
    records = everything()
    edit(records)
    verdict = build(tmp_path, records).verdict
    assert verdict.state == "incomplete"
    assert any(words in sentence for sentence in verdict.lacking), verdict.lacking


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_one("benchmark", "results", "latency", "unsupported", value=["p99_ms"]), "p99_ms: o"),
        (in_one("inference", "started_at", value="2026-03-01T00:00:00+08:00"), "Stale: inference"),
        (every("environment", "git_commit", value="beef+dirty"), "changes (beef+dirty)"),
        (every("environment", "git_commit", value=None), "names no commit"),
        (in_one("accuracy", "results", "first_unexplained_block", value=3), "does not explain"),
        (in_one("accuracy", "warnings", value=["!"]), "accuracy.py printed warnings"),
        (
            in_one("benchmark", "results", "latency", "warm_up", "steady", value=False),
            "Not steady after the warm-up: Latency",
        ),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said_beside_the_verdict(
    tmp_path: Path, edit: Edit, words: str
) -> None:
    records = everything()
    edit(records)
    verdict = build(tmp_path, records).verdict
    assert verdict.state == "validated"
    assert any(words in sentence for sentence in verdict.remarks), verdict.remarks


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b'{"schema_version": "9.1", "script": "accuracy"}', "schema version 9.1"),
    ],
)
def test_a_broken_record_is_named_as_unreadable(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    write(tmp_path, everything())
    (tmp_path / "accuracy.json").write_bytes(content)
    for language in ("en", "zh"):
        made = files(tmp_path, language)
        assert b"accuracy.json" in made[tmp_path / "report.md"]
    verdict = model.build(shelf.load(tmp_path), "en").verdict
    assert verdict.state == "incomplete"
    assert any("accuracy.json cannot be read" in s and problem in s for s in verdict.lacking)


def test_a_record_that_is_a_folder_or_a_pipe_is_named_as_unreadable(tmp_path: Path) -> None:
    write(tmp_path, {"inference": everything()["inference"]})
    (tmp_path / "accuracy.json").mkdir()
    os.mkfifo(tmp_path / "benchmark.json")
    os.mkfifo(tmp_path / "accuracy_pca.png")
    entries = shelf.load(tmp_path).entries
    assert [entry.state for entry in entries.values()] == ["found", "unreadable", "unreadable"]
    assert files(tmp_path, "en")


def test_an_empty_folder_makes_an_incomplete_report(tmp_path: Path) -> None:
    report = model.build(shelf.load(tmp_path), "en")
    assert report.verdict.state == "incomplete"
    assert len(report.verdict.lacking) == 3
    assert render.html(report) and render.markdown(report)


def test_a_picture_of_an_earlier_run_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, everything())
    os.utime(tmp_path / "accuracy_pca.png", (1, 1))
    (tmp_path / "accuracy_layers.png").write_bytes(b"no picture")
    (tmp_path / "benchmark.png").unlink()
    found = shelf.load(tmp_path)
    states = [
        found.picture(script, name)[0]
        for script, names in report_records.PICTURES.items()
        for name in names
    ]
    assert states == ["found", "absent", "unreadable", "found", "older"]
    # The run that is about to be written has drawn no picture: an old one is not its own.
    fresh = shelf.load(tmp_path, {"inference.json": b"{}"})
    assert fresh.picture("inference", "inference_features.png") == ("older", b"")


def test_a_fresh_record_comes_before_the_old_one(tmp_path: Path) -> None:
    records = everything()
    write(tmp_path, records)
    newer = copy.deepcopy(records["inference"])
    newer["results"]["latency_ms"] = 4.56
    made = files(tmp_path, "en", {"inference.json": str(newer).encode()})
    assert "cannot be read" in made[tmp_path / "report.md"].decode()  # str() makes no JSON
    made = files(tmp_path, "en", {"inference.json": json.dumps(newer).encode()})
    assert "4.56 ms" in made[tmp_path / "report.md"].decode()


def test_both_languages_have_every_text_and_the_same_places_to_fill() -> None:
    english, chinese = vars(texts.load("en")), vars(texts.load("zh"))
    for name, text in english.items():
        fields = [
            sorted(field for _, field, _, _ in string.Formatter().parse(words) if field)
            for words in (text, chinese[name])
        ]
        assert fields[0] == fields[1], name
        assert text and chinese[name]
