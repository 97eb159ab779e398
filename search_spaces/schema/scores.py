"""Scores of a fine-tuning that pixel counts do not give: settings that turn them on, and rows of the table of metrics.

The table is `search_spaces/metrics.py`. Its rows for scores that are always there stand in that file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from pretune.search_spaces.schema.base import Settings

Direction = Literal["maximize", "minimize"]


class MetricDefinition(NamedTuple):
    """One row of the table."""

    direction: Direction | None  # which is better; None: neither, as of a similarity
    unit: str  # fraction (which a report may print in percent), loss, ratio, count, epochs, s, bytes
    low: float  # range
    high: float
    average: str  # over what, and how
    baseline: str  # what it is worth without any learning; "" where nothing general can be said
    meaning: str

    @property
    def span(self) -> float:
        """The largest possible difference of two values."""
        return self.high - self.low


INF = math.inf
PIXELS = "all pixels of the split in one confusion matrix"
CLASSES = PIXELS + ", then the mean over the classes that occur"
COMMONEST = "the most frequent class everywhere: metrics.segmentation.most_frequent_class"
_THRESHOLDS = CLASSES + " and over thresholds 0.5 to 0.95"
_ONE_IMAGE = "not known: it depends on how classes share the images"
_ONE_CLASS = "0 for one class everywhere, in images of more than one"


class ExtraSettings(Settings):
    """Scores of fine-tuning that a study must ask for. A new setting defaults to None: then it is in no fingerprint."""

    threshold_scores: bool = (
        False  # two classes: also score probabilities, jaccard_thresholds and soft_dice (P3 Table 3)
    )
    boundary_tolerance: Annotated[float, Field(ge=0, le=0.1)] | None = (
        None  # also score boundary_f1: share of the image diagonal within which boundary pixels match (0.0075)
    )
    image_scores: Literal[True] | None = None  # also score jaccard_images and dice_images: means over images


class ExtraScores(NamedTuple):
    """The scores that a setting of `ExtraSettings` turns on."""

    value: bool | float  # what a study that lacks the setting is told to set
    rows: Mapping[str, MetricDefinition]  # SPLIT/METRIC, SPLIT/METRIC/CLASS


EXTRA_SCORES = {
    "threshold_scores": ExtraScores(True, {
        "SPLIT/jaccard_thresholds": MetricDefinition(
            "maximize", "fraction", 0, 1, _THRESHOLDS, COMMONEST, "intersection over union at ten thresholds (P3)"),
        "SPLIT/soft_dice": MetricDefinition(
            "maximize", "fraction", 0, 1, "sums over all pixels of the split, 1 added", "",
            "Dice of probabilities (P3)"),
    }),
    "boundary_tolerance": ExtraScores(0.0075, {
        "SPLIT/boundary_f1": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the classes that occur in an image, then over images", _ONE_CLASS,
            "F1 of boundary pixels that match within a tolerance (Csurka et al. 2013)"),
        "SPLIT/boundary_f1/CLASS": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the images in which the class occurs", _ONE_CLASS,
            "F1 of the boundary pixels of one class"),
    }),
    "image_scores": ExtraScores(True, {
        "SPLIT/jaccard_images": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the classes that occur in an image, then over images", _ONE_IMAGE,
            "intersection over union of single images"),
        "SPLIT/jaccard_images/CLASS": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the images in which the class occurs", _ONE_IMAGE,
            "intersection over union of one class in single images"),
        "SPLIT/dice_images": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the classes that occur in an image, then over images", _ONE_IMAGE,
            "Dice of single images"),
        "SPLIT/dice_images/CLASS": MetricDefinition(
            "maximize", "fraction", 0, 1, "mean over the images in which the class occurs", _ONE_IMAGE,
            "Dice of one class in single images"),
    }),
}  # fmt: skip
