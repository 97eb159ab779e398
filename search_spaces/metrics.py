"""Every metric that a stage run reports, in one table: which direction is better, unit, range, average, baseline.

Full names are built from parts, and are read by them alone, never by what letters a class or a probe is called by:

    train/METRIC                    of the images that a stage trains on
    val/METRIC, test/METRIC         of a split; test@SIZE/METRIC at another size of images
    val/METRIC/CLASS                of one class of it; a class may hold any character, "/" too
    probe/METRIC                    as a probe's stage run stores it
    probe/NAME/METRIC               the same in a study's results, where NAME is the study's own
    probe/NAME/LEVEL/METRIC         of a pairwise probe, LEVEL being the one compared with
    cost/METRIC                     of a stage run, kept beside its results

A new metric that is a ratio of pixel counts is a row here and a line in RATIOS. Other scores of fine-tuning have their
rows beside their setting (schema/scores.py). Terms of a pretraining method's loss have theirs from its facts.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pretune.search_spaces.schema import FACTS
from pretune.search_spaces.schema.scores import AVERAGE_SCORES, EXTRA_SCORES, LOSS_SCORE
from pretune.search_spaces.schema.scores import CLASSES as _CLASSES
from pretune.search_spaces.schema.scores import COMMONEST as _COMMONEST
from pretune.search_spaces.schema.scores import INF as _INF
from pretune.search_spaces.schema.scores import PIXELS as _PIXELS
from pretune.search_spaces.schema.scores import Direction as Direction
from pretune.search_spaces.schema.scores import MetricDefinition as MetricDefinition

PRETEXT_LOSS = "val/pretext_loss"
PROBE_ACCURACY = "probe/accuracy"
TRAINING_LOSSES = ("train/loss", "train/pretext_loss")  # what a stage run under way is followed by


class UnknownMetricError(LookupError):
    """No stage reports this metric; the message says where metrics are defined."""


class MetricName(NamedTuple):
    """A full name in its parts; "" for what it lacks."""

    part: str  # train, val, test, test@SIZE, probe, cost
    metric: str
    label: str = ""  # of the class
    probe: str = ""
    level: str = ""  # that a pairwise probe compares with

    @property
    def size(self) -> str:
        """The SIZE of test@SIZE."""
        return self.part.partition("@")[2]


# ------------------------------------------------------------------------------------------------------- the table

_EPOCH = "mean over the batches of the last epoch"
_BATCH = "last batch of the last epoch"
_IMAGES = "validation images, or those that a probe is `on`, each once"
_FREQUENT = "share of the most frequent class; 1 / classes where all are as frequent"

DEFINITIONS: dict[str, MetricDefinition] = {  # SPLIT is val, test or test@SIZE; N a number
    "SPLIT/accuracy": MetricDefinition(
        "maximize", "fraction", 0, 1, _PIXELS, _COMMONEST, "share of pixels that are right"),
    "SPLIT/mean_accuracy": MetricDefinition(
        "maximize", "fraction", 0, 1, _CLASSES, "1 / classes", "recall, by the name segmentation papers give it"),
    "SPLIT/jaccard": MetricDefinition(
        "maximize", "fraction", 0, 1, _CLASSES, _COMMONEST, "intersection over union of prediction and truth"),
    "SPLIT/jaccard/CLASS": MetricDefinition(
        "maximize", "fraction", 0, 1, _PIXELS, _COMMONEST, "intersection over union of one class"),
    "SPLIT/dice": MetricDefinition(
        "maximize", "fraction", 0, 1, _CLASSES, _COMMONEST, "twice the intersection over the sum of both (F1)"),
    "SPLIT/dice/CLASS": MetricDefinition(
        "maximize", "fraction", 0, 1, _PIXELS, _COMMONEST, "twice the intersection over the sum of both, of one class"),
    "SPLIT/precision": MetricDefinition(
        "maximize", "fraction", 0, 1, _CLASSES, _COMMONEST, "share of predicted pixels that are right"),
    "SPLIT/precision/CLASS": MetricDefinition(
        "maximize", "fraction", 0, 1, _PIXELS, _COMMONEST, "share of the pixels predicted as a class that are of it"),
    "SPLIT/recall": MetricDefinition(
        "maximize", "fraction", 0, 1, _CLASSES, "1 / classes", "share of true pixels that are found"),
    "SPLIT/recall/CLASS": MetricDefinition(
        "maximize", "fraction", 0, 1, _PIXELS, _COMMONEST, "share of the pixels of a class that are found"),
    PRETEXT_LOSS: MetricDefinition(
        "minimize", "loss", -_INF, _INF, _IMAGES, "", "the pretext task's loss on images it did not train on"),
    "val/online_knn": MetricDefinition(
        "maximize", "fraction", 0, 1, _IMAGES, _FREQUENT, "kNN accuracy of the encoder while it trains"),
    "train/loss": MetricDefinition("minimize", "loss", 0, _INF, _EPOCH, "", "the loss of fine-tuning"),
    "train/stopped_epoch": MetricDefinition(
        None, "epochs", 0, _INF, "one number", "", "the epoch at which patience ended a fine-tuning"),
    "train/pretext_loss": MetricDefinition("minimize", "loss", -_INF, _INF, _EPOCH, "", "the pretext task's loss"),
    "train/weights_loaded": MetricDefinition(
        None, "count", 0, _INF, "one number", "", "tensors that an imported encoder took"),
    "train/collapse_signs": MetricDefinition(
        "minimize", "count", 0, _INF, _BATCH, "0", "signs that a pretraining has collapsed"),
    "train/encoder_spread": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "0 where all images are alike", "how far apart the encoder's features lie"),
    "train/encoder_rank": MetricDefinition(
        None, "ratio", 1, _INF, _BATCH, "1 where features vary along a line", "effective rank of the features"),
    "train/loss_over_uniform": MetricDefinition(
        "minimize", "ratio", -_INF, _INF, _BATCH, "1", "the loss over that of one answer for all inputs"),
    "train/feature_std": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "0 where all images are alike", "standard deviation of unit projections"),
    "train/positive_similarity": MetricDefinition(
        None, "ratio", -1, 1, _BATCH, "", "cosine of the projections of two views of an image"),
    "train/contrastive_loss": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "the contrastive part of ConRec's loss"),
    "train/pixel_loss": MetricDefinition(
        "minimize", "loss", -_INF, _INF, _BATCH, "", "the pixel part of PixelCL's loss"),
    "train/instance_loss": MetricDefinition(
        "minimize", "loss", -_INF, _INF, _BATCH, "", "the image part of PixelCL's loss"),
    "train/positive_pairs": MetricDefinition(
        None, "count", 0, _INF, _BATCH, "", "pairs of places that count as one, per image"),
    "train/images_without_pairs": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "", "share of images whose views hold no such pair"),
    "train/error": MetricDefinition("minimize", "loss", 0, _INF, _BATCH, "", "error of the restored image"),
    "train/masked_error": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "error of the restored image where it was masked"),
    "train/reconstruction_error": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "error of the task reconstruction"),
    "train/original_colors_error": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "error of the task original-colors"),
    "train/mask_location_error": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "error of the task mask-location"),
    "train/black_masks_error": MetricDefinition(
        "minimize", "loss", 0, _INF, _BATCH, "", "error of the task black-masks"),
    "train/accuracy": MetricDefinition(
        "maximize", "fraction", 0, 1, _BATCH, _FREQUENT, "share that a supervised pretraining gets right"),
    "train/teacher_entropy_over_uniform": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "1", "entropy of the teacher's answers over that of equal chances"),
    "train/teacher_mean_entropy_over_uniform": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "1", "entropy of the mean of the teacher's answers over that of equal chances"),
    "train/prototypes_used": MetricDefinition(
        None, "ratio", 0, 1, _BATCH, "", "share of prototypes that are some image's first choice"),
    "train/prototypes_chosen": MetricDefinition(
        None, "count", 0, _INF, _BATCH, "1 where all images choose one", "prototypes that are some image's first"),
    PROBE_ACCURACY: MetricDefinition(
        "maximize", "fraction", 0, 1, _IMAGES, _FREQUENT, "share of images whose class a probe names"),
    "probe/accuracy_best": MetricDefinition(
        "maximize", "fraction", 0, 1, _IMAGES, _FREQUENT, "the best epoch's: chosen on what it is measured on"),
    "probe/explained_variance": MetricDefinition(
        "maximize", "fraction", 0, 1, "all places of the shown images", "3 / channels where none stands out",
        "share of the first three principal components in the variance of the features"),
    "probe/output": MetricDefinition(
        None, "fraction", -1, 1, "sums over batches", "0 on average for unrelated features",
        "debiased linear CKA of two encoders' coarsest level"),
    "probe/levelN": MetricDefinition(
        None, "fraction", -1, 1, "sums over batches", "0 on average for unrelated features",
        "debiased linear CKA of two encoders' level N, from the finest"),
    "cost/seconds": MetricDefinition("minimize", "s", 0, _INF, "one number", "", "wall time of the last attempt"),
    "cost/gpu_memory": MetricDefinition(
        "minimize", "bytes", 0, _INF, "the most at any time", "", "GPU memory that a stage run took"),
    "cost/gpu_seconds": MetricDefinition(
        "minimize", "s", 0, _INF, "one number", "", "wall time of the last attempt times its GPUs"),
}  # fmt: skip

DEFINITIONS |= {
    f"train/{name}": MetricDefinition("minimize", "loss", 0, _INF, _BATCH, "", meaning)
    for facts in FACTS.values()
    for name, meaning in facts.terms
}

_TURNED_ON = [*EXTRA_SCORES.items(), ("score_loss", LOSS_SCORE)]
_TURNED_ON += [("average", extra) for extra in AVERAGE_SCORES.values()]
DEFINITIONS |= {name: row for _, extra in _TURNED_ON for name, row in extra.rows.items()}

SCORES = tuple(key.removeprefix("SPLIT/") for key in DEFINITIONS if re.fullmatch("SPLIT/[^/]+", key))
COSTS = tuple(key for key in DEFINITIONS if key.startswith("cost/"))


# ------------------------------------------------------------------------------------------------- names and parts

_SPLIT = r"val|test(@\d+)?"


@functools.cache
def parts_of(name: str) -> MetricName:
    """A full name in its parts, whatever it is called; whether there is such a metric is for `definition_of` to say."""
    part, _, rest = name.partition("/")
    if part != "probe":
        metric, _, label = rest.partition("/")
        return MetricName(part, metric, label)
    before, _, last = rest.rpartition("/")
    probe, _, level = before.partition("/")
    if level and not _is_pairwise(last):
        return MetricName(part, f"{level}/{last}", probe=probe)
    return MetricName(part, last, probe=probe, level=level)


def _is_pairwise(metric: str) -> bool:
    return re.fullmatch(r"output|level\d+", metric) is not None


@functools.cache
def pattern_of(name: str) -> str:
    """The row of the table that a full name would stand in, as in SPLIT/jaccard/CLASS."""
    found = parts_of(name)
    metric = re.sub(r"^level\d+$", "levelN", found.metric) if found.part == "probe" else found.metric
    tail = f"{metric}/CLASS" if found.label else metric
    is_split = re.fullmatch(_SPLIT, found.part) is not None
    return f"SPLIT/{tail}" if is_split and f"SPLIT/{tail}" in DEFINITIONS else f"{found.part}/{tail}"


def definition_of(name: str) -> MetricDefinition:
    """The table's row for a full name. Raises UnknownMetricError."""
    found = DEFINITIONS.get(pattern_of(name))
    if found is None:
        raise UnknownMetricError(
            f"no stage reports {name!r}: metrics and their directions are defined in search_spaces/metrics.py"
        )
    return found


