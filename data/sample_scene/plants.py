"""Trees, each drawn as a cloud of small lit points, and the shadows that they cast."""

from dataclasses import dataclass

import numpy as np

from sample_scene.canvas import SUN, Canvas, lit
from sample_scene.land import near_ground
from sample_scene.noise import Array, fbm, mix, smoothstep

_Random = np.random.Generator


@dataclass(frozen=True)
class Tree:
    """Where a tree stands (metres), how tall it is and of how many points it is drawn."""

    x: float
    z: float
    tall: float
    points: int

    @property
    def foot(self) -> float:
        """The height of the ground under the tree, metres."""
        place = np.array([[self.x], [self.z]], np.float32)
        return float(near_ground(place[0], place[1])[0])


SPRUCES = (Tree(-5.6, 14.0, 6.4, 420_000), Tree(-8.6, 18.0, 5.3, 220_000))
BIRCHES = (
    Tree(12.6, 47.5, 8.6, 90_000),
    Tree(23.4, 45.5, 10.0, 110_000),
    Tree(19.6, 50.0, 8.2, 70_000),
)


def ground_shade(x: Array, z: Array) -> Array:
    """Return how much sun the trees let through to the ground at (x, z) metres, 0 to 1."""
    total = np.ones_like(x)
    ragged = fbm(x * np.float32(2.5), z * np.float32(2.5), 4, 0.7)
    level = np.float32(np.hypot(SUN[0], SUN[2]))
    for tree in SPRUCES + BIRCHES:
        away_x, away_z = x - np.float32(tree.x), z - np.float32(tree.z)
        along = -(away_x * SUN[0] + away_z * SUN[2]) / level
        aside = np.abs(away_x * SUN[2] - away_z * SUN[0]) / level
        # The shadow of a cone narrows to a tip at the tree's height over the sun's slope.
        left = 1 - along * (SUN[1] / level) / np.float32(tree.tall)
        wide = 0.19 * tree.tall * left * (along > -0.19 * tree.tall)
        total *= 1 - 0.85 * smoothstep(-0.25, 0.25, wide - aside + 0.4 * ragged - 0.15)
    return total


def _sunlight(points: Array, cell: float, density: float) -> Array:
    """Return how much sun reaches each of ``points`` (n, 3) through the others, (n,).

    The points are counted in boxes of ``cell`` metres; sunlight passes the boxes along x, in a
    frame sheared so that the sun stands level.
    """
    sheared = points.copy()
    sheared[:, 1] -= points[:, 0] * (SUN[1] / SUN[0])
    sheared[:, 2] -= points[:, 0] * (SUN[2] / SUN[0])
    index = np.floor((sheared - sheared.min(axis=0)) / cell).astype(np.intp)
    counts = np.zeros(index.max(axis=0) + 1, np.float32)
    np.add.at(counts, tuple(index.T), 1)
    before = np.cumsum(counts, axis=0) - 0.5 * counts
    return np.asarray(np.exp(-density * before[tuple(index.T)]), np.float32)


def _uniform(random: _Random, low: float, high: float, count: int) -> Array:
    """Return ``count`` numbers spread evenly from ``low`` to ``high``, (count,)."""
    return np.asarray(low + (high - low) * random.random(count), np.float32)


def _bell(random: _Random, count: int) -> Array:
    """Return ``count`` numbers of about normal distribution, standard deviation 1."""
    return np.asarray((random.random((4, count)).sum(axis=0) - 2) * np.sqrt(3), np.float32)


def _spruce_points(tree: Tree, random: _Random) -> Array:
    """Return the needles of a spruce, (n, 3) metres about its foot: whorls of sagging branches."""
    branches = int(tree.tall * 62)
    level = np.sort(_uniform(random, 0.03, 0.99, branches))
    azimuth = _uniform(random, 0, 2 * np.pi, branches)
    reach = 0.215 * tree.tall * (1 - level) ** 0.85 * _uniform(random, 0.45, 1.15, branches) + 0.05
    n = tree.points
    share = np.cumsum(reach + 0.1)
    which = np.searchsorted(share / share[-1], random.random(n)).clip(0, branches - 1)
    along = _uniform(random, 0.0, 1, n) ** 0.85
    length = reach[which]
    out = length * along
    aside = _bell(random, n) * length * 0.20 * (1.08 - along)
    sag = -0.50 * along + 0.32 * along**3
    hang = -np.abs(_bell(random, n)) * 0.045 * (0.4 + length)
    y = level[which] * tree.tall + length * sag + hang
    turn = azimuth[which]
    x = out * np.cos(turn) - aside * np.sin(turn)
    z = out * np.sin(turn) + aside * np.cos(turn)
    return np.stack([x, y, z], axis=1).astype(np.float32)


