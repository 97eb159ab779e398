"""Oxford-IIIT Pet (Parkhi et al., CVPR 2012) in torchvision's folder layout.

images/NAME.jpg, annotations/trimaps/NAME.png, and the lists annotations/trainval.txt and test.txt, whose lines are
NAME CLASSID SPECIES BREEDID.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing
from pretune.trainables.data.sets.catalogue import OXFORD, About, DataSet, Download

GET = "torchvision.datasets.OxfordIIITPet(root, download=True) fetches it"

# Value in the trimap (1 pet, 2 background, 3 border) -> class index. P3 counts the border as foreground.
PET_TRIMAP = {1: 0, 2: 1, 3: 2}
FOREGROUND = {1: 1, 2: 0, 3: 1}
PET_CLASSES = {"trimap": ("pet", "background", "border"), "foreground": ("background", "pet")}


# CLASSID - 1 of the twelve cat breeds; the other 25 are dogs.
CATS = (0, 5, 6, 7, 9, 11, 20, 23, 26, 27, 32, 33)
BREEDS = 37


def list_oxford_pets(settings: schema.Pets, root: Path) -> Listing:
    """See `list_pets`."""
    return list_pets(root, settings.labels, settings.classes, settings.species)


def list_pets(
    root: Path,
    labels: Literal["trimap", "foreground"],
    classes: Literal["breed", "species"] = "breed",
    species: Literal["dogs", "cats"] | None = None,
) -> Listing:
    """Every listed image that has its files. Raises DataError without lists.

    `label` is the breed, CLASSID - 1, or the species (0 cat, 1 dog). With `species` only these are kept, and their
    breeds are numbered from 0 without gaps: 25 dogs, 12 cats.
    """
    problems: list[str] = []
    entries = [*_listed(root, "trainval.txt", False, problems), *_listed(root, "test.txt", True, problems)]
    wanted = _kept(_once(entries, problems), species)
    entries = _present(root, wanted, problems)
    labelled = tuple(sorted(_labelled(entries, classes, species)))
    return Listing(
        root=root,
        entries=labelled,
        problems=tuple(problems),
        classes=PET_CLASSES[labels],
        mask_values=PET_TRIMAP if labels == "trimap" else FOREGROUND,
        label_names=("cat", "dog") if classes == "species" else _breed_names(labelled),
        unlisted=len(wanted) - len(entries),
    )


def _kept(entries: list[Entry], species: Literal["dogs", "cats"] | None) -> list[Entry]:
    return [entry for entry in entries if species is None or (entry.label in CATS) == (species == "cats")]


def _labelled(
    entries: list[Entry], classes: Literal["breed", "species"], species: Literal["dogs", "cats"] | None
) -> Iterable[Entry]:
    if classes == "species":
        return (entry._replace(label=int(entry.label not in CATS)) for entry in entries)
    breeds = [breed for breed in range(BREEDS) if species is None or (breed in CATS) == (species == "cats")]
    if species is None:
        return entries
    return (entry._replace(label=breeds.index(entry.label)) for entry in entries if entry.label is not None)


def _breed_names(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Name of each breed, which its images carry before their number; a breed without an image has none."""
    names = {entry.label: entry.name.rpartition("_")[0].replace("_", " ") for entry in entries}
    return tuple(names.get(i, "") for i in range(1 + max((label for label in names if label is not None), default=-1)))


def _listed(root: Path, list_name: str, test: bool, problems: list[str]) -> Iterator[Entry]:
    path = root / "annotations" / list_name
    if not path.is_file():
        raise DataError(f"oxford-iiit-pet: no file annotations/{list_name} in {root}; {GET}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdecimal() or not 1 <= int(fields[1]) <= BREEDS:
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


PET_SETS = {
    "oxford-iiit-pet": DataSet(
        list_oxford_pets,
        About(
            title="Oxford-IIIT Pet",
            licence="CC BY-SA 4.0",
            size="0.8 GB",
            login=False,
            layout="images/ and annotations/",
            folders=("oxford-iiit-pet",),
            markers=(("images", "annotations"),),
            get=(
                "`pretune data fetch oxford-iiit-pet` or "
                "torchvision.datasets.OxfordIIITPet(root, download=True) fetches it"
            ),
            downloads=(
                Download(f"{OXFORD}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
                Download(f"{OXFORD}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
            ),
        ),
    ),
}
