"""accuracy.py's console block, from its record alone, and its pictures.

The pictures show errors beside their limits, so that a sound chip's look calm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from kit import records
from kit.accuracy.limits import LIMITS, number, validation_block
from kit.accuracy.measure import Measured
from kit.accuracy.verdict import block_name, place_words, prefix_of
from kit.device.arithmetic import CHIPS_GELU, found, is_less_exact, residual_words
from kit.device.device import LABELS
from kit.model.model import TENSORS
from kit.pictures import BLUE, GREEN, GREY, INK, ORANGE, RED, figure_of, png, subject
from kit.statistics import as_colours, compare_tokens, principal_components

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORSE = 1.1  # times the figure before; less is the last places of sums
SMALL_SET = 4  # cells of a coverage that one line says
SMALLEST_ERROR = 1e-9  # where an error of 0 is drawn on a logarithmic axis
HIGHEST_BAR = 2.0  # times the limit; a higher one ends there and has its figure


def report(record: records.AccuracyRecord) -> list[str]:
    """Return the `Accuracy Validation Results` block, then the kit's own lines."""
    results = record.results
    lines = [*validation_block(results), "", verdict_line(record)]
    lines += [f"  {reason}" for reason in results.reasons]
    lines += [*arithmetic_lines(record), "", *columns(record), "", *blocks(results)]
    if results.explain:
        lines += ["", *causes(results)]
    if results.folder is not None:
        lines += ["", *folder_lines(results.folder)]
    if (against := results.against) is not None:
        lines += [
            "",
            f"Against {against.features.device} ({against.features.file}), "
            f"limits of {against.limits.arithmetic}: {against.failed} images beyond them",
            *map(image_line, against.worst),
        ]
    if results.coverage:
        lines += ["", *coverage_lines(results.coverage)]
    if results.soak is not None:
        lines += ["", *soak_lines(results.soak)]
    return lines


def brief(*values: float | None) -> str:
    """Return small figures in columns."""
    return "".join(f"{number(value, '.3g'):>12}" for value in values)


def spread(errors: Sequence[records.Percentile]) -> str:
    """Return the percentiles of errors."""
    return ", ".join(f"p{one.percent:g} {number(one.relative_error, '.3g')}" for one in errors)


def verdict_line(record: records.AccuracyRecord) -> str:
    """Return the verdict with what qualifies it."""
    results = record.results
    remarks = [f"{results.declared} on {LABELS[record.device.type]} ({record.device.name})"]
    if reviewed(results) and results.features is not None:
        file = results.features
        remarks = [f"{file.declared} on {file.device}, as {file.file} says; its blocks unseen"]
    if results.source == "random":
        remarks.append("random weights: the features mean nothing, the arithmetic is real")
    if (folder := results.folder) is not None:
        count = f"{folder.images} images, {folder.failed} failed, {len(folder.broken)} broken"
        remarks.append(count)
    return f"Verdict: {results.verdict} ({'; '.join(remarks)})"


def reviewed(results: records.AccuracyResults) -> bool:
    """Return whether saved features were judged, and no device has run."""
    return results.features is not None and results.features.reviewed


def arithmetic_lines(record: records.AccuracyRecord) -> list[str]:
    """Return a line for each operator that does not compute in what was asked for."""
    measured, results = record.device.arithmetic, record.results
    if measured is None:
        return []
    lines = [
        f"{row.operator}: {row.found} on this chip (asked: {row.asked}; "
        f"nearest {row.nearest}, {residual_words(row)} away)"
        for row in measured.operators
        if is_less_exact(row) and not row.operator.startswith("GELU")
    ]
    form, own = found(measured, "GELU"), found(measured, CHIPS_GELU)
    if form == "tanh":
        explained = number(results.last_hidden_state.expected_error, ".2g")
        lines.append(
            "GELU is the tanh form on this chip (asked: erf), which with all else that it "
            f"computes in explains {explained}"
        )
    elif form != "erf":
        lines.append("GELU on this chip is neither the erf nor the tanh form")
    elif own not in (None, "erf"):
        lines.append(
            f"GELU is the {own} form on this chip (asked: erf); npu_patch computes erf instead"
        )
    if results.chip_gelu is not None:
        errors = results.chip_gelu.pooler_relative_error, results.chip_gelu.relative_error
        lines.append(
            "  with the chip's own form the relative errors would be "
            + " and ".join(number(error, ".3g") for error in errors)
            + " (pooler_output, last_hidden_state)"
        )
    if measured.overflow == "saturates":
        lines.append("Overflow saturates on this chip: the largest number counts as infinity")
    return lines


