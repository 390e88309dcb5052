"""inference.py's part: the picture, the block as the console shows it, one row per image."""

import numpy as np

from kit.output import RULE
from kit.report.blocks import Block, Cell, Code, Paragraph, Section, Table
from kit.report.cells import Cells, device_label
from kit.report.fields import Node
from kit.report.sections.common import picture, without_record
from kit.report.shelf import Shelf


def section(shelf: Shelf, cells: Cells) -> Section:
    """Return the section."""
    texts, entry = cells.texts, shelf.entries["inference"]
    if entry.state != "found":
        return Section("inference", texts.inference, without_record(entry, cells))
    record = entry.record
    blocks: list[Block] = [
        Paragraph(texts.inference_intro),
        input_table(record, cells),
        picture(
            shelf, cells, "inference", "inference_features.png",
            (texts.features_alt, texts.features_caption),
        ),
        Code("text", "\n".join(block_lines(record, cells)), texts.console_block),
    ]  # fmt: skip
    images = record.at("results", "images").items()
    if len(images) > 1:
        blocks.append(images_table(images, cells))
    return Section("inference", texts.inference, tuple(blocks))


def input_table(record: Node, cells: Cells) -> Table:
    """Return what went in."""
    texts = cells.texts
    image, device = record.at("input"), record.at("device")
    size = f"{cells.whole(image.at('width')).text} × {cells.whole(image.at('height')).text}"
    return Table(
        texts.input_caption,
        (texts.quantity, texts.value),
        (
            (Cell(texts.image), cells.code(image.at("image"))),
            (Cell(texts.image_hash), cells.code(image.at("sha256"))),
            (Cell(texts.image_size), Cell(size)),
            (Cell(texts.input_shape), cells.shape(image.at("shape"))),
            (Cell(texts.preprocessing), cells.text(image.at("preprocessing"))),
            (Cell(texts.images), cells.whole(image.at("images"))),
            (Cell(texts.latency), cells.ms(record.at("results", "latency_ms"))),
            (Cell(texts.cpu_fallbacks), cells.names(device.at("cpu_fallbacks"))),
            (Cell(texts.known_answers), cells.whole(device.at("known_answer_checks"))),
        ),
    )


def block_lines(record: Node, cells: Cells) -> list[str]:
    """Return the `Inference Results` block as inference.py prints it, from the record."""
    results, device = record.at("results"), record.at("device")
    pooled, hidden = results.at("pooler_output"), results.at("last_hidden_state")
    label = device_label(device) or cells.texts.missing
    values = " ".join(str(np.float32(value)) for value in pooled.at("first_values").numbers())
    return [
        RULE,
        "Inference Results",
        RULE,
        f"Device: {label} ({cells.word(device.at('name'))})",
        f"Latency: {cells.ms(results.at('latency_ms')).text}",
        f"Pooled output shape: {size(pooled.at('shape'), cells)}",
        f"Last hidden state shape: {size(hidden.at('shape'), cells)}",
        f"Pooled output dtype: {cells.word(pooled.at('dtype'))}",
        f"Pooled output device: {cells.word(pooled.at('device'))}",
        f"Pooled output first 5 values: [{values or cells.texts.missing}]",
        RULE,
    ]


def size(node: Node, cells: Cells) -> str:
    """Return a shape as torch prints it."""
    cell = cells.shape(node)
    return cell.text if cell.kind == "missing" else f"torch.Size({cell.text})"


def images_table(images: list[Node], cells: Cells) -> Table:
    """Return a folder's images."""
    texts = cells.texts
    rows = tuple(
        (
            cells.code(image.at("image")),
            cells.whole(image.at("width")),
            cells.whole(image.at("height")),
            cells.ms(image.at("latency_ms")),
        )
        for image in images
    )
    columns = (texts.image, texts.width, texts.height, texts.latency)
    return Table(texts.images_caption, columns, rows, sortable=True)
