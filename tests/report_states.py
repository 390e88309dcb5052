"""Output folders in every state that a report can meet, for the tests with a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.report.load import load_records
from kit.report.render import files
from tests.report_records import NOW, Json, everything, write

HOSTILE = (
    '<script>document.title="owned"</script>"><img src=x onerror=alert(1)>\'&lt;|`**_x_**\n'
    "# no heading \u202egnp.exe javascript:alert(1) [a](b) {{ 7*7 }} "
) + "long" * 90
# Fields whose values are a closed list, and the time: anything else is no record.
CLOSED = {
    "script", "status", "schema_version", "outcome", "type", "kind", "part", "source", "started_at",
    "matmul_fp32", "convolution_fp32", "overflow", "garbage_collector", "reference", "where",
    "bound", "pipeline_stage", "end", "profiler", "side",
}  # fmt: skip
VERDICTS = ("PASS", "FAIL", "SELF-CHECK")  # of a row's check, and of a mode


def failed(records: dict[str, Json]) -> None:
    """Make the accuracy a failure."""
    results = records["accuracy"]["results"]
    reason = "pooler_output: relative error 0.0231 is not below 0.01"
    results.update(outcome="fail", verdict="FAIL", reasons=[reason])
    results["pooler_output"].update(
        relative_error=0.0231, relative_error_passed=False, passed=False
    )


def incomplete(records: dict[str, Json]) -> None:
    """Leave one record out, mix another, let an operator fall back."""
    del records["accuracy"]
    records["benchmark"]["environment"]["torch"] = "2.13.0"
    records["inference"]["device"]["cpu_fallbacks"] = ["aten::cosine_similarity"]


def random_weights(records: dict[str, Json]) -> None:
    """Make the weights random, and the device a CPU."""
    for record in records.values():
        record["model"].update(source="random", weights=None)
        record["device"].update(type="cpu", name="AMD EPYC", torch_device="cpu", index=None)


def hostile(records: dict[str, Json]) -> None:
    """Put markup into every text that is free."""

    def replace(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            return {
                key: item if key in CLOSED or item in VERDICTS else replace(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [replace(item) for item in value]
        return HOSTILE + value if isinstance(value, str) else value

    results = records["benchmark"]["results"]
    statuses = [
        row["status"] for row in (*results["throughput"], *results["regression"]["comparisons"])
    ]
    for script, record in records.items():
        records[script] = replace(record)
        records[script]["status"] = "complete"
        records[script]["environment"]["variables"] = {HOSTILE: HOSTILE}
    results = records["benchmark"]["results"]
    rows = (*results["throughput"], *results["regression"]["comparisons"])
    for row, status in zip(rows, statuses, strict=True):
        row["status"] = status


def damaged(records: dict[str, Json]) -> None:
    """Take parts of the records away."""
    del records["inference"]["results"]
    records["accuracy"]["results"]["blocks"] = None


def unchanged(records: dict[str, Json]) -> None:
    """Leave the records as they are."""


STATES: dict[str, Callable[[dict[str, Json]], None]] = {
    "passed": unchanged,
    "failed": failed,
    "incomplete": incomplete,
    "random": random_weights,
    "hostile": hostile,
    "damaged": damaged,
    "no pictures": unchanged,
    "empty": dict.clear,
}


def make(state: str, language: str, folder: Path) -> Path:
    """Write a state's records and report into a folder and return the page."""
    records = everything()
    STATES[state](records)
    write(folder, records, pictures=state != "no pictures")
    assert len(load_records(folder).problems) == (2 if state == "damaged" else 0)
    for path, content in files(folder, language, NOW).items():
        path.write_bytes(content)
    return folder / "report.html"
