"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from pretune.search_spaces.schema.base import Fraction, Settings, default_name

Decayed = Literal["weights"] | None  # weights alone, without biases and norms (MoCo v3, DINO); default: all


class SGD(Settings):
    name: Literal["sgd"]
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay: Decayed = None
    nesterov: bool = False


class LARS(Settings):
    """SGD with a rate of its own for each weight matrix; biases and norms have neither that nor weight decay."""

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
    decay: Decayed = None


class AdamW(Settings):
    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    weight_decay_end: PositiveFloat | None = None  # half a cosine to this value (DINO: 0.04 to 0.4); default: constant
    decay: Decayed = None

    def neutral(self) -> Mapping[str, Any]:
        return {"weight_decay_end": self.weight_decay}


Optimizer = Annotated[Annotated[SGD | LARS | Adam | AdamW, Field(discriminator="name")], default_name("adam")]


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


class Polynomial(Settings):
    """(1 - progress)^power from the end of the warm-up on: segmentation's habit since DeepLab (Chen et al. 2018)."""

    name: Literal["polynomial"]
    power: PositiveFloat = 0.9  # of the fall of the rate; 1 is linear
    warmup_epochs: NonNegativeInt = 0


Schedule = Annotated[
    Annotated[Constant | Step | Cosine | Polynomial, Field(discriminator="name")], default_name("constant")
]
