"""Output of a restoring method for the images that it is shown: for looking at (P2, Figure 2), never for training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pretune.trainables.methods.conrec import ConRec, Reconstruction, corrupted
from pretune.trainables.methods.genesis import Genesis
from pretune.trainables.methods.mae import MAE
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.models.interface import resized

TASK = "reconstruction"
Restoring = MAE | Genesis | Reconstruction | ConRec


class Restored(NamedTuple):
    """Float32 (B, 3, S, S), or (B, 1, D, S, S) of volumes, in about [0, 1]; MAE's output is not bounded."""

    original: Tensor
    shown: Tensor  # masked or corrupted
    output: Tensor


@torch.no_grad()
def restored(method: Restoring, batch: Batch) -> Restored:
    """The first view of a batch, what the network was given of it, and what it restored.

    Raises ValueError for a method that was not trained to restore the view itself.
    """
    if isinstance(method, Genesis):
        target, shown = method.pair(batch)
        return Restored(target, shown, method.restore(shown))
    original, shown = batch.views[0].pixels, given(method, batch)[0]
    if isinstance(method, MAE):
        output = resized(method.output(method.decoder(method.encoder(shown))), _size(original))
        return Restored(original, shown, output.float())
    if TASK not in method.heads.tasks:
        raise ValueError(f"this method has no task {TASK!r}, it has {', '.join(method.heads.tasks)}")
    output = method.heads(method.decoder, method.encoder(shown), _size(original))[TASK]
    return Restored(original, shown, output)


def given(method: Restoring, batch: Batch) -> tuple[Tensor, ...]:
    """Views as the network is shown them, to restore them from: (B, 3, S, S), masked or corrupted."""
    if isinstance(method, Genesis):
        return (method.pair(batch)[1],)
    if isinstance(method, MAE):
        original = batch.views[0].pixels
        return (original.masked_fill(method.mask(batch), 0.0),)
    return corrupted(batch).pixels.chunk(len(batch.views))


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
