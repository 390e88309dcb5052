#!/usr/bin/env python3
"""Run DINOv3 ViT-B/16 on one image: features, latency, a picture of the features.

What is measured: the wall-clock time of one forward after one warm-up forward, the device
synchronized before and after. What comes out: output/inference.json (the record),
output/inference.log (what the console shows) and output/inference_features.png.

    python3 inference.py
    python3 inference.py --image photo.jpg --device npu:1
    python3 inference.py --image folder/ --dtype bf16 --save-features features.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.arguments import shared_parser
from kit.entry import ROOT, Outcome, now, quick_imports, run_script
from kit.output import RunLog


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options.

    Raises:
        KitError: for options that make no sense.
    """
    parser = shared_parser("inference", __doc__ or "")
    parser.add_argument(
        "--save-features",
        type=Path,
        metavar="FILE.safetensors",
        help="keep pooler_output and last_hidden_state of every image in this file",
    )
    arguments = parser.parse_args(argv)
    features: Path | None = arguments.save_features
    if features is not None and not features.parent.is_dir():
        parser.error(f"--save-features {features}: there is no folder {features.parent}; make it")
    return arguments


def run(arguments: argparse.Namespace, log: RunLog) -> Outcome:
    """Compute the features of one image, or of every image in a folder; writes no files.

    Raises:
        KitError: where the input, the weights or the device do not allow it.
    """
    started_at = now()
    from kit.inputs import gather  # Pillow; bad input is answered before torch is imported

    inputs = gather(arguments, ROOT, log)
    with quick_imports():  # the weights are hashed meanwhile
        import npu_patch  # before everything that imports torch
        from kit import environment, fallbacks, workbench
        from kit.inference import features
        from kit.inference.record import InferenceRecord

    patch = workbench.report_patch(npu_patch.status(), log)
    device = workbench.open_device(arguments, patch, log)
    log.info(f"Loading image from: {inputs.first.path}")
    with fallbacks.watch(device.type == "npu") as fallen:
        bench = workbench.set_up(arguments, inputs, device, log)
        found = features.extract(bench, inputs, log, keep_all=arguments.save_features is not None)
    workbench.report_fallbacks(fallen, log)
    record = InferenceRecord(
        status="complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=workbench.device_info(bench, fallen.names),
        model=bench.model_info,
        input=workbench.input_info(bench, inputs, found.input_shape, len(found.results.images)),
        results=found.results,
        warnings=tuple(log.warnings),
    )
    files = {Path("inference_features.png"): found.picture(bench.model_info)}
    if arguments.save_features is not None:
        files[arguments.save_features.absolute()] = found.safetensors(bench.model_info)
    return Outcome(record, features.report(record), files)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code: 0 done, 2 could not run, 130 Ctrl-C."""
    return run_script(parse_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
