"""Data sets, and how their images are read and cached."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pretune.search_spaces.schema.base import Settings
from pretune.search_spaces.schema.palettes import PALETTES
from pretune.search_spaces.schema.splits import Split, undivided


class Felzenszwalb(Settings):
    """Regions by Felzenszwalb and Huttenlocher's graph (2004), on the cached images."""

    name: Literal["felzenszwalb"]
    scale: PositiveFloat = 200.0  # larger: larger regions
    sigma: Annotated[float, Field(ge=0)] = 0.8  # px of the blur before
    min_size: PositiveInt = 50  # px


class SLIC(Settings):
    """Superpixels (Achanta et al. 2012), on the cached images."""

    name: Literal["slic"]
    segments: PositiveInt = 16  # about how many
    compactness: PositiveFloat = 10.0  # larger: squarer


class SAM(Settings):
    """Segment Anything or HQ-SAM through transformers: the coarsest of the masks of a grid of points (P4)."""

    name: Literal["sam"]
    weights: str  # folder with config.json, preprocessor_config.json and model.safetensors, relative to --data if given
    points_per_side: PositiveInt = 32  # of the grid
    min_iou: Annotated[float, Field(ge=0, le=1)] = 0.88  # that the model predicts for a mask
    min_stability: Annotated[float, Field(ge=0, le=1)] = 0.95  # IoU of the mask cut higher and lower


Regions = Annotated[Felzenszwalb | SLIC | SAM, Field(discriminator="name")]


class Depth(Settings):
    """Depth by a model of transformers (MiDaS, DPT, Depth Anything, ...), to [0, 1] in each image, 0 near."""

    weights: str  # folder with config.json, preprocessor_config.json and model.safetensors, relative to --data if given
    output: Literal["disparity", "depth"] = "disparity"  # what it predicts: larger is nearer (MiDaS), or farther


class _Images(Settings):
    """Settings that every data set has."""

    split: Annotated[Split, BeforeValidator(undivided)] = Split()  # or none: all images are for pretraining
    limit: PositiveInt | None = None  # use a random subset of this many images (drawn with split.seed)
    cache_size: PositiveInt = 128  # px; images are decoded once to this square, whatever size the views have
    fit: Literal["squash", "pad", "crop", "tile"] = "squash"  # into a square, or (tile) into squares of full resolution
    on_error: Literal["fail", "skip"] = "fail"  # a bad file stops the study, or is excluded and recorded
    regions: Regions | None = None  # region maps, computed once; scenes have exact ones unless this is given
    depth: Depth | None = None  # depth maps, computed once; scenes have exact ones unless this is given
    source: Literal["auto", "resident", "streaming"] = (
        "auto"  # decoded once and mapped, or anew in every epoch (same digits)
    )
    shuffle_window: PositiveInt | None = (
        None  # images shuffled together: a set in shards is read nearly in its order; default: all
    )

    @model_validator(mode="before")
    @classmethod
    def _tiles_together(cls, values: Any) -> Any:
        """Tiles of one image are of one part: they are a group unless another is named."""
        if not isinstance(values, Mapping) or values.get("fit") != "tile":
            return values
        split = values.get("split", {})
        if not isinstance(split, Mapping) or "group" in split or ("file" in split and "fold" in split):
            return values
        return {**values, "split": {**split, "group": {"pattern": "(.*)"}}}


class Scenes(_Images):
    """Generated textured scenes with objects: image, class mask, region map and depth map, all exact."""

    dataset: Literal["scenes"]
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 600
    classes: Annotated[int, Field(ge=2, le=6)] = 3  # background included
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # more sensor noise: standard deviation, of the brightest value
    seed: NonNegativeInt = 0
    cache_size: PositiveInt = 64


class _Archive(_Images):
    """A published data set, read in the layout of its own archive or of torchvision."""

    root: str | None = None  # its folder; default: found under --data by the usual names


class Pets(_Archive):
    """Oxford-IIIT Pet in torchvision's folder layout."""

    dataset: Literal["oxford-iiit-pet"]
    labels: Literal["trimap", "foreground"] = "trimap"  # three classes, or pet (border included) against background
    classes: Literal["breed", "species"] = "breed"  # image labels, for classification
    species: Literal["dogs", "cats"] | None = None  # keep these only (P3 Table 5: dogs; 25 breeds, numbered from 0)


