"""Hold one device run against fp64, stage by stage and operator by operator.

Errors add up from block to block, so a block is judged by itself: its call is repeated on the
CPU in fp64 on the very input that the device's block had, and every operator's result inside
is compared. What the declared arithmetic explains is found by repeating the same call in that
arithmetic: this is the expected error of this operator, for this model and this image.

Where products are rounded to few bits, that allows for much. There each module is also computed
by itself, on its own input on the device and with its products' inputs rounded as the device's
are: what is left is the order of adding up, on the scale of fp32.

fp64 computes both at once, in a batch of two: the image itself, and beside it every stage on the
device's input. Results are compared while it runs and none is kept, which costs less time and
memory than a second run.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from kit.accuracy.limits import SMALLEST_LIMIT
from kit.accuracy.recorder import (
    Call,
    OperatorClass,
    Points,
    Stage,
    Stages,
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

IMAGE, DEVICE_INPUT = 0, 1  # places in the batch that fp64 computes
SideName = Literal["imitation", "fp32", "device"]


# ---- Distances -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """How far one tensor is from a reference; infinite where a value is not finite on either side.

    Attributes:
        error: relative error of the whole tensor.
        token_error: of the worst token.
        token: position of the worst token among all.
    """

    error: float
    token_error: float
    token: int


@dataclass(frozen=True)
class TokenNorms:
    """Euclidean norms of every token; all that is kept of tensors that were compared.

    Attributes:
        reference: of the reference's tokens, fp64, one per token.
        differences: of each side's difference from the reference, the same.
    """

    reference: torch.Tensor
    differences: Mapping[SideName, torch.Tensor]

    def distances(self) -> dict[SideName, Distance]:
        """Return how far each side is; nothing differs in a tensor without elements."""
        return {side: self._distance(errors) for side, errors in self.differences.items()}

    def _distance(self, differences: torch.Tensor) -> Distance:
        # numpy's operators cost less than torch's on so few numbers.
        errors, norms = differences.numpy(), self.reference.numpy()
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


Norms = Mapping[str, TokenNorms]
Alone = Mapping[str, tuple[TokenNorms, float]]


class NormPool:
    """Many tensors' norms in few pieces of memory.

    They are kept while tensors of megabytes come and go. Each in a place of its own, they would
    leave the allocator no large piece to use again.
    """

    NUMBERS = 1 << 20

    def __init__(self) -> None:
        """Make the first piece; the system gives a page of it when it is written."""
        self._free = torch.empty(self.NUMBERS, dtype=torch.float64)

    def take(self, shape: torch.Size) -> torch.Tensor:
        """Return an fp64 tensor of this shape, not initialized."""
        count = shape.numel()
        if count > len(self._free):
            self._free = torch.empty(max(count, self.NUMBERS), dtype=torch.float64)
        taken, self._free = self._free[:count], self._free[count:]
        return taken.view(shape)


def token_norms(
    pool: NormPool,
    reference: torch.Tensor,
    sides: Mapping[SideName, torch.Tensor],
    token_axis: int = -1,
) -> TokenNorms:
    """Hold several tensors against one reference, in a fraction of statistics.compare's time.

    Little is done here, because the tensors are in the processor's cache only now: the figures
    are worked out from the norms later. Without the scaling that statistics.compare does: in fp64
    a value from 1e-150 to 1e150 neither overflows nor vanishes.

    Args:
        pool: where the norms are kept.
        reference: in fp64 on the CPU.
        sides: of the reference's shape, any dtype, on the CPU.
        token_axis: the axis that is a token's vector.
    """
    sizes = list(reference.shape)
    if sizes:
        del sizes[token_axis]
    tokens = torch.Size(sizes)
    difference = torch.empty_like(reference)

    def norms_of(tensor: torch.Tensor) -> torch.Tensor:
        norms = pool.take(tokens)
        torch.linalg.vector_norm(tensor, dim=token_axis, out=norms)
        return norms.flatten()

    return TokenNorms(
        norms_of(reference),
        {side: norms_of(difference.copy_(found).sub_(reference)) for side, found in sides.items()},
    )


# ---- Examination ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageErrors:
    """One stage of the device, examined.

    Attributes:
        stage: which.
        accumulated: of the stage's output, everything before it included.
        cpu_error: accumulated relative error of the CPU's own fp32.
        operators: every one inside, in the order of execution, on the device's own input.
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
    """A device's run beside the CPU's sides.

    Attributes:
        stages: every stage, in the order of execution.
        device, fp32, imitation, fp64: each side's outputs, on the CPU.
    """

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
    distances: Mapping[SideName, Distance],
    factor: float,
    smallest: float = SMALLEST_LIMIT,
) -> OperatorError:
    """Return the device's distance from fp64 beside the imitation's.

    Args:
        name: the module inside the stage, with .input or .output.
        operator: its class.
        distances: of the imitation, and of the device where it has the right shape.
        factor: how many times the expected error still counts as explained.
        smallest: error that always does.
    """
    imitation, device = distances["imitation"], distances.get("device")
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
    )


