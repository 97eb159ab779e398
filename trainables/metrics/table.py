"""Scores that need more than pixel counts: a setting of fine-tuning -> who computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.distributed import World
from pretune.trainables.metrics.boundary import BoundaryScorer
from pretune.trainables.metrics.probabilities import ProbabilityScorer


class Scorer(Protocol):
    """Scores of one split, added up batch by batch; one is built for every evaluation."""

    def add(self, rows: slice, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits (B, C, ...) and target (B, ...) of the images `rows` of the split.

        Tiles come put together, as the image that they were cut from.
        """

    def scores(self, world: World) -> dict[str, float]:
        """Scores by their names without the split, from the batches of all workers (`world.sum`)."""


# The arguments are the setting's value, names of classes, number of images, device.
SCORERS: dict[str, Callable[[Any, Sequence[str], int, torch.device], Scorer]] = {
    "threshold_scores": ProbabilityScorer,
    "boundary_tolerance": BoundaryScorer,
}

Build = Callable[[Sequence[str], int, torch.device], Scorer]


def extra_scorers(settings: schema.Finetune) -> tuple[Build, ...]:
    """Builders of the scorers that a fine-tuning asks for."""
    asked = {name: getattr(settings, name) for name in SCORERS}
    return tuple(partial(SCORERS[name], value) for name, value in asked.items() if value not in (None, False))
