"""Run one image on the device and on every CPU side, and examine the difference."""

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kit.accuracy.arithmetic import Declared
from kit.accuracy.examination import Examination
from kit.accuracy.examine import examine
from kit.accuracy.judge import Judgement, judge
from kit.accuracy.recorder import recorded, require_on
from kit.accuracy.sides import References, Run
from kit.accuracy.stages import Stages
from kit.accuracy.verdict import Verdict, conclude
from kit.device.device import Device, device_errors, float_modes, synchronize
from kit.model.model import Features, features_of, patch_grid, to_host
from kit.model.setup import Setup, model_input, move_model
from kit.output import RunLog

TENSORS = ("pooler_output", "last_hidden_state")


@dataclass(frozen=True)
class Sides:
    """The device's model and all CPU sides of the same weights.

    Attributes:
        setup: the device, whose model has been moved to it.
        model: on the device.
        references: on the CPU.
        factor: how many times the budget still counts as explained.
    """

    setup: Setup
    model: PreTrainedModel
    references: References
    factor: float

    @property
    def self_check(self) -> bool:
        """Whether the device is the CPU itself."""
        return self.setup.device.type == "cpu"


@dataclass(frozen=True)
class Measured:
    """One image's whole result.

    Attributes:
        judgements: of each output tensor against the reference.
        examination: against the truth, stage by stage.
        verdict: what it comes to.
        device_names: where each output tensor was, as torch names it.
        grid: rows and columns of patches.
    """

    judgements: dict[str, Judgement]
    examination: Examination
    verdict: Verdict
    device_names: dict[str, str]
    grid: tuple[int, int]

    def reference_features(self, self_check: bool) -> Features:
        """Return the outputs that the thresholds are held against."""
        return self.examination.truth if self_check else self.examination.cpu


def make_sides(setup: Setup, factor: float, log: RunLog) -> Sides:
    """Keep the CPU's model, and move one to the device.

    Raises:
        DeviceError: where the device fails.
    """
    shared = setup.device.type == "cpu" and setup.dtype == torch.float32
    on_cpu = setup.model if shared else copy.deepcopy(setup.model)
    model = move_model(setup, log)
    matmul, convolution = float_modes(setup.device)
    declared = Declared(setup.model_info.dtype, matmul, convolution)
    return Sides(setup, model, References(on_cpu, declared), factor)


def run_device(
    device: Device, model: PreTrainedModel, pixel_values: torch.Tensor, stages: Stages
) -> tuple[Run, dict[str, str]]:
    """Run the device's forward with its stages recorded in detail.

    Returns:
        The run, its features on the CPU, and where the outputs were, as torch names it.

    Raises:
        DeviceError: where the device fails.
        KitError: where a tensor is not on it.
    """
    with device_errors("computing the forward pass"):
        for parameter in model.parameters():
            require_on(parameter, device.type)
        require_on(pixel_values, device.type)
        features, recorder = recorded(
            lambda: watched_forward(model, pixel_values.clone()),  # it may write into its input
            model,
            stages.all,
            device.type,
            detail=True,
            repeat_inputs=True,
        )
        synchronize(device)
    names = {}
    for name in TENSORS:
        tensor: torch.Tensor = getattr(features, name)
        require_on(tensor, device.type)
        names[name] = str(tensor.device)
    return Run(to_host(features), recorder), names


def watched_forward(model: PreTrainedModel, pixel_values: torch.Tensor) -> Features:
    """Run the model without gradients, its tensors counting what is written into them."""
    with torch.no_grad():
        return features_of(model, model(pixel_values))


def measure(sides: Sides, pixels: torch.Tensor, log: RunLog | None = None) -> Measured:
    """Measure one image.

    Args:
        sides: device and references.
        pixels: preprocessed, float32 on the CPU, 1 x 3 x rows x columns.
        log: where a cropped input is named; None for silence.

    Raises:
        DeviceError: where the device fails or no longer computes.
    """
    setup = sides.setup
    pixel_values = model_input(setup, pixels, log)
    if sides.model is sides.references.cpu.model:
        sides.references.wait()
    device, names = run_device(setup.device, sides.model, pixel_values, sides.references.stages)
    setup.health.after("the recorded forward")
    grid = patch_grid(setup.model.config, pixels.shape)
    runs = sides.references.run(pixels)
    examination = examine(device, sides.references, runs, sides.factor)
    return assess(
        examination, sides.references, grid, device_names=names, self_check=sides.self_check
    )


def assess(
    examination: Examination,
    references: References,
    grid: tuple[int, int],
    *,
    device_names: dict[str, str],
    self_check: bool,
) -> Measured:
    """Judge an examined run's outputs and conclude.

    Args:
        examination: of the run.
        references: of the same weights.
        grid: rows and columns of patches.
        device_names: where the outputs were.
        self_check: whether the device is the CPU itself.
    """
    reference = examination.truth if self_check else examination.cpu
    judgements = {
        name: judge_or_shape(reference, examination.device, name, references) for name in TENSORS
    }
    verdict = conclude(judgements, examination, references.stages, grid, self_check=self_check)
    return Measured(judgements, examination, verdict, device_names, grid)


def judge_or_shape(
    reference: Features, device: Features, name: str, references: References
) -> Judgement:
    """Judge one output; one of another shape is compared as if it were all NaN."""
    expected: torch.Tensor = getattr(reference, name)
    found: torch.Tensor = getattr(device, name)
    if found.shape != expected.shape:
        judged = judge(
            expected, torch.full_like(expected, torch.nan), references.declared.arithmetic
        )
        sentence = f"shape {tuple(found.shape)} where {tuple(expected.shape)} is right"
        return judged.with_reasons((sentence,))
    return judge(expected, found, references.declared.arithmetic)
