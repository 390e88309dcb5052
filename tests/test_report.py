"""The report's verdict over all records, and what each state of them makes of it."""

import dataclasses
import json
import os
import re
import string
import typing
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit import records as kit_records
from kit.accuracy.limits import LIMITS
from kit.language import load_words
from kit.report import load, render, verdict
from kit.report.load import load_records
from kit.report.render import files
from kit.report.verdict import Verdict, conclude
from tests.report_records import NOW, Json, everything, write

Edit = Callable[[dict[str, Json]], object]


def concluded(folder: Path, records: dict[str, Json], language: str = "en") -> Verdict:
    return conclude(load_records(write(folder, records)), load_words(language), NOW)


def markdown(folder: Path, language: str = "en") -> str:
    return files(folder, language, NOW)[folder / "report.md"].decode()


def test_everything_there_and_passed_is_validated(tmp_path: Path) -> None:
    found = concluded(tmp_path, everything())
    assert (found.state, found.failures, found.reasons) == ("validated", (), ())
    assert [kind for _, kind in found.answers.values()] == ["good", "good", "good"]
    assert all(check.agrees is not False for check in found.checks)


def accuracy_fails(records: dict[str, Json]) -> None:
    results = records["accuracy"]["results"]
    results.update(outcome="fail", verdict="FAIL", reasons=["token 7 is off by 3.1"])


def baseline_fails(records: dict[str, Json]) -> None:
    regression = records["benchmark"]["results"]["regression"]
    regression["passed"] = False
    regression["comparisons"][0]["status"] = "regression"


def main_mode_fails(records: dict[str, Json]) -> None:
    results = records["benchmark"]["results"]
    results["ladder"][0] |= {**results["ladder"][3], "mode": "fp32-sdpa", "dtype": "fp32"}
    results["fastest_published_mode"] = "fp32-eager"


def not_finite(records: dict[str, Json]) -> None:
    records["inference"]["results"]["pooler_output"]["finite"] = False


def check_fails(records: dict[str, Json]) -> None:
    """Let the row of batch 4 have computed something else."""
    row = records["benchmark"]["results"]["throughput"][2]
    row |= {"status": "failed", "throughput_ips": None, "avg_latency_ms": None}
    row["latency"]["check"] |= {
        "verdict": "FAIL",
        "reasons": ["3 of 8 images are wrong"],
        "within_published_limits": False,
    }


def every(*keys: str | int, value: object) -> Edit:
    """Return the edit of one place in every record that is given."""

    def edit(records: dict[str, Json]) -> None:
        for record in records.values():
            part: Any = record
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value

    return edit


def in_one(script: str, *keys: str | int, value: object) -> Edit:
    return lambda records: every(*keys, value=value)({script: records[script]})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (accuracy_fails, "token 7 is off by 3.1"),
        (baseline_fails, "Slower than the baseline: latency at batch 1"),
        (main_mode_fails, "main mode fp32-sdpa is beyond"),
        (not_finite, "NaN or infinity"),
        (
            in_one("inference", "results", "failures", value=["two forwards differ"]),
            "inference.py: two forwards differ",
        ),
        (check_fails, "What the benchmark timed is wrong: 3 of 8 images"),
    ],
)
def test_a_failure_in_any_record_fails_the_whole(tmp_path: Path, edit: Edit, words: str) -> None:
    records = everything()
    edit(records)
    found = concluded(tmp_path, records)
    assert found.state == "failed"
    assert len(found.failures) == 1 and words in found.failures[0], found.failures


def fewer_iterations(records: dict[str, Json]) -> None:
    """Let the latency stand on the samples of another row, twelve of them."""
    results = records["benchmark"]["results"]
    results["latency"] = results["ladder"][0]["latency"]


def wide_expectation(records: dict[str, Json]) -> None:
    """Let accuracy.py have run with ten times the default of --budget-factor."""
    results = records["accuracy"]["results"]
    results["limits"]["budget_factor"] *= 10
    for block in results["blocks"]:
        block["worst_operator"]["times_limit"] /= 10


REVIEWED = {"file": "a.safetensors", "sha256": "ab" * 32, "device": "NPU (Ascend910_9362)",
            "declared": "fp32", "images": 1, "reviewed": True}  # fmt: skip
