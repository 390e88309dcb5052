"""What accuracy.py does between setting up and its record."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kit import preprocessing
from kit.accuracy.record import AccuracyResults
from kit.accuracy.results import results_of
from kit.accuracy.single import Measured, Sides, make_sides, measure
from kit.inputs import Inputs
from kit.output import RunLog
from kit.workbench import Workbench


@dataclass(frozen=True)
class Done:
    """A finished comparison.

    Attributes:
        results: for the record.
        input_shape: of the model's input.
        images: how many images were compared.
        exit_code: 0 or 1.
        pictures: draws the pictures' files, by name; nothing is drawn before it is called.
    """

    results: AccuracyResults
    input_shape: tuple[int, ...]
    images: int
    exit_code: int
    pictures: Callable[[], dict[Path, bytes]]


def compare(arguments: argparse.Namespace, bench: Workbench, inputs: Inputs, log: RunLog) -> Done:
    """Compare the device with the CPU.

    Raises:
        KitError: where an input does not allow it.
        DeviceError: where the device fails or no longer computes.
    """
    sides = make_sides(bench, arguments.budget_factor, log)
    pixels = preprocessing.preprocess(inputs.first.pixels, bench.steps)
    log.info(f"Input shape: {pixels.shape}")
    log.info(f"Device: {bench.device.torch_device}")
    log.info(f"Comparing {sides.references.declared} with the CPU...")
    measured = measure(sides, pixels, log)
    warn(measured, sides, log)
    results = results_of(
        measured,
        sides.references.stages,
        sides.references.declared,
        image=str(inputs.first.path),
        source=bench.model_info.source,
        self_check=sides.self_check,
    )
    return Done(results, tuple(pixels.shape), 1, measured.verdict.exit_code(arguments.strict), dict)


def warn(measured: Measured, sides: Sides, log: RunLog) -> None:
    """Warn of identical bits where two machines cannot have them."""
    if sides.self_check:
        return
    for name in measured.judgements:
        device = getattr(measured.examination.device.features, name)
        cpu = getattr(measured.examination.cpu.features, name)
        if device.shape == cpu.shape and bool((device == cpu).all()):
            log.warning(
                f"{name} of the device equals the CPU's to the last bit, which two processors "
                "hardly ever do: check that the device computed at all"
            )
