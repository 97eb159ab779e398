"""ResNet encoders with two decoders: a U-Net's (P3, P4, P5) and P1's five convolutions without skips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.models import interface
from pretune.trainables.models.unet import convolutions

WIDTHS = {
    18: (64, 64, 128, 256, 512),
    34: (64, 64, 128, 256, 512),
    50: (64, 256, 512, 1024, 2048),
}
STRIDES = {"imagenet": (2, 4, 8, 16, 32), "cifar": (1, 1, 2, 4, 8)}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # of each stage
CLASSES = 1000  # of the classifier that torchvision draws and that is not kept


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left), with torchvision's names."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, width, H / stride, W / stride)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as in torchvision) and 1x1 convolutions and a shortcut (figure 5 right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Body(nn.Module):
    """torchvision's ResNet without its classifier: the same names, and the same weights from the same random numbers.

    torchvision itself is not imported: it takes three seconds, most of them torch's compiler.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        block = Bottleneck if depth == 50 else BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for k, (count, width) in enumerate(zip(BLOCKS[depth], (64, 128, 256, 512), strict=True)):
            self.add_module(f"layer{k + 1}", _stage(block, inputs, width, count, 1 if k == 0 else 2))
            inputs = width * block.expansion
        nn.Linear(inputs, CLASSES)  # draws its random numbers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(block: type[BasicBlock | Bottleneck], inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    """Blocks at one resolution; the first has the stride, and a shortcut by convolution where shapes change."""
    outputs, downsample = width * block.expansion, None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, width, stride, downsample)
    return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(count - 1)))


class Encoder(interface.Encoder):
    """torchvision's ResNet without its classifier, under torchvision's names, so that its weights load as they are.

    Five maps: of the stem before pooling, and of the four stages. The CIFAR stem is a 3x3 convolution with stride 1 and
    no pooling (SimCLR, appendix B.9).
    """

    def __init__(self, depth: int, stem: str = "imagenet", channels: int = 3) -> None:
        super().__init__()
        body: Any = Body(depth)
        self.widths = WIDTHS[depth]
        self.strides = STRIDES[stem]
        self.channels = channels
        self.conv1, self.bn1 = body.conv1, body.bn1
        if stem == "cifar":
            self.conv1 = _first_convolution(channels, 3, stride=1)
        elif channels != 3:
            self.conv1 = _first_convolution(channels, 7, stride=2)
        self.pool = body.maxpool if stem == "imagenet" else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) -> five maps, (B, widths[k], H / strides[k], W / strides[k])."""
        stem = F.relu(self.bn1(self.conv1(x)))
        features = [stem]
        x = self.pool(stem)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

    def segments(self) -> Sequence[nn.Module]:
        """The residual blocks."""
        return [block for layer in (self.layer1, self.layer2, self.layer3, self.layer4) for block in layer]


def _first_convolution(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """With torchvision's initialisation."""
    convolution = nn.Conv2d(channels, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


class UpBlock(nn.Module):
    """Nearest up-sampling by `factor`, the skip beside it where there is one, two 3x3 convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.takes_skip = skip > 0
        self.level = convolutions(inputs + skip, outputs, 2, norm=True)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, inputs, H, W) and (B, skip, f H, f W) -> (B, outputs, f H, f W)."""
        x = F.interpolate(x, scale_factor=self.factor, mode="nearest") if self.factor > 1 else x
        finer: Tensor = self.level(torch.cat([x, skip], dim=1) if skip is not None and self.takes_skip else x)
        return finer


class UNetDecoder(interface.Decoder):
    """A block per resolution of the encoder; a last one without skip where the encoder's finest map is not full size.

    Args:
        widths, strides: of the encoder, finest first.
        outputs: channels after each block, the coarsest first; the last that are not needed are excluded.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], outputs: Sequence[int], skip_connections: bool
    ) -> None:
        super().__init__()
        skips = [w if skip_connections else 0 for w in reversed(widths[:-1])] + [0]
        factors = [a // b for a, b in pairwise([*reversed(strides), 1])]
        steps = list(zip(skips, factors, outputs, strict=True))[: len(strides) if strides[0] > 1 else -1]
        inputs = [widths[-1], *outputs]
        self.blocks = nn.ModuleList(UpBlock(i, s, o, f) for i, (s, f, o) in zip(inputs, steps, strict=False))
        self.width = steps[-1][2]
        self.head_kernel = 1

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps of the encoder, finest first -> (B, width, H, W)."""
        return interface.decode(self, features)


class ConvolutionThenUp(nn.Module):
    """3x3 convolution, ReLU, bilinear up-sampling by `factor` with aligned corners. Looks at no skip."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, f H, f W)."""
        x = F.relu(self.convolution(x))
        return interface.resized(x, (self.factor * x.shape[-2], self.factor * x.shape[-1]), align_corners=True)


class FiveConvolutions(interface.Decoder):
    """P1's head but for its last convolution, which is the prediction's: four, each followed by up-sampling.

    Three doublings, and one from an eighth to the size of the image (authors' code, `u_models.py`).
    """

    def __init__(self, width: int, outputs: Sequence[int] = (256, 128, 64, 32)) -> None:
        super().__init__()
        pairs = zip(pairwise((width, *outputs)), (2, 2, 2, 4), strict=True)
        self.blocks = nn.ModuleList(ConvolutionThenUp(i, o, factor) for (i, o), factor in pairs)
        self.width = outputs[-1]
        self.head_kernel = 3

    def forward(self, features: list[Tensor]) -> Tensor:
        """The coarsest of the encoder's maps, (B, width, H / 32, W / 32) -> (B, 32, H, W)."""
        return interface.decode(self, features)


def resnet_encoder(model: schema.ResNetUNet | schema.ResNetHead) -> Encoder:
    stem = model.stem if isinstance(model, schema.ResNetUNet) else "imagenet"
    return Encoder(model.depth, stem, schema.channels_of(model))


def resnet_unet_decoder(model: schema.ResNetUNet) -> UNetDecoder:
    return UNetDecoder(WIDTHS[model.depth], STRIDES[model.stem], model.decoder_widths, model.skip_connections)


def resnet_head_decoder(model: schema.ResNetHead) -> FiveConvolutions:
    return FiveConvolutions(WIDTHS[model.depth][-1])
