"""Run the model in one mode: a copy of it on the device, and forwards of any batch size."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from kit.device.device import device_errors, require_dtype, strict_fp32
from kit.device.meters import PeakMemory, capture
from kit.model import model as models
from kit.model.model import Features, forward
from kit.model.setup import Setup, model_input, move_model
from kit.options import Mode
from kit.output import RunLog


@dataclass(frozen=True)
class ModeRunner:
    """A model on the device in one mode.

    Attributes:
        setup: device and model, in the mode's dtype.
        mode: the mode.
        model: on the device.
        pixels: one preprocessed image, float32 on the CPU, 1 x 3 x rows x columns.
        move_ms: how long it took to move the model, in ms.
        peaks: of the device's memory, from before the move on.
    """

    setup: Setup
    mode: Mode
    model: PreTrainedModel
    pixels: torch.Tensor
    move_ms: float
    peaks: PeakMemory

    def input(self, batch_size: int, log: RunLog | None = None) -> torch.Tensor:
        """Return the image, batch_size times, on the device and in the mode's dtype.

        Raises:
            KitError, DeviceError: as model_input does.
        """
        return model_input(self.setup, self.pixels.repeat(batch_size, 1, 1, 1), log)

    @contextlib.contextmanager
    def forwards(self, pixel_values: torch.Tensor) -> Iterator[Callable[[], Features]]:
        """Yield a call that runs the model on `pixel_values` as the mode says.

        Under graph capture the tensor's content at the time of each call is what counts, and
        the features are overwritten by the next call.

        Raises:
            DeviceError: where the capture fails.
        """

        def eager() -> Features:
            return forward(self.model, pixel_values)

        if not self.mode.graph:
            yield eager
            return
        captured = capture(self.setup.device, eager, f"{self.mode.name}, batch {len(pixel_values)}")
        try:
            yield captured
        finally:
            captured.release()


@contextlib.contextmanager
def run_mode(
    setup: Setup, mode: Mode, pixels: torch.Tensor, *, keep: bool, log: RunLog | None = None
) -> Iterator[ModeRunner]:
    """Put the model on the device in a mode for the block.

    Args:
        setup: its model is on the CPU in fp32.
        mode: what to run.
        pixels: one preprocessed image, float32 on the CPU.
        keep: leave setup.model as it is and move a copy.
        log: where the move is told; None for silence.

    Raises:
        KitError: where the device does not compute in the mode's dtype.
        DeviceError: where it fails, or has too little memory.
    """
    dtype = require_dtype(setup.device, mode.dtype)
    with device_errors(f"making room for {mode.name}"):
        peaks = PeakMemory(setup.device)
    with strict_fp32(mode.strict):
        model = copy.deepcopy(setup.model) if keep else setup.model
        models.use_attention(model, mode.attention)
        start = time.perf_counter()
        moved = replace(setup, dtype=dtype, model=model)
        model = move_model(moved, log)
        move_ms = (time.perf_counter() - start) * 1e3
        yield ModeRunner(moved, mode, model, pixels, move_ms, peaks)