LATENCY = ("results", "ladder", 2)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda records: records.pop("accuracy"), "accuracy.json is missing: run accuracy.py"),
        (every("model", "source", value="random"), "Random weights"),
        (every("model", "source", value="local"), "Local weights, not identified"),
        (every("model", "parameters", value=1234567), "have 1234567 parameters"),
        (in_one("inference", "environment", "cann_library", value="/fake_cann/lib.so"), "emulated"),
        (
            every("environment", "variables", value={"ASCEND_HOME_PATH": "/x/fake_cann/ab"}),
            "Computed on the emulated NPU",
        ),
        (in_one("inference", "device", "cpu_fallbacks", value=["aten::x"]), "py: aten::x"),
        (in_one("inference", "device", "cpu_fallbacks", value=None), "inference.py fell back to"),
        (in_one("inference", "device", "known_answer_checks", value=0), "known answers"),
        (in_one("benchmark", "status", value="partial"), "benchmark.json is from an interrupted"),
        (in_one("inference", "model", "sha256", value="ff" * 32), "Mixed records: infe"),
        (in_one("benchmark", "device", "name", value="Ascend310"), "name: Ascend310 ≠ Asc"),
        (
            lambda records: records["benchmark"]["device"].update(index=1, torch_device="npu:1"),
            "device.torch_device: npu:1 ≠ npu:0",
        ),
        (in_one("inference", "environment", "torch", value="2.1"), "environment.torch: 2.1 ≠"),
        (in_one("benchmark", "environment", "git_commit", value="beef"), "git_commit: beef ≠"),
        (in_one("benchmark", "environment", "platform", value="Linux-6"), "platform: Linux-6 ≠"),
        (in_one("benchmark", "environment", "host_id", value="beef" * 4), "host_id: beefbeef"),
        (in_one("accuracy", "results", "features", value=REVIEWED), "judges saved features"),
        (
            in_one("benchmark", "environment", "variables", value={"TASK_QUEUE_ENABLE": "1"}),
            "environment.variables: TASK_QUEUE_ENABLE=1 ≠ TASK_QUEUE_ENABLE=2",
        ),
        (
            in_one("benchmark", "device", "arithmetic", value=None),
            "device.arithmetic:  ≠ matrix product fp32",
        ),
        (in_one("benchmark", "input", "sha256", value="00" * 32), "input.sha256: 0000"),
        (in_one("benchmark", "input", "shape", value=[1, 3, 64, 64]), "input.shape: [3, 64, 64]"),
        (in_one("accuracy", "schema_version", value="9.0"), "schema version 9.0, this kit reads"),
        (in_one("accuracy", "script", value="benchmark"), "Invalid enum value 'benchmark'"),
        (wide_expectation, "--budget-factor 100; the default is 10"),
        (fewer_iterations, "from 12 iterations; at least 20"),
        (
            in_one("benchmark", "results", "throughput", 3, "latency", "check", value=None),
            "not checked against the CPU: batch_size 8",
        ),
        (in_one("benchmark", *LATENCY, "bits_equal_eager", value=None), "eager mode: bf16-sdpa-g"),
        (every("started_at", value="2019-03-14T09:26:53+08:00"), "more than a year old (2019"),
        (in_one("inference", "started_at", value="2026-03-01T00:00:00+08:00"), "than a day older"),
    ],
)  # fmt: skip
def test_what_is_not_proven_is_named_and_nothing_is_validated(
    tmp_path: Path, edit: Edit, words: str
) -> None:
    records = everything()
    edit(records)
    found = concluded(tmp_path, records)
    assert found.state == "incomplete", found.failures
    assert any(words in sentence for sentence in found.reasons), found.reasons


