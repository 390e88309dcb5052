"""The height of the land at any place, from the bank at the camera's feet to the mountains.

Every function takes ``x`` (metres to the right) and ``z`` (metres away) of one shape, float32,
and returns metres above the lake of that shape, float32; below 0 is lake bed.
"""

import numpy as np

from sample_scene.noise import Array, fbm, noise, ridged, smoothstep

NEAR_END_M, FAR_START_M = 90.0, 1400.0


def shore_distance(x: Array) -> Array:
    """Return where the near bank meets the lake at ``x``, metres from the camera."""
    spit = smoothstep(3.0, 13.0, x)
    wiggle = fbm(x * np.float32(0.11), x * 0 + np.float32(3.7), 4)
    return np.asarray(25 + 27 * spit + 3.5 * wiggle, np.float32)


def boulders(x: Array, z: Array) -> Array:
    """Return the height of scattered boulders over the ground, metres."""
    total = np.zeros_like(x)
    for spacing, radius, tall in ((5.3, 1.1, 0.85), (2.1, 0.45, 0.3)):
        warp = 0.45 * fbm(x * np.float32(1.1 / radius), z * np.float32(1.1 / radius), 4, 0.6)
        cell_x, cell_z = np.floor(x / spacing), np.floor(z / spacing)
        jitter = noise(cell_x * np.float32(0.37) + 0.31, cell_z * np.float32(0.41) + 0.77)
        distance = np.hypot(
            x - (cell_x + 0.5 + 0.2 * jitter) * spacing,
            z - (cell_z + 0.5 - 0.25 * jitter) * spacing,
        )
        size = radius * np.clip(jitter * 2.2, 0, 1)
        dome = np.clip(1 - (distance / np.maximum(size, 1e-3) * (1 + warp)) ** 2, 0, 1)
        # Cut flat here and there, as frost splits stone.
        cut = 0.55 + 0.5 * noise(x * np.float32(0.9 / radius) + 7, z * np.float32(0.9 / radius))
        total = np.maximum(
            total, tall * size / radius * np.minimum(np.sqrt(dome), cut + 0.35 * dome)
        )
    return np.asarray(total, np.float32)


def near_ground(x: Array, z: Array) -> Array:
    """Return the height of the near bank without its boulders, metres; below 0 is lake bed."""
    inland = shore_distance(x) - z
    bank = 4.4 * (1 - np.exp(-np.maximum(inland, 0) / 13)) + np.minimum(inland, 0) * 0.2
    bumps = 0.22 * fbm(x * np.float32(0.35), z * np.float32(0.35), 5)
    return np.asarray(bank + bumps * smoothstep(0, 3, inland) + 0.05, np.float32)


def near_height(x: Array, z: Array) -> Array:
    """Return the height of the near bank with its boulders, metres."""
    return np.asarray(near_ground(x, z) + boulders(x, z), np.float32)


def mid_height(x: Array, z: Array) -> Array:
    """Return the height of the lake's far shores, metres, without the trees on them."""
    k = np.float32(1 / 260)
    shape = fbm(x * k, z * k, 5)
    headland = 42 * np.exp(-(((x + 185) / 95) ** 2) - ((z - 430) / 60) ** 2)
    rise = np.maximum(z - 1000, -260) * 0.09
    return np.asarray(rise + headland + 9 * shape - 3.0, np.float32)


def _canopy(x: Array, z: Array, cell: float) -> Array:
    """Return the height of a spruce forest's canopy, metres: one jittered cone per cell."""
    best = np.zeros_like(x)
    cx, cz = np.floor(x / cell), np.floor(z / cell)
    for dx in (-1, 0, 1):
        jitter = noise((cx + dx) * np.float32(0.73) + 0.4, cz * np.float32(0.61) + 0.3)
        centre = (cx + dx + 0.5 + 0.45 * jitter) * cell
        tall = 11 + 9 * noise((cx + dx) * np.float32(0.57) + 0.2, cz * np.float32(0.83) + 0.6)
        best = np.maximum(best, tall - np.abs(x - centre) * 3.6)
    return np.maximum(best + 1.5 * noise(x * np.float32(0.9), z * np.float32(0.9)), 0)


def forested_height(x: Array, z: Array) -> Array:
    """Return the height of the far shores with their forest, metres."""
    ground = mid_height(x, z)
    patch = smoothstep(-0.55, -0.1, fbm(x * np.float32(1 / 170), z * np.float32(1 / 170) + 9, 3))
    trees = _canopy(x, z, 4.2) * smoothstep(0.3, 2.0, ground) * (0.15 + 0.85 * patch)
    return np.asarray(ground + trees, np.float32)


def mountain_height(x: Array, z: Array) -> Array:
    """Return the height of the mountains behind the lake, metres."""
    k = np.float32(1 / 2900)
    warp = 420 * fbm(x * k * 2 + 5, z * k * 2, 4)
    crest = ridged((x + warp) * k + np.float32(0.35), (z - warp) * k + np.float32(0.8), 9)
    valley = 0.42 + 0.58 * smoothstep(0, 2600, np.abs(x - 350 - 0.06 * z))
    rise = smoothstep(1500, 6200, z) * valley
    foot = np.maximum(z - 1000, 0) * 0.09 * (1 - smoothstep(1400, 2600, z))
    return np.asarray(foot + 40 * smoothstep(1400, 2400, z) + 1080 * rise * crest, np.float32)


def height(x: Array, z: Array) -> Array:
    """Return the height of the land; ``z`` (distances, 1) ascending against ``x``'s columns."""
    distance = z[:, 0]
    ends = np.searchsorted(distance, [NEAR_END_M, FAR_START_M])
    parts = (near_height, forested_height, mountain_height)
    rows = zip(parts, np.split(x, ends), np.split(z, ends), strict=True)
    return np.concatenate([part(px, np.broadcast_to(pz, px.shape)) for part, px, pz in rows])
