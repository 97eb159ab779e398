"""An opened data set: the one form in which stages, probes and panels read images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TILE = re.compile(r"#r(\d{3,})c(\d{3,})$")  # behind the name of an image, of each of its tiles: row and column

Progress = Callable[[int, int], None]  # images done, images in all


class Pixels(Protocol):
    """An array (N, ...), or a streamed column that is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class ReadAhead(Protocol):
    """Reads images before the training loop asks for them."""

    def coming(self, orders: Sequence[NDArray[np.int64]], batch: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of S x S px (S = cache_size): memory-mapped and read-only, or streamed.

    Or of N grey volumes of D slices: images (N, D, S, S, 1), masks (N, D, S, S), no regions and no depth.
    """

    images: Pixels  # (N, S, S, 3) uint8 RGB, or (N, S, S, C) where the data set says how many channels
    masks: Pixels | None  # (N, S, S) uint8 class indices; losses and metrics do not count IGNORE
    regions: NDArray[np.uint16] | None  # (N, S, S) 0 background, 1..k objects
    depth: NDArray[np.float16] | None  # (N, S, S) in [0, 1], 0 near
    labels: NDArray[np.int64] | None  # (N,) image class: breed 0..36, or index of the sub-folder
    official_test: NDArray[np.bool_] | None  # (N,) True where the data set's own list says test
    names: Sequence[str]  # N, for people: printable
    classes: tuple[str, ...]  # names of the mask classes
    skipped: tuple[str, ...]  # files excluded by `on_error: skip`, with the reason
    label_names: tuple[str, ...] = ()  # names of the image classes, where the data set gives them
    parts: Sequence[str | None] | None = None  # N, train, val, test or a fold, by `split.file`
    groups: Sequence[str | None] | None = None  # N, by `split.file`
    transparent: tuple[str, ...] = ()  # images, by name, of which part was laid over black; of a stream, some of them
    shuffle_window: int | None = None  # images that an epoch shuffles together; None: all
    stream: ReadAhead | None = None  # of a streamed set

    @property
    def streamed(self) -> bool:
        return self.stream is not None

    def coming(self, orders: Sequence[NDArray[np.int64]], batch: int) -> None:
        """Announce the images of the next epochs, `batch` at a time: a streamed set starts to read."""
        if self.stream is not None:
            self.stream.coming(orders, batch)

    def close(self) -> None:
        """Stop reading ahead."""
        if self.stream is not None:
            self.stream.close()


def shown_in_color(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours that people are shown of pixels (..., C): its first three channels; of fewer, the first."""
    if pixels.shape[-1] < 3:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    return pixels[..., :3]


def image_names(names: Iterable[str]) -> tuple[str, ...]:
    """The images that rows of these names show, each once: tiles are of one image."""
    return tuple(dict.fromkeys(TILE.sub("", name) for name in names))


def whole_images(names: Sequence[str], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row of each image that `rows` (n,) show, and (n,) the place of a row's image among them.

    Rows are images of their own unless they are tiles (`fit: tile`).
    """
    if not len(rows) or not TILE.search(names[int(rows[0])]):
        return rows, np.arange(len(rows))
    called = [TILE.sub("", names[int(row)]) for row in rows]
    places = {name: place for place, name in enumerate(dict.fromkeys(called))}
    at = np.array([places[name] for name in called], np.int64)
    return rows[np.unique(at, return_index=True)[1]], at


def tile_grids(names: Sequence[str], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of the tiles (R, C) of each image that `rows` (n,) show, -1 where one is not among them.

    Images are in the order of `whole_images`; one that is no tile is a grid of one.
    """
    places = whole_images(names, rows)[1]
    found = [TILE.search(names[int(row)]) for row in rows]
    at = np.array([(int(tile[1]), int(tile[2])) if tile else (0, 0) for tile in found], np.int64).reshape(-1, 2)
    grids = []
    for own in np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))[:-1]):
        grid = np.full(at[own].max(axis=0) + 1, -1, np.int64)
        grid[at[own, 0], at[own, 1]] = rows[own]
        grids.append(grid)
    return grids
