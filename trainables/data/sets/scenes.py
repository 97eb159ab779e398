"""Generated scenes: textured objects before a textured background, with exact masks, regions and depth.

A scene is a function of (seed, index), whatever else is generated. What makes a class is the family of an object's
outline and texture; colours, sizes, turns, light and noise are drawn anew for every object, so no colour gives a
class away, and backgrounds carry stripes and checks of their own. Object edges are hard in the image as in the mask:
no pixel mixes two regions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_Map = NDArray[np.floating[Any]]  # (S, S) where nothing else is said
_Rng = np.random.Generator

SCENE_CLASSES = ("background", "striped ellipse", "dotted polygon", "checked star", "rippled ring", "marbled blob")

NEAR, FAR = 0.1, 0.75  # depths of objects; each has a slice of this range to itself
SLOPE = 0.3  # of its slice: how far an object leans
TAU = float(2 * np.pi)


class Scene(NamedTuple):
    """One scene of S x S px."""

    image: NDArray[np.uint8]  # (S, S, 3) RGB
    mask: NDArray[np.uint8]  # (S, S) 0 background, 1.. index into SCENE_CLASSES
    regions: NDArray[np.uint16]  # (S, S) 0 background, 1..k the objects that can be seen, far to near
    depth: NDArray[np.float16]  # (S, S) in [0, 1], 0 near


class Body(NamedTuple):
    """Place and angle of an object."""

    kind: int  # class, 1..5
    u: _Map  # (S, S) its own coordinates: the outline lies within the unit circle
    v: _Map
    depth: float


def generate_scene(seed: int, index: int, size: int, classes: int, noise: float = 0.0) -> Scene:
    """Scene `index` of the data set `seed`: `size` px square, with `classes` classes, background included (2 to 6).

    `noise` is the standard deviation of sensor noise (of the brightest value, 1) beyond what every scene has.
    """
    rng = np.random.default_rng([seed, index])
    image, depth = _background(rng, size)
    mask, regions = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint16)
    count = int(rng.integers(1, 5))
    for number in range(count):  # far to near: what is painted later hides what is behind it
        body = _place(rng, size, classes, number, count)
        shape = _OUTLINES[body.kind](rng, body.u, body.v)
        image = _shadowed(image, body)
        image[shape] = _skin(rng, body.kind, body.u[shape], body.v[shape])
        mask[shape], regions[shape] = body.kind, number + 1
        depth[shape] = _leaning(rng, body.depth, body.u[shape], count)
    return Scene(_develop(rng, image, noise), mask, _renumbered(regions, count), depth.astype(np.float16))


# ------------------------------------------------------------------------------------------------- composition


def _background(rng: _Rng, size: int) -> tuple[_Map, _Map]:
    """(S, S, 3) colours and (S, S) depth: a wall that leans back from 0.85 at its foot to 1."""
    x, y = _grid(size)
    a, b = _turned(x, y, rng.uniform(0, TAU))
    texture = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))](rng, a, b)
    depth = 1.0 - 0.15 * (y + 1) / 2
    return _two_tone(rng, texture, contrast=rng.uniform(0.1, 0.35)), depth


def _place(rng: _Rng, size: int, classes: int, number: int, count: int) -> Body:
    """Nearer objects are larger and stand lower. Depth slices do not overlap, so no two objects cut each other."""
    kind = int(rng.integers(1, classes))
    width = (FAR - NEAR) / count
    depth = FAR - width * (number + 0.5)
    nearness = (FAR - depth) / (FAR - NEAR)  # 0 to 1
    radius = rng.uniform(0.38, 0.62) * (0.8 + 0.5 * nearness)
    x0, y0 = rng.uniform(-0.7, 0.7), rng.uniform(-0.65, 0.35) + 0.3 * nearness
    x, y = _grid(size)
    u, v = _turned((x - x0) / radius, (y - y0) / radius, rng.uniform(0, TAU))
    return Body(kind, u, v, depth)


def _skin(rng: _Rng, kind: int, u: _Map, v: _Map) -> _Map:
    """(P, 3) colours of an object's P pixels: its class's texture in two drawn tones, shaded as if it bulged."""
    colours = _two_tone(rng, _TEXTURES[kind](rng, u, v), contrast=rng.uniform(0.22, 0.5))
    bulge: _Map = 1.08 - 0.3 * (u**2 + v**2)
    return colours * bulge[..., None]


def _shadowed(image: _Map, body: Body) -> _Map:
    """Darken what lies behind an object, around it."""
    distance = np.sqrt(body.u**2 + body.v**2)
    light: _Map = 1 - 0.4 * np.exp(-4 * np.clip(distance - 0.7, 0, None))
    return image * light[..., None]


def _leaning(rng: _Rng, depth: float, u: _Map, count: int) -> _Map:
    """(P,) depth of an object's pixels; at most SLOPE of its slice, which ends half a slice from `depth`."""
    return depth + u * (rng.uniform(-1, 1) * SLOPE * (FAR - NEAR) / count / 2)


