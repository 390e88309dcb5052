"""Repeat one stage's call on the CPU, on another input."""

from typing import Any

import torch
from transformers import PreTrainedModel

from kit.accuracy.recorder import Points, StageRecord, recorded
from kit.accuracy.stages import Stage


def replay(
    model: PreTrainedModel, stage: Stage, own: StageRecord, main: torch.Tensor | None
) -> Points:
    """Repeat one stage's call on the CPU and return its points.

    Args:
        model: on the CPU; the stage's module is called as `own` saw it.
        stage: which stage.
        own: this model's own record of the stage, with arguments.
        main: takes the place of the first tensor, in its dtype; None to repeat the call as it
            was.
    """
    module = model.get_submodule(stage.path)
    main = own.points.get("input") if main is None else main
    # The rotary embedding has run before the block: its points are the first run's.
    alone = Stage(stage.number, stage.path)

    def call() -> None:
        args, kwargs = own.args, own.kwargs
        if main is not None:
            args, kwargs = with_main_input(args, kwargs, main)
        module(*args, **kwargs)

    _, recorder = recorded(call, model, [alone], detail=True)
    return recorder.stages[stage.number].points


def with_main_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], main: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with the first tensor replaced by a copy of `main` in its dtype.

    A copy, because the call may write into it.
    """
    for index, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:index], main.to(value.dtype, copy=True), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            return args, kwargs | {name: main.to(value.dtype, copy=True)}
    return args, kwargs
