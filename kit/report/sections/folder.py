"""accuracy.py's part on a whole folder of images."""

from kit.report.blocks import Block, Bullets, Cell, Table
from kit.report.cells import Cells
from kit.report.fields import Node


def folder_blocks(folder: Node, cells: Cells) -> list[Block]:
    """Return the folder's counts, its worst images and the files that were skipped."""
    blocks: list[Block] = [counts_table(folder, cells)]
    worst = folder.at("worst").items()
    if worst:
        blocks.append(worst_table(worst, cells))
    broken = folder.at("broken").items()
    if broken:
        blocks.append(Bullets(tuple(broken_item(image, cells) for image in broken)))
    return blocks


def counts_table(folder: Node, cells: Cells) -> Table:
    """Return the folder's counts, the tail of its errors, and the neighbours in common."""
    texts, neighbours = cells.texts, folder.at("neighbours")
    failed = cells.whole(folder.at("failed"))
    if failed.sort is not None:
        failed = Cell(failed.text, "bad" if failed.sort else "good", failed.sort)
    rows = [
        (Cell(texts.images), cells.whole(folder.at("images"))),
        (Cell(texts.images_failed), failed),
        (Cell(texts.images_resumed), cells.whole(folder.at("resumed"))),
        (Cell(texts.images_cached), cells.whole(folder.at("cached"))),
        (Cell(texts.ranks), cells.whole(folder.at("ranks"))),
        (Cell(texts.neighbours_top1), cells.percent(neighbours.at("top1"), ".2f")),
        (Cell(texts.neighbours_top5), cells.percent(neighbours.at("top5"), ".2f")),
    ]
    for item in folder.at("percentiles").items():
        percent = cells.number(item.at("percent"), "g").text
        rows.append((Cell(f"p{percent}", "code"), cells.error(item.at("relative_error"))))
    return Table(texts.folder_caption, (texts.quantity, texts.value), tuple(rows))


def worst_table(images: list[Node], cells: Cells) -> Table:
    """Return the worst images, worst first."""
    texts = cells.texts
    rows = tuple(
        (
            cells.code(image.at("image")),
            cells.error(image.at("relative_error")),
            cells.number(image.at("cosine"), ".6f", null=texts.not_finite),
            cells.error(image.at("token_relative_error")),
            cells.error(image.at("max_abs_diff")),
            cells.passed(image.at("passed")),
        )
        for image in images
    )
    columns = (
        texts.image, "relative_error", "cosine", "token_relative_error", "max_abs_diff",
        texts.result,
    )  # fmt: skip
    return Table(texts.worst_images_caption, columns, rows, sortable=True)


def broken_item(image: Node, cells: Cells) -> Cell:
    """Return why a file was skipped."""
    return Cell(f"{cells.word(image.at('image'))}: {cells.word(image.at('reason'))}")
