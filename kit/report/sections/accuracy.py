"""accuracy.py's part: the table against its thresholds, the error's size, place and cause."""

from kit.report.blocks import Block, Bullets, Cell, Paragraph, Section, Table
from kit.report.cells import Cells, device_label
from kit.report.fields import Node
from kit.report.sections.common import picture, without_record
from kit.report.sections.folder import folder_blocks
from kit.report.sections.layers import blocks_table, causes_table
from kit.report.shelf import Shelf

TENSORS = (("Pooler Output", "pooler_output"), ("Last Hidden State", "last_hidden_state"))


def section(shelf: Shelf, cells: Cells) -> Section:
    """Return the section."""
    texts, entry = cells.texts, shelf.entries["accuracy"]
    if entry.state != "found":
        return Section("accuracy", texts.accuracy, without_record(entry, cells))
    record, results = entry.record, entry.record.at("results")
    blocks: list[Block] = [
        Paragraph(
            texts.accuracy_intro.format(
                declared=cells.word(results.at("declared")),
                device=cells.word(record.at("device", "name")),
                reference=cells.word(results.at("reference")),
                verdict=cells.word(results.at("verdict")),
            )
        )
    ]
    reasons = results.at("reasons").texts()
    if reasons:
        blocks.append(Bullets(tuple(Cell(reason) for reason in reasons)))
    blocks += [
        threshold_table(results, cells),
        Paragraph(texts.limits_reason.format(reason=cells.word(results.at("limits", "reason")))),
        difference_table(results, cells),
        truth_table(record, cells),
        tokens_table(results, cells),
    ]
    blocks += [
        picture(shelf, cells, "accuracy", name, words)
        for name, words in (
            ("accuracy_layers.png", (texts.layers_alt, texts.layers_caption)),
            ("accuracy_tokens.png", (texts.tokens_alt, texts.tokens_caption)),
            ("accuracy_pca.png", (texts.pca_alt, texts.pca_caption)),
        )
    ]
    blocks += detail(results, cells)
    return Section("accuracy", texts.accuracy, tuple(blocks))


def detail(results: Node, cells: Cells) -> list[Block]:
    """Return the blocks of the model, the causes that were switched, the folder."""
    texts = cells.texts
    blocks: list[Block] = []
    stages = results.at("blocks").items()
    if stages:
        blocks.append(blocks_table(stages, cells))
    else:
        missing = results.at("blocks").missing
        blocks.append(Paragraph(texts.missing if missing else texts.no_blocks))
    causes = results.at("explain").items()
    if causes:
        blocks.append(causes_table(causes, cells))
    if results.at("folder").there:
        blocks += folder_blocks(results.at("folder"), cells)
    return blocks


def good_word(results: Node) -> str:
    """Return PASS; a CPU against itself never passes, it checks itself."""
    return "SELF-CHECK" if results.at("reference").text() == "CPU fp64" else "PASS"


def threshold_table(results: Node, cells: Cells) -> Table:
    """Return the published table: figure, threshold, result."""
    texts, limits = cells.texts, results.at("limits")
    good = good_word(results)
    error_limit, cosine_limit = limits.at("relative_error"), limits.at("cosine")
    rows = []
    for label, name in TENSORS:
        tensor = results.at(name)
        rows += [
            (
                Cell(f"{label} {texts.vector_relative_error}"),
                with_percent(tensor.at("relative_error"), cells),
                bound("<", error_limit, cells),
                cells.passed(tensor.at("relative_error_passed"), good=good),
            ),
            (
                Cell(f"{label} {texts.cosine_similarity}"),
                cells.number(tensor.at("cosine"), ".6f", null=texts.not_finite),
                bound(">", cosine_limit, cells),
                cells.passed(tensor.at("cosine_passed"), good=good),
            ),
            (
                Cell(f"{label} {texts.worst_token_error}"),
                with_percent(tensor.at("worst_token", "relative_error"), cells),
                bound("<", limits.at("token_relative_error"), cells),
                token_result(tensor, limits, good, cells),
            ),
        ]
    columns = (texts.quantity, texts.value, texts.threshold, texts.result)
    return Table(texts.threshold_caption, columns, tuple(rows))


