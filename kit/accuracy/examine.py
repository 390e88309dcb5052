"""Hold one device run against the truth, stage by stage and operator by operator.

Errors add up from block to block, so a block is judged by itself: its call is repeated on the
CPU in fp64 on the very input that the device's block had, and every operator's result inside
is compared. What the declared arithmetic explains is found by repeating the same call in that
arithmetic: this is the budget of this operator, for this model and this image.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from kit.accuracy.distance import distances
from kit.accuracy.examination import Examination, Gap, Point, StageExamination
from kit.accuracy.limits import BUDGET_FACTOR
from kit.accuracy.recorder import Points, StageRecord
from kit.accuracy.replay import replay
from kit.accuracy.sides import ReferenceRuns, References, Run
from kit.accuracy.stages import Stage, Stages, class_of


def gap_between(
    truth: torch.Tensor, device: torch.Tensor | None, budget: torch.Tensor, tokens_last: bool
) -> Gap:
    """Return the device's distance from the truth beside the declared arithmetic's.

    Args:
        truth: in fp64.
        device: the device's tensor; None where the device has none under this name.
        budget: the declared arithmetic's tensor.
        tokens_last: False where the second axis, not the last, is a token's vector.
    """
    sides = [budget] if device is None or device.shape != truth.shape else [budget, device]
    explained, *found = distances(*(as_tokens(tokens_last, side) for side in (truth, *sides)))
    if not math.isfinite(explained.error):  # the reference overflows here: nothing is explained
        explained = replace(explained, error=0.0, token_error=0.0)
    if not found:
        return Gap(math.inf, explained.error, math.inf, explained.token_error, None, True)
    (own,) = found
    broken = not math.isfinite(own.error)
    return Gap(
        own.error, explained.error, own.token_error, explained.token_error, own.token, broken
    )


def as_tokens(tokens_last: bool, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with a token's vector on the last axis."""
    return tensor if tokens_last else tensor.movedim(1, -1)


def channels_first(stage: Stage, point: str, stages: Stages, tensor: torch.Tensor) -> bool:
    """Return whether a 4-axis tensor holds a map with channels on the second axis."""
    if tensor.ndim != 4:
        return False
    convolution = "patch_embeddings" in point or "projection" in point or "conv" in point
    whole_stage = stages.prefix_tokens is None and point in ("input", "output")
    return convolution or whole_stage or (stage.number < 0 and point == "input")


def examine(
    device: Run, references: References, runs: ReferenceRuns, factor: float = BUDGET_FACTOR
) -> Examination:
    """Examine a device run whose recorder has recorded in detail.

    Args:
        device: the run; its record is used up.
        references: of the same weights, with the device's declared arithmetic.
        runs: the same image on the CPU's sides.
        factor: how many times the budget still counts as explained.
    """
    sides = {"truth": runs.truth, "cpu": runs.cpu, "budget": runs.budget}
    examined = tuple(
        examine_stage(stage, references, device, sides)
        for stage in references.stages.all
        if "output" in runs.truth.recorder.stages[stage.number].points
    )
    return Examination(examined, device, runs.cpu, runs.truth, runs.budget, factor)


def examine_stage(
    stage: Stage, references: References, device: Run, runs: Mapping[str, Run]
) -> StageExamination:
    """Examine one stage: accumulated error first, then every operator on the device's input.

    The device's record of the stage is given up after this, so that memory shrinks on the way.
    """
    records = {name: run.recorder.stages[stage.number] for name, run in runs.items()}
    found = device.recorder.stages.pop(stage.number).points
    outputs = {name: record.points["output"] for name, record in records.items()}
    tokens_last = not channels_first(stage, "output", references.stages, outputs["truth"])
    accumulated = gap_between(outputs["truth"], found.get("output"), outputs["budget"], tokens_last)
    cpu_error = distances(outputs["truth"], outputs["cpu"])[0].error
    expected, budget = repeat_stage(stage, references, found, records)
    points = tuple(
        Point(
            name,
            class_of(name, stage, references.stages),
            gap_between(
                tensor,
                found.get(name),
                budget[name],
                not channels_first(stage, name, references.stages, tensor),
            ),
        )
        for name, tensor in distinct(expected).items()
        if name in budget and (name in found or name == "output")
    )
    return StageExamination(stage, accumulated, cpu_error, points)


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


def repeat_stage(
    stage: Stage,
    references: References,
    found: Points,
    records: Mapping[str, StageRecord],
) -> tuple[Points, Points]:
    """Repeat the stage on the device's own input, in fp64 and in the declared arithmetic.

    The first stage repeats the reference's own call instead, so that a wrong input shows; the
    rotary embedding's tables, made from the input's shape alone, are compared as they were.
    """
    sides = (references.truth, references.budget)
    own = (records["truth"], records["budget"])
    first = stage is references.stages.all[0]
    main = None if first else found.get("input")
    if not first and (main is None or main.shape != own[0].points["input"].shape):
        return {"output": own[0].points["output"]}, {"output": own[1].points["output"]}
    results = []
    for side, record in zip(sides, own, strict=True):
        tables = {name: tensor for name, tensor in record.points.items() if is_table(name)}
        with side.computing():
            results.append(tables | replay(side.model, stage, record, main))
    return results[0], results[1]


def is_table(name: str) -> bool:
    """Return whether a point is one of the rotary embedding's tables of cosines and sines."""
    return ".output." in name
