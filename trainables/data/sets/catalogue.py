"""Form of the catalogue: what every data set's row says, before any of its files is there.

The rows stand at the end of the adapters' modules, beside the functions that list the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pretune.trainables.data.listing import Listing

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
RESEARCH_ONLY = "none stated; made available for research"
IMAGENET_TERMS = "ImageNet terms: non-commercial research and education"


class Download(NamedTuple):
    """A file that may be fetched without an account."""

    url: str
    checksum: str | None  # hex, as published: md5 (32 digits) or sha1 (40); None where none is known to us
    into: str = ""  # folder below the data set's own in which it is unpacked


class About(NamedTuple):
    """A published data set. `folders` are tried below --data; `markers`: what must be in it, any tuple in full.

    Checksums are torchvision's where it has the file, else those of public data loaders (GluonCV's for ADE20K).
    """

    title: str
    licence: str
    size: str  # of what is fetched
    login: bool  # whether its site asks for an account
    layout: str  # what must be in its folder
    folders: tuple[str, ...]
    markers: tuple[tuple[str, ...], ...]
    get: str  # what to do to have it
    downloads: tuple[Download, ...] = ()


class DataSet(NamedTuple):
    """A row of the table: how files are listed, and where they come from."""

    list_files: Callable[[Any, Path], Listing]  # (settings, folder or file)
    about: About | str  # a published data set, or what is read of the user's own
