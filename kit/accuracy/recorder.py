"""Record what flows through a model's stages, on any device, as tensors on the CPU."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from kit.accuracy.stages import Stage
from kit.accuracy.watch import StageWatch, main_input
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


class Recorder(StageWatch):
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
        super().__init__(detail=detail)
        self.device_type = device_type
        self.keep_arguments = keep_arguments
        self.repeat_inputs = repeat_inputs
        self.share = share
        self._versions: list[tuple[torch.Tensor, int]] = []
        self.stages: dict[int, StageRecord] = {}
        self._copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @contextlib.contextmanager
    def recording(self, model: PreTrainedModel, stages: Sequence[Stage]) -> Iterator[None]:
        """Record these stages of `model` in the block."""
        self.stages = {stage.number: StageRecord() for stage in stages}
        try:
            with self.watching(model, stages):
                yield
        finally:
            self._copies.clear()

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a stage's input."""
        record = self.stages[stage.number]
        if self.keep_arguments:
            record.args, record.kwargs = args, kwargs
        main = main_input(args, kwargs)
        if main is not None:
            record.points["input"] = self._copy(main)

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Record a point; an input only where it is not the output of the module before it."""
        is_new = self.repeat_inputs or content_of(tensor) not in self._copies
        if is_new or not name.endswith(".input"):
            self.stages[number].points[name] = self._copy(tensor)

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Record a stage's output."""
        copied = self._copy(output)
        self.stages[stage.number].points["output"] = copied
        self._copies = {content_of(output): (output, copied)}  # the next stage's input

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
