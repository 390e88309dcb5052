"""The report's model: what both templates render, so that HTML and Markdown cannot differ."""

from dataclasses import dataclass, field
from typing import Literal

CellKind = Literal["text", "code", "number", "good", "bad", "doubtful", "missing"]
State = Literal["validated", "failed", "incomplete"]


@dataclass(frozen=True)
class Cell:
    """One value as a reader sees it.

    Attributes:
        text: the value; never empty.
        kind: how it is set. 'good', 'bad' and 'doubtful' get a mark beside their colour.
        sort: what a table is sorted by; None sorts by the text.
    """

    text: str
    kind: CellKind = "text"
    sort: float | None = None


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences or values."""

    items: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first column heads the rows.

    Attributes:
        caption: what the table shows.
        columns: the head row.
        rows: of as many cells each as there are columns.
        sortable: whether the order of the rows is the reader's choice.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture beside its record.

    Attributes:
        name: of its file, which the Markdown links.
        alt: what it shows, for those who do not see it.
        caption: what it shows, for those who do.
        png: its bytes, which the HTML embeds; empty where it cannot be shown.
        problem: why it cannot be shown; empty where it can.
    """

    name: str
    alt: str
    caption: str
    png: bytes
    problem: str


@dataclass(frozen=True)
class Code:
    """Lines to copy or as a console printed them."""

    language: str
    text: str
    label: str


@dataclass(frozen=True)
class Samples:
    """Raw samples, which show on demand.

    Attributes:
        label: what they are.
        unit: of each.
        values: the samples in the order they were taken.
        file: of the record that holds them.
    """

    label: str
    unit: str
    values: tuple[str, ...]
    file: str


Block = Paragraph | Bullets | Table | Picture | Code | Samples


@dataclass(frozen=True)
class Section:
    """One section under a heading."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Verdict:
    """What was proven and what was not.

    Attributes:
        state: for programs and colours.
        label: the state as a word.
        sentence: what it means.
        proofs: one row per script: the question, the answer, what it stands on.
        failures: what failed.
        lacking: what keeps this from being validated.
        remarks: what a reader must know besides.
    """

    state: State
    label: str
    sentence: str
    proofs: Table
    failures: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The whole report.

    Attributes:
        language: as HTML's lang attribute has it.
        title: the page's heading.
        subject: model and chip.
        verdict: stands first.
        sections: in order.
        words: the few words that the templates themselves need, by name.
    """

    language: str
    title: str
    subject: str
    verdict: Verdict
    sections: tuple[Section, ...]
    words: dict[str, str] = field(default_factory=dict)
