"""Sentences about files that are not used: images with a fault, and files of types that are not read."""

from __future__ import annotations

from pathlib import Path

from pretune.search_spaces import schema
from pretune.trainables.data.image_files import not_read
from pretune.trainables.data.sets.table import GENERATED, list_files


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


def refused_by_name(settings: schema.Data, data_root: Path | None) -> str:
    """Files that a run will refuse as far as names show it, no file read; nothing where all is well."""
    if settings.on_error == "skip" or isinstance(settings, GENERATED):
        return ""
    problems = list_files(settings, data_root).problems
    if not problems:
        return ""
    many = f"{len(problems)} problem{'s' * (len(problems) != 1)}, so `pretune run` will stop"
    ways = "`on_error: skip` excludes such files, `pretune data check` lists all"
    return f"{many} ({ways}); first: {problems[0]}"
