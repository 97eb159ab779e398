"""The methods by name: the one literal table of the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pretune.search_spaces import schema
from pretune.trainables.methods.byol import BYOL
from pretune.trainables.methods.conrec import ConRec, Reconstruction
from pretune.trainables.methods.dino import DINO, DINOHead
from pretune.trainables.methods.genesis import Genesis
from pretune.trainables.methods.mae import MAE
from pretune.trainables.methods.moco import MoCo, MoCoV3
from pretune.trainables.methods.pixelcl import PixelCL
from pretune.trainables.methods.protocol import Method
from pretune.trainables.methods.recipes import asymmetric, with_local
from pretune.trainables.methods.samclr import region_views
from pretune.trainables.methods.simclr import SimCLR
from pretune.trainables.methods.supervised import Classification, Segmentation
from pretune.trainables.methods.swav import SwAV
from pretune.trainables.models.dimensions import CHANNELS
from pretune.trainables.models.interface import Decoder, Encoder
from pretune.trainables.views.genesis import Rates


class Parts(NamedTuple):
    """What a method is built from."""

    encoder: Encoder
    decoder: Callable[[], Decoder]  # made on demand: a method that trains none draws no random numbers for it
    mask_classes: int  # of the data set; 0 without masks
    image_classes: int  # 0 without labels


def build_simclr(method: schema.SimCLR, views: schema.Views, parts: Parts) -> Method:
    sizes, norm = (method.hidden, method.dim), method.head_norm is not False
    return SimCLR(parts.encoder, views, method.temperature, *sizes, method.projection_levels, norm)


def build_moco(method: schema.MoCo, views: schema.Views, parts: Parts) -> Method:
    return MoCo(
        parts.encoder,
        views,
        method.temperature,
        method.hidden,
        method.dim,
        method.queue,
        method.momentum,
        method.momentum if method.momentum_end is None else method.momentum_end,
        method.bn_splits,
        method.symmetric,
        method.projection_levels,
    )


def build_moco_v3(method: schema.MoCoV3, views: schema.Views, parts: Parts) -> Method:
    recipes = asymmetric(views, method.blur, method.solarize)
    sizes, momentum = (method.hidden, method.dim), (method.momentum, method.momentum_end)
    return MoCoV3(parts.encoder, recipes, method.temperature, *sizes, *momentum, method.projection_levels)


def build_byol(method: schema.BYOL, views: schema.Views, parts: Parts) -> Method:
    recipes = asymmetric(views, method.blur, method.solarize)
    sizes, momentum = (method.hidden, method.dim), (method.momentum, method.momentum_end)
    return BYOL(parts.encoder, recipes, *sizes, *momentum, method.projection_levels)


def fitting_local_views(method: schema.DINO | schema.SwAV, encoder: Encoder) -> tuple[int, int, tuple[float, float]]:
    """Number, size and crop of the small views. Raises ValueError where the encoder cannot take so small an image."""
    if method.local_views and method.local_size < encoder.strides[-1]:
        raise ValueError(
            f"{method.name}: local_size {method.local_size} px is below {encoder.strides[-1]}, what this encoder needs"
        )
    return method.local_views, method.local_size, method.local_crop


def build_dino(method: schema.DINO, views: schema.Views, parts: Parts) -> Method:
    large = asymmetric(views, method.blur, method.solarize)
    return DINO(
        parts.encoder,
        with_local(large, views, *fitting_local_views(method, parts.encoder), method.local_blur),
        DINOHead(parts.encoder.widths[-1], method.hidden, method.bottleneck, method.prototypes, method.head_norm),
        method.student_temperature,
        (method.teacher_temperature_start, method.teacher_temperature, method.teacher_warmup_epochs),
        method.center_momentum,
        method.momentum,
        method.momentum_end,
        method.freeze_last_epochs,
        method.export,
    )


def build_swav(method: schema.SwAV, views: schema.Views, parts: Parts) -> Method:
    return SwAV(
        parts.encoder,
        with_local((views, views), views, *fitting_local_views(method, parts.encoder), None),
        method.hidden,
        method.dim,
        method.prototypes,
        method.temperature,
        method.epsilon,
        method.iterations,
        method.queue,
        method.queue_from_epoch,
        method.freeze_prototypes_epochs,
    )


def build_samclr(method: schema.SAMCLR, views: schema.Views, parts: Parts) -> Method:
    recipe, sizes = region_views(views), (method.hidden, method.dim)
    return SimCLR(parts.encoder, recipe, method.temperature, *sizes, method.projection_levels)


def build_pixelcl(method: schema.PixelCL | schema.PixelCLDepth, views: schema.Views, parts: Parts) -> Method:
    return PixelCL(
        parts.encoder,
        asymmetric(views, method.blur, method.solarize),
        method.hidden,
        method.dim,
        method.threshold,
        method.depth_threshold if isinstance(method, schema.PixelCLDepth) else None,
        method.gamma,
        method.alpha,
        method.momentum,
        method.momentum_end,
    )


def build_mae(method: schema.MAE, views: schema.Views, parts: Parts) -> Method:
    return MAE(parts.encoder, parts.decoder(), views, method.masking, method.ratio, method.patch, method.loss_on)


def build_genesis(method: schema.Genesis, views: schema.Views, parts: Parts) -> Method:
    rates = Rates(method.shuffle, method.shuffle_blocks, method.intensity, method.paint, method.in_paint)
    decoder = parts.decoder()
    return Genesis(parts.encoder, decoder, views, CHANNELS[decoder.dimensions], rates, method.flip)


def build_reconstruction(method: schema.Reconstruction, views: schema.Views, parts: Parts) -> Method:
    weights = {str(task): weight for task, weight in method.task_weights.items()}
    return Reconstruction(parts.encoder, parts.decoder, views, method.tasks, weights, method.branch)


def build_conrec(method: schema.ConRec, views: schema.Views, parts: Parts) -> Method:
    return ConRec(
        parts.encoder,
        parts.decoder,
        views,
        method.tasks,
        {str(task): weight for task, weight in method.task_weights.items()},
        method.branch,
        method.temperature,
        method.reconstruction_weight,
        method.pooling,
        method.hidden,
        method.dim,
    )


def build_segmentation(method: schema.Segmentation, views: schema.Views, parts: Parts) -> Method:
    return Segmentation(parts.encoder, parts.decoder(), views, method.loss, parts.mask_classes)


def build_classification(method: schema.Classification, views: schema.Views, parts: Parts) -> Method:
    return Classification(parts.encoder, views, parts.image_classes)


METHODS: dict[str, Callable[[Any, schema.Views, Parts], Method]] = {
    "simclr": build_simclr,
    "moco": build_moco,
    "moco-v3": build_moco_v3,
    "byol": build_byol,
    "dino": build_dino,
    "swav": build_swav,
    "samclr": build_samclr,
    "pixelcl": build_pixelcl,
    "pixelcl++": build_pixelcl,
    "mae": build_mae,
    "genesis": build_genesis,
    "reconstruction": build_reconstruction,
    "conrec": build_conrec,
    "segmentation": build_segmentation,
    "classification": build_classification,
}