def columns(record: records.AccuracyRecord) -> list[str]:
    """Return the three columns, the parts, the worst token, its tail and the tolerance."""
    results = record.results
    label = "saved" if reviewed(results) else LABELS[record.device.type]
    lines = [
        f"Relative error against fp64 on the CPU, image {results.image}:",
        f"{'':24}{label:>12}{'CPU fp32':>12}{'explained':>12}",
    ]
    for name in TENSORS:
        tensor: records.TensorAccuracy = getattr(results, name)
        errors = tensor.fp64_relative_error, tensor.cpu_fp64_relative_error, tensor.expected_error
        lines.append(f"{name:24}{brief(*errors)}")
    lines += [
        f"  {part.part:22}{brief(part.fp64_relative_error, part.cpu_fp64_relative_error)}"
        for part in results.parts
    ]
    tensor = results.last_hidden_state
    worst = tensor.worst_token
    return [
        *lines,
        f"Worst token against {results.reference}: {place_words(worst)}, relative error "
        f"{number(worst.relative_error, '.3g')}, cosine {number(worst.cosine, '.6f')}",
        f"Token errors: {spread(tensor.token_percentiles)}",
        tolerance_line(results),
    ]


def tolerance_line(results: records.AccuracyResults) -> str:
    """Return the limits and the tightest ones that this run would just pass."""
    tensors = (results.pooler_output, results.last_hidden_state)
    limits = results.limits
    errors = [t.relative_error for t in tensors if t.relative_error is not None]
    cosine = min((t.cosine for t in tensors if t.cosine is not None), default=1.0)
    tokens = [t.worst_token.relative_error for t in tensors if t.worst_token.relative_error]
    given = (
        f"Limits ({limits.arithmetic}): relative error < {limits.relative_error:g}, "
        f"cosine > {limits.cosine:g}, worst token < {limits.token_relative_error:g}"
    )
    if any(t.relative_error is None or t.worst_token.relative_error is None for t in tensors):
        return f"{given}; no tolerance would pass what is not finite"
    just_below = 1 - just_above(1 - cosine) if cosine < 1 else 1 - 1e-9
    return (
        f"{given}; would just pass: relative error < {just_above(max(errors)):.3g}, "
        f"cosine > {just_below:.15g}, "
        f"worst token < {just_above(max(tokens, default=0.0)):.3g}"
    )


def just_above(value: float) -> float:
    """Return the value rounded up to three significant digits, and never equal to it."""
    if value == 0:
        return 1e-12
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return (math.floor(value / step) + 1) * step


def blocks(results: records.AccuracyResults) -> list[str]:
    """Return the error after every block and the operator nearest to its limit."""
    if reviewed(results):
        return ["Saved features show the outputs alone: no block was compared"]
    if not results.blocks:
        return ["This model's blocks are not known to the kit: only its outputs were compared"]
    lines = [
        "Error after each block (against fp64), and the worst operator on its own input:",
        f"{'block':>10}{'device':>12}{'CPU fp32':>12}{'explained':>12}  worst operator",
    ]
    for block in results.blocks:
        worst, tail, flag = block.worst_operator, "-", ""
        if worst is not None:
            share = number(worst.times_limit, ".0%").replace("%", " %")
            tail = f"{worst.operator} ({worst.name}) at {share} of its limit"
        if not block.explained:
            flag = "  UNEXPLAINED"
        elif not block.sum_explained:
            flag = "  (the error after it is not explained)"
        errors = brief(block.relative_error, block.cpu_relative_error, block.expected_error)
        lines.append(f"{block_name(block.block, block.name):>10}{errors}  {tail}{flag}")
    return lines


def causes(results: records.AccuracyResults) -> list[str]:
    """Return what --explain found."""
    lines = [
        "Known causes, one by one, by last_hidden_state (device: its error against fp64;",
        "reference: its distance from a CPU in the declared arithmetic that imitates the cause):",
    ]
    for cause in results.explain:
        before, after = number(cause.before, ".3g"), number(cause.relative_error, ".3g")
        words = cause.note or f"{before} -> {after}, {nearness(cause)}"
        lines.append(f"  {cause.cause} ({cause.where}): {words}")
    return lines


def nearness(cause: records.Cause) -> str:
    """Return what a switch makes of the difference: what it removes, or how much worse it is."""
    if cause.removes is None or cause.relative_error is None or not cause.before:
        return "removes -"
    times = cause.relative_error / cause.before
    if times < WORSE:
        return f"removes {cause.removes:.0%}"
    return f"{float(f'{times:.2g}'):,.{int(times < 10)}f} times worse: not this".replace(",", " ")


