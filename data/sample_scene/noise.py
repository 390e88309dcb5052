"""Gradient noise on the plane, and the sums of it that make textures look natural."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 wherever there are many; a few small arrays come as float64 from numpy's functions.
Array = NDArray[np.floating[Any]]

_PERIOD = 256
_SEED = 139
# Each octave is turned by this angle so that the lattice's axes do not add up to visible lines.
_TURN_COS, _TURN_SIN = np.float32(0.8), np.float32(0.6)


@cache
def _gradients() -> tuple[Array, Array]:
    """Return the x and z parts of the lattice's unit gradients, each (256, 256) float32."""
    angle = np.random.default_rng(_SEED).random((_PERIOD, _PERIOD)) * 2 * np.pi
    return np.cos(angle).astype(np.float32).ravel(), np.sin(angle).astype(np.float32).ravel()


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Return 0 below ``low``, 1 above ``high`` and a smooth cubic between, float32."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def mix(first: Array | float, second: Array | float, weight: Array | float) -> Array:
    """Return ``first`` where ``weight`` is 0, ``second`` where it is 1, float32."""
    return np.asarray(first + (second - first) * weight, np.float32)


def noise(x: Array, z: Array) -> Array:
    """Return gradient noise in about -1 to 1 with features one unit wide, float32."""
    floor_x, floor_z = np.floor(x), np.floor(z)
    fx, fz = x - floor_x, z - floor_z
    ix, iz = floor_x.astype(np.int32), floor_z.astype(np.int32)
    gradient_x, gradient_z = _gradients()
    wx = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
    wz = fz * fz * fz * (fz * (fz * 6 - 15) + 10)

    def corner(dx: int, dz: int) -> Array:
        index = ((ix + dx) & (_PERIOD - 1)) * _PERIOD + ((iz + dz) & (_PERIOD - 1))
        return gradient_x[index] * (fx - dx) + gradient_z[index] * (fz - dz)

    near = mix(corner(0, 0), corner(1, 0), wx)
    far = mix(corner(0, 1), corner(1, 1), wx)
    return mix(near, far, wz) * np.float32(1.5)


def _next_octave(x: Array, z: Array) -> tuple[Array, Array]:
    """Return the coordinates turned and scaled for a noise of half the size."""
    scale, shift = np.float32(2.03), np.float32(17.3)
    return (
        (x * _TURN_COS - z * _TURN_SIN) * scale + shift,
        (x * _TURN_SIN + z * _TURN_COS) * scale - shift,
    )


def fbm(x: Array, z: Array, octaves: int, gain: float = 0.5) -> Array:
    """Return the sum of ``octaves`` noises, each half as wide and ``gain`` as high, float32."""
    total = np.zeros(np.broadcast(x, z).shape, np.float32)
    height = np.float32(1)
    for _ in range(octaves):
        total += height * noise(x, z)
        height *= np.float32(gain)
        x, z = _next_octave(x, z)
    return total


def ridged(x: Array, z: Array, octaves: int) -> Array:
    """Return noise folded into sharp crests, about 0 to 2: fine crests only upon coarse ones."""
    total = np.zeros(np.broadcast(x, z).shape, np.float32)
    height, carry = np.float32(1), np.float32(1) + total
    for _ in range(octaves):
        crest = (1 - np.abs(noise(x, z))) ** 2
        total += height * crest * carry
        carry = np.clip(crest * 1.3, 0, 1)
        height *= np.float32(0.5)
        x, z = _next_octave(x, z)
    return total
