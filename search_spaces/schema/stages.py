"""The stages: pretraining, fine-tuning, probes; and the configuration that holds one of everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pretune.search_spaces.schema.base import Fraction, Labels, Settings, Share
from pretune.search_spaces.schema.data import Data
from pretune.search_spaces.schema.method_facts import cut_targets
from pretune.search_spaces.schema.methods import Method, Weights
from pretune.search_spaces.schema.model import Model, UNet
from pretune.search_spaces.schema.optim import Adam, Constant, Optimizer, Schedule
from pretune.search_spaces.schema.scores import ExtraSettings

ExtraTransform = Literal["elastic", "posterize", "solarize", "rotation"]
# What a transform moves within a view, which its box does not tell: single pixels a little, or whole places.
MOVES: dict[ExtraTransform, Literal["pixels", "places"]] = {"elastic": "pixels", "rotation": "places"}


class Views(Settings):
    """Random views for joint-embedding methods. Probabilities and strengths are per sample."""

    size: PositiveInt = 64  # px (P2)
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)  # area share
    aspect: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    color_jitter: Annotated[float, Field(ge=0, le=1.25)] = 1.0  # strength s of 0.8/0.8/0.8/0.2 (P2: 1.0)
    color_jitter_saturation: Annotated[float, Field(ge=0, le=1)] = 1.0  # of that strength (BYOL, DINO: 0.5)
    color_jitter_hue: Annotated[float, Field(ge=0, le=0.5)] | None = (
        None  # largest turn of the circle; default: 0.2 of the strength
    )
    color_jitter_probability: Fraction = 0.8
    gray: Fraction = 0.0  # P2 names crops, flips and jitter only; SimCLR's own value is 0.2
    blur: Fraction = 0.0  # SimCLR's own value is 0.5 for ImageNet sizes
    solarize: Fraction = 0.0  # apart from `extra`; BYOL's own value is 0.2, in one of its views
    extra: tuple[ExtraTransform, ...] = ()  # P1's additions, each applied with probability `extra_probability`
    extra_probability: Fraction = 0.5
    posterize_bits: Annotated[int, Field(ge=1, le=8)] | None = None  # of `extra`; default: drawn from 3 to 5
    solarize_threshold: Fraction | None = None  # of `solarize` and of `extra`; default: 0.5
    within: Literal["image", "region"] = "image"  # where crops lie: anywhere, or all in one random region (P4)
    region_min_area: NonNegativeInt = 1000  # px of the source image; smaller regions are never chosen (P4)
    region_source_area: PositiveInt | None = None  # px of a source image; default: the cached image is taken for it
    region_enlarge: Annotated[float, Field(ge=1)] = 1.3  # of a region's height and width (P4)

    def neutral(self) -> Mapping[str, Any]:
        return {"color_jitter_hue": 0.2 * self.color_jitter, "solarize_threshold": 0.5}

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
    clip_norm: PositiveFloat | None = None  # largest norm of the gradients: of all together, or see clip
    clip: Literal["parameter"] | None = None  # each parameter's gradient by itself (DINO's code); default: all together
    sees: Literal["train", "train+val", "all"] = "train"  # which images pretraining may look at
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"  # tf32: products of 10 bits on GPUs that have them
    compile: bool = False  # encoder and decoder by torch.compile: other last digits, and a minute to begin with
    online_knn_every: NonNegativeInt = 0  # epochs between kNN scores while training (P4's Figure 2); 0: never
    stop_on_collapse: PositiveInt | None = None  # stop after this many epochs in a row that show a collapse
    stop_after: PositiveInt | None = (
        None  # train only the first so many of `epochs`: a state on the way (P4's Figure 2)
    )

    @model_validator(mode="after")
    def _one_length(self) -> Pretrain:
        if not isinstance(self.method, Weights) and (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self

    @model_validator(mode="after")
    def _clipped(self) -> Pretrain:
        if self.clip is not None and self.clip_norm is None:
            raise ValueError("clip says how to clip, and clip_norm, which says to what, is missing")
        return self

    @model_validator(mode="after")
    def _on_the_way(self) -> Pretrain:
        if self.stop_after is not None and (self.epochs is None or self.stop_after > self.epochs):
            length = "a length in epochs" if self.epochs is None else f"at most the {self.epochs} epochs there are"
            raise ValueError(f"stop_after: {self.stop_after} needs {length}")
        return self

    @model_validator(mode="after")
    def _validation_unseen(self) -> Pretrain:
        if self.online_knn_every and self.sees != "train":
            raise ValueError(f"online_knn_every scores validation images, which sees: {self.sees} trains on")
        return self

    @model_validator(mode="after")
    def _followed(self) -> Pretrain:
        """Masks, original colours and places are cut by a view's box, which follows no displacement and no rotation."""
        targets = cut_targets(self.method)
        moving = [name for name, moved in MOVES.items() if name in self.views.extra and targets in ("pixels", moved)]
        if moving:
            raise ValueError(
                f"views.extra: {moving[0]} moves pixels that this method's targets cannot follow; leave it out"
            )
        return self


