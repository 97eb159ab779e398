"""Rules between the numbers of one stage, so that it can be built and trains something.

These rules need neither data nor torch; those that need the number of images stand in
`trainables/data/checks/requirements.py`, those that need the network in `trainables/buildable.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pretune.search_spaces.document import KeyPath, Locations, Problem
from pretune.search_spaces.schema import (
    DINO,
    MAE,
    Configuration,
    FeatureMaps,
    Finetune,
    Header,
    Method,
    Pretrain,
    Step,
    SwAV,
    levels_of,
)


def check_building(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    """Numbers with which a stage cannot be built, or with which it would train nothing."""
    trained: list[tuple[KeyPath, Pretrain | Finetune]] = [
        (("pretrain", i), stage) for i, stage in enumerate(settings.pretrain)
    ]
    trained += [] if settings.finetune is None else [(("finetune",), settings.finetune)]
    for path, stage in trained:
        yield from _check_warmup(stage, path, locations)
    for i, stage in enumerate(settings.pretrain):
        yield from _check_unit_length(stage.method, ("pretrain", i, "method"), locations)
        yield from _check_local_views(stage, settings.model.stride, ("pretrain", i), locations)
        if isinstance(stage.method, MAE):
            yield from _check_masking(stage.method, stage.views.size, ("pretrain", i, "method"), locations)
    yield from _check_feature_maps(settings, locations)


def _check_warmup(stage: Pretrain | Finetune, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    """The whole training, however much of it a rung or `stop_after` runs; of one in steps the data's size decides."""
    if stage.epochs is not None and stage.schedule.warmup_epochs >= stage.epochs:
        what = f"a warm-up of {stage.schedule.warmup_epochs} epochs does not end within the {stage.epochs} trained"
        fix = f"set it below {stage.epochs}" if stage.epochs > 1 else "set it to 0"
        yield locations.problem((*path, "schedule", "warmup_epochs"), what, fix)


def _check_local_views(stage: Pretrain, stride: int | None, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    method = stage.method
    if stride and isinstance(method, DINO | SwAV) and method.local_views and method.local_size < stride:
        what = f"small views of {method.local_size} px are below {stride}, what the encoder needs"
        yield locations.problem((*path, "method", "local_size"), what, f"set it to {stride} or more")


def _check_unit_length(method: Method, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    """One number that is scaled to length 1 is 1 or -1, whatever the encoder gives: it has no gradient."""
    name = method.facts.unit_length
    if name is not None and getattr(method, name) == 1:
        what = (
            f"one output, scaled to length 1, is 1 or -1 and has no gradient: {method.name} would learn nothing by it"
        )
        yield locations.problem((*path, name), what, "set it to 2 or more; 128 is usual")


def _check_masking(method: MAE, size: int, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    """A share of few patches rounds to none, or to all of them."""
    if method.masking == "none":
        return
    side = method.patch if method.masking == "patches" else 1
    parts = (-(-size // side)) ** 2
    masked = round(method.ratio * parts)
    if 0 < masked < parts:
        return
    amount = f"a ratio of {method.ratio:g} masks {'nothing' if masked == 0 else 'everything'}"
    if method.masking == "pixels":
        yield locations.problem((*path, "ratio"), f"{amount} of {parts} pixels ({size} px views)", "take another ratio")
        return
    held = "one patch covers" if parts == 1 else f"{parts} patches cover"
    what = f"{held} a view of {size} px (patch {side}), and {amount}"
    yield locations.problem((*path, "patch"), what, _smaller_patch(method.ratio, size))


def _smaller_patch(ratio: float, size: int) -> str:
    """P2's patch has 20 px in a view of 64; smaller ones where that masks no part of the view either."""
    for side in range(max(1, 20 * size // 64), 0, -1):
        parts = (-(-size // side)) ** 2
        if 0 < round(ratio * parts) < parts:
            return f"set patch to {side}, or take another ratio"
    return "take another ratio"


def _check_feature_maps(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    held = levels_of(settings.model)
    for name, probe in settings.probe.items():
        if isinstance(probe, FeatureMaps) and held is not None and probe.level > held:
            what = f"level {probe.level}, and the encoder has {held} levels"
            yield locations.problem(("probe", name, "level"), what, f"at most {held}")


def never_reached(settings: Configuration) -> Iterator[str]:
    """Settings that wait for an epoch behind the last, and so change nothing; of trainings in steps nothing is said."""
    stages: list[tuple[str, Pretrain | Finetune]] = [("pretrain", stage) for stage in settings.pretrain]
    stages += [] if settings.finetune is None else [("finetune", settings.finetune)]
    for part, stage in stages:
        for key, epoch, then in _awaited(stage):
            if stage.epochs is not None and epoch >= stage.epochs:
                yield f"{part}.{key} is {epoch}, and {stage.epochs} epochs are trained: {then}"
    yield from _levels_left(settings)


def _levels_left(settings: Configuration) -> Iterator[str]:
    """Levels of the encoder that gradual unfreezing does not come to; those of timm's backbones are not known here."""
    stage, levels = settings.finetune, levels_of(settings.model)
    if stage is None or stage.unfreeze_epoch is None or stage.unfreeze_every is None or levels is None:
        return
    every, epochs = stage.unfreeze_every, stage.epochs
    if levels == 1:
        yield f"finetune.unfreeze_every is {every}, and the encoder has one level: it changes nothing"
    elif epochs is not None and stage.unfreeze_epoch < epochs:
        trained = min(levels, 1 + (epochs - 1 - stage.unfreeze_epoch) // every)
        if trained < levels:
            left = f"{levels - trained} of the encoder's {levels} levels, the finest, stay frozen"
            yield f"finetune.unfreeze_every is {every}, and {epochs} epochs are trained: {left}"


def _awaited(stage: Pretrain | Finetune) -> Iterator[tuple[str, int, str]]:
    """Key, epoch from which on it changes something, and what is so before."""
    if isinstance(stage.schedule, Step):
        yield "schedule.every", stage.schedule.every, "the rate never falls"
    if isinstance(stage, Finetune):
        if stage.unfreeze_epoch is not None:
            yield "unfreeze_epoch", stage.unfreeze_epoch, "the encoder stays frozen"
        return
    method = stage.method
    if isinstance(method, DINO):
        yield "method.freeze_last_epochs", method.freeze_last_epochs, "the last layer never moves"
        if method.teacher_temperature_start != method.teacher_temperature:
            warmup = method.teacher_warmup_epochs
            yield "method.teacher_warmup_epochs", warmup, "the teacher's temperature does not come to its value"
    if isinstance(method, SwAV):
        yield "method.freeze_prototypes_epochs", method.freeze_prototypes_epochs, "the prototypes never move"
        if method.queue:
            yield "method.queue_from_epoch", method.queue_from_epoch, "the queue is never used"


def check_axes(header: Header, locations: Locations) -> Iterator[Problem]:
    """A factor stands either in the rows of the table or in its columns, and once."""
    rows, columns = header.report.rows or (), header.report.columns or ()
    for name in dict.fromkeys(rows):
        if name in columns:
            what = f"factor {name!r} is in the rows and in the columns of the table"
            yield locations.problem(("report", "columns"), what, "leave it out of one of them")
    for key, names in (("rows", rows), ("columns", columns)):
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield locations.problem(("report", key), f"factor {name!r} is named twice", "name it once")
