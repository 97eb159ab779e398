"""What every data set on disk is reduced to before anything is decoded: which files, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from trainables.data.splits import draw_subset

IGNORE = 255  # mask index left out of losses and metrics


class Entry(NamedTuple):
    """One image and what is known of it."""

    name: str  # unique in the data set, forward slashes
    image: Path
    mask: Path | None = None
    label: int | None = None  # image class
    test: bool | None = None  # on the data set's own test list


@dataclass(frozen=True)
class Listing:
    """The files of a data set in name order, and what is wrong with them as far as names can tell."""

    root: Path
    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()  # 'FILE: what; what to do', FILE relative to root
    classes: tuple[str, ...] = ()  # names of the mask classes
    mask_values: Mapping[int, int] | None = None  # value in the file -> class index or IGNORE; None: no masks


def limited(listing: Listing, limit: int | None, seed: int) -> Listing:
    """A random `limit` of the entries, still in name order; all of them where there are no more than that."""
    chosen = draw_subset(len(listing.entries), limit, seed)
    return replace(listing, entries=tuple(listing.entries[i] for i in chosen))
