"""Training crops of large images at their own resolution, a share of them around foreground pixels.

A crop may lie across tiles: the two by two tiles around it are gathered by index and cut on the device. Where it lies
is drawn on the host, as a function of seed, epoch and image, so that no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.image_set import tile_grids
from pretune.trainables.loop import DataFeed, IntArray
from pretune.trainables.upload import upload
from pretune.trainables.views.random import uniforms

REMEMBERED = 128  # pixels of each class and tile, around which crops may lie
READ_AT_ONCE = 64  # tiles


class Places:
    """Places of crops: the grid of tiles of each image, its height and width, and pixels of its classes.

    Masks of the labelled rows alone are read, once.
    """

    def __init__(self, names: Sequence[str], rows: IntArray, masks: DataFeed, classes: int) -> None:
        grids = tile_grids(names, rows)
        self.number = np.zeros(int(rows.max()) + 1, np.int64)  # row -> image
        for number, grid in enumerate(grids):
            self.number[grid[grid >= 0]] = number
        self.shape = np.array([grid.shape for grid in grids])  # images, 2: tiles
        self._first = np.cumsum([0, *(grid.size for grid in grids)])
        self._tiles = np.concatenate([grid.ravel() for grid in grids])
        self.pixels = _Pixels(len(grids), classes)
        self.extent = np.zeros((len(grids), 2), np.int64)  # px
        self.side = masks(rows[:1]).shape[-1]  # px of a tile
        self.tile = np.zeros((len(self.number), 2), np.int64)  # row -> its place in the grid
        for grid in grids:
            self.tile[grid[grid >= 0]] = np.argwhere(grid >= 0)
        for part in np.array_split(rows, math.ceil(len(rows) / READ_AT_ONCE)):
            for row, mask in zip(part.tolist(), masks(part).cpu().numpy(), strict=True):
                self._look(self.number[row], self.tile[row] * len(mask), mask)
        self.pixels.close()

    def _look(self, image: int, corner: IntArray, mask: NDArray[np.uint8]) -> None:
        counted = mask != IGNORE
        for axis in (0, 1):
            along = np.flatnonzero(counted.any(axis=1 - axis))
            if len(along):
                self.extent[image, axis] = max(self.extent[image, axis], corner[axis] + along[-1] + 1)
        for label in np.flatnonzero(np.bincount(mask[counted])):
            found = np.flatnonzero(mask == label)
            some = found[np.linspace(0, len(found) - 1, min(len(found), REMEMBERED)).astype(np.int64)]
            self.pixels.add(image, int(label), corner + np.stack(np.unravel_index(some, mask.shape), axis=1))

    def rows(self, images: IntArray, tiles: IntArray) -> IntArray:
        """Rows of tiles (B, K, 2) of images (B,); -1 for one that is not labelled, or beyond the image."""
        shape = self.shape[images][:, None]
        inside = ((tiles >= 0) & (tiles < shape)).all(axis=-1)
        at = self._first[images][:, None] + tiles[..., 0] * shape[..., 1] + tiles[..., 1]
        return np.where(inside, self._tiles[np.where(inside, at, 0)], -1)


class _Pixels:
    """Pixels of the classes of images, one list after the other."""

    def __init__(self, images: int, classes: int) -> None:
        self._lists: dict[tuple[int, int], list[IntArray]] = {}
        self._counts = np.zeros((images, classes), np.int64)
        self._starts = np.zeros((images, classes), np.int64)
        self._all = np.zeros((0, 2), np.int64)

    def add(self, image: int, label: int, pixels: IntArray) -> None:
        if label > 0:  # the first class is the background
            self._lists.setdefault((image, label), []).append(pixels)
            self._counts[image, label] += len(pixels)

    def close(self) -> None:
        """No more are added."""
        keys = sorted(self._lists)
        self._all = np.concatenate([self._all, *(part for key in keys for part in self._lists.pop(key))])
        flat = self._counts.ravel()
        self._starts = (np.cumsum(flat) - flat).reshape(self._counts.shape)

    def drawn(self, images: IntArray, draws: NDArray[np.float64]) -> tuple[IntArray, NDArray[np.bool_]]:
        """A pixel (B, 2) of a class of each image, and whether there is any.

        A class is drawn among those of the image, each as likely, then one of its pixels; draws (B, 2) in [0, 1).
        """
        counts = self._counts[images]
        there = counts > 0
        chosen = np.floor(draws[:, 0] * there.sum(axis=1)).astype(np.int64)
        label = (np.cumsum(there, axis=1) > chosen[:, None]).argmax(axis=1)
        held = counts[np.arange(len(images)), label]
        at = self._starts[images, label] + np.floor(draws[:, 1] * held).astype(np.int64)
        exists: NDArray[np.bool_] = held > 0
        if not len(self._all):
            return np.zeros((len(images), 2), np.int64), exists
        return self._all[np.where(exists, at, 0)], exists


class TrainingCrops:
    """Crops of a batch, (B, S, S, C) and (B, S, S), out of the images of its rows.

    Tiles without labels are black and IGNORE.
    """

    def __init__(self, settings: schema.Finetune, feeds: tuple[DataFeed, DataFeed], places: Places, seed: int) -> None:
        assert settings.crops is not None
        self._size, self._foreground, self._seed = settings.size, settings.crops.foreground, seed
        (self._images, self._masks), self._places = feeds, places
        self._beside = 2 if (places.shape > 1).any() else 1  # tiles along a side that a crop may touch

    def corners(self, rows: IntArray, epoch: int) -> IntArray:
        """Top and left (B, 2) px of the crop that each row has in this epoch, in its image.

        The tiles of an image share all places where a crop fits, each as many, so that those of an epoch are spread.
        """
        images = self._places.number[rows]
        whole = np.maximum(self._places.extent[images], self._size)
        draws = uniforms(self._seed, "joint/place", epoch, rows, 0, 5)
        along = (self._places.tile[rows] + draws[:, :2]) / self._places.shape[images]
        free = np.floor(along * (whole - self._size + 1)).astype(np.int64)
        pixel, exists = self._places.pixels.drawn(images, draws[:, 2:4])
        around = np.clip(pixel - self._size // 2, 0, whole - self._size)
        return np.where((exists & (draws[:, 4] < self._foreground))[:, None], around, free)

    def __call__(self, rows: IntArray, epoch: int) -> tuple[Tensor, Tensor]:
        tile, corners, beside = self._places.side, self.corners(rows, epoch), np.arange(self._beside)
        first = corners // tile
        tiles = np.stack(np.meshgrid(beside, beside, indexing="ij"), axis=-1).reshape(-1, 2)
        found = self._places.rows(self._places.number[rows], first[:, None] + tiles)
        flat = np.maximum(found, 0).ravel()
        pixels, masks = (_joined(feed(flat), len(rows), self._beside) for feed in (self._images, self._masks))
        unlabelled = upload((found < 0).reshape(-1, self._beside, self._beside), masks.device)
        side = torch.arange(self._size, device=masks.device)
        inside = upload(corners - first * tile, masks.device)
        y, x = ((inside[:, axis, None] + side) for axis in (0, 1))
        batch = torch.arange(len(rows), device=masks.device)[:, None, None]
        y, x = y[:, :, None], x[:, None, :]
        unknown = unlabelled[batch, y // tile, x // tile]
        return pixels[batch, y, x].masked_fill(unknown[..., None], 0), masks[batch, y, x].masked_fill(unknown, IGNORE)


def _joined(tiles: Tensor, count: int, beside: int) -> Tensor:
    """(B * K * K, S, S, ...) -> (B, K * S, K * S, ...)."""
    if beside == 1:
        return tiles
    grids = tiles.reshape(count, beside, beside, *tiles.shape[1:])
    return grids.transpose(2, 3).flatten(3, 4).flatten(1, 2)
