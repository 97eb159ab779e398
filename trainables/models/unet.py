"""P2's U-Net, from small blocks to the whole: an encoder that any method can train, and a decoder over it.

P2 gives widths 32-64-128-256, ReLU and transposed convolutions; the convolutions per level and batch norm are our
reading of "U-Net" (both are settings).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.models import interface


def convolutions(inputs: int, outputs: int, count: int, norm: bool) -> nn.Sequential:
    """`count` 3x3 convolutions, each with batch norm (if asked) and ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers.append(nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Encoder(interface.Encoder):
    """Levels of convolutions with 2x2 max pooling between them.

    Args:
        widths: channels of each level, the finest first.
        count: convolutions per level.
        norm: batch norm after each convolution.
        channels: of the images.
    """

    def __init__(self, widths: Sequence[int], count: int = 2, norm: bool = True, channels: int = 3) -> None:
        super().__init__()
        inputs = [channels, *widths[:-1]]
        self.channels = channels
        self.widths = tuple(widths)
        self.strides = tuple(2**k for k in range(len(widths)))
        self.levels = nn.ModuleList(convolutions(i, o, count, norm) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) -> one feature map per level, (B, widths[k], H / 2^k, W / 2^k)."""
        features: list[Tensor] = []
        for k, level in enumerate(self.levels):
            x = level(x if k == 0 else self.pool(x))
            features.append(x)
        return features

    def segments(self) -> Sequence[nn.Module]:
        return list(self.levels)


class UpBlock(nn.Module):
    """A 2x2 transposed convolution to twice the resolution, then convolutions; with skips, over the skip as well."""

    def __init__(self, up: nn.Module, level: nn.Module, skip_connections: bool) -> None:
        super().__init__()
        self.up = up
        self.level = level
        self.skip_connections = skip_connections

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C', 2H, 2W) -> (B, C', 2H, 2W)."""
        x = self.up(x)
        finer: Tensor = self.level(torch.cat([skip, x], dim=1) if self.skip_connections else x)
        return finer


class Decoder(interface.Decoder):
    """Transposed convolutions back to full resolution; with skips, each level also sees the encoder's features."""

    def __init__(self, widths: Sequence[int], skip_connections: bool, count: int = 2, norm: bool = True) -> None:
        super().__init__()
        pairs = list(pairwise(reversed(widths)))  # coarse to fine
        ups = [nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs]
        levels = [convolutions(2 * o if skip_connections else o, o, count, norm) for _, o in pairs]
        self.blocks = nn.ModuleList(UpBlock(up, level, skip_connections) for up, level in zip(ups, levels, strict=True))
        self.width = widths[0]
        self.head_kernel = 1

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder, finest first -> (B, widths[0], H, W)."""
        return interface.decode(self, features)


class UNet(nn.Module):
    """Encoder, decoder and a convolution to `classes` logits per pixel."""

    def __init__(self, encoder: interface.Encoder, decoder: interface.Decoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = interface.pixel_head(decoder, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, classes, H, W). H and W are multiples of the encoder's last stride."""
        logits: Tensor = self.head(self.decoder(self.encoder(x)))
        return interface.resized(logits, (x.shape[-2], x.shape[-1]))


def unet_encoder(model: schema.UNet) -> Encoder:
    return Encoder(model.widths, model.convolutions, model.norm == "batch", schema.channels_of(model))


def unet_decoder(model: schema.UNet) -> Decoder:
    return Decoder(model.widths, model.skip_connections, model.convolutions, model.norm == "batch")
