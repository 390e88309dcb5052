"""The language of report, card and pictures: which one it is, its words, and figures in it."""

import io
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Words = Mapping[str, Any]  # the texts of one language: sentences, and groups of them
LANGUAGES = ("zh", "en")
WORDS = Path(__file__).resolve().parent / "report" / "words"
NO_LANGUAGE = re.compile(r"(C|POSIX)?(\..*)?")  # a locale that names none, such as C.UTF-8
# The first that the host has draws Chinese; on a host without any the texts stay English.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC",
    "Droid Sans Fallback",
)  # fmt: skip


def default_language(environment: Mapping[str, str]) -> str:
    """Return the locale's language: zh for zh_* and where none is set, en for any other."""
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    locale = next((environment[name] for name in names if environment.get(name)), "")
    return "zh" if NO_LANGUAGE.fullmatch(locale) or locale.startswith("zh") else "en"


@cache
def load_words(language: str) -> Words:
    """Return the texts of a language."""
    found: Words = json.loads((WORDS / f"{language}.json").read_text(encoding="utf-8"))
    return found


GREY = "#767676"  # readable on white and on black


def png(figure: "Figure", language: str, *, photographs: bool = False) -> bytes:
    """Return the figure as a PNG file, in Chinese where that is asked for and a font has it.

    A dark page inverts plots; one with photographs is transparent instead, its texts grey.
    """
    if photographs:
        for axes in figure.axes:
            axes.tick_params(colors=GREY, which="both")
            axes.spines[:].set_color(GREY)
    from matplotlib.text import Text

    font = chinese_font() if language == "zh" else None
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        assert isinstance(text, Text)
        if photographs:
            text.set_color(GREY)
        if font is not None:
            text.set_text(translated(text.get_text(), language))
            text.set_fontfamily(["DejaVu Sans", font])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, transparent=photographs)
    return buffer.getvalue()


def chinese_font() -> str | None:
    """Return a font of this host that has Chinese characters, None where there is none."""
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return next((name for name in CHINESE_FONTS if name in names), None)


def translated(text: str, language: str) -> str:
    """Return a text of a picture or a record with its phrases, as whole words, in a language."""
    words = load_words(language)
    phrases = sorted(words["phrases"], key=len, reverse=True)  # the longest first
    pattern = rf"(?<![\w./-])(?:{'|'.join(map(re.escape, phrases))})(?![\w/-])"
    return re.sub(pattern, lambda found: str(words["phrases"][found.group()]), text)
