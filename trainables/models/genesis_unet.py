"""The U-Net of Models Genesis (P3's Table 3), in two or three dimensions.

Zhou et al.: "Models Genesis: generic autodidactic models for 3D medical image analysis", MICCAI 2019, and their public
code (`keras/unet3d.py`): four levels, the first convolution of each with half its width; nearest up-sampling, and the
skip beside it; batch norm and ReLU after every convolution. Their PyTorch port has transposed convolutions in place of
nearest up-sampling. Initialisation and batch norm constants are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.models import interface
from pretune.trainables.models.dimensions import CHANNELS, LAYERS


def level(inputs: int, middle: int, outputs: int, dimensions: int) -> nn.Sequential:
    """Two convolutions of side 3, each with batch norm and ReLU: (B, inputs, ...) -> (B, outputs, ...)."""
    layers = LAYERS[dimensions]
    modules: list[nn.Module] = []
    for i, o in ((inputs, middle), (middle, outputs)):
        modules += [layers.convolution(i, o, 3, padding=1), layers.norm(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules)


class Encoder(interface.Encoder):
    """Levels with max pooling of side 2 between them.

    Args:
        widths: channels that each level ends with, the finest first (published: 64, 128, 256, 512).
        dimensions: 2 for colour images, 3 for grey volumes.
    """

    def __init__(self, widths: Sequence[int], dimensions: int) -> None:
        super().__init__()
        self.widths, self.channels = tuple(widths), CHANNELS[dimensions]
        self.strides = tuple(2**k for k in range(len(widths)))
        steps = pairwise((CHANNELS[dimensions], *widths))
        self.levels = nn.ModuleList(level(i, o // 2, o, dimensions) for i, o in steps)
        self.pool = LAYERS[dimensions].max_pool(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 1, D, H, W), or (B, 3, H, W) -> one map per level, each half as long in every direction."""
        features: list[Tensor] = []
        for k, convolutions in enumerate(self.levels):
            x = convolutions(x if k == 0 else self.pool(x))
            features.append(x)
        return features

    def segments(self) -> Sequence[nn.Module]:
        return list(self.levels)


class UpBlock(nn.Module):
    """To twice the resolution, the skip beside it, and two convolutions."""

    def __init__(self, inputs: int, outputs: int, dimensions: int, up: str, skip_connections: bool) -> None:
        super().__init__()
        nearest = up == "nearest"
        self.up = nn.Upsample(scale_factor=2) if nearest else LAYERS[dimensions].transposed(inputs, inputs, 2, stride=2)
        self.level = level(inputs + (outputs if skip_connections else 0), outputs, outputs, dimensions)
        self.skip_connections = skip_connections

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, ...) and (B, outputs, ...), twice as long in every direction -> the size of the latter."""
        x = self.up(x)
        finer: Tensor = self.level(torch.cat([x, skip], dim=1) if self.skip_connections else x)
        return finer


class Decoder(interface.Decoder):
    """One `UpBlock` for each level but the coarsest. `up`: nearest (Keras) or transposed (the PyTorch port)."""

    def __init__(self, widths: Sequence[int], dimensions: int, up: str, skip_connections: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            UpBlock(i, o, dimensions, up, skip_connections) for i, o in pairwise(reversed(widths))
        )
        self.width = widths[0]
        self.head_kernel = 1
        self.dimensions = dimensions

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder, finest first -> (B, widths[0], ...)."""
        return interface.decode(self, features)


def genesis_encoder(model: schema.GenesisUNet) -> Encoder:
    return Encoder(model.widths, model.dimensions)


def genesis_decoder(model: schema.GenesisUNet) -> Decoder:
    return Decoder(model.widths, model.dimensions, model.up, model.skip_connections)
