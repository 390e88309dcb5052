"""What accuracy.py does between setting up and its record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kit.accuracy import pictures
from kit.accuracy.explain import explain
from kit.accuracy.folder import FolderRun
from kit.accuracy.folder_record import folder_accuracy
from kit.accuracy.results import results_of
from kit.accuracy.single import Measured, Sides, make_sides, measure
from kit.accuracy.verdict import Verdict
from kit.distributed import Group
from kit.errors import KitError
from kit.model import images, preprocessing
from kit.model.images import DecodedImage, Inputs
from kit.model.setup import Setup
from kit.options import AccuracyOptions
from kit.output import RunLog
from kit.progress import Progress
from kit.records import AccuracyResults, FolderAccuracy, ImageAccuracy

Pictures = Mapping[str, Callable[[], bytes]]


@dataclass(frozen=True)
class Done:
    """A finished comparison.

    Attributes:
        results: for the record.
        input_shape: of the model's input.
        images: how many images were compared.
        exit_code: 0 or 1.
        pictures: what draws each picture, by name.
    """

    results: AccuracyResults
    input_shape: tuple[int, ...]
    images: int
    exit_code: int
    pictures: Pictures


class Session:
    """One run of accuracy.py with a setup."""

    def __init__(self, options: AccuracyOptions, setup: Setup, group: Group, log: RunLog) -> None:
        """Move the model to the device.

        Raises:
            DeviceError: where the device fails.
        """
        self.options = options
        self.group = group
        self.log = log
        self.sides: Sides = make_sides(setup, options.budget_factor, log)

    def compare(self, inputs: Inputs, progress: Progress) -> Done:
        """Compare the device with the CPU on one image, or on a folder of them.

        Raises:
            KitError: where an input does not allow it.
            DeviceError: where the device fails or no longer computes.
        """
        log, setup = self.log, self.sides.setup
        pixels = preprocessing.preprocess(inputs.first.pixels, setup.steps)
        log.info(f"Input shape: {pixels.shape}")
        log.info(f"Device: {setup.device.torch_device}")
        log.info(f"Comparing {self.sides.references.declared} with the CPU...")
        if inputs.is_folder:
            return self.folder(inputs, progress)
        return self.one_image(inputs.first, pixels, None, ())

    def one_image(
        self,
        image: DecodedImage,
        pixels: torch.Tensor,
        folder: FolderAccuracy | None,
        reasons: Sequence[str],
    ) -> Done:
        """Measure one image in full; of a folder, its worst one.

        Args:
            image: as it was decoded.
            pixels: preprocessed, 1 x 3 x rows x columns.
            folder: the whole folder's figures.
            reasons: why the folder fails; none where it does not.
        """
        measured = measure(self.sides, pixels, self.log)
        warn_of_identical_bits(measured, self.sides, self.log)
        if reasons:
            measured = replace(measured, verdict=failed(measured.verdict, reasons))
        causes = explain(self.sides, pixels) if self.options.explain else ()
        stages, label = self.sides.references.stages, self.sides.setup.device.label
        results = results_of(
            measured,
            stages,
            self.sides.references.declared,
            image=str(image.path),
            source=self.sides.setup.model_info.source,
            self_check=self.sides.self_check,
            explain=causes,
            folder=folder,
        )
        count = 1 if folder is None else folder.images
        code = measured.verdict.exit_code(self.options.strict)

        # They hold no model, so the fp64 copy is gone when they are drawn.
        drawn = pictures.of(measured, results, stages, image.pixels, label)
        return Done(results, tuple(pixels.shape), count, code, drawn)

    def folder(self, inputs: Inputs, progress: Progress) -> Done:
        """Compare every image of the folder, then measure the worst one in full."""
        run = FolderRun(self.options, self.sides, self.group, progress, self.log)
        found = run.run(inputs.paths)
        found = replace(found, broken=[*inputs.broken, *found.broken])
        arithmetic = self.sides.references.declared.arithmetic
        folder = folder_accuracy(found, arithmetic, self.group.size)
        done = None
        if self.group.place.leads:
            worst = decode_unchanged(folder.worst, self.log)
            pixels = preprocessing.preprocess(worst.pixels, self.sides.setup.steps)
            reasons = folder_reasons(folder)
            done = self.one_image(worst, pixels, folder, reasons)
        # The others end with the same exit code; pictures are the first rank's alone.
        shared = self.group.gather(done and replace(done, pictures={}), "the verdict")[0]
        if self.group.place.leads:
            run.journal.remove()
        chosen = done or shared
        assert chosen is not None  # rank 0 has made one
        return chosen


def decode_unchanged(worst: Sequence[ImageAccuracy], log: RunLog) -> DecodedImage:
    """Return the first image that still is what the folder run has seen, decoded again.

    Raises:
        KitError: where every one of them is gone or changed.
    """
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


def folder_reasons(folder: FolderAccuracy) -> list[str]:
    """Return why a folder fails; none where it does not."""
    if folder.failed == 0:
        return []
    return [f"{folder.failed} of {folder.images} images are beyond a limit"]


def failed(verdict: Verdict, reasons: Sequence[str]) -> Verdict:
    """Return the folder's verdict where an image of it failed."""
    transient = (
        ()
        if verdict.outcome == "fail"
        else ("its worst image was inside the limits when it was measured again",)
    )
    kept = verdict.reasons if verdict.outcome == "fail" else ()
    return replace(verdict, text="FAIL", outcome="fail", reasons=(*reasons, *transient, *kept))


def warn_of_identical_bits(measured: Measured, sides: Sides, log: RunLog) -> None:
    """Warn of identical bits where two machines cannot have them."""
    if sides.self_check:
        return
    for name in measured.judgements:
        device = getattr(measured.examination.device, name)
        cpu = getattr(measured.examination.cpu, name)
        if device.shape == cpu.shape and bool((device == cpu).all()):
            log.warning(
                f"{name} of the device equals the CPU's to the last bit, which two processors "
                "hardly ever do: check that the device computed at all"
            )
