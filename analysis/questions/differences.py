"""Every cell against its baseline cell: paired differences with interval, test, effect size and what n can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas

from pretune.analysis.digits import few
from pretune.analysis.load.replicates import ReplicateResult, any_failed, held_note, is_probe, replicate_results
from pretune.analysis.load.results import ResultsError, StoredCell, StudyHeader
from pretune.analysis.statistics import (
    ALPHA,
    MOST_RUNS_TO_ENUMERATE,
    Equivalence,
    cohen_d,
    detectable_difference,
    holm,
    mean_std,
    paired_difference,
    seeds_needed,
    sign_flip_test,
    smallest_possible_p,
    tost,
)

_NOT_ASKED = Equivalence(math.nan, math.nan, math.nan, math.nan, False, 0)


class Difference(NamedTuple):
    """Paired difference of a cell to its baseline cell: positive where the cell's metric is higher."""

    cell: str
    baseline: str
    difference: float
    low: float  # 95 % t interval
    high: float
    p: float
    p_holm: float  # Holm-corrected over all rows
    n: int  # pairs: seeds, or pretrainings where seeds are nested
    g: float = math.nan  # Hedges' g of the paired differences; NaN below three pairs
    p_exact: float = math.nan  # exact sign-flip test, not corrected; NaN above 22 pairs
    p_equivalent: float = math.nan  # two one-sided t-tests within the study's margin, Holm-corrected
    std: float = math.nan  # of the paired differences; NaN for one pair
    equivalent_low: float = (
        math.nan
    )  # 90 % t interval: inside the margin exactly where p of equivalence alone is < 0.05
    equivalent_high: float = math.nan
    flattered: bool = False  # the side that comes out better lost replicates to failures: nothing is claimed

    @property
    def shown(self) -> bool:
        """Whether a difference is claimed: Holm's p is below 5 %, and no failure may have made it."""
        return self.p_holm < ALPHA and not self.flattered


@dataclass(frozen=True)
class Differences:
    """Every cell against its baseline, for one metric."""

    study: str
    metric: str
    baseline: str
    rows: tuple[Difference, ...]
    percent: bool
    notes: tuple[str, ...]
    margin: float | None = None  # below which a difference makes none, where the study declares one


class _Pairs(NamedTuple):
    cell: str
    baseline: str
    ours: list[float]
    theirs: list[float]
    unpaired: int  # runs that finished on one side alone


def differences_of(results: pandas.DataFrame, header: StudyHeader) -> dict[str, Differences]:
    """Metric of the report -> its comparisons with the baseline; empty for a study without one."""
    if not header.report.baseline:
        return {}
    return {metric: differences(results, header, metric) for metric in header.report.metrics}


