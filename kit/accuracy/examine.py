"""Hold one device run against fp64, stage by stage and operator by operator.

Errors add up from block to block, so a block is judged by itself: its call is repeated on the
CPU in fp64 on the very input that the device's block had, and every operator's result inside
is compared. What the declared arithmetic explains is found by repeating the same call in that
arithmetic: this is the expected error of this operator, for this model and this image.

Where products are rounded to few bits, that allows for much. There each module is also computed
by itself, on its own input on the device and with its products' inputs rounded as the device's
are: what is left is the order of adding up, on the scale of fp32. Attention, whose kernels round
where they like, is held to the scale of its scores instead.

fp64 computes both at once, in a batch of two: the image itself, and beside it every stage on the
device's input. Results are compared while it runs and none is kept, which costs less time and
memory than a second run.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from kit.accuracy.limits import SMALLEST_ALONE, SMALLEST_LIMIT
from kit.accuracy.recorder import (
    Call,
    OperatorClass,
    Points,
    Stage,
    StageWatch,
    channels_first,
    class_of,
    main_input,
    with_main_input,
)
from kit.accuracy.references import RecordedRun, ReferenceRuns, References, Side
from kit.errors import KitError
from kit.model.model import Features
from kit.records import OperatorError
from kit.statistics import finite, ratio

SCALE_STEP = 2.0**-7
IMAGE, DEVICE_INPUT = 0, 1  # places in the batch that fp64 computes
SideName = Literal["imitation", "fp32", "device"]


# ---- Distances -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """How far one tensor is from a reference as a whole, and its worst token, by its position.

    Relative errors; infinite where a value is not finite on either side.
    """

    error: float
    token_error: float
    token: int


Distances = Mapping[SideName, Distance]
Alone = tuple[Distances, float]  # of a module by itself, with its tolerance


def distances(
    reference: torch.Tensor, sides: Mapping[SideName, torch.Tensor], token_axis: int
) -> Distances:
    """Return how far several tensors are from one reference, in a fraction of compare's time.

    The reference is fp64 on the CPU, the sides of its shape in any dtype. Nothing is scaled: in
    fp64 a value from 1e-150 to 1e150 neither overflows nor vanishes.
    """
    difference = torch.empty_like(reference)

    def norms_of(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = torch.linalg.vector_norm(tensor, dim=token_axis).numpy()
        return found.ravel()

    norms = norms_of(reference)
    return {
        side: distance(norms_of(difference.copy_(found).sub_(reference)), norms)
        for side, found in sides.items()
    }


def distance(errors: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]) -> Distance:
    """Return a distance from the norms of each token's difference and of its reference.

    numpy's operators cost less than torch's on so few numbers.
    """
    if errors.size == 0:
        return Distance(0.0, 0.0, 0)
    relative = np.zeros_like(errors)
    with np.errstate(all="ignore"):  # what is not finite is told apart below
        np.divide(errors, norms, out=relative, where=errors != 0)
    relative[~np.isfinite(relative)] = math.inf
    token = int(relative.argmax())
    whole, norm = math.sqrt(errors @ errors), math.sqrt(norms @ norms)
    if math.isfinite(whole) and math.isfinite(norm):
        return Distance(ratio(whole, norm), float(relative[token]), token)
    return Distance(math.inf, math.inf, token)


# ---- Examination ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageErrors:
    """One stage of the device, examined.

    `accumulated` is its output's error, everything before it included, `cpu_error` the CPU's own
    fp32 there; `operators` are on the device's own input, in the order of execution.
    """

    stage: Stage
    accumulated: OperatorError
    cpu_error: float
    operators: tuple[OperatorError, ...]

    @property
    def first_unexplained(self) -> OperatorError | None:
        """The first operator whose own error is beyond its limit."""
        return next((operator for operator in self.operators if times_limit(operator) > 1), None)

    @property
    def worst(self) -> OperatorError | None:
        """The operator that comes closest to its limit or goes furthest beyond it."""
        return max(self.operators, key=times_limit, default=None)


@dataclass(frozen=True)
class Examination:
    """A device's run beside the CPU's sides: every stage, and each side's outputs on the CPU."""

    stages: tuple[StageErrors, ...]
    device: Features
    fp32: Features
    imitation: Features
    fp64: Features


def times_limit(operator: OperatorError) -> float:
    """Return how many times its limit an error is; infinite where the record has null."""
    return math.inf if operator.times_limit is None else operator.times_limit


