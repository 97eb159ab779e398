"""Tables of mean ± standard deviation over seeds, and differences to a baseline, from the confirm phase alone.

Numbers only; how they are laid out and rounded is `layout`'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas

from analysis.results import Cell, Published, PublishedValue, ResultsError, StudyHeader
from analysis.statistics import holm, mean_std, paired_difference, smallest_possible_p

DASH = "–"
_MOST_PAIRS_TO_WARN = 5  # at six pairs an exact test can reach 0.05


# -------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Outcome:
    """How many of a cell's replicates ended in one way, and why (cause "" where there is nothing to say)."""

    outcome: str  # finished, diverged, crashed, blocked; "no value" and "not run" are this module's
    cause: str
    count: int


@dataclass(frozen=True)
class CellValue:
    """Mean and sample standard deviation (NaN below two) over the n replicates that finished."""

    mean: float
    std: float
    n: int
    n_expected: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Table:
    """One metric over rows and columns of level labels; None where the study has no such cell."""

    study: str
    metric: str
    row_factors: tuple[str, ...]  # () where the only row is "all"
    column_factors: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[tuple[str, ...], ...]
    values: tuple[tuple[CellValue | None, ...], ...]  # (rows, columns)
    published: tuple[tuple[PublishedValue | None, ...], ...] | None  # as `values`
    percent: bool
    notes: tuple[str, ...]


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


@dataclass(frozen=True)
class Differences:
    """Every cell against its baseline, for one metric."""

    study: str
    metric: str
    baseline: str
    rows: tuple[Difference, ...]
    percent: bool
    notes: tuple[str, ...]


class Replicate(NamedTuple):
    """What one replicate of a cell came to; `value` is NaN where there is none."""

    seeds: tuple[int, int, int]  # seed, pretraining seed, fine-tuning seed; -1 where seeds are not nested
    outcome: str
    cause: str
    value: float

    @property
    def pretraining(self) -> int:
        """The seed that separates independent replicates: that of the pretraining, where seeds are nested."""
        seed, pretrain, _ = self.seeds
        return seed if pretrain < 0 else pretrain