def as_fraction(definition: MetricDefinition, value: float) -> str:
    """The fraction to write in place of a value beyond the range, where it is one in percent; else ""."""
    in_percent = definition.unit == "fraction" and definition.low <= value / 100 <= definition.high
    return f"write {value / 100:g} for {value:g} %" if in_percent else ""


@functools.cache
def setting_of(name: str) -> tuple[str, bool | float | str] | None:
    """Setting of `finetune` that a metric is computed with, and a value that turns it on; None: it always is."""
    pattern = pattern_of(name)
    return next(((setting, extra.value) for setting, extra in _TURNED_ON if pattern in extra.rows), None)


def direction_of(name: str, asked: Direction | None = None) -> Direction:
    """The study's own choice, or else the table's. Raises UnknownMetricError, also where neither is better."""
    found = asked or definition_of(name).direction
    if found is None:
        raise UnknownMetricError(f"neither high nor low values of {name!r} are better: nothing can be searched by it")
    return found


def sign_of(direction: Direction) -> float:
    """The factor, 1 or -1, with which larger scores are better."""
    return -1.0 if direction == "minimize" else 1.0


def same_score(name: str, other: str) -> bool:
    """Whether two names are one score, whatever the split: val/jaccard/leaf, test@64/jaccard/leaf."""
    if name == other:
        return True
    (one, *rest), (two, *others) = parts_of(name), parts_of(other)
    return rest == others and all(re.fullmatch(_SPLIT, part) for part in (one, two))


