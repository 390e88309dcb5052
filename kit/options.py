"""The options of the three scripts: one frozen object a script, and the parser that they share.

Standard library only, so that wrong options are refused before torch is imported.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeVar, cast, get_args

from kit.errors import KitError
from kit.language import LANGUAGES, default_language

Attention = Literal["sdpa", "eager"]
Precision = Literal["fp32", "strict-fp32", "bf16", "fp16"]
DTYPES = ("fp32", "bf16", "fp16")
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Hub = Literal["modelscope", "huggingface"]
DOWNLOADS: tuple[Hub, ...] = get_args(Hub)
DEVICE_PATTERN = re.compile(r"auto|cpu|(npu|cuda)(:\d{1,4})?")
LARGEST_SIZE = 8_192  # pixels; an fp32 input of this side takes 0.8 GB
LARGEST_SEED = 2**64 - 1
DEFAULT = "(default: %(default)s)"  # ends the help of an option that has one
BUDGET_FACTOR = 10.0  # an error counts as explained up to this many times the expected error
# What may follow precision and attention in a mode's name, in this order, by its field.
SUFFIXES = {
    "channels_last": "-channels-last",
    "fast_math": "-fast-math",
    "compiled": "-compile",
    "graph": "-graph",
    "chip_gelu": "-chip-gelu",
}
MODE_NAME = re.compile(
    rf"(?P<precision>{'|'.join(PRECISIONS)})(-(?P<attention>{'|'.join(ATTENTIONS)}))?"
    + "".join(f"(?P<{field}>{suffix})?" for field, suffix in SUFFIXES.items())
)


@dataclass(frozen=True)
class Mode:
    """One way to run the model."""

    # fp32 leaves HF32 and TF32 as the device has them by default, strict-fp32 turns them off.
    precision: Precision
    attention: Attention
    graph: bool = False  # captured once and replayed, instead of operator by operator
    chip_gelu: bool = False  # the chip's own form of GELU, which npu_patch replaces otherwise
    channels_last: bool = False  # images and convolution weights with the channels innermost
    compiled: bool = False  # by torch.compile
    fast_math: bool = False  # oneDNN may round the inputs of fp32 products to bf16

    @property
    def name(self) -> str:
        """As options and reports have it, for example bf16-sdpa-graph."""
        name = f"{self.precision}-{self.attention}"
        return name + "".join(end for field, end in SUFFIXES.items() if getattr(self, field))

    @property
    def speed_only(self) -> bool:
        """Whether it is a rung of benchmark.py's ladder that accuracy.py does not cover."""
        return self.channels_last or self.compiled or self.fast_math

    @property
    def dtype(self) -> str:
        """fp32, bf16 or fp16, as --dtype has it."""
        return "fp32" if self.strict else self.precision

    @property
    def strict(self) -> bool:
        """Whether HF32 and TF32 are turned off."""
        return self.precision == "strict-fp32"


@dataclass(frozen=True)
class Options:
    """What all three scripts are told, checked; --help says what each option does.

    None stands for the default: weights and image as they are found, the preprocessor's size.
    """

    script: str
    weights: Path | None
    download: str | None
    identify: str | None
    dtype: str
    attention: Attention
    seed: int
    image: Path | None
    size: int | None
    device: str
    strict_fp32: bool
    output_dir: Path
    lang: str
    no_report: bool


@dataclass(frozen=True)
class InferenceOptions(Options):
    """What inference.py is told."""

    save_features: Path | None  # for every image's features


@dataclass(frozen=True)
class BenchmarkOptions(Options):
    """What benchmark.py is told; dtype and attention are the main mode's, the first of `modes`.

    None: iterations as many as a row allows, batch_sizes doubled until nothing is gained. `ladder`:
    whether modes were asked for and are compared, in `budget` s; `named`: each by its name.
    """

    iterations: int | None
    warmup: int
    min_seconds: float
    batch_sizes: tuple[int, ...] | None
    modes: tuple[Mode, ...]
    ladder: bool
    named: bool
    profile: bool
    budget: float
    baseline: Path | None
    max_regression: float


