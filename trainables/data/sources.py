"""Resident or streaming: where a stage's images come from. It changes no digit, so it is in no fingerprint.

prepare    before a study: check the data set, decode it where it is to be resident
open_set   in a stage: the memory-mapped copy, or a stream
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Columns, Entry, Listing
from pretune.trainables.data.printable import printable
from pretune.trainables.data.resident import images
from pretune.trainables.data.resident.images import ImageSet, Progress
from pretune.trainables.data.sets.parquet import Reader, Shards
from pretune.trainables.data.streaming.stream import Column, Recipe, Stream

SHARE = 0.5  # of the memory, that a resident set may take: beyond, its pages are read again from disk in every epoch
CHECKED = 256  # images of one step of the pass that finds bad files


class Choice(NamedTuple):
    source: Literal["resident", "streaming"]
    why: str  # one line for the log


@dataclass(frozen=True)
class Names(Sequence[str]):
    """Names of entries, made when they are asked for."""

    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        found = self.entries[index]
        return tuple(printable(entry.name) for entry in found) if isinstance(index, slice) else printable(found.name)


@dataclass(frozen=True)
class Picked(Sequence[Entry]):
    """Some of the entries."""

    entries: Sequence[Entry]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return (
            tuple(self[i] for i in range(*index.indices(len(self))))
            if isinstance(index, slice)
            else self.entries[int(self.rows[index])]
        )


def choose(settings: schema.Data, count: int, masks: bool, cache: Path, memory: int | None = None) -> Choice:
    """What `source:` says; where that is auto, by the size of the decoded set against memory (bytes) and disk."""
    size = count * settings.cache_size**2 * (3 + masks)
    text = f"{count:,} images, {size / 1e9:.3g} GB decoded"
    if settings.source != "auto":
        return Choice(settings.source, f"{text}: {settings.source}, as `source:` says")
    memory = memory_bytes() if memory is None else memory
    if size > SHARE * memory:
        return Choice("streaming", f"{text}, over half of the memory ({memory / 1e9:.3g} GB): streaming")
    free = shutil.disk_usage(next(path for path in (cache, *cache.absolute().parents) if path.exists())).free
    if size > 0.9 * free:
        return Choice("streaming", f"{text}, and the cache's disk has {free / 1e9:.3g} GB free: streaming")
    return Choice("resident", f"{text}: resident")


def memory_bytes() -> int:
    """Of this machine, or what its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical


def prepare(
    settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None
) -> tuple[str, Choice]:
    """The data set's digest, and where its images will come from; a resident set is decoded now.

    Raises DataError: for a resident set naming every bad file; for a streamed one what names and sizes show, and every
    bad file only under `on_error: skip`, which takes one pass over all files to know which to leave out.
    """
    choice = chosen(settings, data_root, cache)
    if choice.source == "resident":
        return images.ensure(settings, data_root, cache, progress), choice
    listing = images.listed(settings, data_root)
    name = images.digest(settings, data_root, cache)
    _usable(settings, listing, name, cache, progress)
    return name, choice


def chosen(settings: schema.Data, data_root: Path | None, cache: Path) -> Choice:
    """Where the images will come from and why; nothing is decoded. Raises DataError where it cannot be as asked."""
    listing = _listing(settings, data_root)
    if listing is None:
        return Choice("resident", "generated: resident")
    choice = choose(settings, len(listing.entries), listing.mask_values is not None, cache)
    if choice.source == "resident" or not (reason := why_not(settings, listing)):
        return choice
    if settings.source == "streaming":
        maps = [f"`{name}:`" for name in ("regions", "depth") if getattr(settings, name) is not None]
        without = f", or leave {' and '.join(maps)} out" if maps else ""
        raise DataError(
            f"{settings.dataset}: `source: streaming` cannot be had, since {reason}; set `source: resident`{without}"
        )
    return Choice("resident", f"{choice.why.removesuffix('streaming')}resident all the same, since {reason}")


def open_set(settings: schema.Data, digest: str, data_root: Path | None, cache: Path, processes: int = 1) -> ImageSet:
    """The data set `digest` as the settings want it; a resident copy that is there is taken under `auto`."""
    found = None if settings.source == "streaming" else images.open_cached(digest, cache)
    if found is None:
        listing = _listing(settings, data_root)
        if listing is None or _resident(settings, listing, cache):
            found = images.load(settings, data_root, cache)
        else:
            found = _streamed(settings, listing, digest, cache, processes)
    return replace(found, shuffle_window=settings.shuffle_window)


