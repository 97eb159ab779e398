"""Simple feature pyramid over the one map of a plain transformer, and a light decoder over the pyramid.

Li et al.: "Exploring plain vision transformer backbones for object detection", ECCV 2022 (ViTDet); layers of a level
and their order are those of its public code (detectron2, `SimpleFeaturePyramid`). Its coarsest level, at half the map's
resolution, serves to detect large objects and is left out: sizes stay multiples of the patch alone. Levels are added up
at the finest resolution, a quarter of the patch (Kirillov et al.: "Panoptic feature pyramid networks", CVPR 2019), and
logits are resized to the image from there. Norms are layer norms, as in the transformer: no statistics of batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.models import interface
from pretune.trainables.models.timm_unet import backbone_of, levels

SCALES = (4, 2, 1)  # times the resolution of the map, the finest first


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place, (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution without bias and layer norm: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), ChannelNorm(outputs, eps=1e-6)
    )


def level(inputs: int, width: int, scale: int) -> nn.Sequential:
    """A level of the pyramid: (B, inputs, h, w) -> (B, width, scale h, scale w)."""
    modules: list[nn.Module] = []
    if scale == 4:
        modules += [nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2), ChannelNorm(inputs // 2, eps=1e-6), nn.GELU()]
        modules.append(nn.ConvTranspose2d(inputs // 2, inputs // 4, 2, stride=2))
    elif scale == 2:
        modules.append(nn.ConvTranspose2d(inputs, inputs // 2, 2, stride=2))
    channels = inputs // scale
    return nn.Sequential(*modules, convolution(channels, width, 1), convolution(width, width, 3))


class Pyramid(nn.Module):
    """All levels, added up at the resolution of the finest."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(level(inputs, width, scale) for scale in SCALES)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, inputs, h, w) -> (B, width, 4 h, 4 w)."""
        maps = [one(x) for one in self.levels]
        size = (maps[0].shape[-2], maps[0].shape[-1])
        return torch.stack([interface.resized(one, size) for one in maps]).sum(dim=0)


class Refinement(nn.Module):
    """A 3x3 convolution, layer norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return F.relu(self.convolution(x))


class Decoder(interface.Decoder):
    """Pyramid and refinement, over the last of the encoder's maps.

    Args:
        inputs: channels of the map.
        pyramid_width: channels of each level of the pyramid.
        width: channels of what masks are predicted from.
    """

    def __init__(self, inputs: int, pyramid_width: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Pyramid(inputs, pyramid_width), Refinement(pyramid_width, width)])
        self.width = width
        self.head_kernel = 1

    def forward(self, features: list[Tensor]) -> Tensor:
        """The encoder's map (B, inputs, h, w) -> (B, width, 4 h, 4 w)."""
        return interface.decode(self, features)


def vit_decoder(model: schema.ViTPyramid) -> Decoder:
    return Decoder(levels(backbone_of(model)).widths[-1], model.pyramid_width, model.decoder_width)