def turned(definition: MetricDefinition, name: str, target: str, asked: Direction | None) -> MetricDefinition:
    """The definition of `name` in a study: the direction asked for its target holds on every split."""
    return definition if asked is None or not same_score(name, target) else definition._replace(direction=asked)


class Bound(NamedTuple):
    """The worst value of a metric that a constraint allows: at most, or at least where higher values are better."""

    metric: str
    value: float

    @property
    def sign(self) -> float:
        """1 for an upper bound, -1 for a lower one."""
        return -1.0 if definition_of(self.metric).direction == "maximize" else 1.0

    def excess(self, values: Sequence[float]) -> float:
        """By how much the worst of `values` is beyond the bound, in the metric's unit; above 0 violates it."""
        return max(self.sign * (value - self.value) for value in values)

    @property
    def side(self) -> str:
        """The values that violate it, in words: 'above 600'."""
        return f"{'above' if self.sign > 0 else 'below'} {self.value:g}"


def scored_by(target: str, cells: str) -> str:
    """The metric that a search of a pretraining goes by, from `tune.pretrain.target`: cells, pretext or probe.NAME.

    `cells` is the metric that cells are compared by, `tune.target`.
    """
    if target in ("cells", "pretext"):
        return cells if target == "cells" else PRETEXT_LOSS
    return f"probe/{target.removeprefix('probe.')}/accuracy"


