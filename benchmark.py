#!/usr/bin/env python3
"""Measure DINOv3 ViT-B/16: latency, throughput, memory, and the fastest mode that is accurate.

What is measured: synchronized forwards of one image after a warm-up that is tested for
steadiness, by the host's clock and the device's, every sample kept; then a sweep over batch
sizes. With --modes all the same for every precision, attention and graph capture, each with its
error against the fp32 CPU reference. What comes out: output/benchmark.json (the record),
output/benchmark.log (what the console shows), pictures (output/benchmark_*.png), and with
--profile output/benchmark_trace.json.

    python3 benchmark.py
    python3 benchmark.py --modes all
    python3 benchmark.py --modes bf16-compile --profile
    torchrun --nproc-per-node 2 benchmark.py
    python3 benchmark.py --baseline old.json --max-regression 10
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from kit import distributed
from kit.benchmark import baseline
from kit.errors import KitError
from kit.options import (
    PRECISIONS,
    SUFFIXES,
    BenchmarkOptions,
    OneLineParser,
    batch_sizes,
    frozen,
    mode_of,
    number,
    parse_modes,
    refuse_one_device_for_all_ranks,
    shared_parser,
    some_path,
    whole_number,
)
from kit.output import RunLog
from kit.records import BenchmarkRecord
from kit.run import (
    EXIT_FAILED_VERDICT,
    EXIT_INTERRUPTED,
    EXIT_PASSED,
    ROOT,
    Outcome,
    now,
    run_script,
)

WARM_UP = 5
BUDGET_S = 120.0
BATCH_SIZES = "1,2,4,8"
MAX_REGRESSION_PERCENT = 10.0
LARGEST_COUNT = 1_000_000  # of samples, which are all kept
LARGEST_BATCH = 65_536
LONGEST_S = 86_400.0


def make_parser() -> OneLineParser:
    """Return the parser of this script's options."""
    parser = shared_parser("benchmark", __doc__ or "")
    add = parser.add_argument_group("measuring").add_argument
    add(
        "--iterations",
        type=whole_number(1, LARGEST_COUNT),
        metavar="N",
        help="timed forwards (default: 20; fewer, at least 5, where those of one "
        "row of the sweep or the ladder would take longer than 5 s)",
    )
    add(
        "--warmup",
        type=whole_number(0, LARGEST_COUNT),
        default=WARM_UP,
        metavar="N",
        help="least number of warm-up forwards; more follow until times are steady, at most 100 or "
        "10 s (default: %(default)s)",
    )
    add(
        "--min-seconds",
        type=number(0, LONGEST_S, " of seconds"),
        default=0.0,
        metavar="S",
        help="continue each measurement for at least this long (default: %(default)s)",
    )
    add(
        "--batch-sizes",
        type=batch_sizes(LARGEST_BATCH),
        default=BATCH_SIZES,
        metavar="N,N,...|auto",
        help="batch sizes of the sweep; auto doubles until memory or throughput ends "
        "(default: %(default)s)",
    )
    add(
        "--modes",
        metavar="all|NAME,...",
        help="the speed ladder: PRECISION[-ATTENTION] with a precision of "
        f"{', '.join(PRECISIONS)}, then any of {' '.join(SUFFIXES.values())} in this order; the "
        "first is the main mode (default: one mode, from --dtype, --strict-fp32 and --attention, "
        "and no ladder)",
    )
    add(
        "--profile",
        action="store_true",
        help="at the end, profile a few forwards of the main mode with torch.profiler "
        "(torch_npu.profiler): the operators that take longest, and OUTPUT_DIR/"
        "benchmark_trace.json for ui.perfetto.dev",
    )
    add(
        "--budget",
        type=number(1, LONGEST_S, " of seconds"),
        default=BUDGET_S,
        metavar="S",
        help="seconds for the ladder, shared among its rows; a mode whose single forward takes "
        "more than its share and twice the main mode's is skipped (default: %(default)s)",
    )
    add = parser.add_argument_group("comparing").add_argument
    add(
        "--baseline",
        type=some_path,
        metavar="FILE.json",
        help="an earlier record of the same device, mode and weights to compare with",
    )
    add(
        "--max-regression",
        type=number(0, 1e6, " of percent"),
        metavar="PERCENT",
        help="with --baseline: exit with 1 when something is slower by more than this, and by more "
        f"than the noise of both runs (default: {MAX_REGRESSION_PERCENT:g})",
    )
    return parser


