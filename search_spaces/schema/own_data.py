"""The user's own data: arrays, Parquet shards, and folders of images with or without masks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from pretune.search_spaces.schema.base import Settings
from pretune.search_spaces.schema.data_settings import DataSettings
from pretune.search_spaces.schema.palettes import PALETTES

Channel = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]  # red, green, blue


class Percentiles(Settings):
    """Black and white of each image by its own values."""

    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (
        1.0,
        99.0,
    )  # what is below the first is black, above the second white

    @model_validator(mode="after")
    def _rising(self) -> Percentiles:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles: {list(self.percentiles)} should rise")
        return self


class _Reading(DataSettings):
    """Settings of the user's own image files: how pixels become 8-bit RGB. `pretune predict` reads them likewise."""

    channels: Annotated[int, Field(ge=1, le=64)] | None = None  # where not three colours: multispectral TIFF, .npy
    value_range: tuple[float, float] | tuple[tuple[float, float], ...] | Percentiles | None = (
        None  # black and white, of each channel if need be, or {percentiles: [1, 99]}; needed for 12 bits and floats
    )
    background: Color | None = None  # what transparent images are laid over; default: black
    page: PositiveInt | None = None  # of files with several (TIFF stacks), counted from 1; default: they are refused

    @model_validator(mode="after")
    def _black_below_white(self) -> _Reading:
        for low, high in self.ranges:
            if not low < high:
                raise ValueError(f"value_range: {[low, high]} should rise: black first, white second")
        return self

    @model_validator(mode="after")
    def _of_every_channel(self) -> _Reading:
        if len(self.ranges) > 1 and len(self.ranges) != self.channels:
            held = f"{len(self.ranges)} ranges, and channels is {self.channels or 'not given'}"
            raise ValueError(f"value_range has {held}; give one range, or one for each channel")
        if self.channels is not None:
            for key in ("regions", "depth", "background"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is of colour images, and channels says that there are {self.channels}")
        return self

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Fixed ranges: one of all channels or one of each; () where there are none."""
        given = self.value_range
        if given is None or isinstance(given, Percentiles):
            return ()
        return (given,) if not isinstance(given[0], tuple) else given


class _OwnMasks(DataSettings):
    """Settings of the user's own masks."""

    classes: tuple[str, ...] = ()  # names of the classes; needed with masks
    mask_values: tuple[Annotated[int, Field(ge=0, le=65535)], ...] | None = (
        None  # their values in the masks, such as [0, 255]; default: 0, 1, 2, ...
    )
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None  # mask value excluded from losses and metrics

    @model_validator(mode="after")
    def _a_task(self) -> _OwnMasks:
        """Two classes or more (none: no masks are read), each with a name of its own that metrics can hold."""
        read = [" ".join(unicodedata.normalize("NFC", name).split()) for name in self.classes]  # one name to a reader
        twice = sorted({name for name in read if read.count(name) > 1})
        if twice:
            raise ValueError(f"classes: {twice[0]!r} stands there twice, and its scores would be one line")
        if len(self.classes) == 1:
            raise ValueError(
                f"classes: one class ({self.classes[0]!r}) is not enough; name at least two, with the background"
            )
        for name in self.classes:
            if "/" in name or not name.strip() or not name.isprintable():
                raise ValueError(f"classes: {name!r} cannot stand in the name of a metric, test/jaccard/{name}")
        values = range(len(self.classes)) if self.mask_values is None else self.mask_values
        if self.ignore is not None and self.ignore in values:
            name = self.classes[list(values).index(self.ignore)]
            raise ValueError(f"ignore: {self.ignore} is the mask value of {name!r} too, which would have no pixel")
        return self

    @model_validator(mode="after")
    def _one_value_each(self) -> _OwnMasks:
        given = self.mask_values
        if given is not None and (len(given) != len(self.classes) or len(set(given)) < len(given)):
            wanted = f"one value for each of the {len(self.classes)} classes, none twice"
            raise ValueError(f"mask_values: {list(given)} should be {wanted}")
        return self


def _colors(value: object) -> object:
    """{road: [128, 64, 128], car: [[0, 0, 142], [0, 0, 70]]} -> a pair of class and colour for every colour."""
    if isinstance(value, str):
        raise ValueError(f"should be class: [red, green, blue], or one of {', '.join(PALETTES)}")
    if not isinstance(value, Mapping):
        return value
    pairs = []
    for name, given in value.items():
        several = isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple)
        pairs += [(name, color) for color in (given if several else [given])]
    return tuple(pairs)


