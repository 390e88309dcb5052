"""Draw patch features as DINOv3's authors do: three principal components as red, green, blue."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kit.pictures import WIDTH_INCHES, figure_of, png
from kit.statistics import as_colours, principal_components

PANEL_HEIGHT = 427  # of the default image, so that it is shown pixel for pixel
GAP = 8
LARGEST_RATIO = 4.0  # a 1 x 4000 image would else be a line
TITLE_INCHES = 0.25  # of a line


def feature_colours(
    tokens: npt.NDArray[np.float32], rows: int, columns: int
) -> npt.NDArray[np.uint8]:
    """Return the patch tokens as colours, uint8, rows x columns x 3."""
    colours = 255.0 * as_colours(principal_components(tokens))
    eight_bits: npt.NDArray[np.uint8] = colours.round().astype(np.uint8)
    return eight_bits.reshape(rows, columns, 3)


def panel_size(width: int, height: int) -> tuple[int, int]:
    """Return the size in pixels at which an image is shown, its shape kept within limits."""
    ratio = min(max(width / height, 1 / LARGEST_RATIO), LARGEST_RATIO)
    return max(1, round(PANEL_HEIGHT * ratio)), PANEL_HEIGHT


def draw(
    pairs: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
    title: str,
    source: str,
    language: str,
) -> bytes:
    """Return a PNG with the title, and one row per pair: the image, and its features at its size.

    Args:
        pairs: image (uint8, rows x columns x 3) and feature colours (the same, any size).
        title: its lines.
        source: where the weights come from, kept in the PNG's text chunk `source`.
        language: zh or en.
    """
    rows = []
    for pixels, colours in pairs:
        size = panel_size(pixels.shape[1], pixels.shape[0])
        row = Image.new("RGBA", (2 * size[0] + GAP, size[1]))
        row.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (0, 0))
        patches = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
        row.paste(patches, (size[0] + GAP, 0))
        rows.append(row)
    width = max(row.width for row in rows)
    inches = TITLE_INCHES * len(title.splitlines())
    heading = figure_of(inches, title, dpi=width / WIDTH_INCHES)
    heading.set_layout_engine("none")
    heading.texts[0].set(y=0.5, va="center")
    rows.insert(0, Image.open(io.BytesIO(png(heading, language))).convert("RGBA"))
    sheet = Image.new("RGBA", (width, sum(row.height + GAP for row in rows) - GAP))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text("source", source)
    sheet.save(buffer, "PNG", compress_level=3, pnginfo=text)
    return buffer.getvalue()
