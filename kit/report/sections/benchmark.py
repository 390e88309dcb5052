"""benchmark.py's part: latency, throughput, phases, memory, ranks, regression, raw samples."""

from kit.report.blocks import Block, Cell, Paragraph, Section, Table
from kit.report.cells import Cells
from kit.report.fields import Node
from kit.report.sections.common import marked, picture, samples, without_record
from kit.report.shelf import Shelf

FIGURES = ("mean_ms", "stddev_ms", "min_ms", "max_ms", "p50_ms", "p90_ms", "p99_ms")


def section(shelf: Shelf, cells: Cells) -> Section:
    """Return the section."""
    texts, entry = cells.texts, shelf.entries["benchmark"]
    if entry.state != "found":
        return Section("benchmark", texts.benchmark, without_record(entry, cells))
    results = entry.record.at("results")
    blocks: list[Block] = [
        Paragraph(texts.benchmark_intro),
        latency_table(results, cells),
        *samples(texts.samples_latency, results.at("latency", "samples_ms"), entry.file),
        throughput_table(results, cells),
        *sweep_samples(results, cells, entry.file),
        picture(
            shelf, cells, "benchmark", "benchmark.png",
            (texts.benchmark_alt, texts.benchmark_picture),
        ),
        phases_table(results, cells),
    ]  # fmt: skip
    if results.at("ranks").there:
        blocks += rank_tables(results, cells)
    if results.at("regression").there:
        blocks.append(regression_table(results.at("regression"), cells))
    return Section("benchmark", texts.benchmark, tuple(blocks))


def latency_table(results: Node, cells: Cells) -> Table:
    """Return the seed's first table, with a mark on what so few samples cannot support."""
    texts, latency = cells.texts, results.at("latency")
    rows = [
        (Cell("mode", "code"), cells.code(results.at("mode"))),
        (Cell("iterations", "code"), cells.whole(latency.at("iterations"))),
    ]
    for name in FIGURES:
        rows.append((Cell(name, "code"), figure(latency, name, cells)))
    rows += [
        (Cell("warm_up.iterations", "code"), cells.whole(latency.at("warm_up", "iterations"))),
        (Cell("warm_up.steady", "code"), cells.yes(latency.at("warm_up", "steady"))),
        (Cell("device_p50_ms", "code"), cells.ms(latency.at("device_p50_ms"))),
        (Cell("host_p50_ms", "code"), cells.number(latency.at("host_p50_ms"), ".3f", " ms")),
    ]
    return Table(texts.latency_caption, (texts.quantity, texts.value), tuple(rows))


def figure(latency: Node, name: str, cells: Cells) -> Cell:
    """Return one figure of a latency, marked where its samples cannot support it."""
    cell = cells.ms(latency.at(name))
    if name in latency.at("unsupported").texts():
        return marked(cell, cells.texts.unsupported)
    return cell


def throughput_table(results: Node, cells: Cells) -> Table:
    """Return the seed's second table."""
    texts = cells.texts
    columns = (
        "batch_size", "throughput_ips", "avg_latency_ms", "queued_throughput_ips",
        texts.device_peak, texts.state,
    )  # fmt: skip
    rows = tuple(throughput_row(row, cells) for row in results.at("throughput").items())
    return Table(texts.throughput_caption, columns, rows, sortable=True)


def throughput_row(row: Node, cells: Cells) -> tuple[Cell, ...]:
    """Return one batch size's row."""
    texts = cells.texts
    states = {
        "measured": Cell(texts.measured, "good"),
        "out_of_memory": Cell(texts.out_of_memory, "doubtful"),
        "interrupted": Cell(texts.interrupted, "doubtful"),
    }
    state = states.get(row.at("status").text() or "", cells.missing())
    if row.at("searched").flag() and state.kind == "good":
        state = Cell(texts.largest_that_fits, "good")
    return (
        cells.whole(row.at("batch_size")),
        cells.number(row.at("throughput_ips"), ".2f"),
        cells.number(row.at("avg_latency_ms"), ".2f"),
        cells.number(row.at("queued_throughput_ips"), ".2f"),
        cells.mib(row.at("device_peak_bytes")),
        state,
    )


def sweep_samples(results: Node, cells: Cells, file: str) -> list[Block]:
    """Return the sweep's raw samples."""
    found: list[Block] = []
    for row in results.at("throughput").items():
        label = cells.texts.samples_batch.format(batch=cells.whole(row.at("batch_size")).text)
        found += samples(label, row.at("latency", "samples_ms"), file)
    return found


