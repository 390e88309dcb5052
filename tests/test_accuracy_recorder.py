"""The recorder: what flows through a model, kept as it was at that moment."""

import weakref

import pytest
import torch
from torch import nn
from transformers.models.dinov3_vit import modeling_dinov3_vit

from kit.accuracy.recorder import find_stages, recorded, require_on
from kit.errors import KitError
from tests.accuracy_model import BLOCKS, good_pixels, trained_like_model


def points_of_the_last_block() -> dict[str, torch.Tensor]:
    """Record one forward of the tiny model in detail."""
    model = trained_like_model()
    with torch.no_grad():
        _, stages = recorded(
            lambda: model(good_pixels()), model, find_stages(model).all, detail=True
        )
    return stages[BLOCKS - 1].points


def test_a_tensor_on_the_wrong_device_is_an_error_and_not_a_verdict() -> None:
    with pytest.raises(KitError, match="should be on the npu is on cpu"):
        require_on("npu", torch.ones(1))


def test_a_tensor_that_nothing_writes_into_is_kept_without_a_copy() -> None:
    model, seen = trained_like_model(), []
    hook = model.norm.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        _, stages = recorded(lambda: model(good_pixels()), model, find_stages(model).all)
    hook.remove()
    assert stages[BLOCKS].points["output"] is seen[-1]


def test_a_record_that_is_given_up_gives_its_memory_back() -> None:
    model = trained_like_model()
    with torch.no_grad():
        _, stages = recorded(
            lambda: model(good_pixels()), model, find_stages(model).all, detail=True
        )
    kept = weakref.ref(stages[1].points["mlp.up_proj.output"])
    assert kept() is not None
    stages.pop(1)
    assert kept() is None


def test_a_tensor_of_inference_mode_is_recorded_as_a_copy() -> None:
    model = trained_like_model()
    with torch.inference_mode():
        output, stages = recorded(lambda: model(good_pixels()), model, find_stages(model).all)
    last = stages[BLOCKS].points["output"]
    assert torch.equal(last, output.last_hidden_state)
    assert last is not output.last_hidden_state


def test_a_model_that_works_in_place_is_recorded_as_it_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = points_of_the_last_block()

    def in_place(scale: nn.Module, hidden_state: torch.Tensor) -> torch.Tensor:
        # Into what attention and MLP have just returned.
        return hidden_state.mul_(scale.get_parameter("lambda1"))

    monkeypatch.setattr(modeling_dinov3_vit.DINOv3ViTLayerScale, "forward", in_place)
    found = points_of_the_last_block()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