def build(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Table:
    """The table of `metric`, from the confirm phase's fine-tunings (or probes, for a metric "probe/...").

    Rows and columns follow the study's report section: by default all factors but the last, and the last; a factor
    named in neither becomes a row. Raises ResultsError for an unknown factor or a metric that no finished run reports.
    """
    found = replicates(results, header, metric)
    row_factors, column_factors = _layout(header)
    rows, columns = _labels(header, row_factors), _labels(header, column_factors)
    expected = header.pretrainings if _is_probe(metric) else header.replicates
    by_levels = {
        _key(cell, row_factors + column_factors): _summary(found[cell.label], expected) for cell in header.cells
    }
    values = tuple(tuple(by_levels.get(row + column) for column in columns) for row in rows)
    published, notes = _lay_out_published(header.published, metric, rows, columns)
    return Table(
        study=header.study,
        metric=metric,
        row_factors=row_factors,
        column_factors=column_factors,
        rows=rows,
        columns=columns,
        values=values,
        published=published,
        percent=header.report.percent and not lower_is_better(metric),
        notes=(*_nested_note(header, metric), *notes),
    )


def differences(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Differences:
    """Each cell's paired difference to its baseline cell, with t interval and Holm-corrected p.

    A cell's baseline is the cell with the baseline's levels in its place and all other levels its own, so that a
    baseline that names no labels level is compared within each labels level. Pairs are equal seeds; nested
    fine-tunings are first averaged per pretraining, which is what is independent. Raises ResultsError where the study
    names no baseline, or one that is not among its cells.
    """
    found = replicates(results, header, metric)
    rows, notes = [], []
    for cell, baseline in _against_baseline(header):
        ours, theirs = _paired(found[cell.label], found[baseline.label])
        if ours:
            rows.append((cell.label, baseline.label, *paired_difference(ours, theirs)))
        else:
            notes.append(f"{cell.label}: no seed finished both here and in the baseline {baseline.label}")
    corrected = holm([row[5] for row in rows])
    done = tuple(Difference(*row[:6], float(p), row[6]) for row, p in zip(rows, corrected, strict=True))
    return Differences(
        study=header.study,
        metric=metric,
        baseline=" ".join(f"{factor}={level}" for factor, level in header.report.baseline.items()),
        rows=done,
        percent=header.report.percent and not lower_is_better(metric),
        notes=(*_few_pairs_note(done), *notes),
    )


def replicates(results: pandas.DataFrame, header: StudyHeader, metric: str) -> dict[str, tuple[Replicate, ...]]:
    """Cell label -> its replicates of the confirm phase in seed order, failed ones included."""
    runs = _stage_runs(results, metric)
    _require_metric(runs, metric)
    collected: dict[str, dict[tuple[int, int, int], Replicate]] = {cell.label: {} for cell in header.cells}
    for row in _records(runs):
        replicate = _replicate(row, metric)
        for label in _cells_of(row, header):
            known = collected[label].get(replicate.seeds)
            if known is None or math.isnan(known.value):  # a run has one row per metric: keep the one asked for
                collected[label][replicate.seeds] = replicate
    return {label: tuple(by_seed[seeds] for seeds in sorted(by_seed)) for label, by_seed in collected.items()}


def _records(runs: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in runs.to_dict("records")]


def lower_is_better(metric: str) -> bool:
    """A loss is minimised; every other metric is a fraction to be maximised."""
    return "loss" in metric.rsplit("/", 1)[-1]


# ------------------------------------------------------------------------------------------ from rows to replicates


def _is_probe(metric: str) -> bool:
    return metric.startswith(("probe/", "probe:"))


def _stage_runs(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Confirm-phase rows of the stage that reports `metric`; a probe named in the metric leaves out the others."""
    confirm = results[results["phase"] == "confirm"]
    if not _is_probe(metric):
        return confirm[confirm["stage"] == "finetune"]
    probes = confirm[confirm["stage"].str.startswith("probe:")]
    named = probes[probes["stage"] == "probe:" + metric[len("probe/") :].split("/")[0]]
    runs = probes if named.empty else named
    reporting = sorted(set(runs.loc[runs["metric"].map(lambda name: _same_metric(name, metric)), "stage"]))
    if len(reporting) > 1:
        raise ResultsError(f"{metric} is reported by {', '.join(reporting)}: name one, as in probe/NAME/METRIC")
    return runs[runs["stage"] == reporting[0]] if reporting else runs


def _same_metric(name: str, metric: str) -> bool:
    """A probe's accuracy may be stored under its full name or as the last part alone."""
    return name == metric or (_is_probe(metric) and name == metric.split("/", 2)[-1])


def _require_metric(runs: pandas.DataFrame, metric: str) -> None:
    """A metric that no finished run reports is a mistake in its name; without finished runs it cannot be told."""
    names = sorted({name for name in runs.loc[runs["outcome"] == "finished", "metric"] if name})
    if names and not any(_same_metric(name, metric) for name in names):
        raise ResultsError(f"no confirmed run reports {metric!r}: choose from {', '.join(names)}")


def _replicate(row: dict[str, Any], metric: str) -> Replicate:
    asked = _same_metric(str(row["metric"]), metric) and row["outcome"] == "finished"
    seeds = (_seed(row["seed"]), _seed(row.get("seed_pretrain")), _seed(row.get("seed_finetune")))
    value = row["value"]
    return Replicate(
        seeds=seeds,
        outcome=str(row["outcome"]),
        cause="" if _is_missing(row["cause"]) else str(row["cause"]),
        value=float(value) if asked and isinstance(value, (int, float)) else math.nan,
    )


def _is_missing(value: object) -> bool:
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))


def _seed(value: Any) -> int:
    return -1 if _is_missing(value) else int(value)


def _cells_of(row: dict[str, Any], header: StudyHeader) -> list[str]:
    """The cell a row names; a run shared by several cells names none, and belongs to all with its factor levels."""
    if row["cell"] and not _is_missing(row["cell"]):
        return [cell.label for cell in header.cells if cell.label == row["cell"]]
    levels = {factor: row.get(f"factor.{factor}") for factor in header.factors}
    known = {factor: level for factor, level in levels.items() if not _is_missing(level)}
    return [cell.label for cell in header.cells if all(cell.levels.get(f) == level for f, level in known.items())]


# ---------------------------------------------------------------------------------------- from replicates to values


def _layout(header: StudyHeader) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Row factors and column factors; together they are all of the study's factors."""
    factors, report = tuple(header.factors), header.report
    _require_factors([*(report.rows or ()), *(report.columns or ())], factors)
    if report.columns is not None:
        columns = report.columns
    else:
        columns = tuple(factor for factor in factors[-1:] if factor not in (report.rows or ()))
    rows = report.rows or ()
    return rows + tuple(factor for factor in factors if factor not in rows + columns), columns


def _require_factors(named: Sequence[str], factors: Sequence[str]) -> None:
    for name in named:
        if name not in factors:
            raise ResultsError(f"{name!r} is no factor of this study: choose from {', '.join(factors) or '(none)'}")
        if named.count(name) > 1:
            raise ResultsError(f"the factor {name!r} stands in the report's rows and columns more than once")


def _key(cell: Cell, factors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(cell.levels.get(factor, "") for factor in factors)


def _labels(header: StudyHeader, factors: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Level labels in the study's order, without combinations that no cell has; one empty label without factors."""
    present = {_key(cell, factors) for cell in header.cells}
    orders = [
        dict.fromkeys((*header.factors[factor], "")) for factor in factors
    ]  # "": a cell that the factor does not reach
    return tuple(labels for labels in product(*orders) if labels in present)


def _summary(found: tuple[Replicate, ...], expected: int) -> CellValue:
    values = [replicate.value for replicate in found if not math.isnan(replicate.value)]
    mean, std, n = mean_std(values) if values else (math.nan, math.nan, 0)
    ends = Counter((_end(replicate), replicate.cause) for replicate in found)
    outcomes = [Outcome(outcome, cause, count) for (outcome, cause), count in ends.items()]
    if len(found) < expected:
        outcomes.append(Outcome("not run", "", expected - len(found)))
    return CellValue(mean, std, n, expected, tuple(outcomes))


def _end(replicate: Replicate) -> str:
    unreported = replicate.outcome == "finished" and math.isnan(replicate.value)
    return "no value" if unreported else replicate.outcome


def _nested_note(header: StudyHeader, metric: str) -> tuple[str, ...]:
    if _is_probe(metric) or header.pretrainings == header.replicates:
        return ()
    each = header.replicates // header.pretrainings
    return (f"nested seeds: n counts fine-tunings, {each} for each of {header.pretrainings} pretrainings",)


def _lay_out_published(
    published: Published | None, metric: str, rows: Sequence[tuple[str, ...]], columns: Sequence[tuple[str, ...]]
) -> tuple[tuple[tuple[PublishedValue | None, ...], ...] | None, tuple[str, ...]]:
    """Published values in the table's places, and notes on them; a value without a place is said so."""
    if published is None or published.metric != metric:
        return None, ()
    by_labels = {value.labels: value for value in published.values}
    placed = tuple(tuple(by_labels.get(row + column) for column in columns) for row in rows)
    lost = by_labels.keys() - {row + column for row in rows for column in columns}
    notes = [f"published: {published.note}"] if published.note else []
    notes += [f"published for {' / '.join(labels)}, which is no cell of this study" for labels in sorted(lost)]
    return placed, tuple(notes)


def _against_baseline(header: StudyHeader) -> list[tuple[Cell, Cell]]:
    """Every cell that is not a baseline, with its baseline; cells whose baseline the study leaves out are skipped."""
    wanted = header.report.baseline
    if not wanted:
        raise ResultsError("the study names no baseline: write one under report, as in baseline: {encoder: unfrozen}")
    cells = {tuple(sorted(cell.levels.items())): cell for cell in header.cells}
    targets = [(cell, cells.get(tuple(sorted({**cell.levels, **wanted}.items())))) for cell in header.cells]
    pairs = [(cell, target) for cell, target in targets if target is not None and target != cell]
    if all(target is None for _, target in targets):
        named = " ".join(f"{factor}={level}" for factor, level in wanted.items())
        raise ResultsError(f"the baseline {named} is not among the study's cells: check its levels")
    return pairs


def _paired(cell: tuple[Replicate, ...], baseline: tuple[Replicate, ...]) -> tuple[list[float], list[float]]:
    """Values of seeds that finished in both, averaged over the fine-tunings of one pretraining."""
    theirs = {replicate.seeds: replicate.value for replicate in baseline}
    groups: dict[int, list[tuple[float, float]]] = {}
    for replicate in cell:
        pair = (replicate.value, theirs.get(replicate.seeds, math.nan))
        if not any(map(math.isnan, pair)):
            groups.setdefault(replicate.pretraining, []).append(pair)
    means = [np.mean(pairs, axis=0) for pairs in groups.values()]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def _few_pairs_note(rows: Sequence[Difference]) -> tuple[str, ...]:
    fewest = min((row.n for row in rows), default=_MOST_PAIRS_TO_WARN + 1)
    if fewest > _MOST_PAIRS_TO_WARN:
        return ()
    reachable = f"{smallest_possible_p(fewest):.2g}"
    assumed = f"n={fewest}: p and interval lean on normal differences"
    return (f"{assumed}; an exact sign-flip test cannot fall below p={reachable}",)