def test_a_run_on_another_kind_of_device_validates_no_npu(tmp_path: Path) -> None:
    for kind, label in (("cpu", "CPU"), ("cuda", "GPU")):
        records = everything()
        for record in records.values():
            record["device"].update(type=kind, torch_device=kind, known_answer_checks=0)
        found = concluded(tmp_path, records)
        assert f"Computed on {label}: this validates no NPU." in found.reasons
        # The CPU is what knows the answers.
        assert any("known answers" in reason for reason in found.reasons) == (kind == "cuda")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (in_one("benchmark", "results", "latency", "unsupported", value=["p99_ms"]), "p99_ms: 1"),
        (every("environment", "git_commit", value="beef+dirty"), "changes (beef+dirty)"),
        (every("environment", "git_commit", value=None), "has no git commit"),
        (
            every("device", "arithmetic", "operators", 2, "found", value="none of the known ones"),
            "matches what the device computes: GELU, softmax",
        ),
        (
            in_one("inference", "results", "repeats", "differing", value=2),
            "inference.py: 2 of 3, by at most 0",
        ),
        (in_one("accuracy", "warnings", value=["!"]), "accuracy.py printed warnings"),
        (
            in_one("benchmark", "results", "latency", "warm_up", "steady", value=False),
            "not steady after the warm-up: Latency",
        ),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said_beside_the_verdict(
    tmp_path: Path, edit: Edit, words: str
) -> None:
    records = everything()
    edit(records)
    found = concluded(tmp_path, records)
    assert found.state == "validated"
    assert any(words in sentence for sentence in found.remarks), found.remarks


def test_the_first_figures_come_from_samples_and_the_kits_limits(tmp_path: Path) -> None:
    first = concluded(tmp_path, everything()).headline
    assert first.batch_size == 8
    assert first.latency_ms == pytest.approx(7.985145)
    assert first.throughput_ips == pytest.approx(731.9959310)
    assert first.relative_error == 0.006521
    assert first.share_of_limit == pytest.approx(0.6521)
    text = markdown(tmp_path)
    assert "| **7.99 ms** | **732.00** | **0.65 %** | **43 %** |" in text
    assert "the figure closest to its limit is at 65\u00a0% of it" in text
    records = everything()
    records["accuracy"]["results"]["last_hidden_state"]["worst_token"]["relative_error"] = 0.0427
    assert concluded(tmp_path, records).headline.share_of_limit == pytest.approx(0.0427 / 0.045)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "Input data was truncated"),
        (b"\xff\xfe", "malformed"),
        (b'{"schema_version": NaN}', "invalid character"),
        (b"[1]", "Expected `object`"),
        (b'{"schema_version": "2.0", "a": ' + b"[" * 100_000, "recursion"),
        (b'{"schema_version": "9.1", "script": "accuracy"}', "schema version 9.1"),
        (b'{"schema_version": "2.0", "script": "accuracy"}', "missing required field"),
        (b'{"schema_version": "2.0", "script": "\\ud800"}', "truncated"),
    ],
)
def test_a_broken_record_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    write(tmp_path, everything())
    (tmp_path / "accuracy.json").write_bytes(content)
    for language in ("en", "zh"):
        assert "accuracy.json" in markdown(tmp_path, language)
    found = conclude(load_records(tmp_path), load_words("en"), NOW)
    assert found.state == "incomplete"
    assert any("accuracy.json cannot be used" in s and problem in s for s in found.reasons), (
        found.reasons
    )


