"""See and record what flows through a vision model's stages, on any device.

The stages are the embedding, the blocks and the final norm. They are seen by hooks at every module
without children, and at the queries and keys that enter the attention's products (which is where a
rotary embedding has been applied). The same watch on two models sees the same points, by name.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from kit.errors import KitError
from kit.model.model import has_attention, register_tokens

T = TypeVar("T")
Points = dict[str, torch.Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]
OperatorClass = Literal[
    "input", "embedding", "RoPE", "norm", "attention", "MLP", "layer scale", "residual", "block"
]

# First match names the class of a point; its name is the module's path inside the stage.
CLASS_PATTERNS: tuple[tuple[re.Pattern[str], OperatorClass], ...] = (
    (re.compile(r"rope|rotary|rotated"), "RoPE"),
    (re.compile(r"patch_embeddings(\.projection)?\.input$|downsample\S*0\.input$"), "input"),
    (re.compile(r"norm\w*\.input$"), "residual"),
    (re.compile(r"norm"), "norm"),
    (re.compile(r"layer_?scale|gamma|drop_path"), "layer scale"),
    (re.compile(r"att(entio)?n"), "attention"),
    (re.compile(r"mlp|ffn|fc\d|act(ivation)?_fn|conv"), "MLP"),
    (re.compile(r"embed"), "embedding"),
)


@dataclass(frozen=True)
class Stage:
    """One stage of the model."""

    number: int  # -1 the embedding, 0 and up the blocks, their number the final norm
    path: str  # its module's
    rope: str | None = None  # for block 0: path of the module that makes the rotary embedding


@dataclass(frozen=True)
class Stages:
    """A model's stages in the order of execution; a model without one kind lacks it."""

    all: tuple[Stage, ...]
    blocks: int
    prefix_tokens: int | None  # CLS and registers, before the patches; None without tokens


def find_stages(model: PreTrainedModel) -> Stages:
    """Return the stages of `model`.

    The blocks are the longest list of modules that lies in no other list: a ViT's layers, a
    ConvNeXt's stages. Embedding, rotary embedding and final norm are told by their names.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    }
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if not outer:
        return Stages((), 0, None)
    blocks_path = max(outer, key=lambda path: len(lists[path]))
    blocks = len(lists[blocks_path])
    top = [name for name, _ in model.named_children()]
    rope = next((name for name in top if re.search(r"rope|rotary", name)), None)
    embedding = next((name for name in top if "embed" in name and name != rope), None)
    norm = next((name for name in top if "norm" in name), None)
    found = [] if embedding is None else [Stage(-1, embedding)]
    found += [Stage(n, f"{blocks_path}.{n}", rope if n == 0 else None) for n in range(blocks)]
    if norm is not None:
        found.append(Stage(blocks, norm))
    prefix = 1 + register_tokens(model.config) if has_attention(model.config) else None
    return Stages(tuple(found), blocks, prefix)


def class_of(point: str, stage: Stage, stages: Stages) -> OperatorClass:
    """Return the class of a point: a module's path with .input or .output, or the stage's own."""
    if stage.number < 0 and point in ("input", "output"):
        return "input" if point == "input" else "embedding"
    if stage.number >= stages.blocks:
        return "norm"
    if point in ("input", "output"):
        return "residual" if point == "output" else "block"
    for pattern, name in CLASS_PATTERNS:
        if pattern.search(point):
            return "embedding" if stage.number < 0 and name not in ("input", "RoPE") else name
    return "embedding" if stage.number < 0 else "block"


def channels_first(number: int, point: str, stages: Stages, axes: int) -> bool:
    """Return whether a tensor is a map whose channels, a token's vector, are its second axis."""
    if axes != 4:
        return False
    convolution = "patch_embeddings" in point or "projection" in point or "conv" in point
    whole_stage = stages.prefix_tokens is None and point in ("input", "output")
    return convolution or whole_stage or (number < 0 and point == "input")


# ---- Watching ------------------------------------------------------------------------------------

MATMULS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
# AttentionInputs would see every shape and device that a hook asks a tensor for.
unseen = torch._C.DisableTorchFunction


