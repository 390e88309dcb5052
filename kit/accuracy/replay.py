"""Repeat one stage's call on the CPU, on another input."""

import torch
from transformers import PreTrainedModel

from kit.accuracy.recorder import Points, StageRecord, recorded
from kit.accuracy.stages import Stage
from kit.accuracy.watch import main_input, with_main_input


def replay(
    model: PreTrainedModel, stage: Stage, own: StageRecord, main: torch.Tensor | None
) -> Points:
    """Repeat one stage's call on the CPU and return its points.

    Args:
        model: on the CPU; the stage's module is called as `own` saw it.
        stage: which stage.
        own: this model's own record of the stage, with arguments.
        main: takes the place of the first tensor, in its dtype; None where the call has none.
    """
    module = model.get_submodule(stage.path)
    # The rotary embedding has run before the block: its points are the first run's.
    alone = Stage(stage.number, stage.path)
    before = main_input(own.args, own.kwargs)

    def call() -> None:
        args, kwargs = own.args, own.kwargs
        if main is not None and before is not None:  # a copy, because the call may write into it
            args, kwargs = with_main_input(args, kwargs, main.to(before.dtype, copy=True))
        module(*args, **kwargs)

    _, recorder = recorded(call, model, [alone], detail=True)
    return recorder.stages[stage.number].points
