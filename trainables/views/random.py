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
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.trainables.upload import upload

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Draw = Callable[[str, int], FloatArray]  # (what for, how many) -> (B, how many) in [0, 1)
DrawHere = Callable[[str, int], Tensor]  # the same numbers on the training device

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment, 2^64 / golden ratio
SHIFTS, FACTORS = (30, 27, 31), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of its finaliser


def uniforms(seed: int, stream: str, epoch: int, images: IntArray, view: int, count: int) -> FloatArray:
    """Draws in [0, 1), shape (B, count), 53 bits each.

    Row b depends on `images[b]` and on no other row; draw k does not depend on `count`. `stream` names what the
    draws are for: two streams of one seed are independent.
    """
    keys = _keys(seed, stream, epoch, images, view)
    counters = GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    bits = _mix(keys[:, None] + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms_on(
    device: torch.device, seed: int, stream: str, epoch: int, images: IntArray, view: int, count: int
) -> Tensor:
    """`uniforms` as float64 on a device: the same numbers bit for bit, of which the keys alone are uploaded."""
    keys = upload(_keys(seed, stream, epoch, images, view).view(np.int64), device)
    counters = torch.arange(1, count + 1, device=device) * _signed(int(GOLDEN))
    bits = keys[:, None] + counters
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        bits = bits.bitwise_xor_(_shifted(bits, shift)).mul_(_signed(factor))
    bits = bits.bitwise_xor_(_shifted(bits, SHIFTS[-1]))
    return _shifted(bits, 11).double().mul_(2.0**-53)


def seeded(device: torch.device, seed: int) -> torch.Generator:
    """A generator of the device's own numbers."""
    return torch.Generator(device).manual_seed(seed)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift 64 bits to the right, zeros from the left; torch's own shift repeats the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(bits: int) -> int:
    """The int64 of these 64 bits. Sums and products modulo 2^64 are the same for both."""
    return bits - (bits >> 63 << 64)


def _keys(seed: int, stream: str, epoch: int, images: IntArray, view: int) -> NDArray[np.uint64]:
    """64 bits for each image, (B,)."""
    return _mix(_key(seed, stream, epoch, view) + GOLDEN * np.asarray(images).astype(np.uint64))


def _key(seed: int, stream: str, epoch: int, view: int) -> np.uint64:
    """64 bits for what a whole batch shares."""
    text = f"{seed}/{epoch}/{view}/{stream}"  # the one part that may hold a slash stands last
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit reaches every output bit."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=False):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(SHIFTS[-1]))
