"""inference.py's work: the features of every image, and the files that show and keep them.

The picture has patch features as DINOv3's authors draw them: three principal components as red,
green, blue.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save

from kit.accuracy.references import declared_by
from kit.accuracy.verdict import judge_batch, same_bits
from kit.language import translated
from kit.model import model as models
from kit.model import preprocessing
from kit.model.images import DecodedImage, Inputs
from kit.model.model import TENSORS, Features, timed_forward
from kit.model.setup import Setup, model_input, move_model
from kit.output import RunLog, alive
from kit.pictures import INK, subject
from kit.records import ImageResult, InferenceResults, ModelInfo, Repeats, TensorSummary
from kit.statistics import as_colours, median, principal_components

VALUES_SHOWN = 5
MOST_FORWARDS = 20  # timed ones of the first image
WITHIN_MS = 1000.0  # they take together
PICTURE_ROWS = 8  # a folder of thousands must not make a picture of thousands
PANEL_HEIGHT = 427  # of the default image, so that it is shown pixel for pixel
GAP = 8
LARGEST_RATIO = 4.0  # a 1 x 4000 image would else be a line
TITLE_SIZE = 0.022  # a line's height as a share of the width: 9 pixels at a width of 400
# What draws Chinese, and its place in the file; Pillow's own font has Latin letters alone.
CHINESE_FONTS = (
    ("NotoSansCJK-Regular.ttc", 2), ("SourceHanSansSC-Regular.otf", 0), ("wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", 0), ("msyh.ttc", 0), ("simhei.ttf", 0), ("DroidSansFallbackFull.ttf", 0),
)  # fmt: skip
# An image and its features' colours, of any size: uint8, rows x columns x 3.
Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Found:
    """Features of all images, on the host."""

    results: InferenceResults  # for the record
    input_shape: tuple[int, ...]  # of the first image's input, batch of one
    pictures: Sequence[Pair]  # of the first images
    kept: Sequence[tuple[str, Features]]  # of the images that were to be kept, by name

    def picture(self, setup: Setup, language: str) -> bytes:
        """Return the PNG of images beside their features."""
        title = subject(setup.model_info, setup.device.type, setup.device.name)
        return draw(self.pictures, title, setup.model_info.source, language)

    def safetensors(self, model: ModelInfo) -> bytes:
        """Return the kept features as a safetensors file, stacked in the order of the images.

        Where the inputs differ in size, each image has its own pair of tensors, numbered.
        """
        names = [name for name, _ in self.kept]
        metadata = {
            "images": "\n".join(names),
            "weights_sha256": model.sha256,
            "source": model.source,
        }
        tensors: dict[str, torch.Tensor] = {}
        for field in TENSORS:
            parts = [getattr(features, field) for _, features in self.kept]
            if len({part.shape for part in parts}) == 1:
                tensors[field] = torch.cat(parts)
            else:
                tensors |= {f"{field}.{number}": part for number, part in enumerate(parts)}
        content: bytes = save(tensors, metadata)
        return content


def extract(setup: Setup, inputs: Inputs, log: RunLog, *, keep_all: bool) -> Found:
    """Move the model to the device and run it on every image: one warm-up, then timed forwards.

    The first image has several of those, whose median is the latency. `keep_all` keeps every
    image's tensors, not only what the record needs. Raises KitError where an output is not finite,
    DeviceError where the device fails or no longer computes.
    """
    model = move_model(setup, log)
    prepared = preprocessing.preprocess(inputs.first.pixels, setup.steps)
    pixel_values = model_input(setup, prepared, log)
    log.info(f"Input shape: {pixel_values.shape}")
    log.info(f"Device: {setup.device.torch_device}")
    log.info("Warm-up inference...")
    with alive(log):
        warm_up, _ = timed_forward(setup.device, model, pixel_values)
    setup.health.after("the warm-up")
    log.info("Running timed inference...")
    on_device, latency_ms = timed_forward(setup.device, model, pixel_values)
    first, others, samples_ms = models.to_host(on_device), [models.to_host(warm_up)], [latency_ms]
    if models.not_finite(first) and not models.not_finite(others[0]):
        first, others = others[0], [first]
    models.require_finite(first)
    models.require_patch_tokens(model, first, pixel_values.shape)
    while len(samples_ms) < MOST_FORWARDS and sum(samples_ms) + median(samples_ms) < WITHIN_MS:
        again, latency_ms = timed_forward(setup.device, model, pixel_values)
        others.append(models.to_host(again))
        samples_ms.append(latency_ms)
    repeats, failures = compared(setup, first, others, log)
    latency_ms = median(samples_ms)
    per_image: list[ImageResult] = []
    pictures: list[Pair] = []
    kept: list[tuple[str, Features]] = []

    def add(image: DecodedImage, took_ms: float, features: Features, shape: torch.Size) -> None:
        values = first_values(features.pooler_output)
        one = ImageResult(str(image.path), image.sha256, image.width, image.height, took_ms, values)
        per_image.append(one)
        if len(pictures) < PICTURE_ROWS:
            rows, columns = models.patch_grid(setup.model.config, shape)
            patches = features.last_hidden_state[0, -rows * columns :].to(torch.float32).numpy()
            colours = (255 * as_colours(principal_components(patches))).round().astype(np.uint8)
            pictures.append((image.pixels, colours.reshape(rows, columns, 3)))
        if keep_all:
            kept.append((str(image.path), features))

    add(inputs.first, latency_ms, first, pixel_values.shape)
    for image in inputs.others(log):
        pixel_values = model_input(setup, preprocessing.preprocess(image.pixels, setup.steps))
        features, took_ms = timed_forward(setup.device, model, pixel_values)
        on_host = models.to_host(features)
        models.require_finite(on_host)
        add(image, took_ms, on_host, pixel_values.shape)
    setup.health.after("the timed inference")
    results = InferenceResults(
        latency_ms=latency_ms,
        samples_ms=tuple(samples_ms),
        repeats=repeats,
        pooler_output=summarize(on_device.pooler_output, first.pooler_output),
        last_hidden_state=summarize(on_device.last_hidden_state, first.last_hidden_state),
        images=tuple(per_image),
        failures=failures,
    )
    return Found(results, tuple(prepared.shape), pictures, kept)


def compared(
    setup: Setup, first: Features, others: Sequence[Features], log: RunLog
) -> tuple[Repeats, tuple[str, ...]]:
    """Hold further forwards' features of the same input against the first timed forward's.

    Returns the record's part, and a reason for each tensor that is once beyond the limits.
    """
    arithmetic = declared_by(setup).arithmetic
    differing, apart = 0, [0.0]
    reasons: dict[str, str] = {}
    for other in others:
        if same_bits(first, other):
            continue
        differing += 1
        for _, name, judgement in judge_batch(first, other, [0], arithmetic):
            if not judgement.passed:
                reasons.setdefault(name, "; ".join(judgement.reasons))
            apart.append(judgement.comparison.max_abs_diff)
    largest = max(apart) if all(map(math.isfinite, apart)) else None
    if differing:
        log.warning(
            f"{differing} of {len(others)} further forwards of the same input differ in bits, "
            f"by at most {'NaN' if largest is None else f'{largest:.3g}'}"
        )
    sentences = (
        f"two forwards of the same input give another {name} ({reason}): check the device"
        for name, reason in reasons.items()
    )
    return Repeats(len(others), differing, largest), tuple(sentences)


def summarize(on_device: torch.Tensor, on_host: torch.Tensor) -> TensorSummary:
    """Return a tensor in brief; `on_host` is its copy, which has been found finite."""
    return TensorSummary(
        shape=tuple(on_device.shape),
        dtype=str(on_device.dtype),
        device=str(on_device.device),
        first_values=first_values(on_host),
        finite=bool(torch.isfinite(on_host).all()),
    )


def first_values(on_host: torch.Tensor) -> tuple[float, ...]:
    """Return the first values in memory order, as Python floats that hold them exactly."""
    return tuple(on_host.flatten()[:VALUES_SHOWN].to(torch.float64).tolist())


# ---- The picture ---------------------------------------------------------------------------------


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


def draw(pairs: Sequence[Pair], title: str, source: str, language: str) -> bytes:
    """Return a PNG: the title, and one row per pair, the image and its features at its size.

    Where the weights come from is kept in the PNG's text chunk `source`.
    """
    rows = []
    for pixels, colours in pairs:
        ratio = min(max(pixels.shape[1] / pixels.shape[0], 1 / LARGEST_RATIO), LARGEST_RATIO)
        size = round(PANEL_HEIGHT * ratio), PANEL_HEIGHT
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
