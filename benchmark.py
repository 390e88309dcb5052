#!/usr/bin/env python3
"""Measure DINOv3 ViT-B/16: latency, throughput, memory, and the fastest way that is still right.

What is measured: synchronized forwards of one image after a warm-up that is tested for
steadiness, by the host's clock and the device's, every sample kept; then a sweep over batch
sizes. With --modes all the same for every precision, attention and graph capture, each with its
error against the fp32 CPU reference. What comes out: output/benchmark.json (the record),
output/benchmark.log (what the console shows) and output/benchmark.png.

    python3 benchmark.py
    python3 benchmark.py --modes all
    torchrun --nproc-per-node 2 benchmark.py
    python3 benchmark.py --baseline old.json --max-regression 10
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from kit import ranks
from kit.benchmark import baseline, options
from kit.benchmark.record import BenchmarkRecord
from kit.entry import (
    EXIT_FAILED_VERDICT,
    EXIT_INTERRUPTED,
    EXIT_PASSED,
    ROOT,
    Outcome,
    now,
    run_script,
)
from kit.output import RunLog
from kit.progress import Progress


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options.

    Raises:
        KitError: for options that make no sense.
    """
    return options.parse(argv, __doc__ or "")


def run(arguments: argparse.Namespace, log: RunLog) -> Outcome:
    """Measure the model in one mode or all of them; writes no files.

    Raises:
        KitError: where the input, the weights or the device do not allow it.
        KeyboardInterrupt: on Ctrl-C before anything was measured.
    """
    started_at = now()
    from kit.inputs import gather  # Pillow; bad input is answered before torch is imported

    old = baseline.load(arguments.baseline) if arguments.baseline else None
    inputs = gather(arguments, ROOT, log)
    start = time.perf_counter()  # without quick_imports: the phase is what any script pays
    import npu_patch  # before everything that imports torch; the weights are hashed meanwhile
    from kit import environment, fallbacks, workbench
    from kit.benchmark import pictures, report
    from kit.benchmark.course import Course
    from kit.benchmark.found import begin

    import_ms = (time.perf_counter() - start) * 1e3
    mode = arguments.modes[0].name
    with ranks.joined(ranks.place()) as group:
        patch = workbench.report_patch(npu_patch.status(), log)
        device = workbench.open_device(arguments, patch, log, group.place.local_rank)
        progress = Progress(silent=not group.place.leads)
        with fallbacks.watch(device.type == "npu") as fallen:
            bench, found = begin(arguments, inputs, device, import_ms, log)
            course = Course(arguments, bench, inputs, group, progress, log, found)
            pixels = course.preprocess()
            if old is not None:
                old.require_same(bench, mode, group.size, pixels.shape)
            course.run(pixels)
    workbench.report_fallbacks(fallen, log)
    regression = old.compare(found, arguments.max_regression) if old else None
    record = BenchmarkRecord(
        status="partial" if found.interrupted else "complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=found.device_info(fallen.names, bench.health.passed),
        model=bench.model_info,
        input=workbench.input_info(bench, inputs, found.input_shape, 1),
        results=found.results(mode, regression),
        warnings=tuple(log.warnings),
    )
    files = pictures.files(record) if group.place.leads else {}
    return Outcome(record, report.lines(record), files, exit_code(record))


def exit_code(record: BenchmarkRecord) -> int:
    """Return 130 for a run that Ctrl-C ended, 1 for one slower than the baseline, else 0."""
    if record.status == "partial":
        return EXIT_INTERRUPTED
    regression = record.results.regression
    return EXIT_PASSED if regression is None or regression.passed else EXIT_FAILED_VERDICT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code: 0 done, 1 slower, 2 could not run, 130 Ctrl-C."""
    return run_script(parse_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
