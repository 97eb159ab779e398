"""Decode a data set into memory-mapped arrays in cache/<digest>/, once, and compute the maps that are asked for."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.decode.entry import Decoded, decode
from pretune.trainables.data.decode.palettes import Palettes
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, Progress
from pretune.trainables.data.listing import Listing, Pack, refuse_bad_files
from pretune.trainables.data.resident import maps
from pretune.trainables.data.resident.digest import digest_with_maps, files_digest, generated_digest
from pretune.trainables.data.resident.open import open_built, open_cached, write_index
from pretune.trainables.data.sets import cubes, scenes, volumes
from pretune.trainables.data.sets.present import marks_of
from pretune.trainables.data.sets.table import GENERATED, generated_indices, list_files

PACKS = 2  # files of many images that stay open while they are decoded: rows run on threads across their border


class Arrays(NamedTuple):
    """The arrays of a data set while they are written."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    regions: NDArray[np.uint16] | None
    depth: NDArray[np.float16] | None


def ensure_built(settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None) -> str:
    """Build cache/<digest>/ unless it is there; returns the digest. Raises DataError listing every bad file."""
    images = _ensure_images(settings, data_root, cache, progress)
    name = digest_with_maps(images, settings, data_root, cache)
    if name == images:
        return images
    return _built(name, cache, lambda folder: _write_maps(settings, data_root, cache, images, folder, progress))


def load_images(
    settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None
) -> ImageSet:
    """The data set, built first where it is not cached. Raises DataError."""
    return open_built(ensure_built(settings, data_root, cache, progress), cache)


def _ensure_images(settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None) -> str:
    if isinstance(settings, GENERATED):
        return _built(generated_digest(settings), cache, lambda folder: _write_generated(settings, folder, progress))
    listing = list_files(settings, data_root)
    name = files_digest(settings, listing, cache)
    return _built(name, cache, lambda folder: _write_files(settings, listing, folder, progress))


def _built(name: str, cache: Path, write: Callable[[Path], dict[str, Any]]) -> str:
    """Write into a temporary sibling and rename: a folder called <digest> is always a finished one.

    A damaged one is made anew. Raises DataError where it cannot be removed.
    """
    if open_cached(name, cache, thoroughly=True) is not None:
        return name
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as temporary:
        folder = Path(temporary) / "set"
        folder.mkdir()
        write_index(folder, write(folder))
        _publish(folder, cache / name)
    return name


def _publish(folder: Path, target: Path) -> None:
    """Rename to the target; where somebody else built the same meanwhile, this copy is discarded."""

    def is_there() -> bool:
        return open_cached(target.name, target.parent, thoroughly=True) is not None

    try:
        if target.is_dir() and not is_there():
            target.rename(folder.with_name("damaged"))  # goes with the temporary folder around it
        folder.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise
        if not is_there():
            raise DataError(f"the cached data set {target} is damaged ({error}); delete it and run again") from error


