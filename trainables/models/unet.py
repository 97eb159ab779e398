"""P2's U-Net, from small blocks to the whole: an encoder that any method can train, and a decoder over it.

P2 gives widths 32-64-128-256, ReLU and transposed convolutions; the convolutions per level and batch norm are our
reading of "U-Net" (both are settings).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def convolutions(inputs: int, outputs: int, count: int, norm: bool) -> nn.Sequential:
    """`count` 3x3 convolutions, each with batch norm (if asked) and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers.append(nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Levels of convolutions with 2x2 max pooling between them.

    Args:
        widths: channels of each level, the finest first.
        count: convolutions per level.
        norm: batch norm after each convolution.
    """

    def __init__(self, widths: Sequence[int], count: int = 2, norm: bool = True) -> None:
        super().__init__()
        inputs = [3, *widths[:-1]]
        self.widths = tuple(widths)
        self.levels = nn.ModuleList(convolutions(i, o, count, norm) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one feature map per level, (B, widths[k], H / 2^k, W / 2^k)."""
        features: list[Tensor] = []
        for k, level in enumerate(self.levels):
            x = level(x if k == 0 else self.pool(x))
            features.append(x)
        return features


class Decoder(nn.Module):
    """Transposed convolutions back to full resolution; with skips, each level also sees the encoder's features."""

    def __init__(self, widths: Sequence[int], skip_connections: bool, count: int = 2, norm: bool = True) -> None:
        super().__init__()
        coarse_to_fine = list(reversed(widths))
        pairs = list(pairwise(coarse_to_fine))
        self.skip_connections = skip_connections
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
        self.levels = nn.ModuleList(convolutions(2 * o if skip_connections else o, o, count, norm) for _, o in pairs)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder, finest first -> (B, widths[0], H, W)."""
        x = features[-1]
        for up, level, skip in zip(self.ups, self.levels, reversed(features[:-1]), strict=True):
            x = up(x)
            x = level(torch.cat([skip, x], dim=1) if self.skip_connections else x)
        return x


class UNet(nn.Module):
    """Encoder, decoder and a 1x1 convolution to `classes` logits per pixel."""

    def __init__(self, encoder: Encoder, decoder: Decoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = nn.Conv2d(encoder.widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, classes, H, W). H and W are multiples of 2^(levels - 1)."""
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return logits
