"""Features of a stored encoder, without augmentation: what every probe starts from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.distributed import ALONE, World
from pretune.trainables.loop import DivergedError, IntArray, Lookup, layout
from pretune.trainables.models.interface import Encoder
from pretune.trainables.models.table import build_encoder

PROBE_SEED = 0  # of the order of images; a probe has no seed of its own: equal encoders get equal numbers


def load_encoder(model: schema.Model, weights: Path, device: torch.device) -> Encoder:
    """Encoder of a stored stage, in eval mode."""
    encoder = build_encoder(model)
    checkpoints.load_part(encoder, weights, "encoder")
    encoder.to(device).to(memory_format=layout(encoder))
    return encoder.eval()


def embed(encoder: nn.Module, feed: Lookup, images: IntArray, size: int, world: World = ALONE) -> Tensor:
    """L2-normalised `pooled_features` (N, C)."""
    return F.normalize(pooled_features(encoder, feed, images, size, world), dim=1)


@torch.no_grad()
def pooled_features(encoder: nn.Module, feed: Lookup, images: IntArray, size: int, world: World = ALONE) -> Tensor:
    """Global average pooled features (N, C) of the coarsest level, in eval mode; every worker does its part.

    Raises DivergedError where they are not finite: every vote and argmax would quietly be for class 0.
    """
    encoder.eval()
    if len(images) < world.size:  # some would have none
        world = ALONE
    own = world.part(np.arange(len(images)))
    batches = np.array_split(images[own], math.ceil(len(own) / 256))
    features = torch.cat([encoder(pixels_of(feed, batch, size))[-1].mean(dim=(2, 3)) for batch in batches])
    if world.size > 1:
        everyone = features.new_zeros((len(images), features.shape[1]))
        everyone[torch.from_numpy(own).to(features.device)] = features
        features = world.sum(everyone)
    if not torch.isfinite(features).all():
        raise DivergedError("features", 0, math.nan)
    return features


def pixels_of(feed: Lookup, images: IntArray, size: int) -> Tensor:
    """Whole images (B, 3, size, size) in [0, 1], resized with antialiasing, channels_last."""
    pixels = feed(images).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return pixels.contiguous(memory_format=torch.channels_last)