def operator_error(
    name: str,
    operator: OperatorClass,
    found: Distances,
    factor: float,
    smallest: float = SMALLEST_LIMIT,
) -> OperatorError:
    """Return the device's distance from fp64 beside the imitation's.

    It is explained up to `factor` times the imitation's, and always below `smallest`. Without the
    device's distance it has the wrong shape.
    """
    imitation, device = found["imitation"], found.get("device")
    # Where the reference overflows nothing is explained.
    expected, expected_token = finite(imitation.error) or 0.0, finite(imitation.token_error) or 0.0
    times = math.inf
    if device is not None:
        times = max(
            device.error / max(factor * expected, smallest),
            device.token_error / max(factor * expected_token, smallest),
        )
    return OperatorError(
        name=name,
        operator=operator,
        relative_error=None if device is None else finite(device.error),
        expected_error=expected,
        token_error=None if device is None else finite(device.token_error),
        expected_token_error=expected_token,
        times_limit=finite(times),
        token=None if device is None else device.token,
        smallest_limit=smallest,
    )


class Examiner(StageWatch):
    """Holds a device run against fp64 while fp64 computes its batch of two."""

    def __init__(
        self, device: RecordedRun, references: References, runs: ReferenceRuns, factor: float
    ) -> None:
        """Take a run recorded in detail, whose record is used up, and the CPU's runs."""
        super().__init__(detail=True)
        self.examined: list[StageErrors] = []
        self._factor = factor
        self._device = device.stages
        self._references = references
        self._fp32 = runs.fp32.stages
        self._imitation = runs.imitation.stages
        self._replayed: Points = {}  # of the stage that runs, imitated on the device's input
        self._rounded = Side(references.fp64.model, references.declared)
        self._place = IMAGE
        self._inside: dict[int, dict[str, Distances]] = defaultdict(dict)

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Imitate the stage, and put the device's input into the batch.

        The first stage keeps the image's own, so that a wrong input shows.
        """
        first = stage is self._references.stages.all[0]
        given = self._device[stage.number].points.get("input")
        own, both = self._imitation[stage.number], main_input(args, kwargs)
        image = own.points.get("input")
        comparable = image is not None and given is not None and given.shape == image.shape
        self._place = DEVICE_INPUT if comparable and not first else IMAGE
        if not first and not comparable:  # only outputs are left to compare
            self._replayed = {name: own.points[name] for name in own.points if name == "output"}
            return None
        imitation = self._references.imitation
        self._replayed = distinct(imitation.replay(stage, own, image if first else given))
        if both is None or given is None:
            return None
        if first:
            self.seen(stage.number, "input", both)
            return None
        both = both.clone()  # the model may hold it elsewhere, or spread one image over both
        of_one_image(both, DEVICE_INPUT, given.shape).copy_(given)
        return with_main_input(args, kwargs, both)

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Compare a point; the rotary embedding's tables as they were before the block."""
        inside = number == self.current
        imitation = self._replayed if inside else self._imitation[number].points
        device = self._device[number].points
        if name in imitation and name in device and (inside or ".output." in name):
            self._inside[number][name] = self._hold(
                tensor, self._place, number, name,
                {"imitation": imitation[name], "device": device[name]},
            )  # fmt: skip

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Compare a stage's outputs, and give up the device's record of it."""
        number = stage.number
        own, fp32 = (run[number].points["output"] for run in (self._imitation, self._fp32))
        points = self._device.pop(number).points
        found = points.get("output")
        sides: dict[SideName, torch.Tensor | None] = {"imitation": own, "device": found}
        if own is not fp32:
            sides["fp32"] = fp32
        accumulated = self._hold(output, IMAGE, number, "output", sides)
        sides = {"imitation": self._replayed["output"], "device": found}
        self._inside[number]["output"] = self._hold(output, self._place, number, "output", sides)
        alone = dict(self._alone(stage, points))
        self._replayed = {}
        inside = self._inside.pop(number)
        operators = tuple(
            self._operator(stage, name, inside.get(name), alone.get(name))
            for name in dict.fromkeys((*inside, *alone))
        )
        cpu = accumulated.get("fp32", accumulated["imitation"])
        after = self._operator(stage, "output", accumulated)
        self.examined.append(StageErrors(stage, after, cpu.error, operators))

    def _operator(
        self, stage: Stage, name: str, found: Distances | None, alone: Alone | None = None
    ) -> OperatorError:
        """Return an operator's error; what is known of it alone counts where that says more."""
        kind = class_of(name, stage, self._references.stages)
        errors = [operator_error(name, kind, found, self._factor)] if found else []
        if alone is not None:
            errors.append(operator_error(name, kind, alone[0], self._factor, alone[1]))
        return next((error for error in errors if times_limit(error) > 1), errors[0])

    def _alone(self, stage: Stage, points: Points) -> Iterator[tuple[str, Alone]]:
        """Yield each module's result by itself, with its tolerance, where products are rounded.

        One that is nearer to fp64 than half of what the rounding makes is more exact than it has
        to be, and is left out.
        """
        declared, imitation = self._references.declared, self._references.imitation
        exact, fp32 = (side.model.get_submodule(stage.path) for side in (self._rounded, imitation))
        modules = [
            (name, module)
            for name, module in exact.named_modules()
            if len(signature(module.forward).parameters) == 1
        ]
        if declared.dtype != "fp32" or not any(declared.reduces(one) for _, one in modules):
            return
        for name, module in modules:
            given, found = (points.get(f"{name}.{end}") for end in ("input", "output"))
            if given is None or found is None:  # one that holds others is not seen itself
                continue
            with self._rounded.computing():
                rounded = module.forward(given.double())
            with imitation.computing():
                imitated = fp32.get_submodule(name).forward(given)
            if rounded.shape != found.shape:
                continue
            off = (found - rounded).norm()
            tolerance = declared.tolerance(module)
            if off > tolerance * rounded.norm():
                plain = module.forward(given.double())
                if (found - plain).norm() < (rounded - plain).norm() / 2:
                    continue
            axes = stage.number, f"{name}.output", self._references.stages, rounded.ndim
            axis = 1 if channels_first(*axes) else -1
            sides: dict[SideName, torch.Tensor] = {"imitation": imitated, "device": found}
            yield f"{name}.output", (distances(rounded, sides, axis), tolerance)
        with self._rounded.computing():
            off = {"imitation": score_scale(self._replayed), "device": score_scale(points)}
        scales = {side: Distance(one, one, 0) for side, one in off.items() if one is not None}
        if len(scales) == len(off):
            yield "attention.score_scale", (scales, SMALLEST_ALONE["scores"])

    def _hold(
        self,
        both: torch.Tensor,
        place: int,
        number: int,
        name: str,
        sides: Mapping[SideName, torch.Tensor | None],
    ) -> Distances:
        imitation = sides["imitation"]
        assert imitation is not None  # every caller has one
        reference = of_one_image(both, place, imitation.shape)
        alike = {
            side: tensor
            for side, tensor in sides.items()
            if tensor is not None and tensor.shape == reference.shape
        }
        axis = 1 if channels_first(number, name, self._references.stages, reference.ndim) else -1
        return distances(reference, alike, axis)