class _MaskFiles(_OwnMasks):
    """Settings of masks that are image files: what their pixels mean, where these are not class indices."""

    mask_threshold: Annotated[int, Field(ge=1, le=255)] | None = (
        None  # of 255: brighter masks are the second of two classes; for black and white with JPEG's soft edges
    )
    mask_colors: Annotated[tuple[tuple[str, Color], ...] | None, BeforeValidator(_colors)] = (
        None  # class: [red, green, blue] (or a list of these), or camvid, voc or cityscapes
    )
    ignore_colors: tuple[Color, ...] = ()  # mask colours excluded from losses and metrics

    @model_validator(mode="before")
    @classmethod
    def _by_palette(cls, values: Any) -> Any:
        """A palette by its name; colours name the classes unless `classes` does."""
        if not isinstance(values, Mapping):
            return values
        colors = values.get("mask_colors")
        if isinstance(colors, str) and colors in PALETTES:
            palette = PALETTES[colors]
            colors = palette.colors
            values = {"ignore_colors": palette.ignored, **values, "mask_colors": colors}
        if isinstance(colors, Mapping) and "classes" not in values:
            values = {**values, "classes": tuple(colors)}
        return values

    @model_validator(mode="after")
    def _one_meaning(self) -> _MaskFiles:
        if self.mask_threshold is not None and len(self.classes) != 2:
            raise ValueError(f"mask_threshold tells two classes apart, and classes names {len(self.classes)}")
        given = [name for name in ("mask_values", "mask_threshold", "mask_colors") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say what the pixels of masks mean; keep one")
        if self.ignore is not None and given and given != ["mask_values"]:
            way = "use ignore_colors" if self.mask_colors else "a threshold leaves nothing to ignore"
            raise ValueError(f"ignore is a value of the masks, which {given[0]} does not read; {way}")
        if self.ignore_colors and self.mask_colors is None:
            raise ValueError("ignore_colors is beside mask_colors, which is missing")
        return self

    @model_validator(mode="after")
    def _one_color_each(self) -> _MaskFiles:
        if self.mask_colors is None:
            return self
        named = {name for name, _ in self.mask_colors}
        if named != set(self.classes):
            other = sorted(named ^ set(self.classes))
            raise ValueError(f"mask_colors and classes should name the same classes; only one has {', '.join(other)}")
        colors = [*(color for _, color in self.mask_colors), *self.ignore_colors]
        if twice := sorted({color for color in colors if colors.count(color) > 1}):
            raise ValueError(f"mask_colors: {list(twice[0])} stands twice; each colour has one meaning")
        return self


class Npz(_OwnMasks):
    """One .npz file: `images` (N, H, W, 3) or (N, H, W) uint8; `masks` (N, H, W), `labels` (N,) where there are any."""

    dataset: Literal["npz"]
    root: str  # the file, relative to --data if given


class Parquet(_MaskFiles):
    """Parquet shards with the bytes of an image file in every row; read nearly in their order, see `shuffle_window`."""

    dataset: Literal["parquet"]
    root: str  # *.parquet or a folder of them: relative to --data if given, or an address (s3://, gs://, hdfs://, https://)
    image: str = "image"  # column of bytes, or of structs with a field `bytes`
    mask: str | None = None  # column with the bytes of PNG masks, whose values are class indices
    label: str | None = None  # column of whole numbers: the image class
    shuffle_window: PositiveInt | None = 4096


class ImageFolder(_Reading):
    """Any folder of images; sub-folders, where there are any, are taken as classes. No masks: for pretraining.

    train/, val/ and test/ are not taken as classes: what lies below test/ (or val/) is the official test list.
    """

    dataset: Literal["image-folder"]
    root: str


def _name_pattern(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[^{}]*\{stem\}[^{}]*", value):
        raise ValueError("should hold {stem} once, such as {stem}_mask")
    return value


class ImageMaskFolder(_MaskFiles, _Reading):
    """Images and masks in two folders, or in one, paired by their names; see `mask_values` and the keys below it.

    Equal names without suffix are a pair. `mask_name: "{stem}_mask"` pairs x.jpg with x_mask.png.
    """

    dataset: Literal["image-mask-folder"]
    root: str
    images: str = "images"  # folder below root; . for root itself
    masks: str = "masks"  # the same; may be the folder of the images where the names tell masks apart
    image_name: Annotated[str, BeforeValidator(_name_pattern)] = "{stem}"  # without suffix, as `{stem}_img`
    mask_name: Annotated[str, BeforeValidator(_name_pattern)] = "{stem}"  # without suffix, as `{stem}_mask`
    classes: tuple[str, ...]  # names of the mask values 0, 1, 2, ..., or of `mask_values`; mask_colors name them too

    @model_validator(mode="after")
    def _distinguished(self) -> ImageMaskFolder:
        if self.images == self.masks and self.image_name == self.mask_name:
            raise ValueError(
                f"images and masks are both {self.images}; mask_name should tell them apart: {{stem}}_mask"
            )
        return self


class AnnotationParts(Settings):
    """A COCO file for each part, used as official lists."""

    train: str  # file below root
    val: str | None = None  # the test list where there is no test
    test: str | None = None


class Coco(_Reading):
    """Images with a COCO JSON file: polygons and run-length masks (pip install 'pretune[coco]'). Crowds are ignored."""

    dataset: Literal["coco"]
    root: str  # folder with images and file, relative to --data if given
    images: str = "."  # folder below root to which the file's names belong
    annotations: str | AnnotationParts = "annotations.json"  # below root; or {train: a.json, val: b.json, test: c.json}
    classes: tuple[str, ...] = ()  # categories, in the order of their classes; others are background; default: all
    rest: str = "background"  # name of the first class, which is where no object is


OwnData = Npz | Parquet | ImageFolder | ImageMaskFolder | Coco
