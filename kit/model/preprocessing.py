"""From pixels to the model's input: to the last bit transformers' own, without torchvision.

DINOv3's processor rescales first and then resizes the float image; the older ones (DINOv2's)
resize the uint8 image, crop, and normalize in one step. Both are bilinear or bicubic with
antialias, which torch's own interpolate computes with torchvision's very kernel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from kit.errors import KitError
from kit.options import LARGEST_SIZE
from kit.outside import kind_of, read_json

Interpolation = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an RGB image to the model's input; None leaves a step out."""

    rescale_first: bool = True  # DINOv3's order (rescale, resize, normalize), not the older one
    height: int | None = 224  # pixels after the resize
    width: int | None = 224  # None where height is the shortest edge and the aspect ratio is kept
    crop: tuple[int, int] | None = None  # rows and columns that are cut from the middle
    interpolation: Interpolation = "bilinear"  # the resize's kernel, with antialias
    rescale_factor: float | None = 1 / 255  # on the 0..255 values
    mean: tuple[float, ...] | None = IMAGENET_MEAN  # per channel, on the rescaled values
    std: tuple[float, ...] | None = IMAGENET_STD  # the same

    def with_size(self, size: int) -> "Preprocessing":
        """Return the same steps for a square input of `size` pixels a side.

        Where the weights crop, the resize keeps its proportion to the crop.
        """
        if self.crop is None:
            return replace(self, height=size, width=size)
        height = self.height and round(self.height * size / self.crop[0])
        width = self.width and round(self.width * size / self.crop[1])
        return replace(self, height=height, width=width, crop=(size, size))

    def __str__(self) -> str:
        """Return the steps in order, for the record."""
        rescale = [f"rescale {self.rescale_factor:.10g}"] if self.rescale_factor else []
        to = f"{self.height}x{self.width}" if self.width else f"shortest edge {self.height}"
        resize = [f"resize {to} {self.interpolation} antialias"] if self.height else []
        crop = [f"center crop {self.crop[0]}x{self.crop[1]}"] if self.crop else []
        normalize = [f"normalize mean {self.mean} std {self.std}"] if self.mean else []
        if self.rescale_first:
            return ", ".join(rescale + resize + crop + normalize)
        return ", ".join(resize + crop + rescale + normalize)