@dataclass(frozen=True)
class AccuracyOptions(Options):
    """What accuracy.py is told.

    None: workers as many as there are cores, 4 at most; references are kept nowhere; a soak without
    that limit. No modes: the coverage has the run's own.
    """

    strict: bool
    explain: bool
    budget_factor: float
    batch_size: int
    workers: int | None
    references: Path | None
    features: Path | None
    against: Path | None
    coverage: bool
    modes: tuple[Mode, ...]
    soak: float | None
    soak_forwards: int | None


AnyOptions = TypeVar("AnyOptions", bound=Options)


def frozen(kind: type[AnyOptions], parsed: argparse.Namespace, **changes: object) -> AnyOptions:
    """Return parsed arguments as a script's options, with changes in the place of parsed ones."""
    values = {**vars(parsed), **changes}
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


# ---- Modes ---------------------------------------------------------------------------------------


def mode_of(dtype: str, attention: Attention, *, strict: bool) -> Mode:
    """Return the mode that --dtype, --attention and --strict-fp32 ask for."""
    precision = "strict-fp32" if strict and dtype == "fp32" else dtype
    return Mode(cast("Precision", precision), attention)


def parse_modes(text: str, base: Mode) -> tuple[Mode, ...]:
    """Return the modes that --modes asks for, each once; a KitError for a name that is none.

    A name without an attention takes that of `base`, the mode of the other options; `all` begins
    with it and ends with what is compiled, which takes longest.
    """
    if text != "all":
        return tuple(dict.fromkeys(_parse_mode(name.strip(), base) for name in text.split(",")))
    attentions = sorted(ATTENTIONS, key=lambda attention: attention != base.attention)
    every = [
        Mode(precision, attention, graph)
        for precision in PRECISIONS
        for attention in attentions
        for graph in (False, True)
    ]
    chips = (replace(base, graph=graph, chip_gelu=True) for graph in (False, True))
    plain = [mode_of(dtype, base.attention, strict=False) for dtype in DTYPES]
    rungs = [
        replace(plain[0], fast_math=True),
        *(replace(mode, channels_last=True) for mode in plain),
        *(replace(mode, compiled=True) for mode in plain),
    ]
    return tuple(dict.fromkeys((base, *every, *chips, *rungs)))


def _parse_mode(name: str, base: Mode) -> Mode:
    match = MODE_NAME.fullmatch(name)
    if not match:
        raise KitError(
            f"--modes: {name!r} is no mode: use all, or names such as fp32, bf16-sdpa, "
            "strict-fp32-eager, fp16-sdpa-graph with commas between them"
        )
    attention = cast("Attention", match["attention"] or base.attention)
    ends = {field: bool(match[field]) for field in SUFFIXES}
    return Mode(cast("Precision", match["precision"]), attention, **ends)


# ---- Types of arguments --------------------------------------------------------------------------


def device_name(text: str) -> str:
    """Return text where it is auto, npu, npu:N, cuda, cuda:N or cpu; an argparse type."""
    if not DEVICE_PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"unknown device {text[:40]!r}: use auto, npu, npu:N, cuda, cuda:N or cpu"
        )
    return text


def whole_number(least: int, most: int, unit: str = "") -> Callable[[str], int]:
    """Return an argparse type: a whole number from least to most, in decimal digits."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a whole number{unit} from {least} to {most}"
            )
        return int(text)

    return convert


def number(least: float, most: float, unit: str) -> Callable[[str], float]:
    """Return an argparse type: a finite number from least to most."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not a number{unit} from {least:g} to {most:g}"
            )
        return value

    return convert


