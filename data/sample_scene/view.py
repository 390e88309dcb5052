"""Which point of the land each pixel sees, and the colour of the land there.

The land is sampled on a fan: one row per distance, one column per image column. The running
maximum, along a column, of the samples' slope from the camera tells which sample a pixel sees
first, so that no ray has to be marched.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sample_scene.canvas import CAMERA_HEIGHT_M, SUN, Canvas, haze, lit
from sample_scene.land import (
    FAR_START_M,
    NEAR_END_M,
    boulders,
    height,
    mid_height,
)
from sample_scene.noise import Array, fbm, mix, noise, ridged, smoothstep
from sample_scene.plants import ground_shade


@dataclass(frozen=True)
class Hits:
    """What the land's pixels see: all (n,) float32; ``rows`` and ``columns`` are their indices.

    ``x``, ``y``, ``z`` in metres, ``sun`` the cosine between surface and sun, ``level`` the
    upward part of the surface's normal (1 is level), ``shade`` the part of the sun that arrives.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    x: Array
    y: Array
    z: Array
    sun: Array
    level: Array
    shade: Array

    def part(self, low_m: float, high_m: float) -> "Hits":
        """Return the hits from ``low_m`` to below ``high_m`` away."""
        keep = (self.z >= low_m) & (self.z < high_m)
        return Hits(**{name: value[keep] for name, value in vars(self).items()})


def _distances(rows: int) -> Array:
    """Return the fan's distances in metres, ascending: denser where the picture shows more."""
    near = np.geomspace(2.5, NEAR_END_M, int(rows * 0.6), endpoint=False)
    mid = np.geomspace(NEAR_END_M, FAR_START_M, int(rows * 0.45), endpoint=False)
    far = np.linspace(FAR_START_M, 11000, int(rows * 0.9))
    return np.concatenate([near, mid, far]).astype(np.float32)


def _shade(x: Array, land: Array, z: Array) -> Array:
    """Return how much sun reaches each sample; the sun is taken to stand along the x axis."""
    climb = land - x * np.float32(SUN[1] / SUN[0])
    blocked = np.maximum.accumulate(climb, axis=1) - climb
    return 1 - smoothstep(0, 1, blocked / (0.1 + 0.012 * z))


def see_land(canvas: Canvas) -> Hits:
    """Return what the land's pixels see; pixels of the sky are left out."""
    z = _distances(canvas.height)[:, None]
    # Land outside the picture throws shadows into it, hence the columns to the left of it.
    margin = canvas.width // 4
    slopes = canvas.column_slopes()
    outside = slopes[0] - (np.arange(margin, 0, -1) / canvas.focal).astype(np.float32)
    x = np.concatenate([outside, slopes])[None, :] * z
    land = height(x, z)
    slope_x = np.gradient(land, axis=1) / (z / np.float32(canvas.focal))
    slope_z = np.gradient(land, z[:, 0], axis=0) - slope_x * (x / z)
    shade = _shade(x, land, z)
    grids = [np.maximum(land, 0), slope_x, slope_z, shade]
    return _first_hits(canvas, z[:, 0], [grid[:, margin:] for grid in grids])


def _first_hits(canvas: Canvas, z: Array, grids: list[Array]) -> Hits:
    """Return the first sample that each pixel sees, ``grids`` being as ``see_land`` has them."""
    rise = (grids[0] - CAMERA_HEIGHT_M) / z[:, None]
    ceiling = np.maximum.accumulate(rise, axis=0)
    wanted = canvas.row_slopes()
    found = np.stack([np.searchsorted(c, wanted) for c in ceiling.T], axis=1)
    rows, columns = np.nonzero((found > 0) & (found < len(z)))
    after = found[rows, columns]
    before = after - 1
    low, high = rise[before, columns], rise[after, columns]
    t = np.clip((wanted[rows] - low) / np.maximum(high - low, 1e-9), 0, 1).astype(np.float32)
    y, slope_x, slope_z, shade = (mix(g[before, columns], g[after, columns], t) for g in grids)
    distance = mix(z[before], z[after], t)
    length = np.sqrt(slope_x**2 + slope_z**2 + 1)
    sun = (SUN[1] - slope_x * SUN[0] - slope_z * SUN[2]) / length
    x = canvas.column_slopes()[columns] * distance
    return Hits(rows, columns, x, y, distance, sun, 1 / length, shade)


def paint_land(canvas: Canvas, hits: Hits) -> None:
    """Draw the land that ``hits`` tells of, and its distance; the lake's place stays black."""
    bands = ((0.0, NEAR_END_M), (NEAR_END_M, FAR_START_M), (FAR_START_M, np.inf))
    for (low, high), albedo_of in zip(bands, (_bank, _shores, _mountains), strict=True):
        part = hits.part(low, high)
        shade = part.shade * ground_shade(part.x, part.z) if low == 0 else part.shade
        colour = haze(lit(part.sun, albedo_of(part), shade), part.z)
        colour[part.y <= 0] = 0
        canvas.colour[part.rows, part.columns] = colour
        canvas.depth[part.rows, part.columns] = part.z


