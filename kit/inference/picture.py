"""Draw patch features as DINOv3's authors do: three principal components as red, green, blue."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PANEL_HEIGHT = 427  # of the default image, so that it is shown pixel for pixel
GAP = 8
LARGEST_RATIO = 4.0  # a 1 x 4000 image would else be a line
BACKGROUND = (255, 255, 255)
CONTRAST = 2.0  # the sigmoid's slope that the authors use


def principal_components(
    tokens: npt.NDArray[np.float32], count: int = 3
) -> npt.NDArray[np.float32]:
    """Return the tokens' first principal components, whitened.

    Args:
        tokens: patches x width.
        count: how many components.

    Returns:
        patches x count, each column with mean 0 and standard deviation 1; zeros where there
        are too few patches or no variance. Each component's sign is chosen so that its largest
        entry by magnitude is positive, so that the same features give the same colours.
    """
    centered = tokens.astype(np.float64) - tokens.astype(np.float64).mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    scores = np.zeros((len(tokens), count))
    rank = int((values > values.max(initial=0.0) * 1e-10).sum()) if values.any() else 0
    usable = min(count, rank)
    scores[:, :usable] = left[:, :usable] * np.sqrt(len(tokens))
    peaks = scores[np.abs(scores).argmax(axis=0), np.arange(count)]
    return (scores * np.where(peaks < 0, -1.0, 1.0)).astype(np.float32)


def feature_colours(
    tokens: npt.NDArray[np.float32], rows: int, columns: int
) -> npt.NDArray[np.uint8]:
    """Return the patch tokens as colours, uint8, rows x columns x 3."""
    components = principal_components(tokens)
    colours = 255.0 / (1.0 + np.exp(-CONTRAST * components))
    eight_bits: npt.NDArray[np.uint8] = colours.round().astype(np.uint8)
    return eight_bits.reshape(rows, columns, 3)


def panel_size(width: int, height: int) -> tuple[int, int]:
    """Return the size in pixels at which an image is shown, its shape kept within limits."""
    ratio = min(max(width / height, 1 / LARGEST_RATIO), LARGEST_RATIO)
    return max(1, round(PANEL_HEIGHT * ratio)), PANEL_HEIGHT


def draw(
    pairs: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], source: str
) -> bytes:
    """Return a PNG with one row per pair: the image, and its features at the image's size.

    Args:
        pairs: image (uint8, rows x columns x 3) and feature colours (the same, any size).
        source: where the weights come from, kept in the PNG's text chunk `source`.
    """
    rows = []
    for pixels, colours in pairs:
        size = panel_size(pixels.shape[1], pixels.shape[0])
        row = Image.new("RGB", (2 * size[0] + GAP, size[1]), BACKGROUND)
        row.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (0, 0))
        patches = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
        row.paste(patches, (size[0] + GAP, 0))
        rows.append(row)
    height = sum(row.height for row in rows) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (max(row.width for row in rows), height), BACKGROUND)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    buffer = io.BytesIO()
    text = PngInfo()
    text.add_text("source", source)
    sheet.save(buffer, "PNG", compress_level=3, pnginfo=text)
    return buffer.getvalue()
