"""What the camera does to the light: lens, film and tone curve."""

import numpy as np
from numpy.typing import NDArray

from sample_scene.canvas import Canvas
from sample_scene.noise import Array, mix


def shrink(colour: Array, factor: int) -> Array:
    """Return the mean of every ``factor`` by ``factor`` pixels of ``colour`` (h, w, 3)."""
    height, width, channels = colour.shape
    blocks = colour.reshape(height // factor, factor, width // factor, factor, channels)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)


def _blur(image: Array, radius: int) -> Array:
    """Return ``image`` (h, w, ...) under three box blurs of ``radius`` pixels each way."""
    for axis in (0, 1) * 3:
        padded = np.pad(
            image,
            [(radius + 1, radius) if a == axis else (0, 0) for a in range(image.ndim)],
            mode="edge",
        )
        total = np.cumsum(padded, axis=axis, dtype=np.float64)
        n = image.shape[axis]
        upper = np.take(total, np.arange(2 * radius + 1, 2 * radius + 1 + n), axis=axis)
        lower = np.take(total, np.arange(n), axis=axis)
        image = ((upper - lower) / (2 * radius + 1)).astype(np.float32)
    return image


def _film(light: Array) -> Array:
    """Return the film's response to ``light``, 0 to 1: a toe, and a shoulder as eyes have it."""
    grey = light.mean(axis=2, keepdims=True)
    vivid = np.maximum(mix(grey, light, 1.05), 0)
    power = vivid**1.5
    return np.asarray((0.97 * power / (power + 0.195)) ** (1 / 2.2), np.float32)


def expose(canvas: Canvas, factor: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the photograph of ``canvas``, ``factor`` times smaller, (h, w, 3) uint8 sRGB."""
    light = shrink(canvas.colour, factor)
    height, width, _ = light.shape
    light = mix(light, _blur(light, 6), 0.06)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    off_axis = np.hypot(x - width / 2, y - height / 2) / (width / 2)
    light *= (1 / (1 + 0.24 * off_axis**2) ** 2)[..., None]
    code = _film(light * 1.15)
    grain = random.random((4, height, width)).sum(axis=0).astype(np.float32) - 2
    grain = 0.55 * grain + 0.9 * _blur(grain, 1)
    code = code + (0.020 * grain * (1.15 - 0.6 * code.mean(axis=2)))[..., None]
    return np.asarray(np.clip(code * 255 + 0.5, 0, 255), np.uint8)
