"""Cubes of chest CT in the layout of Models Genesis: .npy files of (N, rows, columns, slices) in [0, 1].

cubes    bat_SCALE_s_ROWSxCOLUMNSxSLICES_FOLD.npy, cut from LUNA16 by its `infinite_generator_3D.py`; no masks
nodules  x_PART_ROWSxCOLUMNSxSLICES.npy and m_PART_..., PART train, valid and test: LIDC nodules with their masks

Hounsfield units from -1000 to 1000 are [0, 1] in the files, and are kept in 8 bits: steps of 7.8 units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.decode.entry import Decoded, Unpack
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.listing import Entry, Listing, Member, Pack
from pretune.trainables.data.sets.catalogue import About, DataSet

TEST_FOLDS = (7, 8, 9)  # of LUNA16's ten, as Models Genesis has them
PARTS = ("test", "train", "valid")  # of the nodules, in name order
NODULE_CLASSES = ("background", "nodule")


def list_luna16(settings: schema.LUNA16, root: Path) -> Listing:
    """The rows of every file. Raises DataError where files are missing or of another shape."""
    entries = _cubes(settings, root) if settings.part == "cubes" else _nodules(settings, root)
    if settings.part == "cubes":
        return Listing(root, tuple(entries), unpack=open_rows)
    return Listing(root, tuple(entries), (), NODULE_CLASSES, {0: 0, 1: 1}, unpack=open_rows)


def _cubes(settings: schema.LUNA16, root: Path) -> list[Entry]:
    found = {fold: sorted(root.glob(f"bat_*_s_*_{fold}.npy")) for fold in settings.folds}
    missing = [fold for fold, files in found.items() if not files]
    if missing:
        named = ", ".join(f"bat_*_{fold}.npy" for fold in missing)
        raise DataError(f"luna16: {root} holds no {named}; `folds:` names the folds to use")
    return [
        Entry(f"{file.stem}/{row:07d}", Member(file, row), test=fold in TEST_FOLDS)
        for fold, files in sorted(found.items())
        for file in files
        for row in range(_rows(settings, file))
    ]


def _nodules(settings: schema.LUNA16, root: Path) -> list[Entry]:
    entries: list[Entry] = []
    for part in PARTS:
        images, masks = (sorted(root.glob(f"{kind}_{part}_*.npy")) for kind in "xm")
        if len(images) != 1 or len(masks) != 1:
            raise DataError(f"luna16: {root} must hold one x_{part}_*.npy and one m_{part}_*.npy (part: nodules)")
        counts = [_rows(settings, file) for file in (*images, *masks)]
        if counts[0] != counts[1]:
            raise DataError(f"luna16: {images[0].name} holds {counts[0]} cubes, {masks[0].name} {counts[1]}")
        entries += [
            Entry(f"{part}/{row:07d}", Member(images[0], row), Member(masks[0], row), test=part == "test")
            for row in range(counts[0])
        ]
    return entries


def _rows(settings: schema.LUNA16, file: Path) -> int:
    """Count the cubes of a file, from its header. Raises DataError for another shape."""
    shape = open_array(file).shape
    cube = (settings.cache_size, settings.cache_size, settings.slices)
    if len(shape) < 4 or tuple(n for n in shape[1:] if n > 1) != tuple(n for n in cube if n > 1):
        raise DataError(
            f"luna16: {file} is {shape}, not (N, {', '.join(map(str, cube))}); set cache_size and slices to its own"
        )
    return int(shape[0])


def open_array(file: Path) -> NDArray[Any]:
    """The array, memory-mapped. Raises DataError for something else than an .npy file of numbers."""
    try:
        return np.asanyarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DataError(f"luna16: {file} is not an .npy file that can be read ({error})") from error


def open_rows(file: Path) -> Pack:
    """A file as images and as masks: which it holds, its name says."""
    rows = open_array(file)
    return Pack(rows, rows)


def decode_cube(entry: Entry, listing: Listing, unpack: Unpack | None, slices: int, size: int) -> Decoded:
    """Image (slices, size, size, 1) and mask (slices, size, size), slices first; or the problems."""
    assert unpack is not None  # of every listing here
    problems: list[str] = []
    image = mask = None
    for source, kind in ((entry.image, "image"), (entry.mask, "mask")):
        if not isinstance(source, Member):
            continue
        cube = np.asarray(unpack(source.file).images[source.row]).reshape(size, size, slices).transpose(2, 0, 1)
        try:
            if kind == "image":
                image = grey(cube)[..., None]
            else:
                mask = binary(cube)
        except BadFileError as error:
            problems.append(error.of(f"{source.file.name}[{source.row}]"))
    return Decoded(None, None, tuple(problems)) if problems else Decoded(image, mask, ())


def grey(cube: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255. Raises BadFileError for values outside."""
    low, high = float(cube.min()), float(cube.max())
    if not (low >= 0 and high <= 1):  # NaN is not either
        raise BadFileError(f"values from {low:g} to {high:g}; scale -1000 to 1000 Hounsfield units to [0, 1]")
    return (cube * 255.0 + 0.5).astype(np.uint8)


def binary(cube: NDArray[Any]) -> NDArray[np.uint8]:
    """0 and 1 of any type. Raises BadFileError for other values."""
    if not np.isin(cube, (0, 1)).all():
        raise BadFileError("a mask holds 0 (background) and 1 (nodule), this one other values")
    return cube.astype(np.uint8)


CUBE_SETS = {
    "luna16": DataSet(
        list_luna16,
        About(
            title="LUNA16 as Models Genesis' cubes",
            licence="CC BY 4.0 (LUNA16); CC BY 3.0 (LIDC-IDRI)",
            size="30 GB (64x64x32)",
            login=True,
            layout=(
                "bat_32_s_64x64x32_0.npy to _9.npy (cubes), or x_train_64x64x32.npy, m_train_... and those of valid "
                "and test (nodules)"
            ),
            folders=("luna16", "LUNA16", "Self_Learning_Cubes"),
            markers=(*((f"bat_32_s_64x64x32_{fold}.npy",) for fold in range(10)), ("x_train_64x64x32.npy",)),
            get=(
                "download LUNA16's ten subsets from https://luna16.grand-challenge.org/Download and cut the cubes with "
                "infinite_generator_3D.py of https://github.com/MrGiovanni/ModelsGenesis; its authors give no script "
                "for the nodules, which they cut from LIDC-IDRI"
            ),
        ),
    ),
}
