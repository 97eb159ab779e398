"""Layers by the number of spatial dimensions, for blocks that are written once for images and for volumes."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Layers(NamedTuple):
    """Layers of a block; each entry takes the arguments of torch's own class."""

    convolution: Any
    transposed: Any
    norm: Any
    max_pool: Any


LAYERS: dict[int, Layers] = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d),
}

CHANNELS = {2: 3, 3: 1}  # of what goes in: colour images, grey volumes
