"""Requirements of a stage against the facts of a data set: the one place where they are compared.

The facts come from the settings alone, from the listing (`pretune plan`, and `pretune run` before anything is
decoded), from the decoded images (`pretune run`, before anything is trained), and from what a worker opened.
Every sentence names the key and its value, what the data set has, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import MIN_CKA_BATCH
from pretune.trainables.data.errors import DataError, RequirementsError
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.listing import EntryNames, Listing
from pretune.trainables.data.sets.present import labels_of, marks_of, tests_of
from pretune.trainables.data.sets.scenes import SCENE_CLASSES
from pretune.trainables.data.sets.table import GENERATED, generated_indices
from pretune.trainables.data.sets.volumes import VOLUME_CLASSES
from pretune.trainables.data.splits import NOTHING_KNOWN, Marks, draw_split

StageSettings = schema.Pretrain | schema.Finetune | schema.Probe
Offer = Literal["masks", "image classes", "regions", "depth maps"]

# Words of messages for the maps that a method requires.
CALLED: dict[str, Offer] = {"masks": "masks", "labels": "image classes", "regions": "regions", "depth": "depth maps"}

# How a data set comes by what it lacks.
WAYS: dict[tuple[Offer, str], str] = {
    ("image classes", "image-folder"): "put its images into one folder for each class",
    ("image classes", "parquet"): "name the column that holds them as `label:`",
    ("image classes", "npz"): "add an array `labels` to the file",
    ("image classes", "stl10"): "set `part: labelled`",
    ("masks", "image-folder"): "set `dataset: image-mask-folder`, which reads images and masks",
    ("masks", "parquet"): "name the column that holds them as `mask:`",
    ("masks", "npz"): "add an array `masks` to the file",
    ("masks", "flowers102"): "set `masks: true`",
    ("masks", "flowers17"): "set `masks: true`",
    ("masks", "luna16"): "set `part: nodules`",
}
ANYWHERE: dict[Offer, str] = {
    "regions": "add `regions: {name: felzenszwalb}` to it (or slic, sam)",
    "depth maps": "add `depth: {weights: FOLDER}` to it",
}


class Sizes(NamedTuple):
    """Number of images of each part of a split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Facts:
    """Facts of a data set, as far as they are known."""

    images: int | None  # None: not counted, since the files are not at hand
    mask_classes: int  # 0 without masks
    labels: NDArray[np.int64] | None  # (images,)
    official_test: NDArray[np.bool_] | None  # (images,)
    regions: bool
    depth: bool
    unknown: frozenset[Offer] = frozenset()  # what only the files can tell
    classes: tuple[str, ...] = ()  # names of the mask classes; () where they are not known
    marks: Marks = field(default=NOTHING_KNOWN, compare=False)  # names, and what `split.file` says of the images
    _drawn: dict[schema.Split, tuple[Sizes | None, tuple[str, ...]]] = field(init=False, default_factory=dict)

    def lacks(self, wanted: Offer) -> bool:
        """Whether the data set certainly has no such thing."""
        has: dict[Offer, bool] = {
            "masks": self.mask_classes > 0,
            "image classes": self.labels is not None,
            "regions": self.regions,
            "depth maps": self.depth,
        }
        return wanted not in self.unknown and not has[wanted]

    def sizes(self, split: schema.Split) -> tuple[Sizes | None, tuple[str, ...]]:
        """Those of the split of any replicate, since no seed decides of them; or None, and why it cannot be drawn."""
        if self.images is None:
            return None, ()
        if split not in self._drawn:
            self._drawn[split] = self._draw(self.images, split)
        return self._drawn[split]

    def _draw(self, images: int, split: schema.Split) -> tuple[Sizes | None, tuple[str, ...]]:
        problems: list[str] = []
        if split.stratify == "pixels" and not self.lacks(
            "masks"
        ):  # which reads every mask; sizes differ by one at most
            split = split.model_copy(update={"stratify": False})
        for tried in (split, split.model_copy(update={"stratify": False})):  # the second shows what the first hides
            try:
                labels = self.labels if tried.stratify else None
                drawn = draw_split(images, tried, 0, self.official_test, labels, self.marks)
            except DataError as error:
                problems.append(str(error))
                continue
            return Sizes(*map(len, drawn)), tuple(problems)
        return None, tuple(dict.fromkeys(problems))