class AttentionInputs(TorchFunctionMode):
    """Shows the queries and keys that enter an attention's products while it is active."""

    def __init__(self, show: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        super().__init__()
        self.show = show

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - any of torch's functions
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Run one function of torch; look at the inputs of the attention's."""
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | dict(kwargs or {})
            self.show(named["query"], named["key"])
        elif func in MATMULS and args[0].ndim == 4:
            self.show(args[0], args[1].transpose(-1, -2))
        return func(*args, **(kwargs or {}))


class StageWatch:
    """Sees the stages of one model while `watching` is active; what it does is its subclass's."""

    def __init__(self, *, detail: bool) -> None:
        self.detail = detail  # inside the stages too, not just their inputs and outputs
        self.current: int | None = None  # the number of the stage that is running
        self._calls: Counter[tuple[int, str]] = Counter()
        self._attention_seen = False
        self._during_stage = contextlib.ExitStack()

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Handle a stage that is about to run; return the arguments to run it with instead."""

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Handle a point of a stage, a tensor that the model may write into afterwards.

        Its name: the module's path inside the stage and `.input` or `.output`, or what enters
        attention: `attention.rotated_query` and `attention.rotated_key`.
        """

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Handle what a stage has returned."""

    @contextlib.contextmanager
    def watching(self, model: PreTrainedModel, stages: Sequence[Stage]) -> Iterator[None]:
        """Watch these stages of `model` in the block."""
        with self._during_stage, contextlib.ExitStack() as hooks:  # both, where a stage raises
            for stage in stages:
                self._watch(stage, model, hooks)
            yield

    def _watch(self, stage: Stage, model: nn.Module, hooks: contextlib.ExitStack) -> None:
        module = model.get_submodule(stage.path)
        inside = []
        if self.detail:
            inside = [(n, m) for n, m in module.named_modules() if n and not list(m.children())]
        if stage.rope is not None:
            inside.append((stage.rope, model.get_submodule(stage.rope)))
        enter = partial(self._enter, stage)
        hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
        for name, child in inside:
            key = (stage.number, name)
            hooks.enter_context(child.register_forward_pre_hook(partial(self._before, key)))
            hooks.enter_context(child.register_forward_hook(partial(self._after, key)))
        hooks.enter_context(module.register_forward_hook(partial(self._leave, stage)))

    def _enter(
        self, stage: Stage, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        self.current = stage.number
        self._calls.clear()
        self._attention_seen = False
        call = self.entered(stage, args, kwargs)
        if self.detail:
            self._during_stage.enter_context(AttentionInputs(self._attention_inputs))
        return call

    def _leave(self, stage: Stage, _: nn.Module, __: object, output: object) -> None:
        self._during_stage.close()
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, torch.Tensor):
            self.left(stage, tensor)
        self.current = None

    def _before(self, key: tuple[int, str], _: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls[key] += 1
        if args and isinstance(args[0], torch.Tensor):
            with unseen():
                self.seen(key[0], f"{self._label(key)}.input", args[0])

    def _after(self, key: tuple[int, str], _: nn.Module, __: object, output: object) -> None:
        label = f"{self._label(key)}.output"
        if isinstance(output, torch.Tensor):
            with unseen():
                self.seen(key[0], label, output)
        elif isinstance(output, tuple):  # the rotary embedding's cosines and sines
            for index, value in enumerate(output):
                if isinstance(value, torch.Tensor):
                    self.seen(key[0], f"{label}.{index}", value)

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
    """Return a call's arguments with `main` in the place of the first tensor, if there is one."""
    first = main_input(args, kwargs)
    if first is None:
        return args, kwargs
    named = {name: main if value is first else value for name, value in kwargs.items()}
    return tuple(main if value is first else value for value in args), named


# ---- Recording -----------------------------------------------------------------------------------


@dataclass
class StageRecord:
    """What one stage saw: its points in the order of execution, and its call, to repeat it.

    Tensors are on the CPU in their own dtype. A module's input has a name of its own even where it
    is the very output of the module before it: a device that leaves a step out shows by that.
    """

    points: Points = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Recorder(StageWatch):
    """Records one call's stages, by number; all tensors must be on one type of device.

    `share` keeps the tensors themselves instead of copies, for a model on the CPU without inference
    mode: safe where none has another version afterwards than in `versions`.
    """

    def __init__(
        self, stages: Sequence[Stage], device_type: str, *, detail: bool, share: bool
    ) -> None:
        super().__init__(detail=detail)
        self.device_type = device_type
        self.share = share
        self.stages = {stage.number: StageRecord() for stage in stages}
        self.versions: list[tuple[torch.Tensor, int]] = []
        self._copies: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def entered(self, stage: Stage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record a stage's input."""
        record = self.stages[stage.number]
        if self.device_type == "cpu":
            record.args, record.kwargs = args, kwargs
        main = main_input(args, kwargs)
        if main is not None:
            record.points["input"] = self._copy(main)

    def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
        """Record a point."""
        self.stages[number].points[name] = self._copy(tensor)

    def left(self, stage: Stage, output: torch.Tensor) -> None:
        """Record a stage's output."""
        copied = self._copy(output)
        self.stages[stage.number].points["output"] = copied
        self._copies = {content_of(output): (output, copied)}  # the next stage's input

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy on the CPU; the same one for the same tensor with the same content."""
        content = content_of(tensor)
        if content in self._copies:
            return self._copies[content][1]
        require_on(self.device_type, tensor)
        share = self.share and not tensor.is_inference()
        if share:
            self.versions.append((tensor, tensor._version))
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
) -> tuple[T, dict[int, StageRecord]]:
    """Record what flows through `model` during a call; return the call's result and each stage's.

    A CPU's tensors are kept as they are, since copies cost time and memory; a model that writes
    into them is called again, on fresh arguments, and they are copied. No inference mode: its
    tensors count no writing. A KitError where a tensor is not on the device.
    """
    for share in (True, False) if device_type == "cpu" else (False,):
        recorder = Recorder(stages, device_type, detail=detail, share=share)
        with recorder.watching(model, stages):
            result = call()
        if all(tensor._version == version for tensor, version in recorder.versions):
            break
    return result, recorder.stages


def content_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what tells a living tensor's present content from any other."""
    # A tensor of inference mode counts no writing, so a change in place stays unseen there.
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def require_on(device_type: str, *tensors: torch.Tensor) -> None:
    """Check that tensors are on the device that their side claims to be; else a KitError."""
    for tensor in tensors:
        if tensor.device.type != device_type:
            raise KitError(
                f"a tensor that should be on the {device_type} is on {tensor.device}: "
                "device and reference were mixed up, so their comparison would mean nothing"
            )
