"""Masked autoencoder on a U-Net (P2): part of the pixels is black, the whole original is to be restored.

He et al.: "Masked autoencoders are scalable vision learners", CVPR 2022, whose loss on masked patches alone is a
setting here; P2 takes it over the whole image. A patch is black before the first convolution, so the network sees where
masks are only by their colour, as in P2 (SparK, Tian et al. 2023, is the principled form for convolutions).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.models.interface import Decoder, Encoder, pixel_head, resized
from pretune.trainables.upload import upload

CPU = torch.device("cpu")


def lowest(draws: NDArray[Any], share: float) -> NDArray[np.bool_]:
    """Return which of the draws (B, n) in [0, 1) are the round(share * n) lowest of their row."""
    count = round(share * draws.shape[1])
    chosen = np.zeros(draws.shape, np.bool_)
    if count:
        np.put_along_axis(chosen, np.argpartition(draws, count - 1, axis=1)[:, :count], True, axis=1)
    return chosen


def lowest_here(draws: Tensor, share: float) -> Tensor:
    """`lowest` where the draws are."""
    count = round(share * draws.shape[1])
    places = draws.topk(count, dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(draws, dtype=torch.bool).scatter_(1, places, True)


def patch_count(size: int, patch: int) -> int:
    """Patches per side; where the size is no multiple, the last row and column are cut off by the image's edge."""
    return -(-size // patch)


def patch_mask(draws: NDArray[Any], share: float, patch: int, size: int, device: torch.device = CPU) -> Tensor:
    """Whole patches of a grid from the top left corner: draws (B, patch_count^2) -> (B, 1, size, size) bool."""
    side = patch_count(size, patch)
    cells = upload(lowest(draws, share), device).view(-1, 1, side, side)
    return cells.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :size, :size]


def restoration_error(restored: Tensor, original: Tensor, mask: Tensor | None = None, world: World = ALONE) -> Tensor:
    """Mean squared error over all pixels, or over those of `mask` (B, 1, S, S); images (B, C, S, S); in float32.

    With a mask it is over all workers' pixels: each has a number of its own.
    """
    error = (restored.float() - original.float()).square()
    if mask is None:
        return error.mean()
    return world.sum((error * mask).sum()) / (world.sum(mask.sum()) * error.shape[1]).clamp(min=1)


def constant_error(original: Tensor, world: World = ALONE) -> Tensor:
    """The error of the best answer that is the same everywhere: the variance of each channel, averaged.

    Of several workers' images: the mean of their variances, and the variance of their means.
    """
    variance, mean = torch.var_mean(original.float(), dim=(0, *range(2, original.ndim)), correction=0)
    return (world.mean(variance) + world.mean((mean - world.mean(mean)).square())).mean()


class MAE(nn.Module):
    """Encoder, decoder, and a 1x1 convolution to colours without activation."""

    requirements = frozenset(schema.MAE.facts.requires)

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        views: schema.Views,
        *,
        masking: str,
        ratio: float,
        patch: int,
        loss_on: str,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.output = pixel_head(decoder, encoder.channels)
        self.recipes = (views,)
        self.masking, self.ratio, self.patch, self.loss_on = masking, ratio, patch, loss_on

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """One view of (B, 3, S, S) -> the loss, and the errors it is made of."""
        original = batch.views[0].pixels
        mask = self.mask(batch)
        restored = self.output(self.decoder(self.encoder(original.masked_fill(mask, 0.0))))
        restored = resized(restored, (original.shape[-2], original.shape[-1]))
        loss = restoration_error(restored, original, None if self.loss_on == "all" else mask, batch.world)
        if not batch.diagnosed:
            return loss, {}
        whole, masked = (restoration_error(restored.detach(), original, of, batch.world) for of in (None, mask))
        relative = whole / constant_error(original, batch.world).clamp(min=1e-8)
        return loss, {"error": whole, "masked_error": masked, "loss_over_uniform": relative}

    def mask(self, batch: Batch) -> Tensor:
        """Return the black pixels: (B, 1, S, S) bool, by draws that depend on the image alone."""
        pixels = batch.views[0].pixels
        (count, _, size, _), device = pixels.shape, pixels.device
        if self.masking == "patches":
            draws = batch.draw("mask", patch_count(size, self.patch) ** 2)
            return patch_mask(draws, self.ratio, self.patch, size, device)
        if self.masking == "pixels" and batch.draw_here is not None:
            return lowest_here(batch.drawn("mask", size * size), self.ratio).view(count, 1, size, size)
        if self.masking == "pixels":
            return upload(lowest(batch.draw("mask", size * size), self.ratio), device).view(count, 1, size, size)
        return torch.zeros(count, 1, size, size, dtype=torch.bool, device=device)

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def build_mae(method: schema.MAE, views: schema.Views, parts: Parts) -> MAE:
    return MAE(
        parts.encoder,
        parts.decoder(),
        views,
        masking=method.masking,
        ratio=method.ratio,
        patch=method.patch,
        loss_on=method.loss_on,
    )