def facts_of_settings(settings: schema.Data) -> Facts:
    """Facts that hold whatever the files are; of generated data sets all of them."""
    regions, depth = settings.regions is not None, settings.depth is not None
    if isinstance(settings, GENERATED):
        exact = isinstance(settings, schema.Scenes)
        count = len(generated_indices(settings))
        names = (SCENE_CLASSES if exact else VOLUME_CLASSES)[: settings.classes]
        return Facts(count, settings.classes, None, None, regions or exact, depth or exact, classes=names)
    unknown: set[Offer] = {"image classes"} if isinstance(settings, schema.ImageFolder) else {"image classes", "masks"}
    named = getattr(settings, "classes", ())  # elsewhere it is a number, or the name of a set of classes
    classes = named if isinstance(named, tuple) else ()
    return Facts(None, 0, None, None, regions, depth, frozenset(unknown), classes)


def facts_of_listing(settings: schema.Data, listing: Listing) -> Facts:
    """Facts of the listed files, before anything is decoded: bad files still count."""
    classes = 0 if listing.mask_values is None else len(listing.classes)
    regions, depth = settings.regions is not None, settings.depth is not None
    entries = listing.entries
    names = listing.classes if classes else ()
    marks = Marks(EntryNames(entries), marks_of(entries, 0), marks_of(entries, 1))
    tests = tests_of(entries)
    return Facts(len(entries), classes, labels_of(entries), tests, regions, depth, classes=names, marks=marks)


def facts_of_images(data: ImageSet) -> Facts:
    """Facts of an opened data set."""
    classes = 0 if data.masks is None else len(data.classes)
    regions, depth = data.regions is not None, data.depth is not None
    names = data.classes if classes else ()
    marks = Marks(data.names, data.parts, data.groups)
    tests = data.official_test
    return Facts(len(data.images), classes, data.labels, tests, regions, depth, classes=names, marks=marks)


def check_requirements(where: str, settings: StageSettings, data: schema.Data, facts: Facts, workers: int = 1) -> None:
    """Raises RequirementsError with every unmet requirement of a stage. See `unmet`."""
    if problems := list(unmet(where, settings, data, facts, workers)):
        raise RequirementsError(f"{where} cannot run on data.{settings.data}:", problems)


def unmet(where: str, settings: StageSettings, data: schema.Data, facts: Facts, workers: int = 1) -> Iterator[str]:
    """Requirements of a stage that its data set does not meet, a sentence each.

    Args:
        where: the stage's key, such as `pretrain` or `probe.knn`.
        data: the settings of its data set, with `val_fold` in place of `val_folds`.
        workers: of the stage; a batch divides among them.
    """
    sizes, problems = facts.sizes(data.split)
    yield from (f"data.{settings.data}.{problem}" for problem in problems)
    stage = _Stage(where, settings.data, data, facts, sizes)
    if isinstance(settings, schema.Pretrain):
        if not isinstance(settings.method, schema.Weights):  # those are read from a file
            yield from _pretrain(stage, settings, workers)
    elif isinstance(settings, schema.Finetune):
        yield from _finetune(stage, settings)
    else:
        yield from _probe(stage, settings)


@dataclass(frozen=True)
class _Stage:
    """A stage's key, and the data set that it runs on."""

    where: str
    name: str  # of the data set in the study
    data: schema.Data
    facts: Facts
    sizes: Sizes | None  # None: the split cannot be drawn, or the images are not counted

    @property
    def there(self) -> str:
        return f"data.{self.name} ({self.data.dataset})"

    def lacks(self, key: str, wanted: Offer, other: str) -> Iterator[str]:
        if self.facts.lacks(wanted):
            way = WAYS.get((wanted, self.data.dataset)) or ANYWHERE.get(wanted) or "use a data set that has them"
            yield f"{key} needs {wanted}, but {self.there} has none; {way}, or {other}"

    def lacks_validation(self, key: str) -> Iterator[str]:
        """A sentence where no image is for validation; where images are not counted, `val: 0` leaves none for sure."""
        split = self.data.split
        counted = self.sizes is not None and not self.sizes.val
        if counted or (self.facts.images is None and split.val == 0 and split.val_fold is None):
            of = "" if self.facts.images is None else f" of {_images(self.facts.images)}"
            yield (
                f"{key} validation images, but data.{self.name}.split.val: {split.val_fold or split.val}{of} leaves "
                "none; make it larger"
            )

    def lacks_test(self, key: str) -> Iterator[str]:
        """A sentence where `split: none`, or `test: 0`, leaves no image to be scored on."""
        split = self.data.split
        if split.test == 0 and split.fold is None:
            yield f"{key} test images, but data.{self.name}.split.test: 0 leaves none; set 0.2, or official"