def load(folder: Path | None) -> Preprocessing:
    """Return the steps that folder's preprocessor_config.json asks for; DINOv3's without one.

    Raises KitError where the file asks for something that the kit does not know.
    """
    if folder is None:
        return Preprocessing()
    path = folder / "preprocessor_config.json"
    if kind_of(path, "") == "missing":
        return Preprocessing()
    config = read_json(path, "download it again")
    try:
        return from_config(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise KitError(f"{path} asks for what the kit cannot do: {error}") from error


def from_config(config: Mapping[str, Any]) -> Preprocessing:
    """Return the steps of a preprocessor_config.json's content.

    Raises:
        KeyError, TypeError, ValueError: for a size or a kernel that is not known.
    """

    def given(name: str, default: Any) -> Any:  # noqa: ANN401 - of the file, checked by its user
        value = config.get(name)
        return default if value is None else value

    height = width = None
    if given("do_resize", True):
        height, width = edges(given("size", 224))
    crop = None
    if given("do_center_crop", False):
        crop_height, crop_width = edges(config["crop_size"])
        crop = (crop_height, crop_width or crop_height)
    factor = finite(given("rescale_factor", 1 / 255))
    resample = given("resample", 2)
    interpolation = INTERPOLATIONS.get(resample)
    if interpolation is None:
        raise ValueError(f"resample {resample} is none of {sorted(INTERPOLATIONS)}")
    mean = channels(given("image_mean", IMAGENET_MEAN))
    std = channels(given("image_std", IMAGENET_STD))
    if 0.0 in (factor, *std):
        raise ValueError("a rescale_factor or image_std of 0")
    normalize = given("do_normalize", True)
    return Preprocessing(
        rescale_first="DINOv3" in str(given("image_processor_type", "DINOv3")),
        height=height,
        width=width,
        crop=crop,
        interpolation=interpolation,
        rescale_factor=factor if given("do_rescale", True) else None,
        mean=mean if normalize else None,
        std=std if normalize else None,
    )


def edges(size: object) -> tuple[int, int | None]:
    """Return (height, width), or (shortest edge, None), of a processor's size entry.

    Raises ValueError for any other entry.
    """
    if isinstance(size, int):
        return edge(size), edge(size)
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return edge(size["height"]), edge(size["width"])
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return edge(size["shortest_edge"]), None
    raise ValueError(f"size {size}")


def edge(value: object) -> int:
    """Return a side in pixels.

    Raises ValueError for anything but a whole number from 1 to LARGEST_SIZE.
    """
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(
            f"a size of {str(value)[:40]}, which is not a whole number from 1 to {LARGEST_SIZE}"
        )
    return value


def channels(values: float | Sequence[float]) -> tuple[float, ...]:
    """Return three channel values, one number standing for all three.

    Raises ValueError for any other count.
    """
    numbers = [values] * 3 if isinstance(values, int | float) else list(values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} channel values where 3 are wanted")
    return tuple(finite(number) for number in numbers)


def finite(value: object) -> float:
    """Return a number of the configuration.

    Raises ValueError for text, NaN, infinity and what no float32 holds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e38:
        raise ValueError(f"{str(value)[:40]} is not a number that float32 holds")
    return float(value)


def preprocess(pixels: npt.NDArray[np.uint8], steps: Preprocessing) -> torch.Tensor:
    """Return the model's input, float32 on the CPU, 1 x 3 x rows x columns, for one image.

    Its pixels are uint8, rows x columns x 3, RGB.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    order: tuple[Callable[[torch.Tensor, Preprocessing], torch.Tensor], ...]
    order = (rescale, resize, crop, normalize)
    if not steps.rescale_first:
        order = (resize, crop, rescale_and_normalize)
    for step in order:
        image = step(image, steps)
    return image.to(torch.float32)


def rescale(image: torch.Tensor, steps: Preprocessing) -> torch.Tensor:
    """Multiply by the rescale factor; the result is float32."""
    return image if steps.rescale_factor is None else image * steps.rescale_factor


def resize(image: torch.Tensor, steps: Preprocessing) -> torch.Tensor:
    """Resize with antialias, uint8 or float32; nothing where the size is right already."""
    if steps.height is None:
        return image
    rows, columns = image.shape[-2:]
    if steps.width is not None:
        target = (steps.height, steps.width)
    else:
        long = int(steps.height * max(rows, columns) / min(rows, columns))
        target = (long, steps.height) if rows > columns else (steps.height, long)
    if target == (rows, columns):
        return image
    antialias = steps.interpolation != "nearest"
    return torch.nn.functional.interpolate(
        image, target, mode=steps.interpolation, antialias=antialias
    )


def crop(image: torch.Tensor, steps: Preprocessing) -> torch.Tensor:
    """Cut the middle out, zeros around a smaller image, as transformers does."""
    if steps.crop is None:
        return image
    missing = [max(0, want - have) for want, have in zip(steps.crop, image.shape[-2:], strict=True)]
    if any(missing):
        top, left = missing[0] // 2, missing[1] // 2
        image = torch.nn.functional.pad(
            image, (left, (missing[1] + 1) // 2, top, (missing[0] + 1) // 2)
        )
    top, left = (
        (have - want) // 2 for want, have in zip(steps.crop, image.shape[-2:], strict=True)
    )
    return image[..., top : top + steps.crop[0], left : left + steps.crop[1]]


def normalize(image: torch.Tensor, steps: Preprocessing) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation, per channel, in float32."""
    if steps.mean is None or steps.std is None:
        return image
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (steps.mean, steps.std))
    return (image.to(torch.float32) - mean) / std


def rescale_and_normalize(image: torch.Tensor, steps: Preprocessing) -> torch.Tensor:
    """Do both with one subtraction and one division, as the older processors do."""
    if steps.rescale_factor is None or steps.mean is None or steps.std is None:
        return normalize(rescale(image, steps), steps)
    mean, std = (
        (torch.tensor(values) * (1.0 / steps.rescale_factor)).view(3, 1, 1)
        for values in (steps.mean, steps.std)
    )
    return (image.to(torch.float32) - mean) / std
