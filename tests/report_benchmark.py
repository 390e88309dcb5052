"""The results of an imagined benchmark, with figures that are all different."""

from kit.records import (
    BenchmarkResults,
    Comparison,
    Harness,
    LadderRow,
    Latency,
    Memory,
    Phases,
    RankLatency,
    Ranks,
    Regression,
    ScalingRow,
    SkippedMode,
    ThroughputRow,
    WarmUp,
)
from kit.statistics import statistics


def samples(around: float, count: int) -> list[float]:
    """Return times that differ, in ms."""
    return [around * (0.96 + (n * 37 % 101) / 1000) for n in range(count)]


def latency(batch: int, around: float, count: int = 12) -> Latency:
    """Return one batch size's times."""
    timed = samples(around, count)
    return Latency(
        **vars(statistics(timed)),
        batch_size=batch,
        warm_up=WarmUp(14, True, 5, tuple(samples(around * 1.31, 14))),
        device_p50_ms=around * 0.873,
        device_samples_ms=tuple(value * 0.873 for value in timed),
        host_p50_ms=around * 0.611,
        host_samples_ms=tuple(value * 0.611 for value in timed),
    )


def throughput(batch: int, around: float) -> ThroughputRow:
    """Return one row of the sweep."""
    times = latency(batch, around)
    return ThroughputRow(
        batch_size=batch,
        status="measured",
        searched=False,
        throughput_ips=batch / times.mean_ms * 1e3,
        avg_latency_ms=times.mean_ms,
        queued_throughput_ips=batch / times.mean_ms * 1.07e3,
        latency=times,
        device_peak_bytes=(371 + 53 * batch) << 20,
    )


def rung(mode: str, around: float, error: float | None, verdict: str = "PASS") -> LadderRow:
    """Return one mode of the ladder."""
    precision, attention, *rest = mode.split("-")
    return LadderRow(
        mode=mode, dtype=precision, strict_fp32=False, attention=attention, graph=bool(rest),
        latency=latency(1, around), throughput=(throughput(1, around), throughput(8, around * 1.4)),
        best_throughput_ips=8e3 / around / 1.43, best_batch_size=8,
        memory=Memory(2111 << 20, 391 << 20, 457 << 20), verdict=verdict, relative_error=error,
        cosine_similarity=None if error is None else 1 - error * error / 2,
        max_abs_diff=None if error is None else error * 2.7,
        bits_equal_eager=True if rest else None,
    )  # fmt: skip


def benchmark_results() -> BenchmarkResults:
    """Return results with everything that a record can have."""
    ranks = tuple(
        RankLatency(n, f"host-{'ab'[n]}", f"npu:{n}", "Ascend910_9362",
                    statistics(samples(7.93 + n / 9, 12)))
        for n in range(2)
    )  # fmt: skip
    return BenchmarkResults(
        mode="fp32-sdpa",
        latency=latency(1, 7.91, 120),
        throughput=(
            *(throughput(batch, 7.61 + batch * 0.41) for batch in (1, 2, 4, 8)),
            ThroughputRow(16, "out_of_memory", False, None, None, None, None, None),
        ),
        phases=Phases(6113.7, 431.9, 219.3, 1187.1, 1303.9, 7.907, 3.171, 0.437),
        memory=Memory(2239 << 20, 403 << 20, 467 << 20),
        harness=Harness(0.00119, 0.000151, "time.perf_counter_ns", 41.7, "off while timing",
                        "performance", 1.37),
        ladder=(
            rung("fp32-sdpa", 7.917, 0.006529),
            rung("fp32-eager", 9.133, 0.006611),
            rung("bf16-sdpa-graph", 3.271, 0.011973),
            rung("fp16-sdpa", 3.873, None, "FAIL"),
        ),
        skipped_modes=(SkippedMode("fp16-sdpa-graph", "capture failed"),),
        fastest_passing_mode="bf16-sdpa-graph",
        ranks=Ranks(2, ranks, (
            ScalingRow(8, 730.43, (721.13, 719.87), 1439.51, 0.98537),
        )),
        scaling_efficiency=0.98537,
        regression=Regression("old/benchmark.json", "2026-03-01T08:00:00+08:00", 10.0, (
            Comparison("latency at batch 1", 8.113, 7.791, 0.96031, 0.2113, "faster"),
        ), True),
    )  # fmt: skip