def _pretrain(stage: _Stage, settings: schema.Pretrain, workers: int) -> Iterator[str]:
    method, where, labels = settings.method, stage.where, stage.facts.labels
    required = schema.requirements_of(method) - {"images"}
    for wanted in sorted(required):
        yield from stage.lacks(f"{where}.method: {method.name}", CALLED[wanted], "use another method")
    if settings.views.within == "region" and "regions" not in required:
        yield from stage.lacks(f"{where}.views.within: region", "regions", "set `within: image`")
    if method.facts.classifier and labels is not None and (kinds := len(np.unique(labels))) < 2:
        yield f"{where}.method: {method.name} needs at least two image classes; {stage.there} has {kinds}"
    if settings.online_knn_every:
        key = f"{where}.online_knn_every: {settings.online_knn_every}"
        yield from stage.lacks(key, "image classes", "set it to 0")
        yield from stage.lacks_validation(f"{key} scores")
    if stage.sizes is not None:
        yield from _batch(stage, settings, stage.sizes, workers)
    yield from _lengths(stage, settings, seen_by(settings, stage.sizes))


def seen_by(settings: schema.Pretrain, sizes: Sizes | None) -> int | None:
    """Count the images that a pretraining sees; None where that is not known."""
    return None if sizes is None else sum(sizes[: 1 + ("train", "train+val", "all").index(settings.sees)])


def labelled_by(settings: schema.Finetune, sizes: Sizes | None) -> int | None:
    """Count the images that a fine-tuning is taught by; None where that is not known."""
    if isinstance(settings.labels, int):
        return settings.labels
    return None if sizes is None else max(1, round(sizes.train * settings.labels))


