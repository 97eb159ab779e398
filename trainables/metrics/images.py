"""Mean Jaccard and Dice of single images (average: `image`), the habit of medical papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretune.search_spaces.metrics import RATIOS
from pretune.trainables.distributed import World
from pretune.trainables.metrics.segmentation import confusion_by_image, hits_truth_predicted

NAMES = {"jaccard_images": "jaccard", "dice_images": "dice"}  # score -> its ratio of pixel counts


class ImageScorer:
    """jaccard_images and dice_images of a split, and those of each class.

    An image's score is the mean over the classes that occur in its truth or prediction; the split's is the mean over
    images with a pixel that counts. A class's is the mean over the images in which it occurs.
    """

    def __init__(self, _: bool, classes: Sequence[str], images: int, device: torch.device) -> None:
        self._classes = tuple(classes)
        # Of each ratio: sums over images of each class's score and of the mean, and how many images these are.
        self._sums = torch.zeros((len(NAMES), 2, len(classes) + 1), dtype=torch.float64, device=device)

    def add(self, rows: slice, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits (B, C, ...) and target (B, ...)."""
        confusion, _ = confusion_by_image(logits.argmax(dim=1), target, len(self._classes))
        counts = hits_truth_predicted(confusion).double()  # B, C, 3
        occurs = (counts[..., 1] + counts[..., 2] > 0).double()
        scored = (occurs.sum(1, keepdim=True) > 0).double()
        for number, name in enumerate(NAMES.values()):
            above, below = RATIOS[name](*counts.unbind(-1))
            values = above / below.clamp(min=1)  # 0 for a class that does not occur
            means = values.sum(1, keepdim=True) / occurs.sum(1, keepdim=True).clamp(min=1)
            self._sums[number, 0] += torch.cat([values, means], dim=1).sum(0)
            self._sums[number, 1] += torch.cat([occurs, scored], dim=1).sum(0)

    def scores(self, world: World) -> dict[str, float]:
        """Means over the images of all workers; a class that occurs in none has no score."""
        found: dict[str, float] = {}
        for name, (sums, counts) in zip(NAMES, world.sum(self._sums).tolist(), strict=True):
            labels = [*(f"{name}/{label}" for label in self._classes), name]
            found |= {label: total / n for label, total, n in zip(labels, sums, counts, strict=True) if n}
        return found
