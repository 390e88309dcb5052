"""The wooden cabin on the spit, with the shadow of its eaves."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sample_scene.canvas import CAMERA_HEIGHT_M, SUN, Canvas, lit
from sample_scene.noise import Array, fbm, mix, noise, smoothstep

CENTRE_X, CENTRE_Z, FLOOR_Y = 15.6, 42.0, 2.3
# Lengths in metres.
_LONG, _WIDE, _WALL, _RIDGE = 7.0, 5.0, 2.7, 4.9
_EAVES, _TRIM, _FRAME, _BAR = 0.45, 0.15, 0.10, 0.065
# The cabin's long side, unit vector (x, z); the gable looks towards the camera and the sun.
_ALONG = (0.86, 0.51)

# Takes u and v (metres, along the surface) and returns albedo (n, 3) and what is there (n,) bool.
Look = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Surface:
    """A plane from ``origin`` along ``u`` and ``v`` (unit vectors), ``size`` metres, (3,) each."""

    origin: Array
    u: Array
    v: Array
    size: tuple[float, float]
    eaves_m: float | None = None


def _place(along: float, across: float, up: float) -> Array:
    """Return the point (3,) at these metres from the cabin's centre and floor."""
    x = CENTRE_X + along * _ALONG[0] + across * _ALONG[1]
    z = CENTRE_Z + along * _ALONG[1] - across * _ALONG[0]
    return np.array([x, FLOOR_Y + up, z], np.float32)


def paint_surface(canvas: Canvas, surface: Surface, look: Look) -> None:
    """Draw ``surface`` where it is nearer than what is there, as ``look`` says."""
    slope_x, slope_y = np.meshgrid(canvas.column_slopes(), canvas.row_slopes())
    normal = np.cross(surface.u, surface.v)
    eye = np.array([0, CAMERA_HEIGHT_M, 0], np.float32)
    depth = ((surface.origin - eye) @ normal) / (
        slope_x * normal[0] + slope_y * normal[1] + normal[2]
    )
    at = np.stack([slope_x * depth, slope_y * depth, depth], axis=-1) - (surface.origin - eye)
    u, v = at @ surface.u, at @ surface.v
    seen = (u >= 0) & (u <= surface.size[0]) & (v >= 0) & (v <= surface.size[1])
    seen &= (depth > 0) & (depth < canvas.depth)
    albedo, solid = look(u[seen], v[seen])
    seen[seen] = solid
    facing = normal if normal[2] < 0 else -normal
    light = np.full(solid.sum(), facing @ SUN, np.float32)
    shade = np.ones_like(light)
    if surface.eaves_m is not None:
        shade = 1 - smoothstep(-0.05, 0.05, v[seen] - np.float32(surface.eaves_m))
    canvas.colour[seen] = lit(light, albedo[solid], shade)
    canvas.depth[seen] = depth[seen]


def _boards(u: Array, v: Array) -> Array:
    """Return the albedo (n, 3) of upright boards in worn red paint."""
    board = np.floor(u / 0.16)
    edge = smoothstep(0.0, 0.14, np.abs(u / 0.16 - board - 0.5) * -1 + 0.5)
    grain = fbm(u * np.float32(22), v * np.float32(1.2), 4, 0.7)
    tone = 1 + 0.22 * noise(board * np.float32(0.71), board * 0 + 0.5) + 0.18 * grain
    paint = np.array([0.19, 0.050, 0.037], np.float32) * (tone * (0.45 + 0.55 * edge))[:, None]
    worn = smoothstep(0.25, 0.75, fbm(u * np.float32(3), v * np.float32(0.9), 5) + 0.35 - 0.4 * v)
    return mix(paint, np.array([0.22, 0.17, 0.14], np.float32), 0.8 * worn[:, None])


@dataclass(frozen=True)
class Opening:
    """A window or a door of a wall: left and lower edge, width and height, metres."""

    left: float
    low: float
    wide: float
    tall: float

    def inside(self, u: Array, v: Array) -> Array:
        """Return the distance (n,) to the edge, metres: negative inside."""
        aside = np.abs(u - self.left - self.wide / 2) - self.wide / 2
        above = np.abs(v - self.low - self.tall / 2) - self.tall / 2
        return np.asarray(np.maximum(aside, above), np.float32)


def _painted(u: Array, v: Array) -> Array:
    """Return the albedo (n, 3) of wood in white paint."""
    return np.array([0.69, 0.68, 0.64], np.float32) * (1 + 0.11 * noise(u * 8, v * 8))[:, None]


