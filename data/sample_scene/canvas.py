"""The camera, and the picture under way: colour and distance of every pixel."""

from dataclasses import dataclass

import numpy as np

from sample_scene.noise import Array

# Towards the sun: from the left, behind the camera's shoulder. Unit vector (x right, y up, z away).
SUN = np.array([-0.72, 0.50, -0.48], np.float32) / np.float32(np.sqrt(0.72**2 + 0.5**2 + 0.48**2))
SUN_COLOUR = np.array([1.75, 1.50, 1.13], np.float32)
SKY_LIGHT = np.array([0.21, 0.28, 0.40], np.float32)
CAMERA_HEIGHT_M = 6.0


@dataclass(frozen=True)
class Canvas:
    """A picture under way, seen by a level pinhole camera above the lake.

    ``colour`` is (height, width, 3) float32, linear light; ``depth`` is (height, width) float32,
    metres along the view axis, infinite in the sky.
    """

    colour: Array
    depth: Array

    @classmethod
    def blank(cls, width: int, height: int) -> "Canvas":
        """Return an empty canvas of ``width`` by ``height`` pixels."""
        return cls(
            np.zeros((height, width, 3), np.float32), np.full((height, width), np.inf, np.float32)
        )

    @property
    def width(self) -> int:
        """The width in pixels."""
        return int(self.depth.shape[1])

    @property
    def height(self) -> int:
        """The height in pixels."""
        return int(self.depth.shape[0])

    @property
    def focal(self) -> float:
        """The focal length in pixels: a horizontal field of view of 55 degrees."""
        return 0.96 * self.width

    @property
    def horizon(self) -> float:
        """The row of the horizon, in pixels from the top."""
        return 0.455 * self.height

    def column_slopes(self) -> Array:
        """Return x / z of every column's rays, (width,) float32."""
        return ((np.arange(self.width) + 0.5 - self.width / 2) / self.focal).astype(np.float32)

    def row_slopes(self) -> Array:
        """Return (y - camera height) / z of every row's rays, (height,) float32, top first."""
        return ((self.horizon - np.arange(self.height) - 0.5) / self.focal).astype(np.float32)

    def splat(self, points: Array, colours: Array, size: int = 1) -> None:
        """Draw ``points`` (n, 3 metres) in ``colours`` (n, 3), ``size`` pixels wide, by depth."""
        order = np.argsort(-points[:, 2], kind="stable")
        x, y, z = points[order].T
        column = np.floor(x / z * self.focal + self.width / 2).astype(np.int32)
        row = np.floor(self.horizon - (y - CAMERA_HEIGHT_M) / z * self.focal).astype(np.int32)
        for shift in range(size):
            c = column + shift
            inside = (c >= 0) & (c < self.width) & (row >= 0) & (row < self.height)
            inside[inside] &= z[inside] < self.depth[row[inside], c[inside]]
            # Of points on one pixel the last assignment stands: the nearest, by the sort above.
            self.colour[row[inside], c[inside]] = colours[order][inside]
            self.depth[row[inside], c[inside]] = z[inside]


def lit(normal_light: Array, albedo: Array, shade: Array) -> Array:
    """Return ``albedo`` (..., 3) under sun and sky.

    ``normal_light`` is the cosine to the sun (...), ``shade`` the part of the sunlight that
    arrives (...), 0 to 1.
    """
    sun = (np.clip(normal_light, 0, 1) * shade)[..., None] * SUN_COLOUR
    return np.asarray(albedo * (sun + SKY_LIGHT), np.float32)


def haze(colour: Array, distance: Array) -> Array:
    """Return ``colour`` (..., 3) seen through ``distance`` (...) metres of summer air."""
    reach = np.array([24000, 17500, 11500], np.float32)
    clear = np.exp(-distance[..., None] / reach)
    air = np.array([0.52, 0.64, 0.82], np.float32)
    return np.asarray(colour * clear + air * (1 - clear), np.float32)
