#!/usr/bin/env python3
"""Run DINOv3 ViT-B/16 on one image: features, latency, a picture of the features.

What is measured: the wall-clock time of a forward after one warm-up forward, the device
synchronized before and after; the median of as many forwards as fit into a second. What comes out:
output/inference.json (the record), output/inference.log (what the console shows) and
output/inference_features.png.

    python3 inference.py
    python3 inference.py --image photo.jpg --device npu:1
    python3 inference.py --image folder/ --dtype bf16 --save-features features.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kit.errors import KitError
from kit.options import InferenceOptions, OneLineParser, frozen, shared_parser, some_path
from kit.output import RunLog, require_writable_file
from kit.run import (
    EXIT_FAILED_VERDICT,
    EXIT_PASSED,
    ROOT,
    Outcome,
    now,
    quick_imports,
    run_script,
)


def make_parser() -> OneLineParser:
    """Return the parser of this script's options."""
    parser = shared_parser("inference", __doc__ or "")
    parser.add_argument(
        "--save-features",
        type=some_path,
        metavar="FILE.safetensors",
        help="save pooler_output and last_hidden_state of every image to this file",
    )
    return parser


def parse_options(argv: Sequence[str] | None = None) -> InferenceOptions:
    """Return the options; KitError for those that make no sense."""
    options = frozen(InferenceOptions, make_parser().parse_args(argv))
    if options.save_features and options.save_features.suffix != ".safetensors":
        # Not one of the kit's own results then, which it would overwrite.
        raise KitError(f"--save-features {options.save_features}: give a name in .safetensors")
    return options


def run(options: InferenceOptions, log: RunLog) -> Outcome:
    """Compute the features of one image, or of a folder's; KitError where that cannot be done."""
    started_at = now()
    from kit.model.images import gather  # Pillow; bad input is answered before torch is imported

    if options.save_features is not None:
        require_writable_file(options.save_features)
    inputs = gather(options, ROOT, log)
    with quick_imports():  # the weights are hashed meanwhile
        import npu_patch  # before everything that imports torch
        from kit import environment
        from kit.device import health
        from kit.inference import features
        from kit.inference.report import report
        from kit.model.setup import (
            device_info,
            input_info,
            open_device,
            report_fallbacks,
            set_up,
            with_arithmetic,
        )
        from kit.records import InferenceRecord

    patch, device = open_device(options, npu_patch.status(), log)
    log.info(f"Loading image from: {inputs.first.path}")
    with health.watch(device.type == "npu") as fallen:
        setup = set_up(options, inputs, device, log)
        found = features.extract(setup, inputs, log, keep_all=options.save_features is not None)
        setup = with_arithmetic(setup, log)
    report_fallbacks(fallen, log)
    record = InferenceRecord(
        status="complete",
        started_at=started_at,
        environment=environment.capture(ROOT),
        patch=patch,
        device=device_info(setup, fallen.names),
        model=setup.model_info,
        input=input_info(setup, inputs, found.input_shape, len(found.results.images)),
        results=found.results,
        warnings=tuple(log.warnings),
    )
    failed = bool(found.results.failures)
    files = {}
    if options.save_features is not None and not failed:
        files[options.save_features] = found.safetensors(setup.model_info)
    pictures = {"inference_features.png": lambda: found.picture(setup, options.lang)}
    code = EXIT_FAILED_VERDICT if failed else EXIT_PASSED
    return Outcome(record, report(record), files, pictures, code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit code.

    0: done. 1: forwards of the same input differ beyond the limits. 2: could not run. 130: Ctrl-C.
    """
    return run_script(parse_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
