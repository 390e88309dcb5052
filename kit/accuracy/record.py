"""The record of accuracy.py."""

from dataclasses import dataclass
from typing import Literal

from kit.records import Record, described

OutcomeName = Literal["pass", "unexplained", "fail", "self-check"]


@dataclass(frozen=True)
class LimitsInfo:
    """The limits that were applied."""

    arithmetic: str = described("Row of the limits' table: fp32, hf32, tf32, bf16 or fp16.")
    relative_error: float = described("The whole vector's relative error must be below this.")
    cosine: float = described("The whole vector's cosine must be above this.")
    token_relative_error: float = described("Every token's relative error must be below this.")
    operator_error: float = described(
        "An operator's own result that is this far off, and unexplained, is wrong."
    )
    rope_and_norm_error: float = described(
        "The same for RoPE and norms before which all in the block is explained."
    )
    operator_token_error: float = described("The same for one token of any operator's result.")
    budget_factor: float = described(
        "An error counts as explained up to this many times what the arithmetic explains."
    )
    reason: str = described("Why these limits.")


@dataclass(frozen=True)
class TokenPlace:
    """One token: where it is and how wrong."""

    token: int = described("Position among the tokens, from 0.")
    kind: Literal["CLS", "register", "patch", "vector"] = described(
        "What it is; 'vector' for a model or tensor without tokens."
    )
    row: int | None = described("Row of the patch, from 0 at the top; null for other tokens.")
    column: int | None = described("Column of the patch, from 0 at the left; null for others.")
    relative_error: float | None = described("Of this token; null where it is not finite.")
    cosine: float | None = described("Of this token; null where it is not finite.")


@dataclass(frozen=True)
class Percentile:
    """One percentile of the tokens' relative errors."""

    percent: float = described("Share of the tokens with at most this error, in percent.")
    relative_error: float | None = described("The error, by linear interpolation.")


@dataclass(frozen=True)
class PartAccuracy:
    """One part of the tokens as one vector."""

    part: Literal["CLS", "registers", "patches"] = described("Which tokens.")
    relative_error: float | None = described("Device against the reference; null: not finite.")
    cosine: float | None = described("Device against the reference; null: not finite.")
    against_truth: float | None = described("Device's relative error against fp64.")
    cpu_against_truth: float | None = described("CPU fp32's relative error against fp64.")


@dataclass(frozen=True)
class TensorAccuracy:
    """One output tensor of the device beside its references."""

    shape: tuple[int, ...] = described("Shape of the tensor.")
    device: str = described("Device that computed it, as torch names it.")
    relative_error: float | None = described(
        "||device - reference|| / ||reference||; null where it is not finite."
    )
    relative_error_passed: bool = described("Whether it is below its limit.")
    cosine: float | None = described("Cosine of device and reference; null: not finite.")
    cosine_passed: bool = described("Whether it is above its limit.")
    mse: float | None = described("Mean squared difference from the reference.")
    max_abs_diff: float | None = described("Largest difference from the reference.")
    passed: bool = described("Whether everything about this tensor is inside its limits.")
    against_truth: float | None = described("The device's relative error against fp64.")
    cpu_against_truth: float | None = described("The CPU's fp32 relative error against fp64.")
    budget: float | None = described(
        "Relative error against fp64 that the declared arithmetic explains, computed for these "
        "weights and this image."
    )
    worst_token: TokenPlace = described("The token furthest from the reference.")
    token_percentiles: tuple[Percentile, ...] = described("Of the tokens' relative errors.")
    identical_bits: bool = described("Whether device and CPU fp32 agree to the last bit.")


@dataclass(frozen=True)
class OperatorGap:
    """One operator's own error, on the device's own input of its block."""

    name: str = described("The module inside the block, with .input or .output.")
    operator: str = described("Class of operator, for example attention, MLP, norm or RoPE.")
    relative_error: float | None = described("Against fp64 on the same input; null: not finite.")
    budget: float = described("The same figure of the declared arithmetic.")
    token_error: float | None = described("Relative error of the worst token; null: not finite.")
    token_budget: float = described("The declared arithmetic's worst token.")
    times_limit: float | None = described(
        "How many times its limit it is, above 1 unexplained; null where it is not finite."
    )


