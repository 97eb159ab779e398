"""Published data sets, read in the layouts of their archives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from pretune.search_spaces.schema.base import Settings
from pretune.search_spaces.schema.data_settings import DataSettings


class _Archive(DataSettings):
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


PublishedData = (
    Pets
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
)