def _rgb(*parts: float) -> Array:
    return np.array(parts, np.float32)


def _bank(at: Hits) -> Array:
    """Return the albedo (n, 3) of the near bank: earth, moss and gravel, wet by the water."""
    grain = fbm(at.x * np.float32(9), at.z * np.float32(9), 5, 0.75)[:, None]
    patches = fbm(at.x * np.float32(0.5), at.z * np.float32(0.5) + 40, 5)
    earth = mix(
        _rgb(0.16, 0.12, 0.07), _rgb(0.13, 0.16, 0.05), smoothstep(-0.3, 0.4, patches)[:, None]
    )
    # Stones are seen from the side: their texture climbs with height as well as distance.
    across, up = at.x * np.float32(2.2), (at.z + at.y * 2) * np.float32(2.2)
    rough = fbm(across, up, 6, 0.7)
    cracks = smoothstep(1.15, 1.75, ridged(across * np.float32(0.6), up * np.float32(0.6), 5))
    stone = mix(
        _rgb(0.13, 0.125, 0.115), _rgb(0.29, 0.275, 0.25), smoothstep(-0.7, 0.7, rough)[:, None]
    )
    stone = stone * (1 - 0.55 * cracks[:, None])
    lichen = smoothstep(0.2, 0.55, fbm(across * 2 + 9, up * 2, 4))[:, None]
    stone = mix(stone, _rgb(0.30, 0.30, 0.17), 0.6 * lichen)
    rocky = np.maximum(
        smoothstep(0.01, 0.05, boulders(at.x, at.z)),
        1 - smoothstep(0.15, 0.6, at.y + 0.2 * patches),
    )
    albedo = mix(earth, stone, rocky[:, None]) * (1 + 0.45 * grain)
    wet = mix(0.45, 1.0, smoothstep(0.03, 0.16, at.y))[:, None]
    return np.clip(albedo * wet, 0.01, 1)


def _shores(at: Hits) -> Array:
    """Return the albedo (n, 3) of the far shores: spruce forest, birches, meadow, pebbles."""
    above = at.y - mid_height(at.x, at.z)
    kind = noise(at.x * np.float32(0.23), at.z * np.float32(0.23)) + 0.5 * fbm(
        at.x * np.float32(0.02), at.z * np.float32(0.02), 3
    )
    tree = mix(
        _rgb(0.035, 0.06, 0.025), _rgb(0.10, 0.14, 0.035), smoothstep(-0.1, 0.7, kind)[:, None]
    )
    depth = mix(0.35, 1.25, smoothstep(0, 14, above))[:, None]
    meadow = mix(
        _rgb(0.16, 0.19, 0.06), _rgb(0.25, 0.22, 0.10), smoothstep(-0.3, 0.4, kind)[:, None]
    )
    albedo = mix(meadow, tree * depth, smoothstep(0.3, 1.5, above)[:, None])
    pebbles = 1 - smoothstep(0.2, 1.0, at.y)
    return mix(albedo, _rgb(0.30, 0.28, 0.25), pebbles[:, None])


def _mountains(at: Hits) -> Array:
    """Return the albedo (n, 3) of the mountains: forest below, then meadow, rock and snow."""
    rough = fbm(at.x * np.float32(1 / 120), at.z * np.float32(1 / 120), 6, 0.65)
    strata = noise(at.y * np.float32(1 / 16) + 3 * rough, at.x * np.float32(1 / 900))
    rock = mix(
        _rgb(0.15, 0.14, 0.125),
        _rgb(0.27, 0.25, 0.22),
        smoothstep(-0.8, 0.9, rough + 0.5 * strata)[:, None],
    )
    grass = mix(
        _rgb(0.11, 0.14, 0.045), _rgb(0.19, 0.18, 0.07), smoothstep(-0.5, 0.6, rough)[:, None]
    )
    forest = (
        _rgb(0.04, 0.065, 0.03)
        * (1 + 0.8 * noise(at.x * np.float32(0.08), at.z * np.float32(0.08)))[:, None]
    )
    height_m = at.y + 130 * rough
    albedo = mix(forest, grass, smoothstep(260, 420, height_m)[:, None])
    bare = np.maximum(
        smoothstep(520, 800, height_m), 1 - smoothstep(0.45, 0.72, at.level + 0.1 * rough)
    )
    albedo = mix(albedo, rock, bare[:, None])
    snow = smoothstep(760, 980, height_m) * smoothstep(0.50, 0.68, at.level + 0.12 * rough)
    return mix(albedo, _rgb(0.82, 0.84, 0.88), snow[:, None])
