"""Listing: the files of a data set, in which order, and what names alone show of them; nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import SHOWN, DataError, printable

MAX_LABELS = 100_000  # image classes; ImageNet-21k has 21,841

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
    listed: tuple[str | None, str | None] = (None, None)  # part and group, as `split.file` has them


class Rows(Protocol):
    """Images by index: (H, W, 3) or (H, W) uint8, or the bytes of an image file."""

    def __getitem__(self, index: int, /) -> NDArray[np.uint8] | bytes: ...


class Pack(NamedTuple):
    """An opened file that holds many images."""

    images: Rows
    masks: NDArray[Any] | Rows | None = None  # (N, H, W) integers, or by index


class Reading(NamedTuple):
    """Reading of image files as 8-bit RGB, or as channels; see the settings of these names."""

    value_range: tuple[float, float] | tuple[tuple[float, float], ...] | None = None  # of all channels, or of each
    percentiles: tuple[float, float] | None = None
    background: tuple[int, int, int] | None = None
    page: int | None = None
    channels: int | None = None  # None: three colours


PLAIN = Reading()


def reading_of(settings: schema.Data) -> Reading:
    """The settings of the user's own files; `PLAIN` for all other data sets."""
    if not isinstance(settings, schema.ImageFolder | schema.ImageMaskFolder | schema.Coco):
        return PLAIN
    asked = settings.value_range
    percentiles = asked.percentiles if isinstance(asked, schema.Percentiles) else None
    return Reading(asked if isinstance(asked, tuple) else None, percentiles, settings.background, settings.page,
                   settings.channels)  # fmt: skip


class Colors(NamedTuple):
    """Meaning of the colours of a mask: the first of `classes` within `tolerance` in every channel, else `other`."""

    classes: tuple[tuple[tuple[int, int, int], int], ...]  # (RGB, class index or IGNORE)
    other: int | None  # class of all other colours; None: they are an error
    tolerance: int


@dataclass(frozen=True)
class Listing:
    """The files of a data set in name order, and what is wrong with them as far as names can tell."""

    root: Path
    entries: Sequence[Entry]
    problems: tuple[str, ...] = ()  # 'FILE: what; what to do', FILE relative to root. In the digest: keep their words
    classes: tuple[str, ...] = ()  # names of the mask classes
    mask_values: Mapping[int, int] | None = None  # value in the file -> class index or IGNORE; None: no masks
    mask_colors: Colors | None = None  # where masks are coloured images; `mask_values` then holds the class indices
    mask_threshold: int | None = None  # where masks are black and white; the same
    palettes: bool = False  # whether the palettes of masks must give each index one colour
    reading: Reading = PLAIN
    label_names: tuple[str, ...] = ()  # names of the image classes, where the data set gives them
    unpack: Callable[[Path], Pack] | None = None  # opens a file that holds many images
    content: Sequence[Any] | None = None  # what the entries hold, where it is known without reading them
    hashed: tuple[Path, ...] = ()  # files to read whole beside `content`
    unlisted: int = 0  # images that are there and, with a problem, in no entry
    ignored: Mapping[str, int] = field(default_factory=dict)  # suffix -> files of it, which are not read


class Meaning(NamedTuple):
    """Meaning of the pixels of the user's masks; the fields are those of a Listing."""

    mask_values: dict[int, int]
    mask_colors: Colors | None
    mask_threshold: int | None
    palettes: bool


def meaning_of(settings: schema.ImageMaskFolder | schema.Parquet) -> Meaning:
    """By values, by colours or by a threshold. Raises DataError as `class_of_value`.

    Palettes are compared unless `mask_values` says that the numbers are meant.
    """
    values = class_of_value(settings)
    if settings.mask_colors is None:
        by_default = settings.mask_threshold is None and settings.mask_values is None
        return Meaning(values, None, settings.mask_threshold, by_default)
    index = {name: i for i, name in enumerate(settings.classes)}
    colors = [(color, index[name]) for name, color in settings.mask_colors]
    colors += [(color, IGNORE) for color in settings.ignore_colors]
    return Meaning(values, Colors(tuple(colors), None, 0), None, False)


