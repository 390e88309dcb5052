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
from kit.model.setup import Setup, model_input, move_model
from kit.options import Mode
from kit.output import RunLog

Call = Callable[[], Features]


@dataclass(frozen=True)
class Images:
    """Different images, and what the model should say of each."""

    pixels: torch.Tensor  # preprocessed, float32 on the CPU, images x 3 x rows x columns
    expected: Features  # each one's by the fp32 model on the CPU

    def places(self, batch_size: int, moved: int = 0) -> list[int]:
        """Return which image stands in each place of a batch, each moved on by so many images.

        By the sum of the place's digits: neighbours differ, and so do places a power of the number
        of images apart, so that an exchange shows, and an image in place of another.
        """
        images = len(self.pixels)

        def digit_sum(place: int) -> int:
            return place if place < images else place % images + digit_sum(place // images)

        return [(digit_sum(place) + moved) % images for place in range(batch_size)]


@dataclass(frozen=True)
class ModeRunner:
    """A model on the device in one mode."""

    setup: Setup  # the run's, in the mode's dtype
    mode: Mode
    model: PreTrainedModel  # on the device
    images: Images  # of which batches are made
    move_ms: float
    peaks: PeakMemory  # from before the move on
    called: PreTrainedModel  # the model, or what torch.compile made of it
    compile_ms: dict[int, float] = field(default_factory=dict)  # of the first call, by batch size

    def input(self, batch_size: int, moved: int = 0, log: RunLog | None = None) -> torch.Tensor:
        """Return a batch of the images on the device, as model_input does; `moved` as in places."""
        order = self.images.places(batch_size, moved)
        batch = model_input(self.setup, self.images.pixels[order], log)
        if self.mode.channels_last:
            return batch.contiguous(memory_format=torch.channels_last)
        return batch

    @contextlib.contextmanager
    def forwards(self, pixel_values: torch.Tensor) -> Iterator[Call]:
        """Yield a call that runs the model on `pixel_values` as the mode says.

        Under graph capture the tensor's content at the time of each call is what counts, and
        the features are overwritten by the next call. A CaptureError where the capture or the
        compilation fails, a DeviceError where the device does.
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

        A CaptureError where that fails or compiles nothing, a DeviceError where the device fails.
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


@contextlib.contextmanager
def run_mode(
    setup: Setup, mode: Mode, images: Images, *, keep: bool, log: RunLog | None = None
) -> Iterator[ModeRunner]:
    """Put the model, on the CPU in fp32, on the device in a mode for the block.

    `keep` leaves it as it is and moves a copy; `log` is told of the move. A KitError where the
    device does not compute in the mode's dtype, a DeviceError where it fails or lacks the memory.
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
