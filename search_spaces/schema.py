"""The settings of every stage, and of the study around them.

Frozen pydantic models, unknown keys rejected. They describe *one fully specified configuration*; ranges and factors
are laid over them by `space.py` and `resolve.py`. Nothing here imports torch. Defaults stand here and nowhere else;
where a paper states a value, the comment says which (P1 to P5, see the README).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Settings(BaseModel):
    """Base of all settings: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _labels(value: object) -> object:
    """'10%' -> 0.1 (a fraction); 74 -> 74 (a count); 'all' -> 1.0."""
    if value == "all":
        return 1.0
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    if isinstance(value, float) and value > 1.0:
        raise ValueError("write a count as a whole number (74), a fraction as a percentage (10%) or below 1 (0.1)")
    return value


Labels = Annotated[
    PositiveInt | Annotated[float, Field(gt=0.0, le=1.0)],
    BeforeValidator(_labels),
]


# ---------------------------------------------------------------------------------------------------------- data


def _fold(value: str) -> str:
    number, of = (int(part) for part in value.split("/"))
    if not 1 <= number <= of or of < 2:
        raise ValueError(f"fold: {value} is not one of 1/{of} to {of}/{of}, of at least two folds")
    return value


class Split(Settings):
    """Which images are for what. Test is drawn once per study with `seed`; validation again for every replicate.

    `test: official` takes the data set's own test list. A float is a fraction of all images, an int a count.
    `fold: 2/5` takes the second of five equal parts as test, in place of `test`: k-fold as a factor.
    """

    test: Literal["official"] | PositiveInt | Share = 0.1
    val: NonNegativeInt | Share = 0.1
    seed: NonNegativeInt = 0
    fold: Annotated[str, Field(pattern=r"^[0-9]{1,4}/[0-9]{1,4}$"), AfterValidator(_fold)] | None = None
    stratify: bool = False  # test, val and label subsets hold each image class by its share

    @model_validator(mode="after")
    def _one_test(self) -> Split:
        if self.fold is not None and self.test == "official":
            raise ValueError("fold: the official test list has no folds; leave out `test: official`")
        return self

    @model_serializer(mode="wrap")
    def _with_the_draw(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Whoever names the test set also names how it is drawn: a stage's identity asks for `test` by name."""
        chosen: dict[str, Any] = handler(self)
        drawn = {"fold": self.fold, "stratify": self.stratify or None} if "test" in chosen else {}
        return chosen | {key: value for key, value in drawn.items() if value is not None}


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


Regions = Annotated[Felzenszwalb | SLIC, Field(discriminator="name")]


class Depth(Settings):
    """Depth by a model of transformers (MiDaS, DPT, Depth Anything, ...), to [0, 1] in each image, 0 near."""

    weights: str  # folder with config.json, preprocessor_config.json and model.safetensors, relative to --data if given
    output: Literal["disparity", "depth"] = "disparity"  # what it predicts: larger is nearer (MiDaS), or farther


class _Images(Settings):
    """What every data set shares."""

    split: Split = Split()
    limit: PositiveInt | None = None  # use a random subset of this many images (drawn with split.seed)
    cache_size: PositiveInt = 128  # px; images are decoded once to this square, whatever size the views have
    fit: Literal["squash", "pad", "crop"] = "squash"  # how a non-square image becomes square
    on_error: Literal["fail", "skip"] = "fail"  # a bad file stops the study, or is left out and recorded
    regions: Regions | None = None  # region maps, computed once; scenes have exact ones unless this is given
    depth: Depth | None = None  # depth maps, computed once; scenes have exact ones unless this is given


class Scenes(_Images):
    """Generated textured scenes with objects: image, class mask, region map and depth map, all exact."""

    dataset: Literal["scenes"]
    images: PositiveInt = 600
    classes: Annotated[int, Field(ge=2, le=6)] = 3  # background included
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


class Npz(_Images):
    """One .npz file: `images` (N, H, W, 3) or (N, H, W) uint8; `masks` (N, H, W), `labels` (N,) where there are any."""

    dataset: Literal["npz"]
    root: str  # the file, relative to --data if given
    classes: tuple[str, ...] = ()  # names of the mask values 0, 1, 2, ...; needed with masks
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None  # mask value left out of losses and metrics


class ImageFolder(_Images):
    """Any folder of images; sub-folders, where there are any, are taken as classes. No masks: for pretraining."""

    dataset: Literal["image-folder"]
    root: str


class ImageMaskFolder(_Images):
    """Two folders with equal file stems: images, and masks whose pixel values are class indices."""

    dataset: Literal["image-mask-folder"]
    root: str
    images: str = "images"
    masks: str = "masks"
    classes: tuple[str, ...]  # names of the mask values 0, 1, 2, ...
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None  # mask value left out of losses and metrics


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
    | ImageFolder
    | ImageMaskFolder,
    Field(discriminator="dataset"),
]


