"""Draw patch features as DINOv3's authors do: three principal components as red, green, blue."""

import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from kit.language import translated
from kit.pictures import INK
from kit.statistics import as_colours, principal_components

PANEL_HEIGHT = 427  # of the default image, so that it is shown pixel for pixel
GAP = 8
LARGEST_RATIO = 4.0  # a 1 x 4000 image would else be a line
TITLE_SIZE = 0.022  # a line's height as a share of the width: 9 pixels at a width of 400
# What draws Chinese, and its place in the file; Pillow's own font has Latin letters alone.
CHINESE_FONTS = (
    ("NotoSansCJK-Regular.ttc", 2), ("SourceHanSansSC-Regular.otf", 0), ("wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", 0), ("msyh.ttc", 0), ("simhei.ttf", 0), ("DroidSansFallbackFull.ttf", 0),
)  # fmt: skip


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


def heading(title: str, width: int, language: str) -> Image.Image:
    """Return the title, centred on a transparent ground, as wide as the picture.

    Pillow draws it, which the scripts need anyway: importing a plotting library for one line would
    take longer than all the forwards. On a host without a Chinese font it stays English.
    """
    size = max(8.0, TITLE_SIZE * width)
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(size)
    words = translated(title, language)
    for name, index in () if words.isascii() else CHINESE_FONTS:
        with contextlib.suppress(OSError):  # this host does not have it
            font = ImageFont.truetype(name, size, index)
            title = words
            break
    canvas = ImageDraw.Draw(Image.new("RGBA", (1, 1)))
    box = canvas.textbbox((0, 0), title, font=font, align="center")
    text = Image.new("RGBA", (math.ceil(box[2]), math.ceil(box[3] + size / 2)))
    ImageDraw.Draw(text).text((0, size / 4), title, fill=INK, font=font, align="center")
    if text.width > width:  # a device may have a long name
        text = text.resize((width, max(1, round(text.height * width / text.width))))
    line = Image.new("RGBA", (width, text.height))
    line.paste(text, ((width - text.width) // 2, 0))
    return line


def draw(
    pairs: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]],
    title: str,
    source: str,
    language: str,
) -> bytes:
    """Return a PNG with the title, and one row per pair: the image, and its features at its size.

    The pairs are an image (uint8, rows x columns x 3) and feature colours (the same, any size).
    `source`, where the weights come from, is kept in the PNG's text chunk of that name.
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
    rows.insert(0, heading(title, width, language))
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
