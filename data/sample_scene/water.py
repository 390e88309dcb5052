"""The lake: ripples, the far shore's reflection in them, and the bed where it is shallow."""

import numpy as np
from numpy.typing import NDArray

from sample_scene.canvas import CAMERA_HEIGHT_M, Canvas
from sample_scene.land import NEAR_END_M, near_height
from sample_scene.noise import Array, fbm, mix, smoothstep
from sample_scene.view import Hits

_SAMPLES = 4


def _ripples(x: Array, z: Array, sample: int) -> Array:
    """Return the water's slope away from the camera at (x, z), without unit."""
    wind = smoothstep(-0.35, 0.45, fbm(x * np.float32(1 / 60), z * np.float32(1 / 110) + 5, 4))
    # Beyond the nearest water one pixel holds many waves: each sample takes another of them.
    z = z + np.float32(sample * 0.37) * z * z / 9000
    waves = fbm(x * np.float32(0.45) + 3, z * np.float32(1.3), 5, 0.6)
    return np.asarray(waves * mix(0.004, 0.028, wind), np.float32)


def _shores(canvas: Canvas, lake: Hits, hits: Hits) -> tuple[NDArray[np.intp], Array]:
    """Return the row where the land behind each lake pixel begins, and its distance in metres."""
    rows = np.full(canvas.depth.shape, 0)
    distance = np.full(canvas.depth.shape, 1e6, np.float32)
    land = hits.y > 0
    rows[hits.rows[land], hits.columns[land]] = hits.rows[land]
    distance[hits.rows, hits.columns] = hits.z
    shore = np.maximum.accumulate(rows, axis=0)[lake.rows, lake.columns]
    return shore, distance[shore, lake.columns]


def _bed(lake: Hits) -> tuple[Array, Array]:
    """Return the light (n, 3) from below the surface, and how much of it is the bed's (n,)."""
    depth = np.full_like(lake.x, 9.0)
    near = lake.z < NEAR_END_M
    depth[near] = np.maximum(-near_height(lake.x[near], lake.z[near]), 0)
    seen = np.exp(-depth * 1.6).astype(np.float32)
    pebbles = 1 + 0.6 * fbm(lake.x * np.float32(5), lake.z * np.float32(5), 4, 0.7)
    bed = np.array([0.20, 0.19, 0.13], np.float32) * pebbles[:, None]
    deep = np.array([0.020, 0.055, 0.062], np.float32)
    return mix(deep, bed, seen[:, None]), seen


def paint_lake(canvas: Canvas, hits: Hits) -> None:
    """Draw the lake where nothing stands before it; needs the land and what is on it drawn."""
    open_water = (hits.y <= 0) & (canvas.depth[hits.rows, hits.columns] == hits.z)
    lake = Hits(**{name: value[open_water] for name, value in vars(hits).items()})
    slope = canvas.row_slopes()[lake.rows]
    shore, shore_m = _shores(canvas, lake, hits)
    # The mirrored camera stands below the water: on a shore at distance d it sees everything
    # 2 * height / d higher than the camera above does.
    parallax = 2 * CAMERA_HEIGHT_M / shore_m
    mirrored = np.zeros((len(slope), 3), np.float32)
    fresnel = np.zeros_like(slope)
    for sample in range(_SAMPLES):
        ripple = _ripples(lake.x, lake.z, sample)
        up = -slope - parallax + 2 * ripple
        row = np.clip(canvas.horizon - up * canvas.focal, 0, shore).astype(np.intp)
        mirrored += canvas.colour[row, lake.columns] / _SAMPLES
        facing = np.clip(-slope + ripple, 0.01, 1)
        fresnel += (0.02 + 0.98 * (1 - facing) ** 5) / _SAMPLES
    below, shallow = _bed(lake)
    colour = mix(below, mirrored, (fresnel * (1 - 0.4 * shallow))[:, None])
    canvas.colour[lake.rows, lake.columns] = colour
