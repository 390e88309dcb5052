"""The examination: fp64 in a batch of two, compared while it runs."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kit.accuracy.examine import (
    Distance,
    Distances,
    StageErrors,
    distances,
    distinct,
    of_one_image,
    operator_error,
    score_scale,
    times_limit,
)
from kit.accuracy.limits import SMALLEST_ALONE, SMALLEST_LIMIT
from kit.accuracy.recorder import Stage, StageWatch, find_stages, recorded
from kit.accuracy.references import Declared
from kit.device.arithmetic import round_mantissa
from kit.errors import KitError
from kit.records import OperatorError
from tests.accuracy_block_faults import ATTENTION_FAULTS
from tests.accuracy_model import BLOCKS, Case, examined, good_pixels, references, trained_like_model

REDUCED = Declared(matmul="hf32", convolution="hf32")


def module_of(model: nn.Module, number: int, name: str) -> nn.Module:
    stage = next(stage for stage in find_stages(model).all if stage.number == number)
    return model.get_submodule(f"{stage.path}.{name}")


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


@pytest.mark.parametrize(
    ("imitation", "device", "times"),
    [
        (Distance(1e-3, 2e-3, 0), Distance(5e-3, 1e-3, 3), 0.5),  # the whole
        (Distance(1e-3, 2e-3, 0), Distance(1e-3, 6e-2, 3), 3.0),  # a token
        (Distance(0.0, 0.0, 0), Distance(0.25, 0.125, 3), 1.0),  # the smallest limit
        (Distance(0.0, 0.0, 0), Distance(0.125, 0.5, 3), 2.0),
        (Distance(math.inf, math.inf, 0), Distance(0.5, 0.5, 3), 2.0),  # fp64 has overflowed
    ],
)
def test_an_error_is_so_many_times_what_the_arithmetic_explains(
    imitation: Distance, device: Distance, times: float
) -> None:
    found: Distances = {"imitation": imitation, "device": device}
    error = operator_error("mlp.output", "MLP", found, factor=10, smallest=0.25)
    if math.isfinite(imitation.error) and imitation.error > 0:
        error = operator_error("mlp.output", "MLP", found, factor=10)
        assert error.smallest_limit == SMALLEST_LIMIT
    assert error.times_limit == pytest.approx(times)
    assert (error.relative_error, error.token_error) == (device.error, device.token_error)
    assert (error.name, error.operator, error.token) == ("mlp.output", "MLP", 3)


def test_an_error_that_is_not_finite_or_of_another_shape_is_beyond_every_limit() -> None:
    imitation = Distance(1e-3, 2e-3, 1)
    shape = operator_error("mlp.output", "MLP", {"imitation": imitation}, factor=10)
    assert (shape.relative_error, shape.token_error, shape.token) == (None, None, None)
    assert (shape.expected_error, shape.expected_token_error) == (1e-3, 2e-3)
    broken: Distances = {"imitation": imitation, "device": Distance(math.inf, math.inf, 7)}
    infinite = operator_error("mlp.output", "MLP", broken, factor=10)
    assert (infinite.relative_error, infinite.token_error, infinite.token) == (None, None, 7)
    for error in (shape, infinite):
        assert error.times_limit is None
        assert times_limit(error) == math.inf
    overflowed: Distances = {"imitation": Distance(math.inf, math.inf, 0), "device": imitation}
    unexplained = operator_error("mlp.output", "MLP", overflowed, factor=10)
    assert (unexplained.expected_error, unexplained.expected_token_error) == (0, 0)


def test_a_stage_names_its_first_operator_beyond_its_limit_and_its_worst() -> None:
    sound = operator_error("q.output", "attention", {"imitation": Distance(0, 0, 0)}, factor=10)
    sound, edge, twice, worst, broken = (
        dataclasses.replace(sound, times_limit=times) for times in (0.5, 1.0, 1.5, 80.0, None)
    )

    def of(*operators: OperatorError) -> StageErrors:
        return StageErrors(Stage(0, "layer.0"), sound, 1e-7, operators)

    assert of(sound, edge).first_unexplained is None
    assert of(sound, edge).worst == edge
    assert of(edge, twice, worst, sound).first_unexplained == twice
    assert of(edge, twice, worst, sound).worst == worst
    assert of(worst, broken, sound).worst == of(sound, broken, worst).first_unexplained == broken
    assert of().first_unexplained is of().worst is None


def test_nothing_is_no_distance_from_nothing() -> None:
    nothing = torch.ones(0, 4, dtype=torch.float64)
    assert distances(nothing, {"device": nothing}, -1) == {"device": Distance(0.0, 0.0, 0)}


def test_of_points_that_are_one_tensor_the_first_is_kept_and_the_output() -> None:
    first, second = torch.ones(2), torch.ones(2)
    points = {"a.output": first, "b.input": first, "c.output": second, "output": second}
    assert list(distinct(points)) == ["a.output", "c.output", "output"]
    assert list(distinct({"output": first, "a.output": first})) == ["output"]


def test_fp64s_own_image_is_not_touched_by_the_devices_inputs() -> None:
    def double(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter("embeddings.cls_token").mul_(2)

    examination = examined(Case("CLS token doubled", model=double))
    expected = references(Declared()).fp64.features(good_pixels())
    difference = examination.fp64.last_hidden_state - expected.last_hidden_state
    assert float(difference.abs().max()) < 1e-12
    assert torch.allclose(examination.fp64.pooler_output, expected.pooler_output, rtol=1e-12)
    assert examination.fp64.pooler_output.shape == expected.pooler_output.shape
    assert all((stage.accumulated.relative_error or 0) > 1e-3 for stage in examination.stages)
    assert all(stage.first_unexplained is None for stage in examination.stages[1:])
    for stage in examination.stages[1:]:  # each on the device's own input, which is right there
        for operator in stage.operators:
            assert (operator.relative_error or 0) < 1e-5, operator
            assert operator.expected_error < 1e-5, operator
    assert all(stage.operators for stage in examination.stages)


def test_a_stage_whose_input_has_another_shape_is_held_against_the_image_itself() -> None:
    def spoil(model: nn.Module) -> None:
        def drop_a_token(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return args[0][:, 1:], *args[1:]

        with torch.no_grad():
            model.get_parameter("embeddings.cls_token").mul_(2)
        block = next(stage for stage in find_stages(model).all if stage.number == 2)
        model.get_submodule(block.path).register_forward_pre_hook(drop_a_token, prepend=True)

    stages = examined(Case("a token is lost", model=spoil)).stages
    for stage in stages[3:]:
        assert [operator.name for operator in stage.operators] == ["output"]
        (output,) = stage.operators
        assert (output.relative_error, output.token, output.times_limit) == (None, None, None)
        assert output.expected_error < 1e-5
        assert stage.cpu_error < 1e-5
    assert all(stage.first_unexplained is None for stage in stages[1:3])


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

        activation = module_of(model, 2, "mlp.act_fn")
        activation.register_forward_hook(change, prepend=True)

    found = examined(Case("one token of an activation", model=spoil)).stages[3].first_unexplained
    assert found is not None
    assert (found.name, found.token) == ("mlp.act_fn.output", 17)
    assert found.times_limit == times_limit(found) > 1e4


@pytest.mark.parametrize(
    ("number", "name", "place", "token"),
    [
        (-1, "patch_embeddings", (0, slice(None), 2, 1), 9),  # a map of 4 x 4 patches
        (2, "mlp.down_proj", (0, 17), 17),
    ],
)
@pytest.mark.parametrize(("declared", "factor"), [(Declared(), 1.5), (REDUCED, 1.0002)])
def test_a_wrong_token_is_found_in_maps_and_in_rows_whatever_the_products(
    number: int, name: str, place: Any, token: int, declared: Declared, factor: float  # noqa: ANN401 - an index
) -> None:  # fmt: skip
    def spoil(model: nn.Module) -> None:
        def change(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            changed[place] *= factor
            return changed

        module_of(model, number, name).register_forward_hook(change, prepend=True)

    stage = examined(Case("a wrong token", model=spoil, declared=declared)).stages[number + 1]
    found = stage.first_unexplained
    assert found is not None
    assert (found.name, found.token) == (f"{name}.output", token)
    assert found.token_error == pytest.approx(factor - 1, rel=0.2)


@pytest.mark.parametrize(
    ("share", "named"), [(0.0, False), (0.45, False), (0.55, True), (1.0, False)]
)
def test_a_device_that_is_nearer_to_fp64_than_to_what_it_declares_is_no_fault(
    share: float, named: bool
) -> None:
    def spoil(model: nn.Module) -> None:
        linear = module_of(model, 2, "mlp.down_proj")
        weight, bias = (linear.get_parameter(one).detach() for one in ("weight", "bias"))

        def product(x: torch.Tensor, bits: int) -> Any:  # noqa: ANN401 - of numpy, so not imitated
            rows, columns = (round_mantissa(one, bits).double().numpy() for one in (x, weight))
            return rows @ columns.T + bias.double().numpy()

        def change(_: nn.Module, args: tuple[torch.Tensor], __: object) -> torch.Tensor:
            plain, rounded = product(args[0], 22), product(args[0], 11)
            return torch.from_numpy(plain + share * (rounded - plain)).float()

        linear.register_forward_hook(change, prepend=True)

    stage = examined(Case("more exact", model=spoil, declared=REDUCED)).stages[3]
    found = stage.first_unexplained
    assert (found is not None) == named
    assert found is None or found.name == "mlp.down_proj.output"


def test_the_first_stage_is_held_against_the_images_own_input() -> None:
    embedding, *blocks = examined(Case("brighter", pixels=lambda pixels: pixels * 1.01)).stages
    found = embedding.first_unexplained
    assert found is not None
    assert (found.name, found.operator) == ("input", "input")
    assert found.relative_error == pytest.approx(0.01, rel=1e-3)
    assert all(stage.first_unexplained is None for stage in blocks)


def test_a_wrong_scale_of_the_scores_is_an_operator_of_its_block() -> None:
    case = next(case for case in ATTENTION_FAULTS if case.name == "attention scale 1 % too large")
    stages = examined(dataclasses.replace(case, declared=REDUCED)).stages
    scales = [
        operator
        for stage in stages
        for operator in stage.operators
        if operator.name == "attention.score_scale"
    ]
    assert len(scales) == BLOCKS
    assert [operator for operator in scales if times_limit(operator) > 1] == [scales[2]]
    assert scales[2].relative_error == pytest.approx(0.01, rel=0.1)
    assert {operator.token for operator in scales} == {0}


@pytest.mark.parametrize(
    ("off", "name", "named"),
    [
        (0.8, "mlp.down_proj", False),
        (1.5, "mlp.down_proj", True),
        (1.5, "attention.q_proj", True),
        (1.5, "norm2", True),
    ],
)
def test_where_products_are_rounded_a_module_by_itself_is_held_to_its_tolerance(
    off: float, name: str, named: bool
) -> None:
    def spoil(model: nn.Module) -> None:
        module_of(model, 2, name).register_forward_hook(
            lambda _, __, output: output * (1 + off * SMALLEST_ALONE["sum"]), prepend=True
        )

    stages = examined(Case("a module a little off", model=spoil, declared=REDUCED)).stages
    found = {stage.stage.number: stage.first_unexplained for stage in stages}
    spoiled = found.pop(2)
    assert set(found.values()) == {None}
    if not named:
        assert spoiled is None
        return
    assert spoiled is not None
    assert (spoiled.name, spoiled.smallest_limit) == (f"{name}.output", SMALLEST_ALONE["sum"])
    assert times_limit(spoiled) == pytest.approx(off, rel=0.2)


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


def attention_points(
    scale: float, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the points of an attention with its scores' scale and its probabilities changed."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 60, 16, generator=generator)
    weights = (query @ key.mT * scale / 4).softmax(-1)
    result = rounded(weights).float() @ value
    rows = (tensor.transpose(1, 2).flatten(2) for tensor in (value, result))
    points = dict(zip(("attention.v_proj.output", "attention.o_proj.input"), rows, strict=True))
    return points | {"attention.rotated_query": query, "attention.rotated_key": key}


@pytest.mark.parametrize("scale", [1.0, 1.02, 0.95])
def test_a_scale_within_four_standard_errors_of_its_fit_is_right(scale: float) -> None:
    points = attention_points(scale, lambda weights: weights)
    generator = torch.Generator().manual_seed(1)
    result = points["attention.o_proj.input"]
    result = result + 0.03 * result.std() * torch.randn(result.shape, generator=generator)
    query, key, value, noisy = (
        tensor.double().reshape(1, 60, 4, 16).transpose(1, 2) if tensor.ndim == 3 else tensor
        for tensor in (
            points["attention.rotated_query"].double(), points["attention.rotated_key"].double(),
            points["attention.v_proj.output"], result,
        )
    )  # fmt: skip

    def attended(scale: float) -> torch.Tensor:
        return ((query @ key.mT * scale / 4).softmax(-1) @ value).flatten()

    slope = (attended(1 + 2**-8) - attended(1 - 2**-8)) * 2**7
    known = torch.stack([attended(1.0), slope], 1)
    factors = torch.linalg.lstsq(known, noisy.reshape(-1, 1)).solution
    error = (noisy.flatten() - (known @ factors).flatten()).square().mean()
    standard = float((error * torch.linalg.inv(known.T @ known)[1, 1]).sqrt())
    expected = max(0.0, abs(float(factors[1])) - 4 * standard)
    assert (expected == 0) == (scale == 1)
    found = score_scale({**points, "attention.o_proj.input": result})
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["rotated_key", "v_proj.output", "o_proj.input"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_attention_that_is_not_finite_in_one_place_has_no_scale(name: str, value: float) -> None:
    points = attention_points(1.0, lambda weights: weights)
    points[f"attention.{name}"].view(-1)[7] = value
    assert score_scale(points) is None


@pytest.mark.parametrize(
    ("scale", "rounded"),
    [(1.0, truncated), (1.0, torch.Tensor.bfloat16), (1.01, truncated), (0.99, torch.Tensor.half)],
)
def test_a_wrong_scale_of_the_scores_is_told_from_a_kernels_rounding(
    scale: float, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    points = attention_points(scale, rounded)
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