# --------------------------------------------------------------------------------------------------------- model


def _default_name(name: str) -> BeforeValidator:
    """`optimizer: {lr: 0.01}` means the default optimizer with another rate."""
    return BeforeValidator(lambda value: {"name": name, **value} if isinstance(value, dict) else value)


class UNet(Settings):
    """P2's U-Net: four levels, transposed convolutions. Convolutions per level and the norm are our reading."""

    name: Literal["unet"] = "unet"
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=6)] = (32, 64, 128, 256)
    skip_connections: bool = True
    convolutions: Annotated[int, Field(ge=1, le=3)] = 2  # 3x3 convolutions per level
    norm: Literal["batch", "none"] = "batch"

    @property
    def stride(self) -> int:
        """How many times smaller than the image the coarsest features are."""
        return 1 << (len(self.widths) - 1)


class ConRecUNet(Settings):
    """ConRec's U-Net (P3): nearest up-sampling, and skips through 1x1 convolutions with batch norm and ReLU."""

    name: Literal["conrec-unet"]
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=6)] = (64, 128, 256, 512)
    skip_connections: bool = True

    @property
    def stride(self) -> int:
        return 1 << (len(self.widths) - 1)


class ResNetUNet(Settings):
    """A U-Net over a torchvision ResNet (P3, P4: 18; P5: 34). No paper describes the decoder: it has the widths and
    blocks of segmentation_models.pytorch's U-Net (nearest up-sampling, two 3x3 convolutions with batch norm)."""

    name: Literal["resnet-unet"]
    depth: Literal[18, 34, 50] = 34
    stem: Literal["imagenet", "cifar"] = "imagenet"  # 7x7 with stride 2 and max pooling, or 3x3 and neither
    skip_connections: bool = True
    decoder_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=5, max_length=5)] = (256, 128, 64, 32, 16)

    @property
    def stride(self) -> int:
        return 32 if self.stem == "imagenet" else 8


class ResNetHead(Settings):
    """P1's model: a ResNet, and five 3x3 convolutions with bilinear up-sampling between each pair; no skips.

    Widths (256, 128, 64, 32), ReLU, and a fourth up-sampling to the full size follow the authors' code; its ReLU on the
    logits does not.
    """

    name: Literal["resnet-head"]
    depth: Literal[18, 34, 50] = 34  # P1; its outlook: 50
    skip_connections: Literal[False] = False

    @property
    def stride(self) -> int:
        return 32


Model = Annotated[
    Annotated[UNet | ConRecUNet | ResNetUNet | ResNetHead, Field(discriminator="name")], _default_name("unet")
]


# ---------------------------------------------------------------------------------------- optimisation, schedules


class SGD(Settings):
    name: Literal["sgd"]
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    nesterov: bool = False


