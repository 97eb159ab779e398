"""What a stage asks of its data set, and what to do where the data set does not have it.

One check, made three times: of what is listed (`pretune plan`), of what was decoded (`pretune run`, before anything is
trained), and of what was opened (the stage itself). Every sentence names the key, its value, what there is, and a way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import MIN_CKA_BATCH
from pretune.trainables.data.errors import DataError, RequirementsError
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.listing import Listing
from pretune.trainables.data.sets.present import labels_of, tests_of
from pretune.trainables.data.splits import draw_split

StageSettings = schema.Pretrain | schema.Finetune | schema.Probe

CALLED = {"labels": "image classes", "depth": "depth maps"}  # maps whose name is not what messages call them

# How a data set comes by what it lacks.
WAYS = {
    ("image classes", "image-folder"): "put its images into one folder for each class",
    ("image classes", "parquet"): "name the column that holds them as `label:`",
    ("image classes", "npz"): "add an array `labels` to the file",
    ("image classes", "stl10"): "take `part: labelled`",
    ("masks", "image-folder"): "take `dataset: image-mask-folder`, which reads masks beside the images",
    ("masks", "parquet"): "name the column that holds them as `mask:`",
    ("masks", "npz"): "add an array `masks` to the file",
    ("masks", "flowers102"): "take `masks: true`",
    ("masks", "flowers17"): "take `masks: true`",
    ("masks", "luna16"): "take `part: nodules`",
}
ANYWHERE = {
    "regions": "add `regions: {name: felzenszwalb}` (slic and sam are others) to it",
    "depth maps": "add `depth: {weights: FOLDER}` to it",
}


class Sizes(NamedTuple):
    """How many images each part of a split has."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Held:
    """What a data set has to offer."""

    images: int
    mask_classes: int  # 0 without masks
    labels: NDArray[np.int64] | None  # (images,)
    official_test: NDArray[np.bool_] | None  # (images,)
    regions: bool
    depth: bool
    _drawn: dict[schema.Split, tuple[Sizes | None, tuple[str, ...]]] = field(init=False, default_factory=dict)

    def sizes(self, split: schema.Split) -> tuple[Sizes | None, tuple[str, ...]]:
        """Those of the split of any replicate, since no seed decides of them; or None, and why it cannot be drawn."""
        if split not in self._drawn:
            self._drawn[split] = self._sizes(split)
        return self._drawn[split]

    def _sizes(self, split: schema.Split) -> tuple[Sizes | None, tuple[str, ...]]:
        problems: list[str] = []
        for tried in (split, split.model_copy(update={"stratify": False})):  # the second shows what the first hides
            try:
                drawn = draw_split(self.images, tried, 0, self.official_test, self.labels if tried.stratify else None)
            except DataError as error:
                problems.append(str(error))
                continue
            return Sizes(*map(len, drawn)), tuple(problems)
        return None, tuple(dict.fromkeys(problems))


def held_by(data: ImageSet) -> Held:
    """Of an opened data set."""
    classes = 0 if data.masks is None else len(data.classes)
    regions, depth = data.regions is not None, data.depth is not None
    return Held(len(data.images), classes, data.labels, data.official_test, regions, depth)


def held_by_listing(settings: schema.Data, listing: Listing | None) -> Held:
    """The same before anything is decoded: bad files still count. `listing` is None for what is generated."""
    regions, depth = settings.regions is not None, settings.depth is not None
    if isinstance(settings, schema.Scenes | schema.Volumes):
        exact = isinstance(settings, schema.Scenes)
        count = min(settings.images, settings.limit or settings.images)
        return Held(count, settings.classes, None, None, regions or exact, depth or exact)
    assert listing is not None
    classes = 0 if listing.mask_values is None else len(listing.classes)
    entries = listing.entries
    return Held(len(entries), classes, labels_of(entries), tests_of(entries), regions, depth)


def refuse(where: str, settings: StageSettings, data: schema.Data, held: Held, workers: int = 1) -> None:
    """Raises NeedsError with every problem of a stage. See `unmet`."""
    if problems := list(unmet(where, settings, data, held, workers)):
        raise RequirementsError(f"{where} cannot run on data.{settings.data}:", problems)


def unmet(where: str, settings: StageSettings, data: schema.Data, held: Held, workers: int = 1) -> Iterator[str]:
    """What a stage asks for in vain, a sentence each.

    Args:
        where: the stage's key, such as `pretrain` or `probe.knn`.
        data: the settings of its data set, with `val_fold` in place of `val_folds`.
        workers: of the stage; a batch divides among them.
    """
    sizes, problems = held.sizes(data.split)
    yield from (f"data.{settings.data}.{problem}" for problem in problems)
    there = f"data.{settings.data} ({data.dataset})"
    if isinstance(settings, schema.Pretrain):
        if not isinstance(settings.method, schema.Weights):  # those are read from a file
            yield from _pretrain(where, settings, data, held, sizes, there, workers)
    elif isinstance(settings, schema.Finetune):
        yield from _finetune(where, settings, data, held, sizes, there)
    else:
        yield from _probe(where, settings, data, held, sizes, there)


