"""accuracy.py's three pictures: error by block, error by token, features on one PCA basis."""

import io
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kit.accuracy.places import place_of
from kit.accuracy.single import Measured
from kit.accuracy.stages import Stages
from kit.records import AccuracyResults, BlockAccuracy
from kit.statistics import to_fp64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#cc3311", "#7f7f7f"
SMALLEST_ERROR = 1e-9  # where an error of 0 is drawn on a logarithmic axis
Array = npt.NDArray[np.float64]


def of(
    measured: Measured,
    results: AccuracyResults,
    stages: Stages,
    image: npt.NDArray[np.uint8],
    label: str,
) -> Mapping[str, Callable[[], bytes]]:
    """Return what draws each PNG file, by its name.

    Args:
        measured: one image's measurement.
        results: the same in the record.
        stages: of the model.
        image: uint8, rows x columns x 3.
        label: the device's kind, for the legends.
    """
    title = f"{results.verdict}: {results.declared}"
    if results.source == "random":
        title += ", random weights"
    labels = (results.reference, label)
    drawn: dict[str, Callable[[], bytes]] = {
        "accuracy_layers.png": lambda: layers(results, title, label)
    }
    if fits_grid(measured, stages):
        drawn["accuracy_tokens.png"] = lambda: tokens(measured, stages, image, title)
        drawn["accuracy_pca.png"] = lambda: pca(measured, stages, image, title, labels)
    return drawn


def fits_grid(measured: Measured, stages: Stages) -> bool:
    """Return whether the device's tokens are finite and lie on the grid of patches."""
    device = measured.examination.device.last_hidden_state
    truth = measured.examination.truth.last_hidden_state
    patches = measured.grid[0] * measured.grid[1]
    prefix = prefix_of(stages)
    return device.shape == truth.shape and device.ndim == 3 and device.shape[1] == prefix + patches


def prefix_of(stages: Stages) -> int:
    """Return how many tokens stand before the patches; a ConvNeXt's pooled vector is one."""
    return 1 if stages.prefix_tokens is None else stages.prefix_tokens


def figure_of(width: float, height: float, title: str) -> "Figure":
    """Return an empty figure that needs no display."""
    import matplotlib as mpl  # only pictures need it

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=DPI, layout="constrained")
    figure.suptitle(title)
    return figure


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def drawable(value: float | None) -> float:
    """Return an error as a logarithmic axis can show it; NaN leaves a gap."""
    return math.nan if value is None else max(value, SMALLEST_ERROR)


