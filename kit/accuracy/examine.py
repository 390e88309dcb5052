"""Hold one device run against the truth, stage by stage and operator by operator.

Errors add up from block to block, so a block is judged by itself: its call is repeated on the
CPU in fp64 on the very input that the device's block had, and every operator's result inside
is compared. What the declared arithmetic explains is found by repeating the same call in that
arithmetic: this is the budget of this operator, for this model and this image.

The truth computes both at once, in a batch of two: the image itself, and beside it every stage
on the device's input. Results are compared while it runs and none is kept, which costs less
time and memory than a second run.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from kit.accuracy.distance import Distance, Room, TokenNorms, token_norms
from kit.accuracy.examination import Examination, Gap, Point, StageExamination
from kit.accuracy.limits import BUDGET_FACTOR
from kit.accuracy.recorder import Points
from kit.accuracy.replay import replay
from kit.accuracy.sides import ReferenceRuns, References, Run
from kit.accuracy.stages import Stage, Stages, channels_first, class_of
from kit.accuracy.watch import Call, StageWatch, main_input, with_main_input
from kit.errors import KitError
from kit.model.model import Features

IMAGE, DEVICE_INPUT = 0, 1  # places in the truth's batch
SideName = Literal["budget", "cpu", "device"]


@dataclass(frozen=True)
class Held:
    """A tensor of the truth, held against the same tensor of other sides.

    Attributes:
        sides: that have one of the truth's shape; always the budget.
        norms: of the truth, and of its difference from each side.
    """

    sides: tuple[SideName, ...]
    norms: TokenNorms

    def distances(self) -> dict[SideName, Distance]:
        """Return how far each side is from the truth."""
        return dict(zip(self.sides, self.norms.distances(), strict=True))


@dataclass(frozen=True)
class HeldStage:
    """A stage of the truth, held against other sides.

    Attributes:
        stage: which.
        output: for the image itself.
        points: by name, on the device's own input.
    """

    stage: Stage
    output: Held
    points: Mapping[str, Held]


class Examiner(StageWatch):
    """Holds a device run against the truth while the truth computes its batch of two.

    Attributes:
        held: the stages so far.
    """

    def __init__(self, device: Run, references: References, runs: ReferenceRuns) -> None:
        """Take a run recorded in detail, whose record is used up, and the CPU's runs."""
        super().__init__(detail=True)
        self.held: list[HeldStage] = []
        self._device = device.recorder.stages
        self._references = references
        self._cpu = runs.cpu.recorder.stages
        self._own_budget = runs.budget.recorder.stages
        self._budget: Points = {}  # of the stage that runs, on the device's input
        self._place = IMAGE
        self._room = Room()
        self._points: dict[int, dict[str, Held]] = defaultdict(dict)

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Compute the stage's budget, and put the device's input into the batch.

        The first stage keeps the image's own, so that a wrong input shows.
        """
        first = stage is self._references.stages.all[0]
        given = self._device[stage.number].points.get("input")
        own, both = self._own_budget[stage.number], main_input(args, kwargs)
        image = own.points.get("input")
        comparable = image is not None and given is not None and given.shape == image.shape
        self._place = DEVICE_INPUT if comparable and not first else IMAGE
        if not first and not comparable:  # only outputs are left to compare
            self._budget = {name: own.points[name] for name in own.points if name == "output"}
            return None
        side = self._references.budget
        with side.computing():
            self._budget = distinct(replay(side.model, stage, own, image if first else given))
        if both is None or given is None:
            return None
        if first:
            self.seen(stage.number, "input", both)
            return None
        both = both.clone()
        of_one_image(both, DEVICE_INPUT, given.shape).copy_(given)
        return with_main_input(args, kwargs, both)

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Compare a point.

        The rotary embedding's tables, made from the input's shape alone and before the block, are
        compared as they were.
        """
        inside = number == self.current
        budget = self._budget if inside else self._own_budget[number].points
        device = self._device[number].points
        if name in budget and name in device and (inside or ".output." in name):
            self._points[number][name] = self._hold(
                tensor, self._place, number, name, {"budget": budget[name], "device": device[name]}
            )

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Compare a stage's outputs, and give up the device's record of it."""
        number = stage.number
        own, cpu = self._own_budget[number].points["output"], self._cpu[number].points["output"]
        found = self._device.pop(number).points.get("output")
        sides: dict[SideName, torch.Tensor | None] = {"budget": own, "cpu": cpu, "device": found}
        if own is cpu:
            del sides["cpu"]
        accumulated = self._hold(output, IMAGE, number, "output", sides)
        self._points[number]["output"] = self._hold(
            output,
            self._place,
            number,
            "output",
            {"budget": self._budget["output"], "device": found},
        )
        self._budget = {}
        self.held.append(HeldStage(stage, accumulated, self._points.pop(number)))

    def _hold(
        self,
        both: torch.Tensor,
        place: int,
        number: int,
        name: str,
        sides: Mapping[SideName, torch.Tensor | None],
    ) -> Held:
        budget = sides["budget"]
        assert budget is not None  # every caller has one
        truth = of_one_image(both, place, budget.shape)
        alike = {
            side: tensor
            for side, tensor in sides.items()
            if tensor is not None and tensor.shape == truth.shape
        }
        first_axis = channels_first(number, name, self._references.stages, truth.ndim)
        norms = token_norms(self._room, truth, *alike.values(), token_axis=1 if first_axis else -1)
        return Held(tuple(alike), norms)


def of_one_image(both: torch.Tensor, place: int, shape: torch.Size) -> torch.Tensor:
    """Return one image's part of a tensor that was computed in a batch of two.

    Args:
        both: the tensor; the whole of it where it is the same for every image.
        place: the image's in the batch.
        shape: what the tensor has for one image.

    Raises:
        KitError: where the tensor is not that of two images.
    """
    if both.shape == shape:
        return both
    for axis in range(min(both.ndim, len(shape))):
        if both.shape[axis] == 2 * shape[axis]:
            part = both.narrow(axis, place * shape[axis], shape[axis])
            if part.shape == shape:
                return part
    raise KitError(
        f"a tensor of shape {tuple(shape)} for one image is {tuple(both.shape)} for two: "
        "a model that mixes the images of a batch cannot be examined"
    )


def distinct(points: Points) -> Points:
    """Return the points without those that are an earlier one's very tensor.

    What hands its input on unchanged (a drop path in evaluation mode) has nothing to compare.
    """
    seen: set[int] = set()
    kept: Points = {}
    for name, tensor in points.items():
        if id(tensor) not in seen or name == "output":
            kept[name] = tensor
        seen.add(id(tensor))
    return kept


def examine(
    device: Run, references: References, runs: ReferenceRuns, factor: float = BUDGET_FACTOR
) -> Examination:
    """Examine a device run whose recorder has recorded in detail.

    Args:
        device: the run; its record is used up.
        references: of the same weights, with the device's declared arithmetic.
        runs: the same image on the CPU's fp32 sides.
        factor: how many times the budget still counts as explained.

    Raises:
        KitError: where the model is not one whose images of a batch are independent.
    """
    truth = references.truth
    examiner = Examiner(device, references, runs)
    with truth.computing(), examiner.watching(truth.model, references.stages.all):
        both = truth.forward(runs.pixels.repeat(2, 1, 1, 1))
    features = Features(
        both.pooler_output[IMAGE : IMAGE + 1], both.last_hidden_state[IMAGE : IMAGE + 1]
    )
    # Only now: between matrix products the processor's caches would have none of this at hand.
    stages = tuple(examined(held, references.stages) for held in examiner.held)
    return Examination(
        stages, device.features, runs.cpu.features, features, runs.budget.features, factor
    )


def examined(held: HeldStage, stages: Stages) -> StageExamination:
    """Return what a stage's norms come to."""
    output = held.output.distances()
    points = tuple(
        Point(name, class_of(name, held.stage, stages), gap_of(point.distances()))
        for name, point in held.points.items()
    )
    cpu = output.get("cpu", output["budget"])
    return StageExamination(held.stage, gap_of(output), cpu.error, points)


def gap_of(distances: Mapping[SideName, Distance]) -> Gap:
    """Return the device's distance from the truth beside the declared arithmetic's."""
    explained = distances["budget"]
    if not math.isfinite(explained.error):  # the reference overflows here: nothing is explained
        explained = replace(explained, error=0.0, token_error=0.0)
    own = distances.get("device")
    if own is None:
        return Gap(math.inf, explained.error, math.inf, explained.token_error, None, True)
    broken = not math.isfinite(own.error)
    return Gap(
        own.error, explained.error, own.token_error, explained.token_error, own.token, broken
    )