def phases_table(results: Node, cells: Cells) -> Table:
    """Return where the time goes, the peaks of memory, and what the measuring itself costs."""
    texts = cells.texts
    phases, memory, harness = (results.at(name) for name in ("phases", "memory", "harness"))
    rows = [
        (Cell(label), cells.ms(phases.at(name)))
        for label, name in (
            (texts.import_time, "import_ms"),
            (texts.load_time, "load_ms"),
            (texts.move_time, "move_ms"),
            (texts.first_inference, "first_inference_ms"),
            (texts.warm_up_time, "warm_up_ms"),
            (texts.steady_time, "steady_ms"),
            (texts.preprocessing_time, "preprocessing_ms"),
            (texts.copy_time, "host_to_device_ms"),
        )
    ]
    rows += [
        (Cell(texts.device_peak), cells.mib(memory.at("device_peak_bytes"))),
        (Cell(texts.device_reserved_peak), cells.mib(memory.at("device_reserved_peak_bytes"))),
        (Cell(texts.host_peak), cells.mib(memory.at("host_peak_bytes"))),
        (Cell(texts.overhead), cells.number(harness.at("overhead_ms"), ".4f", " ms")),
        (Cell(texts.clock), cells.text(harness.at("clock"))),
        (Cell(texts.governor), cells.text(harness.at("cpu_governor"))),
        (Cell(texts.load_average), cells.number(harness.at("load_average"), ".2f")),
    ]
    return Table(texts.phases_caption, (texts.quantity, texts.value), tuple(rows))


def rank_tables(results: Node, cells: Cells) -> list[Block]:
    """Return the devices under torchrun, and their throughput together."""
    texts, ranks = cells.texts, results.at("ranks")
    devices = tuple(
        (
            cells.whole(rank.at("rank")),
            cells.code(rank.at("host")),
            cells.code(rank.at("torch_device")),
            cells.code(rank.at("name")),
            *(figure(rank.at("latency"), name, cells) for name in ("p50_ms", "p90_ms", "p99_ms")),
        )
        for rank in ranks.at("ranks").items()
    )
    together = tuple(
        (
            cells.whole(row.at("batch_size")),
            cells.number(row.at("alone_throughput_ips"), ".2f"),
            cells.number(row.at("total_throughput_ips"), ".2f"),
            cells.number(row.at("scaling_efficiency"), ".3f"),
            Cell(
                " ".join(f"{value:.2f}" for value in row.at("rank_throughput_ips").numbers())
                or texts.missing
            ),
        )
        for row in ranks.at("throughput").items()
    )
    first = ("rank", texts.host_name, texts.device, texts.chip, "p50_ms", "p90_ms", "p99_ms")
    second = (
        "batch_size", "alone_throughput_ips", "total_throughput_ips", "scaling_efficiency",
        "rank_throughput_ips",
    )  # fmt: skip
    return [
        Table(texts.ranks_caption, first, devices, sortable=True),
        Table(texts.scaling_caption, second, together, sortable=True),
    ]


def regression_table(regression: Node, cells: Cells) -> Table:
    """Return the comparison with an earlier record."""
    texts = cells.texts
    caption = texts.regression_caption.format(
        baseline=cells.word(regression.at("baseline")),
        started_at=cells.word(regression.at("baseline_started_at")),
        limit=cells.number(regression.at("max_regression_percent"), "g").text,
    )
    states = {
        "same": Cell(texts.same, "good"),
        "faster": Cell(texts.faster, "good"),
        "slower": Cell(texts.slower, "doubtful"),
        "regression": Cell(texts.regressed, "bad"),
    }
    rows = tuple(
        (
            cells.code(row.at("name")),
            cells.number(row.at("old_ms"), ".2f"),
            cells.number(row.at("new_ms"), ".2f"),
            cells.number(row.at("ratio"), ".3f"),
            cells.number(row.at("noise_ms"), ".2f"),
            states.get(row.at("status").text() or "", cells.missing()),
        )
        for row in regression.at("comparisons").items()
    )
    columns = (texts.quantity, "old_ms", "new_ms", "ratio", "noise_ms", texts.result)
    return Table(caption, columns, rows, sortable=True)
