"""Scores of a network on the images of a split: whole images, in batches of squares or by sliding windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.image_set import tile_grids, whole_images
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.loop import DataFeed, DivergedError, IntArray
from pretune.trainables.losses import Loss
from pretune.trainables.metrics.averages import average_scores
from pretune.trainables.metrics.segmentation import check_labels, confusion_by_image, hits_truth_predicted, scores
from pretune.trainables.metrics.table import Scorer, extra_scorers
from pretune.trainables.models.unet import UNet
from pretune.trainables.upload import upload
from pretune.trainables.views.joint import evaluation_batch
from pretune.trainables.windows import segmenting, slide

LOGITS_BYTES = 2**31  # of one batch that is scored


def images_at_once(classes: int, size: int, *, solid: bool) -> int:
    """Images that are scored together: 64, or 8 volumes, and fewer where their logits were over LOGITS_BYTES."""
    if solid:
        return 8
    return min(64, max(1, LOGITS_BYTES // (4 * classes * size * size)))


class Evaluated(NamedTuple):
    """Scores by name, and the pixel counts of every image; tiles of one image are counted together."""

    scores: dict[str, float]
    images: IntArray  # (n,) the first row of each image
    counts: Tensor  # (n, classes, 3): hits, truth, predicted


class Tally(NamedTuple):
    """Counts of a split while it is scored, on the device."""

    wrong: Tensor  # (2,): batches with logits that are not finite, labels that are no class
    total: Tensor  # (classes, classes)
    losses: Tensor  # (images,) float64
    counts: Tensor  # (images, classes, 3)


@dataclass(frozen=True)
class Evaluator:
    """Scores a network on images of a data set, in eval mode and float32."""

    network: UNet
    feed: DataFeed
    masks: DataFeed
    classes: tuple[str, ...]
    settings: schema.Finetune
    names: Sequence[str] = ()  # of all images, by which tiles are known; () where none are tiles
    world: World = field(default=ALONE)
    loss: Loss | None = None  # also scored: the mean over images of the loss of each

    @torch.no_grad()
    def evaluate(self, rows: IntArray, size: int, role: str, step: int) -> Evaluated:
        """Scores `role/...` of all `rows` at `size` px: of one confusion matrix, and those that settings turn on.

        Workers take turns with batches.

        Raises:
            DivergedError: logits that are not finite; argmax would quietly call them class 0. The update of `step`
                made them, and no loss came after it to tell.
        """
        self.network.eval()
        device = next(self.network.parameters()).device
        images, places = whole_images(self.names, rows) if self.names else (rows, np.arange(len(rows)))
        extra = [build(self.classes, len(images), device) for build in extra_scorers(self.settings)]
        classes = len(self.classes)
        shapes = (2,), (classes, classes), (len(images), classes, 3)
        wrong, total, counts = (torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes)
        tally = Tally(wrong, total, torch.zeros(len(images), dtype=torch.float64, device=device), counts)
        tiled = len(images) < len(rows)
        if self.settings.evaluate is not None or (tiled and (extra or self.loss)):
            batches = self._whole(rows, size)
        else:
            batches = self._squares(rows, places, size)
        for at, logits, target in batches:
            self._count(tally, at, logits, target)
            for scorer in extra:
                scorer.add(slice(int(at[0]), int(at[-1]) + 1), logits, target)
        return self._scored(tally, images, extra, role, step)

    def _count(self, tally: Tally, at: IntArray, logits: Tensor, target: Tensor) -> None:
        confusion, no_class = confusion_by_image(logits.argmax(dim=1), target, len(self.classes))
        tally.wrong.add_(torch.stack([~torch.isfinite(logits).all(), no_class]))
        tally.total.add_(confusion.sum(dim=0))
        where = upload(at, target.device)
        tally.counts.index_add_(0, where, hits_truth_predicted(confusion))
        if self.loss is not None:
            pairs = zip(torch.split(logits, 1), torch.split(target, 1), strict=True)
            tally.losses[where] = torch.stack([self.loss(*pair).double() for pair in pairs])

    def _scored(self, tally: Tally, images: IntArray, extra: Sequence[Scorer], role: str, step: int) -> Evaluated:
        bad, wrong = self.world.sum(tally.wrong)
        if bad:
            raise DivergedError(f"{role}/logits", step, math.nan)
        check_labels(wrong, len(self.classes))
        counts = self.world.sum(tally.counts)
        values = scores(self.world.sum(tally.total), self.classes)
        if self.loss is not None:
            values["loss"] = float(self.world.sum(tally.losses).mean())
        if self.settings.average is not None:
            values |= average_scores(counts, self.classes, self.settings.average, self.settings.batch_size)
        for scorer in extra:
            values |= scorer.scores(self.world)
        return Evaluated({f"{role}/{name}": value for name, value in values.items()}, images, counts)

    def _squares(self, rows: IntArray, places: IntArray, size: int) -> Iterator[tuple[IntArray, Tensor, Tensor]]:
        """Positions of the images of a batch, its logits and its masks; rows that are tiles stay apart."""
        at_once = images_at_once(len(self.classes), size, solid=self.feed(rows[:1]).ndim == 5)
        batches = np.array_split(np.arange(len(rows)), math.ceil(len(rows) / at_once))
        for batch in batches[self.world.rank :: self.world.size]:
            pixels, target = evaluation_batch(self.feed(rows[batch]), self.masks(rows[batch]), size)
            yield places[batch], self.network(pixels), target

    def _whole(self, rows: IntArray, size: int) -> Iterator[tuple[IntArray, Tensor, Tensor]]:
        """The same of one image at a time, put together of its tiles or of sliding windows."""
        grids = tile_grids(self.names, rows) if self.names else [np.array([[row]]) for row in rows]
        for number in range(self.world.rank, len(grids), self.world.size):
            pixels, mask = self._joined(grids[number])
            if self.settings.evaluate is None:
                found = self._side_by_side(pixels, mask, size)
            else:
                found = self._windows(pixels, mask, size)
            yield np.array([number]), *found

    def _joined(self, grid: IntArray) -> tuple[Tensor, Tensor]:
        """uint8 tiles (R, C, S, S, channels) and masks (R, C, S, S); black and IGNORE where a tile is missing."""
        rows = np.maximum(grid, 0).ravel()
        pixels, mask = (in_grid(feed(rows), grid.shape) for feed in (self.feed, self.masks))
        missing = upload(grid < 0, mask.device)[..., None, None]
        return pixels.masked_fill(missing[..., None], 0), mask.masked_fill(missing, IGNORE)

    def _windows(self, pixels: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
        image, target = stitched(pixels), stitched(mask)
        height, width = (max(size, side) for side in extent(image, target))
        image, target = image[:height, :width], target[:height, :width]
        assert self.settings.evaluate is not None
        at_once = images_at_once(len(self.classes), size, solid=False)
        logits = slide(image, size, self.settings.evaluate, segmenting(self.network), at_once)
        return logits[None], target[None].long()

    def _side_by_side(self, pixels: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Each tile by itself, as where nothing needs the whole image; what lies beyond the image is left out."""
        shape = mask.shape[:2]
        squares, target = evaluation_batch(pixels.flatten(0, 1), mask.flatten(0, 1), size)
        at_once = images_at_once(len(self.classes), size, solid=False)
        logits = torch.cat([self.network(part) for part in torch.split(squares, at_once)])
        whole = stitched(in_grid(logits.movedim(1, -1), shape)).movedim(-1, 0)
        beside = stitched(in_grid(target, shape))
        height, width = extent(stitched(in_grid(squares.movedim(1, -1), shape)), beside)
        return whole[None, :, :height, :width], beside[None, :height, :width]


def in_grid(tiles: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(R * C, S, S, ...) -> (R, C, S, S, ...)."""
    return tiles.reshape(*shape, *tiles.shape[1:])


def stitched(tiles: Tensor) -> Tensor:
    """(R, C, S, S, ...) -> (R * S, C * S, ...)."""
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def extent(image: Tensor, mask: Tensor) -> tuple[int, int]:
    """Height and width of an image (H, W, C) without the black and ignored rest of its last tiles; at least 1."""
    used = (mask != IGNORE) | (image != 0).any(dim=-1)
    sides = (torch.nonzero(used.any(dim=1 - axis)) for axis in (0, 1))
    height, width = (int(side[-1]) + 1 if len(side) else 1 for side in sides)
    return height, width
