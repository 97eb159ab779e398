"""SAMCLR: SimCLR whose two views both lie within one random region of the image.

Missaoui, Yuan: "SAMCLR: contrastive pre-training on complex scenes using SAM for view sampling" (P4). Objective and
head are SimCLR's; what differs are the views (trainables/views/regions.py) and the temperature, 0.07. Every other
method takes its views from regions with `views: {within: region}`.
"""

from __future__ import annotations

from pretune.search_spaces import schema
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.simclr import SimCLR


def region_views(views: schema.Views) -> schema.Views:
    """The same recipe within a region."""
    return views.model_copy(update={"within": "region"})


def build_samclr(method: schema.SAMCLR, views: schema.Views, parts: Parts) -> SimCLR:
    return SimCLR(
        parts.encoder,
        region_views(views),
        temperature=method.temperature,
        hidden=method.hidden,
        dim=method.dim,
        levels=method.projection_levels,
    )
