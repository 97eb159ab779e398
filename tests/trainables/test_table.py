"""Every number of a method's settings arrives where it belongs: built once more by keywords, all numbers different.

Methods without a case here are in test_methods_table.py, as all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.methods.byol import BYOL
from pretune.trainables.methods.conrec import ConRec, Reconstruction
from pretune.trainables.methods.dino import DINO, DINOHead
from pretune.trainables.methods.genesis import Genesis
from pretune.trainables.methods.mae import MAE
from pretune.trainables.methods.moco import MoCo, MoCoV3
from pretune.trainables.methods.pixelcl import PixelCL
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.simclr import SimCLR
from pretune.trainables.methods.supervised import Classification, Segmentation
from pretune.trainables.methods.swav import SwAV
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.views.genesis import Rates

MODEL = schema.UNet(widths=(4, 8))
VIEWS = schema.Views(size=16, blur=0.31, solarize=0.32, crop=(0.33, 0.99))
MASK_CLASSES, IMAGE_CLASSES = 3, 5
PAIRS: dict[str, Any] = {"blur": (0.41, 0.42), "solarize": (0.43, 0.44)}
DINO_SETTINGS: dict[str, Any] = PAIRS | {
    "hidden": 11, "bottleneck": 12, "prototypes": 13, "student_temperature": 0.11, "teacher_temperature": 0.12,
    "teacher_temperature_start": 0.13, "teacher_warmup_epochs": 4, "center_momentum": 0.51, "momentum": 0.52,
    "momentum_end": 0.53, "freeze_last_epochs": 5, "export": "student", "local_views": 2, "local_size": 9,
    "local_crop": (0.21, 0.22), "local_blur": 0.45,
}  # fmt: skip
PIXEL_SETTINGS: dict[str, Any] = PAIRS | {
    "hidden": 11, "dim": 12, "threshold": 0.71, "gamma": 3.0, "alpha": 0.8, "momentum": 0.52, "momentum_end": 0.53
}  # fmt: skip


def views(**changes: Any) -> schema.Views:
    return VIEWS.model_copy(update=changes)


BY_TABLE_6 = (views(blur=0.41, solarize=0.43), views(blur=0.42, solarize=0.44))  # of BYOL: two different views
SAME_BLUR = (views(solarize=0.43), views(solarize=0.44))
SMALL = {"size": 9, "crop": (0.21, 0.22)}


def encoder() -> Any:
    return build_encoder(MODEL)


def decoder() -> Any:
    return build_decoder(MODEL)


def dino(**changes: Any) -> DINO:
    body: dict[str, Any] = {
        "recipes": (*BY_TABLE_6, *[views(**SMALL, blur=0.45)] * 2),
        "head": DINOHead(inputs=8, hidden=11, bottleneck=12, prototypes=13, norm=True),
        "student_temperature": 0.11,
        "teacher_temperature": 0.12,
        "teacher_temperature_start": 0.13,
        "teacher_warmup_epochs": 4,
        "center_momentum": 0.51,
        "momentum": 0.52,
        "momentum_end": 0.53,
        "freeze_last_epochs": 5,
        "export": "student",
    }
    return DINO(encoder(), **body | changes)


def moco(**changes: Any) -> MoCo:
    body: dict[str, Any] = {
        "views": VIEWS, "temperature": 0.11, "hidden": 11, "dim": 12, "queue": 13, "momentum": 0.52, "bn_splits": 3,
        "momentum_end": 0.52, "symmetric": True, "levels": 2,
    }  # fmt: skip
    return MoCo(encoder(), **body | changes)


def pixelcl(**changes: Any) -> PixelCL:
    body: dict[str, Any] = {
        "recipes": BY_TABLE_6, "hidden": 11, "dim": 12, "threshold": 0.71, "gamma": 3.0, "alpha": 0.8,
        "momentum": 0.52, "momentum_end": 0.53, "depth_threshold": None,
    }  # fmt: skip
    return PixelCL(encoder(), **body | changes)


TEMPERATURE_11: dict[str, Any] = {"temperature": 0.11, "hidden": 11, "dim": 12}
MOCO_SETTINGS = TEMPERATURE_11 | {
    "queue": 13, "momentum": 0.52, "bn_splits": 3, "symmetric": True, "projection_levels": 2
}  # fmt: skip
MOMENTA: dict[str, Any] = {"momentum": 0.52, "momentum_end": 0.53}
TASKS: dict[str, Any] = {
    "tasks": ("reconstruction", "mask-location"), "task_weights": {"mask-location": 0.4}, "branch": "block"
}  # fmt: skip
WEIGHTS = {"mask-location": 0.4}

CASES: list[tuple[str, dict[str, Any], Callable[[], nn.Module]]] = [
    (
        "simclr",
        TEMPERATURE_11 | {"projection_levels": 2},
        lambda: SimCLR(encoder(), VIEWS, **TEMPERATURE_11, levels=2, norm=True),
    ),
    (
        "simclr",
        TEMPERATURE_11 | {"head_norm": False},
        lambda: SimCLR(encoder(), VIEWS, **TEMPERATURE_11, levels=1, norm=False),
    ),
    ("moco", MOCO_SETTINGS, moco),
    ("moco", MOCO_SETTINGS | {"momentum_end": 0.53}, lambda: moco(momentum_end=0.53)),
    ("moco", MOCO_SETTINGS | {"bn_splits": 2, "symmetric": False}, lambda: moco(bn_splits=2, symmetric=False)),
    (
        "moco-v3",
        TEMPERATURE_11 | MOMENTA | PAIRS | {"projection_levels": 2},
        lambda: MoCoV3(encoder(), BY_TABLE_6, **TEMPERATURE_11, **MOMENTA, levels=2),
    ),
    (
        "byol",
        {"hidden": 11, "dim": 12, "projection_levels": 2} | MOMENTA | PAIRS,
        lambda: BYOL(encoder(), BY_TABLE_6, hidden=11, dim=12, **MOMENTA, levels=2),
    ),
    (
        "byol",
        {"hidden": 11, "dim": 12, "solarize": PAIRS["solarize"], "blur": None} | MOMENTA,
        lambda: BYOL(encoder(), SAME_BLUR, hidden=11, dim=12, **MOMENTA),
    ),
    ("dino", DINO_SETTINGS, dino),
    (
        "dino",
        DINO_SETTINGS | {"head_norm": False, "local_blur": None, "local_views": 1, "export": "teacher"},
        lambda: dino(
            head=DINOHead(inputs=8, hidden=11, bottleneck=12, prototypes=13, norm=False),
            recipes=(*BY_TABLE_6, views(**SMALL)),
            export="teacher",
        ),
    ),
    (
        "swav",
        {
            "hidden": 11,
            "dim": 12,
            "prototypes": 13,
            "temperature": 0.11,
            "epsilon": 0.14,
            "iterations": 4,
            "queue": 15,
            "queue_from_epoch": 6,
            "freeze_prototypes_epochs": 5,
            "local_views": 3,
            "local_size": 9,
            "local_crop": (0.21, 0.22),
        },
        lambda: SwAV(
            encoder(),
            (VIEWS, VIEWS, *[views(**SMALL)] * 3),
            hidden=11,
            dim=12,
            prototypes=13,
            temperature=0.11,
            epsilon=0.14,
            iterations=4,
            queue=15,
            queue_from_epoch=6,
            freeze_prototypes_epochs=5,
        ),
    ),
    (
        "samclr",
        TEMPERATURE_11 | {"projection_levels": 2},
        lambda: SimCLR(encoder(), views(within="region"), **TEMPERATURE_11, levels=2),
    ),
    ("pixelcl", PIXEL_SETTINGS, pixelcl),
    ("pixelcl++", PIXEL_SETTINGS | {"depth_threshold": 0.24}, lambda: pixelcl(depth_threshold=0.24)),
    (
        "mae",
        {"masking": "pixels", "ratio": 0.61, "patch": 7, "loss_on": "masked"},
        lambda: MAE(encoder(), decoder(), VIEWS, masking="pixels", ratio=0.61, patch=7, loss_on="masked"),
    ),
    (
        "genesis",
        {"flip": 0.61, "shuffle": 0.62, "shuffle_blocks": 7, "intensity": 0.63, "paint": 0.64, "in_paint": 0.65},
        lambda: Genesis(
            encoder(),
            decoder(),
            VIEWS,
            channels=3,
            rates=Rates(shuffle=0.62, blocks=7, intensity=0.63, paint=0.64, in_paint=0.65),
            flip=0.61,
        ),
    ),
    (
        "reconstruction",
        TASKS,
        lambda: Reconstruction(encoder(), decoder, VIEWS, tasks=TASKS["tasks"], weights=WEIGHTS, branch="block"),
    ),
    (
        "conrec",
        TASKS | TEMPERATURE_11 | {"reconstruction_weight": 70.0, "pooling": "average"},
        lambda: ConRec(
            encoder(),
            decoder,
            VIEWS,
            tasks=TASKS["tasks"],
            weights=WEIGHTS,
            branch="block",
            reconstruction_weight=70.0,
            pooling="average",
            **TEMPERATURE_11,
        ),
    ),
    (
        "segmentation",
        {"loss": "cross-entropy"},
        lambda: Segmentation(encoder(), decoder(), VIEWS, loss="cross-entropy", classes=MASK_CLASSES),
    ),
    ("classification", {}, lambda: Classification(encoder(), VIEWS, classes=IMAGE_CLASSES)),
]


def facts(module: nn.Module) -> dict[str, Any]:
    """The weights' shapes, and whatever else the module and those within it hold that is no tensor and no module."""
    found: dict[str, Any] = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found |= {f"{name} is trained": p.requires_grad for name, p in module.named_parameters()}
    for place, part in module.named_modules():
        found |= {f"{place}:{name}": value for name, value in vars(part).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if not callable(value)}