def _birch_points(tree: Tree, random: _Random) -> tuple[Array, Array]:
    """Return the leaves of a birch, (n, 3) metres about its foot, and their light (n,).

    The leaves hang in clusters; each cluster is lit on the side that it turns to the sun.
    """
    clusters = 75
    level = _uniform(random, 0.20, 1.0, clusters)
    wide = 0.27 * tree.tall * np.sin(np.pi * np.clip(level - 0.10, 0, 0.9) ** 0.75) ** 0.8
    turn = _uniform(random, 0, 2 * np.pi, clusters)
    radius = wide * np.sqrt(_uniform(random, 0.02, 1.3, clusters))
    centres = np.stack([radius * np.cos(turn), level * tree.tall * 0.93, radius * np.sin(turn)], 1)
    which = (random.random(tree.points) * clusters).astype(np.intp)
    spread = 0.052 * tree.tall * _uniform(random, 0.3, 1.6, clusters)
    offset = np.stack([_bell(random, tree.points) for _ in range(3)], axis=1)
    points = centres[which] + offset * spread[which, None] * np.array([1, 0.55, 1])
    points[:, 1] -= (
        0.12 * np.hypot(points[:, 0], points[:, 2]) * _uniform(random, 0, 2, tree.points)
    )
    facing = (offset @ SUN) / np.maximum(np.linalg.norm(offset, axis=1), 0.3)
    light = 0.40 + 0.45 * facing + _uniform(random, -0.2, 0.2, tree.points)
    return points.astype(np.float32), light.astype(np.float32)


def _trunk(tree: Tree, random: _Random, white: bool) -> tuple[Array, Array]:
    """Return the points (n, 3) of a trunk's sunny surface, and their colours (n, 3)."""
    n = 30_000
    y, turn = _uniform(random, -0.2, tree.tall * 0.96, n), _uniform(random, 0, 2 * np.pi, n)
    radius = (0.016 if white else 0.011) * tree.tall * np.clip(1 - y / tree.tall, 0.05, 1) + 0.015
    bow = 0.02 * tree.tall * np.sin(y / tree.tall * 3)
    points = np.stack([radius * np.cos(turn) + bow, y, radius * np.sin(turn)], axis=1)
    bark = fbm(turn * np.float32(1.2), y * np.float32(4.0), 4, 0.7)
    if white:
        pale = np.array([0.62, 0.60, 0.55], np.float32)
        albedo = mix(
            pale, np.array([0.06, 0.05, 0.05], np.float32), smoothstep(0.1, 0.4, bark)[:, None]
        )
    else:
        albedo = np.array([0.14, 0.10, 0.075], np.float32) * (1 + 0.5 * bark)[:, None]
    light = np.cos(turn) * SUN[0] + np.sin(turn) * SUN[2]
    return points.astype(np.float32), lit(light, albedo, np.full(n, 0.75, np.float32))


def _crown(points: Array, light: Array, tints: Array, random: _Random, sun: Array) -> Array:
    """Return the colours (n, 3) of needles or leaves at ``points`` (n, 3).

    ``light`` (n,) is the cosine to the sun, ``tints`` (2, 3) the darkest and brightest albedo,
    ``sun`` (n,) the part of the sunlight that arrives.
    """
    spread = np.hypot(points[:, 0], points[:, 2])
    outer = 0.35 + 0.65 * smoothstep(0, 1, spread / np.quantile(spread, 0.9))
    tint = np.clip(_uniform(random, -0.2, 0.9, len(points)) * (0.4 + 0.6 * outer), 0, 1)
    albedo = mix(tints[0], tints[1], tint[:, None]) * outer[:, None]
    return lit(light, albedo, sun)


def _plant(canvas: Canvas, tree: Tree, points: Array, colours: Array) -> None:
    at = np.array([tree.x, tree.foot, tree.z], np.float32)
    canvas.splat(points + at, colours, 2)


def paint_spruces(canvas: Canvas, random: _Random) -> None:
    """Draw the spruces on the near bank."""
    tints = np.array([[0.030, 0.058, 0.026], [0.20, 0.25, 0.095]], np.float32)
    for tree in SPRUCES:
        _plant(canvas, tree, *_trunk(tree, random, white=False))
        points = _spruce_points(tree, random)
        # Needles face every way: a broad cosine, differing from needle to needle.
        light = _uniform(random, 0.2, 1.0, tree.points)
        sun = _sunlight(points, 0.10, 7e3 / tree.points)
        _plant(canvas, tree, points, _crown(points, light, tints, random, sun))


def paint_birches(canvas: Canvas, random: _Random) -> None:
    """Draw the birches about the cabin."""
    tints = np.array([[0.055, 0.085, 0.025], [0.17, 0.21, 0.065]], np.float32)
    for tree in BIRCHES:
        _plant(canvas, tree, *_trunk(tree, random, white=True))
        points, light = _birch_points(tree, random)
        sun = _sunlight(points, 0.3, 3e3 / tree.points)
        _plant(canvas, tree, points, _crown(points, light, tints, random, sun))
