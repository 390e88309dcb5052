"""Records that were changed by hand: each contradiction is a failure by name."""

import dataclasses
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.accuracy.limits import SMALLEST_ALONE
from kit.accuracy.references import Declared
from kit.language import load_words
from kit.records import Latency, LimitsInfo
from kit.report import __main__ as command
from kit.report.checks import Claim, Part, check, check_blocks
from kit.report.load import load_records
from kit.report.verdict import conclude
from tests import benchmark_runs
from tests.accuracy_block_faults import ATTENTION_FAULTS, MLP_FAULTS
from tests.accuracy_injections import BLOCK
from tests.accuracy_model import run_case
from tests.report_records import NOW, Json, everything, write

Run = Callable[..., tuple[int, Path]]
Edit = Callable[[dict[str, Json]], object]


def results(script: str, *keys: str | int, **values: object) -> Edit:
    """Return the edit of some fields of one place in a record's results."""

    def edit(records: dict[str, Json]) -> None:
        part: Any = records[script]["results"]
        for key in keys:
            part = part[key]
        part.update(values)

    return edit


def every(part: str, **values: object) -> Edit:
    """Return the edit of some fields of one part of all records."""

    def edit(records: dict[str, Json]) -> None:
        for record in records.values():
            record[part].update(values)

    return edit


def widened_limits_and_a_large_error(records: dict[str, Json]) -> None:
    found = records["accuracy"]["results"]
    found["limits"].update(relative_error=0.9, cosine=0.1, token_relative_error=2.0)
    found["pooler_output"].update(relative_error=0.5, cosine=0.9)


def cpu_record_renamed(records: dict[str, Json]) -> None:
    for record in records.values():
        record["device"]["torch_device"] = "cpu"


def cell(**changes: object) -> Json:
    """Return one cell of a coverage, changed."""
    return {
        "mode": "fp32-sdpa", "batch_size": 8, "rows": 224, "columns": 224, "images": 4,
        "relative_error": 0.0031, "cosine": 0.999996, "token_relative_error": 0.0052,
        "expected_error": 0.0029, "passed": True, "reason": None, **changes,
    }  # fmt: skip


def soaked(**changes: object) -> Json:
    """Return a soak of ten forwards at batch 1, changed."""
    batch = {"batch_size": 1, "forwards": 10, "distinct_results": 1, "early_ms": 8.1,
             "late_ms": None, "drift": None}  # fmt: skip
    return {
        "seconds": 1.3, "forwards": 10, "beyond_limits": 0, "end": "complete", "reason": None,
        "first_deviation": None, "batches": [batch], "early_host_peak_bytes": 1 << 30,
        "host_peak_bytes": 1 << 30, **changes,
    }  # fmt: skip