def class_of_value(settings: schema.ImageMaskFolder | schema.Parquet | schema.Npz) -> dict[int, int]:
    """Value in the user's masks -> class index or IGNORE. Raises DataError for other than 1 to 255 classes."""
    count = len(settings.classes)
    if not 1 <= count <= IGNORE:
        raise DataError(
            f"classes: {count} names, but a mask holds 1 to {IGNORE} classes; `classes:` must name their values"
        )
    values = {value: i for i, value in enumerate(settings.mask_values or range(count))}
    return values | ({} if settings.ignore is None else {settings.ignore: IGNORE})


def check_labels(labels: NDArray[np.integer[Any]], where: str, first: int = 0) -> None:
    """Raises DataError for image classes that are not counted from `first`.

    There are as many classes as the highest label says, whether or not all have images: a part of a set keeps the
    numbers of the whole. So a label that is no count, such as a hash, is refused.
    """
    for label in (labels.min(), labels.max()) if len(labels) else ():
        if not first <= label < first + MAX_LABELS:
            raise DataError(
                f"{where} holds {label}; image classes are counted from {first}, and there are at most "
                f"{MAX_LABELS:,}: number them anew"
            )


def refuse_bad_files(settings: schema.Data, listing: Listing, problems: Sequence[str], good: Sequence[int]) -> None:
    """Raises DataError where no image is `good`, and for any problem under `on_error: fail`."""
    where = f"{settings.dataset} in {listing.root}"
    if not good:
        raise DataError(
            f"{where}: none of the {len(listing.entries)} images can be used{where_all_are(problems)}:", problems
        )
    if problems and settings.on_error == "fail":
        advice = "repair or remove them, or exclude them with `on_error: skip`"
        many = f"{len(problems)} problem{'s'[: len(problems) > 1]}"
        raise DataError(f"{where}: {many}; {advice}{where_all_are(problems)}:", problems)


def where_all_are(problems: Sequence[str]) -> str:
    """Say where to find the problems that an error message does not show."""
    return " (`pretune data check` lists all)" if len(problems) > SHOWN else ""


def file_of(source: Path | Member) -> Path:
    """The file on disk that holds an image."""
    return source.file if isinstance(source, Member) else source


def relative_name(source: Path | Member | None, root: Path) -> str:
    """A file below the listing's root, with the row within it; "" of None. Forward slashes."""
    if source is None:
        return ""
    name = file_of(source).relative_to(root).as_posix()
    return f"{name}[{source.row}]" if isinstance(source, Member) else name


@dataclass(frozen=True)
class EntryNames(Sequence[str]):
    """Names of entries, made when they are asked for."""

    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        found = self.entries[index]
        return tuple(printable(entry.name) for entry in found) if isinstance(index, slice) else printable(found.name)


class Columns(Sequence[Entry]):
    """Entries as an Arrow table: sent to other processes without a copy, however many there are."""

    def __init__(self, entries: Iterable[Entry], root: Path) -> None:
        rows = [_flat(entry, root) for entry in entries]
        parts = zip(*rows, strict=True) if rows else [()] * len(_KINDS)
        self._columns = [pa.array(part, kind) for part, kind in zip(parts, _KINDS, strict=True)]
        self._root = root

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        values = [column[index].as_py() for column in self._columns]
        name, image, image_row, mask, mask_row, label, test, box, part, group = values
        first = _source(self._root, image, image_row)
        assert first is not None
        second = _source(self._root, mask, mask_row)
        return Entry(os.fsdecode(name), first, second, label, test, box and tuple(box), (part, group))


_KINDS = (
    pa.binary(), pa.binary(), pa.int64(), pa.binary(), pa.int64(), pa.int64(), pa.bool_(), pa.list_(pa.int64()),
    pa.string(), pa.string(),
)  # fmt: skip


def _flat(entry: Entry, root: Path) -> tuple[Any, ...]:
    image, mask = (_name_and_row(source, root) for source in (entry.image, entry.mask))
    return os.fsencode(entry.name), *image, *mask, entry.label, entry.test, entry.box, *entry.listed


def _name_and_row(source: Path | Member | None, root: Path) -> tuple[bytes | None, int | None]:
    if source is None:
        return None, None
    return os.fsencode(file_of(source).relative_to(root)), source.row if isinstance(source, Member) else None


def _source(root: Path, name: bytes | None, row: int | None) -> Path | Member | None:
    if name is None:
        return None
    path = root / os.fsdecode(name)
    return path if row is None else Member(path, row)
