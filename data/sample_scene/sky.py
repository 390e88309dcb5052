"""The sky: blue above, pale at the horizon, with a layer of fair-weather clouds."""

import numpy as np

from sample_scene.canvas import Canvas
from sample_scene.noise import Array, fbm, mix, noise, smoothstep


def _billows(u: Array, v: Array, octaves: int) -> Array:
    """Return the sum of folded noises, about 0 to 1: round heads with sharp creases between."""
    total = np.zeros_like(u)
    height = np.float32(0.5)
    for octave in range(octaves):
        total += height * np.abs(noise(u + 5 * octave, v + 3 * octave))
        u, v, height = u * np.float32(2.1), v * np.float32(2.1), height * np.float32(0.56)
    return total


def _density(u: Array, v: Array) -> Array:
    """Return the clouds' thickness at (u, v) of the sky, 0 to about 1."""
    warp = 0.25 * fbm(u * 2 + 11, v * 2, 4)
    shape = fbm(u * np.float32(0.62) + warp + 1.7, v * np.float32(0.95) + warp + 3.1, 5, 0.5)
    heads = _billows(u * np.float32(1.6) + warp, v * np.float32(1.9) + warp, 6)
    return np.asarray(np.clip(1.25 * shape + 1.0 * heads - 0.17, 0, 2), np.float32)


def paint_sky(canvas: Canvas) -> None:
    """Draw the sky over the whole canvas."""
    rows = canvas.height // 2
    across = np.broadcast_to(canvas.column_slopes()[None, :], (rows, canvas.width))
    up = np.broadcast_to(np.maximum(canvas.row_slopes()[:rows], 0)[:, None], across.shape)
    zenith = np.array([0.085, 0.22, 0.56], np.float32)
    pale = np.array([0.62, 0.74, 0.88], np.float32)
    blue = mix(pale, zenith, (1 - np.exp(-up * 4.6))[..., None])
    glow = np.exp(-((across + 0.75) ** 2) * 2.5 - up * 2)[..., None]
    blue = blue + glow * np.array([0.13, 0.10, 0.04], np.float32)
    # Clouds shrink towards the horizon, where they are further away.
    reach = 1 / (up + np.float32(0.16))
    u, v = across * reach * np.float32(0.9), np.log(reach) * np.float32(1.9)
    thick = _density(u, v)
    # The sun stands to the upper left: what is thicker that way lies in shadow.
    towards_sun = _density(u - np.float32(0.09), v - np.float32(0.10))
    relief = np.clip(towards_sun - thick, -0.35, 0.5)
    light = np.exp(-0.75 * thick - 1.5 * (relief + 0.2))[..., None]
    shadow, bright = np.array([[0.42, 0.48, 0.58], [1.22, 1.17, 1.10]], np.float32)
    cover = 1 - np.exp(-5.5 * smoothstep(0.0, 0.8, thick))
    cover = cover * (0.3 + 0.7 * smoothstep(0.02, 0.16, up))
    canvas.colour[:rows] = mix(blue, mix(shadow, bright, light), cover[..., None])
