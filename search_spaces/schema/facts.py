"""Facts that every pretraining method declares, and those that several share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Map = Literal["images", "labels", "masks", "regions", "depth"]


@dataclass(frozen=True)
class MethodFacts:
    """Facts of a method that others must know without building it."""

    requires: tuple[Map, ...] = ()  # what it reads of a data set beside its views
    metrics: tuple[str, ...] = ()  # diagnostics that it may report, as train/NAME; see `metrics_of`
    terms: tuple[tuple[str, str], ...] = ()  # parts of its loss that it reports too, and what each is
    decoder: bool = False  # whether it trains a decoder too
    supervised: bool = False  # whether it learns from labels or masks
    classifier: bool = False  # whether its head tells the image classes apart by pooled features
    compares_batch: bool = False  # whether its loss compares with the rest of the batch, so that its size counts
    corrupts: bool = False  # whether the network is shown less than its views, to restore them
    targets: Literal["places", "pixels"] | None = None  # what is cut out by a view's box, and must not be moved in it
    volumes: bool = False  # whether it takes volumes
    trains: bool = True  # whether there is anything to train: a module of trainables/methods
    freezes_last_layer: bool = False  # whether a last layer's gradient is dropped at first
    ramp: tuple[str, str] | None = None  # settings between which a value moves over the whole training
    unit_length: str | None = None  # setting: the width of an output that is scaled to length 1


AGREEMENT = ("feature_std", "positive_similarity")  # of the projections of two views
MOMENTUM = ("momentum", "momentum_end")
