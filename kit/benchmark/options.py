"""benchmark.py's own options, checked before anything heavy is imported."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path

from kit import ranks
from kit.arguments import OneLineParser, shared_parser
from kit.benchmark import modes
from kit.errors import KitError

ITERATIONS = 20
WARM_UP = 5
BATCH_SIZES = "1,2,4,8"
MAX_REGRESSION_PERCENT = 10.0
LARGEST_COUNT = 1_000_000  # of samples, which are all kept
LARGEST_BATCH = 65_536
LONGEST_S = 86_400.0


def whole_number(least: int, most: int) -> type[int]:
    """Return an argparse type: a whole number from least to most."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return int(text)

    return convert  # type: ignore[return-value] # argparse calls it, type or function


def number(least: float, most: float, unit: str) -> type[float]:
    """Return an argparse type: a finite number from least to most."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number of {unit} from {least:g} to {most:g}"
            )
        return value

    return convert  # type: ignore[return-value] # the same


def batch_sizes(text: str) -> tuple[int, ...] | None:
    """Return batch sizes in ascending order; None for auto.

    Raises:
        argparse.ArgumentTypeError: for anything but different whole numbers from 1 up.
    """
    if text == "auto":
        return None
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) for part in parts if re.fullmatch(r"\d{1,6}", part)]
    if len(sizes) != len(parts) or not all(1 <= size <= LARGEST_BATCH for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither auto nor batch sizes from 1 to {LARGEST_BATCH} such as "
            f"{BATCH_SIZES}"
        )
    if len(set(sizes)) != len(sizes):
        raise argparse.ArgumentTypeError(f"{text!r} names a batch size twice")
    return tuple(sorted(sizes))


def add_measuring_options(parser: OneLineParser) -> None:
    """Add what says how long, what and in which modes to measure."""
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--iterations",
        type=whole_number(1, LARGEST_COUNT),
        metavar="N",
        help=f"timed forwards (default: {ITERATIONS}; fewer, at least 5, where those of one "
        "row of the sweep or the ladder would take longer than 5 s)",
    )
    measuring.add_argument(
        "--warmup",
        type=whole_number(0, LARGEST_COUNT),
        default=WARM_UP,
        metavar="N",
        help="least warm-up forwards; more follow until the times are steady, at most 100 or "
        "10 s (default: %(default)s)",
    )
    measuring.add_argument(
        "--min-seconds",
        type=number(0, LONGEST_S, "seconds"),
        default=0.0,
        metavar="S",
        help="go on with each measurement until it took this long (default: %(default)s)",
    )
    measuring.add_argument(
        "--batch-sizes",
        type=batch_sizes,
        default=BATCH_SIZES,
        metavar="N,N,...|auto",
        help="batch sizes of the sweep; auto doubles until memory or throughput ends "
        "(default: %(default)s)",
    )
    measuring.add_argument(
        "--modes",
        metavar="all|NAME,...",
        help="the speed ladder: PRECISION[-ATTENTION][-graph] with a precision of "
        f"{', '.join(modes.PRECISIONS)}; the first is the main mode (default: one mode, from "
        "--dtype, --strict-fp32 and --attention, and no ladder)",
    )


def add_comparing_options(parser: OneLineParser) -> None:
    """Add what says which earlier record to compare with, and how much slower is too much."""
    comparing = parser.add_argument_group("comparing")
    comparing.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE.json",
        help="an earlier record of the same device, mode and weights to compare with",
    )
    comparing.add_argument(
        "--max-regression",
        type=number(0, 1e6, "percent"),
        metavar="PERCENT",
        help="with --baseline: exit 1 where something is slower by more than this, and by more "
        f"than the noise of both runs (default: {MAX_REGRESSION_PERCENT:g})",
    )


def parse(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    """Return the options; `modes` is a tuple of Mode, the main one first, `ladder` a bool.

    --dtype and --attention are set to the main mode's. --strict-fp32 is left on only where no
    mode says it: each mode turns HF32 and TF32 off for itself.

    Raises:
        KitError: for options that make no sense.
    """
    parser = shared_parser("benchmark", description)
    add_measuring_options(parser)
    add_comparing_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.max_regression is not None and arguments.baseline is None:
        raise KitError("--max-regression needs --baseline: name the record to compare with")
    if arguments.max_regression is None:
        arguments.max_regression = MAX_REGRESSION_PERCENT
    base = modes.of_options(arguments.dtype, arguments.attention, arguments.strict_fp32)
    arguments.ladder = arguments.modes is not None
    arguments.modes = modes.parse(arguments.modes, base) if arguments.ladder else (base,)
    if ranks.place().world_size > 1:
        refuse_under_torchrun(arguments)
    main = arguments.modes[0]
    arguments.dtype, arguments.attention = main.dtype, main.attention
    arguments.strict_fp32 = arguments.strict_fp32 and not base.strict and not arguments.ladder
    return arguments


def refuse_under_torchrun(arguments: argparse.Namespace) -> None:
    """Check that the options make sense for several ranks.

    Raises:
        KitError: where they name one device for all, or a ladder.
    """
    if ":" in arguments.device:
        raise KitError(
            f"--device {arguments.device} under torchrun: each rank takes the device of its own "
            f"number, use --device {arguments.device.partition(':')[0]}"
        )
    if len(arguments.modes) > 1:
        raise KitError("--modes: one mode under torchrun, all devices run it; climb with one")