def differences(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Differences:
    """Each cell's paired difference to its baseline cell, with t interval and Holm-corrected p.

    A cell's baseline is the cell with the baseline's levels in its place and all other levels its own, so that a
    baseline that names no labels level is compared within each labels level. Pairs are equal seeds; nested
    fine-tunings are first averaged per pretraining, which is what is independent. Raises ResultsError where the study
    names no baseline, or one that is not among its cells.
    """
    found = replicate_results(results, header, metric)
    every = [
        _Pairs(a.label, b.label, *paired_values(found[a.label], found[b.label])) for a, b in _against_baseline(header)
    ]
    pairs = [pair for pair in every if pair.ours]
    better = {"maximize": 1, "minimize": -1, None: 0}[header.definition(metric).direction]
    failed = {label for label, runs in found.items() if any_failed(runs)}
    rows = tuple(_with_failures(row, failed, better) for row in _rows(pairs, header.report.margin))
    percent = header.in_percent(metric)
    missing = [
        f"{pair.cell}: no seed finished in both this cell and the baseline {pair.baseline}"
        for pair in every
        if not pair.ours
    ]
    return Differences(
        study=header.title,
        metric=metric,
        baseline=" ".join(f"{factor}={level}" for factor, level in header.report.baseline.items()),
        rows=rows,
        percent=percent,
        notes=(
            *_few_pairs_note(rows),
            *_out_of_range(rows, header.definition(metric).span),
            *_no_spread_note(pairs),
            *_flattered_note(rows),
            *_unpaired_note(pairs, nested=header.pretrainings < header.replicates and not is_probe(metric)),
            *_power_note(pairs, sum(math.isfinite(row.p) for row in rows), percent),
            *missing,
            *held_note(header),
        ),
        margin=header.report.margin,
    )


def _rows(pairs: Sequence[_Pairs], margin: float | None) -> tuple[Difference, ...]:
    tests = [paired_difference(pair.ours, pair.theirs) for pair in pairs]
    corrected = holm([test.p for test in tests])
    same = [tost(pair.ours, pair.theirs, margin) if margin else _NOT_ASKED for pair in pairs]
    return tuple(
        Difference(
            pair.cell, pair.baseline, *test[:4], float(p), test.n,
            g=cohen_d(pair.ours, pair.theirs).g, p_exact=_exact_p(pair), p_equivalent=float(equivalent),
            std=mean_std(np.subtract(pair.ours, pair.theirs)).std,
            equivalent_low=alike.low, equivalent_high=alike.high,
        )
        for pair, test, p, alike, equivalent in zip(
            pairs, tests, corrected, same, holm([alike.p for alike in same]), strict=True
        )
    )  # fmt: skip


def _with_failures(row: Difference, failed: set[str], better: int) -> Difference:
    """`better`: 1 where higher is better, -1 where lower is, 0 where neither is: then a failure on any side counts."""
    sides = {row.cell} if better * row.difference > 0 else {row.baseline} if better else {row.cell, row.baseline}
    return row._replace(flattered=bool(sides & failed))


def _flattered_note(rows: Sequence[Difference]) -> tuple[str, ...]:
    """A note on rows that would be called differences but for failures."""
    names = [row.cell for row in rows if row.flattered and row.p_holm < ALPHA]
    if not names:
        return ()
    return (
        "replicates of the better side failed and may have been its worst, so no difference is claimed for: "
        f"{few(names, 4)}",
    )


def _exact_p(pair: _Pairs) -> float:
    return sign_flip_test(pair.ours, pair.theirs).p if len(pair.ours) <= MOST_RUNS_TO_ENUMERATE else math.nan


def _against_baseline(header: StudyHeader) -> list[tuple[StoredCell, StoredCell]]:
    """Every cell that is not a baseline, with its baseline; cells whose baseline the study leaves out are skipped."""
    wanted = header.report.baseline
    if not wanted:
        raise ResultsError(
            "the study names no baseline: add one under `report`, for example baseline: {encoder: unfrozen}"
        )
    cells = {tuple(sorted(cell.levels.items())): cell for cell in header.cells}
    targets = [(cell, cells.get(tuple(sorted({**cell.levels, **wanted}.items())))) for cell in header.cells]
    pairs = [(cell, target) for cell, target in targets if target is not None and target != cell]
    if all(target is None for _, target in targets):
        named = " ".join(f"{factor}={level}" for factor, level in wanted.items())
        raise ResultsError(f"the baseline {named} is not among the study's cells: check its levels")
    return pairs


def paired_values(
    cell: tuple[ReplicateResult, ...], baseline: tuple[ReplicateResult, ...]
) -> tuple[list[float], list[float], int]:
    """Values of seeds that finished in both, averaged over the fine-tunings of one pretraining; runs without a partner.

    Fine-tunings are paired before they are averaged: one that is missing on a side is taken from the other too, or a
    hard label subset that was lost here would pass for a difference.
    """
    ours, theirs = ({run.seeds: run for run in side if math.isfinite(run.value)} for side in (cell, baseline))
    groups: dict[int, list[tuple[float, float]]] = {}
    for seeds in sorted(ours.keys() & theirs.keys()):
        pair = (ours[seeds].value, theirs[seeds].value)
        groups.setdefault(ours[seeds].pretraining, []).append(pair)
    means = [np.mean(groups[seed], axis=0) for seed in sorted(groups)]
    unpaired = len(ours.keys() ^ theirs.keys())
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means], unpaired


