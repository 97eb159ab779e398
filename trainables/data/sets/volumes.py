"""Generated volumes: round bodies among tubes of the same brightness, with exact masks.

What scenes are for images. A volume is a function of (seed, index). Bodies and tubes are drawn from one range of
brightness and thickness, so that in no slice alone does a round spot tell a body from a tube cut across: the third
dimension does, as with nodules and vessels in a lung. Edges are hard in the volume as in the mask.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_Map = NDArray[np.floating[Any]]  # (D, S, S) where nothing else is said
_Rng = np.random.Generator

VOLUME_CLASSES = ("background", "body", "shell")
RADII = (0.18, 0.34)  # of bodies, and of tubes times TUBE; in half sides of the volume
TUBE = 0.6
CONTRAST = (0.12, 0.35)  # brightness above what is around
HOLLOW = 0.6  # share of a shell's radius that is empty


class Volume(NamedTuple):
    """D slices of S x S voxels."""

    image: NDArray[np.uint8]  # (D, S, S) grey
    mask: NDArray[np.uint8]  # (D, S, S) index into VOLUME_CLASSES


def generate_volume(seed: int, index: int, slices: int, size: int, classes: int) -> Volume:
    """Volume `index` of the data set `seed`, with 2 or 3 classes, background included."""
    rng = np.random.default_rng([seed, index])
    image = rng.uniform(0.2, 0.4) + 0.25 * (_noise(rng, slices, size) - 0.5)
    mask = np.zeros(image.shape, np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        image = np.where(_tube(rng, slices, size), image + rng.uniform(*CONTRAST), image)
    for _ in range(int(rng.integers(1, 3))):  # what comes later covers what was there
        kind, level = int(rng.integers(1, classes)), rng.uniform(0.2, 0.4) + rng.uniform(*CONTRAST)
        distance = _ellipsoid(rng, slices, size)
        inside = distance < 1 if kind == 1 else (distance < 1) & (distance > HOLLOW)
        image, mask = np.where(inside, level, image), np.where(inside, np.uint8(kind), mask)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0.01, 0.04)
    return Volume((np.clip(image + noise, 0, 1) * 255 + 0.5).astype(np.uint8), mask)


def _tube(rng: _Rng, slices: int, size: int) -> NDArray[np.bool_]:
    """A straight tube of any direction through a point of the volume."""
    along = _turn(rng)[0]
    offset = _places(slices, size) - _point(rng, slices, size)  # D, S, S, 3
    across = offset - (offset @ along)[..., None] * along
    inside: NDArray[np.bool_] = np.linalg.norm(across, axis=-1) < TUBE * rng.uniform(*RADII)
    return inside


def _ellipsoid(rng: _Rng, slices: int, size: int) -> _Map:
    """Distance from a centre, 1 on the surface of an ellipsoid whose axes differ by up to a third."""
    axes = rng.uniform(*RADII) * rng.uniform(0.75, 1.0, 3)
    turned = (_places(slices, size) - _point(rng, slices, size)) @ (_turn(rng).T / axes)
    distance: _Map = np.linalg.norm(turned, axis=-1)
    return distance


def _turn(rng: _Rng) -> _Map:
    """A random rotation or reflection (3, 3): the orthogonal part of a Gaussian matrix."""
    turn: _Map = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    return turn


def _point(rng: _Rng, slices: int, size: int) -> _Map:
    """(3,) where something may be: away from the faces by a fifth of half the side."""
    return rng.uniform(-0.8, 0.8, 3).astype(np.float32) * np.array((slices / size, 1, 1), np.float32)


@lru_cache(maxsize=4)
def _places(slices: int, size: int) -> _Map:
    """(D, S, S, 3) z, y, x of the voxel centres, y and x in [-1, 1]; voxels are cubes."""
    z, x = (((np.arange(n) + 0.5) * 2 - n).astype(np.float32) / size for n in (slices, size))
    places = np.stack(np.meshgrid(z, x, x, indexing="ij"), axis=-1)
    places.flags.writeable = False
    return places


def _noise(rng: _Rng, slices: int, size: int, knots: int = 5) -> _Map:
    """Smooth noise in [0, 1]: random values on a lattice, interpolated."""
    values: NDArray[np.float32] = rng.random((knots, knots, knots), np.float32)
    for axis, length in enumerate((slices, size, size)):
        values = np.moveaxis(np.tensordot(_weights(length, knots), values, (1, axis)), 0, axis)
    return values


@lru_cache(maxsize=8)
def _weights(length: int, knots: int) -> NDArray[np.float32]:
    """(length, knots): row i mixes the two knots around voxel i."""
    at = (np.arange(length) + 0.5) / length * (knots - 1)
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(knots))).astype(np.float32)
    weights.flags.writeable = False
    return weights
