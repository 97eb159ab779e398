"""P1's additions to SimCLR's augmentation, by their names in `views.extra`: the one literal table of the family.

Our own and neither torchvision's nor kornia's: each sample has parameters of its own, a function of its image, and
a batch goes through in one pass (tests/trainables/test_views.py holds them equal to torchvision).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.views import color, geometry
from pretune.trainables.views.random import FloatArray

SOLARIZE_THRESHOLD = 0.5
NO_SOLARIZE = 2.0  # above every value
ALL_BITS = 24.0  # float32 has no more
POSTERIZE_BITS = (3, 5)  # both included
ROTATION_DEGREES = 30.0  # to either side, as in AutoAugment (Cubuk et al. 2019, Table 6)


class Extra(NamedTuple):
    """A transform of a view, applied to the samples that a draw chooses."""

    draws: Callable[[int], int]  # numbers in [0, 1) that a sample needs, given the view's size in px
    parameters: Callable[[FloatArray], FloatArray]  # those draws (B, draws) -> (B, P); of no draws, of any (B, 1)
    transform: Callable[[Tensor, Tensor], Tensor]  # views (b, 3, S, S) in [0, 1] and parameters (b, P) -> (b, 3, S, S)
    unchanged: float  # parameters that leave a view as it is


def apply_elastic(x: Tensor, noise: Tensor) -> Tensor:
    return geometry.elastic(x, geometry.elastic_field(noise, x.shape[-1]))


def apply_rotate(x: Tensor, degrees: Tensor) -> Tensor:
    return geometry.rotate(x, degrees[:, 0])


def apply_posterize(x: Tensor, bits: Tensor) -> Tensor:
    return color.posterize(x, bits[:, 0])


def apply_solarize(x: Tensor, threshold: Tensor) -> Tensor:
    return color.solarize(x, threshold[:, 0])


def rotation_degrees(draws: FloatArray) -> FloatArray:
    return ROTATION_DEGREES * (2 * draws - 1)


def posterize_bits(draws: FloatArray) -> FloatArray:
    low, high = POSTERIZE_BITS
    return low + np.floor((high + 1 - low) * draws)


def solarize_threshold(draws: FloatArray) -> FloatArray:
    return np.full_like(draws, SOLARIZE_THRESHOLD)


EXTRAS: Mapping[schema.ExtraTransform, Extra] = {  # applied in this order, whatever theirs in a study
    "elastic": Extra(lambda size: 2 * geometry.elastic_nodes(size) ** 2, lambda noise: noise, apply_elastic, 0.5),
    "rotation": Extra(lambda _: 1, rotation_degrees, apply_rotate, 0.0),
    "posterize": Extra(lambda _: 1, posterize_bits, apply_posterize, ALL_BITS),
    "solarize": Extra(lambda _: 0, solarize_threshold, apply_solarize, NO_SOLARIZE),
}
