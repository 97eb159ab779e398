"""`pretune data views`: draw what the network sees of a study's images, beside the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.checks.contact_sheets import Strip, view_sheet
from pretune.trainables.data.image_set import shown_in_color
from pretune.trainables.data.sources import open_set, prepare
from pretune.trainables.data.splits import draw_subset
from pretune.trainables.loop import RunContext
from pretune.trainables.methods.protocol import Method, Parts
from pretune.trainables.methods.restored import Restoring, given
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.pretrain import make_batch, make_feeds
from pretune.trainables.views.drawn import View
from pretune.trainables.views.regions import large_enough, region_table, uses_regions
from pretune.trainables.views.two_views import views_of

if TYPE_CHECKING:
    from pretune.trainables.data.image_set import ImageSet

HERE = RunContext(Path(), torch.device("cpu"))
TWICE = 4  # views of an image up to which a second epoch is drawn too


def draw_views(
    configuration: schema.Configuration, root: Path | None, cache: Path, count: int, sheet: Path
) -> list[str]:
    """A sheet of the views of the first pretraining that has any, each row beside its image; what it shows, in words.

    Raises click.UsageError where there is nothing to draw.
    """
    stage = next((stage for stage in configuration.pretrain if stage.method.facts.trains), None)
    if stage is None:
        raise click.UsageError("this study has no pretraining that makes views of images")
    settings = configuration.data[stage.data]
    image_set = open_set(settings, prepare(settings, root, cache)[0], root, cache)
    if len(image_set.images.shape) == 5:
        raise click.UsageError("views of volumes are the volumes themselves: pretune data check draws them")
    method = method_of(stage, configuration.model, image_set)
    recipes = method.recipes
    rows = draw_subset(len(image_set.names), count, 0)
    within = uses_regions(recipes)
    if within and image_set.regions is None:
        way = f"add `regions: {{name: felzenszwalb}}` to data.{stage.data}"
        raise click.UsageError(f"views within regions, but data.{stage.data} has no region maps; {way}")
    regions = image_set.regions[rows] if within and image_set.regions is not None else None
    table = None if regions is None else region_table(regions)
    epochs = (0, 1) if len(recipes) <= TWICE else (0,)
    images = torch.from_numpy(image_set.images[rows])
    seen = [view for epoch in epochs for view in views_of(images, rows, recipes, 0, epoch, table)]
    titles = [f"view {v + 1}, epoch {epoch}" for epoch in epochs for v in range(len(recipes))]
    fallen = np.zeros(len(rows), np.bool_) if table is None else without_region(table, images.shape[1:3], recipes)
    restored = []
    if isinstance(method, Restoring):  # these give the network less than the view
        restored = list(given(method, make_batch(method, make_feeds(image_set, HERE), rows, 0, 0)))
        titles += [f"view {v + 1} as given" for v in range(len(restored))]
    strips = strips_of(image_set, rows, images, seen, restored, regions, fallen)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    view_sheet(strips, titles).save(sheet)
    return said(stage, recipes, fallen)


def method_of(stage: schema.Pretrain, model: schema.Model, image_set: ImageSet) -> Method:
    """The method itself, which knows how it makes each of its views."""
    kinds = 0 if image_set.labels is None else int(image_set.labels.max()) + 1
    parts = Parts(build_encoder(model), lambda: build_decoder(model), len(image_set.classes), kinds)
    return build_method(stage.method, stage.views, parts)


def without_region(
    table: NDArray[np.integer[Any]], size: Sequence[int], recipes: Sequence[schema.Views]
) -> NDArray[np.bool_]:
    """(B,) whether an image has no region that is large enough, so that its views come from all of it."""
    recipe = next(recipe for recipe in recipes if recipe.within == "region")
    lacking: NDArray[np.bool_] = np.equal(large_enough(table, size[0], size[1], recipe).sum(axis=1), 0)
    return lacking


def strips_of(
    image_set: ImageSet,
    rows: NDArray[np.int64],
    images: torch.Tensor,
    seen: Sequence[View],
    restored: Sequence[torch.Tensor],
    regions: NDArray[np.uint16] | None,
    fallen: NDArray[np.bool_],
) -> list[Strip]:
    shown = [*(view.pixels for view in seen), *restored]
    pixels = [shown_in_color((part.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()) for part in shown]
    boxes = [view.boxes.numpy() for view in seen]
    return [
        Strip(
            shown_in_color(images[i].numpy()),
            [view[i] for view in pixels],
            [box[i] for box in boxes],
            f"{image_set.names[row]}{' (whole image: no large region)' if fallen[i] else ''}",
            None if regions is None else regions[i],
        )
        for i, row in enumerate(rows)
    ]


def said(stage: schema.Pretrain, recipes: Sequence[schema.Views], fallen: NDArray[np.bool_]) -> list[str]:
    sizes = ", ".join(f"{size} px" for size in dict.fromkeys(recipe.size for recipe in recipes))
    many = f"{len(recipes)} view{'s' * (len(recipes) != 1)}"
    lines = [f"{stage.method.name} on data.{stage.data}: {many} of each image, {sizes}"]
    if fallen.any():
        least = f"views.region_min_area: {stage.views.region_min_area}"
        lines.append(
            f"{int(fallen.sum())} of these {len(fallen)} images have no region of the least area ({least} px of the "
            "source image, see views.region_source_area): their views come from the whole image"
        )
    return lines
