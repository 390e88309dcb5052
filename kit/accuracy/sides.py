"""The CPU's sides of a comparison: plain fp32, the fp64 truth, and the declared arithmetic."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kit.accuracy.arithmetic import Declared, copy_in, in_declared_type, rounding
from kit.accuracy.recorder import Recorder, recorded, require_on
from kit.accuracy.stages import Stages, find_stages
from kit.model.model import Features, features_of, use_attention


@dataclass(frozen=True)
class Run:
    """One forward of one side.

    Attributes:
        features: on the CPU, in the side's dtype.
        recorder: what the stages saw.
    """

    features: Features
    recorder: Recorder


class Side:
    """A model on the CPU that computes in one arithmetic.

    Attributes:
        model: in evaluation mode.
        dtype: of its weights and its input.
        declared: the arithmetic; None for the truth, which rounds nothing on purpose.
    """

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, declared: Declared | None
    ) -> None:
        """Take the model as it is."""
        self.model = model
        self.dtype = dtype
        self.declared = declared

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute without gradients in this side's arithmetic in the block."""
        with (
            torch.no_grad(),
            contextlib.nullcontext() if self.declared is None else rounding(self.declared),
        ):
            yield

    def forward(self, pixels: torch.Tensor) -> Features:
        """Run one forward on the CPU; while this side is `computing`.

        Args:
            pixels: float32 on the CPU, batch x 3 x rows x columns.

        Raises:
            KitError: where anything of it is not on the CPU.
        """
        for parameter in self.model.parameters():
            require_on(parameter, "cpu")
        features = features_of(self.model, self.model(pixels.to(self.dtype, copy=True)))
        require_on(features.last_hidden_state, "cpu")
        require_on(features.pooler_output, "cpu")
        return features

    def run(self, pixels: torch.Tensor, stages: Stages) -> Run:
        """Run one forward, and record its stages' inputs, outputs and arguments.

        Args:
            pixels: as `forward` has them.
            stages: what to record.

        Raises:
            KitError: where anything of it is not on the CPU.
        """
        with self.computing():
            features, recorder = recorded(
                lambda: self.forward(pixels), self.model, stages.all, keep_arguments=True
            )
        return Run(features, recorder)

    def features(self, pixels: torch.Tensor) -> Features:
        """Run one forward without recording anything.

        Raises:
            KitError: where anything of it is not on the CPU.
        """
        with self.computing():
            return self.forward(pixels)


@dataclass(frozen=True)
class ReferenceRuns:
    """One image on the CPU's fp32 sides.

    Attributes:
        pixels: the reference's own input, float32 on the CPU, a batch of one.
        cpu: in plain fp32.
        budget: in the declared arithmetic; `cpu` itself where that is plain fp32.
    """

    pixels: torch.Tensor
    cpu: Run
    budget: Run


class References:
    """All CPU sides of one model, each made when it is first asked for.

    Attributes:
        stages: of the model.
        declared: the arithmetic that the device declares.
        cpu: plain fp32.
    """

    def __init__(self, model: PreTrainedModel, declared: Declared) -> None:
        """Use `model`: on the CPU, fp32, in evaluation mode; it is not changed.

        The truth is begun at once in a thread, while the device has its first work.
        """
        self.stages = find_stages(model)
        self.declared = declared
        self.cpu = Side(model, torch.float32, Declared())
        with_one_thread = ThreadPoolExecutor(1, "truth")
        self._truth: Future[Side] = with_one_thread.submit(exact_side, model)
        with_one_thread.shutdown(wait=False)
        self._budget: Side | None = None

    @property
    def truth(self) -> Side:
        """The same model in fp64: twice the fp32 weights' memory."""
        return self._truth.result()

    def wait(self) -> None:
        """Wait until the truth is copied: no hook may stand on the model before."""
        self._truth.result()

    @property
    def budget(self) -> Side:
        """The model in the declared arithmetic; the plain fp32 side where that is declared."""
        if self.declared.plain:
            return self.cpu
        if self._budget is None:
            model = in_declared_type(self.cpu.model, self.declared)
            dtype = next(model.parameters()).dtype
            self._budget = Side(model, dtype, self.declared)
        return self._budget

    def run(self, pixels: torch.Tensor) -> ReferenceRuns:
        """Run one image on the fp32 sides; the truth runs when it is examined.

        Args:
            pixels: preprocessed, float32 on the CPU, 1 x 3 x rows x columns.
        """
        self.wait()  # the truth is copied whole before hooks are put on the model
        cpu = self.cpu.run(pixels, self.stages)
        budget = cpu if self.declared.plain else self.budget.run(pixels, self.stages)
        return ReferenceRuns(pixels, cpu, budget)


def exact_side(model: PreTrainedModel) -> Side:
    """Return the model's copy in fp64."""
    exact = copy_in(model, torch.float64)
    # 4.57's eager attention takes its softmax in fp32, whatever the model's dtype.
    use_attention(exact, "sdpa")
    return Side(exact, torch.float64, None)
