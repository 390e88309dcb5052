"""At a glance: one row per script, with its question, its answer and what that stands on."""

from kit.report.blocks import Cell, Table
from kit.report.cells import Cells, device_label
from kit.report.shelf import Entry, Shelf


def proofs_table(shelf: Shelf, cells: Cells) -> Table:
    """Return the three rows."""
    texts = cells.texts
    rows = (
        inference_row(shelf.entries["inference"], cells),
        benchmark_row(shelf.entries["benchmark"], cells),
        accuracy_row(shelf.entries["accuracy"], cells),
    )
    columns = (texts.question, texts.answer, texts.stands_on)
    return Table(texts.proofs_caption, columns, rows)


def row(question: str, answer: Cell, words: str, entry: Entry, cells: Cells) -> tuple[Cell, ...]:
    """Return a row; one without a record says so in its place."""
    texts = cells.texts
    if entry.state == "absent":
        words = texts.record_absent.format(file=entry.file, script=f"{entry.script}.py")
        return Cell(question), Cell(texts.not_shown, "doubtful"), Cell(words)
    if entry.state == "unreadable":
        words = texts.record_unreadable.format(file=entry.file, problem=entry.problem)
        return Cell(question), Cell(texts.not_shown, "doubtful"), Cell(words)
    return Cell(question), answer, Cell(words)


def where(entry: Entry, cells: Cells) -> str:
    """Return the device of a run."""
    device = entry.record.at("device")
    return f"{device_label(device) or cells.texts.missing} ({cells.word(device.at('name'))})"


def inference_row(entry: Entry, cells: Cells) -> tuple[Cell, ...]:
    """Return whether it runs."""
    texts, results = cells.texts, entry.record.at("results")
    finite = [results.at(name, "finite").flag() for name in ("pooler_output", "last_hidden_state")]
    on_npu = device_label(entry.record.at("device")) == "NPU"
    fallen = entry.record.at("device", "cpu_fallbacks").texts()
    answer = Cell(texts.runs, "good")
    if False in finite:
        answer = Cell(texts.runs_not, "bad")
    elif None in finite:
        answer = cells.missing()
    elif not on_npu:
        answer = Cell(texts.runs_elsewhere, "doubtful")
    elif fallen:
        answer = Cell(texts.runs_partly, "doubtful")
    shapes = (results.at(name, "shape") for name in ("pooler_output", "last_hidden_state"))
    pooled, hidden = (cells.shape(shape).text for shape in shapes)
    words = texts.inference_evidence.format(
        where=where(entry, cells),
        latency=cells.ms(results.at("latency_ms")).text,
        pooled=pooled,
        hidden=hidden,
    )
    return row(texts.question_runs, answer, words, entry, cells)


def benchmark_row(entry: Entry, cells: Cells) -> tuple[Cell, ...]:
    """Return how fast it is."""
    texts, results = cells.texts, entry.record.at("results")
    latency = results.at("latency")
    answer = Cell(texts.measured, "good")
    if results.at("regression", "passed").flag() is False:
        answer = Cell(texts.regressed, "bad")
    elif latency.null or entry.record.at("status").text() == "partial":
        answer = Cell(texts.interrupted, "doubtful")
    elif latency.missing:
        answer = cells.missing()
    elif device_label(entry.record.at("device")) != "NPU":
        answer = Cell(texts.runs_elsewhere, "doubtful")
    rows = results.at("throughput").items()
    rates = [(r.at("throughput_ips").number() or 0.0, r) for r in rows]
    best = max(rates, key=lambda pair: pair[0], default=(0.0, results.at("throughput", "none")))[1]
    words = texts.benchmark_evidence.format(
        p50=cells.ms(latency.at("p50_ms")).text,
        count=cells.whole(latency.at("iterations")).text,
        best=cells.number(best.at("throughput_ips"), ".2f").text,
        batch=cells.whole(best.at("batch_size")).text,
    )
    return row(texts.question_fast, answer, words, entry, cells)


def accuracy_row(entry: Entry, cells: Cells) -> tuple[Cell, ...]:
    """Return whether its numbers are right."""
    texts, results = cells.texts, entry.record.at("results")
    answer = {
        "pass": Cell("PASS", "good"),
        "unexplained": Cell("PASS", "doubtful"),
        "fail": Cell("FAIL", "bad"),
        "self-check": Cell("SELF-CHECK", "doubtful"),
    }.get(results.at("outcome").text() or "", cells.missing())
    hidden = results.at("last_hidden_state")
    words = texts.accuracy_evidence.format(
        verdict=cells.word(results.at("verdict")),
        error=cells.fixed(hidden.at("relative_error"), 6).text,
        cosine=cells.number(hidden.at("cosine"), ".6f", null=texts.not_finite).text,
        reference=cells.word(results.at("reference")),
    )
    return row(texts.question_right, answer, words, entry, cells)