@dataclass(frozen=True)
class BlockAccuracy:
    """The error after one block, and the worst operator inside it."""

    block: int = described("-1 the embedding, 0 and up the blocks, their number the final norm.")
    name: str = described("The module's path in the model.")
    relative_error: float | None = described(
        "Device against fp64 after this block, everything before it included."
    )
    cpu_relative_error: float | None = described("CPU fp32 against fp64 after this block.")
    budget: float = described("What the declared arithmetic explains after this block.")
    explained: bool = described("Whether every operator of the block is explained by itself.")
    sum_explained: bool = described(
        "Whether the error after the block, with all that earlier blocks hand on, is explained."
    )
    worst_operator: OperatorGap | None = described("The operator closest to or beyond its limit.")
    worst_token: TokenPlace | None = described("The worst token of the block's output.")


@dataclass(frozen=True)
class Cause:
    """One known cause, switched in --explain."""

    cause: str = described("What was switched.")
    where: Literal["device", "reference"] = described(
        "'device': the device computed again; 'reference': the CPU imitated the cause."
    )
    relative_error: float | None = described(
        "With the switch, of last_hidden_state: the device's error against fp64, or its distance "
        "from the CPU that imitates the cause on top of the declared arithmetic."
    )
    before: float | None = described("The same figure without the switch.")
    removes: float | None = described("Share of it that the switch removes, 0 to 1.")
    note: str = described("Why it was not tried, or empty.")


@dataclass(frozen=True)
class ImageAccuracy:
    """One image of a folder."""

    image: str = described("Path of the image.")
    sha256: str = described("Of the image file's bytes.")
    pooler_relative_error: float | None = described("pooler_output against the reference.")
    pooler_cosine: float | None = described("pooler_output against the reference.")
    relative_error: float | None = described("last_hidden_state against the reference.")
    cosine: float | None = described("last_hidden_state against the reference.")
    max_abs_diff: float | None = described("last_hidden_state against the reference.")
    token_relative_error: float | None = described("Worst token of last_hidden_state.")
    token: int = described("Which token that is.")
    passed: bool = described("Whether the image is inside every limit.")


@dataclass(frozen=True)
class BrokenImage:
    """One file that could not be decoded."""

    image: str = described("Path of the file.")
    reason: str = described("What is wrong with it.")


@dataclass(frozen=True)
class NeighbourAgreement:
    """Whether device and reference features find the same nearest images."""

    images: int = described("Images compared with each other.")
    top1: float | None = described("Share of images whose nearest neighbour is the same.")
    top5: float | None = described("Mean share of the five nearest neighbours in common.")


@dataclass(frozen=True)
class FolderAccuracy:
    """A whole folder of images."""

    images: int = described("Images that were compared.")
    failed: int = described("Images beyond a limit.")
    broken: tuple[BrokenImage, ...] = described("Files that were skipped; in the verdict's count.")
    resumed: int = described("Images taken over from an earlier run that was stopped.")
    cached: int = described("CPU references taken from the disk.")
    percentiles: tuple[Percentile, ...] = described("Of the images' last_hidden_state errors.")
    worst: tuple[ImageAccuracy, ...] = described("The worst images, worst first.")
    neighbours: NeighbourAgreement = described("Of pooler_output, by cosine.")
    ranks: int = described("Processes that shared the work.")


@dataclass(frozen=True)
class AccuracyResults:
    """What accuracy.py found; of the worst image where there is a folder."""

    verdict: str = described("The verdict as it is printed.")
    outcome: OutcomeName = described("The verdict for programs.")
    reasons: tuple[str, ...] = described("Why it failed, or what is unexplained; else empty.")
    image: str = described("The image that the figures below belong to.")
    source: str = described("Where the weights come from; 'random' means no real features.")
    reference: Literal["CPU fp32", "CPU fp64"] = described(
        "What the device is held against; fp64 where the device itself is the CPU."
    )
    declared: str = described("The arithmetic that the device declares, in words.")
    limits: LimitsInfo = described("The limits that were applied.")
    pooler_output: TensorAccuracy = described("The pooled feature.")
    last_hidden_state: TensorAccuracy = described("All tokens.")
    parts: tuple[PartAccuracy, ...] = described("CLS, registers and patches apart.")
    blocks: tuple[BlockAccuracy, ...] = described("In the order of execution.")
    first_unexplained_block: int | None = described(
        "-1 the embedding, 0 and up the blocks, their number the final norm, null none."
    )
    first_unexplained_operator: OperatorGap | None = described(
        "The first operator inside that block beyond its limit; null where there is none."
    )
    explain: tuple[Cause, ...] = described("Known causes switched one by one; --explain only.")
    folder: FolderAccuracy | None = described("The whole folder; null for a single image.")


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord(Record):
    """One run of accuracy.py."""

    script: Literal["accuracy"] = described("The script that ran.", default="accuracy")
    results: AccuracyResults = described("What came out.")
