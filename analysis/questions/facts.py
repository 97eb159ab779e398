"""Facts beside scores: what no learning at all would score, classes that models never predict, encoders that collapsed.

From pixel counts of the test images, which fine-tunings left, and from the signs that pretrainings raised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.counts import Counts
from pretune.analysis.load.replicates import FINISHED, cells_of, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.image_bootstrap import score
from pretune.analysis.statistics import Array
from pretune.search_spaces.metrics import parts_of

SIGNS = "train/collapse_signs"
_SAME = 1e-9  # between a mean and the baseline


class MostFrequent(NamedTuple):
    """Score of predicting the most frequent class of the test images everywhere, and the cells that it holds for."""

    label: str
    score: float
    cells: tuple[str, ...]
    not_above: tuple[str, ...]  # of the cells those whose mean is not above it


class CountedRuns(NamedTuple):
    """A cell, and the number of its runs in which something is so."""

    cell: str
    runs: int
    of: int


@dataclass(frozen=True)
class Facts:
    """Facts beside the scores of one metric."""

    metric: str
    percent: bool
    most_frequent: tuple[MostFrequent, ...]  # one where all cells have one test set; () where it is not known
    never: Mapping[str, tuple[CountedRuns, ...]]  # class of the test images -> fine-tunings that predict it nowhere
    collapsed: tuple[CountedRuns, ...]  # pretrainings that raised signs of collapse


def most_frequent_score(true: Array, metric: str, classes: tuple[str, ...]) -> tuple[str, float]:
    """The most frequent class, and what predicting it everywhere scores.

    `true` (classes,) are pixels of the truth. NaN for a metric that is not made of pixel counts of the test images.
    """
    commonest = int(np.argmax(true))
    counts = np.zeros((len(classes), 3))
    counts[:, 1] = true
    counts[commonest, 0], counts[commonest, 2] = true[commonest], true.sum()
    try:
        value = float(score(counts, metric, classes)) if parts_of(metric).part == "test" else math.nan
    except KeyError:
        value = math.nan
    return classes[commonest], value


def never_predicted(counts: Counts) -> tuple[str, ...]:
    """Classes of the test images that a model predicts in none of them."""
    _, true, predicted = counts.counts.sum(axis=0).T
    return tuple(name for name, t, p in zip(counts.classes, true, predicted, strict=True) if t > 0 and p == 0)


def facts(results: pandas.DataFrame, header: StudyHeader, metric: str, counts: Mapping[str, Counts]) -> Facts:
    """The facts of a study's confirmed runs; `counts`: of single test images, by fingerprint. Raises ResultsError."""
    confirm = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    runs = confirm[confirm["stage"] == "finetune"].drop_duplicates(["cell", "fingerprint"])
    counted = {
        str(cell): [counts[str(key)] for key in part["fingerprint"] if str(key) in counts]
        for cell, part in runs.groupby("cell", sort=False)
    }
    counted = {cell: found for cell, found in counted.items() if found}
    return Facts(
        metric,
        header.in_percent(metric),
        _most_frequent(counted, results, header, metric),
        _never(counted),
        collapsed(results, header),
    )


def _most_frequent(
    counted: Mapping[str, list[Counts]], results: pandas.DataFrame, header: StudyHeader, metric: str
) -> tuple[MostFrequent, ...]:
    if header.definition(metric).direction != "maximize":
        return ()
    means = {cell: independent_values(found) for cell, found in replicate_results(results, header, metric).items()}
    groups: dict[tuple[str, float], list[str]] = {}
    for cell, found in counted.items():
        label, value = most_frequent_score(found[0].counts[..., 1].sum(axis=0), metric, found[0].classes)
        if math.isfinite(value):
            groups.setdefault((label, round(value, 9)), []).append(cell)
    return tuple(
        MostFrequent(label, value, tuple(cells), tuple(cell for cell in cells if _mean(means[cell]) <= value + _SAME))
        for (label, value), cells in groups.items()
    )


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else math.nan


def _never(counted: Mapping[str, list[Counts]]) -> dict[str, tuple[CountedRuns, ...]]:
    never: dict[str, list[CountedRuns]] = {}
    for cell, found in counted.items():
        missed = [label for one in found for label in never_predicted(one)]
        for label in dict.fromkeys(missed):
            never.setdefault(label, []).append(CountedRuns(cell, missed.count(label), len(found)))
    return {label: tuple(rows) for label, rows in never.items()}


def collapsed(results: pandas.DataFrame, header: StudyHeader) -> tuple[CountedRuns, ...]:
    """Confirmed pretrainings with signs of collapse, once in each cell that uses them."""
    confirm = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    stages = confirm[confirm["stage"].str.startswith("pretrain") & (confirm["metric"] == SIGNS)]
    signs: dict[str, dict[str, bool]] = {}
    for row in stages.to_dict("records"):
        named = {str(key): value for key, value in row.items()}
        for cell in cells_of(named, header):
            signs.setdefault(cell, {})[str(row["fingerprint"])] = row["value"] > 0
    return tuple(
        CountedRuns(cell, sum(raised.values()), len(raised)) for cell, raised in signs.items() if any(raised.values())
    )
