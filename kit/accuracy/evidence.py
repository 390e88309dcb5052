"""The device's features of the judged images in a file, so that others judge them without it.

A reviewer needs the weights and the images, and no NPU: the thresholds, the worst token and the
limits are derived again on any CPU. What happened inside the blocks is not in the file.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from kit import outside
from kit.accuracy.examine import Examination
from kit.accuracy.folder import (
    WORST_SHOWN,
    Compared,
    JudgedImage,
    Prepared,
    Saved,
    badness,
    compared,
    folder_accuracy,
    prepare,
    with_folder,
)
from kit.accuracy.limits import LIMITS, Arithmetic
from kit.accuracy.references import Declared, References, Sides
from kit.accuracy.verdict import assess, failing
from kit.device.device import DTYPES, LABELS
from kit.errors import KitError
from kit.model.images import Inputs
from kit.model.model import TENSORS, Features, patch_grid
from kit.model.setup import Setup
from kit.options import AccuracyOptions
from kit.output import RunLog, encoded
from kit.records import (
    AccuracyResults,
    DeviceType,
    FeaturesComparison,
    FeaturesFile,
    ImageAccuracy,
    LimitsInfo,
)

FILE = "accuracy_features.safetensors"
KEY = "evidence"  # of the file's metadata
LARGEST_FILE_BYTES = 1 << 30
AGAIN = "write it again with accuracy.py on the device"


@dataclass(frozen=True)
class Evidence:
    """What the file says of the features in it; tensor NAME.N belongs to the Nth image."""

    version: Literal[1]
    weights_sha256: str
    preprocessing: str  # the steps in words
    device_type: DeviceType
    device: str
    declared: Declared  # the arithmetic that the device was found to compute in
    judged: int  # images of the run: the file may hold the first of them alone
    images: tuple[JudgedImage, ...]


def encode(sides: Sides, saved: Sequence[Saved], judged: int) -> tuple[FeaturesFile, bytes]:
    """Return a safetensors file of the features that a device computed, and the record's part."""
    setup = sides.setup
    evidence = Evidence(
        version=1,
        weights_sha256=setup.model_info.sha256,
        preprocessing=str(setup.steps),
        device_type=setup.device.type,
        device=setup.device.name,
        declared=sides.references.declared,
        judged=judged,
        images=tuple(  # a file's name may hold bytes that are no UTF-8
            replace(image, image=encoded(image.image).decode()) for image, _ in saved
        ),
    )
    tensors = {
        f"{name}.{number}": tensor.contiguous().clone()
        for number, (_, features) in enumerate(saved)
        for name, tensor in vars(features).items()
    }
    content: bytes = save(tensors, {KEY: json.dumps(asdict(evidence))})
    return info(evidence, Path(FILE), content, reviewed=False), content


def info(evidence: Evidence, path: Path, content: bytes, *, reviewed: bool) -> FeaturesFile:
    """Return the record's part on a file."""
    return FeaturesFile(
        file=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        device=f"{LABELS[evidence.device_type]} ({evidence.device})",
        declared=str(evidence.declared),
        images=len(evidence.images),
        reviewed=reviewed,
    )


@dataclass(frozen=True)
class FeaturesRead:
    """A file of features."""

    info: FeaturesFile  # the record's part
    evidence: Evidence  # what it says of itself
    # By the pixels' hash; a folder's worst image is there as measured in full, and in its batch.
    features: Mapping[str, Sequence[Saved]]


