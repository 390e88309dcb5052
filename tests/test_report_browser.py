"""The page in a real browser: every state, both languages, both themes, narrow and wide."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, path_of_chromium
from tests.report_states import STATES, make

pytestmark = pytest.mark.extended  # it needs a browser
CHECKS = (Path(__file__).parent / "report_checks.js").read_text(encoding="utf-8")
WIDTHS = (360, 390, 1440)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    if path_of_chromium() is None:
        pytest.skip("chromium is not installed")
    profile = tmp_path_factory.mktemp("profile")
    with Browser(profile) as found:
        yield found
    shutil.rmtree(profile, ignore_errors=True)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("state", STATES)
def test_the_page_is_sound(browser: Browser, tmp_path: Path, state: str, language: str) -> None:
    page = make(state, language, tmp_path)
    for width in WIDTHS:
        for dark in (False, True):
            browser.open(page, width, dark=dark)
            assert browser.evaluate(CHECKS) == [], (width, dark)
            assert browser.complaints() == []
            assert browser.requests() == [page.as_uri()]
    html_language = {"en": "en", "zh": "zh-CN"}[language]
    assert browser.evaluate("document.documentElement.lang") == html_language


WRONG = """<!doctype html><html lang="en"><style>body { margin: 0 }</style>
<h1>One</h1><h3>Three</h3><p style="width: 500px; color: #999; background: #fff">pale</p>
<table><tr><td></td></tr></table><img src="x.png" onerror="1"><script></script>
<pre style="overflow: auto; width: 9px">long</pre>
<a href="#nowhere">dead</a><p id="a">a</p><p id="a">b</p>"""


def test_the_checks_find_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "wrong.html").write_text(WRONG, encoding="utf-8")
    browser.open(tmp_path / "wrong.html", 360)
    found = "\n".join(browser.evaluate(CHECKS))
    for words in [
        "overflow: 500 > 360",
        "beyond the edge: <p",
        "heading skipped",
        "table without a caption",
        "row without a head",
        "blank cell",
        "image without alternative text",
        "image from file:",
        "image that does not decode",
        "a script",
        "cut: <pre",
        "handler onerror",
        "dead link",
        "an id twice",
        "contrast 2.85: pale",
    ]:
        assert words in found, words
    assert browser.complaints() != []
    assert len(browser.requests()) == 2


def test_the_themes_differ(browser: Browser, tmp_path: Path) -> None:
    page = make("passed", "en", tmp_path)
    colours = []
    for dark in (False, True):
        browser.open(page, 1440, dark=dark)
        colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_names_full_of_markup_stay_text(browser: Browser, tmp_path: Path) -> None:
    page = make("hostile", "en", tmp_path)
    browser.open(page, 1440)
    title, text = browser.evaluate("[document.title, document.body.innerText]")
    assert title != "owned"
    assert '<script>document.title="owned"</script>' in text
    assert "&lt;|`**_x_**" in text
    assert "\u202e" not in text and "\\x202e" in text
    assert "{{ 7*7 }}" in text


def test_a_narrow_page_names_the_column_of_each_value(browser: Browser, tmp_path: Path) -> None:
    page = make("passed", "en", tmp_path)
    cell = """(() => {
      const table = [...document.querySelectorAll("table")]
        .find((one) => one.caption.textContent.includes("Throughput by"));
      const shown = getComputedStyle(table.rows[1].cells[1], "::before").content;
      return [table.rows[0].getBoundingClientRect().height > 2, shown];
    })()"""
    browser.open(page, 1440)
    assert browser.evaluate(cell) == [True, "none"]
    browser.open(page, 390)
    assert browser.evaluate(cell)[1] == '"throughput_\u200bips"'


def test_the_first_figures_fit_their_places(browser: Browser, tmp_path: Path) -> None:
    page = make("passed", "zh", tmp_path)
    figures = """[...document.querySelectorAll(".figure")]
      .map((one) => [one.textContent, one.scrollWidth <= one.clientWidth])"""
    for width in (360, 390, 768, 1440):
        browser.open(page, width)
        found = browser.evaluate(figures)
        assert found == [["7.99 ms", True], ["732.00", True], ["0.65 %", True], ["43 %", True]]


def test_it_prints_in_dark_letters_on_white(browser: Browser, tmp_path: Path) -> None:
    browser.open(make("failed", "en", tmp_path), 794, dark=True, print_=True)
    colours = browser.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
    )
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert browser.evaluate(CHECKS) == []
    assert browser.evaluate("document.querySelector('nav').checkVisibility()") is False
    assert browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]


def test_screen_readers_find_headings_and_tables(browser: Browser, tmp_path: Path) -> None:
    browser.open(make("passed", "en", tmp_path), 360)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node.get("role", {}).get("value") for node in nodes]
    names = {node.get("name", {}).get("value") for node in nodes}
    # Their rows are stacked on a narrow page.
    assert roles.count("table") == browser.evaluate("document.querySelectorAll('table').length")
    headings = browser.evaluate("document.querySelectorAll('h1, h2, h3').length")
    assert roles.count("heading") == headings
    assert {"At a glance", "Mode comparison", "Validated"} <= names
    assert roles.count("rowheader") > 50
