"""The marginal effect of each member of a set: what adding one transform does, over all sets that it was added to.

A factor whose levels are sets, as P1's extra transforms, is compared pairwise: a set with the member against the same
set without it, at the same seed, in the same cell of the other factors; averaged over such pairs, tested over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas
from numpy.typing import NDArray

from pretune.analysis.digits import few
from pretune.analysis.load.replicates import held_note, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.differences import Difference, Differences
from pretune.analysis.statistics import cohen_d, holm, mean_std, paired_difference


def marginal_effects(results: pandas.DataFrame, header: StudyHeader, metric: str) -> tuple[Differences, ...]:
    """One table for each factor whose levels are sets, a row for each member that some pair of levels differs by.

    A seed counts where it finished in both cells of every pair. Raises ResultsError as `replicates` does.
    """
    found = replicate_results(results, header, metric)
    values = {label: independent_values(runs) for label, runs in found.items()}
    tables = (_table(header, metric, factor, sets, values) for factor, sets in header.sets.items())
    return tuple(table for table in tables if table.rows)


def _table(
    header: StudyHeader,
    metric: str,
    factor: str,
    sets: Mapping[str, frozenset[str]],
    values: Mapping[str, Mapping[int, float]],
) -> Differences:
    members = list(dict.fromkeys(member for items in sets.values() for member in sorted(items)))
    rows, notes = [], []
    for member in members:
        pairs = _pairs(header, factor, sets, member)
        gains = _gains(pairs, values)
        if len(gains):
            zeros = np.zeros_like(gains)
            rows.append((member, paired_difference(gains, zeros), cohen_d(gains, zeros).g, mean_std(gains).std))
            notes.append(f"{member}: {len(pairs)} pair{'s' * (len(pairs) != 1)} of cells")
    alike = [f"with {member}" for member, test, _, _ in rows if test.n > 1 and math.isnan(test.low)]
    corrected = holm([test.p for _, test, _, _ in rows])
    return Differences(
        study=header.title,
        metric=metric,
        baseline=f"the same {factor} without it",
        rows=tuple(
            Difference(f"with {member}", "without", *test[:4], float(p), test.n, g=g, std=std)
            for (member, test, g, std), p in zip(rows, corrected, strict=True)
        ),
        percent=header.in_percent(metric),
        notes=(
            *(["averaged over " + "; ".join(notes)] if notes else []),
            *([f"no spread at all, so no interval: {few(alike)}"] if alike else []),
            *held_note(header),
        ),
    )


def _pairs(header: StudyHeader, factor: str, sets: Mapping[str, frozenset[str]], member: str) -> list[tuple[str, str]]:
    """Labels of cells that differ in nothing but that the first has the member."""
    cells = {tuple(sorted(cell.levels.items())): cell.label for cell in header.cells}
    pairs = []
    for cell, (level, items) in product(header.cells, sets.items()):
        mine = sets.get(cell.levels.get(factor, ""))
        if mine is not None and member in mine and items == mine - {member}:
            other = cells.get(tuple(sorted({**cell.levels, factor: level}.items())))
            pairs += [(cell.label, other)] if other else []
    return pairs


def _gains(pairs: list[tuple[str, str]], values: Mapping[str, Mapping[int, float]]) -> NDArray[np.float64]:
    """(seeds,) the mean over pairs of with - without, of the seeds that finished in all of them."""
    if not pairs:
        return np.empty(0)
    common = sorted(set.intersection(*(set(values[label]) for pair in pairs for label in pair)))
    return np.array([np.mean([values[a][seed] - values[b][seed] for a, b in pairs]) for seed in common], np.float64)
