"""The language of report, card and pictures."""

from collections.abc import Mapping

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from kit import language
from kit.benchmark import report
from kit.language import default_language, load_words, png, translated
from kit.options import shared_parser
from tests.report_records import benchmark


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "zh"),
        ({"LANG": ""}, "zh"),
        ({"LANG": "C"}, "zh"),
        ({"LANG": "C.UTF-8"}, "zh"),
        ({"LC_ALL": "POSIX"}, "zh"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "fr_FR", "LC_MESSAGES": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "en_GB"}, "en"),
        ({"LANG": "Chinese"}, "en"),
    ],
)
def test_the_locale_chooses_where_the_option_does_not(
    environment: Mapping[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_language(environment) == expected
    monkeypatch.delenv("LC_ALL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert shared_parser("inference", "").parse_args([]).lang == expected
    assert shared_parser("inference", "").parse_args(["--lang", "en"]).lang == "en"


def test_phrases_are_translated_as_whole_words_only() -> None:
    assert translated("fp32-sdpa-graph", "zh") == "fp32-sdpa-graph"
    assert translated("graph", "zh") == "图模式"
    assert translated("images/s", "zh") == "images/s"
    assert translated("relative error against fp64", "zh") == "相对 fp64 的误差"
    assert all(translated(phrase, "en") == phrase for phrase in load_words("en")["phrases"])


def test_what_records_say_reads_in_chinese_and_names_stay_as_they_are() -> None:
    reason = "block 3, GELU (layer.3.mlp): relative error 0.0012 (worst token 0.004)"
    assert (
        translated(reason, "zh") == "层 3, GELU (layer.3.mlp): 相对误差 0.0012 (最差 token 0.004)"
    )
    assert translated("data/block/image-7.jpg", "zh") == "data/block/image-7.jpg"


def texts(figure: Figure) -> set[str]:
    """Return the words in a figure that are not numbers."""
    found = figure.findobj(lambda one: isinstance(one, Text))
    return {text.get_text() for text in found if isinstance(text, Text) and text.get_text()}


def test_a_picture_is_in_the_language_of_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        drawn.append(figure)
        savefig(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.setattr(language, "chinese_font", lambda: "DejaVu Sans")
    record = benchmark()
    assert report.picture(record, "zh").startswith(b"\x89PNG")
    assert report.picture(record, "en").startswith(b"\x89PNG")
    chinese, english = (texts(figure) for figure in drawn)
    assert {"单图延迟", "预热", "计时", "吞吐与延迟", "图模式"} <= chinese
    assert {"Latency of one image", "warm-up", "timed", "Throughput and latency"} <= english
    assert not {"Latency of one image", "warm-up", "timed", "forward", "relative error"} & chinese


def test_a_host_without_a_chinese_font_gets_english_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(language, "chinese_font", lambda: None)
    figure = Figure()
    figure.suptitle("warm-up")
    png(figure, "zh")
    assert texts(figure) == {"warm-up"}
