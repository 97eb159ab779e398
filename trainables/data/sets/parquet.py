"""Parquet shards: one row for each image, its file's bytes in a column, on a disk or in an object store.

The form that Ray Data, Spark and Hugging Face's `datasets` write: a column of bytes, or of structs with a field
`bytes`. A folder is a path, an address that pyarrow knows (`s3://`, `gs://`, `hdfs://`), or what a web server lists.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing, Member, Pack, check_labels, meaning_of
from pretune.trainables.data.sets.catalogue import DataSet

HASHED = 1 << 30  # bytes of a set on a disk up to which its shards are read whole to name it
FOOTER = 8  # bytes at the end of a Parquet file: length of its footer, and a magic number


@dataclass(frozen=True)
class Shards(Sequence[Entry]):
    """The rows of all shards as entries, made when they are asked for: a million take no memory."""

    files: tuple[Path, ...]
    root: Path  # names are relative to it
    starts: NDArray[np.int64]  # (files + 1,) index of each file's first row
    labels: NDArray[np.int64] | None
    masks: bool

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        member = Member(self.files[shard], index - int(self.starts[shard]))
        label = None if self.labels is None else int(self.labels[index])
        name = f"{member.file.relative_to(self.root).with_suffix('').as_posix()}/{member.row:07d}"
        return Entry(name, member, member if self.masks else None, label)


@dataclass(frozen=True)
class Reader:
    """Opens shards. Called with a file it reads row groups as they are asked for, and holds the last two."""

    files: fs.FileSystem
    image: str
    mask: str | None

    def __call__(self, path: Path) -> Pack:
        groups = Groups(self, path)
        return Pack(Cells(groups, self.image), Cells(groups, self.mask) if self.mask else None)

    def only(self, entries: Iterable[Entry]) -> Callable[[Path], Pack]:
        """As calling it, for the images of `entries` alone: each row group they lie in is read once, in order."""
        wanted: dict[Path, list[int]] = {}
        for entry in entries:
            assert isinstance(entry.image, Member)
            wanted.setdefault(entry.image.file, []).append(entry.image.row)
        return {path: self._rows(path, np.unique(rows)) for path, rows in wanted.items()}.__getitem__

    def open(self, path: Path) -> pq.ParquetFile:
        return pq.ParquetFile(self.files.open_input_file(str(path)), pre_buffer=True)

    def columns(self) -> list[str]:
        return [self.image, *([self.mask] if self.mask else [])]

    def _rows(self, path: Path, rows: NDArray[np.int64]) -> Pack:
        shard = self.open(path)
        starts = group_starts(shard)
        found: dict[str, dict[int, bytes]] = {name: {} for name in self.columns()}
        group_of = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(group_of):
            inside = rows[group_of == group]
            table = shard.read_row_group(int(group), self.columns()).take(pa.array(inside - starts[group]))
            for name in found:
                found[name] |= zip(inside.tolist(), cells(table[name]), strict=True)
        return Pack(found[self.image], found[self.mask] if self.mask else None)


class Groups:
    """Row groups of one shard, the last two of them held."""

    def __init__(self, reader: Reader, path: Path) -> None:
        self._shard, self._columns, self._lock = reader.open(path), reader.columns(), threading.Lock()
        self.starts = group_starts(self._shard)
        self._held = lru_cache(maxsize=2)(self._read)

    def __getitem__(self, group: int) -> Mapping[str, list[bytes]]:
        with self._lock:  # else every thread would read the next group at once
            return self._held(group)

    def _read(self, group: int) -> Mapping[str, list[bytes]]:
        table = self._shard.read_row_group(group, self._columns)
        return {name: list(cells(table[name])) for name in self._columns}


@dataclass(frozen=True)
class Cells:
    """One column of a shard, by row."""

    groups: Groups
    column: str
    starts: NDArray[np.int64] = field(init=False)

    def __getitem__(self, row: int) -> bytes:
        group = int(np.searchsorted(self.groups.starts, row, side="right")) - 1
        return self.groups[group][self.column][row - int(self.groups.starts[group])]


def list_parquet(settings: schema.Parquet, root: Path) -> Listing:
    """Every *.parquet file of a folder, in name order, or one. Only footers and labels are read. Raises DataError."""
    files, base = file_system(settings.root if "://" in settings.root else str(root))
    paths = _shards(files, base, settings.root)
    if paths == [Path(base)]:
        base = str(Path(base).parent)
    reader = Reader(files, settings.image, settings.mask)
    with ThreadPoolExecutor(16) as pool:  # an object store answers slowly, and many questions at once
        found = list(pool.map(lambda path: _footer(reader, path, settings), paths))
    starts = np.cumsum([0, *(rows for rows, _, _ in found)], dtype=np.int64)
    labels = None if settings.label is None else np.concatenate([labels for _, _, labels in found])
    entries = Shards(tuple(paths), Path(base), starts, labels, settings.mask is not None)
    names = [path.relative_to(base).as_posix() for path in paths]
    content: list[Any] = [[name, rows, footer] for name, (rows, footer, _) in zip(names, found, strict=True)]
    here = isinstance(files, fs.LocalFileSystem) and sum(path.stat().st_size for path in paths) <= HASHED
    if labels is not None:
        content.append(hashlib.sha256(labels.tobytes()).hexdigest())
    masks: dict[str, Any] = {} if settings.mask is None else meaning_of(settings)._asdict()
    hashed = tuple(paths) if here else ()
    named: dict[str, Any] = {"content": content, "hashed": hashed} | masks
    return Listing(Path(base), entries, classes=settings.classes, unpack=reader, **named)


def file_system(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path in it. Raises DataError."""
    try:
        if "://" not in root:
            return fs.LocalFileSystem(), str(PurePosixPath(root))
        if root.startswith(("http://", "https://")):
            folder, _, file = root.rpartition("/") if root.endswith(".parquet") else (root, "", "")
            return web_folder(folder), file
        files, path = fs.FileSystem.from_uri(root)
        return files, str(PurePosixPath(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{root}: pyarrow cannot open this address ({error})") from error


def web_folder(root: str) -> fs.FileSystem:
    """The folder that a web server lists at an address, read by HTTP ranges, for which pyarrow needs fsspec."""
    from fsspec.implementations.http import HTTPFileSystem

    web = fs.PyFileSystem(fs.FSSpecHandler(HTTPFileSystem()))
    return fs.SubTreeFileSystem(root.rstrip("/") + "/", web)  # paths below it are names, not addresses


def group_starts(shard: pq.ParquetFile) -> NDArray[np.int64]:
    """(groups,) index of each row group's first row."""
    meta = shard.metadata
    return np.cumsum([0, *(meta.row_group(i).num_rows for i in range(meta.num_row_groups - 1))], dtype=np.int64)


def cells(column: pa.ChunkedArray) -> Iterator[bytes]:
    """The files' bytes; nothing for null, which decoding reports as an empty file."""
    values = column.combine_chunks()
    if pa.types.is_struct(values.type):
        values = (
            values.field("bytes")
            if values.null_count == 0
            else pa.array([v and v["bytes"] for v in values.to_pylist()])
        )
    return (value or b"" for value in values.to_pylist())


def _shards(files: fs.FileSystem, base: str, root: str) -> list[Path]:
    if base.endswith(".parquet") and files.get_file_info(base).is_file:
        return [Path(base)]
    try:
        found = files.get_file_info(fs.FileSelector(base, recursive=True))
    except OSError as error:
        raise DataError(f"parquet: {root} cannot be listed ({error}); `root:` names the folder of shards") from error
    paths = sorted(info.path for info in found if info.is_file and info.path.endswith(".parquet"))
    if not paths:
        raise DataError(f"parquet: no *.parquet file in {root}")
    return [Path(path) for path in paths]


def _footer(reader: Reader, path: Path, settings: schema.Parquet) -> tuple[int, str, NDArray[np.int64]]:
    """Rows, hash of the footer, and labels.

    The footer holds schema, rows, and position, size and extremes of every column of every row group: it stands for the
    content, so that a set of any size is named without being read.
    """
    try:
        with reader.files.open_input_file(str(path)) as file:
            size = file.size()
            length = int.from_bytes(file.read_at(FOOTER, size - FOOTER)[:4], "little")
            footer = file.read_at(length, size - FOOTER - length)
            shard = pq.ParquetFile(file)
            _check_columns(settings, shard.schema_arrow, path)
            labels = _labels(shard, settings.label, path)
            return shard.metadata.num_rows, hashlib.sha256(footer).hexdigest(), labels
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"parquet: {path} is not a Parquet file that can be read ({error}); replace it") from error


def _check_columns(settings: schema.Parquet, found: pa.Schema, path: Path) -> None:
    for key, name in (("image", settings.image), ("mask", settings.mask), ("label", settings.label)):
        if name is not None and name not in found.names:
            raise DataError(f"parquet: {path} has no column {name!r}, only {', '.join(found.names)}; set `{key}:`")
        kind = None if name is None else found.field(name).type
        if kind is not None and key != "label" and not (_is_bytes(kind) or _holds_bytes(kind)):
            raise DataError(f"parquet: column {name!r} of {path} must hold the bytes of image files, it holds {kind}")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _labels(shard: pq.ParquetFile, column: str | None, path: Path) -> NDArray[np.int64]:
    if column is None:
        return np.empty(0, np.int64)
    values = shard.read([column])[column]
    if values.null_count or not pa.types.is_integer(values.type):
        raise DataError(f"parquet: column {column!r} of {path} must hold a whole number in every row")
    labels = np.asarray(values.to_numpy(), np.int64)
    check_labels(labels, f"parquet: column {column!r} of {path}")
    return labels


PARQUET_SETS = {
    "parquet": DataSet(
        list_parquet,
        "your shards of image files (mask and label: columns that you name), on a disk or in an object store",
    ),
}
