"""Preprocessing: transformers' own result to the last bit, without torchvision."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.errors import KitError
from kit.model import preprocessing
from kit.model.preprocessing import Preprocessing
from kit.run import ROOT
from tests.preprocessing_reference import (
    CONFIGS,
    LIVE_SIZES,
    REFERENCE,
    SIZES,
    image_of,
    key,
)

NOTHING = Preprocessing(height=None, width=None, rescale_factor=None, mean=None, std=None)


def computed(name: str, size: tuple[int, int]) -> torch.Tensor:
    return preprocessing.preprocess(image_of(*size), preprocessing.from_config(CONFIGS[name]))


def test_the_older_processors_fold_the_rescaling_into_mean_and_deviation() -> None:
    steps = Preprocessing(rescale_first=False, height=None, width=None)
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    folded = preprocessing.preprocess(pixels, steps)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(torch.float32)
    assert steps.rescale_factor and steps.mean and steps.std
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (steps.mean, steps.std))
    per_unit = 1.0 / steps.rescale_factor
    assert torch.equal(folded, (image - mean * per_unit) / (std * per_unit))
    assert not torch.equal(
        folded, preprocessing.preprocess(pixels, replace(steps, rescale_first=True))
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_recorded_result_of_transformers_is_matched(name: str, size: tuple[int, int]) -> None:
    with np.load(REFERENCE) as arrays:
        recorded = arrays[key(name, size)]
    ours = computed(name, size).numpy()
    assert ours.shape == recorded.shape
    # One unit in the last place of the normalized values: processors with other vector
    # instructions may add in another order.
    assert np.abs(ours - recorded).max() <= 5e-7


@pytest.mark.extended  # it needs torchvision
def test_transformers_own_processor_is_matched_to_the_last_bit(tmp_path: Path) -> None:
    folder = os.environ.get("KIT_TORCHVISION", "")
    if not folder and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed, and KIT_TORCHVISION names no folder with it")
    file = tmp_path / "live.npz"
    done = subprocess.run(
        [sys.executable, "-m", "tests.preprocessing_reference", "--live", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        for name in CONFIGS:
            for size in LIVE_SIZES:
                assert np.array_equal(computed(name, size).numpy(), arrays[key(name, size)]), size


def test_without_a_config_file_the_steps_are_dinov3s(tmp_path: Path) -> None:
    assert preprocessing.load(None) == preprocessing.load(tmp_path) == Preprocessing()
    assert str(Preprocessing()) == (
        "rescale 0.003921568627, resize 224x224 bilinear antialias, "
        "normalize mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"
    )


def test_the_record_names_the_steps_in_their_order() -> None:
    steps = Preprocessing(rescale_first=False, height=30, width=None, crop=(9, 7))
    normalize = "normalize mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"
    resize = "resize shortest edge 30 bilinear antialias, center crop 9x7"
    assert str(steps) == f"{resize}, rescale 0.003921568627, {normalize}"
    dinov3 = replace(steps, rescale_first=True)
    assert str(dinov3) == f"rescale 0.003921568627, {resize}, {normalize}"
    assert str(NOTHING) == str(replace(NOTHING, rescale_first=False)) == ""


def test_the_nearest_pixel_is_repeated_as_it_is() -> None:
    pixels = image_of(4, 3)
    steps = replace(NOTHING, height=6, width=12, interpolation="nearest")
    found = preprocessing.preprocess(pixels, steps)[0].numpy()
    assert np.array_equal(found, pixels.transpose(2, 0, 1).repeat(2, axis=1).repeat(3, axis=2))


@pytest.mark.parametrize("first", [True, False])
def test_half_a_normalization_is_none(first: bool) -> None:
    pixels = image_of(5, 4)
    for steps in (replace(NOTHING, mean=(1.0, 1.0, 1.0)), replace(NOTHING, std=(2.0, 2.0, 2.0))):
        for factor in (None, 0.5):
            asked = replace(steps, rescale_first=first, rescale_factor=factor)
            plain = replace(NOTHING, rescale_factor=factor)
            found = preprocessing.preprocess(pixels, asked)
            assert torch.equal(found, preprocessing.preprocess(pixels, plain))


def test_the_weights_own_file_is_followed(tmp_path: Path) -> None:
    config = {"size": {"height": 64, "width": 96}, "do_normalize": False, "rescale_factor": 0.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    steps = preprocessing.load(tmp_path)
    result = preprocessing.preprocess(np.full((5, 5, 3), 10, np.uint8), steps)
    assert result.shape == (1, 3, 64, 96)
    assert torch.equal(result, torch.full_like(result, 5.0))


def test_a_size_keeps_the_proportion_of_resize_and_crop() -> None:
    steps = preprocessing.from_config(CONFIGS["dinov2"]).with_size(56)
    assert (steps.height, steps.width, steps.crop) == (64, None, (56, 56))
    assert preprocessing.preprocess(image_of(90, 60), steps).shape == (1, 3, 56, 56)
    wide = Preprocessing(height=40, width=90, crop=(20, 30)).with_size(10)
    assert (wide.height, wide.width, wide.crop) == (20, 30, (10, 10))
    plain = Preprocessing(height=40, width=90).with_size(10)
    assert (plain.height, plain.width, plain.crop) == (10, 10, None)


@pytest.mark.parametrize(
    ("size", "crop", "cut", "zeros"),
    [  # rows and columns; what is left of the image; zeros left, right, above and below it
        ((7, 9), (3, 4), (slice(2, 5), slice(2, 6)), (0, 0, 0, 0)),
        ((2, 3), (7, 9), (slice(0, 2), slice(0, 3)), (3, 3, 2, 3)),
        ((2, 3), (3, 4), (slice(0, 2), slice(0, 3)), (0, 1, 0, 1)),
        ((3, 8), (6, 3), (slice(0, 3), slice(2, 5)), (0, 0, 1, 2)),
        ((8, 3), (3, 6), (slice(2, 5), slice(0, 3)), (1, 2, 0, 0)),
    ],
)
def test_a_crop_is_the_middle_with_zeros_around_a_smaller_image(
    size: tuple[int, int],
    crop: tuple[int, int],
    cut: tuple[slice, slice],
    zeros: tuple[int, int, int, int],
) -> None:
    rows, columns = size
    pixels = image_of(columns, rows)
    found = preprocessing.preprocess(pixels, replace(NOTHING, crop=crop))[0]
    left, right, above, below = zeros
    expected = np.pad(pixels[cut].transpose(2, 0, 1), ((0, 0), (above, below), (left, right)))
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, Preprocessing()),
        ({"do_resize": False}, Preprocessing(height=None, width=None)),
        ({"do_resize": None, "do_center_crop": None}, Preprocessing()),
        ({"size": 30}, Preprocessing(height=30, width=30)),
        ({"size": {"height": 1, "width": 8192}}, Preprocessing(height=1, width=8192)),
        ({"size": {"shortest_edge": 30}}, Preprocessing(height=30, width=None)),
        ({"crop_size": 9}, Preprocessing()),
        (
            {"do_center_crop": True, "crop_size": {"height": 9, "width": 7}},
            Preprocessing(crop=(9, 7)),
        ),
        (
            {"do_center_crop": True, "crop_size": {"shortest_edge": 9}},
            Preprocessing(crop=(9, 9)),
        ),
        ({"resample": 3}, Preprocessing(interpolation="bicubic")),
        ({"do_rescale": False}, Preprocessing(rescale_factor=None)),
        ({"do_normalize": False}, Preprocessing(mean=None, std=None)),
        (
            {"image_mean": 0.5, "image_std": [1, 2, 3]},
            Preprocessing(mean=(0.5, 0.5, 0.5), std=(1.0, 2.0, 3.0)),
        ),
        ({"image_mean": 0}, Preprocessing(mean=(0.0, 0.0, 0.0))),
        ({"image_processor_type": "BitImageProcessor"}, Preprocessing(rescale_first=False)),
        ({"image_processor_type": "DINOv3ViTImageProcessorFast"}, Preprocessing()),
    ],
)
def test_each_entry_of_the_file_has_its_step(
    config: dict[str, object], steps: Preprocessing
) -> None:
    assert preprocessing.from_config(config) == steps


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_both_orders_of_the_steps_compute_the_same(config: dict[str, object]) -> None:
    pixels = image_of(24, 24)
    steps = preprocessing.from_config({"size": 24, **config})
    values = pixels.transpose(2, 0, 1).astype(np.float64)
    values *= steps.rescale_factor or 1.0
    if steps.mean is not None and steps.std is not None:
        values = (values - np.reshape(steps.mean, (3, 1, 1))) / np.reshape(steps.std, (3, 1, 1))
    for first in (True, False):
        result = preprocessing.preprocess(pixels, replace(steps, rescale_first=first))
        assert result.dtype == torch.float32
        assert result[0].numpy() == pytest.approx(values, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"resample": 1}, "resample 1"),
        ({"size": {"longest_edge": 5}}, "longest_edge"),
        ({"image_mean": [1, 2]}, "2 channel values"),
        ({"image_mean": "abc"}, "a is not a number"),
        ({"image_std": [1, 2, True]}, "True is not a number"),
        ({"image_std": [1, 2, 1e38]}, r"1e\+38 is not a number that float32 holds"),
        ({"size": 0}, "a size of 0, which is not a whole number from 1 to 8192"),
        ({"size": True}, "a size of True"),
        ({"image_std": [1, 0, 1]}, "image_std of 0"),
        ({"rescale_factor": 0}, "rescale_factor or image_std of 0"),
        ({"size": {"height": 5, "width": 8193}}, "a size of 8193"),
        ({"size": {"height": 5, "width": 5.0}}, r"a size of 5\.0"),
        ({"image_std": [1, 2, "x" * 50]}, "do: x{40} is not a number"),
        ({"size": {"height": 5, "width": "x" * 50}}, "a size of x{40}, which"),
        ({"do_center_crop": True}, "crop_size"),
        ([], "JSON object"),
    ],
)
def test_what_the_kit_cannot_do_is_named_with_its_file(
    tmp_path: Path, config: object, words: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(KitError, match=rf"preprocessor_config\.json.*{words}"):
        preprocessing.load(tmp_path)
