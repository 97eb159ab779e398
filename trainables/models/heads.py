"""Projection heads: from pooled features to the space in which a contrastive loss compares."""

from __future__ import annotations

from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """SimCLR's head on global average pooled features: Linear - BN - ReLU - Linear (Chen et al. 2020, section 4.2).

    Without `norm` Linear - ReLU - Linear, as the text of P1 has it.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden, bias=not norm),
            *([nn.BatchNorm1d(hidden)] if norm else []),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs)."""
        projected: Tensor = self.layers(features.mean(dim=(2, 3)))
        return projected
