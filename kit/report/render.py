"""From records to report.html and report.md: two templates, one body, every value escaped."""

import base64
import contextlib
import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path, PurePath
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kit import outside
from kit.accuracy.limits import LIMITS, validation_block
from kit.errors import KitError
from kit.inference.report import distances, results_block
from kit.language import Words, load_words, translated
from kit.model.weights import MODEL_NAME, REPOSITORY
from kit.options import script_words
from kit.output import encoded
from kit.records import Record, Statistics, TokenPlace
from kit.report.checks import held_to
from kit.report.load import PICTURES, SCRIPTS, Picture, Records, load_records
from kit.report.verdict import (
    HUBS,
    PARAMETERS,
    SET_BY_OTHERS,
    conclude,
    emulated,
    identified,
    say,
    settings,
)

TEMPLATES = Path(__file__).resolve().parent / "templates"
LOADER = FileSystemLoader(TEMPLATES)
MIB = 1 << 20
SHOWN_ROWS = 100  # of a table; the rest is in the record
LARGEST_NUMBER = 1e18
SHOWN_CHARACTERS = 1000  # of one value
MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
UNDERSCORE_AT_EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
LINE_START = re.compile(r"^(\s*)(?=#|[=\-]{2}|[+\-](?:\s|$))")  # of a heading, a rule or a list
LINE_NUMBER = re.compile(r"^(\s*\d+)(?=[.)](?:\s|$))")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# Checked against modelscope 1.40 and atomgit 1.0.17; both take a folder's content.
UPLOADS = ("modelscope upload OWNER/NAME {}", "python3 -m atomgit upload {} --repo-id OWNER/NAME")
COMMIT = re.compile(r"[0-9a-f]{7,64}(?=\+|\Z)")
OWN_FOLDER = re.compile(r"/(home|Users)/[^/]+/|/root/|/(var/)?tmp/")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"  # the builds that torch-npu goes with

CellKind = Literal["text", "code", "number", "good", "bad", "doubtful"]


@dataclass(frozen=True)
class Cell:
    """One value as a reader sees it."""

    text: str
    kind: CellKind = "text"  # 'good', 'bad' and 'doubtful' get a mark beside their colour

    def __str__(self) -> str:
        """Return the text, for the middle of a sentence."""
        return self.text


def files(
    folder: Path, language: str, now: datetime | None = None, *, card: bool = False
) -> dict[Path, bytes]:
    """Return report.html and report.md on all records in a folder; with `card` a model card's too.

    `now` is when the report is made. ModuleNotFoundError without msgspec or jinja2.
    """
    words, records = load_words(language), load_records(folder)
    runs, commands = records.found(), installing(records)
    beside = files_of_card(folder, records) if card and runs else {}
    types = {"cpu" if emulated(run) else run.device.type for run in runs}
    values = {
        "w": words,
        "records": records,
        "verdict": conclude(records, words, now or datetime.now(timezone.utc)),
        "subject": subject(records, words),
        "limits": held_to(records.accuracy) if records.accuracy is not None else LIMITS["fp32"],
        "commands": [*commands, *map(command_line, runs)],
        "installing": [line for line in commands if line.startswith("pip ")],
        "hardware": sorted(words["device_types"][one] for one in types),
        "repository": repository(records),
        "files": sorted(beside),
    }
    found = {folder / "card" / name: content for name, content in beside.items()}
    names = {"report.html": "report.html", "report.md": "report.md"}
    names |= {"card.md": "card/README.md"} if beside else {}
    for template, name in names.items():
        made = environment(language, html=template.endswith(".html"))
        text = made.get_template(template).render(values)
        found[folder / name] = encoded(re.sub(r"\n{3,}", "\n\n", text))
    return found


def subject(records: Records, words: Words) -> str:
    """Return what was examined: the model, by the name of its weights' folder, and the chip."""
    newest = records.newest()
    if newest is None:
        return say(words, "no_subject")
    model = PurePath(newest.model.weights or "").name or newest.model.architecture
    if newest.model.source == "random":
        model = say(words, "subject_random", model=newest.model.architecture)
    elif not identified(records):
        model = say(words, "subject_not_identified", model=model)
    key = "subject_emulated" if any(map(emulated, records.found())) else "subject"
    return say(words, key, model=model, chip=newest.device.name.removesuffix(" (emulated)"))


# ---- Environments: how each format escapes -------------------------------------------------------


