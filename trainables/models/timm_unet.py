"""Any backbone of timm that gives feature maps, as an encoder; the decoder is the ResNets' U-Net decoder.

timm (Wightman, "PyTorch image models") builds the backbone with `features_only=True`. Nothing is downloaded here: its
weights are random until a stage loads others.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.models import interface
from pretune.trainables.models.resnet import UNetDecoder


class BackboneError(ValueError):
    """A name that timm does not know, or a backbone that cannot serve as an encoder; the sentence says which."""


class Backbone(NamedTuple):
    """A backbone of timm, and which of its maps are taken."""

    name: str  # timm's
    image_size: int | None = None  # px that it is built for; None: any multiple of its stride
    plain: bool = False  # the last map alone, behind the final norm; False: all maps, before it

    def __str__(self) -> str:
        return f"timm:{self.name}"


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

    def __init__(self, backbone: Backbone, channels: int = 3) -> None:
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

    def segments(self) -> Sequence[nn.Module]:
        """The repeated blocks; the whole backbone where it has none, as a VGG."""
        return repeated(self.body) or [self.body]

    @torch.no_grad()
    def normalise_as_trained(self) -> None:
        """Take the mean and std that timm's weights of this backbone were trained with."""
        import timm

        trained = timm.get_pretrained_cfg(self.backbone.name, allow_unregistered=False)
        assert trained is not None  # `levels` has built it
        self.mean.copy_(torch.tensor(trained.mean))
        self.std.copy_(torch.tensor(trained.std))


LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def repeated(module: nn.Module) -> list[nn.Module]:
    """Elements, themselves made of modules, of the innermost lists of such: blocks in the words of most backbones."""
    parts = [part for part in module.children() if any(True for _ in part.children())]
    if isinstance(module, LISTS) and len(parts) > 1:
        found = [block for part in parts for block in repeated(part) or [part]]
    else:
        found = [block for part in module.children() for block in repeated(part)]
    return [block for block in found if not isinstance(block, nn.ModuleList | nn.ModuleDict)]


def decoder(backbone: Backbone, outputs: tuple[int, ...], skip_connections: bool) -> UNetDecoder:
    """The decoder over a backbone's maps; fewer levels than `outputs` leave the last of them out, more repeat it."""
    widths, strides = levels(backbone)
    outputs = (*outputs, *[outputs[-1]] * len(widths))[: len(widths)]
    return UNetDecoder(widths, strides, outputs, skip_connections)


@functools.cache
def levels(backbone: Backbone) -> Levels:
    """Return the shapes of a backbone's maps, found without memory or computation (torch's meta device).

    Raises BackboneError for a name that timm does not know, for a backbone without feature maps, and for one that does
    not take every multiple of its stride, or whose maps a decoder cannot use.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        body = _body(backbone)
        found = body.levels if backbone.plain else _levels_by(body.feature_info)
        last = found.strides[-1]
        if (size := backbone.image_size) is not None and size % last:
            near = f"{size // last * last or last} or {size // last * last + last}"
            raise BackboneError(
                f"{size} px, model.image_size, is not a multiple of {last}, the stride of {backbone}; use {near}"
            )
        height, width = (backbone.image_size,) * 2 if backbone.image_size is not None else (2 * last, 3 * last)
        try:
            maps = body(torch.empty(2, 3, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise BackboneError(_refused(backbone, last, str(error).splitlines()[0])) from None
    if getattr(body, "output_fmt", "NCHW") == "NHWC":
        maps = [one.permute(0, 3, 1, 2) for one in maps]
    shapes = [tuple(one.shape[1:]) for one in maps]
    wanted = [(w, height // s, width // s) for w, s in zip(*found, strict=True)]
    if shapes != wanted or any(last % s for s in found.strides) or (len(wanted) < 2 and not backbone.plain):
        raise BackboneError(f"{backbone} gives maps that no decoder here can use: {shapes} of {height} x {width} px")
    return found


def _refused(backbone: Backbone, stride: int, error: str) -> str:
    import timm

    if backbone.image_size is not None:
        return f"{backbone} does not take images of {backbone.image_size} px, model.image_size ({error})"
    trained = timm.get_pretrained_cfg(backbone.name, allow_unregistered=False)
    fix = ""
    if trained is not None and trained.fixed_input_size:
        fix = f"; it is tied to one size: set model.image_size to that of all stages, such as {trained.input_size[-1]}"
    return f"{backbone} does not take images of any multiple of {stride} px, its stride ({error}){fix}"


def suited(name: str) -> Backbone:
    """Return how a backbone serves best: its last map alone where all have one stride, for any size where it takes
    these, else for the size of timm's weights. Raises BackboneError for one that cannot serve."""
    import timm

    created(Backbone(name))  # an unknown name is said as such
    trained = timm.get_pretrained_cfg(name, allow_unregistered=False)
    native = None if trained is None else trained.input_size[-1]
    for size in (None, native):
        for plain in (True, False):
            try:
                levels(Backbone(name, size, plain))
            except BackboneError as error:
                said = error
            else:
                return Backbone(name, size, plain)
    raise said


