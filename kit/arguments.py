"""The options that inference.py, benchmark.py and accuracy.py share."""

import argparse
import os
import re
from pathlib import Path
from typing import NoReturn

from kit.errors import KitError

DTYPES = ("fp32", "bf16", "fp16")
ATTENTIONS = ("sdpa", "eager")
DOWNLOADS = ("modelscope", "huggingface")
LANGUAGES = ("zh", "en")
DEVICE_PATTERN = re.compile(r"auto|cpu|(npu|cuda)(:\d+)?")
SEED_LIMIT = 2**64


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are a KitError instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the parser's message as one line.

        Raises:
            KitError: always.
        """
        raise KitError(f"{message} (see {self.prog} --help)")


def device_name(text: str) -> str:
    """Return text where it is auto, npu, npu:N, cuda, cuda:N or cpu.

    Raises:
        argparse.ArgumentTypeError: for any other text.
    """
    if not DEVICE_PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"unknown device {text!r}: use auto, npu, npu:N, cuda, cuda:N or cpu"
        )
    return text


def input_size(text: str) -> int:
    """Return text as a side length in pixels, at least 1; the model's patch size is checked later.

    Raises:
        argparse.ArgumentTypeError: for anything but a positive whole number.
    """
    if not re.fullmatch(r"\d{1,5}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"size {text!r} is not a whole number of pixels from 1 to 99999: try 224"
        )
    return int(text)


def seed(text: str) -> int:
    """Return text as a seed that torch accepts, 0 to 2**64 - 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not re.fullmatch(r"\d+", text) or int(text) >= SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"seed {text!r} is not a whole number from 0 to 2**64-1")
    return int(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add which weights, and how they compute."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="folder with config.json and *.safetensors (default: $DINOV3_WEIGHTS, "
        "/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m, "
        "weights/dinov3-vitb16-pretrain-lvd1689m, else seeded random weights)",
    )
    model.add_argument(
        "--download",
        choices=DOWNLOADS,
        help="fetch the weights first, from this hub, into --weights or weights/",
    )
    model.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="compute type (default: %(default)s)"
    )
    model.add_argument(
        "--attention",
        choices=ATTENTIONS,
        default="sdpa",
        help="attention implementation (default: %(default)s)",
    )
    model.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="seed of the random weights (default: %(default)s)",
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add what goes into the model."""
    images = parser.add_argument_group("image")
    images.add_argument(
        "--image",
        type=Path,
        metavar="PATH",
        help="image file or folder of images (default: data/val2017/000000000139.jpg, "
        "else the sample in data/)",
    )
    images.add_argument(
        "--size",
        type=input_size,
        metavar="PIXELS",
        help="side of the model's square input "
        "(default: as preprocessor_config.json says, 224 for DINOv3)",
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add where it computes, and how exactly."""
    device = parser.add_argument_group("device")
    device.add_argument(
        "--device",
        type=device_name,
        default="auto",
        metavar="auto|npu[:N]|cuda[:N]|cpu",
        help="auto takes the NPU, else the GPU, else the CPU with a warning (default: %(default)s)",
    )
    device.add_argument(
        "--strict-fp32",
        action="store_true",
        help="turn HF32 and TF32 off for matrix products and convolutions",
    )


def shared_parser(script: str, description: str) -> OneLineParser:
    """Return a parser that knows the options all three scripts share.

    Args:
        script: the script's name without ".py"; it names the output files.
        description: the first lines of its --help.
    """
    parser = OneLineParser(
        prog=f"{script}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(script=script)
    add_model_options(parser)
    add_image_options(parser)
    add_device_options(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="where the record, the log and the pictures go (default: %(default)s)",
    )
    report = parser.add_argument_group("report")
    add_language(report)
    report.add_argument(
        "--no-report",
        action="store_true",
        help="leave report.html and report.md in the output folder as they are",
    )
    return parser


def add_language(group: argparse._ActionsContainer) -> None:
    """Add --lang: zh by default and on any host, as the published reports are in Chinese."""
    group.add_argument(
        "--lang",
        choices=LANGUAGES,
        default="zh",
        help="language of the report (default: %(default)s)",
    )


def path_from_environment(name: str) -> Path | None:
    """Return the environment variable `name` as a path, None where it is unset or empty."""
    value = os.environ.get(name)
    return Path(value) if value else None