class LARS(Settings):
    """SGD with a rate of its own for each weight matrix; biases and norms are left out of it and of weight decay."""

    name: Literal["lars"]
    lr: PositiveFloat = 0.3  # for 256 images per step: SimCLR scales by B / 256, or takes 0.075 sqrt(B)
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6  # SimCLR; BYOL 1.5e-6
    trust_coefficient: PositiveFloat = 0.001


class Adam(Settings):
    name: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3  # P2
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class AdamW(Settings):
    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


Optimizer = Annotated[Annotated[SGD | LARS | Adam | AdamW, Field(discriminator="name")], _default_name("adam")]


class Constant(Settings):
    name: Literal["constant"] = "constant"
    warmup_epochs: NonNegativeInt = 0


class Step(Settings):
    """Multiplies the rate by `gamma` every `every` epochs (P1: 10 and 0.5)."""

    name: Literal["step"]
    every: PositiveInt = 10  # epochs
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup_epochs: NonNegativeInt = 0


class Cosine(Settings):
    name: Literal["cosine"]
    final: Fraction = 0.0  # of the initial rate
    warmup_epochs: NonNegativeInt = 0


Schedule = Annotated[Annotated[Constant | Step | Cosine, Field(discriminator="name")], _default_name("constant")]


# --------------------------------------------------------------------------------------------- pretraining stages


class SimCLR(Settings):
    name: Literal["simclr"]
    temperature: PositiveFloat = 0.2  # P2
    hidden: PositiveInt = 512  # width of the projection head's hidden layer
    dim: PositiveInt = 128  # width of its output


class MoCo(Settings):
    """MoCo v2. Its colour jitter is views.color_jitter 0.5, its crop (0.2, 1)."""

    name: Literal["moco"]
    temperature: PositiveFloat = 0.2  # v2's recipes; 0.07 in v1 and as the code's default
    hidden: PositiveInt = 512  # the paper's: as wide as the encoder's output
    dim: PositiveInt = 128
    queue: PositiveInt = 65536  # keys; 4096 to 8192 do on small data
    momentum: Fraction = 0.999  # of the key network; 0.99 on small data
    momentum_end: Fraction | None = None  # half a cosine to this value; default: constant
    bn_splits: PositiveInt = 8  # parts of the batch with statistics of their own, in place of shuffling over 8 devices
    symmetric: bool = False  # each view is query and key in turn


class MoCoV3(Settings):
    """MoCo v3 for convolutional encoders (the authors' ResNet-50), with BYOL's views."""

    name: Literal["moco-v3"]
    temperature: PositiveFloat = 1.0
    hidden: PositiveInt = 4096
    dim: PositiveInt = 256
    momentum: Fraction = 0.99
    momentum_end: Fraction = 1.0
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


class BYOL(Settings):
    """BYOL. Its colour jitter is views.color_jitter 0.5 with color_jitter_saturation 0.5."""

    name: Literal["byol"]
    hidden: PositiveInt = 4096
    dim: PositiveInt = 256
    momentum: Fraction = 0.996  # of the target for 1000 epochs; 0.99 for 100 and 300, 0.97 for 40
    momentum_end: Fraction = 1.0
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


Crop = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class DINO(Settings):
    """DINO. `views` are the two large crops (the authors' for convolutional encoders: crop (0.14, 1), clip_norm 3)."""

    name: Literal["dino"]
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    prototypes: PositiveInt = 65536  # outputs; a few thousand do on small data
    head_norm: bool = True  # batch norm in the head: the authors' choice for ResNet-50, not for transformers
    student_temperature: PositiveFloat = 0.1
    teacher_temperature: PositiveFloat = 0.04
    teacher_temperature_start: PositiveFloat = 0.04  # of the warm-up
    teacher_warmup_epochs: NonNegativeInt = 0
    center_momentum: Fraction = 0.9
    momentum: Fraction = 0.996  # of the teacher
    momentum_end: Fraction = 1.0
    freeze_last_epochs: NonNegativeInt = 1  # epochs in which the last layer does not move
    export: Literal["teacher", "student"] = "teacher"  # whose encoder later stages start from
    local_views: NonNegativeInt = 8  # P4: 6
    local_size: PositiveInt = 32  # px, half of the large views' default (P4: 64 of 128; the paper: 96 of 224)
    local_crop: Crop = (0.05, 0.14)  # area share, for convolutional encoders; (0.05, 0.4) for transformers
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each large view; none: views.blur in all
    local_blur: Fraction | None = 0.5  # none: views.blur
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each large view


