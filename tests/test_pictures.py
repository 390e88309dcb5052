"""What pictures promise: on imagined records, by what is in the figures and where it stands."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kit import pictures
from kit.accuracy import report as of_accuracy
from kit.accuracy.measure import Measured
from kit.benchmark.report import draw_ladder, draw_latency, draw_throughput, percent
from kit.inference import features as of_inference
from kit.pictures import BLUE, GREY, INK, ORANGE, RED, figure_of, png, subject
from kit.records import BenchmarkRecord, Limit, OperatorError, PrecisionLimit
from tests.report_records import accuracy, benchmark, header, rung

SLOW_MODES = ("strict-fp32-eager-channels-last-compile-graph", "fp16-eager", "bf16-eager")


def a_ladder(count: int = 16) -> BenchmarkRecord:
    """Return a record with many modes on an emulated NPU of a long name."""
    record = with_limits()
    rows = [*record.results.ladder]
    for number in range(count):
        row = rung("bf16-eager-graph", 4.0 + number * 1.7, 0.0007 * (number + 1))
        rows.append(
            replace(row, utilization=0.43, mode=SLOW_MODES[number % 3] + "-" * (number // 3))
        )
    name = "Ascend 910B4 with a name that a vendor made longer than any title, 64 GB (emulated)"
    return replace(
        record,
        device=replace(record.device, name=name),
        results=replace(record.results, ladder=tuple(rows)),
    )


def measured(*, token_error: float = 0.0031, times_limit: float | None = 0.3) -> Measured:
    """Return one image's measurement, one token and one operator of it as far off as said."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 201, 16, generator=generator)
    device = reference + 1e-4 * torch.randn(reference.shape, generator=generator)
    device[0, 137] = reference[0, 137] * (1 + token_error)
    results = accuracy().results
    hidden, block = results.last_hidden_state, results.blocks[4]
    beyond = times_limit is None or times_limit > 1
    worst = replace(cast(OperatorError, block.worst_operator), times_limit=times_limit)
    blocks = [*results.blocks]
    blocks[4] = replace(block, explained=not beyond, worst_operator=worst)
    results = replace(
        results,
        blocks=tuple(blocks),
        last_hidden_state=replace(
            hidden, worst_token=replace(hidden.worst_token, relative_error=token_error)
        ),
    )
    sides = (SimpleNamespace(last_hidden_state=one) for one in (reference, reference, device))
    found = SimpleNamespace(
        results=results,
        image=SimpleNamespace(pixels=np.full((427, 640, 3), 99, np.uint8)),
        examination=SimpleNamespace(**dict(zip(("fp64", "fp32", "device"), sides, strict=True))),
        stages=SimpleNamespace(),
        grid=(14, 14),
        setup=SimpleNamespace(device=header("accuracy")["device"], model_info=None),
    )
    return cast(Measured, found)


@pytest.fixture(autouse=True)
def five_tokens_before_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_accuracy, "prefix_of", lambda stages: 5)


def drawn() -> Iterator[tuple[str, Figure]]:
    """Yield every figure, those of accuracy as a sound chip's and as a wrong one's."""
    record = a_ladder()
    for draw in (draw_latency, draw_throughput, draw_ladder):
        yield draw.__name__, draw(record)
    title = f"PASS: fp32 (matrix products fp32)\n{subject(record.model, 'npu', 'x (emulated)')}"
    wrong = measured(token_error=0.31, times_limit=None)
    for kind, one in (("sound", measured()), ("wrong", wrong)):
        yield f"layers, {kind}", of_accuracy.draw_layers(one.results, title, "NPU")
        yield f"tokens, {kind}", of_accuracy.draw_tokens(one, title)
        yield f"PCA, {kind}", of_accuracy.draw_pca(one, title, "NPU")


