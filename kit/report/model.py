"""Build the report's model from an output folder."""

from pathlib import PurePath

from kit.report import texts as languages
from kit.report import verdict
from kit.report.agreement import newest
from kit.report.blocks import Report
from kit.report.cells import Cells
from kit.report.sections import accuracy, benchmark, closing, environment, inference, ladder
from kit.report.shelf import Shelf

TEMPLATE_WORDS = (
    "footer", "skip", "contents", "what_failed", "what_lacks", "what_else", "sort_by",
    "picture_missing", "samples_shown", "samples_in_file", "good_mark", "bad_mark",
    "doubtful_mark", "missing_mark", "verdict",
)  # fmt: skip


def build(shelf: Shelf, language: str) -> Report:
    """Return the report on the records of a shelf.

    Args:
        shelf: what lies in the output folder.
        language: zh or en.
    """
    words = languages.load(language)
    cells = Cells(words)
    return Report(
        language=words.language,
        title=words.title,
        subject=subject(shelf, cells),
        verdict=verdict.conclude(shelf, cells),
        sections=(
            environment.section(shelf, cells),
            inference.section(shelf, cells),
            benchmark.section(shelf, cells),
            ladder.section(shelf, cells),
            accuracy.section(shelf, cells),
            closing.notes(shelf, cells),
            closing.reproduction(shelf, cells),
        ),
        words={name: getattr(words, name) for name in TEMPLATE_WORDS},
    )


def subject(shelf: Shelf, cells: Cells) -> str:
    """Return what was examined: the model, by the name of its weights' folder, and the chip."""
    texts, found = cells.texts, shelf.found()
    entry = newest(shelf) or (found[0] if found else None)
    if entry is None:
        return texts.unknown_model
    model = entry.record.at("model")
    name = model.at("architecture").text() or texts.unknown_model
    folder = model.at("weights").text()
    if folder:
        name = PurePath(folder).name or name
    if model.at("source").text() == "random":
        name = texts.subject_random.format(model=name)
    chip = entry.record.at("device", "name").text() or texts.missing
    return texts.subject.format(model=name, chip=chip)