def _window(albedo: Array, u: Array, v: Array, opening: Opening) -> Array:
    """Return ``albedo`` (n, 3) with a window of four panes in a white frame."""
    distance = opening.inside(u, v)
    sky = 0.06 + 0.20 * smoothstep(-0.3, 0.5, fbm(u * 2, v * 2, 3) + 0.5 * (v - opening.low))
    glass = np.array([0.8, 1.0, 1.2], np.float32) * sky[:, None]
    upright = np.abs(u - opening.left - opening.wide / 2)
    crossing = np.abs(v - opening.low - opening.tall / 2)
    bars = np.minimum(upright, crossing) < _BAR / 2
    albedo = np.where((distance < _FRAME)[:, None], _painted(u, v), albedo)
    return np.where(((distance < 0) & ~bars)[:, None], glass, albedo)


def _side(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the look of the long wall: two windows and a door."""
    albedo = _boards(u, v)
    for left in (0.9, 4.9):
        albedo = _window(albedo, u, v, Opening(left, 1.0, 1.0, 1.0))
    door = Opening(2.92, -0.1, 0.96, 2.15).inside(u, v)
    planks = np.array([0.16, 0.20, 0.17], np.float32) * (1 + 0.3 * noise(u * 14, v))[:, None]
    albedo = np.where((door < _FRAME)[:, None], _painted(u, v), albedo)
    return np.where((door < 0)[:, None], planks, albedo), np.ones(len(u), bool)


def _gable(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the look of the gable wall: two windows, white boards at its edges."""
    from_corner = _WIDE / 2 - np.abs(u - _WIDE / 2)
    below_roof = _WALL + (_RIDGE - _WALL) * from_corner / (_WIDE / 2) - v
    albedo = _boards(u, v)
    for left in (1.0, 3.0):
        albedo = _window(albedo, u, v, Opening(left, 1.0, 1.0, 1.1))
    trim = np.minimum(from_corner, below_roof) < _TRIM
    return np.where(trim[:, None], _painted(u, v), albedo), below_roof >= 0


def _roofing(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the look of the roof: rows of slate, moss in places."""
    row = np.floor(v / 0.24)
    slate = np.floor(u / 0.3 + 0.5 * (row % 2))
    tone = 1 + 0.35 * noise(slate * 0.37 + 0.2, row * 0.53 + 0.4) + 0.25 * fbm(u * 8, v * 8, 3)
    gap = smoothstep(0.0, 0.16, v / 0.24 - row)
    stone = np.array([0.15, 0.155, 0.165], np.float32) * (tone * (0.5 + 0.5 * gap))[:, None]
    moss = smoothstep(0.1, 0.6, fbm(u * 0.9, v * 0.9, 5))[:, None]
    return mix(stone, np.array([0.13, 0.15, 0.05], np.float32), 0.8 * moss), np.ones(len(u), bool)


def _masonry(u: Array, v: Array) -> tuple[Array, Array]:
    """Return the look of the footing and the chimney: rough stones in mortar."""
    rough = fbm(u * 3, v * 4.5, 4, 0.65)
    stone = np.array([0.33, 0.31, 0.28], np.float32) * (1 + 0.5 * rough)[:, None]
    joints = smoothstep(0.0, 0.1, np.abs(noise(u * 2.6, v * 4)))[:, None]
    return stone * (0.55 + 0.45 * joints), np.ones(len(u), bool)


def paint_cabin(canvas: Canvas) -> None:
    """Draw the cabin: footing, two walls, both roofs and the chimney."""
    along = np.array([_ALONG[0], 0, _ALONG[1]], np.float32)
    across = np.array([_ALONG[1], 0, -_ALONG[0]], np.float32)
    up = np.array([0, 1, 0], np.float32)
    half_long, half_wide = _LONG / 2, _WIDE / 2
    front, left = _place(-half_long, half_wide, 0), _place(-half_long, -half_wide, 0)
    paint_surface(canvas, Surface(front - 1.6 * up, along, up, (_LONG, 1.6)), _masonry)
    paint_surface(canvas, Surface(left - 1.6 * up, across, up, (_WIDE, 1.6)), _masonry)
    paint_surface(canvas, Surface(front, along, up, (_LONG, _WALL), _WALL - 0.35), _side)
    paint_surface(canvas, Surface(left, across, up, (_WIDE, _RIDGE)), _gable)
    pitch = np.hypot(half_wide, _RIDGE - _WALL)
    for side in (1, -1):
        slant = np.asarray((-side * across * half_wide + up * (_RIDGE - _WALL)) / pitch, np.float32)
        eave = _place(-half_long - _EAVES, side * half_wide, _WALL) - slant * np.float32(_EAVES)
        size = (_LONG + 2 * _EAVES, float(pitch) + _EAVES)
        paint_surface(canvas, Surface(eave + 0.08 * up, along, slant, size), _roofing)
    for origin, way in ((_place(1.5, 0.7, 3.2), along), (_place(1.5, 0.1, 3.2), across)):
        paint_surface(canvas, Surface(origin, way, up, (0.6, 2.5)), _masonry)
