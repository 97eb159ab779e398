"""What every data set on disk is reduced to before anything is decoded: which files, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trainables.data.splits import draw_subset

IGNORE = 255  # mask index left out of losses and metrics

Box = tuple[int, int, int, int]  # left, top, right, bottom in px of the file's image, right and bottom excluded


class Member(NamedTuple):
    """One image or mask inside of a file that holds many."""

    file: Path
    row: int


class Entry(NamedTuple):
    """One image and what is known of it."""

    name: str  # unique in the data set, forward slashes
    image: Path | Member
    mask: Path | Member | None = None
    label: int | None = None  # image class
    test: bool | None = None  # on the data set's own test list
    box: Box | None = None  # the part of image and mask that is used; None: all of it


class Rows(Protocol):
    """Images by index: (H, W, 3) or (H, W) uint8, or the bytes of an image file."""

    def __getitem__(self, index: int, /) -> NDArray[np.uint8] | bytes: ...


class Pack(NamedTuple):
    """An opened file that holds many images."""

    images: Rows
    masks: NDArray[Any] | None = None  # (N, H, W) integers


class Colors(NamedTuple):
    """What the colours of a mask mean: the first of `classes` within `tolerance` in every channel, else `other`."""

    classes: tuple[tuple[tuple[int, int, int], int], ...]  # (RGB, class index or IGNORE)
    other: int | None  # class of all other colours; None: they are an error
    tolerance: int


@dataclass(frozen=True)
class Listing:
    """The files of a data set in name order, and what is wrong with them as far as names can tell."""

    root: Path
    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()  # 'FILE: what; what to do', FILE relative to root
    classes: tuple[str, ...] = ()  # names of the mask classes
    mask_values: Mapping[int, int] | None = None  # value in the file -> class index or IGNORE; None: no masks
    mask_colors: Colors | None = None  # where masks are coloured images; `mask_values` then holds the class indices
    label_names: tuple[str, ...] = ()  # names of the image classes, where the data set gives them
    unpack: Callable[[Path], Pack] | None = None  # opens a file that holds many images


def limited(listing: Listing, limit: int | None, seed: int) -> Listing:
    """A random `limit` of the entries, still in name order; all of them where there are no more than that."""
    chosen = draw_subset(len(listing.entries), limit, seed)
    return replace(listing, entries=tuple(listing.entries[i] for i in chosen))


def file_of(source: Path | Member) -> Path:
    """The file on disk that holds an image."""
    return source.file if isinstance(source, Member) else source
