"""Name the content of a data set: SHA-256 of the files it uses, their names and roles, and the settings that matter.

The digest is the name of the cache folder, and what a stage's fingerprint covers. Paths and times are not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretune.search_spaces import schema
from pretune.trainables.data.listing import PLAIN, Entry, Listing, Member, Reading, file_of
from pretune.trainables.data.resident import maps
from pretune.trainables.data.resident.hashes import hash_files
from pretune.trainables.data.sets.table import GENERATED, generated_indices, list_files

IMAGES_RECIPE = 1  # raised whenever the same settings would give other arrays
FILES_RECIPE = 2  # the same of files: JPEGs far larger than the cache's images are decoded smaller now


def content_digest(settings: schema.Data, data_root: Path | None, cache: Path | None = None) -> str:
    """SHA-256 (hex) of what the data set will hold; of the split only `limit` has a part in it.

    With `cache`, hashes of files are remembered there. Raises DataError for missing folders or lists.
    """
    if isinstance(settings, GENERATED):
        images = generated_digest(settings)
    else:
        images = files_digest(settings, list_files(settings, data_root), cache)
    return digest_with_maps(images, settings, data_root, cache)


def generated_digest(settings: schema.Scenes | schema.Volumes) -> str:
    """Digest of generated images, without maps that are computed of them."""
    return _sha256([_header(settings, None), generated_indices(settings)])


def files_digest(settings: schema.Data, listing: Listing, cache: Path | None) -> str:
    """Digest of listed images, without maps that are computed of them."""
    if listing.content is not None:
        whole = hash_files(listing.hashed, cache)
        return _sha256([_header(settings, listing), *listing.content, *whole])
    sources = [source for entry in listing.entries for source in (entry.image, entry.mask) if source is not None]
    paths = list(dict.fromkeys(file_of(source) for source in sources))  # a file of many images is hashed once
    found = dict(zip(paths, hash_files(paths, cache), strict=True))
    return _sha256([_header(settings, listing), *(_identity(entry, found) for entry in listing.entries)])


def digest_with_maps(images: str, settings: schema.Data, data_root: Path | None, cache: Path | None) -> str:
    """The digest of the images together with the maps that are computed of them; that of the images without any."""
    if settings.regions is None and settings.depth is None:
        return images
    regions: Any = None if settings.regions is None else settings.regions.model_dump(mode="json", exclude={"weights"})
    if isinstance(settings.regions, schema.SAM):  # weights by what they hold, wherever they lie
        regions = [regions, *hash_files(maps.region_weights(settings.regions, data_root), cache)]
    depth = None
    if settings.depth is not None:
        depth = [settings.depth.output, *hash_files(maps.depth_weights(settings.depth, data_root), cache)]
    return _sha256([images, maps.MAPS_RECIPE, regions, depth, *(["padded"] if settings.fit == "pad" else [])])


def _identity(entry: Entry, found: dict[Path, str]) -> list[Any]:
    mask = None if entry.mask is None else found[file_of(entry.mask)]
    whole: list[Any] = [entry.name, entry.label, entry.test, found[file_of(entry.image)], mask]
    inside = [source.row for source in (entry.image, entry.mask) if isinstance(source, Member)]
    whole = [*whole, inside, entry.box] if inside or entry.box else whole
    return [*whole, entry.listed] if any(entry.listed) else whole


def _reading(reading: Reading) -> tuple[Any, ...]:
    """Channels are left out where there are three, as before there were others."""
    return tuple(reading) if reading.channels is not None else tuple(reading)[:-1]


def _sha256(parts: Sequence[Any]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return total.hexdigest()


def _header(settings: schema.Data, listing: Listing | None) -> dict[str, Any]:
    """The settings that change the arrays. `limit` is not among them: it shows in which images follow."""
    recipe = IMAGES_RECIPE if listing is None else FILES_RECIPE
    header: dict[str, Any] = {"recipe": recipe, "dataset": settings.dataset, "cache_size": settings.cache_size}
    if (slices := schema.slices_of(settings)) is not None:
        header |= {"slices": slices}
    if isinstance(settings, GENERATED):
        noise = {"noise": settings.noise} if isinstance(settings, schema.Scenes) and settings.noise else {}
        return header | {"classes": settings.classes, "seed": settings.seed} | noise
    if listing is not None:
        values = None if listing.mask_values is None else sorted(listing.mask_values.items())
        header |= {"classes": listing.classes, "mask_values": values, "problems": listing.problems}
        header |= {} if listing.mask_colors is None else {"mask_colors": listing.mask_colors}
        header |= {} if listing.reading == PLAIN else {"reading": _reading(listing.reading)}
        header |= {} if listing.mask_threshold is None else {"mask_threshold": listing.mask_threshold}
    return header | {"fit": settings.fit, "on_error": settings.on_error}
