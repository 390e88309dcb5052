"""A run against what published cards print."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.inference.report import distances, report
from kit.records import InferenceRecord
from kit.report.render import files
from tests.report_records import NOW, everything, inference, write

Edit = Callable[[InferenceRecord], InferenceRecord]


def with_values(record: InferenceRecord, *values: float) -> InferenceRecord:
    pooled = dataclasses.replace(record.results.pooler_output, first_values=values)
    return dataclasses.replace(
        record, results=dataclasses.replace(record.results, pooler_output=pooled)
    )


def test_the_published_values_themselves_are_at_distance_0() -> None:
    (found,) = distances(inference())
    assert (found.chip, found.relative_error, found.largest_difference) == ("Ascend910_9362", 0, 0)


def test_the_distance_is_the_l2_norm_of_the_differences_over_the_cards() -> None:
    values = (-0.4071133, -0.19327313, -0.13654466 + 0.003, -0.55771327 - 0.004, 0.03880494)
    (found,) = distances(with_values(inference(), *values))
    norm = (0.4071133**2 + 0.19327313**2 + 0.13654466**2 + 0.55771327**2 + 0.03880494**2) ** 0.5
    assert found.relative_error == pytest.approx(0.005 / norm)
    assert found.largest_difference == pytest.approx(0.004)
    line = report(with_values(inference(), *values))[-1]
    assert line == (
        "First values against the published card (Ascend910_9362): "
        f"relative error {0.005 / norm:.6f}, largest difference 0.004000"
    )


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("model", {"source": "local"}),
        ("model", {"source": "random"}),
        ("model", {"parameters": 21_000_000}),
        ("input", {"image": "data/sample.jpg"}),
        ("input", {"width": 641}),
        ("input", {"height": 425}),
        ("input", {"shape": (1, 3, 256, 256)}),
    ],
)
def test_another_model_image_or_size_is_not_compared(part: str, changes: dict[str, object]) -> None:
    record = inference()
    changed = dataclasses.replace(getattr(record, part), **changes)
    record = dataclasses.replace(record, **{part: changed})
    assert distances(record) == []
    assert not any("published" in line for line in report(record))


def test_report_and_card_show_the_distance(tmp_path: Path) -> None:
    records = everything()
    records["inference"]["results"]["pooler_output"]["first_values"][0] += 0.01
    records["inference"]["results"]["images"][0]["first_values"][0] += 0.01
    made = files(write(tmp_path, records), "en", NOW, card=True)
    for name in ("report.md", "report.html", "card/README.md"):
        assert "0.013681 (1.37 %)" in made[tmp_path / name].decode(), name
