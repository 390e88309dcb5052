"""accuracy.py's pictures: errors beside their limits, so that a sound chip's look calm."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kit.accuracy.limits import LIMITS, number
from kit.accuracy.measure import Measured
from kit.accuracy.verdict import block_name, place_words, prefix_of
from kit.device.device import LABELS
from kit.pictures import BLUE, GREEN, GREY, INK, ORANGE, RED, figure_of, png, subject
from kit.records import AccuracyResults, BlockAccuracy
from kit.statistics import as_colours, compare_tokens, principal_components

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_ERROR = 1e-9  # where an error of 0 is drawn on a logarithmic axis
HIGHEST_BAR = 2.0  # times the limit; a higher one ends there and has its figure


def pictures(measured: Measured, language: str) -> Mapping[str, Callable[[], bytes]]:
    """Return what draws each PNG file of one image's measurement, by its name, in zh or en."""
    results, setup = measured.results, measured.setup
    of = subject(setup.model_info, setup.device.type, setup.device.name)
    title = f"{results.verdict}: {results.declared}\n{of}"
    label = LABELS[setup.device.type]
    drawn = {"accuracy_layers.png": lambda: png(draw_layers(results, title, label), language)}
    examination, (rows, columns) = measured.examination, measured.grid
    shape = examination.device.last_hidden_state.shape
    right = shape == examination.fp64.last_hidden_state.shape
    if right and shape[1] == prefix_of(measured.stages) + rows * columns:
        drawn["accuracy_tokens.png"] = lambda: png(draw_tokens(measured, title), language)
        drawn["accuracy_pca.png"] = lambda: png(draw_pca(measured, title, label), language)
    return drawn


def draw_layers(results: AccuracyResults, title: str, label: str) -> "Figure":
    """Return the error after each block, and each block's worst operator beside its limit."""
    figure = figure_of(5.0, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    places = range(len(results.blocks))
    for name, colour, style, label_ in (
        ("relative_error", BLUE, "o-", label),
        ("cpu_relative_error", GREY, "s--", "CPU fp32"),
        ("expected_error", GREEN, "^:", "explained"),
    ):
        found = [getattr(block, name) for block in results.blocks]  # None is a gap
        errors = np.maximum(np.array(found, dtype=np.float64), SMALLEST_ERROR)
        above.plot(places, errors, style, color=colour, label=label_, markersize=4)
    for limit in sorted({LIMITS["fp32"].relative_error, results.limits.relative_error}):
        words = f"limit of the outputs, {limit:.0%}".replace("%", " %")
        above.axhline(limit, color=ORANGE, linewidth=1, label=words)
    above.set_yscale("log")
    above.set_ylabel("relative error against fp64")
    draw_ratios(below, results.blocks)
    names = [block_name(block.block, block.name) for block in results.blocks]
    below.set_xticks(list(places), names)
    for name in below.get_xticklabels():
        name.set_rotation(0 if name.get_text().isdigit() else 90)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_ratios(axes: "Axes", blocks: Sequence[BlockAccuracy]) -> None:
    """Draw how much of its limit each block's worst operator uses; red beyond it."""
    for place, block in enumerate(blocks):
        worst = block.worst_operator
        if worst is None:
            continue
        times = worst.times_limit
        beyond = not block.explained
        height = HIGHEST_BAR if times is None else min(times, HIGHEST_BAR)
        axes.bar(place, height, color=RED if beyond else BLUE)
        if beyond:  # the figure stands in the bar: bars side by side have no room above
            words = "not finite" if times is None else f"{times:.2g} x"
            axes.annotate(
                words, (place, 0.06), rotation=90, ha="center", va="bottom", color="#ffffff"
            )
    axes.axhline(1, color=ORANGE, linewidth=1)
    axes.set_ylim(0, HIGHEST_BAR if any(not one.explained for one in blocks) else 1.1)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_ylabel("worst operator / its limit")


def draw_tokens(measured: Measured, title: str) -> "Figure":
    """Return the image beside each patch's error, and CLS and registers, scaled to the limit."""
    reference, device = tokens_of(measured)
    limit = measured.results.limits.token_relative_error
    relative = compare_tokens(reference, device).relative.numpy()
    errors = np.nan_to_num(relative, nan=np.inf).clip(max=10 * limit)
    worst = measured.results.last_hidden_state.worst_token
    beyond = worst.relative_error is None or worst.relative_error >= limit
    prefix = prefix_of(measured.stages)
    figure = figure_of(3.9, title)
    panels = figure.subplot_mosaic([["image", "patches"], ["others", "others"]],
                                   height_ratios=[3, 1])  # fmt: skip
    left, middle, below = panels["image"], panels["patches"], panels["others"]
    left.imshow(measured.image.pixels, aspect="auto")
    left.set_title("image")
    shown = middle.imshow(errors[prefix:].reshape(measured.grid), vmin=0, vmax=limit, aspect="auto")
    if worst.row is not None and worst.column is not None:
        colour = RED if beyond else "#ffffff"
        middle.plot(worst.column, worst.row, "x" if beyond else ".", color=colour, markersize=9)
    share = number(worst.relative_error, ".2%").replace("%", " %")
    middle.set_title(f"worst: {place_words(worst)}\n{share}", color=RED if beyond else INK)
    figure.colorbar(shown, ax=middle, label="relative error of the token")
    names = ["CLS", *(f"reg {number_}" for number_ in range(prefix - 1))]
    colours = [RED if error >= limit else BLUE for error in errors[:prefix]]
    below.bar(names, errors[:prefix].clip(max=limit), color=colours)
    below.axhline(limit, color=ORANGE, linewidth=1)
    below.set_ylim(0, 1.1 * limit)
    below.set_title("other tokens, up to the limit")
    for axes in (left, middle):
        axes.set_axis_off()
        axes.set_box_aspect(measured.grid[0] / measured.grid[1])
    return figure


def tokens_of(measured: Measured) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all tokens of the side that the limits are held against, and of the device."""
    examination = measured.examination
    self_check = measured.results.reference == "CPU fp64"
    expected = examination.fp64 if self_check else examination.fp32
    return expected.last_hidden_state, examination.device.last_hidden_state


def draw_pca(measured: Measured, title: str, label: str) -> "Figure":
    """Return image, reference and device features as colours, and the difference.

    The reference's principal components are the basis of both. The difference is scaled to the
    limit of a token, or to what is more.
    """
    prefix = prefix_of(measured.stages)
    sides = [tokens[0, prefix:].double().numpy() for tokens in tokens_of(measured)]
    reference, device = (
        as_colours(principal_components(side, sides[0])).reshape(*measured.grid, 3)
        for side in sides
    )
    difference = np.nan_to_num(np.abs(device - reference).max(axis=-1), nan=1.0)
    figure = figure_of(5.0, title)
    panels = figure.subplots(2, 2).flat
    pictures_ = (
        ("image", measured.image.pixels),
        (measured.results.reference, np.nan_to_num(reference)),
        (label, np.nan_to_num(device)),
    )
    for panel, (name, map_) in zip(panels, pictures_, strict=False):
        panel.imshow(map_, aspect="auto")
        panel.set_title(name)
        panel.set_axis_off()
    last = figure.axes[3]
    largest = max(difference.max(), measured.results.limits.token_relative_error)
    shown = last.imshow(difference, vmin=0, vmax=largest, aspect="auto")
    last.set_title(f"difference, at most {difference.max():.2g} of the range")
    last.set_axis_off()
    for panel in figure.axes:
        panel.set_box_aspect(measured.grid[0] / measured.grid[1])
    figure.colorbar(shown, ax=last)
    return figure
