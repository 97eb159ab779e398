"""Pictures of what an encoder sees: its features in three colours, and what is like a chosen place (P5, Figure 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def similarity_map(features: Tensor, row: int, column: int) -> Tensor:
    """Cosine of every place's features with those of one place: (C, h, w) -> (h, w) in [-1, 1].

    Raises ValueError for a place outside the map.
    """
    height, width = features.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"row and column must lie in the {height} x {width} map, got {row}, {column}")
    unit = F.normalize(features.double(), dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])


def pca_map(features: Tensor) -> Tensor:
    """The first three principal components of the features of all places, as red, green and blue.

    (B, C, h, w), C >= 3 -> (B, 3, h, w) in [0, 1], each component scaled to its own range over the batch; of the two
    directions of a component, that with the largest loading positive. A component without variation is 0.
    """
    batch, channels, height, width = features.shape
    if channels < 3:
        raise ValueError(f"three components need at least 3 channels, got {channels}")
    x = features.double().permute(0, 2, 3, 1).reshape(-1, channels)
    x = x - x.mean(dim=0)
    axes = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)  # C, 3, the strongest first
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    scores = x @ (axes * largest.sign())
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    varies = high - low > 1e-9 * x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    scaled = torch.where(varies, (scores - low) / torch.where(varies, high - low, 1), 0)
    return scaled.reshape(batch, height, width, 3).permute(0, 3, 1, 2)