WEIGHTED = ("cross-entropy", "dice+cross-entropy", "focal")  # losses that take weights of classes


class Augment(Settings):
    """Joint image and mask transforms of fine-tuning, in this order. P2 uses none. New ones default to None: then they
    are in no fingerprint."""

    flip: Fraction = 0.0
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (1.0, 1.0)  # area share
    aspect: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    flip_vertical: Fraction | None = None  # chance of mirroring top to bottom
    rotation: Annotated[float, Field(gt=0, le=180)] | None = None  # degrees; largest angle to either side
    scale: tuple[PositiveFloat, PositiveFloat] | None = None  # range of magnification about the centre, log-uniform
    color_jitter: Annotated[float, Field(gt=0, le=1.25)] | None = None  # strength s of 0.8/0.8/0.8/0.2, as in views
    blur: Fraction | None = None  # chance of a Gaussian blur of 0.1 to 2 px
    elastic: Annotated[float, Field(gt=0, le=0.1)] | None = (
        None  # standard deviation of a smooth random displacement, as a share of the side (U-Net: 0.02)
    )
    antialias: Literal[True] | None = None  # resize crops as test images are; default: crops are not antialiased

    @model_validator(mode="after")
    def _resized(self) -> Augment:
        if self.antialias and (self.crop, self.aspect) == ((1.0, 1.0), (1.0, 1.0)):
            raise ValueError("antialias is of crops, and there are none: whole images always are; leave it out")
        return self

    def neutral(self) -> Mapping[str, Any]:
        return {"flip_vertical": 0.0, "scale": (1.0, 1.0), "blur": 0.0}

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name, (low, high) in {"crop": self.crop, "aspect": self.aspect, "scale": self.scale or (1, 1)}.items():
            if low > high:
                raise ValueError(f"{name}: the lower bound {low} is above the upper bound {high}")
        return self


class Evaluate(Settings):
    """Scoring by sliding windows of `size` px over whole images at the resolution of the cache (nnU-Net, MONAI).

    A pixel's logits are the weighted mean of those of the windows over it.
    """

    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5  # of a window, that neighbours share at least (nnU-Net)
    weights: Literal["gaussian", "uniform"] = "gaussian"  # of the pixels of a window


class Crops(Settings):
    """Training on random crops of `size` px at the resolution of the cache; tiles of an image are put together."""

    foreground: Fraction = 0.0  # share of crops around a pixel of a class other than the first (nnU-Net: 0.33)


class Finetune(_Length, ExtraSettings):
    """Supervised segmentation, from pretrained weights or from scratch. P2's values are the defaults."""

    data: str
    size: PositiveInt = 128  # px (P2)
    test_sizes: tuple[PositiveInt, ...] = ()  # px; further sizes at which the test set is scored, as test@SIZE/...
    labels: Labels = 1.0  # share ('10%') or count (74) of the training images whose masks are used
    transfer: Literal["none", "encoder", "encoder+decoder"] = "encoder"
    freeze: Literal["none", "encoder"] = "none"
    unfreeze_epoch: PositiveInt | None = None  # the first epoch, counted from 0, that trains a frozen encoder too
    unfreeze_every: PositiveInt | None = (
        None  # epochs between levels of the encoder, the coarsest first at unfreeze_epoch; default: all at once
    )
    encoder_lr_mult: PositiveFloat | None = None  # encoder's rate as a multiple of the decoder's; default: the same
    loss: Literal["dice", "foreground-dice", "cross-entropy", "dice+cross-entropy", "focal", "tversky"] = "dice"
    class_weights: Literal["balanced"] | dict[str, PositiveFloat] | None = (
        None  # of cross-entropy and focal: by the inverse of the classes' pixels, or numbers by class; default: 1
    )
    focal_gamma: Annotated[float, Field(ge=0)] | None = (
        None  # how little easy pixels count in the focal loss; default: 2
    )
    tversky_beta: Fraction | None = None  # price of a missed pixel, that of a false one being 1 - beta; default: 0.7
    augment: Augment = Augment()
    crops: Crops | None = None  # default: whole images, resized to `size`
    evaluate: Evaluate | None = None  # default: the same
    optimizer: Optimizer = Adam()
    schedule: Schedule = Constant()
    batch_size: PositiveInt = 256  # images per step (P2)
    score_loss: Literal[True] | None = None  # also score the loss: val/loss, test/loss
    checkpoint: Literal["last", "best"] = "last"  # which weights are scored: the last, or those of the best val/jaccard
    validate_every: NonNegativeInt = 0  # epochs between validations for the learning curve; 0: only at the end
    patience: PositiveInt | None = None  # stop after this many validations without a better val/jaccard
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"  # tf32: products of 10 bits on GPUs that have them
    compile: bool = False  # encoder and decoder by torch.compile: other last digits, and a minute to begin with

    def neutral(self) -> Mapping[str, Any]:
        return {"encoder_lr_mult": 1.0, "focal_gamma": 2.0, "tversky_beta": 0.7}

    @model_validator(mode="after")
    def _validated_meanwhile(self) -> Finetune:
        if self.patience is not None and self.checkpoint != "best" and not self.validate_every:
            raise ValueError("patience counts validations: set validate_every, or checkpoint: best")
        return self

    @model_validator(mode="after")
    def _frozen_first(self) -> Finetune:
        if self.unfreeze_epoch is not None and self.freeze == "none":
            raise ValueError("unfreeze_epoch needs freeze: encoder")
        if self.unfreeze_every is not None and self.unfreeze_epoch is None:
            raise ValueError("unfreeze_every needs unfreeze_epoch, the epoch of the coarsest level")
        return self

    @model_validator(mode="after")
    def _encoder_trained(self) -> Finetune:
        if self.encoder_lr_mult is not None and self.freeze == "encoder" and self.unfreeze_epoch is None:
            raise ValueError("encoder_lr_mult has no effect on a frozen encoder; leave it out, or set unfreeze_epoch")
        return self

    @model_validator(mode="after")
    def _numbers_of_the_loss(self) -> Finetune:
        """A number that the chosen loss does not have would change the fingerprint and nothing else."""
        owners = {"class_weights": WEIGHTED, "focal_gamma": ("focal",), "tversky_beta": ("tversky",)}
        for name, losses in owners.items():
            if getattr(self, name) is not None and self.loss not in losses:
                raise ValueError(f"{name} is of the loss {' or '.join(losses)}, not of {self.loss}; leave it out")
        return self

    @model_validator(mode="after")
    def _sizes_once(self) -> Finetune:
        if len({self.size, *self.test_sizes}) < 1 + len(self.test_sizes):
            raise ValueError(f"test_sizes: each once, and none is size ({self.size}), which is always scored")
        return self