def score_scale(points: Points) -> float | None:
    """Return by how much attention multiplies its scores too much, as a share.

    None without attention, and where it is not finite, which other points show.

    A least-squares fit of what is left of its result beside fp64's on the very query, key, value:
    by the result itself, for a kernel that truncates, and by its derivative by the logarithm of the
    scale, whose factor is returned, less four standard errors. Thousands of roundings cancel there.
    """
    query, key = (points.get(f"attention.rotated_{name}") for name in ("query", "key"))
    value, result = (
        next((points[name] for name in points if re.search(pattern, name)), None)
        for pattern in (r"\bv(alue|_proj)\.output$", r"(\bo_proj|output\.dense)\.input$")
    )
    if query is None or key is None or value is None or result is None:
        return None
    value, result = (
        tensor.double().reshape(*tensor.shape[:2], query.shape[1], -1).transpose(1, 2)
        for tensor in (value, result)
    )
    if not query.shape == key.shape == value.shape == result.shape:
        return None
    own = query.shape[-1] ** -0.5
    exact, moved = (
        scaled_dot_product_attention(query.double(), key.double(), value, scale=scale)
        for scale in (own, own * (1 + SCALE_STEP))
    )
    known = torch.stack([exact.flatten(), (moved - exact).flatten() / SCALE_STEP], 1)
    left = (result - exact).flatten()
    if not bool(torch.isfinite(left).all()):
        return None
    inverse = torch.linalg.pinv(known.T @ known)
    factors = inverse @ (known.T @ left)
    spread = (left - known @ factors).norm() / math.sqrt(len(left)) * inverse[1, 1].sqrt()
    return max(0.0, abs(float(factors[1])) - 4 * float(spread))


def of_one_image(both: torch.Tensor, place: int, shape: torch.Size) -> torch.Tensor:
    """Return one image's part, of a known shape, of a tensor that was computed in a batch of two.

    The whole of it where it is the same for every image; a KitError where it is not that of two.
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

    What is the output of the module before it, and what hands its input on unchanged (a drop path
    in evaluation mode), has nothing to compare.
    """
    seen: set[int] = set()
    kept: Points = {}
    for name, tensor in points.items():
        if id(tensor) not in seen or name == "output":
            kept[name] = tensor
        seen.add(id(tensor))
    return kept


def examine(
    device: RecordedRun, references: References, runs: ReferenceRuns, factor: float
) -> Examination:
    """Examine a device run whose stages were recorded in detail; its record is used up.

    A KitError where the images of a batch are not independent.
    """
    fp64, stages = references.fp64, references.stages
    examiner = Examiner(device, references, runs, factor)
    with fp64.computing(), examiner.watching(fp64.model, stages.all):
        both = fp64.forward(runs.pixels.repeat(2, 1, 1, 1))
    return Examination(
        tuple(examiner.examined),
        device.features,
        runs.fp32.features,
        runs.imitation.features,
        Features(both.pooler_output[:1], both.last_hidden_state[:1]),
    )
