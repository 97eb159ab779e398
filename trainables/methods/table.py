"""A method's settings -> its module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.methods.barlow_twins import build_barlow_twins
from pretune.trainables.methods.byol import build_byol
from pretune.trainables.methods.conrec import build_conrec, build_reconstruction
from pretune.trainables.methods.dino import build_dino
from pretune.trainables.methods.genesis import build_genesis
from pretune.trainables.methods.mae import build_mae
from pretune.trainables.methods.moco import build_moco, build_moco_v3
from pretune.trainables.methods.pixelcl import build_pixelcl
from pretune.trainables.methods.protocol import Method, Parts
from pretune.trainables.methods.samclr import build_samclr
from pretune.trainables.methods.simclr import build_simclr
from pretune.trainables.methods.supervised import build_classification, build_segmentation
from pretune.trainables.methods.swav import build_swav
from pretune.trainables.methods.vicreg import build_vicreg

# The first argument is the settings whose `name` is the key.
METHODS: dict[str, Callable[[Any, schema.Views, Parts], Method]] = {
    "simclr": build_simclr,
    "moco": build_moco,
    "moco-v3": build_moco_v3,
    "byol": build_byol,
    "dino": build_dino,
    "swav": build_swav,
    "vicreg": build_vicreg,
    "barlow-twins": build_barlow_twins,
    "mae": build_mae,
    "genesis": build_genesis,
    "reconstruction": build_reconstruction,
    "conrec": build_conrec,
    "segmentation": build_segmentation,
    "classification": build_classification,
    "samclr": build_samclr,
    "pixelcl": build_pixelcl,
    "pixelcl++": build_pixelcl,
}


def build_method(method: schema.Method, views: schema.Views, parts: Parts) -> Method:
    """The module of a method with these settings; its numbers go to it by their names."""
    return METHODS[method.name](method, views, parts)