EDITS: dict[str, tuple[Edit, str]] = {
    "a cell of the coverage that fails": (
        results("accuracy", coverage=[cell(), cell(passed=False, relative_error=0.5, cosine=0.9)]),
        "results.outcome is pass, by the kit's limits it should be fail",
    ),
    "a cell beyond a limit that passes": (
        results("accuracy", coverage=[cell(token_relative_error=0.5)]),
        "results.coverage[0].passed is true, by the kit's limits it should be false",
    ),
    "a cell's error alone": (
        results("accuracy", coverage=[cell(relative_error=1e-7, cosine=0.9991)]),
        "results.coverage[0].cosine is 0.9991",
    ),
    "a soak with wrong results": (
        results("accuracy", soak=soaked(beyond_limits=2)), "results.outcome is pass",
    ),
    "a soak that the device did not survive": (
        results("accuracy", soak=soaked(end="device error")), "results.outcome is pass",
    ),
    "a soak of more forwards than its batches have": (
        results("accuracy", soak=soaked(forwards=9999)), "results.soak.forwards is 9999",
    ),
    "a percentile beside its samples": (
        results("benchmark", "latency", p50_ms=1.23), "results.latency.p50_ms is 1.23",
    ),
    "a mean beside its samples": (
        results("benchmark", "throughput", 1, "latency", mean_ms=1.0),
        "results.throughput[1].latency.mean_ms is 1,",
    ),
    "more iterations than samples": (
        results("benchmark", "latency", iterations=5000), "iterations is 5000",
    ),
    "throughput beside its latency": (
        results("benchmark", "throughput", 3, throughput_ips=9999.0),
        "results.throughput[3].throughput_ips is 9999",
    ),
    "throughput of a row without samples": (
        results("benchmark", "throughput", 4, throughput_ips=9999.0),
        "results.throughput[4].throughput_ips is 9999, by its samples it should be null",
    ),
    "the device's own time": (
        results("benchmark", "latency", device_p50_ms=0.5), "device_p50_ms is 0.5",
    ),
    "samples that are negative": (
        results("benchmark", "ladder", 0, "latency", samples_ms=[-1.0] * 12), "samples_ms is -1",
    ),
    "another batch size": (
        results("benchmark", "throughput", 0, batch_size=64), "latency.batch_size is 1",
    ),
    "a row's share of the limit": (
        results("benchmark", "throughput", 1, utilization=0.9137),
        "results.throughput[1].utilization is 0.9137",
    ),
    "a mode's share of the limit": (
        results("benchmark", "ladder", 1, utilization=0.9137),
        "results.ladder[1].utilization is 0.9137",
    ),
    "a mode's best throughput": (
        results("benchmark", "ladder", 2, best_throughput_ips=88888.0),
        "results.ladder[2].best_throughput_ips is 88888",
    ),
    "the fastest mode": (
        results("benchmark", fastest_passing_mode="fp16-sdpa"), "fastest_passing_mode is fp16-sdpa",
    ),
    "a mode beyond its limits that passes": (
        results("benchmark", "ladder", 3, verdict="PASS"),
        "results.ladder[3].verdict is PASS, by its rows it should be FAIL",
    ),
    "a mode's error alone": (
        results("benchmark", "ladder", 1, relative_error=1e-7),
        "results.ladder[1].relative_error is 1e-07",
    ),
    "a row's error beyond its limit": (
        results("benchmark", "throughput", 1, "latency", "check", token_relative_error=0.05),
        "throughput[1].latency.check.verdict is PASS, by the kit's limits it should be FAIL",
    ),
    "a row's error alone": (
        results("benchmark", "latency", "check", relative_error=1e-7), "latency.check.cosine",
    ),
    "a row's check of another batch": (
        results("benchmark", "throughput", 3, "latency", "check", images=2),
        "latency.check.images is 2, by its rows it should be 16",
    ),
    "a check that saw fewer forwards than were timed": (
        results("benchmark", "latency", "check", "repeats", forwards=1), "repeats.forwards is 1",
    ),
    "a mode that keeps the published limits": (
        results("benchmark", "ladder", 2, within_published_limits=True),
        "results.ladder[2].within_published_limits is true",
    ),
    "the fastest mode within the published limits": (
        results("benchmark", fastest_published_mode="bf16-sdpa-graph"),
        "fastest_published_mode is bf16-sdpa-graph, by its rows it should be fp32-sdpa",
    ),
    "ranks that scale": (
        results("benchmark", "ranks", "throughput", 0, scaling_efficiency=1.0),
        "scaling_efficiency is 1,",
    ),
    "a regression that passes": (
        results("benchmark", "regression", "comparisons", 0, new_ms=99.0, ratio=99 / 8.113),
        "comparisons[0].status is faster, by its rows it should be regression",
    ),
    "a ratio": (
        results("benchmark", "regression", "comparisons", 0, ratio=0.5), "comparisons[0].ratio is",
    ),
    "limits": (
        results("accuracy", "limits", relative_error=0.5),
        "results.limits.relative_error is 0.5, by the kit's limits it should be 0.01",
    ),
    "limits of another arithmetic": (
        results("accuracy", "limits", arithmetic="bf16"), "limits.arithmetic is bf16",
    ),
    "limits and a large error": (
        widened_limits_and_a_large_error, "pooler_output.relative_error_passed is true",
    ),
    "an error beyond its limit": (
        results("accuracy", "last_hidden_state", relative_error=0.0101),
        "last_hidden_state.relative_error_passed is true",
    ),
    "a cosine of zero": (
        results("accuracy", "pooler_output", cosine=0.0), "pooler_output.cosine_passed is true",
    ),
    "a cosine that its error does not allow": (
        results("accuracy", "pooler_output", cosine=0.9995), "pooler_output.cosine is 0.9995",
    ),
    "a smaller error": (
        results("accuracy", "pooler_output", relative_error=1e-5, cosine=1.0),
        "pooler_output.relative_error is 1e-05",
    ),
    "an error smaller than every part's": (
        results("accuracy", "last_hidden_state", relative_error=0.0001, cosine=1.0),
        "last_hidden_state.relative_error is 0.0001, by its other figures",
    ),
    "a worst token better than the whole": (
        results("accuracy", "last_hidden_state", "worst_token", relative_error=1e-4),
        "worst_token.relative_error is 0.0001",
    ),
    "a worst token beyond its limit": (
        results("accuracy", "last_hidden_state", "worst_token", relative_error=0.3),
        "last_hidden_state.passed is true",
    ),
    "percentiles that fall": (
        results("accuracy", "pooler_output", "token_percentiles", 0, relative_error=0.0069),
        "pooler_output.token_percentiles is [0.0069, 0.005923",
    ),
    "a largest difference below the mean one": (
        results("accuracy", "pooler_output", max_abs_diff=1e-9), "max_abs_diff is 1e-09",
    ),
    "bits that are identical and not": (
        results("accuracy", "pooler_output", identical_bits=True), "identical_bits",
    ),
    "a figure that is not finite": (
        results("accuracy", "pooler_output", relative_error=None),
        "pooler_output.relative_error_passed is true",
    ),
    "an operator beyond its limit": (
        results("accuracy", "blocks", 3, "worst_operator", relative_error=0.7),
        "results.blocks[3].worst_operator.times_limit is",
    ),
    "a block that is explained": (
        results("accuracy", "blocks", 3, "worst_operator", relative_error=None, times_limit=None),
        "results.blocks[3].explained is true",
    ),
    "a limit that nobody knows": (
        results("accuracy", "blocks", 3, "worst_operator", smallest_limit=0.5),
        "results.blocks[3].worst_operator.smallest_limit is 0.5",
    ),
    "a sum that is explained": (
        results("accuracy", "blocks", 3, relative_error=0.7), "blocks[3].sum_explained is true",
    ),
    "a first block that is left out": (
        results("accuracy", "blocks", 3, sum_explained=False),
        "first_unexplained_block is null, by its rows it should be 2",
    ),
    "an image beyond a limit": (
        results("accuracy", "folder", "worst", 0, relative_error=0.5),
        "folder.worst[0].passed is true",
    ),
    "images that failed": (
        results("accuracy", "folder", failed=3), "results.outcome is pass",
    ),
    "a verdict": (results("accuracy", verdict="SELF-CHECK"), "results.verdict is SELF"),
    "a self-check called a pass": (
        results("accuracy", reference="CPU fp64"), "results.reference is CPU fp64",
    ),
    "a latency beside its image": (
        results("inference", latency_ms=0.1), "inference.json contradicts itself: results.lat",
    ),
    "a latency beside its samples": (
        results("inference", samples_ms=[1.0, 2.0, 3.0]), "results.latency_ms is 9.1734, by its sa",
    ),
    "fewer comparisons than forwards": (
        results("inference", "repeats", forwards=1), "results.repeats.forwards is 1",
    ),
    "features beside their image": (
        results("inference", "pooler_output", first_values=[1.0, 2.0]), "first_values is [1, 2]",
    ),
    "features on another device": (
        results("inference", "last_hidden_state", device="cpu"), "last_hidden_state.device is cpu",
    ),
    "a CPU called an NPU": (cpu_record_renamed, "device.type is npu"),
    "an arithmetic that is too far away": (
        lambda records: records["accuracy"]["device"]["arithmetic"]["operators"][1].update(
            residual=0.5
        ),
        "device.arithmetic.operators[1].residual is 0.5",
    ),
    "an NPU without CANN": (every("environment", cann=None), "environment.cann is null"),
    "a run of tomorrow": (
        lambda records: records["accuracy"].update(started_at="2031-01-01T00:00:00+08:00"),
        "accuracy.json contradicts itself: started_at is 2031",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_changed_record_is_a_failure_by_name(tmp_path: Path, name: str) -> None:
    edit, words = EDITS[name]
    records = everything()
    edit(records)
    found = conclude(load_records(write(tmp_path, records)), load_words("en"), NOW)
    assert found.state == "failed"
    assert any(words in sentence for sentence in found.failures), found.failures
    assert ("contradicted", "bad") in found.answers.values()


@pytest.mark.parametrize(
    ("fault", "limit"),
    [("attention scale 1 % too large", "scores"), ("quick GELU", "sum")],
)
def test_what_is_held_by_itself_where_products_are_rounded_keeps_to_a_known_limit(
    fault: str, limit: str
) -> None:
    case = next(case for case in (*ATTENTION_FAULTS, *MLP_FAULTS) if case.name == fault)
    found = run_case(dataclasses.replace(case, declared=Declared(matmul="bf16")))
    worst = found.blocks[1 + BLOCK].worst_operator
    assert worst is not None and worst.smallest_limit == SMALLEST_ALONE[limit]
    claims = [*check_blocks(Part(SimpleNamespace(script="accuracy"), found, "results"))]
    assert [claim for claim in claims if claim.agrees is False] == []


def contradictions(folder: Path) -> list[Claim]:
    """Return what contradicts itself in the records of real runs."""
    found = load_records(folder)
    assert not found.problems
    checks = list(check(found, datetime.now(timezone.utc)))
    assert len(checks) > 10
    return [one for one in checks if one.agrees is False]


def test_no_run_of_the_scripts_contradicts_itself(
    run_inference: Run, run_accuracy: Run, tiny_weights: Path, photo: Path
) -> None:
    _, folder = run_inference("--device", "cpu", "--dtype", "bf16")
    benchmark_runs.run(folder, tiny_weights, photo, "--modes", "all", "--no-report")
    run_accuracy("--explain", "--no-report")
    assert contradictions(folder) == []
    run_accuracy("--dtype", "fp16", "--no-report")
    assert contradictions(folder) == []


def test_no_run_over_a_folder_contradicts_itself(whole_run: Path) -> None:
    assert contradictions(whole_run) == []


def test_verify_prints_every_claim_with_how_it_was_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = everything()
    records["benchmark"]["results"]["latency"]["p50_ms"] = 1.23
    records["accuracy"]["device"]["name"] = "\x1b[2J"  # which clears a terminal
    write(tmp_path, records)
    before = sorted(tmp_path.iterdir())
    assert command.main(["--verify", str(tmp_path), "--lang", "en"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(tmp_path.iterdir()) == before
    assert not any("\x1b" in line for line in lines)
    latency = "benchmark.json: results.latency"
    assert f"agrees  {latency}.iterations = 120  (agrees with its samples)" in lines
    assert f"CONTRADICTS  {latency}.p50_ms = 1.23  (should be 7.98514 by its samples)" in lines
    assert (
        "agrees  accuracy.json: results.limits.cosine = 0.999  (agrees with the kit's limits)"
        in lines
    )
    assert any(line.startswith("not checked  inference.json: results.samples_ms") for line in lines)
    assert "The records are not signed" in lines[-2]
    assert lines[-1] == "Failed"


def test_every_figure_of_a_latency_and_of_the_limits_is_checked(tmp_path: Path) -> None:
    found = load_records(write(tmp_path, everything()))
    fields = {one.field for one in check(found, NOW) if one.agrees}
    latency = {f"results.latency.{field.name}" for field in dataclasses.fields(Latency)}
    apart = ("unsupported", "warm_up", "check", "device_samples_ms", "host_samples_ms")
    assert latency - {f"results.latency.{name}" for name in apart} <= fields
    assert "results.latency.check.verdict" in fields
    limits = {field.name for field in dataclasses.fields(LimitsInfo)} - {"budget_factor", "reason"}
    assert {f"results.limits.{name}" for name in limits} <= fields