class SwAV(Settings):
    """SwAV. `views` are the two large crops (the authors': crop (0.14, 1), gray 0.2, blur 0.5)."""

    name: Literal["swav"]
    hidden: PositiveInt = 2048
    dim: PositiveInt = 128
    prototypes: Annotated[int, Field(ge=2)] = 3000
    temperature: PositiveFloat = 0.1
    epsilon: PositiveFloat = 0.05  # smoothness of the assignments
    iterations: PositiveInt = 3  # of Sinkhorn-Knopp
    queue: NonNegativeInt = 3840  # projections of each large view; 0: none
    queue_from_epoch: NonNegativeInt = 15
    freeze_prototypes_epochs: NonNegativeInt = 1  # epochs in which the prototypes do not move
    local_views: NonNegativeInt = 6
    local_size: PositiveInt = 32  # px, half of the large views' default (the paper: 96 of 224)
    local_crop: Crop = (0.05, 0.14)  # area share


class MAE(Settings):
    """Masked autoencoder on a U-Net (P2): part of the pixels is black, the whole original is to be restored."""

    name: Literal["mae"]
    masking: Literal["patches", "pixels", "none"] = "patches"  # P2 compares the three
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # share of patches or pixels that are blacked (P2)
    patch: PositiveInt = 20  # px, side of a patch (P2)
    loss_on: Literal["all", "masked"] = "all"  # P2: all pixels; He et al. 2022: the masked ones only

    @model_validator(mode="after")
    def _something_masked(self) -> MAE:
        if self.masking == "none" and self.loss_on == "masked":
            raise ValueError("loss_on: masked needs something masked; set masking to patches or pixels")
        return self


DecodingTask = Literal["reconstruction", "original-colors", "mask-location", "black-masks"]


class _Decoding(Settings):
    """Restoring corrupted views: which of P3's four tasks, and what they share.

    The vanilla form is `tasks: [reconstruction]`, the default. P3 has no public code for the four-task form: the
    weights (equal by default, normalised to sum to 1) and what `branch` means are this project's choice.
    """

    tasks: Annotated[tuple[DecodingTask, ...], Field(min_length=1)] = ("reconstruction",)
    task_weights: dict[DecodingTask, PositiveFloat] = {}  # relative; a task that is not named has 1
    branch: Literal["block", "output"] = "block"  # what a task has of its own: the last decoder block too, or 1x1 only

    @model_validator(mode="after")
    def _tasks_once(self) -> _Decoding:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: each at most once, received {', '.join(self.tasks)}")
        if unused := set(self.task_weights) - set(self.tasks):
            raise ValueError(f"task_weights: {', '.join(sorted(unused))} is not among the tasks")
        return self


class Reconstruction(_Decoding):
    """Restoring corrupted views alone (P3): ConRec without its contrastive part."""

    name: Literal["reconstruction"]


class ConRec(_Decoding):
    """Contrastive learning and restoring corrupted views together (Dippel et al. 2021; P3)."""

    name: Literal["conrec"]
    temperature: PositiveFloat = 0.5  # Dippel et al.
    reconstruction_weight: PositiveFloat = 100.0  # Dippel et al.
    pooling: Literal["attention", "average"] = "attention"
    hidden: PositiveInt = 512  # width of the projection head's two hidden layers
    dim: PositiveInt = 128  # width of its output


class Segmentation(Settings):
    """Supervised pretraining with masks, usually of another data set (P3 Tables 4 and 5)."""

    name: Literal["segmentation"]
    loss: Literal["dice", "cross-entropy", "dice+cross-entropy"] = "dice"  # P3