def folder_lines(folder: records.FolderAccuracy) -> list[str]:
    """Return the folder's lines."""
    lines = [
        f"Folder: {folder.images} images, {folder.failed} failed, {len(folder.broken)} broken "
        f"({folder.cached} references cached, {folder.ranks} ranks)",
        f"Image errors (last_hidden_state): {spread(folder.percentiles)}",
    ]
    lines += map(image_line, folder.worst)
    lines += [f"  broken: {broken.reason}" for broken in folder.broken]
    same = folder.neighbours
    if same.top1 is not None and same.top5 is not None:
        lines.append(
            f"Nearest neighbours by pooler_output: top-1 the same for {same.top1:.2%} of the "
            f"images, {same.top5:.2%} of the top-5 in common"
        )
    return lines


def image_line(image: records.ImageAccuracy) -> str:
    """Return one image's line."""
    return (
        f"  {image.image}: relative error {number(image.relative_error, '.3g')}, worst token "
        f"{number(image.token_relative_error, '.3g')} ({'passed' if image.passed else 'FAILED'})"
    )


def coverage_lines(cells: Sequence[records.CoverageCell]) -> list[str]:
    """Return the cells: one line for the small set where all pass, else a table."""
    failed = sum(not cell.passed for cell in cells)
    errors = [cell.relative_error for cell in cells if cell.relative_error is not None]
    batches = ", ".join(str(size) for size in sorted({cell.batch_size for cell in cells}))
    sizes = ", ".join(dict.fromkeys(f"{cell.rows}x{cell.columns}" for cell in cells))
    head = (
        f"Coverage: {len(cells)} cells (batch {batches}; {sizes}), {failed} failed, largest "
        f"relative error {number(max(errors, default=None), '.3g')}"
    )
    if not failed and len(cells) <= SMALL_SET:
        return [head]
    lines = [
        head,
        f"{'mode':>18}{'batch':>7}{'size':>12}{'error':>12}{'token':>12}{'explained':>12}",
    ]
    for cell in cells:
        errors_ = brief(cell.relative_error, cell.token_relative_error, cell.expected_error)
        tail = "" if cell.passed else f"  FAILED: {cell.reason}"
        size = f"{cell.rows}x{cell.columns}"
        lines.append(f"{cell.mode:>18}{cell.batch_size:>7}{size:>12}{errors_}{tail}")
    return lines


def soak_lines(soak: records.Soak) -> list[str]:
    """Return what the soak found."""
    lines = [
        f"Soak: {soak.forwards} forwards in {soak.seconds:.0f} s ({soak.end}), "
        f"{soak.beyond_limits} beyond a limit"
    ]
    for one in soak.batches:
        drift = "unknown" if one.drift is None else f"{one.drift:+.1%}"
        lines.append(
            f"  batch {one.batch_size}: {one.forwards} forwards, {one.distinct_results} distinct "
            f"results, median {number(one.early_ms, '.2f')} ms at first, drift {drift}"
        )
    if (first := soak.first_deviation) is not None:
        token = "" if first.token is None else f", token {first.token}"
        lines.append(
            f"  first deviation: forward {first.forward} at {first.at} ({first.after_s:.1f} s), "
            f"batch {first.batch_size}, {first.tensor} of image {first.image}{token}, by "
            f"{number(first.largest_difference, '.3g')} "
            f"({'inside' if first.passed else 'beyond'} the limits)"
        )
    return lines


# ---- Pictures ------------------------------------------------------------------------------------


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


def draw_layers(results: records.AccuracyResults, title: str, label: str) -> "Figure":
    """Return the error after each block, and each block's worst operator beside its limit."""
    figure = figure_of(5.0, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    places = range(len(results.blocks))
    for name, colour, style, label_ in (
        ("relative_error", BLUE, "o-", label),
        ("cpu_relative_error", GREY, "s--", "CPU fp32"),
        ("expected_error", GREEN, "^:", "explained"),
    ):
        known = [getattr(block, name) for block in results.blocks]  # None is a gap
        errors = np.maximum(np.array(known, dtype=np.float64), SMALLEST_ERROR)
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


def draw_ratios(axes: "Axes", blocks: Sequence[records.BlockAccuracy]) -> None:
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
    largest = max(difference.max(), measured.results.limits.token_relative_error)
    maps = (
        ("image", measured.image.pixels),
        (measured.results.reference, np.nan_to_num(reference)),
        (label, np.nan_to_num(device)),
        (f"difference, at most {difference.max():.2g} of the range", difference),
    )
    figure = figure_of(5.0, title)
    for panel, (name, map_) in zip(figure.subplots(2, 2).flat, maps, strict=True):
        shown = panel.imshow(map_, vmin=0, vmax=largest, aspect="auto")  # colours are no scale's
        panel.set_title(name)
        panel.set_axis_off()
        panel.set_box_aspect(measured.grid[0] / measured.grid[1])
    figure.colorbar(shown, ax=panel)
    return figure