class Flowers102(_Archive):
    """Oxford Flowers 102 in torchvision's layout, with the segmentations of 102segmentations.tgz."""

    dataset: Literal["flowers102"]
    masks: bool = True  # flower against background; false: images and labels alone


class Flowers17(_Archive):
    """Oxford Flowers 17: jpg/ and trimaps/."""

    dataset: Literal["flowers17"]
    masks: bool = True  # the 849 images that have a trimap (P3); false: all 1360, without masks


VOCClass = Literal[
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


class VOC2012(_Archive):
    """PASCAL VOC 2012 segmentation, train and val; val is its official test list."""

    dataset: Literal["voc2012"]
    only: VOCClass | None = None  # this class against the rest, on the images that show it (P3)
    classify: tuple[VOCClass, ...] = ()  # images that show exactly one of these, labelled by it (P3: four classes)


CityscapesClass = Literal[
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]  # fmt: skip


class Patches(Settings):
    """P3's classification set: a coin decides for each image whether its random crop must show the class or not."""

    of: CityscapesClass = "car"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of the pixels of a crop that shows the class (P3)
    size: PositiveInt = 256  # px, side of the crop (our choice: P3 gives none)
    seed: NonNegativeInt = 0


class Cityscapes(_Archive):
    """Cityscapes fine annotations, train and val, 19 classes; val is its official test list."""

    dataset: Literal["cityscapes"]
    only: CityscapesClass | None = None  # this class against the rest, on the images that show it (P3: car, bus)
    patches: Patches | None = None  # crops labelled 0 (without) and 1 (with the class) in place of whole images


class ADE20K(_Archive):
    """ADE20K in the form of SceneParse150 (ADEChallengeData2016); validation is its official test list."""

    dataset: Literal["ade20k"]


class CamVid(_Archive):
    """CamVid in SegNet's form, 11 classes. Neighbouring frames look alike: prefer `split: {test: official}`."""

    dataset: Literal["camvid"]


class CIFAR10(_Archive):
    """CIFAR-10: the python or binary batches, or train.npz and test.npz with images and labels."""

    dataset: Literal["cifar10"]
    cache_size: PositiveInt = 32


class STL10(_Archive):
    """STL-10 binary files."""

    dataset: Literal["stl10"]
    part: Literal["labelled", "unlabelled"] = "labelled"  # 5,000 + 8,000 test images, or the 100,000 without labels
    cache_size: PositiveInt = 96


class TinyImageNet(_Archive):
    """Tiny ImageNet: tiny-imagenet-200/, or train.npz with the JPEG files end to end."""

    dataset: Literal["tiny-imagenet"]
    cache_size: PositiveInt = 64


class Imagenette(_Archive):
    """Imagenette, of any of its three sizes; val is its official test list."""

    dataset: Literal["imagenette"]


class ImageNet(_Archive):
    """ImageNet-1k as train/WNID/ and val/WNID/; val is its official test list."""

    dataset: Literal["imagenet"]
    subset: Literal["all", "tiny-imagenet"] = "all"  # the 200 classes of Tiny ImageNet at their full size (P5)


class ImageNet64(_Archive):
    """ImageNet-1k downsampled to 64 px (Chrabaszcz et al. 2017), the .npz batches."""

    dataset: Literal["imagenet64"]
    cache_size: PositiveInt = 64


Supercategory = Literal[
    "Amphibians", "Animalia", "Arachnids", "Birds", "Fungi", "Insects", "Mammals", "Mollusks", "Plants",
    "Ray-finned Fishes", "Reptiles",
]  # fmt: skip


class INaturalist2021(_Archive):
    """iNaturalist 2021 in the layout of its archives; 2021_valid or val is its official test list where present."""

    dataset: Literal["inaturalist2021"]
    leave_out: tuple[Supercategory, ...] = ()  # P2: [Plants, Fungi]


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


class _Reading(_Images):
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


class _OwnMasks(_Images):
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
            raise ValueError(f"classes: {self.classes[0]!r} alone is not a task; name the background too")
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


class _Volumes(_Images):
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


Data = Annotated[
    Scenes
    | Pets
    | Flowers102
    | Flowers17
    | VOC2012
    | Cityscapes
    | ADE20K
    | CamVid
    | CIFAR10
    | STL10
    | TinyImageNet
    | Imagenette
    | ImageNet
    | ImageNet64
    | INaturalist2021
    | Npz
    | Parquet
    | ImageFolder
    | ImageMaskFolder
    | Coco
    | Volumes
    | LUNA16,
    Field(discriminator="dataset"),
]
