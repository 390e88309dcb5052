"""benchmark.py's pictures, from the record alone: latency, throughput, and the ladder as bars."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kit.options import MODE_NAME
from kit.pictures import BLUE, GREEN, GREY, ORANGE, figure_of, png, subject
from kit.records import BenchmarkRecord, BenchmarkResults, LadderRow, ThroughputRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"fp32": BLUE, "bf16": GREEN, "fp16": ORANGE}
FAR_APART = 10.0  # times the median: such a sample would flatten all others on a linear axis
SMALLEST_SHARE = 1e-4  # that is written out
ROW_INCHES = 0.36  # of a bar with its line of text
ROW_CHARACTERS = 70  # of nine points in a line


def pictures(record: BenchmarkRecord, language: str) -> Mapping[str, Callable[[], bytes]]:
    """Return what draws each PNG file that the results have something for, by its name."""
    results = record.results
    drawn: dict[str, Callable[[], bytes]] = {}
    if results.latency is not None:
        drawn["benchmark_latency.png"] = lambda: png(draw_latency(record), language)
    if sweeps(results):
        drawn["benchmark_throughput.png"] = lambda: png(draw_throughput(record), language)
    if results.ladder:
        drawn["benchmark_ladder.png"] = lambda: png(draw_ladder(record), language)
    return drawn


def titled(record: BenchmarkRecord, heading: str) -> str:
    """Return a picture's title."""
    return f"{heading}\n{subject(record.model, record.device.type, record.device.name)}"


