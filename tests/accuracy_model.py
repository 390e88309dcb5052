"""A tiny DINOv3 with weights of a trained model's kind, and a device that is its copy."""

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from kit.accuracy.examine import Examination, examine
from kit.accuracy.recorder import find_stages, recorded
from kit.accuracy.references import (
    Declared,
    RecordedRun,
    ReferenceRuns,
    References,
    Side,
    in_declared_type,
)
from kit.accuracy.verdict import assess
from kit.model.model import Features
from kit.model.preprocessing import Preprocessing, preprocess
from kit.options import BUDGET_FACTOR
from kit.records import AccuracyResults

SIZE = 64
GRID = (4, 4)
BLOCKS = 6
STEPS = Preprocessing(height=SIZE, width=SIZE)


@lru_cache(maxsize=1)
def trained_like_model() -> PreTrainedModel:
    """Return a DINOv3 ViT of 6 blocks, 64 wide, whose every part matters. Not to be changed.

    Fresh weights of transformers hide faults: biases are zero, layer scales one, attention is
    flat. Here activations are of order one and every parameter differs from every other.
    """
    config = transformers.DINOv3ViTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_register_tokens=4,
        image_size=SIZE,
        patch_size=16,
    )
    config._attn_implementation = "sdpa"
    model: PreTrainedModel = transformers.DINOv3ViTModel(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif "lambda1" in name:
                parameter.copy_(0.3 + 0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif "token" in name:
                parameter.copy_(noise)
            else:
                gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
                fan_in = parameter[0].numel()
                parameter.copy_(gain * noise / fan_in**0.5)
    return model


@lru_cache(maxsize=1)
def picture() -> npt.NDArray[np.uint8]:
    """Return an image, uint8, 90 x 120 x 3, with detail finer than the resize keeps."""
    generator = np.random.default_rng(3)
    rows, columns = np.mgrid[0:90, 0:120]
    waves = [np.sin(rows * a + columns * b) for a, b in ((0.3, 0.1), (0.05, 0.4), (0.7, 0.9))]
    smooth = np.stack(waves, axis=-1) * 80 + 128
    return (smooth + generator.normal(0, 25, smooth.shape)).clip(0, 255).astype(np.uint8)


def good_pixels() -> torch.Tensor:
    """Return the image as the reference sees it."""
    return preprocess(picture(), STEPS)


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks, whichever transformers release named them."""
    path = find_stages(model).all[1].path.rpartition(".")[0]
    found = model.get_submodule(path)
    assert isinstance(found, nn.ModuleList)
    return found


@dataclass(frozen=True)
class Case:
    """One change on the device's side.

    Attributes:
        name: what it is.
        model: changes the device's model in place.
        pixels: makes the device's input from the right one.
        during: patches what runs on the device while its forward runs.
        features: makes the device's outputs from what it computed.
        block: the block that should be named; None where none can be.
        operator: the class of operator that should be named; None where any will do.
        declared: what the device says it computes in.
        unseen: why it cannot be seen; empty where it can.
    """

    name: str
    model: Callable[[PreTrainedModel], object] = lambda model: None
    pixels: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels
    during: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    features: Callable[[Features], Features] = lambda features: features
    block: int | None = None
    operator: str | None = None
    declared: Declared = field(default_factory=Declared)
    unseen: str = ""


@lru_cache(maxsize=8)
def references(declared: Declared) -> References:
    """Return the CPU's sides of the model; they are not changed."""
    return References(trained_like_model(), declared)


@lru_cache(maxsize=8)
def reference_runs(declared: Declared) -> ReferenceRuns:
    """Return the image on the CPU's sides."""
    return references(declared).run(good_pixels())


def examined(case: Case) -> Examination:
    """RecordedRun the device with the change and hold it against the references, stage by stage."""
    sides = references(case.declared)
    model = copy.deepcopy(in_declared_type(trained_like_model(), case.declared))
    case.model(model)
    dtype = next(model.parameters()).dtype
    device = Side(model, case.declared if case.declared.dtype == "fp32" else Declared())
    pixels = case.pixels(good_pixels()).to(dtype)
    with case.during(), device.computing():
        output, stages = recorded(
            lambda: model(pixels.clone()), model, sides.stages.all, detail=True
        )
    features = case.features(Features(output.pooler_output[:1], output.last_hidden_state[:1]))
    for record in stages.values():  # a batch's first image is the one that is judged
        for name, tensor in record.points.items():
            if pixels.shape[0] > 1 and tensor.shape[0] == pixels.shape[0]:
                record.points[name] = tensor[:1]
    runs = reference_runs(case.declared)
    return examine(RecordedRun(features, stages), sides, runs, BUDGET_FACTOR)


def run_case(case: Case) -> AccuracyResults:
    """Return what the record has of a run with the change."""
    return assess(
        examined(case), references(case.declared), GRID, image="", source="local",
        torch_device="npu:0", factor=BUDGET_FACTOR, self_check=False,
    )  # fmt: skip


def named_rightly(case: Case, results: AccuracyResults) -> bool:
    """Return whether the verdict names the block, and the class of operator where one is given."""
    named = results.first_unexplained_operator
    operator = None if named is None else named.operator
    return results.first_unexplained_block == case.block and case.operator in (None, operator)
