"""One table of all data sets; find a data set's folder, and list its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Listing, reading_of, where_all_are
from pretune.trainables.data.sets import classed, coco, cubes, flowers, folders, packed, parquet, pets, segmented
from pretune.trainables.data.sets.catalogue import About, DataSet
from pretune.trainables.data.sets.tiles import cut_into_tiles
from pretune.trainables.data.split_file import with_split_file
from pretune.trainables.data.splits import draw_subset

GENERATED = schema.Scenes | schema.Volumes  # data sets without files, by functions of scenes.py and volumes.py
ABOUT_GENERATED = {
    "scenes": "generated scenes with exact masks, regions and depth; nothing to fetch",
    "volumes": "generated volumes with exact masks; nothing to fetch",
}

# Every data set but the generated ones, by the name that `dataset:` has in a study.
DATA_SETS: dict[str, DataSet] = {
    **pets.PET_SETS,
    **flowers.FLOWER_SETS,
    **segmented.SEGMENTED_SETS,
    **classed.CLASSED_SETS,
    **packed.PACKED_SETS,
    **cubes.CUBE_SETS,
    **parquet.PARQUET_SETS,
    **folders.FOLDER_SETS,
    **coco.COCO_SETS,
}
ABOUT: dict[str, About] = {name: row.about for name, row in DATA_SETS.items() if isinstance(row.about, About)}


def list_files(settings: schema.Data, data_root: Path | None) -> Listing:
    """The entries that are used. Under `on_error: fail`, problems that names alone show are raised by the build.

    Raises DataError for missing folders or lists, and where there is no image.
    """
    if _REMEMBERED:
        found = _REMEMBERED[-1]
        if (settings, data_root) not in found:
            found[settings, data_root] = _listed(settings, data_root)
        return found[settings, data_root]
    return _listed(settings, data_root)


_REMEMBERED: list[dict[tuple[schema.Data, Path | None], Listing]] = []  # of the contexts below that are open


@contextmanager
def listings_remembered() -> Iterator[None]:
    """List each data set once while this lasts: a plan asks for the same files many times."""
    _REMEMBERED.append({})
    try:
        yield
    finally:
        _REMEMBERED.pop()


def _listed(settings: schema.Data, data_root: Path | None) -> Listing:
    root = locate(settings, data_root)
    assert root is not None  # only what is generated has no folder
    with readable(settings.dataset):
        listing = DATA_SETS[settings.dataset].list_files(settings, root)
    if not listing.entries:
        raise DataError(
            f"{settings.dataset}: no usable image in {root}{where_all_are(listing.problems)}", listing.problems
        )
    listing = replace(with_split_file(listing, settings.split, data_root), reading=reading_of(settings))
    listing = _limited(listing, settings.limit, settings.split.seed)
    return cut_into_tiles(listing, settings.cache_size) if settings.fit == "tile" else listing


def generated_indices(settings: schema.Scenes | schema.Volumes) -> list[int]:
    """Numbers of the generated images that are used: all, or a random `limit` of them."""
    return [int(i) for i in draw_subset(settings.images, settings.limit, settings.split.seed)]


def count_images(settings: schema.Data, data_root: Path | None) -> int:
    """Count the images of a data set, before any is opened. Raises DataError for missing folders or lists."""
    if isinstance(settings, GENERATED):
        return len(generated_indices(settings))
    return len(list_files(settings, data_root).entries)


def _limited(listing: Listing, limit: int | None, seed: int) -> Listing:
    """A random `limit` of the entries, still in name order; all of them where there are no more than that."""
    if limit is None or limit >= len(listing.entries):
        return listing
    rows = [int(i) for i in draw_subset(len(listing.entries), limit, seed)]
    content = None if listing.content is None else [*listing.content, rows]
    return replace(listing, entries=tuple(listing.entries[i] for i in rows), content=content)


@contextmanager
def readable(dataset: str) -> Iterator[None]:
    """A folder or list that this user may not read is an error of the data; a file's bytes are read later."""
    try:
        yield
    except PermissionError as error:
        what = error.filename or "a part of it"
        raise DataError(
            f"{dataset}: {what} cannot be read by this user ({error.strerror}); change its permissions"
        ) from None


def locate(settings: schema.Data, data_root: Path | None) -> Path | None:
    """The folder (or .npz file) of a data set; None for a generated one.

    A relative `root:` is taken from `data_root`, else from the working folder. Raises DataError: what is expected,
    where, and how to get it.
    """
    with readable(settings.dataset):
        return _located(settings, data_root)


def _located(settings: schema.Data, data_root: Path | None) -> Path | None:
    if isinstance(settings, GENERATED):
        return None
    if settings.dataset in ABOUT:
        return _locate_archive(settings.dataset, ABOUT[settings.dataset], settings.root, data_root)
    assert settings.root is not None  # the user's own data name it
    if "://" in settings.root:
        return Path(settings.root)  # an address: whoever lists it takes `settings.root` itself
    path = (data_root or Path()) / Path(settings.root).expanduser()
    if settings.dataset == "npz" and not path.is_file():
        raise DataError(f"npz: the file {path} does not exist; set `root:` to the file (relative to --data, if given)")
    if settings.dataset == "parquet" and path.is_file():
        return path
    if settings.dataset != "npz" and not path.is_dir():
        raise DataError(
            f"{settings.dataset}: the folder {path} does not exist; set `root:` (relative to --data, if given)"
        )
    return path


def _locate_archive(name: str, about: About, root: str | None, data_root: Path | None) -> Path:
    expected = f"a folder with {about.layout} ({about.get})"
    if root is None and data_root is None:
        raise DataError(f"{name}: expected {expected}; give its place with --data or `root:`")
    base = (data_root or Path()) / Path(root or ".").expanduser()
    found = find_folder(base, about)
    if found is None:
        raise DataError(
            f"{name}: expected {expected} at {base / about.folders[0]} or {base}; give its place with --data or `root:`"
        )
    return found


def find_folder(base: Path, about: About) -> Path | None:
    """`base` or the first of the usual folders below it that holds what the data set is known by."""
    for folder in (*(base / name for name in about.folders), base):
        if any(all((folder / part).exists() for part in parts) for parts in about.markers):
            return folder
    return None
