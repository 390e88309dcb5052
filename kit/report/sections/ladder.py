"""The speed ladder: every mode's speed beside its error, and the fastest that passes."""

from kit.report.blocks import Block, Bullets, Cell, Paragraph, Section, Table
from kit.report.cells import Cells
from kit.report.fields import Node
from kit.report.sections.benchmark import figure
from kit.report.sections.common import samples
from kit.report.shelf import Shelf


def section(shelf: Shelf, cells: Cells) -> Section:
    """Return the section; a sentence on how to have one where the run had no ladder."""
    texts, entry = cells.texts, shelf.entries["benchmark"]
    results = entry.record.at("results")
    rows = results.at("ladder").items()
    if entry.state == "found" and results.at("ladder").missing:
        return Section("ladder", texts.ladder, (Paragraph(texts.missing),))
    if not rows:
        return Section("ladder", texts.ladder, (Paragraph(texts.no_ladder),))
    fastest = results.at("fastest_passing_mode")
    answer = texts.fastest_none if fastest.null else texts.fastest.format(mode=cells.word(fastest))
    blocks: list[Block] = [Paragraph(texts.ladder_intro), table(rows, fastest, cells)]
    for row in rows:
        label = texts.samples_mode.format(mode=cells.word(row.at("mode")))
        blocks += samples(label, row.at("latency", "samples_ms"), entry.file)
    blocks.append(Paragraph(answer))
    skipped = results.at("skipped_modes").items()
    if skipped:
        items = tuple(skipped_item(mode, cells) for mode in skipped)
        blocks += [Paragraph(texts.not_measured), Bullets(items)]
    return Section("ladder", texts.ladder, tuple(blocks))


def skipped_item(mode: Node, cells: Cells) -> Cell:
    """Return why a mode was not measured."""
    return Cell(f"{cells.word(mode.at('mode'))}: {cells.word(mode.at('reason'))}")


def table(rows: list[Node], fastest: Node, cells: Cells) -> Table:
    """Return one row per mode."""
    texts = cells.texts
    columns = (
        texts.mode, texts.verdict, "p50_ms", "best_throughput_ips", "best_batch_size",
        "host_p50_ms", texts.device_peak, "relative_error", "cosine_similarity", texts.bits_equal,
    )  # fmt: skip
    return Table(
        texts.ladder_caption,
        columns,
        tuple(ladder_row(row, fastest, cells) for row in rows),
        sortable=True,
    )


def ladder_row(row: Node, fastest: Node, cells: Cells) -> tuple[Cell, ...]:
    """Return one mode's row; the fastest that passes is marked."""
    latency, texts = row.at("latency"), cells.texts
    mode = cells.code(row.at("mode"))
    if mode.kind == "code" and mode.text == fastest.text():
        mode = Cell(f"★ {mode.text}", "code")
    return (
        mode,
        verdict_cell(row.at("verdict"), cells),
        figure(latency, "p50_ms", cells),
        cells.number(row.at("best_throughput_ips"), ".2f"),
        cells.whole(row.at("best_batch_size")),
        cells.number(latency.at("host_p50_ms"), ".3f", " ms"),
        cells.mib(row.at("memory", "device_peak_bytes")),
        cells.fixed(row.at("relative_error"), 6),
        cells.number(row.at("cosine_similarity"), ".6f", null=texts.not_finite),
        cells.yes(row.at("bits_equal_eager")),
    )


def verdict_cell(node: Node, cells: Cells) -> Cell:
    """Return accuracy.py's verdict with its mark."""
    cell = cells.text(node)
    if cell.kind == "missing":
        return cell
    kind = "bad" if cell.text.startswith("FAIL") else "good" if cell.text == "PASS" else "doubtful"
    return Cell(cell.text, kind)  # type: ignore[arg-type] # three literals
