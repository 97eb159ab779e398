"""Large images at their own resolution: each is cut into squares, which are images of the data set from then on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pretune.trainables.data.decode.images import size_in_file
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing, Member


def cut_into_tiles(listing: Listing, size: int) -> Listing:
    """Return a listing of squares of `size` px side by side, named `IMAGE#r000c001` by row and column.

    They do not overlap, so that every pixel is scored once; beyond the edge they are black, and their masks ignored.
    Raises DataError for images that are no files of their own, or parts of images already.
    """
    if listing.content is not None or any(isinstance(e.image, Member) or e.box for e in listing.entries):
        raise DataError(f"fit: tile cuts image files, and the images in {listing.root} are none; use another fit")
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(lambda entry: size_in_file(entry.image, listing.reading), listing.entries))
    tiles = (tile for entry, found in zip(listing.entries, sizes, strict=True) for tile in _tiles(entry, found, size))
    return replace(listing, entries=tuple(tiles))


def _tiles(entry: Entry, found: tuple[int, int] | None, size: int) -> Iterator[Entry]:
    """Tiles of one image; of a file that cannot be read, the whole of it, which decoding then names."""
    if found is None:
        yield entry
        return
    width, height = found
    for top in range(0, height, size):
        for left in range(0, width, size):
            name = f"{entry.name}#r{top // size:03d}c{left // size:03d}"
            yield entry._replace(name=name, box=(left, top, left + size, top + size))
