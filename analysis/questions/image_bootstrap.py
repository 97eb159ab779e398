"""Other test images, the same trained models: a bootstrap over the images of the test set, beside the one over seeds.

Scores here are of pixels counted over the whole test set (right, true, predicted, per class), so what is redrawn is
whole images, with all their pixels; the models stay as they are. It says what another test set of this kind and size
might have shown of these models, and nothing of other seeds: an interval over seeds says the opposite.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.digits import few
from pretune.analysis.load.counts import Counts
from pretune.analysis.load.replicates import FINISHED, held_note, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import Array, Interval, t_interval
from pretune.search_spaces.metrics import RATIOS, MetricDefinition, parts_of

RESAMPLES = 2000
_AT_ONCE = 100  # resamples scored together
_FEW = 100  # images below which the bootstrap was too narrow in simulation (benchmarks/results/coverage_images.md)
_SAME = 1e-9  # between a stored score and that of its own counts


class CellInterval(NamedTuple):
    """One cell: its mean over seeds, and both 95 % intervals; NaN where there is none."""

    cell: str
    mean: float
    low: float  # Student-t over seeds
    high: float
    n: int
    image_low: float  # percentile bootstrap over test images, of the same mean
    image_high: float
    images: int  # 0 where there is no interval over them


@dataclass(frozen=True)
class Intervals:
    """Both intervals of every cell, for one metric; without rows where no stage run counted single images."""

    study: str
    metric: str
    rows: tuple[CellInterval, ...]
    percent: bool
    notes: tuple[str, ...]


def score(counts: Array, metric: str, classes: Sequence[str]) -> Array:
    """A metric of pixel counts `(..., classes, 3)` that were added up over images: `(...,)`.

    `metric` is that of a split: jaccard, dice, precision, recall, mean_accuracy, accuracy, or one of a class, as in
    test/jaccard/pet; a class that occurs in neither truth nor prediction is excluded from a mean. Raises KeyError for
    any other metric.
    """
    found = parts_of(metric)
    right, true, predicted = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    if found.metric == "accuracy":
        return np.asarray(right.sum(axis=-1) / true.sum(axis=-1))
    above, below = RATIOS["recall" if found.metric == "mean_accuracy" else found.metric](right, true, predicted)
    values, present = above / np.maximum(below, 1), true + predicted > 0
    if found.label:
        return np.where(present, values, np.nan)[..., _position(found.label, classes)]
    return np.asarray((values * present).sum(axis=-1) / present.sum(axis=-1))


def _position(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise KeyError(name)
    return classes.index(name)


def draw_images(count: int, generator: np.random.Generator) -> list[Array]:
    """Count each image in each resample, `(100, count)` a part; a resample draws `count` with replacement."""
    even = np.full(count, 1 / count)
    return [generator.multinomial(count, even, size=_AT_ONCE).astype(np.uint16) for _ in range(RESAMPLES // _AT_ONCE)]


@functools.lru_cache(maxsize=1)
def _images_of_study(count: int) -> list[Array]:
    """The same images for every cell and metric: drawing them takes far longer than scoring them."""
    return draw_images(count, np.random.default_rng(0))


def image_interval(
    runs: Sequence[Counts], weights: Sequence[float], metric: str, resamples: Sequence[Array]
) -> Interval:
    """95 % percentile bootstrap over test images of the weighted mean of the runs' scores, all on the same images.

    `resamples` as `draw_images` makes them: the same for all runs. Raises KeyError for a metric that is not made of
    pixel counts, ValueError where runs saw other images.
    """
    first = runs[0]
    if any(not np.array_equal(run.images, first.images) or run.classes != first.classes for run in runs):
        raise ValueError("the runs were tested on different images")
    table = np.stack([run.counts for run in runs], axis=1).astype(np.float64)  # (N, runs, classes, 3)
    share = np.asarray(weights, np.float64) / np.sum(weights)
    count = len(table)
    flat, found = table.reshape(count, -1), []
    for drawn in resamples:
        pooled = (drawn.astype(np.float64) @ flat).reshape(len(drawn), *table.shape[1:])
        found.append(score(pooled, metric, first.classes) @ share)
    low, high = np.nanquantile(np.concatenate(found), (0.025, 0.975))
    return Interval(float(score(table.sum(axis=0), metric, first.classes) @ share), float(low), float(high))


# ---------------------------------------------------------------------------------------------------- of a study


def intervals(results: pandas.DataFrame, header: StudyHeader, metric: str, counts: Mapping[str, Counts]) -> Intervals:
    """Both intervals of every cell with a value. Nested fine-tunings weigh as their pretraining does, as in the table.

    The same images are redrawn for every cell, so that intervals of cells go up and down together.
    """
    found = replicate_results(results, header, metric)
    runs = _finished(results, metric)
    rows, notes = [], dict[str, None]()
    for cell in header.cells:
        values = list(independent_values(found[cell.label]).values())
        if values:
            over_seeds = t_interval(values)
            over_images, images, why = _over_images(
                runs[runs["cell"] == cell.label], metric, counts, over_seeds.estimate
            )
            notes |= {f"{cell.label}: {why}": None} if why else {}
            rows.append(CellInterval(cell.label, *over_seeds, len(values), *over_images[1:], images))
    if not any(row.images for row in rows):
        rows, notes = [], {}
    percent = header.in_percent(metric)
    return Intervals(
        header.title,
        metric,
        tuple(rows),
        percent,
        (*_explained(rows, header.definition(metric)), *notes, *held_note(header)),
    )


def _finished(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """One row per confirmed fine-tuning that reports the metric, with the pretraining that it weighs with."""
    kept = (results["phase"] == "confirm") & (results["stage"] == "finetune") & (results["outcome"] == FINISHED)
    rows = results[kept & (results["metric"] == metric) & np.isfinite(results["value"])]
    group = rows["seed_pretrain"].fillna(rows["seed"]) if "seed_pretrain" in rows else rows["seed"]
    named: pandas.DataFrame = rows.assign(group=group)
    return named


def _over_images(
    rows: pandas.DataFrame, metric: str, counts: Mapping[str, Counts], mean: float
) -> tuple[Interval, int, str]:
    """The interval, its number of images (0: none), and why there is none where that is worth saying."""
    none = Interval(math.nan, math.nan, math.nan), 0
    kept = [counts.get(str(fingerprint)) for fingerprint in rows["fingerprint"]]
    runs = [run for run in kept if run is not None]
    if not runs or parts_of(metric).part != "test":
        return *none, ""
    if len(runs) < len(kept):
        return (
            *none,
            f"{len(kept) - len(runs)} of {len(kept)} runs were stored by an older version, which did not count single "
            "images",
        )
    weights = 1 / rows.groupby("group")["group"].transform("size").to_numpy(np.float64)
    try:
        found = image_interval(runs, list(weights), metric, _images_of_study(len(runs[0].images)))
    except KeyError:
        return *none, ""
    except ValueError as error:
        return *none, str(error)
    if not abs(found.estimate - mean) <= _SAME:
        return *none, "the stored counts of single images do not agree with the stored score; run the study again"
    return found, len(runs[0].images), ""


def _explained(rows: Sequence[CellInterval], definition: MetricDefinition) -> tuple[str, ...]:
    if not rows:
        return ()
    said = [
        "over seeds: Student-t interval for other seeds on the same test images",
        "over test images: bootstrap interval for the same trained models on other images of this kind. It holds only "
        "for images like those of this test set, and neither interval includes the other source of uncertainty",
    ]
    if alike := [row.cell for row in rows if row.n > 1 and math.isnan(row.low)]:
        said.append(f"no interval over seeds, because nothing varies: {few(alike)}")
    if small := [row.images for row in rows if 0 < row.images < _FEW]:
        said.append(
            f"{min(small)} test images are few: in simulation, such 95 % intervals covered in 91 % (20 images) "
            "to 93 % (60 images)"
        )
    return (*said, *out_of_range([(row.low, row.high) for row in rows], definition))


def out_of_range(bounds: Sequence[tuple[float, float]], definition: MetricDefinition) -> tuple[str, ...]:
    """One note where a t interval reaches beyond what the metric can be."""
    least, most = definition.low, definition.high
    if not any(low < least or high > most for low, high in bounds):
        return ()
    known = "t intervals do not respect bounds, and are not cut"
    return (f"an interval goes beyond the metric's range of {least:g} to {most:g}: {known}",)
