"""benchmark.py's report, from the record alone: the console's last lines."""

import math
from collections.abc import Sequence

from kit.accuracy.limits import LIMITS
from kit.benchmark.baseline import comparison
from kit.benchmark.modes import together
from kit.device.device import LABELS
from kit.environment import BINDING
from kit.output import RULE
from kit.records import (
    BenchmarkRecord,
    BenchmarkResults,
    Environment,
    LadderRow,
    Latency,
    Profile,
    Ranks,
    Regression,
    RowCheck,
    ThroughputRow,
)
from kit.statistics import PERCENTILES, samples_needed

THIN_RULE = "-" * len(RULE)
NEEDED = {f"p{p}_ms": samples_needed(p) for p in PERCENTILES} | {"stddev_ms": 2}
MIB = 1 << 20
LONGEST_NAME = 52  # of an operator; a GPU's kernels have longer ones


def lines(record: BenchmarkRecord) -> list[str]:
    """Return the report: the two tables, then what the run has of the rest."""
    results = record.results
    found = [RULE, "Benchmark Results", RULE]
    found.append(f"Device: {LABELS[record.device.type]} ({record.device.name})")
    found.append(f"Mode: {results.mode}")
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


def latency_lines(latency: Latency) -> list[str]:
    """Return the first table: the seed's names, a mark on what few samples cannot support."""
    found = [] if latency.check is None else check_lines(latency.check)
    found.append(f"iterations: {latency.iterations}")
    for name in ("mean_ms", "stddev_ms", "min_ms", "max_ms", "p50_ms", "p90_ms", "p99_ms"):
        mark = ""
        if name in latency.unsupported:
            mark = f" (unsupported: needs {NEEDED[name]} samples)"
        found.append(f"{name}: {getattr(latency, name):.2f} ms{mark}")
    return found


def throughput_lines(rows: Sequence[ThroughputRow]) -> list[str]:
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


def check_lines(check: RowCheck) -> list[str]:
    """Return a row's check in a line, and the reasons of one that fails."""
    repeats = check.repeats
    limits = next(one for name, one in LIMITS.items() if name == check.arithmetic)
    error = "not finite" if check.relative_error is None else f"{check.relative_error:.6f}"
    words = f"check: {check.verdict} (relative error {error}, limit {limits.relative_error:g}"
    if check.verdict != "FAIL" and not check.within_published_limits:
        words += f" of {check.arithmetic}, beyond the published 0.01"
    words += f"; {repeats.differing} of {repeats.forwards} forwards differ in bits)"
    return [words, *check.reasons]


def phase_lines(results: BenchmarkResults) -> list[str]:
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
    peaks = {
        "peak device memory": results.memory.device_peak_bytes,
        "peak host memory": results.memory.host_peak_bytes,
    }
    found += [f"{name}: {peak / MIB:.0f} MiB" for name, peak in peaks.items() if peak is not None]
    return found + limit_lines(results)


def limit_lines(results: BenchmarkResults) -> list[str]:
    """Return how near the limit the run is, and what a stream of images would reach."""
    limit, phases = results.limit, results.phases
    if limit is None:
        return []
    found = [f"limit: {limit.summary}"]
    attainable = limit.precisions[0].attainable_latency_ms
    if attainable is not None:
        found.append(f"attainable latency of one image: {attainable:.2f} ms")
    if phases.pipeline_ips is not None:
        found.append(
            f"stream from files: {phases.pipeline_ips:.2f} images/s, "
            f"{phases.pipeline_stage} takes longest"
        )
    return [*found, f"bound: {limit.bound}"] if limit.bound is not None else found


def profile_lines(profile: Profile) -> list[str]:
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


def rank_lines(ranks: Ranks) -> list[str]:
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


def regression_lines(regression: Regression) -> list[str]:
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


def ladder_lines(record: BenchmarkRecord) -> list[str]:
    """Return the ladder, the modes that are missing, and the lines that it ends with."""
    results = record.results
    width = max((len(row.mode) for row in results.ladder), default=4)
    found = ["Speed Ladder", RULE]
    found.append(
        f"{'mode':<{width}}  {'p50_ms':>8}  {'best_ips':>9}  {'batch':>5}  {'host_ms':>8}  "
        f"{'peak_MiB':>8}  {'error':>8}  {'limit':>5}  {'bound':<9}  verdict"
    )
    found += [ladder_line(row, width) for row in results.ladder]
    found += [f"not measured: {words}" for words in together(results.skipped_modes)]
    found += [RULE, conditions(record.environment)]
    found += last_lines(results, record.device.type == "cpu")
    if results.fastest_passing_command is not None:
        found.append(f"Run it with: {results.fastest_passing_command}")
    return found


def conditions(environment: Environment) -> str:
    """Return the host's threads and cores, and what was set for them."""
    found = [f"Host: threads {environment.cpu_threads}"]
    if environment.cpu_affinity is not None:
        found.append(f"cores {environment.cpu_affinity}")
    if environment.numa_nodes:
        found.append(f"NUMA nodes {', '.join(map(str, environment.numa_nodes))}")
    variables = environment.variables
    return "; ".join(
        [*found, *(f"{name}={variables[name]}" for name in BINDING if name in variables)]
    )


def ladder_line(row: LadderRow, width: int) -> str:
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


def last_lines(results: BenchmarkResults, on_cpu: bool) -> list[str]:
    """Return the ladder's answers: the fastest mode within the published limits, and of all."""
    rows = {row.mode: row for row in results.ladder}
    found = []
    for name, words in [
        (results.fastest_published_mode, "Fastest mode within the published 1 % and 0.999"),
        (results.fastest_passing_mode, "Fastest mode that passes"),
    ]:
        if name is None:
            found.append(f"{words}: none")
            continue
        best, main = rows[name], rows.get(results.mode)
        text = f"{words}: {name}, {best.latency.p50_ms:.2f} ms at batch 1"
        if main is not None and main is not best and main.verdict != "FAIL":
            text += f", {compared(main, best)}"
        found.append(text)
    passing = [row for row in results.ladder if row.verdict != "FAIL" and row.best_throughput_ips]
    if passing:
        widest = max(passing, key=lambda row: row.best_throughput_ips or 0.0)
        found[-1] += (
            f"; most images/s: {widest.mode}, {widest.best_throughput_ips:.2f} "
            f"at batch {widest.best_batch_size}"
        )
    return [line + (" (CPU against CPU: validates no NPU)" if on_cpu else "") for line in found]


def compared(main: LadderRow, best: LadderRow) -> str:
    """Return how much faster than the main mode a mode is, where that is beyond the noise."""
    one = comparison(best.mode, main.latency.samples_ms, best.latency.samples_ms, math.inf)
    if one.status == "same":
        return f"no faster than {main.mode} beyond the noise"
    return f"{1 / one.ratio:.2f} times as fast as {main.mode}"
