"""`split.file`: a CSV or JSON file that says of each image which part or group it belongs to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing, file_of

NAME_COLUMNS = ("name", "image", "file", "filename", "file_name", "path", "stem", "id", "image_id")
PART_COLUMNS = ("split", "part", "set", "subset", "partition", "fold")
PARTS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
KNOWN = frozenset({"train", "val", "test"})


def with_split_file(listing: Listing, split: schema.Split, data_root: Path | None) -> Listing:
    """The listing with part and group of each image, and the file's test list. Raises DataError in one sentence."""
    if split.file is None:
        return listing
    path = (data_root or Path()) / Path(split.file).expanduser()
    if not path.is_file():
        raise DataError(f"split.file: there is no file {path}; it is taken relative to --data if given")
    if listing.content is not None:
        raise DataError(
            f"split.file: {path} lists image files, and this data set holds its images in shards; remove it"
        )
    column = split.group.column if isinstance(split.group, schema.NameColumn) else None
    rows = _agreeing(_rows(path, column), path)
    _check_parts({part for part, _ in rows.values() if part is not None}, split, path)
    entries = tuple(_listed(listing, rows, path))
    tested = any(part == "test" for part, _ in rows.values())
    return replace(listing, entries=tuple(e._replace(test=e.listed[0] == "test") if tested else e for e in entries))


def _agreeing(
    rows: Iterable[tuple[str, tuple[str | None, str | None]]], path: Path
) -> dict[str, tuple[str | None, str | None]]:
    """Name -> part and group. Raises DataError for a name that stands in two parts or groups."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for name, row in rows:
        before = found.setdefault(name, row)
        if before != row:
            one, two = (" of ".join(filter(None, listed)) or "no part" for listed in (before, row))
            raise DataError(f"split.file: {path} names {name} twice, in {one} and in {two}; leave one row")
    return found


def _check_parts(parts: Set[str], split: schema.Split, path: Path) -> None:
    """Raises DataError for parts that mean nothing, or that the split would not use."""
    if parts & KNOWN and (unknown := sorted(parts - KNOWN)):
        raise DataError(
            f"split.file: {path} has the parts {', '.join(unknown[:5])} beside train, val and test, and images of them "
            "would be trained on; call them train, val or test, or take those images out of the data set"
        )
    if "test" in parts and split.test != "official" and split.fold is None:
        raise DataError(
            f"split.file: {path} says which images are test, and `test: {split.test}` would draw others; say "
            "`test: official`, or leave the column out"
        )
    if split.fold is not None and split.group is not None and parts - KNOWN:
        raise DataError(
            f"split.file: {path} says which image is in which fold, and `group` would draw other folds; remove "
            "`group`, or the column of folds"
        )


def _listed(listing: Listing, rows: Mapping[str, tuple[str | None, str | None]], path: Path) -> Iterator[Entry]:
    """The entries with what their rows say. Raises DataError where an image has no row."""
    lost: list[str] = []
    called = [_names(entry, listing.root) for entry in listing.entries]
    counts: dict[str, int] = {}
    for names in called:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    found: list[Entry] = []
    for entry, names in zip(listing.entries, called, strict=True):
        row = next((rows[name] for name in names if name in rows and counts[name] == 1), None)
        if row is None:
            lost.append(entry.name)
        else:
            found.append(entry._replace(listed=row))
    if lost:
        raise DataError(
            f"split.file: {path} has no row for {len(lost)} of {len(called)} images, {', '.join(lost[:3])} first; "
            "name them with their folders, or exclude them from the data set"
        )
    yield from found


def _names(entry: Entry, root: Path) -> dict[str, None]:
    """Return the names of an image in a row: its path with or without folders and suffix, the longest first."""
    path = PurePosixPath(file_of(entry.image).relative_to(root).as_posix())
    below = [PurePosixPath(*path.parts[i:]) for i in range(len(path.parts))]
    return dict.fromkeys(
        name for one in (PurePosixPath(entry.name), *below) for name in (str(one), str(one.with_suffix("")))
    )


def _rows(path: Path, column: str | None) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    """Name -> part and group. Raises DataError for a file of another form."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = _json(json.loads(text)) if path.suffix.lower() == ".json" else _csv(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"split.file: {path} cannot be read ({error}); it is CSV with a header, or JSON") from error
    keys = list(table[0]) if table else []
    name = next((key for key in NAME_COLUMNS if key in keys), None)
    part = next((key for key in PART_COLUMNS if key in keys), None)
    if name is None or (part is None and column is None):
        raise DataError(
            f"split.file: {path} has the columns {', '.join(keys) or '(none)'}; one should be name (or file) and "
            "one split, with train, val and test"
        )
    if column is not None and column.lower() not in keys:
        raise DataError(f"split.file: {path} has no column {column}, only {', '.join(keys)}")
    for row in table:
        of = str(row.get(part, "") or "").strip().lower() if part else ""
        group = str(row.get(column.lower(), "") or "").strip() if column else ""
        yield str(PurePosixPath(str(row[name]).strip())), (PARTS.get(of, of) or None, group or None)


def _csv(text: str) -> list[dict[str, Any]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    return [{str(key).strip().lower(): value for key, value in row.items()}
            for row in csv.DictReader(text.splitlines(), delimiter=delimiter)]  # fmt: skip


def _json(read: Any) -> list[dict[str, Any]]:
    """{train: [a, b], test: [c]}, or a list of {name: a, split: train}."""
    if isinstance(read, Mapping):
        return [{"name": name, "split": part} for part, names in read.items() for name in _list(names)]
    return [{str(key).lower(): value for key, value in row.items()} for row in _list(read) if isinstance(row, Mapping)]


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError("a list of names is expected for each part")
    return value
