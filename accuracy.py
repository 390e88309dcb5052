#!/usr/bin/env python3
"""Hold the device's features against the CPU's: a verdict that says what is wrong, and where.

What is measured: pooler_output and last_hidden_state against fp32 on the CPU, and every block
against fp64 beside what the declared arithmetic (HF32, TF32, bf16, fp16) explains. Without an
accelerator the CPU's fp32 is held against fp64, which is a self-check and never a pass. What
comes out: output/accuracy.json, output/accuracy.log and three pictures.

    python3 accuracy.py
    python3 accuracy.py --image data/val2017
    torchrun --nproc-per-node 2 accuracy.py --image data/val2017
    python3 accuracy.py --explain
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kit.arguments import shared_parser
from kit.entry import ROOT, Outcome, now, run_script
from kit.output import RunLog

BUDGET_FACTOR = 10.0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options.

    Raises:
        KitError: for options that make no sense.
    """
    parser = shared_parser("accuracy", __doc__ or "")
    group = parser.add_argument_group("verdict")
    group.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 too where an error is inside the limits and not explained",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="run again with known causes switched one by one and say what each removes",
    )
    group.add_argument(
        "--budget-factor",
        type=float,
        default=BUDGET_FACTOR,
        metavar="TIMES",
        help="an error is explained up to this many times what the declared arithmetic makes "
        "(default: %(default)g)",
    )
    arguments = parser.parse_args(argv)
    if not arguments.budget_factor >= 1:
        parser.error(f"--budget-factor {arguments.budget_factor:g}: give a number of at least 1")
    return arguments


def run(arguments: argparse.Namespace, log: RunLog) -> Outcome:
    """Compare the device with the CPU on one image, or on a folder of them; writes no result.

    Raises:
        KitError: where the input, the weights or the device do not allow it.
    """
    started_at = now()
    from kit.inputs import gather  # Pillow; bad input is answered before torch is imported

    inputs = gather(arguments, ROOT, log)
    import npu_patch  # before everything that imports torch; the weights are hashed meanwhile
    from kit import environment, fallbacks, workbench
    from kit.accuracy import session
    from kit.accuracy.record import AccuracyRecord
    from kit.accuracy.report import report

    patch = workbench.report_patch(npu_patch.status(), log)
    device = workbench.open_device(arguments, patch, log)
    log.info(f"Loading image from: {inputs.first.path}")
    with fallbacks.watch(device.type == "npu") as fallen:
        bench = workbench.set_up(arguments, inputs, device, log)
        done = session.compare(arguments, bench, inputs, log)
    workbench.report_fallbacks(fallen, log)
    record = AccuracyRecord(
        status="complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=workbench.device_info(bench, fallen.names),
        model=bench.model_info,
        input=workbench.input_info(bench, inputs, done.input_shape, done.images),
        results=done.results,
        warnings=tuple(log.warnings),
    )
    return Outcome(record, report(record), done.pictures(), done.exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code.

    0: PASS or SELF-CHECK. 1: FAIL, and under --strict an error that is not explained. 2: could
    not run. 130: Ctrl-C.
    """
    return run_script(parse_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
