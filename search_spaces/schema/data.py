"""Data sets: generated ones, volumes, and the union of all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from pretune.search_spaces.schema.data_settings import DataSettings
from pretune.search_spaces.schema.own_data import OwnData
from pretune.search_spaces.schema.published import PublishedData


class Scenes(DataSettings):
    """Generated textured scenes with objects: image, class mask, region map and depth map, all exact."""

    dataset: Literal["scenes"]
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 600
    classes: Annotated[int, Field(ge=2, le=6)] = 3  # background included
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # more sensor noise: standard deviation, of the brightest value
    seed: NonNegativeInt = 0
    cache_size: PositiveInt = 64


class _Volumes(DataSettings):
    """Grey volumes of `slices` times `cache_size` x `cache_size` voxels. Stages take them whole, at this size."""

    cache_size: PositiveInt = 64
    slices: PositiveInt = 32
    fit: Literal["squash"] = "squash"
    regions: None = None
    depth: None = None


class Volumes(_Volumes):
    """Generated volumes: round bodies among tubes as bright as they are, with exact masks."""

    dataset: Literal["volumes"]
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    classes: Annotated[int, Field(ge=2, le=3)] = 2  # background included
    seed: NonNegativeInt = 0
    cache_size: PositiveInt = 32
    slices: PositiveInt = 16


class LUNA16(_Volumes):
    """Cubes of chest CT in Models Genesis' .npy files (P3): of LUNA16's folds, or LIDC's nodules with masks."""

    dataset: Literal["luna16"]
    root: str | None = None  # the folder with the files; default: found under --data by the usual names
    part: Literal["cubes", "nodules"] = "cubes"
    folds: tuple[Annotated[int, Field(ge=0, le=9)], ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # of the cubes; 7 to 9: test


def image_channels(data: Data) -> int:
    """Channels of the images of a data set, or of its volumes' voxels."""
    if isinstance(data, Volumes | LUNA16):
        return 1
    return getattr(data, "channels", None) or 3


def slices_of(data: Data) -> int | None:
    """Return the number of slices of a data set's volumes; None for images."""
    return data.slices if isinstance(data, Volumes | LUNA16) else None


Data = Annotated[Scenes | PublishedData | OwnData | Volumes | LUNA16, Field(discriminator="dataset")]
