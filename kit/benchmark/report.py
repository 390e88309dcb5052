"""benchmark.py's report, from the record alone: the console's last lines, and the pictures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kit import records
from kit.accuracy.limits import LIMITS, number
from kit.benchmark.baseline import comparison
from kit.benchmark.modes import together
from kit.device.device import LABELS
from kit.environment import BINDING
from kit.options import MODE_NAME
from kit.output import RULE
from kit.pictures import BLUE, GREEN, GREY, ORANGE, figure_of, png, subject
from kit.statistics import PERCENTILES, samples_needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THIN_RULE = "-" * len(RULE)
NEEDED = {f"p{p}_ms": samples_needed(p) for p in PERCENTILES} | {"stddev_ms": 2}
MIB = 1 << 20
LONGEST_NAME = 52  # of an operator; a GPU's kernels have longer ones
# Of the pictures.
COLOURS = {"fp32": BLUE, "bf16": GREEN, "fp16": ORANGE}
FAR_APART = 10.0  # times the median: such a sample would flatten all others on a linear axis
SMALLEST_SHARE = 1e-4  # that is written out
ROW_INCHES = 0.36  # of a bar with its line of text
ROW_CHARACTERS = 70  # of nine points in a line


def lines(record: records.BenchmarkRecord) -> list[str]:
    """Return the report: the two tables, then what the run has of the rest."""
    results, device = record.results, record.device
    found = [RULE, "Benchmark Results", RULE]
    found += [f"Device: {LABELS[device.type]} ({device.name})", f"Mode: {results.mode}"]
    if results.latency is not None:
        found += latency_lines(results.latency)
    if results.throughput:
        found += [THIN_RULE, *throughput_lines(results.throughput)]
    found += [THIN_RULE, *phase_lines(results)]
    if results.ranks is not None:
        found += [THIN_RULE, *rank_lines(results.ranks)]
    if results.regression is not None:
        found += [THIN_RULE, *regression_lines(results.regression)]
    found.append(RULE)
    if results.ladder or results.skipped_modes:
        found += ladder_lines(record)
    return found


def latency_lines(latency: records.Latency) -> list[str]:
    """Return the first table: the seed's names, a mark on what few samples cannot support."""
    found = [] if latency.check is None else check_lines(latency.check)
    found.append(f"iterations: {latency.iterations}")
    for name in ("mean_ms", "stddev_ms", "min_ms", "max_ms", "p50_ms", "p90_ms", "p99_ms"):
        needed = f" (unsupported: needs {NEEDED.get(name)} samples)"
        mark = needed if name in latency.unsupported else ""
        found.append(f"{name}: {getattr(latency, name):.2f} ms{mark}")
    return found


def throughput_lines(rows: Sequence[records.ThroughputRow]) -> list[str]:
    """Return the second table."""
    found = [f"{'batch_size':>10}  {'throughput_ips':>14}  {'avg_latency_ms':>14}  check"]
    for row in rows:
        check = row.latency.check if row.latency else None
        if row.status == "failed" and check is not None:
            found.append(f"{row.batch_size:>10}  {'no result':>14}  {'':>14}  FAIL")
            found += [f"{'':>10}  {reason}" for reason in check.reasons]
        elif row.throughput_ips is None or row.avg_latency_ms is None:
            found.append(f"{row.batch_size:>10}  out of memory: the sweep ends here")
        else:
            mark = str(check.verdict if check else "none (interrupted)")
            mark += "  (largest that fits)" if row.searched else ""
            found.append(
                f"{row.batch_size:>10}  {row.throughput_ips:>14.2f}  "
                f"{row.avg_latency_ms:>14.2f}  {mark}"
            )
    return found


def check_lines(check: records.RowCheck) -> list[str]:
    """Return a row's check in a line, and the reasons of one that fails."""
    repeats = check.repeats
    limits = next(one for name, one in LIMITS.items() if name == check.arithmetic)
    error = number(check.relative_error, ".6f")
    words = f"check: {check.verdict} (relative error {error}, limit {limits.relative_error:g}"
    if check.verdict != "FAIL" and not check.within_published_limits:
        words += f" of {check.arithmetic}, beyond the published 0.01"
    words += f"; {repeats.differing} of {repeats.forwards} forwards differ in bits)"
    return [words, *check.reasons]


def phase_lines(results: records.BenchmarkResults) -> list[str]:
    """Return where the time goes and what the peaks of memory were."""
    names = {
        "import_ms": "import",
        "load_ms": "load",
        "references_ms": "CPU references",
        "move_ms": "move to device",
        "first_inference_ms": "first inference",
        "steady_ms": "steady state",
        "preprocessing_ms": "preprocessing",
        "host_to_device_ms": "host-to-device copy",
    }
    values = [(label, getattr(results.phases, name)) for name, label in names.items()]
    found = [f"{label}: {value:.2f} ms" for label, value in values if value is not None]
    latency = results.latency
    if latency is not None and latency.host_p50_ms is not None:
        found.append(f"host cost per forward: {latency.host_p50_ms:.3f} ms")
    for side in ("device", "host"):
        if (peak := getattr(results.memory, f"{side}_peak_bytes")) is not None:
            found.append(f"peak {side} memory: {peak / MIB:.0f} MiB")
    return found if results.limit is None else found + limit_lines(results.limit, results.phases)


