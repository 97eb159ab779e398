"""ConRec's U-Net, and the attention pooling that goes with it.

Dippel, Vogler, Höhne: "Towards fine-grained visual representations by combining contrastive learning with image
reconstruction and attention-weighted pooling", 2021, and their public code (contrastive-reconstruction,
`models/conrec.py`), whose initialisation and batch norm constants are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.models import interface

TINY = torch.finfo(torch.float32).tiny  # a mask of zeros pools to zeros, and not to NaN


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution with bias, batch norm, ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        glorot(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def glorot(layer: nn.Conv2d) -> nn.Conv2d:
    """Keras' initialisation of a convolution: Glorot uniform, bias 0."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, outputs, 3), convolution(outputs, outputs, 3))


class Encoder(interface.Encoder):
    """Levels of two 3x3 convolutions with 2x2 max pooling between them."""

    def __init__(self, widths: Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.widths, self.channels = tuple(widths), channels
        self.strides = tuple(2**k for k in range(len(widths)))
        self.levels = nn.ModuleList(double_convolution(i, o) for i, o in pairwise((channels, *widths)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) -> one feature map per level, (B, widths[k], H / 2^k, W / 2^k)."""
        features: list[Tensor] = []
        for k, level in enumerate(self.levels):
            x = level(x if k == 0 else F.max_pool2d(x, 2))
            features.append(x)
        return features

    def segments(self) -> Sequence[nn.Module]:
        return list(self.levels)


class UpBlock(nn.Module):
    """Nearest up-sampling, the skip through a 1x1 convolution, two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, skip_connections: bool) -> None:
        super().__init__()
        self.skip = convolution(outputs, outputs, 1) if skip_connections else None
        self.level = double_convolution(inputs + (outputs if skip_connections else 0), outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, outputs, 2H, 2W) -> (B, outputs, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        finer: Tensor = self.level(x if self.skip is None else torch.cat([x, self.skip(skip)], dim=1))
        return finer


class Decoder(interface.Decoder):
    """One `UpBlock` for each level but the coarsest."""

    def __init__(self, widths: Sequence[int], skip_connections: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(UpBlock(i, o, skip_connections) for i, o in pairwise(reversed(widths)))
        self.width = widths[0]
        self.head_kernel = 1

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder, finest first -> (B, widths[0], H, W)."""
        return interface.decode(self, features)


class AttentionPooling(nn.Module):
    """Pooling weighted by a learned mask m: GAP(f m) / GAP(m), f (B, C, H, W) -> (B, C).

    m = sigmoid of 1x1 convolutions C/2, C/4, C/8 (batch norm and ReLU each) and 1, on features of which half are
    dropped. The public code spreads m over the channels by a 1x1 convolution of C ones that is not trained; the C ones
    stand here as `spread`, so that parameter counts agree, and cancel in the quotient.
    """

    dropout = 0.5

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, width // 2, width // 4, width // 8)
        if not widths[-1]:
            raise ValueError(f"pooling: attention needs 8 channels or more, and the coarsest level has {width}")
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [glorot(nn.Conv2d(i, o, 1)), nn.BatchNorm2d(o, eps=1e-3, momentum=0.01), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, glorot(nn.Conv2d(widths[-1], 1, 1)), nn.Sigmoid())
        self.spread = nn.Parameter(torch.ones(width, 1, 1), requires_grad=False)

    def forward(self, features: Tensor, draws: Tensor | None = None) -> Tensor:
        """`draws` (B, C, H, W) in [0, 1) decide what is dropped while training; without them nothing is."""
        kept = features
        if self.training and draws is not None:
            kept = features * (draws >= self.dropout) / (1 - self.dropout)
        mask = self.layers(kept).float() * self.spread  # B, C, H, W
        pooled: Tensor = (features * mask).mean(dim=(2, 3)) / mask.mean(dim=(2, 3)).clamp(min=TINY)
        return pooled


def conrec_encoder(model: schema.ConRecUNet) -> Encoder:
    return Encoder(model.widths, schema.channels_of(model))


def conrec_decoder(model: schema.ConRecUNet) -> Decoder:
    return Decoder(model.widths, model.skip_connections)
