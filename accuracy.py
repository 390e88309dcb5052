#!/usr/bin/env python3
"""Compare the device's features with the CPU's: a verdict that says what is wrong, and where.

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

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kit import distributed
from kit.options import (
    BUDGET_FACTOR,
    AccuracyOptions,
    OneLineParser,
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
from kit.run import EXIT_INTERRUPTED, ROOT, Draw, Outcome, now, quick_imports, run_script


def make_parser() -> OneLineParser:
    """Return the parser of this script's options."""
    parser = shared_parser("accuracy", __doc__ or "")
    add = parser.add_argument_group("verdict").add_argument
    add(
        "--strict",
        action="store_true",
        help="exit with 1 also when an error within the limits is unexplained",
    )
    add(
        "--explain",
        action="store_true",
        help="switch known causes one by one, run again, and say what each removes",
    )
    add(
        "--budget-factor",
        type=number(1, 1e9, ""),
        default=BUDGET_FACTOR,
        metavar="TIMES",
        help="an error is explained up to this many times the error that the declared arithmetic "
        "makes (default: %(default)g)",
    )
    folder = parser.add_argument_group("folder of images")
    add = folder.add_argument
    add(
        "--batch-size",
        type=whole_number(1, 4096),
        default=8,
        metavar="N",
        help="images per batch on the device (default: %(default)s)",
    )
    add(
        "--workers",
        type=whole_number(1, 256),
        metavar="N",
        help="threads that decode images (default: the cores, 4 at most)",
    )
    add = folder.add_mutually_exclusive_group().add_argument
    add(
        "--references",
        type=some_path,
        metavar="DIR",
        help="where CPU references are kept for the next run (default: OUTPUT_DIR/references)",
    )
    add("--no-references", action="store_true", help="keep no CPU references on the disk")
    add = parser.add_argument_group("more than one forward").add_argument
    add(
        "--coverage",
        action="store_true",
        help="compare many batch sizes (up to --batch-size), input sizes and --modes with the CPU, "
        "on different images; without it a few",
    )
    add(
        "--modes",
        metavar="all|NAMES",
        help="modes of the coverage, as benchmark.py has them (default: the run's own)",
    )
    add(
        "--soak",
        type=number(0.01, 1e5, " of minutes"),
        metavar="MINUTES",
        help="compute the same inputs again and again, in changing batch sizes, for this long, and "
        "compare every result's bits; Ctrl-C keeps what there is",
    )
    add(
        "--soak-forwards",
        type=whole_number(1, 10**9),
        metavar="N",
        help="the same for N forwards, or until --soak ends",
    )
    add = parser.add_argument_group("saved features").add_argument
    add(
        "--features",
        type=some_path,
        metavar="FILE",
        help="judge the features that a run has saved (OUTPUT_DIR/accuracy_features.safetensors) "
        "by this CPU instead of running a device, into accuracy_review.json",
    )
    add(
        "--against",
        type=some_path,
        metavar="FILE",
        help="also compare them with another device's features of the same weights and images",
    )
    return parser


def parse_options(argv: Sequence[str] | None = None) -> AccuracyOptions:
    """Return the options; KitError for those that make no sense."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    refuse_one_device_for_all_ranks(parsed.device, distributed.place().world_size)
    if parsed.references is not None and parsed.references.is_file():
        parser.error(f"--references {parsed.references} is a file: give a folder")
    default = None if parsed.no_references else parsed.output_dir / "references"
    changes: dict[str, object] = {"references": parsed.references or default}
    more = parsed.coverage or parsed.soak or parsed.soak_forwards
    if more and distributed.place().world_size > 1:
        parser.error("--coverage and --soak look at one device: use --device npu:N, not torchrun")
    if parsed.features is not None:
        if more or parsed.explain or parsed.device not in ("auto", "cpu"):
            parser.error(
                "--features runs no device: leave --device, --explain, --coverage and --soak out"
            )
        if distributed.place().world_size > 1:
            parser.error("--features runs in one process: start it without torchrun")
        # The device's own record and report stay as they are.
        changes |= {"script": "accuracy_review", "device": "cpu", "dtype": "fp32"}
        changes |= {"no_report": True, "strict_fp32": False}
    elif parsed.against is not None:
        parser.error("--against compares saved features: give the device's own by --features")
    if parsed.modes is not None and not parsed.coverage:
        parser.error("--modes are those of the coverage: give --coverage too")
    base = mode_of(parsed.dtype, parsed.attention, strict=parsed.strict_fp32)
    modes = () if parsed.modes is None else parse_modes(parsed.modes, base)
    ladders = [mode for mode in modes if mode.speed_only or mode.chip_gelu]
    if parsed.modes != "all" and ladders:
        parser.error(
            f"--modes: {ladders[0].name} is a mode of benchmark.py's ladder alone: leave it out"
        )
    changes["modes"] = tuple(mode for mode in modes if mode not in ladders)
    return frozen(AccuracyOptions, parsed, **changes)


def run(options: AccuracyOptions, log: RunLog) -> Outcome:
    """Compare the device with the CPU on one image, or a folder's; KitError where it cannot."""
    started_at = now()
    from kit.model.images import gather  # Pillow; bad input is answered before torch is imported

    inputs = gather(options, ROOT, log)
    with quick_imports():  # the weights are hashed meanwhile
        import npu_patch  # before everything that imports torch
        from kit import environment
        from kit.accuracy import evidence
        from kit.accuracy.measure import compare, keep_freed_memory
        from kit.accuracy.report import pictures, report
        from kit.accuracy.verdict import exit_code
        from kit.device import health
        from kit.model.setup import device_info, input_info, open_device, report_fallbacks, set_up
        from kit.records import AccuracyRecord

    keep_freed_memory()
    with distributed.joined(distributed.place()) as group:
        distributed.share_cores(group.place)
        patch, device = open_device(options, npu_patch.status(), log, group.place.local_rank)
        log.info(f"Loading image from: {inputs.first.path}")
        own_gelu = npu_patch.chips_gelu if npu_patch.status().gelu == "asked" else None
        with health.watch(device.type == "npu") as fallen:
            setup = set_up(options, inputs, device, log)
            files: dict[Path, bytes] = {}
            drawn: Mapping[str, Draw] = {}
            if options.features is not None:
                results, shape = evidence.review(options, setup, inputs, log)
            else:
                results, shape, found = compare(options, setup, inputs, group, log, own_gelu)
                if found is not None:  # the leading rank, which writes
                    setup = found.setup
                    files = {options.output_dir / evidence.FILE: found.features}
                    drawn = pictures(found, options.lang)
    report_fallbacks(fallen, log)
    images = 1 if results.folder is None else results.folder.images
    stopped = results.soak is not None and results.soak.end == "interrupted"
    record = AccuracyRecord(
        status="partial" if stopped else "complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=device_info(setup, fallen.names),
        model=setup.model_info,
        input=input_info(setup, inputs, shape, images),
        results=results,
        warnings=tuple(log.warnings),
    )
    code = EXIT_INTERRUPTED if stopped else exit_code(results, strict=options.strict)
    return Outcome(record, report(record), files, drawn, code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code.

    0: PASS or SELF-CHECK. 1: FAIL, and under --strict an error that is not explained. 2: could
    not run. 130: Ctrl-C.
    """
    return run_script(parse_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