def _write_generated(
    settings: schema.Scenes | schema.Volumes, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    if isinstance(settings, schema.Scenes):
        return _write_scenes(settings, folder, progress)
    return _write_volumes(settings, folder, progress)


def _write_scenes(settings: schema.Scenes, folder: Path, progress: Progress | None) -> dict[str, Any]:
    indices = generated_indices(settings)
    arrays = _allocate(folder, len(indices), _shape(settings), masks=True, scenes=True)
    for row, i in enumerate(indices):
        scene = scenes.generate_scene(settings.seed, i, settings.cache_size, settings.classes, settings.noise)
        pairs: Iterable[tuple[NDArray[Any] | None, NDArray[Any]]] = zip(arrays, scene, strict=True)
        for array, values in pairs:
            assert array is not None  # all four were allocated
            array[row] = values
        if progress is not None:
            progress(row + 1, len(indices))
    names = [f"scene-{i:06d}" for i in indices]
    return _index(names, scenes.SCENE_CLASSES[: settings.classes])


def _write_volumes(settings: schema.Volumes, folder: Path, progress: Progress | None) -> dict[str, Any]:
    indices = generated_indices(settings)
    arrays = _allocate(folder, len(indices), _shape(settings), masks=True, scenes=False)
    assert arrays.masks is not None
    for row, i in enumerate(indices):
        made = volumes.generate_volume(settings.seed, i, settings.slices, settings.cache_size, settings.classes)
        arrays.images[row], arrays.masks[row] = made.image[..., None], made.mask
        if progress is not None:
            progress(row + 1, len(indices))
    return _index([f"volume-{i:06d}" for i in indices], volumes.VOLUME_CLASSES[: settings.classes])


def _write_files(settings: schema.Data, listing: Listing, folder: Path, progress: Progress | None) -> dict[str, Any]:
    arrays = _allocate(folder, len(listing.entries), _shape(settings), listing.mask_values is not None, scenes=False)
    bad: dict[int, tuple[str, ...]] = {}
    transparent: list[str] = []
    palettes = Palettes(listing)
    for row, found in enumerate(_decoded(settings, listing, arrays)):
        if found.problems:
            bad[row] = found.problems
        palettes.check(listing.entries[row], found.palette)
        transparent += [listing.entries[row].name] * found.transparent
        if progress is not None:
            progress(row + 1, len(listing.entries))
    skipped = (*listing.problems, *(problem for problems in bad.values() for problem in problems))
    good = [row for row in range(len(listing.entries)) if row not in bad]
    refuse_bad_files(settings, listing, skipped, good)
    _keep_rows(folder, arrays, good)
    entries = [listing.entries[row] for row in good]
    labels, tests = [entry.label for entry in entries], [entry.test for entry in entries]
    names = [entry.name for entry in entries]
    index = _index(names, listing.classes, labels, tests, skipped, listing.label_names)
    index |= {"parts": marks_of(entries, 0), "groups": marks_of(entries, 1)}
    return index | ({"transparent": transparent} if transparent else {})


def _decoded(settings: schema.Data, listing: Listing, arrays: Arrays) -> Iterator[Decoded]:
    """Decode every entry into its row, on threads (Pillow releases the GIL); yields the rest of each one, in order."""

    unpack = _remembering(listing)

    def fill(row: int) -> Decoded:
        entry = listing.entries[row]
        if isinstance(settings, schema.LUNA16):
            read = cubes.decode_cube(entry, listing, unpack, settings.slices, settings.cache_size)
        else:
            read = decode(entry, listing, unpack, settings.cache_size, settings.fit)
        if read.image is not None:
            arrays.images[row] = read.image
        if read.mask is not None and arrays.masks is not None:
            arrays.masks[row] = read.mask
        return read._replace(image=None, mask=None)

    with ThreadPoolExecutor() as pool:
        yield from pool.map(fill, range(len(listing.entries)))


def _remembering(listing: Listing) -> Callable[[Path], Pack] | None:
    """Opens files of many images, each once as long as its rows are at work."""
    if listing.unpack is None:
        return None
    remembered, lock = lru_cache(maxsize=PACKS)(listing.unpack), threading.Lock()

    def unpack(path: Path) -> Pack:
        with lock:  # else every thread would read the next file at once
            return remembered(path)

    return unpack


def _write_maps(
    settings: schema.Data, data_root: Path | None, cache: Path, of: str, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """Maps alone; the images stay where they are, for other maps of the same."""
    images = np.asarray(open_built(of, cache).images)  # the mapped array, not a copy
    _room(folder, images.size)  # two maps of two bytes for three of colour is more than is needed
    if settings.regions is not None:
        _fill(
            folder / "regions.npy",
            images,
            np.uint16,
            maps.region_maps(images, settings.regions, data_root, settings.fit == "pad"),
            progress,
        )
    if settings.depth is not None:
        _fill(folder / "depth.npy", images, np.float16, maps.depth_maps(images, settings.depth, data_root), progress)
    return {"of": of}


def _fill(
    path: Path,
    images: NDArray[np.uint8],
    dtype: type[np.generic],
    chunks: Iterable[NDArray[Any]],
    progress: Progress | None,
) -> None:
    array, row = open_memmap(path, "w+", dtype, images.shape[:3]), 0
    for chunk in chunks:
        array[row : row + len(chunk)] = chunk
        row += len(chunk)
        if progress is not None:
            progress(row, len(images))
    array.flush()


def _shape(settings: schema.Data) -> tuple[int, ...]:
    """Shape of one image, channels last: (S, S, C), or (D, S, S, 1) of a volume."""
    size, slices = settings.cache_size, schema.slices_of(settings)
    return (size, size, schema.image_channels(settings)) if slices is None else (slices, size, size, 1)


def _allocate(folder: Path, n: int, shape: tuple[int, ...], masks: bool, scenes: bool) -> Arrays:
    pixels = n * math.prod(shape[:-1])
    _room(folder, pixels * (shape[-1] + masks + 4 * scenes))
    square = (n, *shape[:-1])
    return Arrays(
        images=open_memmap(folder / "images.npy", "w+", np.uint8, (n, *shape)),
        masks=open_memmap(folder / "masks.npy", "w+", np.uint8, square) if masks else None,
        regions=open_memmap(folder / "regions.npy", "w+", np.uint16, square) if scenes else None,
        depth=open_memmap(folder / "depth.npy", "w+", np.float16, square) if scenes else None,
    )


def _room(folder: Path, needed: int) -> None:
    if needed > shutil.disk_usage(folder).free:  # writing to a map on a full disk kills the process without a word
        raise DataError(f"the cache needs {needed / 1e9:.2f} GB, and {folder.parent.parent} has less than that free")


def _keep_rows(folder: Path, arrays: Arrays, good: Sequence[int]) -> None:
    """Drop the rows of bad files, one row at a time: a data set need not fit into memory."""
    for name, array in arrays._asdict().items():
        if array is None or len(array) == len(good):
            continue
        kept = open_memmap(folder / "kept.npy", "w+", array.dtype, (len(good), *array.shape[1:]))
        for row, source in enumerate(good):
            kept[row] = array[source]
        kept.flush()
        os.replace(folder / "kept.npy", folder / f"{name}.npy")


def _index(
    names: Sequence[str],
    classes: Sequence[str],
    labels: Sequence[int | None] = (),
    tests: Sequence[bool | None] = (),
    skipped: Sequence[str] = (),
    label_names: Sequence[str] = (),
) -> dict[str, Any]:
    """index.json; labels and test membership are null where the data set has none."""
    return {
        "names": list(names),
        "classes": list(classes),
        "labels": None if not labels or None in labels else list(labels),
        "official_test": None if not tests or None in tests else list(tests),
        "skipped": list(skipped),
        "label_names": list(label_names),
    }