class Classification(Settings):
    """Supervised pretraining of the encoder with image labels, by cross entropy (P3 Tables 4 and 5)."""

    name: Literal["classification"]


class SAMCLR(Settings):
    """SimCLR whose views lie within one random region (P4); it sets views.within to region."""

    name: Literal["samclr"]
    temperature: PositiveFloat = 0.07  # P4, from MoCo
    hidden: PositiveInt = 512
    dim: PositiveInt = 128


class _PixelConsistency(Settings):
    hidden: PositiveInt = 4096  # PixPro, as all below where nothing else is said
    dim: PositiveInt = 256
    threshold: PositiveFloat = 0.7  # largest distance of a positive pair, in diagonals of a bin of the feature map
    gamma: PositiveFloat = 2.0  # power of the similarity in pixel propagation
    alpha: Annotated[float, Field(ge=0)] = 1.0  # weight of BYOL's loss; P5 does not state it; 0 is PixPro itself
    momentum: Fraction = 0.99
    momentum_end: Fraction = 1.0
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


class PixelCL(_PixelConsistency):
    """PixPro with BYOL's loss beside it (P5)."""

    name: Literal["pixelcl"]


class PixelCLDepth(_PixelConsistency):
    """PixelCL++: positive pairs are also equally far away (P5)."""

    name: Literal["pixelcl++"]
    depth_threshold: Annotated[float, Field(ge=0)] = 0.2  # largest difference of depths in [0, 1] (P5)


def _weights_source(value: object) -> object:
    """A library's name as it is; a file must exist, and its path is made absolute, since workers run elsewhere."""
    if not isinstance(value, str) or value.startswith(("torchvision:", "timm:")):
        return value
    path = Path(value).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"no file {value}; give a .safetensors or torch file, torchvision:NAME or timm:NAME")
    return str(path)


class Weights(Settings):
    """Ready-made weights as the start of a chain (P5: ImageNet). Nothing is trained: neither epochs nor steps."""

    name: Literal["weights"]
    source: Annotated[str, BeforeValidator(_weights_source)]  # a file, torchvision:resnet34 or timm:NAME
    inputs: Literal["imagenet", "unit"] = "imagenet"  # trained on pixels normalised by ImageNet's statistics, or [0, 1]


class NoPretraining(Settings):
    name: Literal["none"]


Method = Annotated[
    SimCLR
    | MoCo
    | MoCoV3
    | BYOL
    | DINO
    | SwAV
    | MAE
    | Reconstruction
    | ConRec
    | Segmentation
    | Classification
    | SAMCLR
    | PixelCL
    | PixelCLDepth
    | Weights
    | NoPretraining,
    Field(discriminator="name"),
]
DECODING = ("mae", "reconstruction", "conrec", "segmentation")  # the methods that train a decoder too

ExtraTransform = Literal["elastic", "posterize", "solarize"]


class Views(Settings):
    """Random views for joint-embedding methods. Probabilities and strengths are per sample."""

    size: PositiveInt = 64  # px (P2)
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)  # area share
    aspect: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    color_jitter: Annotated[float, Field(ge=0, le=1.25)] = 1.0  # strength s of 0.8/0.8/0.8/0.2 (P2: 1.0)
    color_jitter_saturation: Annotated[float, Field(ge=0, le=1)] = 1.0  # of that strength (BYOL, DINO: 0.5)
    color_jitter_probability: Fraction = 0.8
    gray: Fraction = 0.0  # P2 names crops, flips and jitter only; SimCLR's own value is 0.2
    blur: Fraction = 0.0  # SimCLR's own value is 0.5 for ImageNet sizes
    solarize: Fraction = 0.0  # apart from `extra`; BYOL's own value is 0.2, in one of its views
    extra: tuple[ExtraTransform, ...] = ()  # P1's additions, each applied with probability `extra_probability`
    extra_probability: Fraction = 0.5
    within: Literal["image", "region"] = "image"  # where crops lie: anywhere, or all in one random region (P4)
    region_min_area: NonNegativeInt = 1000  # px of the source image; smaller regions are never chosen (P4)
    region_source_area: PositiveInt | None = None  # px of a source image; default: the cached image is taken for it
    region_enlarge: Annotated[float, Field(ge=1)] = 1.3  # of a region's height and width (P4)

    @model_validator(mode="after")
    def _ordered(self) -> Views:
        for name, (low, high) in {"crop": self.crop, "aspect": self.aspect}.items():
            if low > high:
                raise ValueError(f"{name}: the lower bound {low} is above the upper bound {high}")
        return self


