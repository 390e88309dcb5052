"""Record what flows through a model's stages, on any device, as copies on the CPU.

The copies are taken by hooks at every module without children, and at the queries and keys that
enter the attention's products (which is where a rotary embedding has been applied). The same
recorder on two models gives the same points under the same names.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.attention_inputs import AttentionInputs
from kit.accuracy.stages import Stage
from kit.errors import KitError

T = TypeVar("T")
Points = dict[str, torch.Tensor]


@dataclass
class StageRecord:
    """What one stage saw.

    Attributes:
        points: name -> tensor on the CPU in its own dtype, in the order of execution.
        args: positional arguments of the stage's call, as they were.
        kwargs: keyword arguments of the stage's call, as they were.
    """

    points: Points = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Records the stages of one model while `recording` is active.

    Attributes:
        stages: number of the stage -> its record.
    """

    def __init__(
        self,
        device_type: str,
        *,
        detail: bool,
        keep_arguments: bool,
        repeat_inputs: bool = False,
        share: bool = False,
    ) -> None:
        """Prepare to record.

        Args:
            device_type: where every tensor must be; anything else is an error.
            detail: record inside the stages too, not just their inputs and outputs.
            keep_arguments: keep each stage's call, to repeat it later.
            repeat_inputs: name a module's input as a point even where it is the output of the
                module before it. A device that leaves a step out shows by that.
            share: keep the tensors themselves instead of copies, for a model on the CPU without
                inference mode; `changed` tells whether that was safe.
        """
        self.device_type = device_type
        self.detail = detail
        self.keep_arguments = keep_arguments
        self.repeat_inputs = repeat_inputs
        self.share = share
        self._versions: list[tuple[torch.Tensor, int]] = []
        self.stages: dict[int, StageRecord] = {}
        self.current: int | None = None
        self._copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._calls: dict[tuple[int, str], int] = {}

    @contextlib.contextmanager
    def recording(self, model: PreTrainedModel, stages: Sequence[Stage]) -> Iterator[None]:
        """Record these stages of `model` in the block."""
        handles = []
        for stage in stages:
            self.stages[stage.number] = StageRecord()
            handles += self._watch_stage(stage, model)
        try:
            with (
                AttentionInputs(self.attention_inputs) if self.detail else contextlib.nullcontext()
            ):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._copies.clear()

    def _watch_stage(self, stage: Stage, model: nn.Module) -> list[Any]:
        module = model.get_submodule(stage.path)
        handles = [module.register_forward_pre_hook(self._enter(stage.number), with_kwargs=True)]
        watched = []
        if self.detail:
            children = module.named_modules()
            watched += [(n, c) for n, c in children if n and not any(True for _ in c.children())]
        if stage.rope is not None:
            watched.append((stage.rope, model.get_submodule(stage.rope)))
        for name, child in watched:
            handles.append(child.register_forward_pre_hook(self._before(stage.number, name)))
            handles.append(child.register_forward_hook(self._after(stage.number, name)))
        handles.append(module.register_forward_hook(self._leave(stage.number)))
        return handles

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record = self.stages[number]
            self.current = number
            self._calls.clear()
            if self.keep_arguments:
                record.args, record.kwargs = args, kwargs
            main = main_input(args, kwargs)
            if main is not None:
                record.points["input"] = self._copy(main)

        return hook

    def _leave(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                copied = self._copy(tensor)
                self.stages[number].points["output"] = copied
                self._copies = {content_of(tensor): (tensor, copied)}  # the next stage's input
            self.current = None

        return hook

    def _before(self, number: int, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            key = (number, name)
            self._calls[key] = self._calls.get(key, 0) + 1
            if not args or not isinstance(args[0], torch.Tensor):
                return
            if self.repeat_inputs or content_of(args[0]) not in self._copies:
                self.stages[number].points[f"{self._label(key)}.input"] = self._copy(args[0])

        return hook

    def _after(self, number: int, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            points, label = self.stages[number].points, self._label((number, name))
            if isinstance(output, torch.Tensor):
                points[f"{label}.output"] = self._copy(output)
            elif isinstance(output, tuple):  # the rotary embedding's cosines and sines
                for index, value in enumerate(output):
                    if isinstance(value, torch.Tensor):
                        points[f"{label}.output.{index}"] = self._copy(value)

        return hook

    def _label(self, key: tuple[int, str]) -> str:
        """Return the module's name, numbered from its second call in the stage on."""
        return key[1] if self._calls[key] == 1 else f"{key[1]}#{self._calls[key]}"

    def attention_inputs(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """Record the first query and key of the stage that is running."""
        if self.current is None:
            return
        points = self.stages[self.current].points
        if "attention.rotated_query" not in points:
            points["attention.rotated_query"] = self._copy(query)
            points["attention.rotated_key"] = self._copy(key)

    def changed(self) -> bool:
        """Return whether the model has written into a tensor that was shared; to be asked once."""
        versions, self._versions = self._versions, []  # which would keep every tensor alive
        return any(tensor._version != version for tensor, version in versions)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the CPU; the same one for the same tensor with the same content.

        Raises:
            KitError: where the tensor is not on the device that this side claims.
        """
        content = content_of(tensor)
        if content in self._copies:
            return self._copies[content][1]
        require_on(tensor, self.device_type)
        share = self.share and not tensor.is_inference()
        if share:
            self._versions.append((tensor, tensor._version))
        copied = tensor if share else tensor.detach().to("cpu", copy=True)
        self._copies[content] = (tensor, copied)  # kept alive, so that its id stays its own
        return copied


def recorded(
    call: Callable[[], T],
    model: PreTrainedModel,
    stages: Sequence[Stage],
    device_type: str = "cpu",
    *,
    detail: bool = False,
    keep_arguments: bool = False,
    repeat_inputs: bool = False,
) -> tuple[T, Recorder]:
    """Record what flows through `model` during a call, and return the call's result beside it.

    A CPU's tensors are kept as they are, since copies cost time and memory; a model that writes
    into them is called again and they are copied.

    Args:
        call: runs the model, twice where it writes in place, each time on fresh arguments; without
            inference mode, whose tensors count no writing.
        model: on the device.
        stages: what to record.
        device_type: as Recorder has it, like those that follow.
        detail: inside the stages too.
        keep_arguments: to repeat the stages' calls later.
        repeat_inputs: name every module's input.

    Raises:
        KitError: where a tensor is not on the device.
    """

    def once(*, share: bool) -> tuple[T, Recorder]:
        recorder = Recorder(
            device_type,
            detail=detail,
            keep_arguments=keep_arguments,
            repeat_inputs=repeat_inputs,
            share=share,
        )
        with recorder.recording(model, stages):
            return call(), recorder

    if device_type == "cpu":
        result, recorder = once(share=True)
        if not recorder.changed():
            return result, recorder
    return once(share=False)


def content_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what tells a tensor's present content from any other while the tensor is alive.

    A tensor of inference mode counts no writing, so a change in place stays unseen there.
    """
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def require_on(tensor: torch.Tensor, device_type: str) -> None:
    """Check that a tensor is on the device that its side claims to be.

    Raises:
        KitError: where it is not.
    """
    if tensor.device.type != device_type:
        raise KitError(
            f"a tensor that should be on the {device_type} is on {tensor.device}: "
            "device and reference were mixed up, so their comparison would mean nothing"
        )


def main_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the first tensor among a call's arguments; None where there is none."""
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, torch.Tensor)), None)