def layers(results: AccuracyResults, title: str, label: str) -> bytes:
    """Return the error after each block, and each block's worst operator beside its limit."""
    figure = figure_of(9, 6.5, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    blocks = results.blocks
    names = [block_name(block, results) for block in blocks]
    places = range(len(blocks))
    for values, colour, style, name in (
        ([drawable(block.relative_error) for block in blocks], BLUE, "o-", label),
        ([drawable(block.cpu_relative_error) for block in blocks], GREY, "s--", "CPU fp32"),
        ([drawable(block.expected_error) for block in blocks], GREEN, "^:", "explained"),
    ):
        above.plot(places, values, style, color=colour, label=name, markersize=5)
    factor = results.limits.budget_factor
    limits = [max(factor * block.expected_error, SMALLEST_ERROR) for block in blocks]
    above.plot(places, limits, "-", color=ORANGE, linewidth=1, label=f"{factor:g} x explained")
    above.set_yscale("log")
    above.set_ylabel("relative error against fp64")
    above.legend()
    above.grid(alpha=0.3)
    draw_ratios(below, blocks)
    below.set_xticks(list(places), names)
    below.set_xlabel("block")
    return png(figure)


def draw_ratios(axes: "Axes", blocks: tuple[BlockAccuracy, ...]) -> None:
    """Draw how many times its limit each block's worst operator is."""
    ratios = [
        math.nan
        if block.worst_operator is None or block.worst_operator.times_limit is None
        else max(block.worst_operator.times_limit, 1e-3)
        for block in blocks
    ]
    colours = [BLUE if block.explained else RED for block in blocks]
    axes.bar(range(len(blocks)), ratios, color=colours, bottom=0)
    axes.axhline(1, color=ORANGE, linewidth=1)
    for place, (block, ratio) in enumerate(zip(blocks, ratios, strict=True)):
        if not block.explained:
            operator = block.worst_operator
            words = "sum" if operator is None else operator.operator
            height = 1 if math.isnan(ratio) else ratio
            axes.annotate(words, (place, height), ha="center", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("worst operator / its limit")
    axes.grid(alpha=0.3, axis="y")


def block_name(block: BlockAccuracy, results: AccuracyResults) -> str:
    """Return a block's name under the axis."""
    if block.block < 0:
        return "embed"
    last = block is results.blocks[-1] and "norm" in block.name
    return "norm" if last else str(block.block)


def tokens(measured: Measured, stages: Stages, image: npt.NDArray[np.uint8], title: str) -> bytes:
    """Return the image beside each patch's error, and CLS and registers as bars."""
    from matplotlib.colors import LogNorm  # only this picture needs it

    judged = measured.judgements["last_hidden_state"].tokens
    errors = np.nan_to_num(judged.relative.numpy(), posinf=10.0).clip(SMALLEST_ERROR, 10.0)
    prefix = prefix_of(stages)
    figure = figure_of(12, 4.4, title)
    left, middle, right = figure.subplots(1, 3, width_ratios=[4, 4, 2])
    left.imshow(image, aspect="auto")
    left.set_title("image")
    patches = errors[prefix:].reshape(measured.grid)
    shown = middle.imshow(
        patches, norm=LogNorm(patches.min(), max(patches.max(), patches.min() * 1.01))
    )
    place = place_of(judged.worst, stages, measured.grid)
    if place.row is not None and place.column is not None:
        middle.plot(place.column, place.row, "x", color=RED, markersize=12)
    middle.set_title(f"worst: {place.words}, {judged.worst_relative:.2g}")
    figure.colorbar(shown, ax=middle, label="relative error of the token")
    names = ["CLS", *(f"reg {number}" for number in range(prefix - 1))]
    right.bar(names, errors[:prefix], color=BLUE)
    right.set_yscale("log")
    right.tick_params(axis="x", labelrotation=90)
    right.set_title("other tokens")
    for axes in (left, middle):
        axes.set_axis_off()
    return png(figure)


def pca(
    measured: Measured,
    stages: Stages,
    image: npt.NDArray[np.uint8],
    title: str,
    labels: tuple[str, str],
) -> bytes:
    """Return image, reference and device features as colours on one basis, and the difference.

    Args:
        measured: one image's measurement.
        stages: of the model.
        image: uint8, rows x columns x 3.
        title: above all.
        labels: of the reference, whose components are the basis, and of the device.
    """
    prefix = prefix_of(stages)
    examination = measured.examination
    expected = examination.truth if labels[0] == "CPU fp64" else examination.cpu
    sides = [
        to_fp64(features.last_hidden_state)[0, prefix:].numpy()
        for features in (expected, examination.device)
    ]
    reference, device = (colours(side, sides[0]).reshape(*measured.grid, 3) for side in sides)
    difference = np.nan_to_num(np.abs(device - reference).max(axis=-1), nan=1.0)
    figure = figure_of(13, 3.8, title)
    axes = figure.subplots(1, 4)
    axes[0].imshow(image, aspect="auto")
    for panel, map_, name in ((axes[1], reference, labels[0]), (axes[2], device, labels[1])):
        panel.imshow(np.nan_to_num(map_))
        panel.set_title(name)
    shown = axes[3].imshow(difference, cmap="magma", vmin=0, vmax=max(difference.max(), 1e-12))
    axes[3].set_title(f"difference, {difference.max():.2g} of the range at most")
    figure.colorbar(shown, ax=axes[3])
    axes[0].set_title("image")
    for panel in axes:
        panel.set_axis_off()
    return png(figure)


def colours(tokens_: Array, basis_of: Array) -> Array:
    """Return patch tokens as colours from 0 to 1 on the first three components of `basis_of`.

    Args:
        tokens_: patches x width.
        basis_of: patches x width; its mean, components and spread are used for both sides.
    """
    mean = basis_of.mean(axis=0)
    _, values, components = np.linalg.svd(basis_of - mean, full_matrices=False)
    count = min(3, len(values))
    spread = np.where(values[:count] > 0, values[:count], 1.0) / math.sqrt(len(basis_of))
    scores = np.zeros((len(tokens_), 3))
    scores[:, :count] = (tokens_ - mean) @ components[:count].T / spread
    found: Array = 1.0 / (1.0 + np.exp(-2.0 * scores))
    return found
