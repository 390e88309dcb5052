"""The language of report, card and pictures: which one it is, its words, and figures in it."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

Words = Mapping[str, Any]  # the texts of one language: sentences, and groups of them
LANGUAGES = ("zh", "en")
WORDS = Path(__file__).resolve().parent / "report" / "words"
NO_LANGUAGE = re.compile(r"(C|POSIX)?(\..*)?")  # a locale that names none, such as C.UTF-8


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


# What a phrase leaves open: a value, a number, or a path up to the words behind it.
OPEN = {
    r"\{\}": r"(\([^()]{0,99}\)|`[^`]{0,99}`|\S{1,200}?(?: \([^()]{0,99}\))??)",
    r"\{:d\}": r"(\d+)",
    r"\{path\}": r"([^\n]{1,400}?)",
}
FULL_WIDTH = str.maketrans({",": "，", ":": "：", ";": "；"})
BESIDE_CHINESE = re.compile(r"(?<=[\u4e00-\u9fff）])[,:;] ?|[,:;] (?=[\u4e00-\u9fff（])| +(?=（)")


def translated(text: str, language: str) -> str:
    """Return a text of a picture or a record, which are in English, in a language.

    words/phrases.json has what the kit says, with {} for a value, {:d} for a number and {path} for
    a path; what is not in it, such as the words of a device's own error, stays as it is.
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
    single = {}
    for number, phrase in enumerate(sorted(words, key=len, reverse=True)):  # the longest first
        pattern = re.escape(phrase)
        for mark, value in OPEN.items():
            pattern = pattern.replace(mark, value)
        single[f"phrase{number}"] = (pattern, words[phrase])
    any_of = "|".join(f"(?P<{name}>{pattern})" for name, (pattern, _) in single.items())
    whole = re.compile(rf"(?<![\w./-])(?:{any_of})(?![\w/-]|\.\w)")
    return whole, {name: (re.compile(one), chinese) for name, (one, chinese) in single.items()}
