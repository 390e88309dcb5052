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


# What a {} of a phrase stands for.
VALUE = r"(\([^()]{0,99}\)|`[^`]{0,99}`|\S{1,200}?(?: \([^()]{0,99}\))??)"
FULL_WIDTH = str.maketrans({",": "，", ":": "：", ";": "；"})
BESIDE_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff）])[,:;] ?|[,:;] (?=[\u4e00-\u9fff（])| +(?=（)")


def translated(text: str, language: str) -> str:
    """Return a text of a picture or a record, which are in English, in a language.

    words/phrases.json has what the kit says. A {} in it is a name or a number of any message; what
    is not in it, such as the words of a device's own error, stays as it is.
    """
    if language != "zh":
        return text
    whole, phrases = known_phrases()

    def chinese(found: re.Match[str]) -> str:
        pattern, words = phrases[found.lastgroup or ""]
        values = pattern.fullmatch(found.group())
        assert values is not None  # it has matched as a part of the whole
        return words.format(*values.groups())

    found = whole.sub(chinese, text)
    return BESIDE_CHINESE.sub(lambda mark: mark.group().strip().translate(FULL_WIDTH), found)


@cache
def known_phrases() -> tuple[re.Pattern[str], dict[str, tuple[re.Pattern[str], str]]]:
    """Return a pattern of every phrase, as whole words, and by its groups' names each by itself."""
    words: dict[str, str] = json.loads((WORDS / "phrases.json").read_text(encoding="utf-8"))
    single = {
        f"phrase{number}": (re.escape(phrase).replace(r"\{\}", VALUE), words[phrase])
        for number, phrase in enumerate(sorted(words, key=len, reverse=True))  # the longest first
    }
    any_of = "|".join(f"(?P<{name}>{pattern})" for name, (pattern, _) in single.items())
    whole = re.compile(rf"(?<![\w./-])(?:{any_of})(?![\w/-]|\.\w)")
    return whole, {name: (re.compile(one), chinese) for name, (one, chinese) in single.items()}
