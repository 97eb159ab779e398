"""Contents of a data set's masks, read one by one when they are asked for: before it is decoded, or from its copy.

`pretune plan` looks at a sample and says what it saw; both `plan` and `run` ask whether the images of a part have any
pixel that counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.decode.entry import decode
from pretune.trainables.data.decode.fitting import Fit, without_padding
from pretune.trainables.data.decode.palettes import Palette, Palettes
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, image_names
from pretune.trainables.data.listing import Listing, Member, file_of
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.data.sets import scenes, volumes
from pretune.trainables.data.sets.table import GENERATED, generated_indices, list_files

SAMPLE = 128  # images that a plan looks at, evenly spread over the data set
MAX_PACK = 1 << 28  # bytes of a file of many images that is opened for a look


class Looked(NamedTuple):
    """One image and its mask."""

    counts: NDArray[np.int64] | None  # (256,) pixels of each class, IGNORE last; None: no mask, or one of no use
    problems: tuple[str, ...] = ()  # why it cannot be used
    palette: Palette | None = None  # of the mask's file
    transparent: bool = False  # whether part of the image was laid over black


MOST_READ = 5_000  # masks, some ten seconds' worth, to be sure that they hold one class alone


@dataclass(frozen=True)
class Glance:
    """Masks of a data set, each read when it is asked for, and remembered."""

    images: int
    classes: tuple[str, ...]  # names of the mask classes; () without masks
    look: Callable[[int], Looked]
    exact: bool  # whether rows are those of the decoded set: files that `on_error: skip` excludes would shift them
    opened: ImageSet | None = None  # the decoded set, where it is the one that is looked at

    def scored(self, row: int) -> bool:
        """Whether the mask has a pixel that losses and scores count."""
        counts = self.look(row).counts
        return counts is None or bool(counts[:IGNORE].any())

    def only_class(self) -> str | None:
        """The one class that all masks hold; None where there are several, none, or too many masks to read them all.

        Masks from all over the set come first: almost always the first few show two classes.
        """
        if self.images > MOST_READ:
            return None
        held: set[int] = set()
        spread = np.linspace(0, self.images - 1, SAMPLE).astype(np.int64).tolist()
        for row in dict.fromkeys([*spread, *range(self.images)]):
            counts = self.look(row).counts
            if counts is None:
                return None
            held |= set(np.flatnonzero(counts[:IGNORE]).tolist())
            if len(held) > 1:
                return None
        return self.classes[held.pop()] if held else None


class Contents(NamedTuple):
    """Contents of a sample of a data set's masks."""

    images: int  # of the data set
    looked_at: int
    usable: int  # of those that were looked at
    shares: dict[str, float]  # class -> share of the pixels that were looked at, `ignored` last where there are any
    absent: tuple[str, ...]  # classes in no mask that was looked at
    problems: tuple[str, ...]  # why files that were looked at cannot be used
    transparent: int = 0  # images that were looked at of which part was laid over black


def glance_at_images(data: ImageSet, fit: Fit) -> Glance:
    """Return the glance of an opened data set."""
    masks = data.masks
    if masks is None:
        return Glance(len(data.images), (), lambda row: Looked(None), exact=True, opened=data)

    @functools.cache
    def look(row: int) -> Looked:
        return Looked(class_counts(np.asarray(masks[np.array([row])]), fit))

    return Glance(len(data.images), data.classes, look, exact=True, opened=data)


def glance(settings: schema.Data, data_root: Path | None, cache: Path | None, digest: str) -> Glance | None:
    """Return the glance of a data set as it lies there, or of its copy in the cache.

    None where masks cannot be looked at one by one. Raises DataError.
    """
    if cache is not None and (found := open_cached(digest, cache)) is not None:
        return glance_at_images(found, settings.fit)
    if isinstance(settings, GENERATED):
        return _generated(settings)
    listing = list_files(settings, data_root)
    if listing.mask_values is None or isinstance(settings, schema.LUNA16) or not _can_look(listing):
        return None
    return Glance(len(listing.entries), listing.classes, _reader(settings, listing), settings.on_error == "fail")