Scored = Literal["test"] | None  # test: in the confirm phase, taught by all other images; default: validation images


KNN_EXACT_FROM = 1 / 64  # temperature; below it exp(cosine / temperature) may leave float32


class KNN(Settings):
    """Weighted k-nearest-neighbour accuracy of the frozen encoder (k 200, T 0.1: Wu et al. 2018).

    DINO's variant is k 10, 20, 100 or 200 with temperature 0.07.
    """

    kind: Literal["knn"]
    data: str
    size: PositiveInt = 64  # px
    k: PositiveInt = 200
    temperature: PositiveFloat = 0.1
    on: Scored = None


class LinearProbe(Settings):
    """A linear classifier on the frozen encoder's features; defaults of P4's library (Lightly)."""

    kind: Literal["linear"]
    data: str
    size: PositiveInt = 64  # px
    epochs: PositiveInt = 90
    lr: PositiveFloat = 0.1  # SGD, cosine to 0
    batch_size: PositiveInt = 256
    batch_norm: bool = False  # normalise the features first (MAE's habit)
    on: Scored = None


class CKA(Settings):
    """Similarity of the encoders of every two levels of a factor (P3, Figure 7): debiased linear CKA, in mini-batches.

    One stage run for each pair of levels and replicate, in the confirm phase.
    """

    kind: Literal["cka"]
    data: str
    between: str  # the factor whose levels are compared; all other levels are equal
    of: Literal["pretrain", "finetune"] = "pretrain"  # whose encoders
    images: Literal["val", "all"] = "val"  # P3: all
    size: PositiveInt = 64  # px
    layers: Literal["all", "output"] = "all"  # every level of the encoders, or the coarsest alone (P3)
    batch_size: Annotated[int, Field(ge=4)] = 128  # images whose kernels are compared at once


class CAM(Settings):
    """Class-activation maps of a pretraining by classification (Zhou et al. 2016; P3, Figure 5c), as maps.npz.

    Each map is that of its image's own class. The probe's accuracy is the classifier's, on all validation images.
    """

    kind: Literal["cam"]
    data: str  # that of the classification
    size: PositiveInt = 64  # px
    count: PositiveInt = 8  # validation images whose maps are kept


class FeatureMaps(Settings):
    """Maps of what an encoder finds alike (P5, Figure 1), as maps.npz: of each image the first three principal
    components of its features, and the cosine of every place's features with those of one place."""

    kind: Literal["maps"]
    data: str
    size: PositiveInt = 64  # px
    count: PositiveInt = 8  # validation images whose maps are kept
    level: PositiveInt = 1  # of the encoder: 1 is the coarsest, 2 the next finer
    place: tuple[Share, Share] = (0.5, 0.5)  # whose similarity is shown, as fractions of height and width


Probe = Annotated[KNN | LinearProbe | CKA | CAM | FeatureMaps, Field(discriminator="kind")]


class Configuration(Settings):
    """One fully specified setting of everything, without a seed."""

    data: dict[str, Data]
    model: Model = UNet()
    pretrain: tuple[Pretrain, ...] = ()
    finetune: Finetune | None = None
    probe: dict[str, Probe] = {}
