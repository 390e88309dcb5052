"""The model: loaded from a weights folder or built with seeded random weights, and its forward.

A forward makes features out of pixels; it can be timed, and is refused where it is not finite.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from kit.device.device import Device, device_errors, synchronize
from kit.errors import KitError, one_line

# The architecture of facebook/dinov3-vitb16-pretrain-lvd1689m, as its config.json has it.
VITB16: dict[str, Any] = {
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_register_tokens": 4,
    "rope_theta": 100.0,
    "image_size": 224,
    "layer_norm_eps": 1e-5,
}
NAMES_SHOWN = 3


def load(folder: Path, attention: str) -> PreTrainedModel:
    """Load a vision model from a local folder, on the CPU in fp32, ready for inference.

    Only safetensors are read, nothing is unpickled, no code from the folder runs. The attention,
    sdpa or eager, has no effect on a model that has none. Raises KitError where the folder does not
    hold exactly one sound vision model.
    """
    config = load_config(folder)
    chosen = {"attn_implementation": attention} if has_attention(config) else {}
    try:
        # Its log would say in many lines what check_keys says in one.
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them; nothing runs with them
                **chosen,
            )
    except Exception as error:  # transformers lets through whatever its parts raise
        raise KitError(
            f"the weights in {folder} cannot be loaded ({one_line(error)}): download them again"
        ) from error
    check_keys(folder, report)
    ready: PreTrainedModel = model.eval()
    return ready


def random_model(seed: int, attention: str) -> PreTrainedModel:
    """Return ViT-B/16 with seeded random weights, on the CPU in fp32: its features mean nothing."""
    torch.manual_seed(seed)
    config = transformers.DINOv3ViTConfig(**VITB16)
    model: PreTrainedModel = AutoModel.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def load_config(folder: Path) -> PretrainedConfig:
    """Return the configuration of a folder's vision model; KitError for another or an unknown."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the same
        raise KitError(
            f"{folder / 'config.json'} is no model that transformers "
            f"{transformers.__version__} knows ({one_line(error)})"
        ) from error
    model_class = AutoModel._model_mapping.get(type(config), None)
    if getattr(model_class, "main_input_name", None) != "pixel_values":
        raise KitError(
            f"weights folder {folder} holds a {config.model_type} model, which is no vision "
            "model: give the folder of a DINOv3 or another image model"
        )
    return config


def has_attention(config: PretrainedConfig) -> bool:
    """Return whether the model has attention layers (ConvNeXt has none)."""
    return hasattr(config, "num_attention_heads")


def use_attention(model: PreTrainedModel, attention: str) -> None:
    """Switch a loaded model's attention, if it has one, to sdpa or eager; KitError if it cannot."""
    if not has_attention(model.config):
        return
    with quiet_transformers():  # it only warns where it cannot
        model.set_attn_implementation(attention)
    if model.config._attn_implementation != attention:
        raise KitError(f"{type(model).__name__} cannot switch to {attention} attention")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own log and progress bar for the block."""
    transformers_logging = transformers.utils.logging
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def check_keys(folder: Path, report: dict[str, Any]) -> None:
    """Check that every weight was found, none left over, shapes right; KitError names the first."""
    problems = (
        ("mismatched_keys", "wrong shape for"),
        ("missing_keys", "no weights for"),
        ("unexpected_keys", "weights that the model does not know:"),
        ("error_msgs", "damaged weights:"),
    )
    for entry, words in problems:
        names = [str(key[0] if isinstance(key, tuple) else key) for key in report.get(entry) or ()]
        rest = len(names) - NAMES_SHOWN
        if names:
            raise KitError(
                f"the weights in {folder} do not fit their config.json: {words} "
                f"{', '.join(sorted(names)[:NAMES_SHOWN])}{f' and {rest} more' if rest > 0 else ''}"
                "; download the folder again"
            )


def sha256_of_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of CPU tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def patch_size(config: PretrainedConfig) -> int:
    """Return the side in pixels of what becomes one patch token; a ConvNeXt's whole stride."""
    if has_attention(config):
        return int(config.patch_size)
    return int(4 * 2 ** (len(config.depths) - 1))  # a stem of stride 4, then a halving per stage


