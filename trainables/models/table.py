"""A model's settings -> its parts. A model's row is the facts of its settings, which name the functions to build them.

Looked up by name, as methods are, so that a model is its file, its row and its test.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.models.unet import UNet


def builder_named(name: str) -> Any:
    """The function that a fact names, as FILE:FUNCTION."""
    file, _, function = name.partition(":")
    return getattr(import_module(f"pretune.trainables.models.{file}"), function)


def build_encoder(model: schema.Model) -> Encoder:
    encoder: Encoder = builder_named(model.facts.encoder)(model)
    return encoder


def build_decoder(model: schema.Model) -> Decoder:
    decoder: Decoder = builder_named(model.facts.decoder)(model)
    return decoder


def build_unet(model: schema.Model, classes: int) -> UNet:
    """Encoder, decoder and head for `classes`; drawn in the order decoder, encoder, head."""
    decoder = build_decoder(model)
    return UNet(build_encoder(model), decoder, classes)