def some_path(text: str) -> Path:
    """Return text as a path; an argparse type. Path takes an empty one for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: give a file or a folder")
    return Path(text)


def batch_sizes(largest: int) -> Callable[[str], tuple[int, ...] | None]:
    """Return an argparse type: `auto` (None), or different batch sizes, in ascending order."""

    def convert(text: str) -> tuple[int, ...] | None:
        if text == "auto":
            return None
        parts = [part.strip() for part in text.split(",")]
        sizes = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,6}", part)]
        if len(sizes) != len(parts) or not all(1 <= size <= largest for size in sizes):
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is neither auto nor batch sizes from 1 to {largest} such as 1,2,4,8"
            )
        if len(set(sizes)) != len(sizes):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} names a batch size twice")
        return tuple(sorted(sizes))

    return convert


# ---- The parser that the scripts share -----------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are a KitError instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the parser's message as a KitError."""
        raise KitError(f"{message} (see {self.prog} --help)")

    def names(self) -> set[str]:
        """Return the options that it knows, --help aside."""
        return {name for name in self._option_string_actions if name not in ("-h", "--help")}

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        """Refuse `--size=--`, of which argparse makes an empty list, past the option's type."""
        if arg_strings == ["--"] and action.option_strings:
            self.error(f"argument {action.option_strings[0]}: -- is no value")
        return super()._get_values(action, arg_strings)


def shared_parser(script: str, description: str) -> OneLineParser:
    """Return a parser of the options that all three scripts share; `script` is without .py."""
    parser = OneLineParser(
        prog=f"{script}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(script=script)
    add = parser.add_argument_group("model").add_argument
    add(
        "--weights",
        type=some_path,
        metavar="DIR",
        help="folder with config.json and *.safetensors (default: $DINOV3_WEIGHTS, "
        "/opt/atomgit/weight/dinov3-vitb16-pretrain-lvd1689m, "
        "weights/dinov3-vitb16-pretrain-lvd1689m, else seeded random weights)",
    )
    add(
        "--download",
        choices=DOWNLOADS,
        help="download the weights from this hub first, into --weights or weights/",
    )
    add(
        "--identify",
        choices=DOWNLOADS,
        help="check by SHA-256 whether this hub publishes the weights that are there, and record "
        "it beside them; nothing is downloaded",
    )
    add("--dtype", choices=DTYPES, default="fp32", help=f"compute type {DEFAULT}")
    words = f"attention implementation {DEFAULT}"
    add("--attention", choices=ATTENTIONS, default="sdpa", help=words)
    add(
        "--seed",
        type=whole_number(0, LARGEST_SEED),
        default=0,
        metavar="N",
        help=f"seed of the random weights {DEFAULT}",
    )
    add = parser.add_argument_group("image").add_argument
    add(
        "--image",
        type=some_path,
        metavar="PATH",
        help="image file or folder of images (default: data/val2017/000000000139.jpg, "
        "else the sample in data/)",
    )
    add(
        "--size",
        type=whole_number(1, LARGEST_SIZE, " of pixels"),
        metavar="PIXELS",
        help="side of the model's square input "
        "(default: as preprocessor_config.json says, 224 for DINOv3)",
    )
    add = parser.add_argument_group("device").add_argument
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="auto|npu[:N]|cuda[:N]|cpu",
        help=f"auto takes the NPU, else the GPU, else the CPU with a warning {DEFAULT}",
    )
    add(
        "--strict-fp32",
        action="store_true",
        help="turn HF32 and TF32 off for matrix products and convolutions",
    )
    parser.add_argument(
        "--output-dir",
        type=some_path,
        default=Path("output"),
        metavar="DIR",
        help=f"where the record, the log and the pictures go {DEFAULT}",
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
    """Add --lang, by default the locale's language, and Chinese where that names none."""
    group.add_argument(
        "--lang",
        choices=LANGUAGES,
        default=default_language(os.environ),
        help="language of report, card and pictures (default: the locale's, here %(default)s)",
    )


def script_words(script: str, *, emulated: bool) -> list[str]:
    """Return what starts a script, 'benchmark' or another, in a clone after python3 or torchrun."""
    return [*(["tests/fake_cann/run.py"] if emulated else []), f"{script}.py"]


def refuse_one_device_for_all_ranks(device: str, world_size: int) -> None:
    """Raise a KitError where --device puts all of torchrun's ranks on one device."""
    kind, _, index = device.partition(":")
    if index and world_size > 1:
        raise KitError(
            f"--device {device} under torchrun: each rank takes the device of its own number, "
            f"use --device {kind}"
        )


Parse = Callable[[Sequence[str] | None], AnyOptions]
