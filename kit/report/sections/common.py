"""What several sections share."""

from kit.report.blocks import Block, Cell, Paragraph, Picture, Samples
from kit.report.cells import Cells
from kit.report.fields import Node
from kit.report.shelf import Entry, Shelf


def without_record(entry: Entry, cells: Cells) -> tuple[Block, ...]:
    """Return what stands in a section whose record is not there."""
    texts = cells.texts
    if entry.state == "unreadable":
        words = texts.record_unreadable.format(file=entry.file, problem=entry.problem)
    else:
        words = texts.record_absent.format(file=entry.file, script=f"{entry.script}.py")
    return (Paragraph(words),)


def picture(shelf: Shelf, cells: Cells, script: str, name: str, words: tuple[str, str]) -> Picture:
    """Return a picture of a script's run, or why it cannot be shown.

    Args:
        shelf: where it lies.
        cells: for the language.
        script: whose picture it is.
        name: of the file.
        words: alternative text, and caption.
    """
    texts = cells.texts
    state, png = shelf.picture(script, name)
    problem = {
        "found": "",
        "absent": texts.picture_absent,
        "unreadable": texts.picture_unreadable,
        "older": texts.picture_older,
    }[state]
    return Picture(name, words[0], words[1], png, problem.format(name=name))


def samples(label: str, node: Node, file: str) -> tuple[Samples, ...]:
    """Return raw samples in ms; nothing where there are none."""
    values = node.numbers()
    if not values:
        return ()
    return (Samples(label, "ms", tuple(f"{value:.4f}" for value in values), file),)


def marked(cell: Cell, mark: str) -> Cell:
    """Return a cell with a remark behind its value, which makes it doubtful."""
    return Cell(f"{cell.text} ({mark})", "doubtful", cell.sort)


def command_of(entry: Entry) -> Cell | None:
    """Return `python3 script.py`, as the seed's sections name what was run."""
    return Cell(f"python3 {entry.script}.py", "code")
