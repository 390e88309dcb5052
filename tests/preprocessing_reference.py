"""The reference for kit.model.preprocessing: what transformers' own processors compute.

transformers needs torchvision for them, which the kit does without. Where it is installed,

    python3 -m tests.preprocessing_reference

records their results for a few small images in tests/data/preprocessing_reference.npz. With
`--live FILE` it records them for more images in FILE, with which tests/test_preprocessing.py
compares to the last bit. That is a process of its own: a torchvision that does not fit torch, as
KIT_TORCHVISION may name one, must not be seen by the rest of transformers.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

REFERENCE = Path(__file__).parent / "data" / "preprocessing_reference.npz"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CONFIGS: Mapping[str, dict[str, Any]] = {
    "dinov3": {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "do_center_crop": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 32, "width": 32},
    },
    "dinov3_bicubic": {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "resample": 3,
        "size": {"height": 48, "width": 32},
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "size": {"shortest_edge": 32},
    },
}
SIZES = ((41, 37), (32, 32), (7, 50), (90, 60))
LIVE_SIZES = (*SIZES, (1, 1), (1, 400), (640, 427))


def image_of(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a seeded noise image, rows x columns x 3."""
    rng = np.random.default_rng(width * 1000 + height)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference(config: Mapping[str, Any], pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return what transformers' processor for this configuration makes of an image.

    Raises:
        ImportError: without torchvision.
    """
    import npu_patch  # noqa: F401 - makes the import of transformers safe beside torch-npu

    define_torchvision_operators()
    import transformers

    name = config["image_processor_type"].removesuffix("Fast")
    options = {key: value for key, value in config.items() if key != "image_processor_type"}
    fast = getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)
    result = fast(**options)(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    return np.asarray(result.numpy(), dtype=np.float32)


def define_torchvision_operators() -> None:
    """Let a torchvision that was built for CUDA import beside a CPU torch.

    Its operators do not load then, and its import asks for the schemas of two of them.
    """
    import torch

    if hasattr(torch.ops.torchvision, "nms"):
        return
    make_library: Any = torch.library.Library  # torch leaves it untyped
    library = make_library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    define_torchvision_operators.library = library  # type: ignore[attr-defined] # keeps it alive


def key(name: str, size: tuple[int, int]) -> str:
    """Return the name of one array in the recorded file."""
    return f"{name}_{size[0]}x{size[1]}"


def main() -> None:
    """Record the reference again, or the live one."""
    live = sys.argv[1:2] == ["--live"]
    file = Path(sys.argv[2]) if live else REFERENCE
    arrays = {
        key(name, size): reference(config, image_of(*size))
        for name, config in CONFIGS.items()
        for size in (LIVE_SIZES if live else SIZES)
    }
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # numpy's stub wants a bool


if __name__ == "__main__":
    main()
