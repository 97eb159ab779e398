"""Pretraining methods: settings, with the values of the papers that introduced or used them as defaults, and facts.

A method's facts are declared here and nowhere else; whoever asks about a method reads them (`method_facts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pretune.search_spaces.packaged_weights import PACKAGED_WEIGHTS
from pretune.search_spaces.schema.base import Fraction, Settings
from pretune.search_spaces.schema.facts import AGREEMENT, MOMENTUM, MethodFacts

__all__ = [
    "BYOL",
    "DINO",
    "MAE",
    "SAMCLR",
    "SINKHORN_EXACT_FROM",
    "BarlowTwins",
    "Classification",
    "ConRec",
    "Crop",
    "DecodingTask",
    "Genesis",
    "Method",
    "MoCo",
    "MoCoV3",
    "NoPretraining",
    "PixelCL",
    "PixelCLDepth",
    "Reconstruction",
    "Segmentation",
    "SimCLR",
    "SwAV",
    "VICReg",
    "Weights",
]


class SimCLR(Settings):
    """SimCLR (Chen et al. 2020): two views of an image against all other views of the batch."""

    name: Literal["simclr"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "loss_over_uniform"), compares_batch=True, unit_length="dim"
    )
    temperature: PositiveFloat = 0.2  # P2
    hidden: PositiveInt = 512  # width of the projection head's hidden layer
    dim: PositiveInt = 128  # width of its output
    head_norm: bool | None = None  # batch norm in the head; default: yes, as SimCLR's code (P1's text has none)
    projection_levels: PositiveInt = 1  # encoder levels that the head sees, pooled: 1, the bottleneck (P2's outlook)

    def neutral(self) -> Mapping[str, Any]:
        return {"head_norm": True}


class MoCo(Settings):
    """MoCo v2. Its colour jitter is views.color_jitter 0.5, its crop (0.2, 1)."""

    name: Literal["moco"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "loss_over_uniform"), ramp=MOMENTUM, unit_length="dim"
    )
    temperature: PositiveFloat = 0.2  # v2's recipes; 0.07 in v1 and as the code's default
    hidden: PositiveInt = 512  # the paper's: as wide as the encoder's output
    dim: PositiveInt = 128
    queue: PositiveInt = 65536  # keys; 4096 to 8192 do on small data
    momentum: Fraction = 0.999  # of the key network; 0.99 on small data
    momentum_end: Fraction | None = None  # half a cosine to this value; default: constant
    bn_splits: PositiveInt = 8  # parts of the batch with statistics of their own, in place of shuffling over 8 devices
    symmetric: bool = False  # each view is query and key in turn
    projection_levels: PositiveInt = 1  # as in SimCLR

    def neutral(self) -> Mapping[str, Any]:
        return {"momentum_end": self.momentum}


class MoCoV3(Settings):
    """MoCo v3 for convolutional encoders (the authors' ResNet-50), with BYOL's views."""

    name: Literal["moco-v3"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "loss_over_uniform"), compares_batch=True, ramp=MOMENTUM, unit_length="dim"
    )
    projection_levels: PositiveInt = 1  # as in SimCLR
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
    facts: ClassVar[MethodFacts] = MethodFacts(metrics=AGREEMENT, ramp=MOMENTUM, unit_length="dim")
    projection_levels: PositiveInt = 1  # as in SimCLR
    hidden: PositiveInt = 4096
    dim: PositiveInt = 256
    momentum: Fraction = 0.996  # of the target for 1000 epochs; 0.99 for 100 and 300, 0.97 for 40
    momentum_end: Fraction = 1.0
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


Crop = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class DINO(Settings):
    """DINO. `views` are the two large crops. The authors' for convolutional encoders: crop (0.14, 1), color_jitter 0.5
    with color_jitter_saturation 0.5, and no clipping; for transformers clip_norm 3 with clip: parameter."""

    name: Literal["dino"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "loss_over_uniform", "teacher_entropy_over_uniform", "teacher_mean_entropy_over_uniform"),
        freezes_last_layer=True,
        ramp=MOMENTUM,
        unit_length="bottleneck",
    )
    hidden: PositiveInt = 2048
    bottleneck: PositiveInt = 256
    prototypes: Annotated[int, Field(ge=2)] = 65536  # outputs; a few thousand do on small data
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


SINKHORN_EXACT_FROM = 1 / 40  # epsilon; below it exp of two cosines' difference over it may leave float32


class SwAV(Settings):
    """SwAV. `views` are the two large crops (the authors': crop (0.14, 1), gray 0.2, blur 0.5)."""

    name: Literal["swav"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "loss_over_uniform", "prototypes_used", "prototypes_chosen"),
        compares_batch=True,
        freezes_last_layer=True,
        unit_length="dim",
    )
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


class VICReg(Settings):
    """VICReg (Bardes et al. 2022): views agree, every output varies, no two outputs go together. BYOL's views."""

    name: Literal["vicreg"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=AGREEMENT,
        terms=(
            ("invariance_loss", "mean squared difference of the outputs for two views"),
            ("variance_loss", "how far the outputs' standard deviations are below 1"),
            ("covariance_loss", "squared covariances of different outputs"),
        ),
        compares_batch=True,
    )
    invariance: PositiveFloat = 25.0  # weights of the three terms
    variance: PositiveFloat = 25.0
    covariance: PositiveFloat = 1.0
    hidden: PositiveInt = 8192  # width of the expander's two hidden layers
    dim: PositiveInt = 8192  # width of its output
    projection_levels: PositiveInt = 1  # as in SimCLR
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


class BarlowTwins(Settings):
    """Barlow Twins (Zbontar et al. 2021): the cross-correlation of two views' outputs is the identity. BYOL's views."""

    name: Literal["barlow-twins"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=AGREEMENT,
        terms=(
            ("on_diagonal_loss", "squared distances from 1 of each output's correlation over two views"),
            ("off_diagonal_loss", "squared correlations of different outputs"),
        ),
        compares_batch=True,
    )
    redundancy: PositiveFloat = 5e-3  # weight of what is off the diagonal, the paper's lambda
    hidden: PositiveInt = 8192  # width of the projector's two hidden layers
    dim: PositiveInt = 8192  # width of its output
    projection_levels: PositiveInt = 1  # as in SimCLR
    blur: tuple[Fraction, Fraction] | None = (1.0, 0.1)  # probability in each view; none: views.blur in both
    solarize: tuple[Fraction, Fraction] = (0.0, 0.2)  # probability in each view


class MAE(Settings):
    """Masked autoencoder on a U-Net (P2): part of the pixels is black, the whole original is to be restored."""

    name: Literal["mae"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=("error", "masked_error", "loss_over_uniform"), decoder=True, corrupts=True
    )
    masking: Literal["patches", "pixels", "none"] = "patches"  # P2 compares the three
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # share of patches or pixels that are blacked (P2)
    patch: PositiveInt = 20  # px, side of a patch (P2)
    loss_on: Literal["all", "masked"] = "all"  # P2: all pixels; He et al. 2022: the masked ones only

    @model_validator(mode="after")
    def _something_masked(self) -> MAE:
        if self.masking == "none" and self.loss_on == "masked":
            raise ValueError("loss_on: masked needs something masked; set masking to patches or pixels")
        return self


class Genesis(Settings):
    """Models Genesis (P3's Table 3): restoring volumes, or images, that were shuffled, recoloured and painted over."""

    name: Literal["genesis"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=("error", "loss_over_uniform"), decoder=True, corrupts=True, volumes=True
    )
    flip: Fraction = 0.4  # up to three times, each along any axis; corrupted and original alike
    shuffle: Fraction = 0.5
    shuffle_blocks: PositiveInt = 10000  # of 64 x 64 x 32 voxels
    intensity: Fraction = 0.9
    paint: Fraction = 0.9
    in_paint: Fraction = 0.2  # of those painted; the others are out-painted


DecodingTask = Literal["reconstruction", "original-colors", "mask-location", "black-masks"]


class _Decoding(Settings):
    """Restoring corrupted views: which of P3's four tasks, and what they share.

    The vanilla form is `tasks: [reconstruction]`, the default. P3 has no public code for the four-task form: the
    weights (equal by default, normalised to sum to 1) and what `branch` means are this project's choice.
    """

    tasks: Annotated[tuple[DecodingTask, ...], Field(min_length=1)] = ("reconstruction",)
    task_weights: dict[DecodingTask, PositiveFloat] = {}  # relative; a task that is not named has 1
    branch: Literal["output", "block"] = "output"  # what a task has of its own: the 1x1 output, or the last of the
    # three up-sampling blocks too; P3's four blocks are these and the output, of which "the first three are shared"

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
    facts: ClassVar[MethodFacts] = MethodFacts(metrics=("loss_over_uniform",), decoder=True, corrupts=True)


class ConRec(_Decoding):
    """Contrastive learning and restoring corrupted views together (Dippel et al. 2021; P3)."""

    name: Literal["conrec"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        metrics=(*AGREEMENT, "contrastive_loss", "loss_over_uniform"),
        decoder=True,
        corrupts=True,
        compares_batch=True,
        unit_length="dim",
    )
    temperature: PositiveFloat = 0.5  # Dippel et al.
    reconstruction_weight: PositiveFloat = 100.0  # Dippel et al.
    pooling: Literal["attention", "average"] = "attention"
    hidden: PositiveInt = 512  # width of the projection head's two hidden layers
    dim: PositiveInt = 128  # width of its output


class Segmentation(Settings):
    """Supervised pretraining with masks, usually of another data set (P3 Tables 4 and 5)."""

    name: Literal["segmentation"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        requires=("masks",),
        metrics=("accuracy",),
        decoder=True,
        supervised=True,
        targets="pixels",
    )
    loss: Literal["dice", "cross-entropy", "dice+cross-entropy"] = "dice"  # P3


class Classification(Settings):
    """Supervised pretraining of the encoder with image labels, by cross entropy (P3 Tables 4 and 5)."""

    name: Literal["classification"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        requires=("labels",),
        metrics=("accuracy", "loss_over_uniform"),
        supervised=True,
        classifier=True,
    )


class SAMCLR(Settings):
    """SimCLR whose views lie within one random region (P4); it sets views.within to region."""

    name: Literal["samclr"]
    facts: ClassVar[MethodFacts] = MethodFacts(
        requires=("regions",), metrics=(*AGREEMENT, "loss_over_uniform"), compares_batch=True, unit_length="dim"
    )
    temperature: PositiveFloat = 0.07  # P4, from MoCo
    hidden: PositiveInt = 512
    dim: PositiveInt = 128
    projection_levels: PositiveInt = 1  # as in SimCLR


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


_PIXEL_FACTS = MethodFacts(
    metrics=(*AGREEMENT, "pixel_loss", "positive_pairs", "images_without_pairs", "instance_loss"),
    targets="places",
    ramp=MOMENTUM,
    unit_length="dim",
)


class PixelCL(_PixelConsistency):
    """PixPro with BYOL's loss beside it (P5)."""

    name: Literal["pixelcl"]
    facts: ClassVar[MethodFacts] = _PIXEL_FACTS


class PixelCLDepth(_PixelConsistency):
    """PixelCL++: positive pairs are also equally far away (P5)."""

    name: Literal["pixelcl++"]
    facts: ClassVar[MethodFacts] = replace(_PIXEL_FACTS, requires=("depth",))
    depth_threshold: Annotated[float, Field(ge=0)] = 0.2  # largest difference of depths in [0, 1] (P5)


def _weights_source(value: object) -> object:
    """A library's name as it is; a file must exist, and its path is made absolute, since workers run elsewhere."""
    if not isinstance(value, str) or value.startswith(("torchvision:", "timm:")):
        return value
    if value.startswith("package:"):
        if (name := value.removeprefix("package:")) not in PACKAGED_WEIGHTS:
            raise ValueError(f"no package is known for {name!r}; use package:{' or package:'.join(PACKAGED_WEIGHTS)}")
        return value
    path = Path(value).expanduser().absolute()
    if not path.is_file():
        kinds = "a .safetensors or torch file, torchvision:NAME, timm:NAME or package:NAME"
        raise ValueError(f"no file {value}; give {kinds}")
    return str(path)


class Weights(Settings):
    """Ready-made weights as the start of a chain (P5: ImageNet). Nothing is trained: neither epochs nor steps."""

    name: Literal["weights"]
    facts: ClassVar[MethodFacts] = MethodFacts(trains=False)
    source: Annotated[str, BeforeValidator(_weights_source)]  # file, torchvision:resnet34, timm:NAME, package:NAME
    inputs: Literal["imagenet", "unit"] = "imagenet"  # trained on pixels normalised by ImageNet's statistics, or [0, 1]


class NoPretraining(Settings):
    """No pretraining: the stage is skipped."""

    name: Literal["none"]
    facts: ClassVar[MethodFacts] = MethodFacts(trains=False, volumes=True)


Method = Annotated[
    SimCLR
    | MoCo
    | MoCoV3
    | BYOL
    | DINO
    | SwAV
    | VICReg
    | BarlowTwins
    | MAE
    | Genesis
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
