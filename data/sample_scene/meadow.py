"""Grass and flowers of the near bank, blade by blade."""

import numpy as np

from sample_scene.canvas import SKY_LIGHT, SUN_COLOUR, Canvas
from sample_scene.land import boulders, near_ground, shore_distance
from sample_scene.noise import Array, fbm, mix, smoothstep
from sample_scene.plants import ground_shade

_Random = np.random.Generator
_GROWS_FROM = 0.22
# A boulder higher than this over the ground is bare; blades nearer than this are two pixels wide.
_BARE_FROM_M, _CLOSE_M = 0.03, 12.0
# Nearest and farthest distance in metres, and how many blades are tried there.
_BELTS = (
    (26.0, 52.0, 60_000),
    (15.0, 26.0, 50_000),
    (9.0, 15.0, 26_000),
    (6.0, 9.0, 11_000),
    (4.2, 6.0, 6_500),
)


def _places(
    canvas: Canvas, random: _Random, low: float, high: float, count: int
) -> tuple[Array, Array]:
    """Return (x, z) of places in view between two distances where grass grows, metres."""
    z = np.sqrt(low**2 + (high**2 - low**2) * random.random(count))
    x = (random.random(count) * 1.1 - 0.55) * z * canvas.width / canvas.focal
    x, z = x.astype(np.float32), z.astype(np.float32)
    growth = fbm(x * np.float32(0.5), z * np.float32(0.5) + 40, 5) + 0.9 * random.random(count)
    dry = near_ground(x, z) > 0.35 + 0.3 * random.random(count)
    keep = (growth > _GROWS_FROM) & dry & (boulders(x, z) < _BARE_FROM_M) & (z < shore_distance(x))
    return x[keep], z[keep]


def _blades(canvas: Canvas, random: _Random, low: float, high: float, count: int) -> None:
    """Draw about ``count`` blades of grass between two distances, metres."""
    x, z = _places(canvas, random, low, high, count)
    n = len(x)
    tufts = fbm(x * np.float32(1.3), z * np.float32(1.3), 4)
    tall = np.clip(0.20 + 0.22 * tufts + 0.16 * random.random(n), 0.05, 0.7)
    lean_x = (random.random(n) - 0.35) * 0.8 * tall
    lean_z = (random.random(n) - 0.5) * 0.6 * tall
    steps = int(0.6 / low * canvas.focal * 0.8) + 2
    t = np.linspace(0, 1, steps)[None, :]
    y = near_ground(x, z)[:, None] + tall[:, None] * (t - 0.25 * t**2)
    px, pz = x[:, None] + lean_x[:, None] * t**2, z[:, None] + lean_z[:, None] * t**2
    straw = np.clip(
        0.45 * random.random(n) + 0.35 * fbm(x * np.float32(0.4), z * np.float32(0.4), 3), 0, 1
    )
    green, gold = np.array([[0.062, 0.100, 0.028], [0.27, 0.22, 0.105]], np.float32)
    albedo = mix(green, gold, (straw[:, None] * (0.5 + 0.5 * t))[..., None])
    light = (random.random(n) * 0.55 + 0.35)[:, None] * (0.12 + 0.88 * t**1.3)
    shade = 0.40 + 0.60 * smoothstep(
        -0.35, 0.1, fbm(x * np.float32(0.9) + 7, z * np.float32(0.9), 3)
    )
    shade = shade * ground_shade(x, z)
    colour = albedo * (
        (light * shade[:, None])[..., None] * SUN_COLOUR + SKY_LIGHT * (0.25 + 0.75 * t[..., None])
    )
    points = np.stack([px, y, pz], axis=-1).reshape(-1, 3).astype(np.float32)
    canvas.splat(points, colour.reshape(-1, 3).astype(np.float32), 2 if low < _CLOSE_M else 1)


def _flowers(canvas: Canvas, random: _Random) -> None:
    """Draw small white, yellow and violet flower heads among the near grass."""
    x, z = _places(canvas, random, 4.5, 16.0, 560)
    hues = np.array([[0.75, 0.74, 0.68], [0.72, 0.52, 0.06], [0.38, 0.22, 0.55]], np.float32)
    patch = fbm(x * np.float32(0.6) + 60, z * np.float32(0.6), 2)
    kind = np.digitize(patch + 0.3 * random.random(len(x)), [0.05, 0.4])
    petals = 60
    turn, out = random.random((2, len(x), petals))
    spread = 0.018 * np.sqrt(out)
    tall = 0.22 + 0.2 * random.random(len(x))
    px = x[:, None] + spread * np.cos(turn * 2 * np.pi)
    pz = z[:, None] + spread * np.sin(turn * 2 * np.pi)
    y = (near_ground(x, z) + tall)[:, None] + 0.5 * spread * np.sin(turn * 9)
    points = np.stack([px, y, pz], axis=-1).reshape(-1, 3).astype(np.float32)
    light = (0.55 + 0.6 * random.random((len(x), petals)))[..., None]
    canvas.splat(points, (hues[kind][:, None, :] * light * 1.2).reshape(-1, 3).astype(np.float32))


def paint_meadow(canvas: Canvas, random: _Random) -> None:
    """Draw the grass and the flowers of the near bank, from far to near."""
    for low, high, count in _BELTS:
        _blades(canvas, random, low, high, count)
    _flowers(canvas, random)
