"""Networks: an encoder, and a decoder that turns its features into masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from pretune.search_spaces.schema.base import Settings, default_name

__all__ = [
    "MODEL_FACTS",
    "ConRecUNet",
    "GenesisUNet",
    "Model",
    "ModelFacts",
    "ResNetHead",
    "ResNetUNet",
    "TimmUNet",
    "UNet",
    "ViTPyramid",
    "channels_of",
    "dimensions_of",
    "levels_of",
]


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model that others must know without building it."""

    decoder_settings: tuple[str, ...] = ("skip_connections",)  # those that reach the decoder alone
    levels: int | None = None  # of the encoder where they are not its `widths`; None: known once it is built


class _ImageModel(Settings):
    """Settings that models of images share."""

    channels: Annotated[int, Field(ge=1, le=64)] | None = (
        None  # of the images, as their data set says; default: 3 colours
    )

    @field_validator("channels")
    @classmethod
    def _default(cls, channels: int | None) -> int | None:
        return None if channels == 3 else channels

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A setting without a value is not dumped, as before there were such: three colours, images of any size."""
        return {key: value for key, value in dump(self).items() if value is not None}


EvenWidth = Annotated[int, Field(gt=0, multiple_of=2)]  # the first convolution of a level has half of it


class UNet(_ImageModel):
    """P2's U-Net: four levels, transposed convolutions. Convolutions per level and the norm are our reading."""

    name: Literal["unet"] = "unet"
    facts: ClassVar[ModelFacts] = ModelFacts()
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=6)] = (32, 64, 128, 256)
    skip_connections: bool = True
    convolutions: Annotated[int, Field(ge=1, le=3)] = 2  # 3x3 convolutions per level
    norm: Literal["batch", "none"] = "batch"

    @property
    def stride(self) -> int:
        """Size of the image over that of the coarsest features."""
        return 1 << (len(self.widths) - 1)


class ConRecUNet(_ImageModel):
    """ConRec's U-Net (P3): nearest up-sampling, and skips through 1x1 convolutions with batch norm and ReLU."""

    name: Literal["conrec-unet"]
    facts: ClassVar[ModelFacts] = ModelFacts()
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=6)] = (64, 128, 256, 512)
    skip_connections: bool = True

    @property
    def stride(self) -> int:
        return 1 << (len(self.widths) - 1)


class ResNetUNet(_ImageModel):
    """A U-Net over a torchvision ResNet (P3, P4: 18; P5: 34). No paper describes the decoder: it has the widths and
    blocks of segmentation_models.pytorch's U-Net (nearest up-sampling, two 3x3 convolutions with batch norm)."""

    name: Literal["resnet-unet"]
    facts: ClassVar[ModelFacts] = ModelFacts(("skip_connections", "decoder_widths"), levels=5)
    depth: Literal[18, 34, 50] = 34
    stem: Literal["imagenet", "cifar"] = "imagenet"  # 7x7 with stride 2 and max pooling, or 3x3 and neither
    skip_connections: bool = True
    decoder_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=5, max_length=5)] = (256, 128, 64, 32, 16)

    @property
    def stride(self) -> int:
        return 32 if self.stem == "imagenet" else 8


class ResNetHead(_ImageModel):
    """P1's model: a ResNet, and five 3x3 convolutions with bilinear up-sampling between each pair; no skips.

    Widths (256, 128, 64, 32), ReLU, and a fourth up-sampling to the full size follow the authors' code; its ReLU on the
    logits does not.
    """

    name: Literal["resnet-head"]
    facts: ClassVar[ModelFacts] = ModelFacts(levels=5)
    depth: Literal[18, 34, 50] = 34  # P1; its outlook: 50
    skip_connections: Literal[False] = False

    @property
    def stride(self) -> int:
        return 32


class _TimmModel(_ImageModel):
    """Settings that models over a backbone of timm share.

    Whether timm has the backbone, and its stride, is seen when a study is planned or started: no torch is imported
    here.
    """

    backbone: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # timm's name without a tag: convnext_tiny
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None  # px of all stages, for backbones tied to one size

    @property
    def stride(self) -> None:
        """Known once the encoder is built."""
        return


class TimmUNet(_TimmModel):
    """A U-Net over any backbone of timm that gives feature maps, with the decoder of `resnet-unet`."""

    name: Literal["timm-unet"]
    facts: ClassVar[ModelFacts] = ModelFacts(("skip_connections", "decoder_widths"))
    skip_connections: bool = True
    decoder_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=5, max_length=5)] = (256, 128, 64, 32, 16)


class ViTPyramid(_TimmModel):
    """A plain transformer of timm (ViT, DINOv2, DINOv3) and a simple feature pyramid over its last map (Li et al. 2022,
    ViTDet), whose levels are added up (Kirillov et al. 2019, Panoptic FPN)."""

    name: Literal["vit-pyramid"]
    facts: ClassVar[ModelFacts] = ModelFacts(("skip_connections", "pyramid_width", "decoder_width"), levels=1)
    skip_connections: Literal[False] = False  # the encoder has one map
    pyramid_width: PositiveInt = 256  # channels of the pyramid's levels (ViTDet)
    decoder_width: PositiveInt = 128  # channels of the features that masks are predicted from (Panoptic FPN)


class GenesisUNet(Settings):
    """The U-Net of Models Genesis (P3's Table 3), for volumes, or with `dimensions: 2` for images."""

    name: Literal["genesis-unet"]
    facts: ClassVar[ModelFacts] = ModelFacts(("skip_connections", "up"))
    dimensions: Literal[2, 3] = 3
    widths: Annotated[tuple[EvenWidth, ...], Field(min_length=2, max_length=6)] = (64, 128, 256, 512)
    up: Literal["nearest", "transposed"] = (
        "nearest"  # as their Keras code, in which P3's task is, or their PyTorch port
    )
    skip_connections: bool = True

    @property
    def stride(self) -> int:
        return 1 << (len(self.widths) - 1)


def channels_of(model: Model) -> int:
    """Channels of the model's input: three colours unless it says otherwise, one grey value of volumes."""
    if isinstance(model, GenesisUNet):
        return 3 if model.dimensions == 2 else 1
    return getattr(model, "channels", None) or 3


def dimensions_of(model: Model) -> int:
    """Return the dimensions of the model's input: 2 for images, 3 for volumes."""
    return model.dimensions if isinstance(model, GenesisUNet) else 2


Model = Annotated[
    Annotated[
        UNet | ConRecUNet | ResNetUNet | ResNetHead | TimmUNet | ViTPyramid | GenesisUNet, Field(discriminator="name")
    ],
    default_name("unet"),
]
MODEL_FACTS: Mapping[str, ModelFacts] = {
    name: settings.facts
    for settings in get_args(get_args(Model)[0])
    for name in get_args(settings.model_fields["name"].annotation)
}


def levels_of(model: Model) -> int | None:
    """Levels of the encoder; None where they are known once it is built."""
    widths = getattr(model, "widths", None)
    return model.facts.levels if widths is None else len(widths)