def patch_grid(config: PretrainedConfig, shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of patches of an input: batch, channels, rows, columns."""
    side = patch_size(config)
    return shape[-2] // side, shape[-1] // side


def register_tokens(config: PretrainedConfig) -> int:
    """Return how many register tokens follow the CLS token."""
    return int(getattr(config, "num_register_tokens", 0) or 0)


@dataclass(frozen=True)
class Features:
    """What the model says of a batch of images, on the device that computed it."""

    pooler_output: torch.Tensor  # batch x width
    # Batch x tokens x width (ViT: CLS, registers, then patches row by row).
    last_hidden_state: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Features":
        """Return what `change` makes of each tensor."""
        return Features(change(self.pooler_output), change(self.last_hidden_state))


TENSORS = tuple(Features.__annotations__)


def forward(model: PreTrainedModel, pixel_values: torch.Tensor) -> Features:
    """Run the model, in evaluation mode, without gradients.

    `pixel_values`: batch x 3 x rows x columns, on the model's device and in its dtype. A KitError
    where the output lacks one of the two tensors, or the model's own code does not take a value of
    its configuration; what the device raises is a RuntimeError and passes.
    """
    try:
        with torch.inference_mode():
            return features_of(model, model(pixel_values))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise KitError(
            f"{type(model).__name__} cannot compute as its config.json says "
            f"({type(error).__name__}: {one_line(error)}): download the weights again"
        ) from error


def features_of(model: PreTrainedModel, output: object) -> Features:
    """Return the two tensors of a model's output; a KitError where it lacks one of them."""
    pooler_output = getattr(output, "pooler_output", None)
    last_hidden_state = getattr(output, "last_hidden_state", None)
    if pooler_output is None or last_hidden_state is None:
        raise KitError(
            f"{type(model).__name__} does not give last_hidden_state and pooler_output: "
            "this kit validates models that do, such as DINOv3 and DINOv2"
        )
    return Features(pooler_output, last_hidden_state)


def require_patch_tokens(model: PreTrainedModel, features: Features, shape: Sequence[int]) -> None:
    """Check that last_hidden_state has CLS, registers and one token per patch, as the kit reads it.

    A KitError for a model of another layout, such as Swin; `shape` is the input's.
    """
    rows, columns = patch_grid(model.config, shape)
    registers, found = register_tokens(model.config), tuple(features.last_hidden_state.shape[1:])
    if len(found) != 2 or found[0] != 1 + registers + rows * columns:
        raise KitError(
            f"{type(model).__name__} gives a last_hidden_state of {found}, not CLS, {registers} "
            f"registers and {rows} x {columns} patches: this kit validates models that do, "
            "such as DINOv3 and DINOv2"
        )


def timed_forward(
    device: Device, model: PreTrainedModel, pixel_values: torch.Tensor
) -> tuple[Features, float]:
    """Return one forward's features and its wall-clock time in ms, the device synchronized.

    Raises DeviceError where the device fails, KitError as forward does.
    """
    with device_errors("computing the forward pass"):
        synchronize(device)
        start = time.perf_counter()
        features = forward(model, pixel_values)
        synchronize(device)
        return features, (time.perf_counter() - start) * 1e3


def to_host(features: Features) -> Features:
    """Copy the features to the CPU, in their dtype, whose largest number counts as infinity."""
    with device_errors("copying the features to the host"):
        return features.map(lambda tensor: overflowed(tensor.cpu()))


def overflowed(tensor: torch.Tensor, also: float = torch.inf) -> torch.Tensor:
    """Return a CPU tensor whose largest numbers are infinite, as a chip that saturates means them.

    `also` is a further size that counts as the largest number; what is not floating stays.
    """
    if not tensor.is_floating_point():
        return tensor
    size = tensor.abs()
    saturated = (size >= torch.finfo(tensor.dtype).max) | (size == also)
    if not bool(saturated.any()):
        return tensor  # itself: points that are one tensor are told by that
    return torch.where(saturated, tensor.sign() * torch.inf, tensor)


def not_finite(features: Features) -> str | None:
    """Return the count and the first place of NaN or infinity; None where every value is finite."""
    for name in TENSORS:
        broken = ~torch.isfinite(getattr(features, name))
        if count := int(broken.sum()):
            place = tuple(int(i) for i in broken.nonzero()[0])
            return f"{name} holds {count} values that are NaN or infinite, the first at {place}"
    return None


def require_finite(features: Features) -> None:
    """Check that every value is finite; else a KitError that says what `not_finite` does."""
    if (words := not_finite(features)) is not None:
        raise KitError(
            f"{words}: this is no result; try --dtype fp32, and check the weights and the device"
        )
