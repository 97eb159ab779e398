"""Volumes for pretraining and fine-tuning: whole, in [0, 1], mirrored along any axis or not at all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.upload import upload
from pretune.trainables.views.random import FloatArray, IntArray, uniforms

FLIPS = 3  # at most, in Models Genesis
MIRROR_DRAWS = 2 * FLIPS


def voxels(volumes: Tensor) -> Tensor:
    """uint8 (B, D, H, W, C) -> float32 (B, C, D, H, W) in [0, 1], channels last in memory."""
    return volumes.permute(0, 4, 1, 2, 3).float().div_(255)


def evaluation_batch(volumes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (B, D, H, W, 1) and (B, D, H, W) -> float32 (B, 1, D, H, W) in [0, 1] and int64 (B, D, H, W)."""
    if volumes.dtype != torch.uint8 or masks.shape != volumes.shape[:-1]:
        expected = tuple(volumes.shape[:-1])
        raise ValueError(f"volumes must be uint8 and masks {expected}, got {volumes.dtype} and {tuple(masks.shape)}")
    return voxels(volumes), masks.long()


def fine_tune_batch(
    volumes: Tensor, masks: Tensor, indices: IntArray, settings: schema.Augment, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """The same, each volume mirrored along each of its three axes with the chance `settings.flip`."""
    if settings.flip > 0:
        mirrored = uniforms(seed, "joint/flip", epoch, indices, 0, 3) < settings.flip
        volumes, masks = mirror(volumes, mirrored, 1), mirror(masks, mirrored, 1)
    return evaluation_batch(volumes, masks)


def mirror(x: Tensor, mirrored: NDArray[np.bool_], first: int) -> Tensor:
    """Samples of x (B, ...) reversed along axis first + k where `mirrored` (B, axes) says so."""
    for k, chosen in enumerate(mirrored.T):
        if chosen.any():
            which = upload(chosen, x.device).reshape(-1, *[1] * (x.ndim - 1))
            x = torch.where(which, x.flip(first + k), x)
    return x


def drawn_mirrors(draws: FloatArray, chance: float, axes: int) -> NDArray[np.bool_]:
    """Models Genesis' mirroring, (B, axes), from draws (B, MIRROR_DRAWS).

    Up to three flips, one after the other while `chance` comes true, each along an axis of its own draw; a second one
    along the same axis undoes the first.
    """
    going_on = np.logical_and.accumulate(draws[:, :FLIPS] < chance, axis=1)
    along = np.floor(draws[:, FLIPS:] * axes).astype(np.int64)
    counts = (going_on[:, :, None] & (along[:, :, None] == np.arange(axes))).sum(axis=1)
    mirrored: NDArray[np.bool_] = counts % 2 == 1
    return mirrored
