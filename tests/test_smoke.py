"""The smoke test of continuous integration: each script once, on any CPU and without a network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import accuracy
import benchmark
import inference
from kit.run import ROOT

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder that the scripts share."""
    return tmp_path_factory.mktemp("smoke")


def record_of(output: Path, script: str) -> dict[str, Any]:
    """Return a record, held to its published schema."""
    record: dict[str, Any] = json.loads((output / f"{script}.json").read_text("utf-8"))
    schema = json.loads((ROOT / "docs" / "schema" / f"{script}.schema.json").read_text("utf-8"))
    jsonschema.validate(record, schema)
    return record


def test_inference_runs_the_whole_model_on_the_cpu(output: Path) -> None:
    assert inference.main(["--device", "cpu", "--output-dir", str(output)]) == 0
    results = record_of(output, "inference")["results"]
    assert results["pooler_output"]["shape"] == [1, 768]
    assert results["last_hidden_state"]["shape"] == [1, 201, 768]
    assert (output / "inference_features.png").is_file()


def test_accuracy_holds_the_whole_model_on_the_cpu_against_fp64(output: Path) -> None:
    assert accuracy.main(["--device", "cpu", "--output-dir", str(output), "--strict"]) == 0
    assert record_of(output, "accuracy")["results"]["verdict"] == "SELF-CHECK"


def test_benchmark_measures_and_the_report_has_all_three(
    output: Path, tiny_weights: Path, photo: Path
) -> None:
    options = ["--iterations", "5", "--weights", str(tiny_weights), "--image", str(photo)]
    assert benchmark.main(["--device", "cpu", "--output-dir", str(output), *options]) == 0
    assert len(record_of(output, "benchmark")["results"]["latency"]["samples_ms"]) == 5
    report = (output / "report.md").read_text("utf-8")
    assert (output / "report.html").is_file()
    for script in ("inference", "benchmark", "accuracy"):
        assert script in report


def test_the_scripts_help_needs_no_torch() -> None:
    for script in ("inference", "benchmark", "accuracy"):
        code = f"import sys; sys.modules['torch'] = None; import {script}; {script}.main(['-h'])"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
