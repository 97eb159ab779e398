"""Scores of a fine-tuning that pixel counts do not give: settings that turn them on, and rows of the table of metrics.

The table is `search_spaces/metrics.py`. Its rows for scores that are always there stand in that file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

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
_ONE_CLASS = "0 for one class everywhere, in images of more than one"


def _none_if_always_there(average: str | None) -> str | None:
    """`dataset` is what is always scored: naming it is no other stage."""
    return None if average == "dataset" else average


class ExtraSettings(Settings):
    """Scores of fine-tuning that a study must ask for. A new setting defaults to None: then it is in no fingerprint."""

    threshold_scores: bool = (
        False  # two classes: also score probabilities, jaccard_thresholds and soft_dice (P3 Table 3)
    )
    boundary_tolerance: Annotated[float, Field(ge=0, le=0.1)] | None = (
        None  # also score boundary_f1: share of the image diagonal within which boundary pixels match (0.0075)
    )

    average: Annotated[Literal["dataset", "image", "batch"] | None, AfterValidator(_none_if_always_there)] = (
        None  # also score means over images (jaccard_images, ...) or over batches (jaccard_batches, ...)
    )


class ExtraScores(NamedTuple):
    """The scores that a setting of `ExtraSettings` turns on."""

    value: bool | float | str  # what a study that lacks the setting is told to set
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
}  # fmt: skip


LOSS_SCORE = ExtraScores(True, {
    "SPLIT/loss": MetricDefinition(
        "minimize", "loss", 0, INF, "mean over images of the loss of each", "",
        "the loss of fine-tuning on images that it did not train on"),
})  # fmt: skip


class Average(NamedTuple):
    """Scores of parts of a split, and the mean of them."""

    suffix: str  # of the ratios' names
    part: str  # in words


AVERAGES = {"image": Average("images", "an image"), "batch": Average("batches", "a batch of `batch_size` images")}
AVERAGED = {
    "jaccard": "intersection over union",
    "dice": "twice the intersection over the sum of both (F1)",
    "precision": "share of predicted pixels that are right",
    "recall": "share of true pixels that are found",
}  # ratios of pixel counts -> meaning


def _rows(average: Average) -> dict[str, MetricDefinition]:
    known = "not known: it depends on how classes share the images"
    whole = f"mean over the classes that occur in {average.part}, then over {average.suffix}"
    of_one = f"mean over the {average.suffix} in which the class occurs"
    rows = {}
    for name, meaning in AVERAGED.items():
        rows[f"SPLIT/{name}_{average.suffix}"] = MetricDefinition(
            "maximize", "fraction", 0, 1, whole, known, f"{meaning}, of {average.part}"
        )
        rows[f"SPLIT/{name}_{average.suffix}/CLASS"] = MetricDefinition(
            "maximize", "fraction", 0, 1, of_one, known, f"{meaning}, of one class in {average.part}"
        )
    accuracy = MetricDefinition(
        "maximize", "fraction", 0, 1, f"share of pixels of {average.part} that are right, then the mean over "
        f"{average.suffix}", known, f"share of pixels that are right, of {average.part}",
    )  # fmt: skip
    return rows | {f"SPLIT/accuracy_{average.suffix}": accuracy}


AVERAGE_SCORES = {value: ExtraScores(value, _rows(average)) for value, average in AVERAGES.items()}