def texts(figure: Figure) -> list[Text]:
    """Return what can be read in a figure."""
    found = figure.findobj(lambda one: isinstance(one, Text) and one.get_visible())
    return [one for one in found if isinstance(one, Text) and one.get_text().strip()]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_is_cut_or_small_and_none_stands_on_another(language: str) -> None:
    for name, figure in drawn():
        png(figure, language)
        outside = {  # no label is drawn beyond an axis' end, and none of an axis that is off
            label
            for axes in figure.axes
            for axis in (axes.xaxis, axes.yaxis)
            for tick in {*axis.get_major_ticks(), *axis.get_minor_ticks()}
            - {*(cast(Any, axis)._update_ticks() if axes.axison else ())}
            for label in (tick.label1, tick.label2)
        }
        boxes = {
            text.get_text(): text.get_window_extent()
            for text in texts(figure)
            if text not in outside
        }
        # Nine points are ten pixels where a picture is shown 400 pixels wide.
        sizes = sorted(float(text.get_fontsize()) for text in texts(figure))
        assert sizes[0] >= 5.5 and sizes[len(sizes) // 2] >= 7.0, name
        assert figure.bbox.width == 800
        whole = figure.bbox.padded(1.0)
        for text, box in boxes.items():
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1, (name, text)
            assert whole.y0 <= box.y0 and box.y1 <= whole.y1, (name, text)
        for (one, box), (other, beside) in itertools.combinations(boxes.items(), 2):
            assert not box.padded(-1.0).overlaps(beside.padded(-1.0)), (name, one, other)


def luminance(colour: str) -> float:
    """Return a colour's relative luminance (WCAG 2)."""
    parts = np.array([int(to_hex(colour)[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_colour_reads_on_a_light_and_on_a_dark_page() -> None:
    for colour in (INK, GREY, BLUE, ORANGE, RED, pictures.GREEN):
        light = 1.05 / (luminance(colour) + 0.05)
        dark = (luminance(colour) + 0.05) / (luminance("#15181c") + 0.05)
        assert min(light, dark) > 3.3, colour
    with Image.open(io.BytesIO(png(draw_latency(benchmark()), "en"))) as picture:
        assert picture.convert("RGBA").getpixel((0, 0))[3] == 0  # type: ignore[index] # of RGBA


def test_titles_name_the_device_and_the_weights_and_what_is_emulated() -> None:
    model = header("benchmark")["model"]
    name = "dinov3-vitb16-pretrain-lvd1689m"
    assert subject(model, "npu", "Ascend910_9362") == f"NPU Ascend910_9362, {name}"
    emulated = subject(replace(model, source="random"), "npu", "Ascend910_9362 (emulated)")
    assert emulated == "NPU Ascend910_9362, EMULATED, random weights"
    assert "EMULATED,\n" + name in words(draw_ladder(a_ladder(1)))
    assert len(subject(model, "cpu", "a\n$b$" + "long" * 90)) < 120


def test_no_sample_is_behind_the_legend_and_none_is_missing() -> None:
    for slow in (1.0, 150.0):
        record = benchmark()
        latency = record.results.latency
        assert latency is not None
        warm_up = replace(latency.warm_up, samples_ms=(9.0 * slow, 9.0))
        latency = replace(latency, warm_up=warm_up)
        figure = draw_latency(replace(record, results=replace(record.results, latency=latency)))
        png(figure, "en")
        axes = figure.axes[0]
        points = [line for line in axes.lines if line.get_linestyle() == "None"]
        shown = [value for line in points for value in cast(Any, line.get_ydata())]
        assert shown == [*warm_up.samples_ms, *latency.samples_ms]
        low, high = axes.get_ylim()
        assert low < min(shown) and max(shown) < high
        assert not axes.bbox.overlaps(figure.legends[0].get_window_extent())
        assert axes.get_yscale() == ("linear" if slow == 1.0 else "log")


def test_the_ladder_is_sorted_by_speed_and_its_failures_are_grey() -> None:
    record = a_ladder(3)
    figure = draw_ladder(record)
    bars = cast(Any, figure.axes[0].patches)
    speeds = [bar.get_width() for bar in bars]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 7
    rows = sorted(record.results.ladder, key=lambda row: row.latency.p50_ms)
    assert [to_hex(bar.get_facecolor()) == GREY for bar in bars] == [
        row.verdict == "FAIL" for row in rows
    ]
    shown = words(figure)
    for row in rows:
        assert f"{row.latency.p50_ms:.2f} ms, " in shown
        if row.relative_error is not None:
            assert f"error {percent(row.relative_error)}" in shown
    assert "★ bf16-sdpa-graph" in shown and "ms, not finite, FAIL" in shown


def with_limits(share: float | None = 0.0731) -> BenchmarkRecord:
    """Return a record whose rows use so much of their limit."""
    results = benchmark().results
    limits = [
        PrecisionLimit(name, 1e12, 64, 1 << 20, 0.5, ips, None)
        for name, ips in (("fp32", 1701.3), ("bf16", 6497.1), ("strict-fp32", 903.7))
    ]
    limit = Limit(1, 1, 1e12, tuple(limits), "host", "", 1.0)
    ladder = [replace(row, utilization=share) for row in results.ladder]
    sweep = [replace(row, utilization=share) for row in results.throughput]
    changed = replace(results, limit=limit, ladder=tuple(ladder), throughput=tuple(sweep))
    return replace(benchmark(), results=changed)


def test_throughput_stands_in_figures_beside_the_limit_as_a_line() -> None:
    record = with_limits()
    figure = draw_throughput(record)
    shown = words(figure)
    for row in record.results.throughput:
        if row.throughput_ips is not None:
            assert f"{row.throughput_ips:.0f}\n7.3 %" in shown
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for label, ips in (("limit in fp32: 1701", 1701.3), ("limit in bf16: 6497", 6497.1)):
        assert cast(Any, lines[label].get_ydata())[0] == ips
        assert figure.axes[0].get_ylim()[1] > ips
    assert "strict-fp32" not in shown  # no mode of it was swept
    limit = cast(Limit, record.results.limit)
    slowed = tuple(replace(one, reason="slower than a forward") for one in limit.precisions)
    results = replace(record.results, limit=replace(limit, precisions=slowed))
    assert "limit" not in words(draw_throughput(replace(record, results=results)))
    older = replace(record, results=replace(with_limits(None).results, limit=None))
    assert "%" not in words(draw_throughput(older)) and "limit" not in words(draw_throughput(older))


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "< 0.01 %"), (3e-7, "< 0.01 %"), (0.00012, "0.012 %"), (0.0731, "7.3 %"),
     (0.4312, "43 %"), (1.0, "100 %"), (13.0, "1300 %")],
)  # fmt: skip
def test_shares_are_written_as_people_say_them(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_the_ladder_has_each_modes_percent_of_the_limit() -> None:
    figure = draw_ladder(with_limits())
    assert words(figure).count("%, 7.3 % of limit") == 3  # the one that fails has none
    png(figure, "zh")
    assert words(figure).count("%，达上限的 7.3 %") == (3 if pictures.chinese_font() else 0)
    assert "of limit" not in words(draw_ladder(with_limits(None)))


def levels(figure: Figure, colour: str) -> list[float]:
    """Return where a figure has horizontal lines of a colour."""
    lines = [line for axes in figure.axes for line in axes.lines if line.get_color() == colour]
    return [cast(Any, line.get_ydata())[0] for line in lines]


def test_the_line_at_one_percent_is_there_and_that_of_the_arithmetic_too() -> None:
    results = accuracy().results
    figure = of_accuracy.draw_layers(results, "", "NPU")
    assert levels(figure, ORANGE) == [0.01, 1.0]
    assert "limit of the outputs, 1 %" in words(figure)
    coarse = replace(results, limits=replace(results.limits, relative_error=0.05))
    assert levels(of_accuracy.draw_layers(coarse, "", "NPU"), ORANGE) == [0.01, 0.05, 1.0]


@pytest.mark.parametrize("times", [0.3, 1.6, 41.3, None])
def test_only_an_operator_beyond_its_limit_is_red(times: float | None) -> None:
    figure = of_accuracy.draw_layers(measured(times_limit=times).results, "", "NPU")
    below = figure.axes[1]
    red = [number for number, bar in enumerate(below.patches) if to_hex(bar.get_facecolor()) == RED]
    assert red == ([] if times == 0.3 else [4])
    assert below.get_ylim()[1] == (1.1 if times == 0.3 else 2.0)
    if times != 0.3:
        assert ("not finite" if times is None else f"{times:.2g} x") in words(figure)


@pytest.mark.parametrize(("error", "red"), [(0.0031, False), (0.31, True)])
def test_the_worst_token_is_red_only_where_it_fails(error: float, red: bool) -> None:
    figure = of_accuracy.draw_tokens(measured(token_error=error), "")
    patches = figure.axes[1]
    assert (patches.lines[0].get_color() == RED) is red
    assert (patches.title.get_color() == RED) is red
    assert patches.images[0].get_clim() == (0, 0.045)


def test_tokens_that_are_not_finite_are_drawn_as_beyond_the_limit() -> None:
    found = measured()
    tokens = found.examination.device.last_hidden_state
    tokens[0, 0], tokens[0, 77] = torch.nan, torch.inf
    figure = of_accuracy.draw_tokens(found, "")
    assert png(figure, "en")
    first, *others = (to_hex(bar.get_facecolor()) for bar in cast(Any, figure.axes[2].patches))
    assert (first, set(others)) == (RED, {BLUE})
    map_ = cast(Any, figure.axes[1].images[0].get_array())
    assert (map_ >= 0.045).sum() == 1


def test_a_small_difference_of_features_looks_small() -> None:
    figure = of_accuracy.draw_pca(measured(), "", "NPU")
    assert figure.axes[3].images[0].get_clim() == (0, 0.045)


@pytest.mark.parametrize("size", [(64, 48), (1, 4000), (4000, 1)])
def test_the_title_of_the_features_stands_above_images_of_any_shape(size: tuple[int, int]) -> None:
    pair = np.full((*size, 3), 50, np.uint8), np.full((14, 14, 3), 200, np.uint8)
    drawn_ = of_inference.draw([pair], "NPU Ascend910_9362", "random", "en")
    with Image.open(io.BytesIO(drawn_)) as picture:
        top = picture.height - of_inference.PANEL_HEIGHT
        title = np.asarray(picture.convert("RGBA"))[: top - 1, :, 3]
        assert picture.info["source"] == "random"
    rows = np.flatnonzero(title.max(axis=1))
    assert rows[0] > 0 and rows[-1] < len(title) - 1  # nothing of it is cut


def test_a_host_without_a_chinese_font_gets_english_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "chinese_font", lambda: None)
    figure = figure_of(1.0, "warm-up")
    png(figure, "zh")
    assert words(figure) == "warm-up"