def limit_lines(limit: records.Limit, phases: records.Phases) -> list[str]:
    """Return how near the limit the run is, and what a stream of images would reach."""
    found = [f"limit: {limit.summary}"]
    if (attainable := limit.precisions[0].attainable_latency_ms) is not None:
        found.append(f"attainable latency of one image: {attainable:.2f} ms")
    if phases.pipeline_ips is not None:
        stage = f"{phases.pipeline_stage} takes longest"
        found.append(f"stream from files: {phases.pipeline_ips:.2f} images/s, {stage}")
    return [*found, f"bound: {limit.bound}"] if limit.bound is not None else found


def profile_lines(profile: records.Profile) -> list[str]:
    """Return where a forward's time goes: the operators that take longest, and how busy it was."""
    width = min(max((len(one.name) for one in profile.operators), default=8), LONGEST_NAME)
    found = [RULE, f"Profile of {profile.forwards} forwards ({profile.profiler})", RULE]
    found.append(f"{'operator':<{width}}  {'share':>6}  {'calls':>7}  {'ms':>8}")
    found += [
        f"{one.name[:width]:<{width}}  {one.share:>6.1%}  {one.calls:>7.1f}  {one.time_ms:>8.3f}"
        for one in profile.operators
    ]
    who = "the device computed" if profile.side == "device" else "the host was in operators"
    words = f"one forward: {profile.wall_ms:.2f} ms, of which {who} {profile.busy_share:.0%}"
    if profile.launches_per_forward is not None:
        words += f"; {profile.launches_per_forward:.0f} launches"
    return [*found, words, RULE]


def rank_lines(ranks: records.Ranks) -> list[str]:
    """Return each rank's latency, and all ranks' throughput."""
    found = [
        f"rank {one.rank}: {one.torch_device} on {one.host}, p50_ms {one.latency.p50_ms:.2f}"
        for one in ranks.ranks
    ]
    found.append(f"{'batch_size':>10}  {'total_ips':>14}  {'scaling_efficiency':>18}  per rank")
    for row in ranks.throughput:
        each = " ".join(f"{ips:.2f}" for ips in row.rank_throughput_ips)
        found.append(
            f"{row.batch_size:>10}  {row.total_throughput_ips:>14.2f}  "
            f"{row.scaling_efficiency:>18.3f}  {each}"
        )
    return found


def regression_lines(regression: records.Regression) -> list[str]:
    """Return old, new and ratio of every figure, and the verdict."""
    width = max((len(one.name) for one in regression.comparisons), default=0)
    found = [f"Baseline: {regression.baseline} ({regression.baseline_started_at})"]
    found.append(f"{'p50_ms':<{width}}  {'old':>9}  {'new':>9}  {'ratio':>6}  noise")
    for one in regression.comparisons:
        found.append(
            f"{one.name:<{width}}  {one.old_ms:>9.2f}  {one.new_ms:>9.2f}  {one.ratio:>6.3f}  "
            f"{one.noise_ms:.2f} {one.status}"
        )
    verdict = "PASS" if regression.passed else "FAIL"
    limit = f"no figure slower by more than {regression.max_regression_percent:g} % and the noise"
    found.append(f"Regression: {verdict} ({limit})")
    return found


def ladder_lines(record: records.BenchmarkRecord) -> list[str]:
    """Return the ladder, the modes that are missing, and the lines that it ends with."""
    results = record.results
    width = max((len(row.mode) for row in results.ladder), default=4)
    found = [
        *("Speed Ladder", RULE),
        f"{'mode':<{width}}  {'p50_ms':>8}  {'best_ips':>9}  {'batch':>5}  {'host_ms':>8}  "
        f"{'peak_MiB':>8}  {'error':>8}  {'limit':>5}  {'bound':<9}  verdict",
        *(ladder_line(row, width) for row in results.ladder),
        *(f"not measured: {words}" for words in together(results.skipped_modes)),
        *(RULE, conditions(record.environment)),
        *last_lines(results, record.device.type == "cpu"),
    ]
    if results.fastest_passing_command is not None:
        found.append(f"Run it with: {results.fastest_passing_command}")
    return found


def conditions(environment: records.Environment) -> str:
    """Return the host's threads and cores, and what was set for them."""
    found = [f"Host: threads {environment.cpu_threads}"]
    if environment.cpu_affinity is not None:
        found.append(f"cores {environment.cpu_affinity}")
    if environment.numa_nodes:
        found.append(f"NUMA nodes {', '.join(map(str, environment.numa_nodes))}")
    variables = environment.variables
    found += [f"{name}={variables[name]}" for name in BINDING if name in variables]
    return "; ".join(found)


