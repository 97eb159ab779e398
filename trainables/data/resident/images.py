"""Data sets as memory-mapped arrays: found, hashed by content, decoded once, opened in milliseconds.

locate    where the files are
digest    what they hold: the name of the cache folder, and what a fingerprint covers
ensure    decode into cache/<digest>/ unless that is there, and compute the maps that the settings ask for
load      ensure, then open
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data import decode, splits
from pretune.trainables.data.errors import SHOWN, DataError
from pretune.trainables.data.listing import IGNORE, Entry, Listing, Member, Pack, file_of, limited
from pretune.trainables.data.printable import printable
from pretune.trainables.data.resident import hashes, maps
from pretune.trainables.data.sets import cubes, scenes, volumes
from pretune.trainables.data.sets.table import ADAPTERS, locate, readable
from pretune.trainables.data.streaming.stream import Column, Pixels

__all__ = ["IGNORE", "DataError", "ImageSet", "digest", "ensure", "load", "locate", "open_cached"]

GENERATED = schema.Scenes | schema.Volumes  # what no files hold
RECIPE = 1  # raised whenever the same settings would give other arrays
FILES_RECIPE = 2  # the same of files: JPEGs far larger than the cache's images are decoded smaller now
INDEX = "index.json"

Progress = Callable[[int, int], None]  # images done, images in all
PACKS = 2  # files of many images that stay open while they are decoded: rows run on threads across their border


@dataclass(frozen=True)
class ImageSet:
    """A data set of N images of S x S px (S = cache_size): memory-mapped and read-only, or streamed.

    Or of N grey volumes of D slices: images (N, D, S, S, 1), masks (N, D, S, S), no regions and no depth.
    """

    images: Pixels  # (N, S, S, 3) uint8 RGB
    masks: Pixels | None  # (N, S, S) uint8 class indices; IGNORE = 255 is left out of losses and metrics
    regions: NDArray[np.uint16] | None  # (N, S, S) 0 background, 1..k objects
    depth: NDArray[np.float16] | None  # (N, S, S) in [0, 1], 0 near
    labels: NDArray[np.int64] | None  # (N,) image class: breed 0..36, or index of the sub-folder
    official_test: NDArray[np.bool_] | None  # (N,) True where the data set's own list says test
    names: Sequence[str]  # N, for people: printable
    classes: tuple[str, ...]  # names of the mask classes
    skipped: tuple[str, ...]  # files left out by `on_error: skip`, with the reason
    label_names: tuple[str, ...] = ()  # names of the image classes, where the data set gives them
    shuffle_window: int | None = None  # images that an epoch shuffles together; None: all

    @property
    def streamed(self) -> bool:
        return isinstance(self.images, Column)

    def coming(self, orders: Sequence[NDArray[np.int64]], batch: int) -> None:
        """Which images will be asked for next, epoch by epoch, `batch` at a time: a streamed set starts to read."""
        if isinstance(self.images, Column):
            self.images.stream.coming(orders, batch)

    def close(self) -> None:
        """Stop reading ahead."""
        if isinstance(self.images, Column):
            self.images.stream.close()


class _Maps(NamedTuple):
    """The arrays while they are written."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    regions: NDArray[np.uint16] | None
    depth: NDArray[np.float16] | None


# ------------------------------------------------------------------------------------------------- public calls


def digest(settings: schema.Data, data_root: Path | None, cache: Path | None = None) -> str:
    """SHA-256 (hex) of what the data set will hold: content of the files it uses, their names, roles and settings.

    Paths and times are not in it; the split only through `limit`. With `cache`, hashes of files are remembered there.
    Raises DataError for missing folders or lists.
    """
    return _with_maps(_digest_images(settings, data_root, cache), settings, data_root, cache)


def count(settings: schema.Data, data_root: Path | None) -> int:
    """How many images the data set will hold, before any is opened. Raises DataError for missing folders or lists."""
    if isinstance(settings, GENERATED):
        return len(_indices(settings))
    return len(listed(settings, data_root).entries)


def ensure(settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None) -> str:
    """Build cache/<digest>/ unless it is there; returns the digest. Raises DataError listing every bad file."""
    base = _ensure_images(settings, data_root, cache, progress)
    name = _with_maps(base, settings, data_root, cache)
    if name == base:
        return base
    return _built(name, cache, lambda folder: _write_maps(settings, data_root, cache, base, folder, progress))