# Fields that older records lack.
HAVE_A_DEFAULT = {
    field.name
    for kind in vars(kit_records).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if field.default is not dataclasses.MISSING
}


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield every field of a record, those of the first entry of a list too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from places(item, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from places(value[0], (*path, 0))


@pytest.mark.parametrize("script", load.SCRIPTS)
def test_a_record_without_one_of_its_fields_is_none_and_names_the_place(script: str) -> None:
    for path in places(everything()[script]):
        if path[:2] == ("environment", "variables") or path[-1] in HAVE_A_DEFAULT:
            continue  # which variables were set is free
        record = everything()[script]
        part: Any = record
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        place = "".join("[0]" if key == 0 else f".{key}" for key in path[:-1])
        with pytest.raises(kit_records.RecordError) as error:
            kit_records.decode(json.dumps(record).encode(), kit_records.RECORDS[script])
        expected = f"Object missing required field `{path[-1]}`"
        assert str(error.value) == (f"{expected} - at `${place}`" if place else expected)


def test_a_record_that_is_a_folder_or_a_pipe_or_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"inference": everything()["inference"]})
    (tmp_path / "accuracy.json").mkdir()
    os.mkfifo(tmp_path / "benchmark.json")
    (tmp_path / "benchmark_ladder.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "accuracy_pca.png")
    found = load_records(tmp_path)
    assert found.found() == [found.inference]
    assert set(found.problems) == {"benchmark", "accuracy"}
    assert all("not a plain file" in problem for problem in found.problems.values())
    assert str(tmp_path) not in str(found.problems)
    assert files(tmp_path, "en", NOW)
    monkeypatch.setattr("kit.outside.LARGEST_JSON_BYTES", 100)
    assert "100 bytes" in load_records(tmp_path).problems["inference"]


def test_an_empty_folder_makes_a_report(tmp_path: Path) -> None:
    found = conclude(load_records(tmp_path), load_words("en"), NOW)
    assert found.state == "incomplete"
    assert len(found.reasons) == 3
    assert len(files(tmp_path, "en", NOW)) == 2


def test_a_picture_of_an_earlier_run_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, everything())
    os.utime(tmp_path / "accuracy_pca.png", (1, 1))
    (tmp_path / "accuracy_layers.png").write_bytes(b"no picture")
    (tmp_path / "benchmark_latency.png").unlink()
    problems = {name: one.problem for name, one in load_records(tmp_path).pictures.items()}
    assert problems == {
        "inference_features.png": "",
        "benchmark_latency.png": "absent",
        "benchmark_throughput.png": "",
        "benchmark_ladder.png": "",
        "accuracy_layers.png": "unreadable",
        "accuracy_tokens.png": "",
        "accuracy_pca.png": "older",
    }
    assert "accuracy_pca.png is from an earlier run" in markdown(tmp_path)


def test_a_record_of_many_images_is_rendered_in_part(tmp_path: Path) -> None:
    records = everything()
    image = records["inference"]["results"]["images"][0]
    records["inference"]["results"]["images"] = [image] * 5000
    records["inference"]["input"]["images"] = 5000
    found = markdown(write(tmp_path, records))
    assert "4900 more in inference.json." in found
    assert found.count("000000000139.jpg") < 110


def test_two_million_images_in_thirty_megabytes_are_refused_at_once(tmp_path: Path) -> None:
    record = json.dumps(everything()["inference"]).encode()
    images = b'"images": [' + b",".join([b'{"image":"a"}'] * 2_000_000) + b"], "
    (tmp_path / "inference.json").write_bytes(
        record.replace(b'"pooler_output"', images + b'"x"', 1)
    )
    assert "cannot be used" in markdown(tmp_path)
    assert "images[0]" in load_records(tmp_path).problems["inference"]


def test_coverage_and_soak_stand_in_the_report(tmp_path: Path) -> None:
    records = everything()
    cell = {"mode": "fp32-sdpa", "batch_size": 3, "rows": 112, "columns": 144, "images": 3,
            "relative_error": 0.004132, "cosine": 0.999993, "token_relative_error": 0.0111,
            "expected_error": 0.000823, "passed": True, "reason": None}  # fmt: skip
    deviation = {"forward": 171, "at": NOW.isoformat(), "after_s": 3.5, "batch_size": 8,
                 "tensor": "pooler_output", "image": 1, "token": None,
                 "largest_difference": 0.000213, "passed": True}  # fmt: skip
    batch = {"batch_size": 8, "forwards": 900, "distinct_results": 2, "early_ms": 11.31,
             "late_ms": 11.87, "drift": 0.0495}  # fmt: skip
    records["accuracy"]["results"] |= {
        "coverage": [cell],
        "soak": {"seconds": 31.7, "forwards": 900, "beyond_limits": 0, "end": "interrupted",
                 "reason": None, "first_deviation": deviation, "batches": [batch],
                 "early_host_peak_bytes": 1, "host_peak_bytes": 1},
    }  # fmt: skip
    text = markdown(write(tmp_path, records))
    assert concluded(tmp_path, records).failures == ()
    for row in (
        "| fp32-sdpa | 3 | 112 × 144 | 0.00413 | 0.000823 | 0.999993 | 0.0111 | PASS |",
        "| First result with different bits | forward 171, by at most 0.000213 |",
        "| End | Interrupted |",
        "| 8 | 900 | 2 | 11.31 | 11.87 | 5.0 % |",
    ):
        assert row in text


# ---- The words -----------------------------------------------------------------------------------