def _lengths(stage: _Stage, settings: schema.Pretrain | schema.Finetune, images: int | None) -> Iterator[str]:
    """Check what depends on the number of steps: the warm-up of a training given in steps, and queues."""
    pretrained = isinstance(settings, schema.Pretrain)
    batch = settings.batch_size if images is None else min(settings.batch_size, images)
    per_epoch = None if images is None else (images // batch if pretrained else -(-images // batch))
    if settings.steps is not None and per_epoch is not None:
        warm_up = settings.schedule.warmup_epochs * per_epoch
        if warm_up >= settings.steps:
            yield (
                f"{stage.where}.schedule.warmup_epochs: {settings.schedule.warmup_epochs} are {warm_up} steps of the "
                f"{settings.steps} trained ({per_epoch} to an epoch of {_images(images or 0)} of {stage.there}), and a "
                "warm-up must end before the training; lower it, or raise steps"
            )
    if isinstance(settings, schema.Pretrain):
        yield from _queue(stage, settings, batch, per_epoch)


def _queue(stage: _Stage, settings: schema.Pretrain, batch: int, per_epoch: int | None) -> Iterator[str]:
    """A queue takes a whole batch at once; SwAV's only once it is in use."""
    method = settings.method
    if not isinstance(method, schema.MoCo | schema.SwAV) or not method.queue or batch <= method.queue:
        return
    if isinstance(method, schema.SwAV):
        epochs = settings.epochs
        if settings.steps is not None and per_epoch is not None:
            epochs = -(-settings.steps // per_epoch)
        if epochs is not None and epochs <= method.queue_from_epoch:
            return
    or_none = ", set queue: 0" if isinstance(method, schema.SwAV) else ""
    yield (
        f"{stage.where}.method.queue: {method.queue} cannot hold a batch of {_images(batch)} "
        f"(batch_size {settings.batch_size}); set it to {batch} or more{or_none}, or lower batch_size"
    )


def _batch(stage: _Stage, settings: schema.Pretrain, sizes: Sizes, workers: int) -> Iterator[str]:
    """Requirements on the number of images that pretraining sees."""
    where, method = stage.where, settings.method
    seen = seen_by(settings, sizes) or 0
    batch = min(settings.batch_size, seen)
    if seen < 2:
        yield (
            f"{where}.sees: {settings.sees} shows pretraining {_images(seen)} of the {stage.facts.images} of "
            f"{stage.there}, but it needs at least 2; add images, or make split.test and split.val smaller"
        )
    elif batch % workers:
        yield (
            f"{where}.batch_size: {settings.batch_size}, but pretraining sees {_images(seen)} of {stage.there}, not "
            f"divisible by {workers} workers; set it to {seen - seen % workers or workers}, or add images"
        )
    elif (parts := schema.batch_parts(method)) > 1 and batch < 2 * parts:
        yield (
            f"{where}.method.bn_splits: {parts} parts of 2 images or more need a batch of {2 * parts}, and there are "
            f"{batch} (batch_size {settings.batch_size}, {_images(seen)} to see of {stage.there}); set it to "
            f"{max(1, batch // 2)} or less"
        )


def _finetune(stage: _Stage, settings: schema.Finetune) -> Iterator[str]:
    where, facts, sizes = stage.where, stage.facts, stage.sizes
    yield from stage.lacks(f"{where}.data: {settings.data}", "masks", "use another data set")
    yield from stage.lacks_test(f"{where} is scored on")
    if facts.mask_classes and facts.mask_classes != 2 and settings.threshold_scores:
        yield (
            f"{where}.threshold_scores: true needs exactly two classes, but the masks of {stage.there} have "
            f"{facts.mask_classes}; remove it"
        )
    if facts.classes and isinstance(settings.class_weights, dict):
        for name in [name for name in settings.class_weights if name not in facts.classes]:
            known = ", ".join(facts.classes)
            yield f"{where}.class_weights names {name!r}, but the classes of {stage.there} are {known}; use their names"
    if sizes is not None and isinstance(settings.labels, int) and settings.labels > sizes.train:
        yield (
            f"{where}.labels: {settings.labels} labelled images requested, but {stage.there} has "
            f"{_images(sizes.train)} for training ({facts.images} in all, {sizes.val} for validation, {sizes.test} for "
            f"the test); use {sizes.train} or fewer, or make split.test and split.val smaller"
        )
    if settings.checkpoint == "best":
        yield from stage.lacks_validation(f"{where}.checkpoint: best needs")
    if settings.patience:
        yield from stage.lacks_validation(f"{where}.patience: {settings.patience} needs")
    yield from _lengths(stage, settings, labelled_by(settings, sizes))


def _probe(stage: _Stage, settings: schema.Probe) -> Iterator[str]:
    where, sizes = stage.where, stage.sizes
    if isinstance(settings, schema.KNN | schema.LinearProbe | schema.CAM):
        yield from stage.lacks(f"{where}: {settings.kind}", "image classes", "remove the probe")
    if isinstance(settings, schema.CKA):
        if sizes is not None:
            yield from _cka(stage, settings, sum(sizes) if settings.images == "all" else sizes.val)
        elif settings.images == "val":
            yield from stage.lacks_validation(f"{where}: cka compares")
    elif getattr(settings, "on", None) == "test":
        yield from stage.lacks_test(f"{where}: {settings.kind} is scored on")
    else:
        yield from stage.lacks_validation(f"{where}: {settings.kind} is scored on")
    if isinstance(settings, schema.LinearProbe) and settings.batch_norm and sizes is not None:
        yield from _normalised(stage, settings, sizes.train + (sizes.val if settings.on == "test" else 0))


def _normalised(stage: _Stage, settings: schema.LinearProbe, count: int) -> Iterator[str]:
    """Batches of a linear probe are as even as they can be."""
    if count // -(-count // settings.batch_size) < 2:
        yield (
            f"{stage.where}.batch_norm: true takes statistics of a batch, and {_images(count)} of {stage.there} in "
            f"batches of at most {settings.batch_size} leave a batch of one; raise batch_size, or remove batch_norm"
        )


def _cka(stage: _Stage, settings: schema.CKA, count: int) -> Iterator[str]:
    if count < MIN_CKA_BATCH or count // -(-count // settings.batch_size) < MIN_CKA_BATCH:
        yield (
            f"{stage.where}: cka compares at least {MIN_CKA_BATCH} images at once, and {_images(count)} of "
            f"{stage.there} in batches of at most {settings.batch_size} are fewer; use `images: all` or a larger "
            "split.val"
        )


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