def load(settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None = None) -> ImageSet:
    """The data set, built first where it is not cached. Raises DataError."""
    return _opened(ensure(settings, data_root, cache, progress), cache)


def _opened(name: str, cache: Path) -> ImageSet:
    opened = open_cached(name, cache)
    if opened is None:
        raise DataError(f"the cached data set {cache / name} was removed while it was being opened; run again")
    return opened


def open_cached(digest: str, cache: Path) -> ImageSet | None:
    """The finished data set `digest`, or None where there is none. Raises DataError for a damaged one."""
    folder = cache / digest
    if not folder.is_dir():
        return None
    try:
        return _open(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the cached data set {folder} is damaged ({error}); delete it and run again") from error


# ------------------------------------------------------------------------------------------------ files and hash


def _ensure_images(settings: schema.Data, data_root: Path | None, cache: Path, progress: Progress | None) -> str:
    if isinstance(settings, GENERATED):
        name = _digest_images(settings, data_root, cache)
        return _built(name, cache, lambda folder: _write_generated(settings, folder, progress))
    listing = listed(settings, data_root)
    name = _digest_files(settings, listing, cache)
    return _built(name, cache, lambda folder: _write_files(settings, listing, folder, progress))


def _digest_images(settings: schema.Data, data_root: Path | None, cache: Path | None) -> str:
    """Of all but the maps."""
    if isinstance(settings, GENERATED):
        return _digest_of([_header(settings, None), _indices(settings)])
    return _digest_files(settings, listed(settings, data_root), cache)


def _with_maps(base: str, settings: schema.Data, data_root: Path | None, cache: Path | None) -> str:
    """The digest of the images together with the maps that are computed of them; that of the images without any."""
    if settings.regions is None and settings.depth is None:
        return base
    regions: Any = None if settings.regions is None else settings.regions.model_dump(mode="json", exclude={"weights"})
    if isinstance(settings.regions, schema.SAM):  # weights by what they hold, wherever they lie
        regions = [regions, *hashes.hash_files(maps.region_weights(settings.regions, data_root), cache)]
    depth = None
    if settings.depth is not None:
        depth = [settings.depth.output, *hashes.hash_files(maps.weight_files(settings.depth, data_root), cache)]
    return _digest_of([base, maps.RECIPE, regions, depth, *(["padded"] if settings.fit == "pad" else [])])


def listed(settings: schema.Data, data_root: Path | None) -> Listing:
    """The entries that are used. Under `on_error: fail`, problems that names alone show are raised by the build."""
    root = locate(settings, data_root)
    assert root is not None  # only what is generated has no folder
    with readable(settings.dataset):
        listing = ADAPTERS[settings.dataset](settings, root)
    if not listing.entries:
        raise DataError(f"{settings.dataset}: no usable image in {root}{_all(listing.problems)}", listing.problems)
    return limited(listing, settings.limit, settings.split.seed)


def _digest_files(settings: schema.Data, listing: Listing, cache: Path | None) -> str:
    if listing.content is not None:
        whole = hashes.hash_files(listing.hashed, cache)
        return _digest_of([_header(settings, listing), *listing.content, *whole])
    sources = [source for entry in listing.entries for source in (entry.image, entry.mask) if source is not None]
    paths = list(dict.fromkeys(file_of(source) for source in sources))  # a file of many images is hashed once
    found = dict(zip(paths, hashes.hash_files(paths, cache), strict=True))
    return _digest_of([_header(settings, listing), *(_identity(entry, found) for entry in listing.entries)])


def _identity(entry: Entry, found: dict[Path, str]) -> list[Any]:
    mask = None if entry.mask is None else found[file_of(entry.mask)]
    whole = [entry.name, entry.label, entry.test, found[file_of(entry.image)], mask]
    inside = [source.row for source in (entry.image, entry.mask) if isinstance(source, Member)]
    return [*whole, inside, entry.box] if inside or entry.box else whole


def _digest_of(parts: Sequence[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def _header(settings: schema.Data, listing: Listing | None) -> dict[str, Any]:
    """The settings that change the arrays. `limit` is not among them: it shows in which images follow."""
    recipe = RECIPE if listing is None else FILES_RECIPE
    header: dict[str, Any] = {"recipe": recipe, "dataset": settings.dataset, "cache_size": settings.cache_size}
    if (slices := schema.slices_of(settings)) is not None:
        header |= {"slices": slices}
    if isinstance(settings, GENERATED):
        return header | {"classes": settings.classes, "seed": settings.seed}
    if listing is not None:
        values = None if listing.mask_values is None else sorted(listing.mask_values.items())
        header |= {"classes": listing.classes, "mask_values": values, "problems": listing.problems}
        header |= {} if listing.mask_colors is None else {"mask_colors": listing.mask_colors}
    return header | {"fit": settings.fit, "on_error": settings.on_error}


def _indices(settings: schema.Scenes | schema.Volumes) -> list[int]:
    return [int(i) for i in splits.draw_subset(settings.images, settings.limit, settings.split.seed)]


# --------------------------------------------------------------------------------------------------- the building


def _built(name: str, cache: Path, write: Callable[[Path], dict[str, Any]]) -> str:
    """Write into a temporary sibling and rename: a folder called <digest> is always a finished one."""
    if (cache / name).is_dir():
        return name
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as temporary:
        folder = Path(temporary) / "set"
        folder.mkdir()
        (folder / INDEX).write_text(json.dumps(write(folder)), encoding="utf-8")
        _publish(folder, cache / name)
    return name


def _publish(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():  # else somebody else built the same meanwhile, and this copy is discarded
            raise


def _write_generated(
    settings: schema.Scenes | schema.Volumes, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    if isinstance(settings, schema.Scenes):
        return _write_scenes(settings, folder, progress)
    return _write_volumes(settings, folder, progress)


def _write_scenes(settings: schema.Scenes, folder: Path, progress: Progress | None) -> dict[str, Any]:
    indices = _indices(settings)
    maps = _allocate(folder, len(indices), _shape(settings), masks=True, scenes=True)
    for row, i in enumerate(indices):
        scene = scenes.generate(settings.seed, i, settings.cache_size, settings.classes)
        pairs: Iterable[tuple[NDArray[Any] | None, NDArray[Any]]] = zip(maps, scene, strict=True)
        for array, values in pairs:
            assert array is not None  # all four were allocated
            array[row] = values
        if progress is not None:
            progress(row + 1, len(indices))
    names = [f"scene-{i:06d}" for i in indices]
    return _index(names, scenes.CLASSES[: settings.classes])


def _write_volumes(settings: schema.Volumes, folder: Path, progress: Progress | None) -> dict[str, Any]:
    indices = _indices(settings)
    maps = _allocate(folder, len(indices), _shape(settings), masks=True, scenes=False)
    assert maps.masks is not None
    for row, i in enumerate(indices):
        made = volumes.generate(settings.seed, i, settings.slices, settings.cache_size, settings.classes)
        maps.images[row], maps.masks[row] = made.image[..., None], made.mask
        if progress is not None:
            progress(row + 1, len(indices))
    return _index([f"volume-{i:06d}" for i in indices], volumes.CLASSES[: settings.classes])


def _write_files(settings: schema.Data, listing: Listing, folder: Path, progress: Progress | None) -> dict[str, Any]:
    maps = _allocate(folder, len(listing.entries), _shape(settings), listing.mask_values is not None, scenes=False)
    bad: dict[int, tuple[str, ...]] = {}
    for row, problems in enumerate(_decoded(settings, listing, maps)):
        if problems:
            bad[row] = problems
        if progress is not None:
            progress(row + 1, len(listing.entries))
    skipped = (*listing.problems, *(problem for problems in bad.values() for problem in problems))
    good = [row for row in range(len(listing.entries)) if row not in bad]
    check(settings, listing, skipped, good)
    _keep_rows(folder, maps, good)
    entries = [listing.entries[row] for row in good]
    labels, tests = [entry.label for entry in entries], [entry.test for entry in entries]
    return _index([entry.name for entry in entries], listing.classes, labels, tests, skipped, listing.label_names)


def _decoded(settings: schema.Data, listing: Listing, maps: _Maps) -> Iterator[tuple[str, ...]]:
    """Decode every entry into its row, on threads (Pillow releases the GIL); yields each one's problems, in order."""

    unpack = _remembering(listing)

    def fill(row: int) -> tuple[str, ...]:
        entry = listing.entries[row]
        if isinstance(settings, schema.LUNA16):
            read = cubes.decode_cube(entry, listing, unpack, settings.slices, settings.cache_size)
        else:
            read = decode.decode(entry, listing, unpack, settings.cache_size, settings.fit)
        image, mask, problems = read
        if image is not None:
            maps.images[row] = image
        if mask is not None and maps.masks is not None:
            maps.masks[row] = mask
        return problems

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
    settings: schema.Data, data_root: Path | None, cache: Path, base: str, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """Maps alone; the images stay where they are, for other maps of the same."""
    images = np.asarray(_opened(base, cache).images)  # the mapped array, not a copy
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
    return {"of": base}


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


def check(settings: schema.Data, listing: Listing, problems: Sequence[str], good: Sequence[int]) -> None:
    where = f"{settings.dataset} in {listing.root}"
    if not good:
        raise DataError(f"{where}: not one of {len(listing.entries)} images can be used{_all(problems)}:", problems)
    if problems and settings.on_error == "fail":
        advice = "repair or remove them, or leave them out with `on_error: skip`"
        many = f"{len(problems)} problem{'s'[: len(problems) > 1]}"
        raise DataError(f"{where}: {many}; {advice}{_all(problems)}:", problems)


def _all(problems: Sequence[str]) -> str:
    """Where those are that a message leaves out."""
    return " (pretune data check lists all on its page)" if len(problems) > SHOWN else ""


def _shape(settings: schema.Data) -> tuple[int, ...]:
    """Of one image, channels last: (S, S, 3), or (D, S, S, 1) of a volume."""
    size, slices = settings.cache_size, schema.slices_of(settings)
    return (size, size, 3) if slices is None else (slices, size, size, 1)


def _allocate(folder: Path, n: int, shape: tuple[int, ...], masks: bool, scenes: bool) -> _Maps:
    pixels = n * math.prod(shape[:-1])
    _room(folder, pixels * (shape[-1] + masks + 4 * scenes))
    square = (n, *shape[:-1])
    return _Maps(
        images=open_memmap(folder / "images.npy", "w+", np.uint8, (n, *shape)),
        masks=open_memmap(folder / "masks.npy", "w+", np.uint8, square) if masks else None,
        regions=open_memmap(folder / "regions.npy", "w+", np.uint16, square) if scenes else None,
        depth=open_memmap(folder / "depth.npy", "w+", np.float16, square) if scenes else None,
    )


def _room(folder: Path, needed: int) -> None:
    if needed > shutil.disk_usage(folder).free:  # writing to a map on a full disk kills the process without a word
        raise DataError(f"the cache needs {needed / 1e9:.2f} GB, and {folder.parent.parent} has less than that free")


def _keep_rows(folder: Path, maps: _Maps, good: Sequence[int]) -> None:
    """Leave out the rows of bad files, one row at a time: a data set need not fit into memory."""
    for name, array in maps._asdict().items():
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


# ---------------------------------------------------------------------------------------------------- the opening


def _open(folder: Path) -> ImageSet:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if "of" in index:  # maps, beside the images that they are of
        images = _open(folder.parent / str(index["of"]))
        regions, depth = _map(folder / "regions.npy"), _map(folder / "depth.npy")
        return replace(
            images,
            regions=images.regions if regions is None else regions,
            depth=images.depth if depth is None else depth,
        )
    labels, tests = index["labels"], index["official_test"]
    return ImageSet(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        masks=_map(folder / "masks.npy"),
        regions=_map(folder / "regions.npy"),
        depth=_map(folder / "depth.npy"),
        labels=None if labels is None else np.array(labels, np.int64),
        official_test=None if tests is None else np.array(tests, np.bool_),
        names=tuple(map(printable, index["names"])),
        classes=tuple(index["classes"]),
        skipped=tuple(map(printable, index["skipped"])),
        label_names=tuple(map(printable, index.get("label_names", ()))),  # caches of before the adapters have none
    )


def _map(path: Path) -> NDArray[Any] | None:
    return np.load(path, mmap_mode="r") if path.exists() else None
