"""Oxford-IIIT Pet (Parkhi et al., CVPR 2012) in torchvision's folder layout.

images/NAME.jpg, annotations/trimaps/NAME.png, and the lists annotations/trainval.txt and test.txt, whose lines are
NAME CLASSID SPECIES BREEDID.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from trainables.data.errors import DataError
from trainables.data.listing import Entry, Listing

FOLDER = "oxford-iiit-pet"
GET = "torchvision.datasets.OxfordIIITPet(root, download=True) fetches it"

# Value in the trimap (1 pet, 2 background, 3 border) -> class index. P3 counts the border as foreground.
TRIMAP = {1: 0, 2: 1, 3: 2}
FOREGROUND = {1: 1, 2: 0, 3: 1}
CLASSES = {"trimap": ("pet", "background", "border"), "foreground": ("background", "pet")}


def find_pets(base: Path) -> Path | None:
    """The folder that holds images/ and annotations/: `base`/oxford-iiit-pet or `base` itself."""
    for folder in (base / FOLDER, base):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    return None


def list_pets(root: Path, labels: Literal["trimap", "foreground"]) -> Listing:
    """Every listed image that has its files. `label` is the breed, CLASSID - 1. Raises DataError without lists."""
    problems: list[str] = []
    entries = [*_listed(root, "trainval.txt", False, problems), *_listed(root, "test.txt", True, problems)]
    entries = _once(entries, problems)
    entries = _present(root, entries, problems)
    return Listing(
        root=root,
        entries=tuple(sorted(entries)),
        problems=tuple(problems),
        classes=CLASSES[labels],
        mask_values=TRIMAP if labels == "trimap" else FOREGROUND,
    )


def _listed(root: Path, list_name: str, test: bool, problems: list[str]) -> Iterator[Entry]:
    path = root / "annotations" / list_name
    if not path.is_file():
        raise DataError(f"oxford-iiit-pet: no file annotations/{list_name} in {root}; {GET}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdecimal() or int(fields[1]) < 1:
            problems.append(f"annotations/{list_name}: line {number} is not NAME CLASSID SPECIES BREEDID: {line!r}")
            continue
        yield _entry(root, fields[0], int(fields[1]) - 1, test)


def _entry(root: Path, name: str, breed: int, test: bool) -> Entry:
    return Entry(
        name=name,
        image=root / "images" / f"{name}.jpg",
        mask=root / "annotations" / "trimaps" / f"{name}.png",
        label=breed,
        test=test,
    )


def _once(entries: list[Entry], problems: list[str]) -> list[Entry]:
    """A name listed twice would be in two roles at once: the first line counts, the others are problems."""
    first: dict[str, Entry] = {}
    again = [entry.name for entry in entries if first.setdefault(entry.name, entry) is not entry]
    problems += [f"annotations/: {name} is listed more than once; keep one line" for name in again]
    return list(first.values())


def _present(root: Path, entries: list[Entry], problems: list[str]) -> list[Entry]:
    # Two folder listings in place of two `stat`s per image: on network drives that is minutes.
    images, trimaps = _names(root / "images"), _names(root / "annotations" / "trimaps")
    kept = []
    for entry in entries:
        if f"{entry.name}.jpg" not in images:
            problems.append(f"images/{entry.name}.jpg: listed, but the file is missing; {GET}")
        elif f"{entry.name}.png" not in trimaps:
            problems.append(f"annotations/trimaps/{entry.name}.png: the mask is missing; {GET}")
        else:
            kept.append(entry)
    return kept


def _names(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"oxford-iiit-pet: no folder {folder}; {GET}")
    return set(os.listdir(folder))
