"""The CPU's sides of a comparison: plain fp32, fp64, and the declared arithmetic imitated.

What a device's mode rounds is rounded by the imitation too. HF32 and TF32 round the inputs of
matrix products or convolutions and add up in fp32. bf16 and fp16 store every result in that type
while a matrix product or convolution adds up in fp32, on an NPU's cube unit as on a GPU's tensor
cores.

Sources: HF32 has fp32's exponent and 11 mantissa bits, rounded to nearest, ties to even (CANN,
--allow_hf32 and SetHF32); TF32 has 10 mantissa bits (NVIDIA, A100 whitepaper).
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from kit.accuracy.limits import SMALLEST_ALONE, Arithmetic, arithmetic_of
from kit.accuracy.recorder import (
    Points,
    Stage,
    StageRecord,
    find_stages,
    main_input,
    recorded,
    require_on,
    with_main_input,
)
from kit.device.arithmetic import STORED, OwnGelu, found, multiplies_in, rounded_to
from kit.device.device import DTYPES, float_modes
from kit.model.model import Features, features_of, use_attention
from kit.model.setup import Setup, move_model, with_arithmetic
from kit.output import RunLog
from kit.records import GeluForm, Products

Operator = Any  # torch's overloads have no type of their own
aten = torch.ops.aten
# Operators whose inputs a matrix unit may round, and where these inputs stand.
PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 2),
    aten._scaled_dot_product_attention_math.default: (0, 1, 2),
}
CONVOLUTIONS = {aten.convolution.default: (0, 1)}
# Where the CPU may lack a fast half kernel, fp32 arithmetic on the half inputs is the same.
ADDED_UP_IN_FP32 = (*PRODUCTS, *CONVOLUTIONS)


@dataclass(frozen=True)
class Declared:
    """What a run's device computes with: as it is set, or as it was found to."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    matmul: Products = "fp32"  # what fp32 matrix products multiply in, as are the next two
    convolution: Products = "fp32"
    attention: Products | None = None  # None: as `matmul`
    gelu: GeluForm = "erf"

    @property
    def arithmetic(self) -> Arithmetic:
        """The row of the limits' table."""
        return arithmetic_of(self.dtype, self.matmul, self.attention or "fp32", self.convolution)

    @property
    def plain(self) -> bool:
        """Whether it is fp32 throughout, which the CPU computes as it is."""
        return self.arithmetic == "fp32" and self.gelu == "erf"

    def reduces(self, module: torch.nn.Module) -> bool:
        """Return whether fp32 does not tell what a module, or attention beside it, computes."""
        if isinstance(module, torch.nn.Linear):
            return {self.matmul, self.attention or self.matmul} != {"fp32"}
        if isinstance(module, torch.nn.Conv2d):
            return self.convolution != "fp32"
        return self.gelu == "tanh" and "GELU" in type(module).__name__

    def tolerance(self, module: torch.nn.Module) -> float:
        """Return how far two devices of this arithmetic may differ in a module's own result."""
        products = {torch.nn.Linear: self.matmul, torch.nn.Conv2d: self.convolution}
        name = products.get(type(module), "fp32")
        return SMALLEST_ALONE[name.removesuffix(STORED) if name.endswith(STORED) else "sum"]

    def __str__(self) -> str:
        """Return it in words, for reports."""
        words: str = self.dtype
        if self.dtype == "fp32":
            words += f" (matrix products {self.matmul}, convolutions {self.convolution}"
            attention = self.attention or self.matmul
            words += ")" if attention == self.matmul else f", attention {attention})"
        return words if self.gelu == "erf" else f"{words} with the tanh form of GELU"


