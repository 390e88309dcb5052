"""--baseline: what compares, what is refused, and what is a regression."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmark
from kit.benchmark import baseline
from kit.errors import KitError
from kit.run import ROOT
from tests import report_records
from tests.benchmark_runs import record_of, run
from tests.models import save_tiny_vit

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def old(tiny_weights: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an earlier run. Not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    assert run(folder, tiny_weights, photo) == 0
    return folder


def changed(old: Path, folder: Path, change: Change) -> Path:
    """Return a copy of the earlier record with something changed."""
    record = json.loads((old / "benchmark.json").read_text("utf-8"))
    change(record)
    path = folder / "changed.json"
    path.write_text(json.dumps(record), "utf-8")
    return path


def all_samples(record: dict[str, Any], factor: float) -> None:
    """Multiply every sample."""
    rows = record["results"]["throughput"]
    for latency in (record["results"]["latency"], *(row["latency"] for row in rows)):
        latency["samples_ms"] = [factor * sample for sample in latency["samples_ms"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda r: r["device"].update(name="Ascend910_9362"),
            "of another device (Ascend910_9362, here ",
        ),
        (lambda r: r["device"].update(type="npu"), "of another device type"),
        (lambda r: r["results"].update(mode="bf16-sdpa"), "of another mode"),
        (lambda r: r["results"].update(mode="bf16\nsdpa" * 999), "of another mode"),
        (lambda r: r["model"].update(sha256="0" * 64), "of another weights' sha256"),
        (lambda r: r["input"].update(shape=[1, 3, 448, 448]), "of another input shape"),
        (
            lambda r: r["results"].update(ranks={"world_size": 2, "ranks": [], "throughput": []}),
            "of another number of ranks",
        ),
        (lambda r: r.update(script="inference"), "Invalid enum value 'inference' - at `$.script`"),
        (lambda r: r.update(schema_version="1.0"), "schema version 1.0"),
        (lambda r: r.update(status="partial"), "is of a run that was interrupted"),
        (lambda r: r["results"].update(latency=None, throughput=[]), "has no samples"),
        (lambda r: r["results"]["latency"].update(samples_ms=["1"]), "`$.results.latency.sample"),
        (lambda r: r["results"]["latency"].update(samples_ms=[0.0]), "or impossible ones"),
        (lambda r: r["results"]["latency"].update(samples_ms=[5e-324]), "or impossible ones"),
        (lambda r: r["results"]["latency"].update(samples_ms=[10**400]), "out of range"),
        (lambda r: r["results"].update(ranks="two"), "`$.results.ranks`"),
        (lambda r: r["input"].update(shape=3), "`$.input.shape`"),
        (lambda r: r["input"].update(shape=None), "`$.input.shape`"),
        (lambda r: r.update(started_at=float("nan")), "malformed"),
        (lambda r: r.update(started_at="yesterday\n"), "which is no time"),
        (lambda r: r.pop("device"), "missing required field `device`"),
    ],
)
def test_another_measurement_is_refused_in_one_line(
    change: Change,
    words: str,
    old: Path,
    tiny_weights: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(old, tmp_path, change)
    folder = tmp_path / "output"
    code = run(folder, tiny_weights, photo, "--baseline", str(path))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith(f"error: --baseline {path} ")
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1 and len(captured.err) < 1000
    assert "Measuring" not in captured.out
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", "truncated"),
        ("{", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ("\xff", "is no benchmark.json"),
        ("{" * 100_000, "is no benchmark.json"),
    ],
)
def test_a_baseline_that_is_no_record_is_refused_in_one_line_before_torch_is_imported(
    content: str | None, words: str, photo: Path, tmp_path: Path
) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content, "latin-1")
    code, error = refused(path, photo, tmp_path)
    assert code == 2
    assert words in error
    assert len(error.splitlines()) == 1


def refused(path: Path, photo: Path, folder: Path, before: str = "pass") -> tuple[int, str]:
    """Return the exit code and stderr of a process that must not import torch."""
    arguments = ["--image", str(photo), "--output-dir", str(folder / "o"), "--baseline", str(path)]
    code = (
        f"import sys, benchmark; {before}; sys.modules['torch'] = None\n"
        f"sys.exit(benchmark.main({arguments!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_pipe_a_device_and_a_file_too_large_are_never_read(photo: Path, tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large.json"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, baseline.LARGEST_BYTES + 1)
    for path, words in [
        (pipe, "is not a plain file"),
        (Path("/dev/zero"), "is not a plain file"),
        (tmp_path, "is not a plain file"),
        (large, "has more than 67108864 bytes"),
    ]:
        code, error = refused(path, photo, tmp_path)
        assert code == 2
        assert words in error and len(error.splitlines()) == 1


def test_without_msgspec_a_baseline_is_refused_with_the_command_that_installs_it(
    old: Path, photo: Path, tmp_path: Path
) -> None:
    before = "sys.modules['msgspec'] = None"
    code, error = refused(old / "benchmark.json", photo, tmp_path, before)
    assert code == 2
    assert error == "error: --baseline needs msgspec: pip install msgspec\n"


def test_other_weights_are_refused(
    old: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_tiny_vit(tmp_path / "other", seed=7)
    code = run(tmp_path / "o", weights, photo, "--baseline", str(old / "benchmark.json"))
    assert code == 2
    assert "of another weights' sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factor", "code", "statuses"),
    [(1e-3, 1, {"regression"}), (1e3, 0, {"faster"})],
)
def test_far_slower_than_the_baseline_exits_1_and_far_faster_0(
    factor: float,
    code: int,
    statuses: set[str],
    old: Path,
    tiny_weights: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(old, tmp_path, lambda record: all_samples(record, factor))
    folder = tmp_path / "output"
    assert run(folder, tiny_weights, photo, "--baseline", str(path)) == code
    record = record_of(folder)
    regression = record["results"]["regression"]
    names = [one["name"] for one in regression["comparisons"]]
    assert names == ["latency at batch 1", "batch 1", "batch 2"]
    assert {one["status"] for one in regression["comparisons"]} == statuses
    assert regression["passed"] is (code == 0)
    for one in regression["comparisons"]:
        assert one["ratio"] == pytest.approx(one["new_ms"] / one["old_ms"])
    assert record["status"] == "complete"
    out = capsys.readouterr().out
    assert f"Regression: {'PASS' if code == 0 else 'FAIL'}" in out
    assert "old" in out and "new" in out and "ratio" in out


def samples(mean: float, share: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, share * mean) for _ in range(50)]


@pytest.mark.parametrize(
    ("mean", "share", "status"),
    [
        (10.0, 0.01, "same"),
        (11.5, 0.01, "regression"),
        (10.8, 0.01, "slower"),  # beyond the noise, within the limit
        (8.0, 0.01, "faster"),
        (11.5, 0.15, "same"),  # beyond the limit, within the noise
        (9.2, 0.15, "same"),
        (20.0, 0.15, "regression"),
    ],
)
def test_only_what_is_beyond_both_the_limit_and_the_noise_is_a_regression(
    mean: float, share: float, status: str
) -> None:
    one = baseline.comparison("x", samples(10.0, share, 1), samples(mean, share, 2), 10.0)
    assert one.status == status


def test_runs_without_a_common_range_differ_however_wide_they_are() -> None:
    old, new = [1.0, 1.0, 9.0, 9.0], [9.1, 9.1, 17.1, 17.1]
    assert baseline.comparison("x", old, new, 10.0).status == "regression"
    assert baseline.comparison("x", new, old, 10.0).status == "faster"
    assert baseline.comparison("x", [1.0, 1.0, 9.0, 9.2], new, 10.0).status == "same"
    assert baseline.comparison("x", old[1:3], new[1:3], 10.0).status == "same"  # too few to tell


@pytest.mark.parametrize(
    ("old", "new", "limit", "status"),
    [
        ([1.0] * 4, [1.0] * 4, 0.0, "same"),  # neither differs nor varies
        ([1.0] * 4, [2.0] * 4, 100.0, "slower"),  # exactly the limit is still allowed
        ([1.0] * 4, [1.995] * 4, 100.0, "slower"),
        ([1.0] * 4, [2.001] * 4, 100.0, "regression"),
        ([1.0, 1.0, 9.0, 9.0], [9.0, 9.0, 17.0, 17.0], 10.0, "same"),  # 9.0 is in both ranges
        ([9.0, 9.0, 17.0, 17.0], [1.0, 1.0, 9.0, 9.0], 10.0, "same"),
    ],
)
def test_at_its_very_limits_a_comparison_is_still_the_lesser(
    old: list[float], new: list[float], limit: float, status: str
) -> None:
    assert baseline.comparison("x", old, new, limit).status == status


def test_what_failed_its_check_is_not_compared() -> None:
    results = report_records.benchmark().results
    fine = {"latency at batch 1", *(f"batch {size}" for size in (1, 2, 4, 8))}
    fine |= {"fp32-sdpa", "fp32-eager", "bf16-sdpa-graph"}  # fp16-sdpa fails, batch 16 has no times
    assert set(baseline.samples_of(results)) == fine
    failed = report_records.latency(1, 8.0, error=None)
    rows = (report_records.throughput(1, 8.0, error=None), *results.throughput[1:])
    worse = replace(results, latency=failed, throughput=rows)
    assert set(baseline.samples_of(worse)) == fine - {"latency at batch 1", "batch 1"}


@pytest.mark.parametrize(
    ("sample", "sound"), [(1e-6, True), (9e-7, False), (1e12, True), (1e12 + 0.5, False)]
)
def test_a_sample_is_between_a_nanosecond_and_30_years(
    old: Path, tmp_path: Path, sample: float, sound: bool
) -> None:
    def change(record: dict[str, Any]) -> None:
        record["results"]["latency"]["samples_ms"][1] = sample

    path = changed(old, tmp_path, change)
    if sound:
        latency = baseline.load(path).results.latency
        assert latency is not None and latency.samples_ms[1] == sample
    else:
        with pytest.raises(KitError, match="has no samples, or impossible ones"):
            baseline.load(path)


def test_a_comparison_has_both_medians_their_ratio_and_the_noise_of_both() -> None:
    one = baseline.comparison("x", [1.5, 2.0, 2.5], [2.6, 3.0, 3.4], 10.0)
    assert (one.name, one.old_ms, one.new_ms, one.ratio) == ("x", 2.0, 3.0, 1.5)
    assert one.noise_ms == pytest.approx(1.4826 * (0.5**2 + 0.4**2) ** 0.5, rel=1e-4)


def test_one_regression_among_many_figures_fails_the_comparison() -> None:
    before = report_records.benchmark()
    options = benchmark.parse_options(["--baseline", "old.json", "--max-regression", "7"])
    rung = before.results.ladder[0]
    slower = tuple(2 * sample for sample in rung.latency.samples_ms)
    slow = replace(rung, latency=replace(rung.latency, samples_ms=slower))
    new = replace(rung, mode="a new one")
    now = replace(before.results, ladder=(slow, *before.results.ladder[1:], new))
    same = baseline.compared(options, before, before.results).regression
    found = baseline.compared(options, before, now).regression
    assert same is not None and found is not None
    assert (same.passed, found.passed) == (True, False)
    assert (found.baseline, found.max_regression_percent) == ("old.json", 7.0)
    assert found.baseline_started_at == before.started_at
    statuses = {one.name: one.status for one in found.comparisons}
    assert "a new one" not in statuses  # which the earlier run does not have
    assert [name for name, status in statuses.items() if status != "same"] == [rung.mode]


def test_a_row_without_a_check_is_not_compared() -> None:
    results = report_records.benchmark().results
    assert results.latency is not None
    unchecked = replace(results, latency=replace(results.latency, check=None))
    assert "latency at batch 1" not in baseline.samples_of(unchecked)
    assert "latency at batch 1" not in baseline.samples_of(replace(results, latency=None))


def test_only_figures_that_both_runs_have_are_compared(old: Path) -> None:
    earlier = baseline.load(old / "benchmark.json")
    options = benchmark.parse_options(["--baseline", str(old / "benchmark.json")])
    assert earlier.results.latency is not None
    faster = replace(earlier.results.latency, samples_ms=(1e-5,) * 4)
    now = replace(earlier.results, latency=faster, throughput=earlier.results.throughput[1:])
    regression = baseline.compared(options, earlier, now).regression
    assert regression is not None
    assert regression.baseline == str(old / "benchmark.json")
    assert {one.name: one.status for one in regression.comparisons} == {
        "latency at batch 1": "faster",
        "batch 2": "same",
    }
