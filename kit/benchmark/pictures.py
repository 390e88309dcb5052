"""benchmark.py's picture, from the record alone: latency over time, throughput, the ladder."""

import io
from typing import TYPE_CHECKING

from kit.benchmark.report import title
from kit.records import BenchmarkRecord, BenchmarkResults, LadderRow, Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (5.2, 4.2)
DPI = 120
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#cc3311", "#7f7f7f"
PRECISION_COLOURS = {"fp32": BLUE, "bf16": GREEN, "fp16": ORANGE}
SMALLEST_ERROR = 1e-8  # where an error of 0 is drawn on the logarithmic axis


def draw(record: BenchmarkRecord) -> bytes:
    """Return a PNG with a panel for each part that the results have, at least the latency."""
    import matplotlib as mpl  # only this picture needs it

    mpl.use("Agg")
    from matplotlib.figure import Figure

    results = record.results
    rows = [row.latency for row in results.throughput if row.latency is not None]
    panels = sum((results.latency is not None, bool(rows), bool(results.ladder)))
    figure = Figure((PANEL_INCHES[0] * panels, PANEL_INCHES[1]), dpi=DPI, layout="constrained")
    figure.suptitle(title(record))
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    if results.latency is not None:
        draw_latency(next(axes), results.latency)
    if rows:
        draw_sweep(next(axes), rows)
    if results.ladder:
        draw_ladder(next(axes), results)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_latency(axes: "Axes", latency: Latency) -> None:
    """Draw every sample in its order, warm-up first, and the percentiles as lines."""
    warm_up = latency.warm_up.samples_ms
    axes.plot(range(-len(warm_up), 0), warm_up, "x", color=GREY, label="warm-up")
    samples = latency.samples_ms
    axes.plot(range(len(samples)), samples, ".", color=BLUE, label="timed")
    styles = {"p50_ms": "-", "p90_ms": "--", "p99_ms": ":"}
    for name, style in styles.items():
        value = getattr(latency, name)
        mark = " (unsupported)" if name in latency.unsupported else ""
        axes.axhline(
            value, color=ORANGE, linestyle=style, linewidth=1, label=f"{name} {value:.2f}{mark}"
        )
    axes.set(title="Latency at batch 1", xlabel="forward", ylabel="ms")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def draw_sweep(axes: "Axes", rows: list[Latency]) -> None:
    """Draw throughput (left axis) and latency (right axis) over the batch size."""
    rows = sorted(rows, key=lambda row: row.batch_size)
    sizes = [row.batch_size for row in rows]
    axes.plot(sizes, [row.batch_size / row.mean_ms * 1e3 for row in rows], "o-", color=BLUE)
    axes.set(title="Throughput and latency", xlabel="batch size")
    axes.set_ylabel("images/s (circles)", color=BLUE)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    right.plot(sizes, [row.mean_ms for row in rows], "s--", color=ORANGE)
    right.set_ylabel("ms per forward (squares)", color=ORANGE)
    right.set_ylim(bottom=0)


def draw_ladder(axes: "Axes", results: BenchmarkResults) -> None:
    """Draw speed against error: one point per mode, the fastest that passes marked."""
    from matplotlib.ticker import LogLocator, NullLocator  # as in draw

    failed = [row for row in results.ladder if row.relative_error is None]
    for row in results.ladder:
        if row.relative_error is not None:
            draw_rung(axes, row, best=row.mode == results.fastest_passing_mode)
    heading = "Speed against error"
    if failed:
        heading += f" ({len(failed)} with values that are not finite are left out)"
    axes.set(title=heading, xlabel="p50_ms at batch 1", ylabel="relative error")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    # Room above the highest point for its mode's name.
    axes.set_ylim(bottom=SMALLEST_ERROR / 3, top=axes.get_ylim()[1] * 10)
    kinds = {"operator by operator": "o", "graph": "^"}
    for kind, marker in kinds.items():
        axes.plot([], [], marker, color=GREY, label=kind)
    for precision, colour in PRECISION_COLOURS.items():
        axes.plot([], [], "s", color=colour, label=precision)
    axes.plot([], [], "o", color=GREY, markerfacecolor="none", label="eager attention")
    axes.plot([], [], "x", color=RED, label="fails")
    axes.legend(fontsize="small")


def draw_rung(axes: "Axes", row: LadderRow, *, best: bool) -> None:
    """Draw one mode's point; its name stands beside the best."""
    place = row.latency.p50_ms, max(row.relative_error or 0.0, SMALLEST_ERROR)
    colour = PRECISION_COLOURS[row.dtype]
    marker = "^" if row.graph else "o"
    filled = colour if row.attention == "sdpa" else "none"
    axes.plot(*place, marker, color=colour, markerfacecolor=filled, markersize=8)
    if row.verdict == "FAIL":
        axes.plot(*place, "x", color=RED, markersize=11)
    if best:
        axes.annotate(row.mode, place, xytext=(0, 8), textcoords="offset points", fontweight="bold")
