"""Stability of the cells' order over seeds: the share of resampled seeds in which each cell takes each rank.

Seeds are resampled for all cells together, one fewer than there are, so that the spread of a mean is that of the mean
of all of them. It describes the seeds that ran; what is shown to be worse is for the table's tests to say.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.load.replicates import independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import Array
from pretune.search_spaces.metrics import sign_of

_RESAMPLES = 2000
_FEWEST_SEEDS = 3


class Ranks(NamedTuple):
    """Cells by their mean, the best first, and the share of resamples in which each takes each rank."""

    metric: str
    cells: tuple[str, ...]
    share: Array  # (cells, ranks): ranks from the best
    seeds: int
    excluded: tuple[str, ...]  # cells without all of these seeds


def ranks(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Ranks | None:
    """Over the seeds of the most complete cells; None for a metric without a direction, below two cells or three seeds.

    Raises ResultsError as `replicate_results` does.
    """
    direction = header.definition(metric).direction
    found = {label: independent_values(part) for label, part in replicate_results(results, header, metric).items()}
    most = max(map(len, found.values()), default=0)
    whole = {label: values for label, values in found.items() if len(values) == most}
    seeds = sorted(set.intersection(*(set(values) for values in whole.values()))) if whole else []
    if direction is None or len(whole) < 2 or len(seeds) < _FEWEST_SEEDS:
        return None
    scores = sign_of(direction) * np.array([[values[seed] for seed in seeds] for values in whole.values()], np.float64)
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    names = list(whole)
    excluded = tuple(label for label in found if label not in whole)
    return Ranks(metric, tuple(names[i] for i in order), _shares(scores[order]), len(seeds), excluded)


def _shares(scores: Array) -> Array:
    """(cells, ranks) from (cells, seeds), higher is better; ties are broken by lot."""
    generator, (cells, seeds) = np.random.default_rng(0), scores.shape
    draws = generator.integers(seeds, size=(_RESAMPLES, seeds - 1))
    means = scores[:, draws].mean(axis=2)  # (cells, resamples)
    by_lot = generator.permuted(np.tile(np.arange(cells)[:, None], (1, _RESAMPLES)), axis=0)
    rank = np.argsort(np.lexsort((by_lot, -means), axis=0), axis=0)
    return np.stack([(rank == place).mean(axis=1) for place in range(cells)], axis=1)