class Examiner(StageWatch):
    """Holds a device run against fp64 while fp64 computes its batch of two.

    Attributes:
        held: the stages so far: their outputs for the image itself, by name what is inside on
            the device's own input, and modules by themselves where products are rounded.
    """

    def __init__(self, device: RecordedRun, references: References, runs: ReferenceRuns) -> None:
        """Take a run recorded in detail, whose record is used up, and the CPU's runs."""
        super().__init__(detail=True)
        self.held: list[tuple[Stage, TokenNorms, Norms, Alone]] = []
        self._device = device.stages
        self._references = references
        self._fp32 = runs.fp32.stages
        self._imitation = runs.imitation.stages
        self._replayed: Points = {}  # of the stage that runs, imitated on the device's input
        self._rounded = Side(references.fp64.model, references.declared)
        self._place = IMAGE
        self._pool = NormPool()
        self._inside: dict[int, dict[str, TokenNorms]] = defaultdict(dict)

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
        """Compare a point.

        The rotary embedding's tables, made from the input's shape alone and before the block, are
        compared as they were.
        """
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
        self._replayed = {}
        alone = dict(self._alone(stage, points))
        self.held.append((stage, accumulated, self._inside.pop(number), alone))

    def _alone(
        self, stage: Stage, points: Points
    ) -> Iterator[tuple[str, tuple[TokenNorms, float]]]:
        """Yield each module's result by itself, with its tolerance, where products are rounded.

        One that is nearer to fp64 than half of what the rounding makes is more exact than it has
        to be, and is left out.
        """
        declared, imitation = self._references.declared, self._references.imitation
        exact, fp32 = (side.model.get_submodule(stage.path) for side in (self._rounded, imitation))
        modules = [(n, m) for n, m in exact.named_modules() if n and not list(m.children())]
        if declared.dtype != "fp32" or not any(declared.reduces(one) for _, one in modules):
            return
        for name, module in modules:
            given, found = (points.get(f"{name}.{end}") for end in ("input", "output"))
            if given is None or found is None:
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
            norms = token_norms(self._pool, rounded, sides, token_axis=axis)
            yield f"{name}.output", (norms, tolerance)

    def _hold(
        self,
        both: torch.Tensor,
        place: int,
        number: int,
        name: str,
        sides: Mapping[SideName, torch.Tensor | None],
    ) -> TokenNorms:
        imitation = sides["imitation"]
        assert imitation is not None  # every caller has one
        reference = of_one_image(both, place, imitation.shape)
        alike = {
            side: tensor
            for side, tensor in sides.items()
            if tensor is not None and tensor.shape == reference.shape
        }
        axis = 1 if channels_first(number, name, self._references.stages, reference.ndim) else -1
        return token_norms(self._pool, reference, alike, token_axis=axis)


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
    """Examine a device run whose stages were recorded in detail.

    Args:
        device: the run; its record is used up.
        references: of the same weights, with the device's declared arithmetic.
        runs: the same image on the CPU's fp32 sides.
        factor: how many times the expected error still counts as explained.

    Raises:
        KitError: where the model is not one whose images of a batch are independent.
    """
    fp64, stages = references.fp64, references.stages
    examiner = Examiner(device, references, runs)
    with fp64.computing(), examiner.watching(fp64.model, stages.all):
        both = fp64.forward(runs.pixels.repeat(2, 1, 1, 1))
    # Only now: between matrix products the processor's caches would have none of this at hand.
    return Examination(
        tuple(stage_errors(*held, stages, factor) for held in examiner.held),
        device.features,
        runs.fp32.features,
        runs.imitation.features,
        Features(both.pooler_output[:1], both.last_hidden_state[:1]),
    )


def stage_errors(
    stage: Stage,
    output: TokenNorms,
    inside: Norms,
    alone: Alone,
    stages: Stages,
    factor: float,
) -> StageErrors:
    """Return what a stage's norms come to; a module counts by itself where that says more."""
    distances = output.distances()
    operators = []
    for name, norms in inside.items():
        kind = class_of(name, stage, stages)
        error = operator_error(name, kind, norms.distances(), factor)
        if name in alone and times_limit(error) <= 1:
            own, tolerance = alone[name]
            itself = operator_error(name, kind, own.distances(), factor, tolerance)
            error = itself if times_limit(itself) > 1 else error
        operators.append(error)
    accumulated = operator_error("output", class_of("output", stage, stages), distances, factor)
    fp32 = distances.get("fp32", distances["imitation"])
    return StageErrors(stage, accumulated, fp32.error, tuple(operators))
