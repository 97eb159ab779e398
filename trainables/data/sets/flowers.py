"""Oxford Flowers 17 and 102 (Nilsback and Zisserman, 2006 and 2008), with their segmentations as coloured images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Colors, Entry, Listing
from pretune.trainables.data.sets.catalogue import OXFORD, RESEARCH_ONLY, About, DataSet, Download
from pretune.trainables.data.sets.present import with_files

FLOWER_CLASSES = ("background", "flower")
PER_CLASS = 80  # images of each class of Flowers 17, in the order of their numbers

# Flowers 102 shows the flower before plain blue; JPEG leaves a little noise where the two meet.
BLUE = Colors((((0, 0, 254), 0),), other=1, tolerance=40)

# Flowers 17 uses PASCAL's colours: dark red is the flower; black was not labelled; the others are background.
FLOWER_TRIMAP = Colors(
    (((128, 0, 0), 1), ((0, 0, 0), IGNORE), ((0, 128, 0), 0), ((128, 128, 0), 0), ((0, 0, 128), 0)),
    other=None,
    tolerance=8,
)


def list_flowers102(settings: schema.Flowers102, root: Path) -> Listing:
    """jpg/, imagelabels.mat and setid.mat, with segmim/ if `masks`. Raises DataError for a list that is missing."""
    labels, tests = _mat(root, "imagelabels.mat", "labels"), set(_mat(root, "setid.mat", "tstid").tolist())
    entries = [
        Entry(
            name=f"image_{number:05d}",
            image=root / "jpg" / f"image_{number:05d}.jpg",
            mask=root / "segmim" / f"segmim_{number:05d}.jpg" if settings.masks else None,
            label=int(label) - 1,
            test=number in tests,
        )
        for number, label in enumerate(labels, 1)
    ]
    return _listing(root, entries, BLUE if settings.masks else None)


def list_flowers17(settings: schema.Flowers17, root: Path) -> Listing:
    """jpg/image_NNNN.jpg, and trimaps/ if `masks`: then only images that have one. 80 images a class, in order."""
    paths = sorted((root / "jpg").glob("image_[0-9][0-9][0-9][0-9].jpg"))
    trimap = {path.stem: path for path in (root / "trimaps").glob("*.png")} if settings.masks else {}
    if settings.masks and not trimap:
        raise DataError(f"flowers17: no trimaps/*.png in {root}; unpack trimaps.tgz there, or set `masks: false`")
    tests = _official_tests(root)
    entries = [
        Entry(
            path.stem,
            path,
            trimap.get(path.stem),
            (number - 1) // PER_CLASS,
            None if tests is None else number in tests,
        )
        for path, number in ((path, int(path.stem[-4:])) for path in paths)
        if not settings.masks or path.stem in trimap
    ]
    return _listing(root, entries, FLOWER_TRIMAP if settings.masks else None)


def _official_tests(root: Path) -> set[int] | None:
    """The first of the three published splits, where datasplits.mat is at hand."""
    return set(_mat(root, "datasplits.mat", "tst1").tolist()) if (root / "datasplits.mat").is_file() else None


def _listing(root: Path, entries: list[Entry], colors: Colors | None) -> Listing:
    problems: list[str] = []
    kept = tuple(with_files(entries, root, problems))
    lost = len(entries) - len(kept)
    if colors is None:
        return Listing(root, kept, tuple(problems), unlisted=lost)
    return Listing(root, kept, tuple(problems), FLOWER_CLASSES, {0: 0, 1: 1, IGNORE: IGNORE}, colors, unlisted=lost)


def _mat(root: Path, file: str, key: str) -> NDArray[np.int64]:
    from scipy.io import loadmat

    if not (root / file).is_file():
        raise DataError(f"flowers: no file {file} in {root}; it stands beside the archives on the data set's page")
    try:
        return np.asarray(loadmat(root / file)[key]).ravel().astype(np.int64)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise DataError(f"flowers: {root / file} holds no list `{key}` ({error}); fetch it again") from error


FLOWER_SETS = {
    "flowers102": DataSet(
        list_flowers102,
        About(
            title="Oxford Flowers 102",
            licence=RESEARCH_ONLY,
            size="0.5 GB",
            login=False,
            layout="jpg/, imagelabels.mat, setid.mat and segmim/",
            folders=("flowers-102", "flowers102", "102flowers"),
            markers=(("jpg", "imagelabels.mat", "setid.mat"),),
            get="`pretune data fetch flowers102` fetches it with its segmentations",
            downloads=(
                Download(f"{OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
                Download(f"{OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
                Download(f"{OXFORD}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
                Download(f"{OXFORD}/flowers/102/102segmentations.tgz", "51375996b6c4f367a4b9f4492d7ecef5"),
            ),
        ),
    ),
    "flowers17": DataSet(
        list_flowers17,
        About(
            title="Oxford Flowers 17",
            licence=RESEARCH_ONLY,
            size="0.1 GB",
            login=False,
            layout="jpg/, trimaps/ and, for its own splits, datasplits.mat",
            folders=("flowers-17", "flowers17", "17flowers"),
            markers=(("jpg", "trimaps"), ("jpg", "datasplits.mat"), ("jpg",)),
            get="`pretune data fetch flowers17` fetches it with its trimaps",
            downloads=(
                Download(f"{OXFORD}/flowers/17/17flowers.tgz", "b59a65d8d1a99cd66944d474e1289eab"),
                Download(f"{OXFORD}/flowers/17/trimaps.tgz", None),
                Download(f"{OXFORD}/flowers/17/datasplits.mat", "4828cddfd0d803c5abbdebcb1e148a1e"),
            ),
        ),
    ),
}