def _levels_by(info: Any) -> Levels:
    """As timm's FeatureInfo names them."""
    return Levels(tuple(info.channels()), tuple(info.reduction()))


class LastMap(nn.Module):
    """A transformer of timm that gives the places of its last block behind the final norm, (B, width, H / s, W / s)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
        last = model.feature_info[-1]
        self.model = model
        self.levels = Levels((last.get("num_chs_norm", last["num_chs"]),), (last["reduction"],))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            x, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def _body(backbone: Backbone, channels: int = 3) -> Any:
    """The backbone with random weights, without what its maps do not need."""
    if not backbone.plain:
        return created(backbone, features_only=True, in_chans=channels)
    whole = created(backbone, num_classes=0, in_chans=channels)
    strides = tuple(sorted({info["reduction"] for info in getattr(whole, "feature_info", ())}))
    if len(strides) > 1:
        raise BackboneError(f"{backbone} has maps of several strides {strides}: use the model timm-unet")
    try:
        return LastMap(whole)
    except (AttributeError, KeyError, TypeError) as error:
        raise BackboneError(f"{backbone} gives no feature map ({error})") from None


def created(backbone: Backbone, **settings: Any) -> Any:
    """timm's model with random weights: for `image_size`, or for any size where timm can make it so."""
    import timm

    name, size = backbone.name, backbone.image_size
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
        raise BackboneError(f"timm has no model {name!r}" + (f"; it has {close}, ..." if close else ""))
    known_to_transformers: dict[str, Any] = {"dynamic_img_size": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on old names
        for asked in (known_to_transformers, {}) if size is None else ({"img_size": size},):
            try:
                return timm.create_model(name, pretrained=False, **settings, **asked)
            except TypeError:
                continue
            except (RuntimeError, AssertionError, AttributeError) as error:
                raise BackboneError(f"{backbone} gives no feature maps ({error})") from None
    if size is not None:
        raise BackboneError(f"{backbone} is not tied to one size of images: leave model.image_size out")
    raise BackboneError(f"{backbone} gives no feature maps; timm.list_models() names others")


def name_in_timm(name: str) -> str:
    """An encoder's tensor as timm names it in the whole model: body.stages_0.weight -> stages.0.weight."""
    name = name.removeprefix("body.").removeprefix("model.")
    return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)


def renamed(backbone: Backbone, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors that others published, under timm's names and in its shapes: positional embeddings are resized to the
    backbone's grid. By the function with which timm itself converts checkpoints; without one, `state` as it is.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        whole = created(backbone, num_classes=0)
    convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else convert(dict(state), whole)


def backbone_of(model: schema.TimmUNet | schema.ViTPyramid) -> Backbone:
    return Backbone(model.backbone, model.image_size, plain=isinstance(model, schema.ViTPyramid))


def timm_encoder(model: schema.TimmUNet | schema.ViTPyramid) -> Encoder:
    return Encoder(backbone_of(model), schema.channels_of(model))


def timm_decoder(model: schema.TimmUNet) -> UNetDecoder:
    return decoder(backbone_of(model), model.decoder_widths, model.skip_connections)
