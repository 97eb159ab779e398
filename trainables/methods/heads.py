"""Heads that several methods share, all on global average pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretune.trainables.models.interface import Encoder


def pooled(features: list[Tensor], levels: int = 1) -> Tensor:
    """The coarsest `levels` of an encoder's features, (B, C, H, W) each -> (B, sum of C), the coarsest first."""
    return torch.cat([one.mean(dim=(2, 3)) for one in reversed(features[-levels:])], dim=1)


def pooled_width(encoder: Encoder, levels: int) -> int:
    """Channels of `pooled`. Raises ValueError where the encoder has fewer levels."""
    if levels > len(encoder.widths):
        raise ValueError(f"projection_levels {levels}: this encoder has {len(encoder.widths)} levels")
    return sum(encoder.widths[-levels:])


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear - BN - ReLU - Linear without bias: BYOL's projector and predictor (deepmind-research)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=False),
    )
