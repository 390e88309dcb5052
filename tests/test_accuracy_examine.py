"""The examination: fp64 in a batch of two, compared while it runs."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kit.accuracy.examine import of_one_image, score_scale, times_limit
from kit.accuracy.limits import SMALLEST_ALONE
from kit.accuracy.recorder import StageWatch, find_stages, recorded
from kit.accuracy.references import Declared
from kit.errors import KitError
from tests.accuracy_model import BLOCKS, Case, examined, good_pixels, references, trained_like_model


@pytest.mark.parametrize("axis", [0, 1])
def test_an_image_is_taken_out_of_a_batch_of_two(axis: int) -> None:
    one, two = torch.rand(1, 1, 3), torch.rand(1, 1, 3)
    both = torch.cat([one, two], axis)
    assert torch.equal(of_one_image(both, 0, one.shape), one)
    assert torch.equal(of_one_image(both, 1, one.shape), two)


def test_windows_of_two_images_are_halved() -> None:
    windows = torch.arange(8.0).reshape(8, 1)
    assert of_one_image(windows, 1, torch.Size([4, 1])).flatten().tolist() == [4, 5, 6, 7]


def test_a_table_that_every_image_shares_is_taken_whole() -> None:
    table = torch.rand(4, 3)
    assert of_one_image(table, 1, table.shape) is table


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 1), (2, 10), ()])
def test_a_tensor_that_is_not_of_two_images_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(KitError, match=r"for one image is .* for two: .* cannot be examined"):
        of_one_image(torch.ones(shape), 0, torch.Size([1, 5]))


def test_fp64s_own_image_is_not_touched_by_the_devices_inputs() -> None:
    def double(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("embeddings.cls_token").mul_(2)

    examination = examined(Case("CLS token doubled", model=double))
    expected = references(Declared()).fp64.features(good_pixels())
    difference = examination.fp64.last_hidden_state - expected.last_hidden_state
    assert float(difference.abs().max()) < 1e-12
    assert all((stage.accumulated.relative_error or 0) > 1e-3 for stage in examination.stages)
    assert all(stage.first_unexplained is None for stage in examination.stages[1:])


def test_the_cpus_own_error_stands_beside_the_declared_arithmetics() -> None:
    declared = Declared(convolution="hf32")
    stages = examined(Case("HF32 convolution, declared", declared=declared)).stages
    assert all(0 < 10 * stage.cpu_error < stage.accumulated.expected_error for stage in stages)


def test_the_rotary_tables_are_points_and_what_hands_its_input_on_is_none() -> None:
    stages = examined(Case("nothing changed")).stages
    names = [operator.name for stage in stages for operator in stage.operators]
    assert [name for name in names if ".output." in name] == [
        "rope_embeddings.output.0",
        "rope_embeddings.output.1",
    ]
    assert any("drop_path" in path for path, _ in trained_like_model().named_modules())
    assert not any("drop_path" in name for name in names)


def test_the_position_of_an_operators_worst_token_is_kept() -> None:
    def spoil(model: nn.Module) -> None:
        def change(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            return output * torch.ones(21, 1).index_fill(0, torch.tensor([17]), 1.5)

        block = next(stage for stage in find_stages(model).all if stage.number == 2)
        activation = model.get_submodule(f"{block.path}.mlp.act_fn")
        activation.register_forward_hook(change, prepend=True)

    found = examined(Case("one token of an activation", model=spoil)).stages[3].first_unexplained
    assert found is not None
    assert (found.name, found.token) == ("mlp.act_fn.output", 17)
    assert found.times_limit == times_limit(found) > 1e4


def test_a_stage_that_raises_leaves_nothing_behind() -> None:
    model = copy.deepcopy(trained_like_model())
    stages = find_stages(model).all
    names: list[str] = []

    class Named(StageWatch):
        def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
            names.append(name)

    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    model.get_submodule(f"{stages[1].path}.norm1").register_forward_hook(fail)
    watch = Named(detail=True)
    with pytest.raises(RuntimeError, match="out of order"), watch.watching(model, stages):
        model(good_pixels())
    before = list(names)
    nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 2))
    assert names == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_stage_can_be_recorded_while_another_model_is_watched() -> None:
    inner, stages = trained_like_model(), references(Declared()).stages.all
    counts = []

    class Nested(StageWatch):
        def entered(self, stage: object, args: object, kwargs: object) -> None:
            _, record = recorded(lambda: inner(good_pixels()), inner, stages, detail=True)
            counts.append(len(record[BLOCKS - 1].points))

        def seen(self, number: int, name: str, tensor: torch.Tensor) -> None:
            names.append((number, name))

    names: list[tuple[int, str]] = []
    outer = copy.deepcopy(inner)
    with torch.no_grad(), Nested(detail=True).watching(outer, stages):
        outer(good_pixels())
    assert len(set(counts)) == 1 and counts[0] > 10
    assert len(names) == len(set(names))
    assert sum(name == "attention.rotated_query" for _, name in names) == BLOCKS


def truncated(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.view(torch.int32) & ~0xFFFF).view(torch.float32)


@pytest.mark.parametrize(
    ("scale", "rounded"),
    [(1.0, truncated), (1.0, torch.Tensor.bfloat16), (1.01, truncated), (0.99, torch.Tensor.half)],
)
def test_a_wrong_scale_of_the_scores_is_told_from_a_kernels_rounding(
    scale: float, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 60, 16, generator=generator)
    weights = (query @ key.mT * scale / 4).softmax(-1)
    result = rounded(weights).float() @ value
    rows = (tensor.transpose(1, 2).flatten(2) for tensor in (value, result))
    points = dict(zip(("attention.v_proj.output", "attention.o_proj.input"), rows, strict=True))
    points |= {"attention.rotated_query": query, "attention.rotated_key": key}
    found = score_scale(points)
    assert found is not None
    if scale == 1:
        assert found < 0.2 * SMALLEST_ALONE["scores"]
    else:
        assert found == pytest.approx(0.01, rel=0.1)
    assert score_scale({**points, "attention.o_proj.input": torch.zeros(1, 60, 32)}) is None
    del points["attention.v_proj.output"]
    assert score_scale(points) is None
    points["attention.v_proj.output"] = torch.full((1, 60, 64), torch.inf)
    assert score_scale(points) is None


@pytest.mark.parametrize("seed", range(8))
def test_what_many_small_errors_look_like_by_chance_is_no_scale_of_the_scores(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, 4, 60, 16, generator=generator)
    noise = torch.randn(1, 4, 60, 16, generator=generator)
    rows = value.transpose(1, 2).flatten(2)

    def found(scale: float, noisy: float) -> float | None:
        result = (query @ key.mT * scale / 4).softmax(-1) @ value + noisy * noise
        return score_scale(
            {
                "attention.v_proj.output": rows,
                "attention.o_proj.input": result.transpose(1, 2).flatten(2),
                "attention.rotated_query": query,
                "attention.rotated_key": key,
            }
        )

    assert found(1.0, 0.05) == 0.0  # the fit itself is off by a standard error of 0.6 %
    wrong, quiet = found(1.05, 0.05), found(1.05, 0.0)
    assert wrong is not None and quiet is not None
    assert quiet == pytest.approx(0.05, rel=0.1)
    assert 0 < wrong < quiet - 0.01  # one that is larger than chance makes it remains