def _few_pairs_note(rows: Sequence[Difference]) -> tuple[str, ...]:
    tests = sum(math.isfinite(row.p) for row in rows)
    counts = sorted({row.n for row in rows if math.isfinite(row.p) and smallest_possible_p(row.n) * tests > ALPHA})
    alone = sum(row.n == 1 for row in rows)
    said = [f"{alone} of {len(rows)} rows have n=1, so no interval and no test"] if alone else []
    if counts:
        ends = counts[:1] + counts[1:][-1:]
        reachable = " to ".join(f"{smallest_possible_p(n):.2g}" for n in ends)
        if tests > 1:
            least = " to ".join(f"{min(1.0, tests * smallest_possible_p(n)):.2g}" for n in ends)
            reachable += f" ({least} after Holm over {tests})"
        seeds = "n=" + " to ".join(map(str, ends))
        assumed = f"{seeds}: p-values and intervals assume normally distributed differences"
        said.append(f"{assumed}; an exact sign-flip test, which does not, gives p of at least {reachable}")
    return tuple(said)


def _out_of_range(rows: Sequence[Difference], span: float) -> tuple[str, ...]:
    if not any(row.low < -span or row.high > span for row in rows):
        return ()
    known = f"what two values of this metric can differ by, -{span:g} to {span:g}"
    return (f"an interval goes beyond {known}; t intervals do not respect bounds",)


def _no_spread_note(pairs: Sequence[_Pairs]) -> tuple[str, ...]:
    """Rows whose differences are all equal, of which no test can say anything."""
    several = [pair for pair in pairs if len(pair.ours) > 1]
    same = [p.cell for p in several if np.ptp(d := np.subtract(p.ours, p.theirs)) == 0 and d[0] == 0]
    copies = [p.cell for p in several if np.ptp(d := np.subtract(p.ours, p.theirs)) == 0 and d[0] != 0]
    said = [f"no spread at all: every seed of {few(same, 4)} scores the same as the baseline"] if same else []
    return (
        *said,
        *(
            [f"no spread at all: every seed of {few(copies, 4)} differs from the baseline by the same amount"]
            if copies
            else []
        ),
    )


def _unpaired_note(pairs: Sequence[_Pairs], nested: bool) -> tuple[str, ...]:
    """Say where a difference is not that of the table's two means."""
    alone = [f"{pair.cell} ({pair.unpaired})" for pair in pairs if pair.unpaired]
    if not alone:
        return ()
    what = "fine-tunings" if nested else "seeds"
    return (
        f"{what} that finished only in the cell or only in its baseline have no partner and are excluded here, so a "
        f"difference may deviate from that of the table's means; excluded: {few(alone)}",
    )


def _power_note(pairs: Sequence[_Pairs], tests: int, percent: bool) -> tuple[str, ...]:
    """A note on what the fewest pairs can find at the median spread of differences, and what one point would take."""
    spreads = [mean_std(np.subtract(pair.ours, pair.theirs)).std for pair in pairs if len(pair.ours) > 1]
    spreads = [spread for spread in spreads if spread > 1e-9]  # without those of copies of one run
    if not spreads:
        return ()
    spread = float(np.median(spreads))
    n = min(len(pair.ours) for pair in pairs if len(pair.ours) > 1)
    found, strictest = (detectable_difference(n, spread, alpha=ALPHA / m) for m in (1, tests))
    shown, most = (f"{100 * least:.1f} points" if percent else f"{least:.3f}" for least in (found, strictest))
    one = "1 point" if percent else "0.01"
    said = f"with {n} seeds and the median spread of these differences, the smallest detectable difference (power 0.8) "
    said += f"is {shown} for one test at 5 % ({one} needs {_seeds(0.01, spread)})"
    return (said + (f"; with Holm over {tests}, up to {most}" if tests > 1 else ""),)


def _seeds(difference: float, spread: float) -> str:
    try:
        return f"{seeds_needed(difference, spread):,} seeds"
    except ValueError:
        return "more than a million seeds"