def ladder_line(row: records.LadderRow, width: int) -> str:
    """Return one rung."""
    peak = row.memory.device_peak_bytes
    cells = (
        f"{row.mode:<{width}}",
        f"{row.latency.p50_ms:>8.2f}",
        f"{shown(row.best_throughput_ips, '.2f'):>9}",
        f"{shown(row.best_batch_size, 'd'):>5}",
        f"{shown(row.latency.host_p50_ms, '.3f'):>8}",
        f"{shown(None if peak is None else peak / MIB, '.0f'):>8}",
        f"{shown(row.relative_error, '.6f'):>8}",
        f"{shown(row.utilization, '.0%'):>5}",
        f"{row.bound or '-':<9}",
        row.verdict
        if row.within_published_limits or row.verdict == "FAIL"
        else f"{row.verdict} ({row.dtype}'s limits, beyond the published 1 %)",
    )
    notes = " (not the eager forward's bits)" if row.bits_equal_eager is False else ""
    if row.compile_ms is not None:
        notes += f" (compiled in {row.compile_ms / 1e3:.1f} s)"
    return "  ".join(cells) + notes


def shown(value: float | None, spec: str) -> str:
    """Return a value as text, a dash where there is none."""
    return "-" if value is None else format(value, spec)


def last_lines(results: records.BenchmarkResults, on_cpu: bool) -> list[str]:
    """Return the ladder's answers: the fastest mode within the published limits, and of all."""
    rows = {row.mode: row for row in results.ladder}
    main, found = rows.get(results.mode), []
    for name, words in [
        (results.fastest_published_mode, "Fastest mode within the published 1 % and 0.999"),
        (results.fastest_passing_mode, "Fastest mode that passes"),
    ]:
        if name is None:
            found.append(f"{words}: none")
            continue
        best = rows[name]
        text = f"{words}: {name}, {best.latency.p50_ms:.2f} ms at batch 1"
        if main is not None and main is not best and main.verdict != "FAIL":
            text += f", {compared(main, best)}"
        found.append(text)
    passing = [row for row in results.ladder if row.verdict != "FAIL" and row.best_throughput_ips]
    if passing:
        best = max(passing, key=lambda row: row.best_throughput_ips or 0.0)
        rate = f"{best.best_throughput_ips:.2f} at batch {best.best_batch_size}"
        found[-1] += f"; most images/s: {best.mode}, {rate}"
    return [line + (" (CPU against CPU: validates no NPU)" if on_cpu else "") for line in found]


def compared(main: records.LadderRow, best: records.LadderRow) -> str:
    """Return how much faster than the main mode a mode is, where that is beyond the noise."""
    one = comparison(best.mode, main.latency.samples_ms, best.latency.samples_ms, math.inf)
    if one.status == "same":
        return f"no faster than {main.mode} beyond the noise"
    return f"{1 / one.ratio:.2f} times as fast as {main.mode}"


# ---- Pictures: latency, throughput, and the ladder as bars ---------------------------------------


def pictures(record: records.BenchmarkRecord, language: str) -> Mapping[str, Callable[[], bytes]]:
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


def titled(record: records.BenchmarkRecord, heading: str) -> str:
    """Return a picture's title."""
    return f"{heading}\n{subject(record.model, record.device.type, record.device.name)}"


def draw_latency(record: records.BenchmarkRecord) -> "Figure":
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


def sweeps(results: records.BenchmarkResults) -> dict[str, list[records.ThroughputRow]]:
    """Return the batch sizes with a throughput, of the main mode and of the two fastest others.

    Of the ladder only modes that pass, and that were measured at more than one batch size.
    """

    def measured(rows: Sequence[records.ThroughputRow]) -> list[records.ThroughputRow]:
        return sorted((row for row in rows if row.throughput_ips), key=lambda row: row.batch_size)

    found = {results.mode: measured(results.throughput)}
    for row in sorted(results.ladder, key=lambda row: -(row.best_throughput_ips or 0.0)):
        rows = measured(row.throughput)
        if row.mode not in found and row.verdict != "FAIL" and len(rows) > 1 and len(found) < 3:
            found[row.mode] = rows
    return {mode: rows for mode, rows in found.items() if rows}


def draw_throughput(record: records.BenchmarkRecord) -> "Figure":
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


def attainable(results: records.BenchmarkResults) -> dict[str, float]:
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


def draw_ladder(record: records.BenchmarkRecord) -> "Figure":
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


def rung_words(row: records.LadderRow) -> str:
    """Return what stands on a mode's bar: its speed, its error and its share of the limit."""
    error = row.relative_error
    words = f"{row.latency.p50_ms:.2f} ms, "
    words += "not finite" if error is None else f"error {percent(error)}"
    if row.verdict == "FAIL":
        return f"{words}, FAIL"
    return words + (f", {percent(row.utilization)} of limit" if row.utilization else "")
