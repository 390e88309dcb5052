"""What a run leaves behind, as frozen dataclasses: the shape of output/<script>.json.

Every field carries its own description (and unit, where it has one); kit/schema.py turns them
into the JSON Schema in docs/. Unknown values are None, so that the JSON stays valid.

History of SCHEMA_VERSION:
    1.0  first version
"""

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = "1.0"

DeviceType = Literal["npu", "cuda", "cpu"]
FloatMode = Literal["fp32", "hf32", "tf32"]
Source = Literal["local", "modelscope", "huggingface", "random"]
Status = Literal["complete", "partial"]


def described(description: str, default: Any = MISSING) -> Any:  # noqa: ANN401 - as field() is
    """Return a dataclass field with its description for the schema."""
    return field(metadata={"description": description}, default=default)


@dataclass(frozen=True)
class Environment:
    """The software and the host that produced a record, captured and never typed by hand."""

    python: str = described("Python version.")
    torch: str = described("torch version with its local part.")
    torch_npu: str | None = described("torch-npu version; null where it is not loaded.")
    transformers: str = described("transformers version.")
    numpy: str = described("numpy version.")
    pillow: str = described("Pillow version.")
    cann: str | None = described("CANN version as torch_npu reads it; null without CANN.")
    driver: str | None = described("NPU or GPU driver version; null where unknown.")
    platform: str = described("Operating system and machine type.")
    cpu: str = described("The processor's name.")
    cpu_threads: int = described("Threads that torch uses within one operator.")
    git_commit: str | None = described(
        "Commit of the kit, with '+dirty' where files differ from it; null outside a checkout."
    )
    command: tuple[str, ...] = described("The command line.")
    variables: dict[str, str] = described(
        "Environment variables, of those that change results or speed, that were set."
    )


@dataclass(frozen=True)
class Patch:
    """What npu_patch did at import."""

    applied: bool = described("Whether torch.cuda is torch.npu in this run.")
    reason: str = described("Why it was applied, or why it was not.")


@dataclass(frozen=True)
class DeviceInfo:
    """The device that computed, and how it rounds."""

    type: DeviceType = described("Kind of device.")
    index: int | None = described("Index among the visible devices; null for the CPU.")
    name: str = described("The chip's or processor's name.")
    count: int = described("Visible devices of this type on this host; 1 for the CPU.")
    torch_device: str = described("As torch prints it, for example npu:0.")
    matmul_fp32: FloatMode = described("What an fp32 matrix product computes with.")
    convolution_fp32: FloatMode = described("What an fp32 convolution computes with.")
    cpu_fallbacks: tuple[str, ...] = described(
        "Operators that the NPU back end handed to the CPU during the run."
    )
    known_answer_checks: int = described(
        "Known-answer computations that the device passed, one after each phase."
    )


@dataclass(frozen=True)
class ModelInfo:
    """The model and where its weights come from."""

    weights: str | None = described("Folder of the weights; null for random weights.")
    source: Source = described("Where the weights come from; 'random' means no real features.")
    sha256: str = described(
        "Of the one safetensors file; of the lines of `sha256sum *.safetensors` where there "
        "are several; of the tensors' bytes in the order of their names for random weights."
    )
    architecture: str = described("The transformers class.")
    parameters: int = described("Number of parameters.")
    dtype: str = described("Compute type: fp32, bf16 or fp16.")
    attention: str | None = described("sdpa or eager; null for a model without attention.")


@dataclass(frozen=True)
class InputInfo:
    """The image, or the first image of a folder, and what the model was given."""

    image: str = described("Path of the image as it was given or found.")
    sha256: str = described("Of the image file's bytes.")
    width: int = described("Width of the upright image in pixels, before preprocessing.")
    height: int = described("Height of the upright image in pixels, before preprocessing.")
    shape: tuple[int, ...] = described(
        "Shape of the model's input: batch, channels, rows, columns."
    )
    preprocessing: str = described("The preprocessing steps in order, in words.")
    images: int = described("How many images the run was given.")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of one script. Each script's own record adds `script` and `results`."""

    schema_version: str = described("Version of this layout.", default=SCHEMA_VERSION)
    script: str = described("The script that ran.")
    status: Status = described("'partial' where the run was stopped and kept what it had.")
    started_at: str = described("Start of the run, ISO 8601 with offset from UTC.")
    environment: Environment = described("Software and host.")
    patch: Patch = described("What npu_patch did.")
    device: DeviceInfo = described("The device that computed.")
    model: ModelInfo = described("The model.")
    input: InputInfo = described("What went in.")
    warnings: tuple[str, ...] = described("Every warning that the run printed.")
