"""One forward pass: features out of pixels, timed, and refused where they are not finite."""

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kit.device import Device, device_errors, synchronize
from kit.errors import KitError


@dataclass(frozen=True)
class Features:
    """What the model says of a batch of images, on the device that computed it.

    Attributes:
        pooler_output: batch x width.
        last_hidden_state: batch x tokens x width (ViT: CLS, registers, then patches row by row).
    """

    pooler_output: torch.Tensor
    last_hidden_state: torch.Tensor


def forward(model: PreTrainedModel, pixel_values: torch.Tensor) -> Features:
    """Run the model without gradients.

    Args:
        model: in evaluation mode.
        pixel_values: batch x 3 x rows x columns, on the model's device and in its dtype.

    Raises:
        KitError: where the model's output lacks one of the two tensors.
    """
    with torch.inference_mode():
        return features_of(model, model(pixel_values))


def features_of(model: PreTrainedModel, output: object) -> Features:
    """Return the two tensors of a model's output.

    Raises:
        KitError: where the output lacks one of them.
    """
    pooler_output = getattr(output, "pooler_output", None)
    last_hidden_state = getattr(output, "last_hidden_state", None)
    if pooler_output is None or last_hidden_state is None:
        raise KitError(
            f"{type(model).__name__} does not give last_hidden_state and pooler_output: "
            "this kit validates models that do, such as DINOv3 and DINOv2"
        )
    return Features(pooler_output, last_hidden_state)


def timed_forward(
    device: Device, model: PreTrainedModel, pixel_values: torch.Tensor
) -> tuple[Features, float]:
    """Return one forward's features and its wall-clock time in ms, the device synchronized.

    Raises:
        DeviceError: where the device fails.
        KitError: as forward does.
    """
    with device_errors("computing the forward pass"):
        synchronize(device)
        start = time.perf_counter()
        features = forward(model, pixel_values)
        synchronize(device)
        latency_ms = (time.perf_counter() - start) * 1e3
    return features, latency_ms


def to_host(features: Features) -> Features:
    """Copy the features to the CPU, in their dtype.

    Raises:
        DeviceError: where the device fails.
    """
    with device_errors("copying the features to the host"):
        return Features(features.pooler_output.cpu(), features.last_hidden_state.cpu())


def require_finite(features: Features) -> None:
    """Check that every value is finite.

    Raises:
        KitError: with the count and the first place of NaN or infinity.
    """
    for name in Features.__annotations__:
        tensor: torch.Tensor = getattr(features, name)
        broken = ~torch.isfinite(tensor)
        if count := int(broken.sum()):
            place = tuple(int(i) for i in broken.nonzero()[0])
            raise KitError(
                f"{name} holds {count} values that are NaN or infinite, the first at {place}: "
                "this is no result; try --dtype fp32, and check the weights and the device"
            )