def _develop(rng: _Rng, image: _Map, more: float) -> NDArray[np.uint8]:
    """Light from one side, exposure, sensor noise, 8 bits."""
    x, y = _grid(len(image))
    along, _ = _turned(x, y, rng.uniform(0, TAU))
    light = rng.uniform(0.85, 1.1) * (1 + rng.uniform(0, 0.25) * along)
    noise = rng.standard_normal(image.shape, np.float32) * (rng.uniform(0.01, 0.05) + more)
    developed: _Map = np.clip(image * light[..., None] + noise, 0, 1) * 255 + 0.5
    return developed.astype(np.uint8)


def _renumbered(regions: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """Objects that nearer ones hide completely leave no gap in the numbers."""
    seen = np.bincount(regions.ravel(), minlength=count + 1) > 0
    seen[0] = False
    return np.cumsum(seen).astype(np.uint16)[regions] * (regions > 0)


# ---------------------------------------------------------------------------------------------------- outlines


def _ellipse(rng: _Rng, u: _Map, v: _Map) -> NDArray[np.bool_]:
    return u**2 + (v / rng.uniform(0.55, 0.95)) ** 2 < 1


def _polygon(rng: _Rng, u: _Map, v: _Map) -> NDArray[np.bool_]:
    """Regular, three to six corners."""
    step = TAU / int(rng.integers(3, 7))
    angle = np.mod(np.arctan2(v, u), step) - step / 2
    inside: NDArray[np.bool_] = np.hypot(u, v) * np.cos(angle) < np.cos(step / 2)
    return inside


def _star(rng: _Rng, u: _Map, v: _Map) -> NDArray[np.bool_]:
    """Five to seven straight rays."""
    step = TAU / int(rng.integers(5, 8))
    across = np.abs(np.mod(np.arctan2(v, u), step) / step * 2 - 1)  # 1 on a ray, 0 between two
    inside: NDArray[np.bool_] = np.hypot(u, v) < 0.5 + 0.5 * across**1.5
    return inside


def _ring(rng: _Rng, u: _Map, v: _Map) -> NDArray[np.bool_]:
    radius = np.hypot(u, v)
    return (radius < 1) & (radius > rng.uniform(0.35, 0.55))


def _blob(rng: _Rng, u: _Map, v: _Map) -> NDArray[np.bool_]:
    """A circle whose radius wavers by two harmonics."""
    angle = np.arctan2(v, u)
    waver = np.sin(2 * angle + rng.uniform(0, TAU)) + np.sin(3 * angle + rng.uniform(0, TAU))
    inside: NDArray[np.bool_] = np.hypot(u, v) < 0.76 + 0.12 * waver
    return inside


# ---------------------------------------------------------------------------------------------------- textures


def _stripes(rng: _Rng, u: _Map, v: _Map) -> _Map:
    return _steep(3 * np.sin(TAU * rng.uniform(1.4, 2.4) * u + rng.uniform(0, TAU)))


def _dots(rng: _Rng, u: _Map, v: _Map) -> _Map:
    frequency = TAU * rng.uniform(1.0, 1.5)
    lattice = np.cos(frequency * u + rng.uniform(0, TAU)) + np.cos(frequency * v + rng.uniform(0, TAU))
    return _steep(4 * (lattice - 0.5))


def _checks(rng: _Rng, u: _Map, v: _Map) -> _Map:
    frequency = TAU * rng.uniform(0.9, 1.5)
    return _steep(50 * np.sin(frequency * u + rng.uniform(0, TAU)) * np.sin(frequency * v))


def _ripples(rng: _Rng, u: _Map, v: _Map) -> _Map:
    return _wave(rng.uniform(2.2, 3.2) * np.hypot(u, v) + rng.uniform())


def _marble(rng: _Rng, u: _Map, v: _Map) -> _Map:
    """Veins: a wave whose phase is bent by two others, crosswise."""
    bend = np.sin(TAU * (rng.uniform(0.4, 0.8) * v + rng.uniform())) + np.sin(3 * u + 5 * v + rng.uniform(0, TAU))
    return _wave(rng.uniform(0.7, 1.1) * u + 0.35 * bend)


def _clouds(rng: _Rng, u: _Map, v: _Map) -> _Map:
    return _value_noise(rng, len(u))


def _gradient(rng: _Rng, u: _Map, v: _Map) -> _Map:
    return np.clip(0.5 + 0.4 * u + 0.15 * (_value_noise(rng, len(u)) - 0.5), 0, 1)


def _grating(rng: _Rng, u: _Map, v: _Map) -> _Map:
    bend = rng.uniform(0, 0.25) * np.sin(TAU * rng.uniform(0.3, 0.7) * v)
    return _wave(rng.uniform(1.0, 5.0) * u + bend)


def _tiles(rng: _Rng, u: _Map, v: _Map) -> _Map:
    return _checks(rng, u * rng.uniform(1.0, 2.5), v * rng.uniform(1.0, 2.5))


_OUTLINES: dict[int, Callable[[_Rng, _Map, _Map], NDArray[np.bool_]]] = {
    1: _ellipse,
    2: _polygon,
    3: _star,
    4: _ring,
    5: _blob,
}
_TEXTURES: dict[int, Callable[[_Rng, _Map, _Map], _Map]] = {1: _stripes, 2: _dots, 3: _checks, 4: _ripples, 5: _marble}
_BACKGROUNDS: tuple[Callable[[_Rng, _Map, _Map], _Map], ...] = (_clouds, _gradient, _grating, _tiles)


# ------------------------------------------------------------------------------------------------------- parts


def _two_tone(rng: _Rng, texture: _Map, contrast: float) -> _Map:
    """(..., 3): `texture` (...) in [0, 1] runs from one drawn colour to another, `contrast` apart in brightness."""
    hue, value = rng.uniform(), rng.uniform(0.3, 0.95 - contrast)
    hues = hue + rng.uniform(-0.08, 0.08) * np.array([0.0, 1.0])
    low, high = (
        _rgb(h, rng.uniform(0.1, 0.6), brightness)
        for h, brightness in zip(hues, (value, value + contrast), strict=True)
    )
    if rng.random() < 0.5:
        low, high = high, low
    return low + texture.astype(np.float32)[..., None] * (high - low)


def _rgb(hue: float, saturation: float, value: float) -> _Map:
    """HSV to RGB, (3,) in [0, 1]."""
    k = np.mod(np.array([5.0, 3.0, 1.0]) + 6 * hue, 6)
    rgb: _Map = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb.astype(np.float32)


def _wave(phase: _Map) -> _Map:
    """In [0, 1], one period per unit of `phase`."""
    wave: _Map = 0.5 + 0.5 * np.sin(TAU * phase)
    return wave


def _steep(level: _Map) -> _Map:
    """From 0 where `level` is far below zero to 1 where it is far above."""
    step: _Map = 0.5 + 0.5 * np.tanh(level)
    return step


def _turned(x: _Map, y: _Map, angle: float) -> tuple[_Map, _Map]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[_Map, _Map]:
    """x and y of the pixel centres in [-1, 1], each (S, S)."""
    axis = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _value_noise(rng: _Rng, size: int) -> _Map:
    """(S, S) smooth noise in [0, 1]: random values on a 5 and a 10 lattice, interpolated."""
    coarse, fine = _weights(size, 5), _weights(size, 10)
    low = coarse @ rng.random((5, 5), np.float32) @ coarse.T
    high = fine @ rng.random((10, 10), np.float32) @ fine.T
    return 0.7 * low + 0.3 * high


@lru_cache(maxsize=16)
def _weights(size: int, knots: int) -> NDArray[np.float32]:
    """(size, knots) smoothstep weights: row i mixes the two knots around pixel i."""
    at = (np.arange(size) + 0.5) / size * (knots - 1)
    left = at.astype(np.int64)
    t = at - left
    smooth = t * t * (3 - 2 * t)
    weights = np.zeros((size, knots), np.float32)
    weights[np.arange(size), left], weights[np.arange(size), left + 1] = 1 - smooth, smooth
    weights.flags.writeable = False
    return weights