def _generated(settings: schema.Scenes | schema.Volumes) -> Glance:
    indices, size, classes = generated_indices(settings), settings.cache_size, settings.classes

    @functools.cache
    def look(row: int) -> Looked:
        if isinstance(settings, schema.Scenes):
            return Looked(
                class_counts(scenes.generate_scene(settings.seed, indices[row], size, classes).mask, "squash")
            )
        volume = volumes.generate_volume(settings.seed, indices[row], settings.slices, size, classes)
        return Looked(class_counts(volume.mask, "squash"))

    names = scenes.SCENE_CLASSES if isinstance(settings, schema.Scenes) else volumes.VOLUME_CLASSES
    return Glance(len(indices), names[:classes], look, exact=True)


def _can_look(listing: Listing) -> bool:
    """Single files can be; a file of many images only if it is here and not large."""
    sources = (listing.entries[0].image, listing.entries[0].mask)
    packs = [file_of(source) for source in sources if isinstance(source, Member)]
    return all(pack.is_file() and pack.stat().st_size <= MAX_PACK for pack in packs)


def _reader(settings: schema.Data, listing: Listing) -> Callable[[int], Looked]:
    unpack = None if listing.unpack is None else functools.lru_cache(maxsize=1)(listing.unpack)

    @functools.cache
    def look(row: int) -> Looked:
        read = decode(listing.entries[row], listing, unpack, settings.cache_size, settings.fit)
        counts = None if read.mask is None else class_counts(read.mask, settings.fit)
        return Looked(counts, read.problems, read.palette, read.transparent)

    return look


def class_counts(masks: NDArray[np.uint8], fit: Fit) -> NDArray[np.int64]:
    """(256,) pixels of each class without padding, IGNORE last; `masks` (..., S, S)."""
    planes = masks.reshape(-1, *masks.shape[-2:])
    counts: NDArray[np.int64] = np.sum(
        [np.bincount(without_padding(p, fit).ravel(), minlength=IGNORE + 1) for p in planes], axis=0
    )
    return counts


def contents(settings: schema.Data, seen: Glance, listing: Listing | None) -> Contents:
    """Look at a sample. Raises DataError where no pair of the data set can be used, or palettes differ."""
    rows = np.unique(np.linspace(0, seen.images - 1, SAMPLE).astype(np.int64)).tolist()
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL
        looked = dict(zip(rows, pool.map(seen.look, rows), strict=True))
    if listing is not None and all(one.problems for one in looked.values()):
        problems = [problem for one in looked.values() for problem in one.problems]
        others = (row for row in range(seen.images) if row not in looked and settings.on_error == "skip")
        if all(seen.look(row).problems for row in others):
            many = f"{len(looked)} of {seen.images}" if len(looked) < seen.images else f"{seen.images}"
            where = f"{settings.dataset} in {listing.root}"
            raise DataError(f"{where}: none of the {many} pairs that were looked at can be used:", problems)
    if listing is not None:
        palettes = Palettes(listing)
        for row, one in looked.items():
            palettes.check(listing.entries[row], one.palette)
    held = [one.counts for one in looked.values() if one.counts is not None]
    total = np.sum(held, axis=0) if held else np.zeros(IGNORE + 1, np.int64)
    shares = {name: float(total[i] / max(1, total.sum())) for i, name in enumerate(seen.classes)}
    absent = tuple(name for i, name in enumerate(seen.classes) if held and total[i] == 0)
    if total[IGNORE]:
        shares["ignored"] = float(total[IGNORE] / total.sum())
    bad = tuple(problem for one in looked.values() for problem in one.problems)
    usable_count = sum(not one.problems for one in looked.values())
    by_row = () if listing is None else (listing.entries[row].name for row, one in looked.items() if one.transparent)
    transparent = len(image_names(by_row))
    return Contents(seen.images, len(rows), usable_count, shares if held else {}, absent, bad, transparent)
