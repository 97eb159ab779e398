"""A model's settings -> its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.models.conrec_unet import conrec_decoder, conrec_encoder
from pretune.trainables.models.genesis_unet import genesis_decoder, genesis_encoder
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.models.resnet import resnet_encoder, resnet_head_decoder, resnet_unet_decoder
from pretune.trainables.models.timm_unet import timm_decoder, timm_encoder
from pretune.trainables.models.unet import UNet, unet_decoder, unet_encoder
from pretune.trainables.models.vit_pyramid import vit_decoder

# Encoder and decoder; the argument is the settings whose `name` is the key.
MODELS: dict[str, tuple[Callable[[Any], Encoder], Callable[[Any], Decoder]]] = {
    "unet": (unet_encoder, unet_decoder),
    "conrec-unet": (conrec_encoder, conrec_decoder),
    "resnet-unet": (resnet_encoder, resnet_unet_decoder),
    "resnet-head": (resnet_encoder, resnet_head_decoder),
    "timm-unet": (timm_encoder, timm_decoder),
    "vit-pyramid": (timm_encoder, vit_decoder),
    "genesis-unet": (genesis_encoder, genesis_decoder),
}


def build_encoder(model: schema.Model) -> Encoder:
    return MODELS[model.name][0](model)


def build_decoder(model: schema.Model) -> Decoder:
    return MODELS[model.name][1](model)


def build_unet(model: schema.Model, classes: int) -> UNet:
    """Encoder, decoder and head for `classes`; drawn in the order decoder, encoder, head."""
    decoder = build_decoder(model)
    return UNet(build_encoder(model), decoder, classes)