def declared_by(setup: Setup) -> Declared:
    """Return what a run's device was found to compute in; as set, where that is undocumented."""
    gelu: GeluForm = "tanh" if found(setup.arithmetic, "GELU") == "tanh" else "erf"
    if setup.dtype != torch.float32:
        return Declared("bf16" if setup.dtype == torch.bfloat16 else "fp16", gelu=gelu)
    matmul, convolution = float_modes(setup.device)
    matmul = multiplies_in(setup.arithmetic, "matrix product", matmul)
    convolution = multiplies_in(setup.arithmetic, "convolution", convolution)
    attention = multiplies_in(setup.arithmetic, "attention", matmul)
    return Declared("fp32", matmul, convolution, None if attention == matmul else attention, gelu)


# ---- Imitation -----------------------------------------------------------------------------------


class Imitation(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base is untyped
    """Computes in the declared arithmetic while it is active; use it without gradients.

    inference_mode must be off: it hands composite operators to the mode undivided.
    """

    def __init__(self, declared: Declared) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's own base is untyped
        self.declared = declared
        self.rounded = {
            operator: (places, products)
            for products, operators in (
                (declared.matmul, PRODUCTS),
                (declared.attention or declared.matmul, ATTENTION),
                (declared.convolution, CONVOLUTIONS),
            )
            for operator, places in operators.items()
            if products != "fp32"
        }

    def __torch_dispatch__(
        self,
        func: Operator,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run one operator as the declared arithmetic does."""
        given = dict(kwargs or {})
        if func is aten.gelu.default and self.declared.gelu == "tanh":
            return func(args[0], approximate="tanh")
        if func in ADDED_UP_IN_FP32 and self.declared.dtype != "fp32":
            half = next(value.dtype for value in args if isinstance(value, torch.Tensor))
            wide = (one.float() if isinstance(one, torch.Tensor) else one for one in args)
            return func(*wide, **given).to(half)
        if func not in self.rounded:
            return func(*args, **given)
        places, products = self.rounded[func]
        rounded = (
            rounded_to(products, value.float()).to(value.dtype) if index in places else value
            for index, value in enumerate(args)
        )
        result = func(*rounded, **given)
        # Attention's result, a tuple, is no product alone.
        if products.endswith(STORED) and isinstance(result, torch.Tensor):
            return rounded_to(products, result).to(result.dtype)
        return result


def in_declared_type(model: PreTrainedModel, declared: Declared) -> PreTrainedModel:
    """Return the CPU model with its weights in the declared type: itself for fp32, else a copy."""
    return model if declared.dtype == "fp32" else copy_in(model, DTYPES[declared.dtype])


def copy_in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a copy of the model with its floating tensors in `dtype`; no other copy is made."""
    converted: dict[int, torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            changed = tensor.detach().to(dtype, copy=True)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            converted[id(tensor)] = (
                torch.nn.Parameter(changed, requires_grad=False) if is_parameter else changed
            )
    copied: PreTrainedModel = copy.deepcopy(model, converted)
    return copied


# ---- Sides ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedRun:
    """One forward of one side: its features on the CPU, and what each stage saw, by its number."""

    features: Features
    stages: dict[int, StageRecord]


class Side:
    """A model on the CPU that imitates an arithmetic; one that is plain leaves it as it is."""

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        self.model = model
        self.declared = declared

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients in this side's arithmetic in the block."""
        plain = self.declared.plain
        with torch.no_grad(), contextlib.nullcontext() if plain else Imitation(self.declared):
            yield

    def forward(self, pixels: torch.Tensor) -> Features:
        """Run one forward on the CPU, while this side is `computing`; else a KitError.

        `pixels` are float32, batch x 3 x rows x columns.
        """
        require_on("cpu", *self.model.parameters())
        dtype = next(self.model.parameters()).dtype
        features = features_of(self.model, self.model(pixels.to(dtype, copy=True)))
        require_on("cpu", *vars(features).values())
        return features

    def features(self, pixels: torch.Tensor) -> Features:
        """Run one forward without recording anything; as `forward`."""
        with self.computing():
            return self.forward(pixels)

    def run(self, pixels: torch.Tensor, stages: Sequence[Stage]) -> RecordedRun:
        """Run one forward, and record its stages' inputs, outputs and arguments; as `forward`."""
        with self.computing():
            return RecordedRun(*recorded(lambda: self.forward(pixels), self.model, stages))

    def replay(self, stage: Stage, own: StageRecord, main: torch.Tensor | None) -> Points:
        """Repeat one stage's call, as this side's `own` record has it, and return its points.

        `main` takes the place of the first tensor, in its dtype.
        """
        module = self.model.get_submodule(stage.path)
        before = main_input(own.args, own.kwargs)

        def call() -> None:
            args, kwargs = own.args, own.kwargs
            if main is not None and before is not None:  # a copy, the call may write into it
                args, kwargs = with_main_input(args, kwargs, main.to(before.dtype, copy=True))
            module(*args, **kwargs)

        # The rotary embedding has run before the block: its points are the first run's.
        alone = Stage(stage.number, stage.path)
        with self.computing():
            return recorded(call, self.model, [alone], detail=True)[1][stage.number].points


@dataclass(frozen=True)
class ReferenceRuns:
    """One image on the CPU's two fp32 sides."""

    pixels: torch.Tensor  # float32, a batch of one
    fp32: RecordedRun
    imitation: RecordedRun  # in the declared arithmetic: `fp32` itself where that is plain


class References:
    """All CPU sides of one model: on the CPU, fp32, in evaluation mode; it is not changed.

    Its fp64 copy is begun at once in a thread, while the device has its first work.
    """

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        self.stages = find_stages(model)
        self.declared = declared
        self.fp32 = Side(model, Declared())
        with_one_thread = ThreadPoolExecutor(1, "fp64")
        self._fp64: Future[Side] = with_one_thread.submit(fp64_side, model)
        with_one_thread.shutdown(wait=False)

    @property
    def fp64(self) -> Side:
        """The same model in fp64, of twice the fp32 weights' memory; waits until it is copied."""
        return self._fp64.result()

    @cached_property
    def imitation(self) -> Side:
        """The model in the declared arithmetic; the plain fp32 side where that is declared."""
        if self.declared.plain:
            return self.fp32
        return Side(in_declared_type(self.fp32.model, self.declared), self.declared)

    def run(self, pixels: torch.Tensor) -> ReferenceRuns:
        """Run one preprocessed image on the fp32 sides; fp64 runs when the device is examined."""
        _ = self.fp64  # copied whole before hooks are put on the model
        fp32 = self.fp32.run(pixels, self.stages.all)
        if self.declared.plain:
            return ReferenceRuns(pixels, fp32, fp32)
        return ReferenceRuns(pixels, fp32, self.imitation.run(pixels, self.stages.all))


def fp64_side(model: PreTrainedModel) -> Side:
    """Return the model's copy in fp64."""
    exact = copy_in(model, torch.float64)
    # 4.57's eager attention takes its softmax in fp32, whatever the model's dtype.
    use_attention(exact, "sdpa")
    return Side(exact, Declared())


@dataclass(frozen=True)
class Sides:
    """The device's model and all CPU sides of the same weights."""

    setup: Setup
    model: PreTrainedModel
    references: References
    factor: float  # how many times the expected error still counts as explained
    own_gelu: OwnGelu | None = None  # makes a context of the chip's own GELU; None: always is

    @property
    def self_check(self) -> bool:
        """Whether the device is the CPU itself."""
        return self.setup.device.type == "cpu"

    @property
    def reference(self) -> Side:
        """The side that the thresholds are held against."""
        return self.references.fp64 if self.self_check else self.references.fp32


def make_sides(setup: Setup, factor: float, log: RunLog, own_gelu: OwnGelu | None = None) -> Sides:
    """Keep the CPU's model, move one to the device, and find what the device computes in."""
    shared = setup.device.type == "cpu" and setup.dtype == torch.float32
    on_cpu = setup.model if shared else copy.deepcopy(setup.model)
    model = move_model(setup, log)
    setup = with_arithmetic(setup, log, own_gelu)
    return Sides(setup, model, References(on_cpu, declared_by(setup)), factor, own_gelu)