def _resident(settings: schema.Data, listing: Listing, cache: Path) -> bool:
    masks = listing.mask_values is not None
    return bool(why_not(settings, listing)) or choose(settings, len(listing.entries), masks, cache).source == "resident"


def why_not(settings: schema.Data, listing: Listing) -> str:
    """Why a data set cannot be streamed, or nothing."""
    maps = [name for name in ("regions", "depth") if getattr(settings, name) is not None]
    if maps:
        return f"{' and '.join(f'`{name}:`' for name in maps)} are computed from the decoded copy"
    if listing.unpack is not None and not isinstance(listing.unpack, Reader) and settings.dataset != "stl10":
        return "its images lie in files that are only read whole (Parquet shards are not)"
    return ""


def _listing(settings: schema.Data, data_root: Path | None) -> Listing | None:
    return None if isinstance(settings, images.GENERATED) else images.listed(settings, data_root)


def _streamed(settings: schema.Data, listing: Listing, digest: str, cache: Path, processes: int) -> ImageSet:
    rows, skipped = _usable(settings, listing, digest, cache, None)
    entries = listing.entries if rows is None else Picked(listing.entries, rows)
    light = entries if isinstance(listing.entries, Shards) else Columns(entries, listing.root)
    recipe = Recipe(light, replace(listing, entries=()), settings.cache_size, settings.fit)
    stream = Stream(recipe, processes, settings.shuffle_window if isinstance(listing.unpack, Reader) else None)
    return ImageSet(
        images=Column(stream),
        masks=None if listing.mask_values is None else Column(stream, masks=True),
        regions=None,
        depth=None,
        labels=labels_of(entries),
        official_test=tests_of(entries),
        names=Names(entries),
        classes=listing.classes,
        skipped=tuple(map(printable, skipped)),
        label_names=tuple(map(printable, listing.label_names)),
    )


def labels_of(entries: Sequence[Entry]) -> NDArray[np.int64] | None:
    """(N,) image classes, where every entry has one."""
    if isinstance(entries, Shards):
        return entries.labels
    labels = [entry.label for entry in entries]
    return None if not labels or None in labels else np.array(labels, np.int64)


def tests_of(entries: Sequence[Entry]) -> NDArray[np.bool_] | None:
    """(N,) whether an image is on the data set's own test list, where it has one."""
    if isinstance(entries, Shards):
        return None
    tests = [entry.test for entry in entries]
    return None if not tests or None in tests else np.array(tests, np.bool_)


def _usable(
    settings: schema.Data, listing: Listing, digest: str, cache: Path, progress: Progress | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Rows that can be used (None: all are taken to be), and what is wrong with the others. Raises DataError."""
    if settings.on_error == "fail":
        images.check(settings, listing, listing.problems, range(len(listing.entries)))
        return None, ()
    file = cache / f"{digest}.usable.json"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(_find_bad(settings, listing, progress)), encoding="utf-8")
        os.replace(part, file)
    bad = {int(row): problems for row, problems in json.loads(file.read_text(encoding="utf-8")).items()}
    good = np.setdiff1d(np.arange(len(listing.entries)), np.array(list(bad), np.int64))
    skipped = (*listing.problems, *(problem for problems in bad.values() for problem in problems))
    images.check(settings, listing, skipped, good.tolist())
    return (good if bad else None), skipped


def _find_bad(settings: schema.Data, listing: Listing, progress: Progress | None) -> dict[int, list[str]]:
    """Decode everything once and keep nothing: row -> what is wrong with it."""
    recipe = Recipe(listing.entries, replace(listing, entries=()), settings.cache_size, settings.fit)
    bad: dict[int, list[str]] = {}
    count = len(listing.entries)
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, CHECKED):
            rows = np.arange(start, min(start + CHECKED, count))
            if recipe.decoded(rows, pool)[1]:
                bad |= {int(row): found for row in rows if (found := recipe.decoded(np.array([row]))[1])}
            if progress is not None:
                progress(int(rows[-1]) + 1, count)
    return bad
