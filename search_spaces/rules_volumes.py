"""Rules between settings and the kind of images: volumes, who takes them and at which size; numbers of channels."""

from __future__ import annotations

from collections.abc import Iterator

from pretune.search_spaces.document import KeyPath, Locations, Problem
from pretune.search_spaces.schema import (
    FACTS,
    Augment,
    Configuration,
    Views,
    channels_of,
    dimensions_of,
    image_channels,
    slices_of,
)


def check_volumes(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    users: list[tuple[KeyPath, str]] = [(("pretrain", i), stage.data) for i, stage in enumerate(settings.pretrain)]
    users += [] if settings.finetune is None else [(("finetune",), settings.finetune.data)]
    users += [(("probe", key), probe.data) for key, probe in settings.probe.items()]
    for path, name in users:
        data = settings.data.get(name)
        if data is None:
            continue
        slices, solid = slices_of(data), dimensions_of(settings.model) == 3
        if slices is None and solid:
            what = f"the model {settings.model.name} takes volumes, and {name} holds images"
            yield locations.problem((*path, "data"), what, "set model.dimensions: 2")
        elif slices is not None and not solid:
            what = f"the model {settings.model.name} takes images, and {name} holds volumes"
            yield locations.problem((*path, "data"), what, "use model: {name: genesis-unet}")
        elif not solid and (held := image_channels(data)) != (taken := channels_of(settings.model)):
            what = f"the model {settings.model.name} takes {taken} channels, and images of {name} have {held}"
            genesis = settings.model.name == "genesis-unet"
            fix = "take another model" if genesis else f"set model.channels: {held}"
            yield locations.problem((*path, "data"), what, fix)
        elif slices is not None and (stride := settings.model.stride) is not None and slices % stride:
            what = f"{slices} slices are not a multiple of {stride}, as the model needs"
            yield locations.problem(("data", name, "slices"), what)
    yield from _check_pretrain(settings, locations)
    yield from _check_finetune(settings, locations)
    for key, probe in settings.probe.items():
        if _holds_volumes(settings, probe.data):
            yield locations.problem(("probe", key, "data"), "probes take images, not volumes", "leave the probe out")


def _check_pretrain(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    for i, stage in enumerate(settings.pretrain):
        if not _holds_volumes(settings, stage.data):
            continue
        path: KeyPath = ("pretrain", i)
        if not stage.method.facts.volumes:
            able = " or ".join(name for name, facts in FACTS.items() if facts.trains and facts.volumes)
            what = f"{stage.method.name} takes images, and {stage.data} holds volumes"
            yield locations.problem((*path, "method", "name"), what, f"use {able}")
        yield from _check_size(settings, stage.data, stage.views.size, (*path, "views", "size"), locations)
        if stage.views != Views(size=stage.views.size):
            what = "views of volumes are whole; of these settings only `size` is used"
            yield locations.problem((*path, "views"), what, "leave the others out (genesis has a flip of its own)")


def _check_finetune(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    finetune = settings.finetune
    if finetune is None or not _holds_volumes(settings, finetune.data):
        return
    yield from _check_size(settings, finetune.data, finetune.size, ("finetune", "size"), locations)
    if finetune.test_sizes:
        what = "volumes are taken whole, at one size"
        yield locations.problem(("finetune", "test_sizes"), what, "leave it out")
    if finetune.augment != Augment(flip=finetune.augment.flip):
        yield locations.problem(("finetune", "augment"), "volumes are flipped, not cropped", "leave out all but `flip`")


def _check_size(
    settings: Configuration, name: str, size: int, path: KeyPath, locations: Locations
) -> Iterator[Problem]:
    if size != (held := settings.data[name].cache_size):
        what = f"volumes are taken whole: {size} px is not the {held} px of {name}"
        yield locations.problem(path, what, f"set it to {held}")


def _holds_volumes(settings: Configuration, name: str) -> bool:
    return name in settings.data and slices_of(settings.data[name]) is not None