def _pretrain(
    where: str, settings: schema.Pretrain, data: schema.Data, held: Held, sizes: Sizes | None, there: str, workers: int
) -> Iterator[str]:
    method = settings.method
    required = schema.requirements_of(method)
    for wanted in sorted(required - {"images"}):
        called = CALLED.get(wanted, wanted)
        yield from _lacking(f"{where}.method: {method.name}", called, data, held, there, "another method")
    if settings.views.within == "region" and "regions" not in required:
        yield from _lacking(f"{where}.views.within: region", "regions", data, held, there, "`within: image`")
    if method.facts.classifier and held.labels is not None and (kinds := len(np.unique(held.labels))) < 2:
        yield f"{where}.method: {method.name} tells classes apart, and images of {there} are of {kinds}; add others"
    if settings.online_knn_every:
        key = f"{where}.online_knn_every: {settings.online_knn_every}"
        yield from _lacking(key, "image classes", data, held, there, "0")
        if sizes is not None and not sizes.val:
            yield f"{key} scores validation images, and {_leaves(data, settings.data, held)}"
    if sizes is None:
        return
    seen = {"train": sizes.train, "train+val": sizes.train + sizes.val, "all": sum(sizes)}[settings.sees]
    batch = min(settings.batch_size, seen)
    if seen < 2:
        yield (
            f"{where}.sees: {settings.sees} shows pretraining {_images(seen)} of the {held.images} of {there}, and it "
            "takes at least 2; add images, or make split.test and split.val smaller"
        )
    elif batch % workers:
        yield (
            f"{where}.batch_size: {settings.batch_size}, but pretraining sees {_images(seen)} of {there}, which do not "
            f"divide among {workers} workers; set it to {seen - seen % workers or workers}, or add images"
        )
    elif (parts := schema.batch_parts(method)) > 1 and batch < 2 * parts:
        yield (
            f"{where}.method.bn_splits: {parts} parts of 2 images or more need a batch of "
            f"{2 * parts}, and there are {batch} (batch_size {settings.batch_size}, {_images(seen)} to see "
            f"of {there}); set it to {max(1, batch // 2)} or less"
        )


def _finetune(
    where: str, settings: schema.Finetune, data: schema.Data, held: Held, sizes: Sizes | None, there: str
) -> Iterator[str]:
    yield from _lacking(f"{where}.data: {settings.data}", "masks", data, held, there, "other data")
    if held.mask_classes and held.mask_classes != 2 and settings.threshold_scores:
        yield (
            f"{where}.threshold_scores: true scores the foreground of two classes, and the masks of {there} have "
            f"{held.mask_classes}; leave it out"
        )
    if sizes is None:
        return
    if isinstance(settings.labels, int) and settings.labels > sizes.train:
        yield (
            f"{where}.labels: {settings.labels} labelled images asked for, and {there} has {_images(sizes.train)} "
            f"for training ({held.images} in all, {sizes.val} for validation, {sizes.test} for the test); "
            f"ask for {sizes.train} or fewer, or make split.test and split.val smaller"
        )
    for key, asked in (
        ("checkpoint: best", settings.checkpoint == "best"),
        (f"patience: {settings.patience}", settings.patience),
    ):
        if asked and not sizes.val:
            yield f"{where}.{key} goes by validation images, and {_leaves(data, settings.data, held)}"


def _probe(
    where: str, settings: schema.Probe, data: schema.Data, held: Held, sizes: Sizes | None, there: str
) -> Iterator[str]:
    if isinstance(settings, schema.KNN | schema.LinearProbe | schema.CAM):
        yield from _lacking(f"{where}: {settings.kind}", "image classes", data, held, there, "leave the probe out")
    if sizes is None:
        return
    if isinstance(settings, schema.CKA):
        count = sizes.val if settings.images == "val" else held.images
        batches = -(-count // settings.batch_size)
        if count < MIN_CKA_BATCH or count // batches < MIN_CKA_BATCH:
            yield (
                f"{where}: cka compares at least {MIN_CKA_BATCH} images at once, and {_images(count)} of {there} in "
                f"batches of at most {settings.batch_size} are fewer; take `images: all` or a larger split.val"
            )
    elif getattr(settings, "on", None) != "test" and not sizes.val:
        yield f"{where}: {settings.kind} is scored on validation images, and {_leaves(data, settings.data, held)}"


def _lacking(key: str, wanted: str, data: schema.Data, held: Held, there: str, other: str) -> Iterator[str]:
    has = {
        "masks": held.mask_classes > 0,
        "image classes": held.labels is not None,
        "regions": held.regions,
        "depth maps": held.depth,
    }
    if not has[wanted]:
        way = WAYS.get((wanted, data.dataset)) or ANYWHERE.get(wanted) or "take a data set that has them"
        last = other if other.startswith("leave") else f"take {other}"
        yield f"{key} needs {wanted}, and {there} has none; {way}, or {last}"


def _leaves(data: schema.Data, name: str, held: Held) -> str:
    asked = data.split.val_fold or data.split.val
    return f"data.{name}.split.val: {asked} of {_images(held.images)} leaves none; make it larger"


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
