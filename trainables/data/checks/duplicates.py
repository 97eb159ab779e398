"""Duplicates: one image scaled, made grey, compressed anew or somewhat brighter. Mostly not found where it was cropped,
never where it was mirrored.

Of 150 pets it finds all that were scaled by a half, 147 compressed to quality 10, 116 brighter by a fifth, 8 by a half,
114 with 2 % cut off, 11 with 5 %; and no false pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretune.trainables.data.image_set import shown_in_color

ROWS, COLUMNS = 8, 9  # of the thumbnail whose neighbours are compared: 64 bits
BANDS = 4  # of 16 bits; hashes that differ in fewer bits than there are bands surely share a band, and are compared
MOST_BITS = 6  # differing bits of a duplicate
THUMBNAIL = 16  # px, for the second look
MOST_DIFFERENCE = 8.0  # mean absolute grey difference of a duplicate, of 255, after removing the mean
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)  # set, of every byte


class Duplicate(NamedTuple):
    """Two rows that show the same image, `first` < `second`."""

    first: int
    second: int
    bits: int  # in which their hashes differ


class Summaries(NamedTuple):
    """Summaries by which images of any size are compared."""

    hashes: NDArray[np.uint8]  # (N, ROWS)
    thumbnails: NDArray[np.float32]  # (N, THUMBNAIL, THUMBNAIL), each of mean 0


class Alike(NamedTuple):
    """Groups of N images that look alike."""

    first: NDArray[np.int64]  # (N,) the first row whose summary equals this row's
    near: list[Duplicate]  # of such first rows alone, so that a thousand blank frames are one


def find_duplicates(images: NDArray[np.uint8]) -> list[Duplicate]:
    """Pairs of (N, S, S, C) that show one image: difference hash (Krawetz 2013), then a look at the thumbnails.

    Of images whose summaries are equal each is paired with the first of them only, so blank frames cost no more.
    """
    return pairs(find_alike(summarised(images)))


def pairs(alike: Alike) -> list[Duplicate]:
    """Every image that has a like, with the first of its equals or with what these look like."""
    equal = np.flatnonzero(alike.first != np.arange(len(alike.first)))
    return sorted([*(Duplicate(int(alike.first[row]), int(row), 0) for row in equal), *alike.near])


def find_alike(summaries: Summaries) -> Alike:
    """All pairs that are found share a band of their hashes, differ in few bits, and have thumbnails alike."""
    hashes, thumbnails = summaries
    first = _first_alike(np.concatenate([hashes, thumbnails.reshape(len(hashes), THUMBNAIL**2).view(np.uint8)], 1))
    rows = np.unique(first)  # of a thousand blank frames one is compared with the others
    bands = hashes[rows].view(np.uint16)  # n, BANDS
    near = {pair for band in range(BANDS) for pair in _close(hashes[rows], bands[:, band])}
    found = [Duplicate(int(rows[a]), int(rows[b]), bits) for a, b, bits in near]
    return Alike(first, [pair for pair in found if _alike(thumbnails[pair.first], thumbnails[pair.second])])


def duplicates_among(alike: Alike, wanted: NDArray[np.bool_], others: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Each row of `wanted` (N,) that looks like one of `others` (N,), with the first of these."""
    held: dict[int, int] = {}  # first of equals -> first of them among the others
    for row in np.flatnonzero(others):
        held.setdefault(int(alike.first[row]), int(row))
    beside = dict(held)
    for one, other in [(p.first, p.second) for p in alike.near] + [(p.second, p.first) for p in alike.near]:
        if other in held:
            beside[one] = min(beside.get(one, held[other]), held[other])
    found = ((int(row), beside.get(int(alike.first[row]))) for row in np.flatnonzero(wanted))
    return [(row, partner) for row, partner in found if partner is not None]


def difference_hash(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(S, S, C) -> (8,) bytes: of a 9 x 8 thumbnail, whether each pixel is darker than its right neighbour."""
    return _hash(Image.fromarray(np.ascontiguousarray(shown_in_color(image))).convert("L"))


def _first_alike(summaries: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N, bytes) -> (N,) the first row with equal bytes."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(summaries)], np.int64)


def _hash(grey: Image.Image) -> NDArray[np.uint8]:
    small = np.asarray(grey.resize((COLUMNS, ROWS), Image.Resampling.BOX)).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1])


def summarised(images: NDArray[np.uint8]) -> Summaries:
    """Summaries of images (N, S, S, C)."""
    hashes = np.empty((len(images), ROWS), np.uint8)
    thumbnails = np.empty((len(images), THUMBNAIL, THUMBNAIL), np.float32)
    for i, image in enumerate(images):
        grey = Image.fromarray(np.ascontiguousarray(shown_in_color(image))).convert("L")
        hashes[i] = _hash(grey)
        thumbnails[i] = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return Summaries(hashes, thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True))


def _close(hashes: NDArray[np.uint8], band: NDArray[np.uint16]) -> Iterator[Duplicate]:
    """Pairs among those that share the band."""
    order = np.argsort(band, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
        for at, i in enumerate(group[:-1]):
            others = group[at + 1 :]
            bits = BITS[hashes[i] ^ hashes[others]].sum(1)
            yield from (Duplicate(int(i), int(others[k]), int(bits[k])) for k in np.flatnonzero(bits <= MOST_BITS))


def _alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return float(np.abs(a - b).mean()) <= MOST_DIFFERENCE