def is_reportable(name: str) -> bool:
    """Whether tables may show it: scores of validation and test images, and what a named probe measures."""
    found, pattern = parts_of(name), pattern_of(name)
    if found.part == "probe":
        one = bool(found.probe) and pattern in (PROBE_ACCURACY, "probe/explained_variance")
        return one or bool(found.level)
    return pattern.startswith("SPLIT/")


# ---------------------------------------------------------------------------------------------------------- stored


def to_json(definition: MetricDefinition) -> dict[str, Any]:
    """For study.json; a bound that is infinite is null."""
    content = definition._asdict()
    bounds = (content.pop("low"), content.pop("high"))
    return content | {"range": [bound if math.isfinite(bound) else None for bound in bounds]}


def from_json(content: Mapping[str, Any]) -> MetricDefinition:
    """As `to_json` wrote it. Raises KeyError, TypeError or ValueError for anything else."""
    low, high = content["range"]
    if content["direction"] not in ("maximize", "minimize", None):
        raise ValueError(f"unknown direction {content['direction']!r}")
    return MetricDefinition(
        direction=content["direction"],
        unit=str(content["unit"]),
        low=-_INF if low is None else float(low),
        high=_INF if high is None else float(high),
        average=str(content["average"]),
        baseline=str(content["baseline"]),
        meaning=str(content["meaning"]),
    )


# ---------------------------------------------------------------------------------------------------- pixel counts

Ratio = Callable[[Any, Any, Any], tuple[Any, Any]]  # of tensors or arrays of whole numbers

# Of each class: pixels that are right, those of the truth, those predicted -> what is divided by what. A score is the
# one over the other, at least 1 below, so that a class that occurs in only one of truth and prediction scores 0.
RATIOS: Mapping[str, Ratio] = {
    "jaccard": lambda right, truth, predicted: (right, truth + predicted - right),
    "dice": lambda right, truth, predicted: (2 * right, truth + predicted),
    "precision": lambda right, truth, predicted: (right, predicted),
    "recall": lambda right, truth, predicted: (right, truth),
}