def read(path: Path, option: str, setup: Setup) -> FeaturesRead:
    """Return the features in a file, named by an option, of the setup's weights and preprocessing.

    A KitError where it is damaged, or of other weights or sizes.
    """
    import msgspec  # a run on a device does not need it

    content = outside.read_bytes(path, option, LARGEST_FILE_BYTES)
    damaged = f"{option} {path} is no whole file of saved features"
    features: dict[str, list[Saved]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get(KEY, "")
        evidence = msgspec.json.decode(said, type=Evidence)
        tensors = load(content)
        for number, image in enumerate(evidence.images):
            one = Features(*(tensors[f"{name}.{number}"] for name in TENSORS))
            features.setdefault(image.pixels_sha256, []).append((image, one))
    except (
        OSError, SafetensorError, msgspec.MsgspecError, LookupError, ValueError, TypeError,
        RecursionError,
    ) as error:  # fmt: skip
        raise KitError(f"{damaged} ({str(error)[:200]}): {AGAIN}") from error
    words = (evidence.weights_sha256, evidence.preprocessing, evidence.device)
    if not features or not all(map(str.isprintable, words)):
        raise KitError(f"{damaged} (no image, or no words): {AGAIN}")
    dtype = evidence.declared.dtype
    if any(tensor.dtype != DTYPES[dtype] for tensor in tensors.values()):
        raise KitError(f"{damaged} (a tensor is not {dtype}): {AGAIN}")
    weights, steps = setup.model_info.sha256, str(setup.steps)
    if evidence.weights_sha256 != weights:
        raise KitError(
            f"{option} {path} is of weights {evidence.weights_sha256[:16]}..., not of "
            f"{weights[:16]}... in {setup.model_info.weights or 'random weights'}: "
            "give the folder of those weights as --weights"
        )
    if evidence.preprocessing != steps:
        raise KitError(
            f"{option} {path} is of images prepared otherwise ({evidence.preprocessing[:200]}; "
            f"here: {steps}): give the same --size and the same preprocessor_config.json"
        )
    return FeaturesRead(info(evidence, path, content, reviewed=True), evidence, features)


# ---- Judging -------------------------------------------------------------------------------------


def review(
    options: AccuracyOptions, setup: Setup, inputs: Inputs, log: RunLog
) -> tuple[AccuracyResults, tuple[int, ...]]:
    """Judge saved features by the CPU's references of the same images; no device computes.

    Returns the results, the worst image's where there are several, and its input's shape. A
    KitError where a file is damaged, or of other weights, sizes or images.
    """
    assert options.features is not None  # it is what asks for a review
    given = read(options.features, "--features", setup)
    other = None if options.against is None else read(options.against, "--against", setup)
    wider = given.evidence.declared.arithmetic
    if other is not None:
        require_all(given, other.features, f"in {other.info.file}")
        both = wider, other.evidence.declared.arithmetic
        wider = max(both, key=lambda one: LIMITS[one].relative_error)
    evidence = given.evidence
    references = References(setup.model, evidence.declared)
    side = references.fp64 if evidence.device_type == "cpu" else references.fp32
    arithmetic = evidence.declared.arithmetic
    log.info(f"Judging features of {given.info.device}, {evidence.declared}, by the CPU...")
    judged: list[Compared] = []
    pairs: list[ImageAccuracy] = []
    worst: tuple[float, Prepared, Features] | None = None
    done: set[str] = set()
    for image in [inputs.first, *inputs.others(log)]:
        key = image.pixels_sha256
        if key not in given.features or key in done:
            continue
        done.add(key)
        prepared = prepare(image, setup.steps)
        reference = side.features(prepared.pixels)
        require_shapes(given, key, reference)
        if prepared.about.input_sha256 != given.features[key][0][0].input_sha256:
            log.warning(f"{image.path}: this processor prepares it with other last bits")
        found = worst_of(prepared, given.features[key], reference, arithmetic)
        judged.append(found[1])
        if worst is None or found[0] > worst[0]:
            worst = found[0], prepared, found[2]
        if other is not None:
            theirs = other.features[key][-1][1]
            pairs.append(worst_of(prepared, given.features[key], theirs, wider)[1].accuracy)
    require_all(given, done, "among the images that --image gives")
    assert worst is not None  # a file holds one image at least
    results = in_full(options, setup, references, given, *worst[1:])
    if len(judged) > 1:
        folder = folder_accuracy(judged, inputs.broken, LIMITS[arithmetic], cached=0, ranks=1)
        results = with_folder(results, folder)
    if evidence.judged > len(evidence.images):
        log.warning(
            f"{given.info.file} holds {len(evidence.images)} of {evidence.judged} judged images"
        )
    if other is not None:
        results = with_comparison(results, other, pairs, LIMITS[wider])
    results = replace(results, features=given.info)
    return results, worst[1].about.shape


def require_shapes(given: FeaturesRead, key: str, reference: Features) -> None:
    """Check that an image's features have the shapes that these weights give."""
    for image, features in given.features[key]:
        for name in TENSORS:
            found, right = (tuple(getattr(one, name).shape) for one in (features, reference))
            if found != right:
                raise KitError(
                    f"{given.info.file} holds a {name} of {found} for {image.image!r}, "
                    f"where these weights give {right}: {AGAIN}"
                )


def require_all(given: FeaturesRead, found: Collection[str], where: str) -> None:
    """Check that each image of the file has its pixels' hash in `found`; a KitError names it."""
    for pixels, ((image, _), *_) in given.features.items():
        if pixels not in found:
            raise KitError(
                f"{given.info.file} holds features of {image.image!r}, pixels {pixels[:16]}..., "
                f"which is not {where}: give the images that the features are of"
            )


def worst_of(
    image: Prepared, saved: Sequence[Saved], reference: Features, arithmetic: Arithmetic
) -> tuple[float, Compared, Features]:
    """Return the features of an image that are furthest from a reference, and how far they are."""
    judged = [(compared(image.about, one, reference, arithmetic), one) for _, one in saved]
    every = [(badness(found.accuracy, LIMITS[arithmetic]), found, one) for found, one in judged]
    return max(every, key=lambda found: found[0])


def in_full(
    options: AccuracyOptions,
    setup: Setup,
    references: References,
    given: FeaturesRead,
    image: Prepared,
    features: Features,
) -> AccuracyResults:
    """Return one image's results, without blocks."""
    pixels = image.pixels
    sides = (references.fp32, references.imitation, references.fp64)
    examination = Examination((), features, *(side.features(pixels) for side in sides))
    return assess(
        examination,
        references,
        patch_grid(setup.model.config, pixels.shape),
        image=image.about.image,
        source=setup.model_info.source,
        torch_device=given.evidence.device_type,
        factor=options.budget_factor,
        self_check=given.evidence.device_type == "cpu",
    )


def with_comparison(
    results: AccuracyResults,
    other: FeaturesRead,
    pairs: Sequence[ImageAccuracy],
    limits: LimitsInfo,
) -> AccuracyResults:
    """Return results with the distance from another device's features, which fails them too."""
    ordered = sorted(pairs, key=lambda pair: -badness(pair, limits))
    failed = sum(not pair.passed for pair in pairs)
    against = FeaturesComparison(other.info, limits, failed, tuple(ordered[:WORST_SHOWN]))
    results = replace(results, against=against)
    words = f"{failed} of {len(pairs)} images are beyond a limit beside {other.info.file}"
    return failing(results, words) if failed else results
