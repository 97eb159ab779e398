"""The methods by name: the one literal table of the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from search_spaces import schema
from trainables.methods.protocol import Method
from trainables.methods.simclr import SimCLR
from trainables.models.unet import Encoder


def build_simclr(method: schema.SimCLR, views: schema.Views, encoder: Encoder) -> Method:
    return SimCLR(encoder, views, method.temperature, method.hidden, method.dim)


METHODS: dict[str, Callable[[Any, schema.Views, Encoder], Method]] = {
    "simclr": build_simclr,
}