def texts(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a language with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts(item, f"{path}/{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts(item, f"{path}/{number}")
    else:
        yield path, str(value)


def test_both_languages_have_every_text_and_the_same_places_to_fill() -> None:
    english, chinese = dict(texts(load_words("en"))), dict(texts(load_words("zh")))
    assert list(english) == list(chinese)
    for name, text in english.items():
        fields = [
            sorted(field for _, field, _, _ in string.Formatter().parse(words) if field)
            for words in (text, chinese[name])
        ]
        assert fields[0] == fields[1], name
        assert text and chinese[name]


def test_every_text_is_used_and_every_text_that_is_used_is_there() -> None:
    folder = Path(render.__file__).parent
    sources = [
        path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".md", ".jinja")
    ] + [folder.parent / "language.py"]
    whole = "\n".join(path.read_text("utf-8") for path in sources)
    calls = (
        r"\bw\.(\w+)",  # in a template
        r'picture_of\("[\w.]+", "(\w+)", "\w+"\)',
        r'picture_of\("[\w.]+", "\w+", "(\w+)"\)',
        r"""words\[["'](\w+)["']""",  # in Python
        r'say\((?:self\.)?words, "(\w+)"',
        r'sentence\("(\w+)"',
    )
    used = {name for call in calls for name in re.findall(call, whole)}
    used |= {"yes", "no", "subject", "subject_emulated"}  # chosen by a condition
    used |= {f"verify_{state}" for state in ("agrees", "contradicts", "unconfirmed")}
    assert used == set(load_words("en"))


def choices(kind: type, field: str) -> set[str]:
    """Return the values that a field of a record may have."""
    return set(typing.get_args(typing.get_type_hints(kind)[field]))


def test_every_value_that_a_record_may_hold_has_its_word() -> None:
    words = load_words("en")
    assert set(words["device_types"]) == choices(kit_records.DeviceInfo, "type")
    assert set(words["statuses"]) == choices(kit_records.Record, "status")
    assert set(words["row_states"]) == choices(kit_records.ThroughputRow, "status")
    assert set(words["bounds"]) == set(typing.get_args(kit_records.Bound))
    assert set(words["stages"]) == set(typing.get_args(kit_records.Stage))
    assert set(words["comparisons"]) == choices(kit_records.Comparison, "status")
    assert set(words["token_kinds"]) == choices(kit_records.TokenPlace, "kind")
    assert set(words["overflow_values"]) == choices(kit_records.DeviceArithmetic, "overflow")
    assert set(words["sides"]) == choices(kit_records.Cause, "where")
    assert set(words["soak_ends"]) == choices(kit_records.Soak, "end")
    assert set(words["states"]) == set(typing.get_args(verdict.State))
    assert set(words["state_sentences"]) == set(typing.get_args(verdict.State))
    assert set(words["phases"]) == {
        f.name for f in dataclasses.fields(kit_records.Phases) if f.name.endswith("_ms")
    }
    assert choices(kit_records.AccuracyResults, "outcome") < set(words["answers"])
    assert set(words["limit_reasons"]) == set(LIMITS)
    assert set(words["questions"]) == set(load.SCRIPTS)
    assert not {name for name in words if hasattr(dict, name)}  # a template would find the method


def test_a_year_and_a_day_are_measured_from_when_the_report_is_made(tmp_path: Path) -> None:
    found = load_records(write(tmp_path, everything()))
    later = conclude(found, load_words("en"), NOW + timedelta(days=366))
    assert later.state == "incomplete" and len(later.reasons) == 3
    earlier = conclude(found, load_words("en"), NOW - timedelta(days=30))
    assert earlier.state == "failed"
    assert "started_at" in earlier.failures[0]


def test_records_of_one_setup_agree_though_accuracy_alone_asks_for_the_chips_own_gelu(
    tmp_path: Path,
) -> None:
    records = everything()
    for script in ("inference", "benchmark"):
        operators = records[script]["device"]["arithmetic"]["operators"]
        operators[:] = [one for one in operators if one["operator"] != "GELU of the chip"]
    text = render.files(write(tmp_path, records), "en", NOW)[tmp_path / "report.md"].decode()
    assert "Mixed records" not in text
    records["benchmark"]["device"]["arithmetic"]["operators"][0]["found"] = "fp16"
    text = render.files(write(tmp_path, records), "en", NOW)[tmp_path / "report.md"].decode()
    assert "Mixed records" in text
