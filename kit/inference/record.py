"""The record of inference.py."""

from dataclasses import dataclass
from typing import Literal

from kit.records import Record, described


@dataclass(frozen=True)
class TensorSummary:
    """One output tensor in brief."""

    shape: tuple[int, ...] = described("Shape of the tensor.")
    dtype: str = described("Type of its elements, as torch names it.")
    device: str = described("Device that holds it, as torch names it.")
    first_values: tuple[float, ...] = described("Its first five values in memory order.")
    finite: bool = described("Whether every value is finite; a run with others ends as an error.")


@dataclass(frozen=True)
class ImageResult:
    """The result for one image of a folder."""

    image: str = described("Path of the image.")
    sha256: str = described("Of the image file's bytes.")
    width: int = described("Width of the upright image in pixels.")
    height: int = described("Height of the upright image in pixels.")
    latency_ms: float = described("Wall-clock time of one synchronized forward, in ms.")
    first_values: tuple[float, ...] = described("First five values of its pooler_output.")


@dataclass(frozen=True)
class InferenceResults:
    """What inference.py found, for the first image; `images` has every one."""

    latency_ms: float = described(
        "Wall-clock time of one synchronized forward after one warm-up forward, in ms."
    )
    pooler_output: TensorSummary = described("The pooled feature: batch, width.")
    last_hidden_state: TensorSummary = described("All tokens: batch, tokens, width.")
    images: tuple[ImageResult, ...] = described("One entry per image, in the order of their names.")


@dataclass(frozen=True, kw_only=True)
class InferenceRecord(Record):
    """One run of inference.py."""

    script: Literal["inference"] = described("The script that ran.", default="inference")
    results: InferenceResults = described("What came out.")
