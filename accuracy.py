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
from pathlib import Path

from kit import ranks
from kit.arguments import OneLineParser, shared_parser
from kit.entry import ROOT, Outcome, now, quick_imports, run_script
from kit.output import RunLog
from kit.progress import Progress

BUDGET_FACTOR = 10.0
BATCH_SIZE = 8


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options.

    Raises:
        KitError: for options that make no sense.
    """
    parser = shared_parser("accuracy", __doc__ or "")
    add_verdict_options(parser.add_argument_group("verdict"))
    add_folder_options(parser.add_argument_group("folder of images"))
    return checked(parser, parser.parse_args(argv))


def add_verdict_options(group: argparse._ArgumentGroup) -> None:
    """Add what decides the verdict and the exit code."""
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


def add_folder_options(group: argparse._ArgumentGroup) -> None:
    """Add what a run over a folder takes."""
    group.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help="images that the device computes at once (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images, 0 for a thread (default: by the number of images)",
    )
    group.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="where CPU references are kept for the next run (default: OUTPUT_DIR/references)",
    )
    group.add_argument(
        "--no-references", action="store_true", help="keep no CPU references on the disk"
    )
    group.add_argument(
        "--restart", action="store_true", help="do not take over what a stopped run finished"
    )


def checked(parser: OneLineParser, arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the options after a look at their values.

    Raises:
        KitError: for one that makes no sense.
    """
    if not arguments.budget_factor >= 1:  # NaN too
        parser.error(f"--budget-factor {arguments.budget_factor:g}: give a number of at least 1")
    if not 1 <= arguments.batch_size <= 4096:
        parser.error(f"--batch-size {arguments.batch_size}: give a number from 1 to 4096")
    if arguments.workers is not None and not 0 <= arguments.workers <= 256:
        parser.error(f"--workers {arguments.workers}: give a number from 0 to 256")
    if arguments.no_references and arguments.references is not None:
        parser.error("--references and --no-references exclude each other: give one")
    if arguments.references is not None and arguments.references.is_file():
        parser.error(f"--references {arguments.references} is a file: give a folder")
    if arguments.references is None and not arguments.no_references:
        arguments.references = arguments.output_dir / "references"
    return arguments


def run(arguments: argparse.Namespace, log: RunLog) -> Outcome:
    """Compare the device with the CPU on one image, or on a folder of them; writes no result.

    Raises:
        KitError: where the input, the weights or the device do not allow it.
    """
    started_at = now()
    from kit.inputs import gather  # Pillow; bad input is answered before torch is imported

    inputs = gather(arguments, ROOT, log)
    with quick_imports():  # the weights are hashed meanwhile
        import npu_patch  # before everything that imports torch
        from kit import environment, fallbacks, workbench
        from kit.accuracy.record import AccuracyRecord
        from kit.accuracy.report import report
        from kit.accuracy.session import Session
        from kit.host_memory import keep_freed_memory

    keep_freed_memory()
    with ranks.joined(ranks.place()) as group:
        patch = workbench.report_patch(npu_patch.status(), log)
        device = workbench.open_device(arguments, patch, log, group.place.local_rank)
        log.info(f"Loading image from: {inputs.first.path}")
        progress = Progress(silent=not group.place.leads)
        with fallbacks.watch(device.type == "npu") as fallen:
            bench = workbench.set_up(arguments, inputs, device, log)
            done = Session(arguments, bench, group, log).compare(inputs, progress)
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
