"""What accuracy.py does between setting up and its record: one image in full, or a whole folder."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kit.accuracy import evidence
from kit.accuracy.coverage import cover, soak
from kit.accuracy.examine import Examination, examine
from kit.accuracy.explain import explain
from kit.accuracy.folder import FolderRun, Saved, prepare, with_folder
from kit.accuracy.recorder import Stages, recorded, require_on
from kit.accuracy.references import RecordedRun, Sides, make_sides
from kit.accuracy.verdict import Grid, assess
from kit.device.arithmetic import CHIPS_GELU, OwnGelu, found
from kit.device.device import Device, device_errors, synchronize
from kit.distributed import Group
from kit.errors import KitError
from kit.model import images, preprocessing
from kit.model import model as models
from kit.model.images import DecodedImage, Inputs
from kit.model.model import TENSORS, Features
from kit.model.setup import Setup, model_input
from kit.options import AccuracyOptions
from kit.output import RunLog, alive
from kit.records import AccuracyResults, ChipGelu, FolderAccuracy, ImageAccuracy
from kit.statistics import compare as compare_tensors
from kit.statistics import finite

# mallopt's parameters, from glibc's malloc.h; the threshold's largest value is 32 MiB.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 512 << 20
LARGEST_MMAP_THRESHOLD = 32 << 20


@dataclass(frozen=True)
class Measured:
    """One image, or a folder's worst, measured in full, and what its pictures are drawn from."""

    results: AccuracyResults
    image: DecodedImage
    input_shape: tuple[int, ...]
    examination: Examination
    stages: Stages
    grid: Grid
    setup: Setup  # with what the device was found to compute in
    features: bytes = b""  # the file of the device's features of the judged images


def compare(
    options: AccuracyOptions,
    setup: Setup,
    inputs: Inputs,
    group: Group,
    log: RunLog,
    own_gelu: OwnGelu | None = None,
) -> tuple[AccuracyResults, tuple[int, ...], Measured | None]:
    """Compare the device with the CPU on one image, or on a folder of them.

    Returns the results and the input's shape, alike on all ranks, so that they end with the same
    exit code. All that was measured stays on the leading rank: it holds the model. A KitError where
    an input does not allow it or another rank is lost, a DeviceError where the device fails or no
    longer computes.
    """
    sides = make_sides(setup, options.budget_factor, log, own_gelu)
    shape = preprocessing.preprocess(inputs.first.pixels, setup.steps).shape
    log.info(f"Input shape: {shape}")
    log.info(f"Device: {setup.device.torch_device}")
    log.info(f"Comparing {sides.references.declared} with the CPU...")
    measured = None
    if not inputs.is_folder:
        measured = in_full(options, sides, inputs.first, None, (), log)
    elif (found := FolderRun(options, sides, group, log).run(inputs)) is not None:
        folder, saved = found
        image = decode_unchanged(folder.worst, log)
        measured = in_full(options, sides, image, folder, saved, log)
    own = None if measured is None else (measured.results, measured.input_shape)
    shared = group.gather(own, "the verdict")[0]
    assert shared is not None  # the leading rank's
    return *shared, measured


def in_full(
    options: AccuracyOptions,
    sides: Sides,
    image: DecodedImage,
    folder: FolderAccuracy | None,
    saved: Sequence[Saved],
    log: RunLog,
) -> Measured:
    """Measure one image in full; of a folder, its worst one beside the whole folder's figures."""
    prepared = prepare(image, sides.setup.steps)
    pixels = prepared.pixels
    measured = measure(sides, image, pixels, log)
    results = measured.results
    for name in TENSORS:
        if not sides.self_check and getattr(results, name).identical_bits:
            log.warning(
                f"{name} of the device equals the CPU's to the last bit, which two processors "
                "hardly ever do: check that the device computed at all"
            )
    if folder is not None:
        results = with_folder(results, folder)
    if options.explain:
        results = replace(results, explain=explain(sides, pixels))
    results = cover(options, sides, pixels, results, log)
    if options.soak is not None or options.soak_forwards is not None:
        results = soak(options, sides, pixels, results, log)
    kept = [(prepared.about, measured.examination.device), *saved]  # itself stands first
    judged = 1 if folder is None else folder.images
    info, content = evidence.encode(sides, kept, judged)
    return replace(measured, results=replace(results, features=info), features=content)


