"""accuracy.py's part on where an error comes from: block by block, cause by cause."""

from kit.report.blocks import Cell, Table
from kit.report.cells import Cells
from kit.report.fields import Node


def blocks_table(stages: list[Node], cells: Cells) -> Table:
    """Return the error after every block, and the operator nearest to its limit."""
    texts = cells.texts
    rows = tuple(
        (
            cells.code(stage.at("name")),
            cells.error(stage.at("relative_error")),
            cells.error(stage.at("cpu_relative_error")),
            cells.error(stage.at("expected_error")),
            worst_operator(stage.at("worst_operator"), cells),
            cells.number(stage.at("worst_operator", "times_limit"), ".2g", " ×"),
            explanation(stage, cells),
        )
        for stage in stages
    )  # fmt: skip
    columns = (
        texts.block, texts.device, "CPU fp32", texts.explained_error, texts.worst_operator,
        texts.times_limit, texts.result,
    )  # fmt: skip
    return Table(texts.blocks_caption, columns, rows, sortable=True)


def explanation(stage: Node, cells: Cells) -> Cell:
    """Return whether the declared arithmetic explains a block's error."""
    texts = cells.texts
    cell = cells.passed(stage.at("explained"), good=texts.explained, bad=texts.unexplained_mark)
    if cell.kind != "good":
        return cell
    whole = stage.at("sum_explained")
    if whole.flag() is None:
        return cells.missing()
    return cell if whole.flag() else Cell(texts.sum_unexplained, "doubtful")


def worst_operator(operator: Node, cells: Cells) -> Cell:
    """Return an operator's class and name."""
    if not operator.there:
        return cells.none() if operator.null else cells.missing()
    return Cell(f"{cells.word(operator.at('operator'))} ({cells.word(operator.at('name'))})")


def causes_table(causes: list[Node], cells: Cells) -> Table:
    """Return what --explain found."""
    texts = cells.texts
    rows = tuple(
        (
            cells.text(cause.at("cause")),
            cells.text(cause.at("where")),
            *(tried(cause, name, cells) for name in ("before", "relative_error")),
            cells.percent(cause.at("removes")),
            cells.text(cause.at("note")),
        )
        for cause in causes
    )
    columns = (texts.cause, texts.side, texts.before, texts.after, texts.removes, texts.note)
    return Table(texts.causes_caption, columns, rows, sortable=True)


def tried(cause: Node, name: str, cells: Cells) -> Cell:
    """Return an error of a cause; one that was not tried has none, and a note that says why."""
    if cause.at(name).null and cause.at("note").text():
        return cells.none()
    return cells.error(cause.at(name))
