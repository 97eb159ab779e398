"""Heads that several methods share, all on global average pooled features."""

from __future__ import annotations

from torch import Tensor, nn


def pooled(features: list[Tensor]) -> Tensor:
    """The coarsest level of an encoder's features, (B, C, H, W) -> (B, C)."""
    return features[-1].mean(dim=(2, 3))


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear - BN - ReLU - Linear without bias: BYOL's projector and predictor (deepmind-research)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=False),
    )
