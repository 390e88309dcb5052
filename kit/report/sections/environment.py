"""The environment: software, chip, weights, each as the records captured it."""

from collections.abc import Callable

from kit.report.blocks import Cell, Paragraph, Section, Table
from kit.report.cells import Cells
from kit.report.fields import Node
from kit.report.shelf import Entry, Shelf

Reader = Callable[[Node], Cell]


def section(shelf: Shelf, cells: Cells) -> Section:
    """Return the section; one column where the records agree, else one for each record."""
    texts, entries = cells.texts, shelf.found()
    if not entries:
        return Section("environment", texts.environment, (Paragraph(texts.no_record_at_all),))
    rows = [(label, [read(entry.record) for entry in entries]) for label, read in readers(cells)]
    agree = all(same(row) for _, row in rows)
    columns = (texts.value,) if agree else tuple(entry.file for entry in entries)
    table = Table(
        texts.environment_caption,
        (texts.component, *columns),
        tuple(
            (Cell(label), *(row[:1] if agree else row))
            for label, row in rows
        ),
    )  # fmt: skip
    return Section("environment", texts.environment, (table, records_table(shelf, cells)))


def same(row: list[Cell]) -> bool:
    """Return whether all records say the same."""
    return all(cell == row[0] for cell in row)


def readers(cells: Cells) -> list[tuple[str, Reader]]:
    """Return each row's label and how it is read from a record."""
    texts = cells.texts

    def code(*keys: str) -> Reader:
        return lambda record: cells.code(record.at(*keys))

    def whole(*keys: str) -> Reader:
        return lambda record: cells.whole(record.at(*keys))

    return [
        ("Python", code("environment", "python")),
        ("PyTorch", code("environment", "torch")),
        ("torch-npu", code("environment", "torch_npu")),
        ("transformers", code("environment", "transformers")),
        ("NumPy", code("environment", "numpy")),
        ("Pillow", code("environment", "pillow")),
        ("CANN", code("environment", "cann")),
        (texts.driver, code("environment", "driver")),
        (texts.chip, code("device", "name")),
        (texts.cards, whole("device", "count")),
        (texts.device, code("device", "torch_device")),
        (texts.matmul_arithmetic, code("device", "matmul_fp32")),
        (texts.convolution_arithmetic, code("device", "convolution_fp32")),
        (texts.model_class, code("model", "architecture")),
        (texts.parameters, whole("model", "parameters")),
        (texts.weights_path, code("model", "weights")),
        (texts.weights_source, code("model", "source")),
        (texts.weights_hash, code("model", "sha256")),
        (texts.compute_type, code("model", "dtype")),
        (texts.attention, code("model", "attention")),
        (texts.host, code("environment", "platform")),
        (texts.processor, code("environment", "cpu")),
        (texts.threads, whole("environment", "cpu_threads")),
        (texts.commit, code("environment", "git_commit")),
        (texts.variables, lambda record: variables(record, cells)),
        (texts.patch, lambda record: patch(record, cells)),
    ]


def variables(record: Node, cells: Cells) -> Cell:
    """Return the environment variables that were set."""
    node = record.at("environment", "variables")
    if not isinstance(node.value, dict):
        return cells.missing()
    found = [f"{name}={value.text()}" for name, value in node.pairs()]
    return Cell(" ".join(found), "code") if found else cells.none()


def patch(record: Node, cells: Cells) -> Cell:
    """Return what npu_patch did."""
    applied = record.at("patch", "applied").flag()
    if applied is None:
        return cells.missing()
    word = cells.texts.applied if applied else cells.texts.not_applied
    reason = record.at("patch", "reason")
    return Cell(f"{word} ({cells.word(reason)})")


def records_table(shelf: Shelf, cells: Cells) -> Table:
    """Return the records that the report stands on."""
    texts = cells.texts
    return Table(
        texts.records_caption,
        (texts.record, texts.state, texts.started_at, texts.schema_version),
        tuple(record_row(entry, cells) for entry in shelf.entries.values()),
    )


def record_row(entry: Entry, cells: Cells) -> tuple[Cell, ...]:
    """Return one record's row."""
    texts, name = cells.texts, Cell(entry.file, "code")
    if entry.state == "absent":
        return name, Cell(texts.absent, "doubtful"), cells.none(), cells.none()
    if entry.state == "unreadable":
        state = Cell(f"{texts.unreadable}: {entry.problem}", "bad")
        return name, state, cells.none(), cells.none()
    status = entry.record.at("status").text()
    state = {
        "complete": Cell(texts.complete, "good"),
        "partial": Cell(texts.partial, "doubtful"),
    }.get(status or "", cells.missing())
    if entry.damaged:
        state = Cell(texts.damaged, "doubtful")
    started_at, version = entry.record.at("started_at"), entry.record.at("schema_version")
    return name, state, cells.code(started_at), cells.code(version)
