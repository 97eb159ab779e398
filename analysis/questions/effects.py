"""Main effects and interactions of a study's factors: repeated-measures analysis of variance with seeds as blocks.

Every cell is run at the same seeds, so a seed is a block: what it does to all cells alike is no part of any effect's
error. Each effect is tested against its own interaction with the seed. For a factor of two levels this is the paired
t-test of its average difference (F = t^2), exact also where cells differ in their spread; for more levels the degrees
of freedom carry Greenhouse and Geisser's (1959) correction for that. Equal to statsmodels' AnovaRM, which has no such
correction; `benchmarks/coverage.py` measures how often the tests err.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import ArrayLike
from scipy import linalg, stats

from pretune.analysis.digits import decimals, few, number
from pretune.analysis.load.replicates import held_note, independent_values, replicate_results
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.statistics import ALPHA, Array, detectable_difference, holm

_FEWEST_SEEDS = 5  # below it, only effects of several standard deviations can show


class Effect(NamedTuple):
    """One line of the analysis of variance; NaN where there is no test."""

    factors: tuple[str, ...]  # one: a main effect; more: their interaction
    size: float  # largest minus smallest term of the effect; of a factor with two levels: the difference of their means
    f: float
    df: float  # degrees of freedom before the correction, of the effect ...
    df_error: float  # ... and of its error
    epsilon: float  # Greenhouse and Geisser's correction of both, between 1 / df and 1
    p: float
    eta: float  # share of the variance of effect and error, adjusted: 0 on average where there is no effect


@dataclass(frozen=True)
class Effects:
    """The analysis of variance of one metric. Without lines where it cannot be made, and a note that says why."""

    study: str
    metric: str
    rows: tuple[Effect, ...]
    p_holm: tuple[float, ...]  # over all rows
    levels: Mapping[str, tuple[tuple[str, float], ...]]  # factor -> (level, its mean over all other factors and seeds)
    n: int  # seeds that finished in every cell
    percent: bool
    notes: tuple[str, ...]


def analysis_of_variance(values: ArrayLike, sizes: Mapping[str, int]) -> tuple[Effect, ...]:
    """Every main effect and interaction of crossed factors.

    `values` is (seeds, cells), cells in the order of `itertools.product` over the factors, whose numbers of levels are
    `sizes`. Raises ValueError where the shapes do not fit; a single seed gives effects without tests.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not len(table) or table.shape[1] != math.prod(sizes.values()):
        raise ValueError(f"expected (seeds, {math.prod(sizes.values())}) values, not {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("values must be finite: leave out seeds that did not finish in every cell")
    names = [name for name in sizes if sizes[name] > 1]
    chosen = [part for count in range(1, len(names) + 1) for part in combinations(names, count)]
    return tuple(_effect(table, sizes, part) for part in chosen)


def _effect(table: Array, sizes: Mapping[str, int], part: tuple[str, ...]) -> Effect:
    """Orthonormal contrasts of the effect: their means are the effect, their spread over seeds its error."""
    parts = [linalg.helmert(k) if name in part else np.full((1, k), k**-0.5) for name, k in sizes.items()]
    contrasts = reduce(np.kron, parts)  # (df, cells)
    scores = table @ contrasts.T  # (seeds, df)
    terms = scores.mean(axis=0) @ contrasts
    n, df = scores.shape
    effect = n * float(np.sum(scores.mean(axis=0) ** 2))
    error = float(np.sum((scores - scores.mean(axis=0)) ** 2))
    df_error, size = float(df * (n - 1)), float(np.ptp(terms))
    if n < 2 or math.sqrt(error) <= 1e-12 * float(np.abs(table).max()):  # rounding, not spread
        return Effect(part, size, math.nan, float(df), df_error, math.nan, math.nan, math.nan)
    f = (effect / df) / (error / df_error)
    epsilon = _greenhouse_geisser(np.cov(scores, rowvar=False).reshape(df, df))
    p = float(stats.f.sf(f, epsilon * df, epsilon * df_error))
    eta = max(0.0, 1 - error / (effect + error) * (df + df_error) / df_error)
    return Effect(part, size, f, float(df), df_error, epsilon, p, eta)


def _greenhouse_geisser(covariance: Array) -> float:
    """1 where all contrasts vary equally and independently, 1 / df where they move as one."""
    return float(np.trace(covariance) ** 2 / (len(covariance) * np.sum(covariance**2)))


# --------------------------------------------------------------------------------------------------- of a study


def effects(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Effects:
    """Main effects and interactions of the study's factors, over the seeds that finished in every cell.

    Nested fine-tunings are averaged per pretraining. Raises ResultsError as `replicates` does.
    """
    sizes = {name: len(levels) for name, levels in header.factors.items() if len(levels) > 1}
    percent = header.in_percent(metric)
    table, notes = _complete(results, header, metric, tuple(sizes))
    if table is None or len(sizes) < 2:
        return Effects(header.title, metric, (), (), {}, 0, percent, notes)
    rows = analysis_of_variance(table, sizes)
    corrected = tuple(float(p) for p in holm([row.p for row in rows]))
    levels = {name: _level_means(table, sizes, name, header.factors[name]) for name in sizes}
    notes += (*_no_spread(rows, len(table)), *(_small(len(table)) if len(table) < 2 or _tested(rows) else ()))
    return Effects(header.title, metric, rows, corrected, levels, len(table), percent, (*notes, *held_note(header)))


def _complete(
    results: pandas.DataFrame, header: StudyHeader, metric: str, factors: tuple[str, ...]
) -> tuple[Array | None, tuple[str, ...]]:
    """(seeds, cells) of the seeds that finished everywhere, and notes; None where factors are not fully crossed."""
    found = replicate_results(results, header, metric)
    by_levels = {tuple(cell.levels.get(factor, "") for factor in factors): cell.label for cell in header.cells}
    crossed = list(product(*(header.factors[factor] for factor in factors)))
    if set(by_levels) != set(crossed) or len(by_levels) != len(header.cells):
        return None, (
            "no analysis of variance: not every level of a factor is combined with every level of the others",
        )
    values = [independent_values(found[by_levels[levels]]) for levels in crossed]
    common = sorted(set.intersection(*(set(seeds) for seeds in values)))
    dropped = sorted(set.union(*(set(seeds) for seeds in values)) - set(common))
    if not common:
        return None, ("no analysis of variance: no seed finished in every cell",)
    notes = (f"seeds {', '.join(map(str, dropped))} did not finish in every cell and are excluded",) if dropped else ()
    return np.array([[seeds[seed] for seeds in values] for seed in common], np.float64), notes


def _level_means(
    table: Array, sizes: Mapping[str, int], factor: str, labels: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    cells = table.mean(axis=0).reshape(tuple(sizes.values()))
    others = tuple(axis for axis, name in enumerate(sizes) if name != factor)
    return tuple(zip(labels, map(float, cells.mean(axis=others)), strict=True))


def _small(n: int) -> tuple[str, ...]:
    if n < 2:
        return ("one seed: effects have a size but no test",)
    if n >= _FEWEST_SEEDS:
        return ()
    least = detectable_difference(n, 1.0)
    return (
        f"n={n} is small: with power 0.8, one test at 5 % detects an effect of two levels only above {least:.1f} "
        "standard deviations of its seeds; with more levels, or with Holm over several effects, it must be larger",
    )


def _tested(rows: Sequence[Effect]) -> list[Effect]:
    return [row for row in rows if math.isfinite(row.p)]


def _no_spread(rows: Sequence[Effect], n: int) -> tuple[str, ...]:
    alike = [" × ".join(row.factors) for row in rows if not math.isfinite(row.p)] if n > 1 else []
    return (f"no test, because nothing varies over seeds: {few(alike)}",) if alike else ()


def sentences(found: Effects) -> tuple[str, ...]:
    """The table in words: what interacts, which factors have an effect, and what was not shown; its notes are apart."""
    if not found.rows or found.n < 2:
        return ()
    tested = list(zip(found.rows, found.p_holm, strict=True))
    shown = [(row, p) for row, p in tested if p < ALPHA]
    said = [_interaction(row, p) if len(row.factors) > 1 else _main(row, p, found) for row, p in shown]
    rest = [" × ".join(row.factors) for row, p in tested if p >= ALPHA]
    if rest:
        said.append(f"Not shown at n={found.n} (an effect may still exist): {', '.join(rest)}.")
    return tuple(said)


def effect_digits(found: Effects) -> int:
    """Decimals of a fraction, in the table and in sentences alike."""
    return max(3, decimals([row.size for row in found.rows]))


def main_effects(found: Effects) -> tuple[str, ...]:
    """One sentence for each factor: what it does on average over the others, and which factors that depends on."""
    if not found.rows or found.n < 2:
        return ()
    tested = list(zip(found.rows, found.p_holm, strict=True))
    with_others = [set(row.factors) for row, p in tested if len(row.factors) > 1 and p < ALPHA]
    said = []
    for row, p in tested:
        if len(row.factors) == 1:
            (name,) = row.factors
            others = sorted(set().union(*(part for part in with_others if name in part)) - {name})
            doubt = (
                f" The effect depends on {' and '.join(others)}: read the cells, not the averages." if others else ""
            )
            said.append((_main(row, p, found) if p < ALPHA else _no_main(row, p, found)) + doubt)
    return tuple(said)


def _no_main(row: Effect, p: float, found: Effects) -> str:
    if not math.isfinite(p):
        return f"{row.factors[0]} on average: no test, as nothing varies over {found.n} seeds: {_range(row, found)}."
    return f"{row.factors[0]} is not shown to have an effect on average ({_p(p)}, n={found.n}): {_range(row, found)}."


def _interaction(row: Effect, p: float) -> str:
    several = ", ".join(row.factors[:-1]) + " and " + row.factors[-1]
    doubt = "the effect of one depends on the level of the other, so read the cells, not the averages"
    return f"{several} interact ({_p(p)}): {doubt}."


def _main(row: Effect, p: float, found: Effects) -> str:
    return f"{row.factors[0]} has an effect on average ({_p(p)}): {_range(row, found)}."


def _range(row: Effect, found: Effects) -> str:
    ordered = sorted(found.levels[row.factors[0]], key=lambda level: level[1])
    (low, least), (high, most) = ordered[0], ordered[-1]
    first, last = (number(mean, effect_digits(found), found.percent) for mean in (least, most))
    unit = " percent" if found.percent else ""
    return f"from {first} ({low}) to {last} ({high}){unit}"


def _p(p: float) -> str:
    return "p < 0.001, Holm" if p < 0.001 else f"p = {p:.3f}, Holm"
