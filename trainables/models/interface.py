"""Interface of encoders and decoders, and the few lines that all decoders share.

An encoder gives feature maps of several resolutions, the finest first. A decoder goes back up through them, one block
per step, and each block may look at the encoder's map of its own resolution (a skip connection).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.trainables.models.dimensions import LAYERS


class Segmented(nn.Module):
    """A part of a network whose activations can be computed again segment by segment (`trainables.recomputation`)."""

    def segments(self) -> Sequence[nn.Module]:
        """Modules that lie behind each other, whose activations take most of the memory. None lies in another."""
        raise NotImplementedError


class Encoder(Segmented):
    """(B, channels, H, W) -> maps, the finest first; map k is (B, widths[k], H / strides[k], W / strides[k])."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    channels: int = 3


class Decoder(Segmented):
    """An encoder's maps -> (B, width, h, w), on which a convolution of `head_kernel` px makes the final prediction.

    Each of `blocks`, the coarsest first, takes (x, skip) to a finer x; `skip` is None where the encoder has no map.
    """

    blocks: nn.ModuleList
    width: int
    head_kernel: int
    dimensions: int = 2

    def segments(self) -> Sequence[nn.Module]:
        return list(self.blocks)


def trunk(decoder: Decoder, features: list[Tensor]) -> Tensor:
    """All blocks but the last."""
    x = features[-1]
    for block, skip in zip(decoder.blocks[:-1], skips_of(decoder, features), strict=False):
        x = block(x, skip)
    return x


def decode(decoder: Decoder, features: list[Tensor]) -> Tensor:
    """All blocks."""
    x: Tensor = decoder.blocks[-1](trunk(decoder, features), skips_of(decoder, features)[-1])
    return x


def skips_of(decoder: Decoder, features: list[Tensor]) -> list[Tensor | None]:
    """The map that each block may look at, the coarsest first; None beyond the encoder's finest."""
    skips: list[Tensor | None] = [*reversed(features[:-1])]
    return (skips + [None] * len(decoder.blocks))[: len(decoder.blocks)]


def pixel_head(decoder: Decoder, outputs: int) -> nn.Module:
    """The convolution from the decoder's last features to `outputs` values per pixel or voxel."""
    convolution: nn.Module = LAYERS[decoder.dimensions].convolution(
        decoder.width, outputs, decoder.head_kernel, padding=decoder.head_kernel // 2
    )
    return convolution


def resized(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear resizing (B, C, H, W) -> (B, C, *size), equal to F.interpolate's.

    As two matrix products, since the backward pass of F.interpolate adds in no fixed order on CUDA.
    """
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    rows, columns = (_weights(n, m, align_corners, x) for n, m in ((height, size[0]), (width, size[1])))
    return rows.T @ x @ columns


def _weights(inputs: int, outputs: int, align_corners: bool, like: Tensor) -> Tensor:
    """Column j (of inputs, outputs) holds what each input contributes to output j."""
    unit = torch.eye(inputs, device=like.device)[None]
    return F.interpolate(unit, size=outputs, mode="linear", align_corners=align_corners)[0].to(like.dtype)
