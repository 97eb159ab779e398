"""Open a data set as a stream, and find its bad files where `on_error: skip` asks which to exclude."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.checksums import sealed, unsealed
from pretune.trainables.data.decode.entry import decode
from pretune.trainables.data.decode.palettes import Palettes
from pretune.trainables.data.errors import printable
from pretune.trainables.data.image_set import ImageSet, Progress, image_names
from pretune.trainables.data.listing import Columns, Entry, EntryNames, Listing, refuse_bad_files
from pretune.trainables.data.sets.parquet import Reader, Shards
from pretune.trainables.data.sets.present import labels_of, marks_of, tests_of
from pretune.trainables.data.streaming.stream import Column, Recipe, Stream

SAMPLE = 128  # images that are looked at before a study
CHECKED = 256  # images of one step of the pass that finds bad files


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


def open_streamed(settings: schema.Data, listing: Listing, digest: str, cache: Path, processes: int) -> ImageSet:
    """The data set `digest`, decoded while it is asked for. Raises DataError as `usable_rows`."""
    rows, skipped = usable_rows(settings, listing, digest, cache, None)
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
        names=EntryNames(entries),
        classes=listing.classes,
        skipped=tuple(map(printable, skipped)),
        label_names=tuple(map(printable, listing.label_names)),
        parts=marks_of(entries, 0),
        groups=marks_of(entries, 1),
        transparent=_transparent(digest, cache),
        stream=stream,
    )


def look_at_sample(settings: schema.Data, listing: Listing, digest: str, cache: Path) -> None:
    """Look at some images before a study: their names are remembered where part of them is laid over black.

    Raises DataError where palettes of masks differ. Damaged files are reported when they come.
    """
    recipe = Recipe(listing.entries, replace(listing, entries=()), settings.cache_size, settings.fit)
    rows = np.unique(np.linspace(0, len(listing.entries) - 1, SAMPLE).astype(np.int64))
    entries = [listing.entries[int(row)] for row in rows]
    unpack, palettes, transparent = recipe.opener(entries), Palettes(listing), []
    for entry in entries:
        found = decode(entry, listing, unpack, recipe.size, recipe.fit)
        palettes.check(entry, found.palette)
        transparent += [entry.name] * found.transparent
    if transparent:
        cache.mkdir(parents=True, exist_ok=True)
        _write_whole(_sample_file(digest, cache), sealed(transparent))


def _transparent(digest: str, cache: Path) -> tuple[str, ...]:
    file = _sample_file(digest, cache)
    return tuple(map(printable, image_names(unsealed(file) or ())))


def _sample_file(digest: str, cache: Path) -> Path:
    return cache / f"{digest}.transparent.json"


def usable_rows(
    settings: schema.Data, listing: Listing, digest: str, cache: Path, progress: Progress | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Rows that can be used (None: all are taken to be), and what is wrong with the others. Raises DataError."""
    if settings.on_error == "fail":
        refuse_bad_files(settings, listing, listing.problems, range(len(listing.entries)))
        return None, ()
    file = cache / f"{digest}.usable.json"
    if (found := unsealed(file)) is None:
        cache.mkdir(parents=True, exist_ok=True)
        found = _find_bad(settings, listing, progress)
        _write_whole(file, sealed(found))
    bad = {int(row): problems for row, problems in found.items()}
    good = np.setdiff1d(np.arange(len(listing.entries)), np.array(list(bad), np.int64))
    skipped = (*listing.problems, *(problem for problems in bad.values() for problem in problems))
    refuse_bad_files(settings, listing, skipped, good.tolist())
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


def _write_whole(file: Path, text: str) -> None:
    """Under its name only once it is whole: others may read it at any time."""
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
