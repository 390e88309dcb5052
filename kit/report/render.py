"""From the report's model to its two files, one template each; every value is escaped."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from kit.report.blocks import Block, Cell, Report

FOLDER = Path(__file__).resolve().parent / "templates"
MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
UNDERSCORE_AT_EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
LINE_START = re.compile(r"^(\s*)(#|[=\-]{2}|[+\-](?=\s|$)|\d+(?=[.)](?:\s|$)))")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Markdown(str):
    """A text that is Markdown already."""

    __slots__ = ()


def html(report: Report) -> str:
    """Return the self-contained page."""
    style, script = (
        (FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    template = html_environment().get_template("report.html")
    return template.render(
        report=report,
        style=f"\n{style}",
        script=f"\n{script}",
        style_hash=content_hash(f"\n{style}"),
        script_hash=content_hash(f"\n{script}"),
    )


def markdown(report: Report) -> str:
    """Return the report for a model card."""
    return markdown_environment().get_template("report.md").render(report=report)


@cache
def html_environment() -> Environment:
    """Return the environment that escapes for HTML."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "breakable": breakable,
        "data_uri": data_uri,
        "kind": kind,
        "visible": visible,
    }
    return environment


@cache
def markdown_environment() -> Environment:
    """Return the environment that escapes for Markdown: whatever a template prints."""
    # No autoescape, which is HTML's: finalize escapes every value, for Markdown.
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        finalize=as_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "kind": kind,
        "cell": cell_markdown,
        "code": code_span,
        "fence": fence,
        "verbatim": verbatim,
        "target": link_target,
    }
    return environment


def kind(block: Block) -> str:
    """Return the class of a block, which chooses how it is rendered."""
    return type(block).__name__


def content_hash(content: str) -> str:
    """Return what the page's policy names an inline script or style by."""
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def data_uri(png: bytes) -> str:
    """Return a picture as the address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def visible(text: str) -> str:
    """Return a text whose control characters, those that turn its direction too, are seen."""
    return CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def breakable(name: str) -> Markup:
    """Return a column's name that may break behind each underscore."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def as_markdown(value: object) -> str:
    """Return a value as Markdown that reads as that value: nothing in it is markup."""
    if isinstance(value, Markdown):
        return value
    text = visible(str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = MARKDOWN_SPECIAL.sub(r"\\\1", text)
    text = UNDERSCORE_AT_EDGE.sub(r"\\_", text)
    return LINE_START.sub(escaped_start, text)


def escaped_start(found: re.Match[str]) -> str:
    """Return the start of a line that would begin a heading, a rule or a list, as plain text."""
    space, start = found.groups()
    return f"{space}{start}\\" if start.isdigit() else f"{space}\\{start}"


def code_span(text: str) -> Markdown:
    """Return a text as code, in a table too."""
    text = visible(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    # A table's columns are cut before its code is read, so the bar must be escaped there.
    return Markdown(f"{ticks}{padding}{text}{padding}{ticks}".replace("|", "\\|"))


def cell_markdown(cell: Cell) -> Markdown:
    """Return a table's cell."""
    if cell.kind == "code" and cell.text.strip():
        return code_span(cell.text)
    text = as_markdown(cell.text)
    return Markdown(f"**{text}**" if cell.kind in ("bad", "missing") else text)


def fence(text: str) -> Markdown:
    """Return a fence that no line of the text can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return Markdown("`" * max(3, longest + 1))


def verbatim(text: str) -> Markdown:
    """Return lines for a fence, their control characters seen."""
    return Markdown("\n".join(visible(line) for line in text.split("\n")))


def link_target(name: str) -> Markdown:
    """Return a file's name as a link's target; they are the kit's own, without spaces."""
    return Markdown(name)