def with_percent(node: Node, cells: Cells) -> Cell:
    """Return a relative error as the console has it and as the published table has it."""
    cell, value = cells.fixed(node, 6), node.number()
    if value is None:
        return cell
    percent = value * 100
    spec = ".2f" if percent == 0 or percent >= 0.01 else ".2g"
    return Cell(f"{cell.text} ({format(percent, spec)} %)", "number", float(value))


def token_result(tensor: Node, limits: Node, good: str, cells: Cells) -> Cell:
    """Return whether the worst token is inside its limit."""
    error, limit = tensor.at("worst_token", "relative_error"), limits.at("token_relative_error")
    if error.null:
        return Cell("FAIL", "bad")
    value, most = error.number(), limit.number()
    if value is None or most is None:
        return cells.missing()
    return Cell(good, "good") if value < most else Cell("FAIL", "bad")


def bound(sign: str, node: Node, cells: Cells) -> Cell:
    """Return a threshold with its sign."""
    cell = cells.number(node, "g")
    return cell if cell.kind == "missing" else Cell(f"{sign} {cell.text}", "number", cell.sort)


def difference_table(results: Node, cells: Cells) -> Table:
    """Return shape, MSE, largest difference and whether the bits agree."""
    texts, good = cells.texts, good_word(results)
    rows = tuple(
        (
            Cell(label),
            cells.shape(results.at(name, "shape")),
            cells.fixed(results.at(name, "mse"), 10),
            cells.fixed(results.at(name, "max_abs_diff"), 6),
            cells.yes(results.at(name, "identical_bits")),
            cells.passed(results.at(name, "passed"), good=good),
        )
        for label, name in TENSORS
    )
    columns = (texts.tensor, texts.shape, "mse", "max_abs_diff", texts.bits_equal_cpu, texts.result)
    return Table(texts.difference_caption, columns, rows)


def truth_table(record: Node, cells: Cells) -> Table:
    """Return device and CPU against fp64, beside what the arithmetic explains."""
    texts, results = cells.texts, record.at("results")
    rows = [
        (
            Cell(label),
            *(
                cells.error(results.at(name, field))
                for field in ("fp64_relative_error", "cpu_fp64_relative_error", "expected_error")
            ),
        )
        for label, name in TENSORS
    ]
    rows += [
        (
            cells.text(part.at("part")),
            cells.error(part.at("fp64_relative_error")),
            cells.error(part.at("cpu_fp64_relative_error")),
            cells.none(),
        )
        for part in results.at("parts").items()
    ]
    label = device_label(record.at("device")) or texts.device
    columns = (texts.tensor, label, "CPU fp32", texts.explained_error)
    return Table(texts.truth_caption, columns, tuple(rows))


def tokens_table(results: Node, cells: Cells) -> Table:
    """Return the worst token and the tail of the tokens' errors."""
    texts, tensor = cells.texts, results.at("last_hidden_state")
    worst = tensor.at("worst_token")
    rows = [
        (Cell(texts.worst_token), Cell(place(worst, cells))),
        (Cell(texts.worst_token_cosine), cells.number(worst.at("cosine"), ".6f",
                                                      null=texts.not_finite)),
    ]  # fmt: skip
    percentiles = tensor.at("token_percentiles").items()
    for item in percentiles:
        percent = cells.number(item.at("percent"), "g").text
        rows.append((Cell(f"p{percent}", "code"), cells.error(item.at("relative_error"))))
    if not percentiles:
        rows.append((Cell(texts.percentiles), cells.missing()))
    return Table(texts.tokens_table_caption, (texts.quantity, texts.value), tuple(rows))


def place(token: Node, cells: Cells) -> str:
    """Return where a token is."""
    texts = cells.texts
    kind, number = token.at("kind").text(), cells.whole(token.at("token")).text
    if kind == "patch":
        return texts.patch_place.format(
            row=cells.whole(token.at("row")).text,
            column=cells.whole(token.at("column")).text,
            token=number,
        )
    words = {"CLS": "CLS", "register": texts.register, "vector": texts.vector}
    return texts.token_place.format(kind=words.get(kind or "", texts.missing), token=number)
