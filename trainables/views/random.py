"""Counter-based random numbers: each is a pure function of what it is for.

A view must not change when the batch is ordered, split or resumed differently, so nothing here has a state. Every
draw is a hash of (seed, stream, epoch, view, image, draw): BLAKE2 for the part shared by the batch, SplitMix64
(Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) for image and draw, vectorised.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Draw = Callable[[str, int], FloatArray]  # (what for, how many) -> (B, how many) in [0, 1)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment, 2^64 / golden ratio


def uniforms(seed: int, stream: str, epoch: int, images: IntArray, view: int, count: int) -> FloatArray:
    """Draws in [0, 1), shape (B, count), 53 bits each.

    Row b depends on `images[b]` and on no other row; draw k does not depend on `count`. `stream` names what the
    draws are for: two streams of one seed are independent.
    """
    keys = _mix(_key(seed, stream, epoch, view) + GOLDEN * np.asarray(images).astype(np.uint64))
    counters = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mix(keys[:, None] + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _key(seed: int, stream: str, epoch: int, view: int) -> np.uint64:
    """64 bits for what a whole batch shares."""
    text = f"{seed}/{epoch}/{view}/{stream}"  # the one part that may hold a slash stands last
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
