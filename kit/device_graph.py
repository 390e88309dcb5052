"""Graph capture: record a call's work on the device once, replay it at next to no host cost.

Beside kit/device.py and kit/device_meters.py the only file that calls torch.cuda. Under npu_patch
torch.cuda.graph captures an NPUGraph.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from kit.device import Device, device_errors, first_line, is_out_of_memory, synchronize
from kit.errors import CaptureError

T = TypeVar("T")
CALLS_BEFORE_CAPTURE = 2  # libraries make their workspaces and choose their kernels in these


class CapturedCall(Generic[T]):
    """A call that was captured; calling it replays the work into the same output tensors.

    Attributes:
        output: what the call returned; its tensors hold the last replay's result.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, output: T) -> None:
        """Keep the graph and the output tensors, which live in the graph's own memory."""
        self.graph = graph
        self.output = output

    def __call__(self) -> T:
        """Replay; the inputs are read where they were at capture."""
        self.graph.replay()
        return self.output

    def release(self) -> None:
        """Give the graph's memory back."""
        self.graph.reset()


def capture(device: Device, call: Callable[[], T], name: str) -> CapturedCall[T]:
    """Capture a call that works on tensors whose place in memory stays.

    Args:
        device: an accelerator.
        call: what is captured; it may not wait for the device or read from it.
        name: of the work, for messages.

    Raises:
        CaptureError: for the CPU, which has no graphs, and where the call does what no graph
            can hold. The caller asks the device whether it still computes.
        OutOfDeviceMemoryError, DeviceError: where the device fails.
    """
    if device.type == "cpu":
        raise CaptureError("the CPU has no graph capture: leave -graph out of the mode")
    with device_errors(f"capturing {name}"):
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch's own
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(CALLS_BEFORE_CAPTURE):
                call()
        torch.cuda.current_stream().wait_stream(side_stream)
        synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                output = call()
            synchronize(device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CaptureError(f"{name} cannot be captured: {first_line(error)}") from error
    return CapturedCall(graph, output)
