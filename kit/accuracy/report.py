"""The lines at the end of accuracy.py's console output, from its record alone."""

import math

from kit.device.device import LABELS
from kit.output import RULE
from kit.records import (
    AccuracyRecord,
    AccuracyResults,
    BlockAccuracy,
    FolderAccuracy,
    TensorAccuracy,
    TokenPlace,
)

CRITERION = "vector-level relative error < 1% and cosine similarity > 0.999"
SELF_CHECK_CRITERION = "no accelerator: the CPU was held against its own fp64 reference"


def report(record: AccuracyRecord) -> list[str]:
    """Return the `Accuracy Validation Results` block, then the kit's own lines."""
    results = record.results
    lines = validation_block(results)
    lines += ["", verdict_line(record)]
    lines += [f"  {reason}" for reason in results.reasons]
    lines += ["", *columns(record), "", *blocks(results)]
    if results.explain:
        lines += ["", *causes(results)]
    if results.folder is not None:
        lines += ["", *folder_lines(results.folder)]
    return lines


def validation_block(results: AccuracyResults) -> list[str]:
    """Return the block that every published report of this model has."""
    lines = [RULE, "Accuracy Validation Results", RULE]
    for name in ("pooler_output", "last_hidden_state"):
        tensor: TensorAccuracy = getattr(results, name)
        error_mark, cosine_mark, overall = (
            mark(passed, results)
            for passed in (tensor.relative_error_passed, tensor.cosine_passed, tensor.passed)
        )
        lines += [
            f"{name}:",
            f"Shape: {tensor.shape}",
            f"Vector Relative Error: {number(tensor.relative_error, '.6f')} ({error_mark})",
            f"Cosine Similarity: {number(tensor.cosine, '.6f')} ({cosine_mark})",
            f"MSE: {number(tensor.mse, '.10f')}",
            f"Max Absolute Diff: {number(tensor.max_abs_diff, '.6f')}",
            f"Overall: {overall}",
        ]
    return [*lines, RULE, f"OVERALL: {overall_text(results)}", RULE]


def mark(passed: bool, results: AccuracyResults) -> str:
    """Return PASS or FAIL; a CPU against itself never passes, it checks itself."""
    if not passed:
        return "FAIL"
    return "SELF-CHECK" if results.reference == "CPU fp64" else "PASS"


def overall_text(results: AccuracyResults) -> str:
    """Return what stands behind OVERALL."""
    tensors = (results.pooler_output, results.last_hidden_state)
    inside = all(t.relative_error_passed and t.cosine_passed for t in tensors)
    criterion = CRITERION
    if results.limits.arithmetic in ("bf16", "fp16"):
        criterion = (
            f"vector-level relative error < {results.limits.relative_error:.0%} and cosine "
            f"similarity > {results.limits.cosine:g}, the limits of {results.limits.arithmetic}"
        )
    if results.outcome == "fail":
        return f"FAIL ({criterion if not inside else results.reasons[0]})"
    if results.reference == "CPU fp64":
        return f"SELF-CHECK ({SELF_CHECK_CRITERION})"
    return f"PASS ({criterion})"


def number(value: float | None, form: str) -> str:
    """Return a figure as text; what is not finite is said so."""
    return "not finite" if value is None else format(value, form)


def brief(value: float | None) -> str:
    """Return a small figure in a column."""
    return f"{'not finite' if value is None else f'{value:.3g}':>12}"


def verdict_line(record: AccuracyRecord) -> str:
    """Return the verdict with what qualifies it."""
    results = record.results
    remarks = [f"{results.declared} on {LABELS[record.device.type]} ({record.device.name})"]
    if results.source == "random":
        remarks.append("random weights: the features mean nothing, the arithmetic is real")
    if results.folder is not None:
        folder = results.folder
        remarks.append(
            f"{folder.images} images, {folder.failed} failed, {len(folder.broken)} broken"
        )
    return f"Verdict: {results.verdict} ({'; '.join(remarks)})"


def columns(record: AccuracyRecord) -> list[str]:
    """Return the three columns, the parts, the worst token, its tail and the tolerance."""
    results = record.results
    label = LABELS[record.device.type]
    lines = [
        f"Relative error against fp64 on the CPU, image {results.image}:",
        f"{'':24}{label:>12}{'CPU fp32':>12}{'explained':>12}",
    ]
    for name in ("pooler_output", "last_hidden_state"):
        tensor: TensorAccuracy = getattr(results, name)
        lines.append(
            f"{name:24}{brief(tensor.fp64_relative_error)}{brief(tensor.cpu_fp64_relative_error)}"
            f"{brief(tensor.expected_error)}"
        )
    lines += [
        f"  {part.part:22}{brief(part.fp64_relative_error)}{brief(part.cpu_fp64_relative_error)}"
        for part in results.parts
    ]
    tensor = results.last_hidden_state
    worst = tensor.worst_token
    lines += [
        f"Worst token against {results.reference}: {place_words(worst)}, relative error "
        f"{number(worst.relative_error, '.3g')}, cosine {number(worst.cosine, '.6f')}",
        "Token errors: "
        + ", ".join(
            f"p{item.percent:g} {number(item.relative_error, '.3g')}"
            for item in tensor.token_percentiles
        ),
        tolerance_line(results),
    ]
    return lines