@cache
def environment(language: str, *, html: bool) -> Environment:
    """Return an environment that escapes every value of a template, for HTML or for Markdown."""
    escaped = visible if html else as_markdown
    made = Environment(
        loader=LOADER,
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else escaped(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    formats = (data_uri, breakable, code_span, fence)
    texts = (command_line, shareable, validation_block, results_block)
    made.filters |= {one.__name__: one for one in (*formats, *texts)}
    filters = Filters(load_words(language))
    names = (name for name in vars(Filters) if not name.startswith("_") and name != "words")
    made.filters |= {
        "published": distances,
        "mark": Cell,
        "raw": lambda line: Markup(visible(line)),
    }
    made.filters |= {name: getattr(filters, name) for name in names}
    style = "\n" + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    made.globals |= {"style": Markup(style), "style_hash": digest, "line_break": Markup("\n")}
    return made


def visible(value: object) -> str:
    """Return a value as text, its control characters seen, those that turn its direction too."""
    if value is None:
        raise TypeError("a value that is not there")  # which a template must have a word for
    text = str(value)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}…"
    return CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def breakable(name: str) -> Markup:
    """Return a name for HTML that may break behind each underscore."""
    return Markup("_<wbr>").join(visible(name).split("_"))


def data_uri(picture: Picture) -> Markup:
    """Return a picture as the address that holds it; base64 needs no escape."""
    return Markup(f"data:image/png;base64,{base64.b64encode(picture.png).decode()}")


def as_markdown(value: object) -> Markup:
    """Return a value as Markdown that reads as that value: nothing in it is markup."""
    text = visible(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = MARKDOWN_SPECIAL.sub(r"\\\1", text)
    text = UNDERSCORE_AT_EDGE.sub(r"\\_", text)
    return Markup(LINE_NUMBER.sub(r"\1\\", LINE_START.sub(r"\1\\", text)))


def code_span(value: object) -> Markup:
    """Return a text as Markdown's code, in a table too."""
    text = visible(value)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    # A table's columns are cut before its code is read, so the bar must be escaped there.
    return Markup(f"{ticks}{padding}{text}{padding}{ticks}".replace("|", "\\|"))


def fence(lines: Iterable[str]) -> Markup:
    """Return a fence that none of the lines can close."""
    runs = [len(run) for line in lines for run in re.findall("`+", line)]
    return Markup("`" * max(3, max(runs, default=0) + 1))


# ---- Filters: from a record's value to a cell ----------------------------------------------------


@dataclass(frozen=True)
class Filters:
    """The filters that both templates share, in one language."""

    words: Words

    def number(self, value: float | None, spec: str = "", unit: str = "") -> Cell:
        """Return a number in a format specification with its unit."""
        if value is None:
            return self.none()
        if abs(value) >= LARGEST_NUMBER:  # which no run measures, and some format as no float
            return Cell(self.words["not_finite"], "bad")
        return Cell(f"{value:{spec}}{unit}", "number")

    def none(self) -> Cell:
        """Return the cell of a value that a run does not have."""
        return Cell(self.words["none"])

    def ms(self, value: float | None, spec: str = ".2f") -> Cell:
        """Return a time in ms."""
        return self.number(value, spec, " ms")

    def mib(self, value: int | None) -> Cell:
        """Return a number of bytes in MiB."""
        return self.number(value if value is None else value // MIB, "", " MiB")

    def percent(self, value: float | None, spec: str = ".0f") -> Cell:
        """Return a share in percent, a small one by its first digits."""
        tiny = value and float(f"{value * 100:{spec}}") == 0
        return self.number(value and value * 100, ".2g" if tiny else spec, " %")

    def error(self, value: float | None, places: int | None = None) -> Cell:
        """Return an error, None where it is not finite; with so many decimals if it shows there."""
        if value is None:
            return Cell(self.words["not_finite"], "bad")
        fixed = places is not None and (value == 0 or abs(value) >= 10.0 ** (2 - places))
        return Cell(f"{value:.{places}f}" if fixed else f"{value:.3g}", "number")

    def with_percent(self, value: float | None) -> Cell:
        """Return an error as the console has it and as the published table has it."""
        cell = self.error(value, 6)
        return cell if value is None else Cell(f"{cell} ({self.percent(value, '.2f')})", "number")

    def cosine(self, value: float | None) -> Cell:
        """Return a cosine; as 1 - x, unbroken, where six decimals show one."""
        if value is None:
            return Cell(self.words["not_finite"], "bad")
        near = 0 < 1 - value < 5e-7
        return Cell(f"1\u00a0-\u00a0{1 - value:.2g}" if near else f"{value:.6f}", "number")

    def shape(self, sizes: Sequence[int]) -> str:
        """Return a tensor's shape as torch prints it."""
        return str(list(sizes[:8]))

    def plain(self, value: object) -> str:
        """Return a value as text."""
        if isinstance(value, bool):
            return str(self.yes(value))
        if isinstance(value, tuple):
            return ", ".join(map(str, value[:SHOWN_ROWS])) or str(self.none())
        return str(self.none() if value is None else value)

    def code(self, value: object) -> Cell:
        """Return a name, a path or a version as it is."""
        text = "" if value is None else str(value)
        return Cell(text, "code") if text.strip() else self.none()

    def passed(self, flag: bool, good: str = "PASS") -> Cell:
        """Return a verdict on one figure."""
        return self.verdict(good if flag else "FAIL")

    def verdict(self, text: str) -> Cell:
        """Return a verdict with its mark."""
        kinds: dict[str, CellKind] = {"PASS": "good", "FAIL": "bad", "SELF-CHECK": "doubtful"}
        return Cell(text, kinds.get(text, "text"))

    def yes(self, flag: bool | None) -> Cell:
        """Return yes or no."""
        return self.none() if flag is None else Cell(self.words["yes" if flag else "no"])

    def figure(self, latency: Statistics, name: str) -> Cell:
        """Return one figure of a list of times, marked where its samples cannot support it."""
        cell = self.ms(getattr(latency, name))
        if name in latency.unsupported:
            return Cell(f"{cell} ({self.words['unsupported']})", "doubtful")
        return cell

    def place(self, token: TokenPlace) -> str:
        """Return where a token is."""
        if token.row is not None and token.column is not None:
            where = {"token": token.token, "row": token.row, "column": token.column}
            return say(self.words, "patch_place", **where)
        kind = self.words["token_kinds"][token.kind]
        return say(self.words, "token_place", kind=kind, token=token.token)

    def translated(self, text: str) -> str:
        """Return a record's own sentence with its phrases in the report's language."""
        return translated(text, self.words["language"][:2])

    def sentence(self, text: str) -> str:
        """Return a record's own words as a whole sentence in the report's language."""
        said = self.translated(text)
        return f"{said[:1].upper()}{said[1:]}{self.words['stop']}"

    def settings(self, record: Record) -> str:
        """Return the environment variables that a run's user had set."""
        return " ".join(settings(record)) or str(self.words["none"])

    def cell(self, value: object) -> Cell:
        """Return a value as a cell."""
        return value if isinstance(value, Cell) else Cell(str(value))

    def head(self, rows: Sequence[object]) -> Sequence[object]:
        """Return the first ones of many."""
        return rows[:SHOWN_ROWS]


# ---- The card ------------------------------------------------------------------------------------


def repository(records: Records) -> str | None:
    """Return where the published weights of the model are, None for another model's weights."""
    for record in records.found():
        model, name = record.model, PurePath(record.model.weights or MODEL_NAME).name
        known = model.source in HUBS or name == MODEL_NAME
        if not known or model.parameters != PARAMETERS["dinov3-vitb16"]:
            return None
    return REPOSITORY


def files_of_card(folder: Path, records: Records) -> dict[str, bytes]:
    """Return the records, the logs and the pictures by their names, as far as they can be read."""
    found = {name: picture.png for name, picture in records.pictures.items() if picture.png}
    for script in (record.script for record in records.found()):
        for name in (f"{script}.json", f"{script}.log"):
            with contextlib.suppress(KitError):
                found[name] = outside.read_bytes(folder / name, "", outside.LARGEST_JSON_BYTES)
    return found


def outdated(folder: Path, made: Mapping[Path, bytes]) -> list[Path]:
    """Return the card's files that an earlier run may have left and this one does not have."""
    names = [f"{script}.{end}" for script in SCRIPTS for end in ("json", "log")]
    names += ["README.md", *(name for names_ in PICTURES.values() for name in names_)]
    return [path for name in names if (path := folder / "card" / name) not in made]


# ---- Reproduction --------------------------------------------------------------------------------


def installing(records: Records) -> list[str]:
    """Return the commands that make the newest run's environment: code, packages, CANN, weights.

    Records of other packages are named as mixed.
    """
    run = records.newest()
    if run is None:
        return []
    plain = Environment(loader=LOADER, undefined=StrictUndefined, trim_blocks=True)
    plain.filters |= {"quoted": quoted, "pinned": pinned, "shareable": shareable}
    commit = COMMIT.match(run.environment.git_commit or "")
    text = plain.get_template("commands.jinja").render(
        run=run,
        commit=commit and commit.group(),
        emulated=emulated(run),
        repository=repository(records),
        cpu_wheels=CPU_WHEELS,
    )
    return [line for line in text.split("\n") if line]


def pinned(version: str, package: str) -> str:
    """Return a requirement; a version's local part is on no package index."""
    return quoted(f"{package}=={version.partition('+')[0]}")


def command_line(record: Record) -> str:
    """Return the command that made a record, with the variables that its user had set."""
    variables = record.environment.variables
    parts = [
        f"{name}={quoted(value)}"
        for name, value in sorted(variables.items())
        if name not in SET_BY_OTHERS and name.isidentifier()
    ]
    world_size = variables.get("WORLD_SIZE", "")
    if world_size.isdigit():
        parts += ["torchrun", "--nproc-per-node", world_size]
    else:
        parts.append("python3")
    parts += script_words(record.script, emulated=emulated(record))
    options = record.environment.command[1:]  # the script itself is in the clone
    return " ".join([*parts, *map(quoted, map(shareable, options))])


def shareable(option: str) -> str:
    """Return an option as another host can have it: of a path in a home or /tmp the last name."""
    name, equals, value = option.partition("=") if option.startswith("--") else ("", "", option)
    return f"{name}{equals}{PurePath(value).name}" if OWN_FOLDER.match(value) else option


def quoted(word: str) -> str:
    """Return a word for a shell; a line break in it would end the command for who pastes it."""
    return shlex.quote(word).replace("\n", "'$'\\n''")