def parse_options(argv: Sequence[str] | None = None) -> BenchmarkOptions:
    """Return the options; dtype and attention are the main mode's.

    Raises:
        KitError: for options that make no sense.
    """
    parsed = make_parser().parse_args(argv)
    if parsed.max_regression is not None and parsed.baseline is None:
        raise KitError("--max-regression needs --baseline: name the record to compare with")
    base = mode_of(parsed.dtype, parsed.attention, strict=parsed.strict_fp32)
    ladder = parsed.modes is not None
    modes = parse_modes(parsed.modes, base) if ladder else (base,)
    world_size = distributed.place().world_size
    refuse_one_device_for_all_ranks(parsed.device, world_size)
    if world_size > 1 and len(modes) > 1:
        raise KitError("--modes: one mode under torchrun, all devices run it; climb with one")
    return frozen(
        BenchmarkOptions,
        parsed,
        modes=modes,
        ladder=ladder,
        named=parsed.modes != "all",
        dtype=modes[0].dtype,
        attention=modes[0].attention,
        # Each mode turns HF32 and TF32 off for itself.
        strict_fp32=parsed.strict_fp32 and not base.strict and not ladder,
        max_regression=MAX_REGRESSION_PERCENT
        if parsed.max_regression is None
        else parsed.max_regression,
    )


def run(options: BenchmarkOptions, log: RunLog) -> Outcome:
    """Measure the model in one mode or all of them; writes no files.

    Raises:
        KitError: where the input, the weights or the device do not allow it.
        KeyboardInterrupt: on Ctrl-C before anything was measured.
    """
    started_at = now()
    from kit.model.images import gather  # Pillow; bad input is answered before torch is imported

    old = baseline.load(options.baseline) if options.baseline else None
    inputs = gather(options, ROOT, log)
    start = time.perf_counter()  # without quick_imports: the phase is what any script pays
    import npu_patch  # before everything that imports torch; the weights are hashed meanwhile
    from kit import environment
    from kit.benchmark import report
    from kit.benchmark.run import Run
    from kit.device import health
    from kit.model.setup import input_info, open_device, report_fallbacks, set_up

    import_ms = (time.perf_counter() - start) * 1e3
    with distributed.joined(distributed.place()) as group:
        patch, device = open_device(options, npu_patch.status(), log, group.place.local_rank)
        with health.watch(device.type == "npu") as fallen:
            setup = set_up(options, inputs, device, log)
            own_gelu = npu_patch.chips_gelu if npu_patch.status().gelu == "asked" else None
            run = Run(options, setup, inputs, import_ms, group, log, own_gelu)
            if old is not None:
                baseline.require_same(options, old, run)
            run.measure()
    report_fallbacks(fallen, log)
    record = BenchmarkRecord(
        status="partial" if run.interrupted else "complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=run.device_info(fallen.names),
        model=setup.model_info,
        input=input_info(setup, inputs, run.input_shape, 1),
        results=baseline.compared(options, old, run.results) if old else run.results,
        warnings=tuple(log.warnings),
    )
    drawn = report.pictures(record, options.lang)

    def with_profile() -> Outcome:
        profile, trace = run.profile()
        results = replace(record.results, profile=profile)
        whole = replace(record, results=results, warnings=tuple(log.warnings))
        both = {**drawn, "benchmark_trace.json": lambda: trace}
        return Outcome(whole, report.profile_lines(profile), {}, both, exit_code(whole))

    afterwards = with_profile if options.profile and not run.interrupted else None
    return Outcome(record, report.lines(record), {}, drawn, exit_code(record), afterwards)


def exit_code(record: BenchmarkRecord) -> int:
    """Return 130 for a run that Ctrl-C ended, 1 for a failed check or a regression, else 0."""
    if record.status == "partial":
        return EXIT_INTERRUPTED
    results, latency = record.results, record.results.latency
    failed = latency is not None and latency.check is not None and latency.check.verdict == "FAIL"
    failed |= any(row.status == "failed" for row in results.throughput)
    failed |= any(row.verdict == "FAIL" for row in results.ladder)
    failed |= results.regression is not None and not results.regression.passed
    return EXIT_FAILED_VERDICT if failed else EXIT_PASSED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code.

    0: done. 1: a check fails, or the run is slower than the baseline. 2: could not run.
    130: Ctrl-C.
    """
    return run_script(parse_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
