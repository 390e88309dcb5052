"""Watch what flows through a model's stages, on any device.

It is seen by hooks at every module without children, and at the queries and keys that enter the
attention's products (which is where a rotary embedding has been applied). The same watch on two
models sees the same points under the same names.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.attention_inputs import AttentionInputs
from kit.accuracy.stages import Stage

# AttentionInputs would see every shape and device that a hook asks a tensor for.
unseen = torch._C.DisableTorchFunction

Call = tuple[tuple[Any, ...], dict[str, Any]]


class StageWatch:
    """Sees the stages of one model while `watching` is active; what it does is its subclass's.

    Attributes:
        detail: look inside the stages too, not just at their inputs and outputs.
        current: the number of the stage that is running; None between two.
    """

    def __init__(self, *, detail: bool) -> None:
        """Prepare to watch."""
        self.detail = detail
        self.current: int | None = None
        self._calls: dict[tuple[int, str], int] = {}
        self._attention_seen = False
        self._during_stage = contextlib.ExitStack()

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Handle a stage that is about to run; return the arguments to run it with instead."""

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Handle a point of a stage.

        Args:
            number: the stage's.
            name: the module's path inside the stage and `.input` or `.output`, or what enters
                attention: `attention.rotated_query` and `attention.rotated_key`.
            tensor: as the model has it; it may write into it afterwards.
        """

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Handle what a stage has returned."""

    @contextlib.contextmanager
    def watching(self, model: PreTrainedModel, stages: Sequence[Stage]) -> Iterator[None]:
        """Watch these stages of `model` in the block."""
        handles = []
        try:
            for stage in stages:
                handles += self._watch_stage(stage, model)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._during_stage.close()  # where a stage has raised

    def _watch_stage(self, stage: Stage, model: nn.Module) -> list[Any]:
        module = model.get_submodule(stage.path)
        handles = [module.register_forward_pre_hook(self._enter(stage), with_kwargs=True)]
        watched = []
        if self.detail:
            children = module.named_modules()
            watched += [(n, c) for n, c in children if n and not any(True for _ in c.children())]
        if stage.rope is not None:
            watched.append((stage.rope, model.get_submodule(stage.rope)))
        for name, child in watched:
            handles.append(child.register_forward_pre_hook(self._before(stage.number, name)))
            handles.append(child.register_forward_hook(self._after(stage.number, name)))
        handles.append(module.register_forward_hook(self._leave(stage)))
        return handles

    def _enter(self, stage: Stage) -> Callable[..., Call | None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
            self.current = stage.number
            self._calls.clear()
            self._attention_seen = False
            call = self.entered(stage, args, kwargs)
            if self.detail:
                self._during_stage.enter_context(AttentionInputs(self._attention_inputs))
            return call

        return hook

    def _leave(self, stage: Stage) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            self._during_stage.close()
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                self.left(stage, tensor)
            self.current = None

        return hook

    def _before(self, number: int, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            key = (number, name)
            self._calls[key] = self._calls.get(key, 0) + 1
            if args and isinstance(args[0], torch.Tensor):
                with unseen():
                    self.seen(number, f"{self._label(key)}.input", args[0])

        return hook

    def _after(self, number: int, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            label = self._label((number, name))
            if isinstance(output, torch.Tensor):
                with unseen():
                    self.seen(number, f"{label}.output", output)
            elif isinstance(output, tuple):  # the rotary embedding's cosines and sines
                for index, value in enumerate(output):
                    if isinstance(value, torch.Tensor):
                        self.seen(number, f"{label}.output.{index}", value)

        return hook

    def _label(self, key: tuple[int, str]) -> str:
        """Return the module's name, numbered from its second call in the stage on."""
        return key[1] if self._calls[key] == 1 else f"{key[1]}#{self._calls[key]}"

    def _attention_inputs(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """Show the first query and key of the stage that is running."""
        if self.current is not None and not self._attention_seen:
            self._attention_seen = True
            self.seen(self.current, "attention.rotated_query", query)
            self.seen(self.current, "attention.rotated_key", key)


def main_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the first tensor among a call's arguments; None where there is none."""
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, torch.Tensor)), None)


def with_main_input(args: tuple[Any, ...], kwargs: dict[str, Any], main: torch.Tensor) -> Call:
    """Return a call's arguments with `main` in the place of the first tensor."""
    for index, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:index], main, *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            return args, kwargs | {name: main}
    return args, kwargs