def draw_latency(record: BenchmarkRecord) -> "Figure":
    """Return every sample in its order, warm-up first, and the percentiles as lines."""
    latency = record.results.latency
    assert latency is not None  # as pictures asks
    heading = f"Latency of one image, {record.results.mode}"
    if latency.check is not None and latency.check.verdict == "FAIL":
        heading += ": check FAILED, no result"
    figure = figure_of(3.4, titled(record, heading))
    axes = figure.subplots()
    warm_up, samples = latency.warm_up.samples_ms, latency.samples_ms
    axes.plot(range(-len(warm_up), 0), warm_up, "x", color=GREY, label="warm-up", markersize=4)
    axes.plot(range(len(samples)), samples, ".", color=BLUE, label="timed", markersize=4)
    for name, style in (("p50_ms", "-"), ("p90_ms", "--"), ("p99_ms", ":")):
        value = getattr(latency, name)
        mark = " (unsupported)" if name in latency.unsupported else ""
        words = f"{name} {value:.2f}{mark}"
        axes.axhline(value, color=ORANGE, linestyle=style, linewidth=1, label=words, zorder=1)
    axes.set(xlabel="forward", ylabel="ms")
    axes.locator_params(axis="x", integer=True)
    if (slowest := max((*warm_up, *samples))) > FAR_APART * latency.p50_ms:
        plain_log(axes)
    else:
        axes.set_ylim(0, 1.05 * slowest)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def plain_log(axes: "Axes") -> None:
    """Make the y axis logarithmic, with 1, 2, 5 and their tens as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator  # as in figure_of

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def sweeps(results: BenchmarkResults) -> dict[str, list[ThroughputRow]]:
    """Return the batch sizes with a throughput, of the main mode and of the two fastest others.

    Of the ladder only modes that pass, and that were measured at more than one batch size.
    """
    found = {results.mode: measured(results.throughput)}
    ladder = sorted(results.ladder, key=lambda row: -(row.best_throughput_ips or 0.0))
    for row in ladder:
        rows = measured(row.throughput)
        if row.mode not in found and row.verdict != "FAIL" and len(rows) > 1 and len(found) < 3:
            found[row.mode] = rows
    return {mode: rows for mode, rows in found.items() if rows}


def measured(rows: Sequence[ThroughputRow]) -> list[ThroughputRow]:
    """Return the rows with a throughput, smallest batch first."""
    return sorted((row for row in rows if row.throughput_ips), key=lambda row: row.batch_size)


def draw_throughput(record: BenchmarkRecord) -> "Figure":
    """Return throughput over the batch size, on logarithmic axes, and the limit of each precision.

    The main mode's stands in figures, with its percent of the limit where that is known.
    """
    found, limits = sweeps(record.results), attainable(record.results)
    figure = figure_of(3.6, titled(record, "Throughput by batch size"))
    axes = figure.subplots()
    axes.set(xlabel="batch size", ylabel="images/s")
    for (mode, rows), colour in zip(found.items(), (BLUE, GREEN, GREY), strict=False):
        sizes = [row.batch_size for row in rows]
        speeds = [row.throughput_ips or 0.0 for row in rows]
        main = mode == record.results.mode
        axes.plot(sizes, speeds, "o-" if main else "s--", color=colour, label=mode, markersize=4)
        for row, at in zip(rows, zip(sizes, speeds, strict=True), strict=True) if main else ():
            words = f"{at[1]:.0f}" if at[1] >= 100 else f"{at[1]:.3g}"
            if row.utilization is not None:
                words += f"\n{percent(row.utilization)}"
            axes.annotate(
                words, at, (0, -4), textcoords="offset points", ha="center", va="top", fontsize=8
            )
        parts = MODE_NAME.fullmatch(mode)
        precision = parts["precision"] + (parts["fast_math"] or "") if parts else ""
        if (limit := limits.pop(precision, None)) is not None:
            words = f"limit in {precision}: {limit:.4g}"
            axes.axhline(limit, color=colour, linewidth=1, linestyle=":", label=words)
    axes.set_xscale("log", base=2)
    sizes = sorted({row.batch_size for rows in found.values() for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    plain_log(axes)
    lowest, highest = axes.get_ylim()
    room = (highest / lowest) ** 0.3  # for the figures below the lowest point
    axes.set_ylim(min(lowest / room, highest / 4), highest * 1.05)  # noise shall look small
    axes.margins(x=0.08)
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def attainable(results: BenchmarkResults) -> dict[str, float]:
    """Return the images per second that the device's own products allow, by precision.

    A precision with a reason has no utilization: what was measured of it is no limit.
    """
    found = () if results.limit is None else results.limit.precisions
    return {
        one.precision: one.attainable_throughput_ips
        for one in found
        if one.attainable_throughput_ips is not None and one.reason is None
    }


def percent(share: float) -> str:
    """Return a share in percent, of a small one that it is small."""
    if share < SMALLEST_SHARE:
        return f"< {SMALLEST_SHARE * 100:g} %"
    return f"{share * 100:{'.0f' if share >= 0.1 else '.2g'}} %"


def draw_ladder(record: BenchmarkRecord) -> "Figure":
    """Return the modes as bars, the fastest at batch 1 on top; those that fail are grey."""
    results = record.results
    rows = sorted(results.ladder, key=lambda row: row.latency.p50_ms)
    figure = figure_of(0.9 + ROW_INCHES * len(rows), titled(record, "Modes at batch 1, by speed"))
    axes = figure.subplots()
    best = {results.fastest_passing_mode, results.fastest_published_mode}
    texts = [(("★ " if row.mode in best else "") + row.mode, rung_words(row)) for row in rows]
    longest = max(len(mode) + len(words) for mode, words in texts)
    size = 9.0 * min(1.0, ROW_CHARACTERS / (longest + 3))
    speeds = [1e3 / row.latency.p50_ms for row in rows]
    colours = [GREY if row.verdict == "FAIL" else COLOURS[row.dtype] for row in rows]
    axes.barh(range(len(rows)), speeds, height=0.32, color=colours)
    for place, (mode, words) in enumerate(texts):
        at = axes.get_yaxis_transform()
        axes.text(0, place - 0.24, mode, transform=at, va="bottom", fontsize=size)
        axes.text(1, place - 0.24, words, transform=at, va="bottom", ha="right", fontsize=size)
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("images/s")
    return figure


def rung_words(row: LadderRow) -> str:
    """Return what stands on a mode's bar: its speed, its error and its share of the limit."""
    error = row.relative_error
    words = f"{row.latency.p50_ms:.2f} ms, "
    words += "not finite" if error is None else f"error {percent(error)}"
    if row.verdict == "FAIL":
        return f"{words}, FAIL"
    return words + (f", {percent(row.utilization)} of limit" if row.utilization else "")