def measure(sides: Sides, image: DecodedImage, pixels: torch.Tensor, log: RunLog) -> Measured:
    """Measure one image, preprocessed to `pixels`; KitError for a model without patch tokens."""
    setup, references = sides.setup, sides.references
    pixel_values = model_input(setup, pixels, log)
    if sides.model is references.fp32.model:
        _ = references.fp64  # copied before the model is watched
    with alive(log):
        device = run_device(setup.device, sides.model, pixel_values, references.stages)
    if setup.arithmetic is not None and setup.arithmetic.overflow == "saturates":
        device = with_overflow(device)
    setup.health.after("the recorded forward")
    runs = references.run(pixels)
    models.require_patch_tokens(setup.model, runs.fp32.features, pixels.shape)
    examination = examine(device, references, runs, sides.factor)
    grid = models.patch_grid(setup.model.config, pixels.shape)
    results = assess(
        examination,
        references,
        grid,
        image=str(image.path),
        source=setup.model_info.source,
        torch_device=str(setup.device.torch_device),
        factor=sides.factor,
        self_check=sides.self_check,
    )
    results = replace(results, chip_gelu=with_chips_gelu(sides, pixel_values, runs.fp32.features))
    return Measured(
        results, image, tuple(pixels.shape), examination, references.stages, grid, setup
    )


def with_overflow(run: RecordedRun) -> RecordedRun:
    """Return the run of a device that saturates, its largest numbers, fp16's too, as infinity.

    An Ascend 310P computes fp32 products in fp16 and saturates there (INF_NAN_MODE_ENABLE).
    """
    largest = torch.finfo(torch.float16).max
    for record in run.stages.values():
        for name, one in record.points.items():
            record.points[name] = models.overflowed(one, largest)
    return RecordedRun(run.features.map(lambda one: models.overflowed(one, largest)), run.stages)


def with_chips_gelu(
    sides: Sides, pixel_values: torch.Tensor, reference: Features
) -> ChipGelu | None:
    """Return the device's errors with the chip's own GELU; None where that is what runs anyway."""
    own = found(sides.setup.arithmetic, CHIPS_GELU)
    if sides.own_gelu is None or own in {None, found(sides.setup.arithmetic, "GELU")}:
        return None
    with device_errors("computing with the chip's own GELU"), sides.own_gelu():
        features = models.to_host(models.forward(sides.model, pixel_values))
    pooled, hidden = (
        finite(compare_tensors(getattr(reference, name), getattr(features, name)).relative_error)
        for name in TENSORS
    )
    return ChipGelu(own or "", pooled, hidden)


def run_device(
    device: Device, model: PreTrainedModel, pixel_values: torch.Tensor, stages: Stages
) -> RecordedRun:
    """Run the device's forward with its stages recorded in detail; the features are on the CPU."""

    def watched() -> Features:  # the tensors count what is written into them, as in no_grad alone
        with torch.no_grad():
            return models.features_of(model, model(pixel_values.clone()))

    with device_errors("computing the forward pass"):
        require_on(device.type, pixel_values, *model.parameters())
        features, record = recorded(watched, model, stages.all, device.type, detail=True)
        synchronize(device)
    require_on(device.type, *vars(features).values())
    return RecordedRun(models.to_host(features), record)


def decode_unchanged(worst: Sequence[ImageAccuracy], log: RunLog) -> DecodedImage:
    """Return the first image that still is what the folder run has seen; KitError for none."""
    for image in worst:
        try:
            decoded = images.decode(Path(image.image))
            if decoded.sha256 == image.sha256:
                return decoded
            problem = f"image {image.image} has changed"
        except KitError as error:
            problem = str(error)
        log.warning(f"Not measured in full: {problem}")
    raise KitError("the folder's worst images went or changed while it ran: run it again")


def keep_freed_memory() -> bool:
    """Let the process keep up to 512 MiB of freed memory; return whether the C library does.

    glibc hands a large tensor's memory back when it is freed, and the system clears every page of
    the next one: work that frees and takes tens of megabytes block by block spends a third of its
    time on that. Affects the whole process; False outside 64-bit glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    large = mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)  # 32-bit systems refuse it
    return bool(large and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
