"""Sentences about files that are not used: images with a fault, and files of types that are not read."""

from __future__ import annotations

from pathlib import Path

from pretune.search_spaces import schema
from pretune.trainables.data.image_files import not_read
from pretune.trainables.data.sets.table import list_files


def count_excluded(settings: schema.Data, data_root: Path | None, kept: int) -> str:
    """'3 of 38 images'. What has no image, such as a mask left alone, does not count."""
    listing = list_files(settings, data_root)
    there = len(listing.entries) + listing.unlisted
    return f"{there - kept} of {there} image{'s' * (there != 1)}"


def types_not_read(settings: schema.Data, data_root: Path | None) -> str:
    """Count the files among the images that are not read, by type; "" where there are none."""
    if not isinstance(settings, schema.ImageFolder | schema.ImageMaskFolder):
        return ""
    return not_read(list_files(settings, data_root).ignored)
