"""Sources of images: resident or streaming. The choice changes no digit, so it is in no fingerprint.

prepare    before a study: check the data set, decode it where it is to be resident
open_set   in a stage: the memory-mapped copy, or a stream
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, Progress
from pretune.trainables.data.listing import Listing
from pretune.trainables.data.resident.build import ensure_built, load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.data.sets.parquet import Reader
from pretune.trainables.data.sets.table import GENERATED, list_files
from pretune.trainables.data.streaming.open import look_at_sample, open_streamed, usable_rows

SHARE = 0.5  # of the memory, that a resident set may take: beyond, its pages are read again from disk in every epoch
HOW = {
    "resident": "decoded once, then kept in the cache (setting `source: resident`)",
    "streaming": "decoded again in every epoch (setting `source: streaming`)",
}


class Choice(NamedTuple):
    """A source, and why it was chosen."""

    source: Literal["resident", "streaming"]
    why: str  # one line for the log


def choose_by_size(settings: schema.Data, count: int, masks: bool, cache: Path, memory: int | None = None) -> Choice:
    """The source that `source:` names; for auto, by the size of the decoded set against memory (bytes) and disk."""
    size = count * settings.cache_size**2 * (schema.image_channels(settings) + masks)
    text = f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
    if settings.source != "auto":
        return Choice(settings.source, f"{text}, {HOW[settings.source]}, as the study asks")
    memory = memory_bytes() if memory is None else memory
    if size > SHARE * memory:
        return Choice("streaming", f"{text}, more than half of the memory ({memory / 1e9:.3g} GB): {HOW['streaming']}")
    free = shutil.disk_usage(next(path for path in (cache, *cache.absolute().parents) if path.exists())).free
    if size > 0.9 * free:
        return Choice(
            "streaming", f"{text}, but the disk of the cache has only {free / 1e9:.3g} GB free: {HOW['streaming']}"
        )
    return Choice("resident", f"{text}, {HOW['resident']}")


def memory_bytes() -> int:
    """Memory of this computer, or what its container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical


def prepare(
    settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None
) -> tuple[str, Choice]:
    """The data set's digest, and where its images will come from; a resident set is decoded now.

    Raises DataError: for a resident set naming every bad file; for a streamed one what names, sizes and a look at some
    images show, and every bad file only under `on_error: skip`, which takes one pass over all files to know which to
    exclude.
    """
    choice = choose_source(settings, data_root, cache)
    if choice.source == "resident":
        return ensure_built(settings, data_root, cache, progress), choice
    listing = list_files(settings, data_root)
    name = content_digest(settings, data_root, cache)
    usable_rows(settings, listing, name, cache, progress)
    look_at_sample(settings, listing, name, cache)
    return name, choice


def choose_source(settings: schema.Data, data_root: Path | None, cache: Path) -> Choice:
    """Choose the source of the images, and say why; decodes nothing. Raises DataError where it cannot be as asked."""
    listing = _listing(settings, data_root)
    if listing is None:
        return Choice("resident", f"generated images, {HOW['resident']}")
    choice = choose_by_size(settings, len(listing.entries), listing.mask_values is not None, cache)
    if choice.source == "resident" or not (reason := why_not(settings, listing)):
        return choice
    if settings.source == "streaming":
        maps = [f"`{name}:`" for name in ("regions", "depth") if getattr(settings, name) is not None]
        without = f", or remove {' and '.join(maps)}" if maps else ""
        raise DataError(
            f"{settings.dataset}: `source: streaming` is not possible because {reason}; set `source: resident`{without}"
        )
    return Choice("resident", f"{choice.why.removesuffix(HOW['streaming'])}still {HOW['resident']}, because {reason}")


def open_set(settings: schema.Data, digest: str, data_root: Path | None, cache: Path, processes: int = 1) -> ImageSet:
    """The data set `digest` as the settings want it; a resident copy that is there is taken under `auto`."""
    found = None if settings.source == "streaming" else open_cached(digest, cache)
    if found is None:
        listing = _listing(settings, data_root)
        if listing is None or _resident(settings, listing, cache):
            found = load_images(settings, data_root, cache)
        else:
            found = open_streamed(settings, listing, digest, cache, processes)
    return replace(found, shuffle_window=settings.shuffle_window)


def _resident(settings: schema.Data, listing: Listing, cache: Path) -> bool:
    masks = listing.mask_values is not None
    return (
        bool(why_not(settings, listing))
        or choose_by_size(settings, len(listing.entries), masks, cache).source == "resident"
    )


def why_not(settings: schema.Data, listing: Listing) -> str:
    """Say why a data set cannot be streamed; "" where it can."""
    maps = [name for name in ("regions", "depth") if getattr(settings, name) is not None]
    if maps:
        return f"{' and '.join(f'`{name}:`' for name in maps)} are computed from the decoded copy"
    if settings.split.stratify == "pixels":
        return "`stratify: pixels` reads every mask before a split is drawn"
    if listing.unpack is not None and not isinstance(listing.unpack, Reader) and settings.dataset != "stl10":
        return "its images lie in files that are only read whole (Parquet shards are not)"
    return ""


def _listing(settings: schema.Data, data_root: Path | None) -> Listing | None:
    return None if isinstance(settings, GENERATED) else list_files(settings, data_root)