class _Length(Settings):
    """Training length: `epochs`, or `steps` in place of it."""

    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_length(self) -> _Length:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class Pretrain(_Length):
    """One pretraining stage. P2's values are the defaults."""

    data: str
    method: Method
    views: Views = Views()
    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    batch_size: Annotated[int, Field(ge=2)] = 384  # images per step (P2)
    clip_norm: PositiveFloat | None = None  # largest norm of all gradients together
    sees: Literal["train", "train+val", "all"] = "train"  # which images pretraining may look at
    precision: Literal["float32", "bfloat16"] = "float32"
    online_knn_every: NonNegativeInt = 0  # epochs between kNN scores while training (P4's Figure 2); 0: never

    @model_validator(mode="after")
    def _one_length(self) -> Pretrain:
        if not isinstance(self.method, Weights) and (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _validation_unseen(self) -> Pretrain:
        if self.online_knn_every and self.sees != "train":
            raise ValueError(f"online_knn_every scores validation images, which sees: {self.sees} trains on")
        return self

    @model_validator(mode="after")
    def _followed(self) -> Pretrain:
        """Masks and original colours are cut by a view's box, which does not follow an elastic displacement."""
        colors = isinstance(self.method, ConRec | Reconstruction) and "original-colors" in self.method.tasks
        if "elastic" in self.views.extra and (colors or self.method.name == "segmentation"):
            raise ValueError("views.extra: elastic moves pixels that this method's targets cannot follow; leave it out")
        return self


class Augment(Settings):
    """Joint image and mask transforms of fine-tuning. P2 uses none."""

    flip: Fraction = 0.0
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (1.0, 1.0)  # area share
    aspect: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)


class Finetune(_Length):
    """Supervised segmentation, from pretrained weights or from scratch. P2's values are the defaults."""

    data: str
    size: PositiveInt = 128  # px (P2)
    labels: Labels = 1.0  # share ('10%') or count (74) of the training images whose masks are used
    transfer: Literal["none", "encoder", "encoder+decoder"] = "encoder"
    freeze: Literal["none", "encoder"] = "none"
    unfreeze_epoch: PositiveInt | None = None  # the first epoch, counted from 0, that trains a frozen encoder too
    loss: Literal["dice", "cross-entropy", "dice+cross-entropy"] = "dice"
    augment: Augment = Augment()
    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    batch_size: PositiveInt = 256  # images per step (P2)
    checkpoint: Literal["last", "best"] = "last"  # which weights are scored: the last, or the best on validation
    validate_every: NonNegativeInt = 0  # epochs between validations for the learning curve; 0: only at the end
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _frozen_first(self) -> Finetune:
        if self.unfreeze_epoch is not None and self.freeze == "none":
            raise ValueError("unfreeze_epoch needs freeze: encoder")
        return self


class KNN(Settings):
    """Weighted k-nearest-neighbour accuracy of the frozen encoder (k 200, T 0.1: Wu et al. 2018).

    DINO's variant is k 10, 20, 100 or 200 with temperature 0.07.
    """

    kind: Literal["knn"]
    data: str
    size: PositiveInt = 64  # px
    k: PositiveInt = 200
    temperature: PositiveFloat = 0.1


