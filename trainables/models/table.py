"""The models by name: the literal tables of the family, and the network they make together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.models import conrec_unet, genesis_unet, resnet, timm_unet, unet
from pretune.trainables.models.interface import Decoder, Encoder

ENCODERS: dict[str, Callable[[Any], Encoder]] = {
    "unet": lambda model: unet.Encoder(model.widths, model.convolutions, model.norm == "batch"),
    "conrec-unet": lambda model: conrec_unet.Encoder(model.widths),
    "resnet-unet": lambda model: resnet.Encoder(model.depth, model.stem),
    "resnet-head": lambda model: resnet.Encoder(model.depth),
    "timm-unet": lambda model: timm_unet.Encoder(model.backbone),
    "genesis-unet": lambda model: genesis_unet.Encoder(model.widths, model.dimensions),
}

DECODERS: dict[str, Callable[[Any], Decoder]] = {
    "unet": lambda model: unet.Decoder(model.widths, model.skip_connections, model.convolutions, model.norm == "batch"),
    "conrec-unet": lambda model: conrec_unet.Decoder(model.widths, model.skip_connections),
    "resnet-unet": lambda model: resnet.UNetDecoder(
        resnet.WIDTHS[model.depth], resnet.STRIDES[model.stem], model.decoder_widths, model.skip_connections
    ),
    "resnet-head": lambda model: resnet.FiveConvolutions(resnet.WIDTHS[model.depth][-1]),
    "timm-unet": lambda model: timm_unet.decoder(model.backbone, model.decoder_widths, model.skip_connections),
    "genesis-unet": lambda model: genesis_unet.Decoder(
        model.widths, model.dimensions, model.up, model.skip_connections
    ),
}


def build_encoder(model: schema.Model) -> Encoder:
    return ENCODERS[model.name](model)


def build_decoder(model: schema.Model) -> Decoder:
    return DECODERS[model.name](model)


def build_unet(model: schema.Model, classes: int) -> unet.UNet:
    """Encoder, decoder and head for `classes`; drawn in the order decoder, encoder, head."""
    decoder = build_decoder(model)
    return unet.UNet(build_encoder(model), decoder, classes)