def place_words(place: TokenPlace) -> str:
    """Return a token's place for a reader."""
    if place.kind == "patch":
        return f"patch in row {place.row}, column {place.column}"
    return {"CLS": "CLS", "register": f"register {place.token - 1}"}.get(
        place.kind, f"vector {place.token}"
    )


def tolerance_line(results: AccuracyResults) -> str:
    """Return the limits and the tightest ones that this run would just pass."""
    tensors = (results.pooler_output, results.last_hidden_state)
    limits = results.limits
    errors = [tensor.relative_error for tensor in tensors]
    cosines = [tensor.cosine for tensor in tensors]
    tokens = [tensor.worst_token.relative_error for tensor in tensors]
    given = (
        f"Limits ({limits.arithmetic}): relative error < {limits.relative_error:g}, "
        f"cosine > {limits.cosine:g}, worst token < {limits.token_relative_error:g}"
    )
    if None in errors or None in cosines or None in tokens:
        return f"{given}; no tolerance would pass what is not finite"
    error, cosine, token = (
        just_above(max(x for x in errors if x is not None)),
        just_below(min(x for x in cosines if x is not None)),
        just_above(max(x for x in tokens if x is not None)),
    )
    return (
        f"{given}; would just pass: relative error < {error:.3g}, cosine > {cosine:.15g}, "
        f"worst token < {token:.3g}"
    )


def just_above(value: float) -> float:
    """Return the value rounded up to three significant digits, and never equal to it."""
    if value == 0:
        return 1e-12
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return (math.floor(value / step) + 1) * step


def just_below(cosine: float) -> float:
    """Return the cosine with its distance from 1 rounded up."""
    return 1 - just_above(1 - cosine) if cosine < 1 else 1 - 1e-9


def blocks(results: AccuracyResults) -> list[str]:
    """Return the error after every block and the operator nearest to its limit."""
    if not results.blocks:
        return ["This model's blocks are not known to the kit: only its outputs were compared"]
    lines = [
        "Error after each block (against fp64), and the worst operator on its own input:",
        f"{'block':>10}{'device':>12}{'CPU fp32':>12}{'explained':>12}  worst operator",
    ]
    return lines + [block_line(block, results) for block in results.blocks]


def block_line(block: BlockAccuracy, results: AccuracyResults) -> str:
    """Return one block's line."""
    last = block is results.blocks[-1] and block.block > 0 and "norm" in block.name
    name = "embedding" if block.block < 0 else "norm" if last else str(block.block)
    worst = block.worst_operator
    tail = "-"
    if worst is not None:
        times = number(worst.times_limit, ".2g")
        tail = f"{worst.operator} ({worst.name}) at {times} x its limit"
    flag = "" if block.explained else "  UNEXPLAINED"
    if block.explained and not block.sum_explained:
        flag = "  (the error after it is not explained)"
    return (
        f"{name:>10}{brief(block.relative_error)}{brief(block.cpu_relative_error)}"
        f"{brief(block.expected_error)}  {tail}{flag}"
    )


def causes(results: AccuracyResults) -> list[str]:
    """Return what --explain found."""
    lines = [
        "Known causes, one by one, by last_hidden_state (device: its error against fp64;",
        "reference: its distance from a CPU in the declared arithmetic that imitates the cause):",
    ]
    for cause in results.explain:
        if cause.note:
            lines.append(f"  {cause.cause} ({cause.where}): {cause.note}")
            continue
        share = "-" if cause.removes is None else f"{cause.removes:.0%}"
        lines.append(
            f"  {cause.cause} ({cause.where}): {number(cause.before, '.3g')} -> "
            f"{number(cause.relative_error, '.3g')}, removes {share}"
        )
    return lines


def folder_lines(folder: FolderAccuracy) -> list[str]:
    """Return the folder's lines."""
    lines = [
        f"Folder: {folder.images} images, {folder.failed} failed, {len(folder.broken)} broken "
        f"({folder.resumed} taken over from an earlier run, {folder.cached} references cached, "
        f"{folder.ranks} ranks)",
        "Image errors (last_hidden_state): "
        + ", ".join(
            f"p{item.percent:g} {number(item.relative_error, '.3g')}" for item in folder.percentiles
        ),
    ]
    lines += [
        f"  {image.image}: relative error {number(image.relative_error, '.3g')}, worst token "
        f"{number(image.token_relative_error, '.3g')} ({'passed' if image.passed else 'FAILED'})"
        for image in folder.worst
    ]
    lines += [f"  broken: {broken.reason}" for broken in folder.broken]
    same = folder.neighbours
    if same.top1 is not None and same.top5 is not None:
        lines.append(
            f"Nearest neighbours by pooler_output: top-1 the same for {same.top1:.2%} of the "
            f"images, {same.top5:.2%} of the top-5 in common"
        )
    return lines