@pytest.mark.parametrize(("name", "changes", "by_keywords"), CASES)
def test_every_setting_arrives_where_it_belongs(
    name: str, changes: dict[str, Any], by_keywords: Callable[[], nn.Module]
) -> None:
    body = {"data": "d", "steps": 1, "method": changes | {"name": name}}
    method = schema.Pretrain.model_validate(body).method
    torch.manual_seed(0)
    built: Any = build_method(method, VIEWS, Parts(encoder(), decoder, MASK_CLASSES, IMAGE_CLASSES))
    assert facts(built) == facts(by_keywords())


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_small_views_fit_the_encoder_where_there_are_any(name: str) -> None:
    """Two levels: the encoder halves once, so a view has two pixels at the least."""

    def build(**changes: int) -> Any:
        body = {"data": "d", "steps": 1, "method": {"name": name, "prototypes": 5, **changes}}
        method = schema.Pretrain.model_validate(body).method
        return build_method(method, VIEWS, Parts(encoder(), decoder, MASK_CLASSES, IMAGE_CLASSES))

    with pytest.raises(ValueError, match=f"^{name}: local_size 1 px is below 2, what this encoder needs$"):
        build(local_views=3, local_size=1)
    assert len(build(local_views=3, local_size=2).recipes) == 5
    assert len(build(local_views=0, local_size=1).recipes) == 2
