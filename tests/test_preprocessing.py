"""Preprocessing: transformers' own result to the last bit, without torchvision."""

import importlib.util
import json
import os
import subprocess
import sys
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


def computed(name: str, size: tuple[int, int]) -> torch.Tensor:
    return preprocessing.preprocess(image_of(*size), preprocessing.from_config(CONFIGS[name]))


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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"resample": 1}, "resample 1"),
        ({"size": {"longest_edge": 5}}, "longest_edge"),
        ({"image_mean": [1, 2]}, "2 channel values"),
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
