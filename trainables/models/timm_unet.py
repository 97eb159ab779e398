"""Any backbone of timm that gives feature maps, as an encoder; the decoder is the ResNets' U-Net decoder.

timm (Wightman, "PyTorch image models") builds the backbone with `features_only=True`. Nothing is downloaded here: its
weights are random until a stage loads others.
"""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.models import interface
from pretune.trainables.models.resnet import UNetDecoder

STRIDE = 32  # every image size is a multiple of it (search_spaces: TimmUNet.stride)


class BackboneError(ValueError):
    """A name that timm does not know, or a backbone that cannot serve as an encoder; the sentence says which."""


class Levels(NamedTuple):
    """Channels and strides of a backbone's maps, the finest first."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]


class Encoder(interface.Encoder):
    """A backbone's maps as (B, C, H, W), whatever layout it has inside, of images normalised as it was trained.

    `mean` and `std` (channels,) are 0 and 1 until `normalise_as_trained`; they are stored with the weights. Dropout and
    stochastic depth are off: all randomness here is a function of seed, epoch and image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, channels: int = 3) -> None:
        from timm.layers.drop import DropPath  # most processes never need timm, which takes a second to import

        super().__init__()
        self.backbone = backbone
        self.channels = channels
        self.body = _body(backbone, channels)
        self.widths, self.strides = levels(backbone)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        for module in self.body.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, DropPath):
                module.drop_prob = 0.0

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) in [0, 1] -> one map per level, (B, widths[k], H / strides[k], W / strides[k])."""
        mean, std = (values.to(x.dtype)[:, None, None] for values in (self.mean, self.std))
        maps = self.body((x - mean) / std)
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return [one.contiguous(memory_format=torch.channels_last) for one in maps]

    @torch.no_grad()
    def normalise_as_trained(self) -> None:
        """Take the mean and std that timm's weights of this backbone were trained with."""
        import timm

        trained = timm.get_pretrained_cfg(self.backbone, allow_unregistered=False)
        assert trained is not None  # `levels` has built it
        self.mean.copy_(torch.tensor(trained.mean))
        self.std.copy_(torch.tensor(trained.std))


def decoder(backbone: str, outputs: tuple[int, ...], skip_connections: bool) -> UNetDecoder:
    """The decoder over a backbone's maps; fewer levels than `outputs` leave the last of them out, more repeat it."""
    widths, strides = levels(backbone)
    outputs = (*outputs, *[outputs[-1]] * len(widths))[: len(widths)]
    return UNetDecoder(widths, strides, outputs, skip_connections)


@functools.cache
def levels(backbone: str) -> Levels:
    """Return the shapes of a backbone's maps, found without memory or computation (torch's meta device).

    Raises BackboneError for a name that timm does not know, for a backbone without feature maps, and for one that is
    tied to one image size or does not halve it down to at most 1/32.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        body = _body(backbone)
        found = Levels(tuple(body.feature_info.channels()), tuple(body.feature_info.reduction()))
        try:
            maps = body(torch.empty(2, 3, 2 * STRIDE, 3 * STRIDE))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise BackboneError(
                f"timm:{backbone} does not take images of any multiple of {STRIDE} px ({error})"
            ) from None
    last = getattr(body, "output_fmt", "NCHW") == "NHWC"
    shapes = [(one.shape[3], *one.shape[1:3]) if last else tuple(one.shape[1:]) for one in maps]
    wanted = [(w, 2 * STRIDE // s, 3 * STRIDE // s) for w, s in zip(found.widths, found.strides, strict=True)]
    if shapes != wanted or STRIDE % found.strides[-1] or len(wanted) < 2:
        raise BackboneError(f"timm:{backbone} gives maps that a U-Net cannot use: {shapes} of 64 x 96 px")
    return found


def _body(backbone: str, channels: int = 3) -> Any:
    """The backbone with random weights, and for any image size where timm can make it so."""
    import timm

    if not timm.is_model(backbone):
        close = ", ".join(timm.list_models(f"*{backbone.split('_')[0]}*")[:5])
        raise BackboneError(f"timm has no model {backbone!r}" + (f"; it has {close}, ..." if close else ""))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on old names
        known_to_transformers: dict[str, Any] = {"dynamic_img_size": True}
        for size in (known_to_transformers, {}):
            try:
                return timm.create_model(backbone, pretrained=False, features_only=True, in_chans=channels, **size)
            except TypeError:
                continue
            except (RuntimeError, AssertionError, AttributeError) as error:
                raise BackboneError(f"timm:{backbone} gives no feature maps ({error})") from None
    raise BackboneError(f"timm:{backbone} gives no feature maps; timm.list_models() names others")


def name_in_timm(name: str) -> str:
    """An encoder's tensor as timm names it in the whole model: body.stages_0.weight -> stages.0.weight."""
    name = name.removeprefix("body.").removeprefix("model.")
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)


def timm_encoder(model: schema.TimmUNet) -> Encoder:
    return Encoder(model.backbone, schema.channels_of(model))


def timm_decoder(model: schema.TimmUNet) -> UNetDecoder:
    return decoder(model.backbone, model.decoder_widths, model.skip_connections)
