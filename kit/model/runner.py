"""The model on the device in one mode, on batches of different images."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from transformers import PreTrainedModel

from kit.device.device import device_errors, fast_math, require_dtype, strict_fp32, synchronize
from kit.device.meters import PeakMemory, capture
from kit.errors import CaptureError, one_line
from kit.model import model as models
from kit.model.model import Features, forward
from kit.model.setup import Setup, model_input, move_model, places
from kit.options import Mode
from kit.output import RunLog

Call = Callable[[], Features]


@dataclass(frozen=True)
class Images:
    """Different images, and what the model should say of each.

    Attributes:
        pixels: preprocessed, float32 on the CPU, images x 3 x rows x columns.
        expected: each one's features by the fp32 model on the CPU.
    """

    pixels: torch.Tensor
    expected: Features

    def places(self, batch_size: int, moved: int = 0) -> list[int]:
        """Return which image stands in each place of a batch.

        Args:
            batch_size: images in the batch.
            moved: by how many images each place is moved on.
        """
        return places(batch_size, len(self.pixels), moved)


@dataclass(frozen=True)
class ModeRunner:
    """A model on the device in one mode.

    Attributes:
        setup: the run's, in the mode's dtype.
        mode: the mode.
        model: on the device.
        images: what batches are made of.
        move_ms: how long it took to move the model, in ms.
        peaks: of the device's memory, from before the move on.
        called: the model, or what torch.compile made of it.
        compile_ms: by batch size, how long the first call took, in ms; empty without compilation.
    """

    setup: Setup
    mode: Mode
    model: PreTrainedModel
    images: Images
    move_ms: float
    peaks: PeakMemory
    called: PreTrainedModel
    compile_ms: dict[int, float] = field(default_factory=dict)

    def input(self, batch_size: int, moved: int = 0, log: RunLog | None = None) -> torch.Tensor:
        """Return a batch of the images on the device, in the mode's dtype; `moved` as in places.

        Raises:
            KitError, DeviceError: as model_input does.
        """
        order = self.images.places(batch_size, moved)
        batch = model_input(self.setup, self.images.pixels[order], log)
        return laid_out(batch) if self.mode.channels_last else batch

    @contextlib.contextmanager
    def forwards(self, pixel_values: torch.Tensor) -> Iterator[Call]:
        """Yield a call that runs the model on `pixel_values` as the mode says.

        Under graph capture the tensor's content at the time of each call is what counts, and
        the features are overwritten by the next call.

        Raises:
            CaptureError: where the capture or the compilation fails.
            DeviceError: where the device fails.
        """

        def call() -> Features:
            return forward(self.called, pixel_values)

        if self.mode.compiled:
            self.compile(call, len(pixel_values))
        if not self.mode.graph:
            yield call
            return
        captured = capture(self.setup.device, call, f"{self.mode.name}, batch {len(pixel_values)}")
        try:
            yield captured
        finally:
            captured.release()

    def compile(self, call: Call, batch_size: int) -> None:
        """Make the first call for a batch size, in which torch.compile works, and time it.

        Raises:
            CaptureError: where the compilation fails, or nothing is compiled.
            DeviceError: where the device fails.
        """
        from torch._dynamo.exc import TorchDynamoException  # a second, and few modes need it
        from torch._dynamo.utils import counters

        name = f"{self.mode.name}, batch {batch_size}"
        before, start = counters["stats"]["unique_graphs"], time.perf_counter()
        with device_errors(f"compiling {name}"):
            try:
                call()
            except TorchDynamoException as error:
                raise CaptureError(f"{name} cannot be compiled: {one_line(error)}") from error
            synchronize(self.setup.device)
        if not self.compile_ms and counters["stats"]["unique_graphs"] == before:
            raise CaptureError(f"{name} cannot be compiled: torch.compile found nothing to compile")
        self.compile_ms[batch_size] = (time.perf_counter() - start) * 1e3


def laid_out(batch: torch.Tensor) -> torch.Tensor:
    """Return images, batch x 3 x rows x columns, with the channels innermost in memory."""
    return batch.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def run_mode(
    setup: Setup, mode: Mode, images: Images, *, keep: bool, log: RunLog | None = None
) -> Iterator[ModeRunner]:
    """Put the model on the device in a mode for the block.

    Args:
        setup: its model is on the CPU in fp32.
        mode: what to run.
        images: what batches are made of.
        keep: leave setup.model as it is and move a copy.
        log: where the move is told; None for silence.

    Raises:
        KitError: where the device does not compute in the mode's dtype.
        DeviceError: where it fails, or has too little memory.
    """
    dtype = require_dtype(setup.device, mode.dtype)
    with device_errors(f"making room for {mode.name}"):
        peaks = PeakMemory(setup.device)
    with strict_fp32(mode.strict), fast_math(mode.fast_math):
        model = copy.deepcopy(setup.model) if keep else setup.model
        models.use_attention(model, mode.attention)
        start = time.perf_counter()
        moved = replace(setup, dtype=dtype, model=model)
        model = move_model(moved, log)
        if mode.channels_last:
            with device_errors(f"laying out the weights of {mode.name}"):
                model.to(memory_format=torch.channels_last)
        move_ms = (time.perf_counter() - start) * 1e3
        called = cast(PreTrainedModel, torch.compile(model)) if mode.compiled else model
        try:
            yield ModeRunner(moved, mode, model, images, move_ms, peaks, called)
        finally:
            if mode.compiled:
                torch.compiler.reset()  # what was compiled counts against the next mode's limit