class LinearProbe(Settings):
    """A linear classifier on the frozen encoder's features; defaults of P4's library (Lightly)."""

    kind: Literal["linear"]
    data: str
    size: PositiveInt = 64  # px
    epochs: PositiveInt = 90
    lr: PositiveFloat = 0.1  # SGD, cosine to 0
    batch_size: PositiveInt = 256
    batch_norm: bool = False  # normalise the features first (MAE's habit)


Probe = Annotated[KNN | LinearProbe, Field(discriminator="kind")]


class Configuration(Settings):
    """One fully specified setting of everything, without a seed."""

    data: dict[str, Data]
    model: Model = UNet()
    pretrain: tuple[Pretrain, ...] = ()
    finetune: Finetune | None = None
    probe: dict[str, Probe] = {}


# --------------------------------------------------------------------------------------------------- study header


class PhaseSeeds(Settings):
    """Nested seeds: `finetune` fine-tunings for each of `pretrain` pretrainings."""

    pretrain: PositiveInt
    finetune: PositiveInt


def _phase_seeds(value: object) -> object:
    """`3` means three replicates, each with a pretraining of its own."""
    return {"pretrain": value, "finetune": 1} if isinstance(value, int) else value


PerPhase = Annotated[PhaseSeeds, BeforeValidator(_phase_seeds)]


class Seeds(Settings):
    """How many replicates; search and report seeds never overlap. `hold` fixes a stream at one seed."""

    search: PerPhase = PhaseSeeds(pretrain=1, finetune=1)
    report: PerPhase = PhaseSeeds(pretrain=3, finetune=1)
    hold: dict[Literal["init", "order", "augmentation", "labels"], NonNegativeInt] = {}


class TunePretrain(Settings):
    """How a pretraining's own ranges are tuned: by validation scores of cells, its pretext loss, or a probe."""

    trials: PositiveInt | None = None  # default: tune.trials
    target: str = "cells"  # cells | pretext | probe.NAME
    cells: dict[str, str | bool | int | float] = {}  # which cells score it; default: all that share it


class Tune(Settings):
    sampler: Literal["tpe", "random"] = "tpe"
    trials: PositiveInt = 20
    batch: PositiveInt = 4  # asked together and told together, so that a search does not depend on timing
    startup: NonNegativeInt = 8  # first trials drawn at random
    target: str = "val/jaccard"
    direction: Literal["maximize", "minimize"] | None = None  # default: minimize a loss, maximize all else
    seed: NonNegativeInt = 0
    pretrain: TunePretrain = TunePretrain()


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Report(Settings):
    rows: Names | None = None  # factors; default: all but the last
    columns: Names | None = None  # factors; default: the last
    metrics: Names = ("test/jaccard",)
    baseline: dict[str, str | bool | int | float] = {}
    published: str | None = None  # key of a published table, shown beside ours
    percent: bool = False


class Published(Settings):
    """A paper's table, to stand beside ours: `[row levels..., column levels..., mean]` or `[..., [mean, std]]`."""

    values: tuple[tuple[str | float | bool | tuple[float, float | None], ...], ...]
    metric: str = "test/jaccard"
    percent: bool = False
    note: str = ""


class StageResources(Settings):
    cpus: PositiveInt = 1  # also the number of threads: it changes digits, so it is part of the fingerprint
    gpus: Annotated[float, Field(ge=0)] | None = None  # default: one where there are GPUs, none where there are not


class Resources(Settings):
    pretrain: StageResources = StageResources()
    finetune: StageResources = StageResources()
    probe: StageResources = StageResources()


class Header(Settings):
    """What is about the study and not about a stage."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    question: str = ""
    seeds: Seeds = Seeds()
    tune: Tune = Tune()
    report: Report = Report()
    resources: Resources = Resources()
    published: dict[str, Published] = {}  # by key, for report.published
    retries: NonNegativeInt = 2  # how often a crashed stage is tried again
