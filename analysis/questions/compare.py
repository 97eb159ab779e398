"""Studies side by side: means of every cell, and differences of cells of equal label to the first study.

Seeds are paired where the same seed means the same images: equal content of the data, equal split, equal design of the
seeds. Then a difference is that of a study's own table, a paired t-test. Elsewhere equal seed numbers have nothing in
common; Welch's test needs no pairing, at the price of a wider interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
from numpy.typing import ArrayLike
from scipy import stats

from pretune.analysis.digits import few
from pretune.analysis.load.replicates import (
    FINISHED,
    ReplicateResult,
    any_failed,
    cells_of,
    independent_values,
    is_probe,
    replicate_results,
)
from pretune.analysis.load.results import ResultsError
from pretune.analysis.load.runs import title_of
from pretune.analysis.load.studies import StoredStudy, load_studies
from pretune.analysis.questions.differences import paired_values
from pretune.analysis.questions.differing import StudyDifferences, study_differences
from pretune.analysis.statistics import ALPHA, Interval, MeanStd, holm, mean_std, paired_difference, t_interval
from pretune.search_spaces.metrics import parts_of
from pretune.search_spaces.schema import Configuration, Data

_TEST_IMAGES = ", and with it perhaps the test images"
_VALIDATION = {"val", "val_folds", "val_fold"}  # settings of a split that leave the test images as they are
Replicates = Mapping[str, tuple[ReplicateResult, ...]]  # cell -> its replicates


class Welch(NamedTuple):
    """Difference of two means with unequal variances; NaN where either side has one run."""

    difference: float  # mean of b - mean of a
    low: float  # 95 % interval
    high: float
    p: float  # two-sided


class StudyCell(NamedTuple):
    """One cell in one study."""

    mean: MeanStd
    interval: Interval  # 95 % t interval of the mean
    expected: int  # independent values that were planned


class CellDifference(NamedTuple):
    """A cell of another study against the same cell of the first: positive where the metric is higher there."""

    cell: str
    study: str
    difference: float
    low: float  # 95 % interval
    high: float
    p: float  # two-sided
    p_holm: float  # Holm-corrected over all rows of the metric
    pairs: int  # seeds that finished in both; 0 where they are not paired
    unpaired: int = 0  # runs of a paired row that finished on one side alone
    std: float = math.nan  # of the paired differences
    same_runs: bool = False  # all values compared come from the same stage runs
    flattered: bool = False  # the side that comes out better lost replicates to failures: nothing is claimed

    @property
    def shown(self) -> bool:
        """Whether a difference is claimed: Holm's p is below 5 %, and no failure may have made it."""
        return self.p_holm < ALPHA and not self.flattered


@dataclass(frozen=True)
class MetricComparison:
    """All studies in one metric."""

    metric: str
    percent: bool  # where all studies print percent
    cells: tuple[str, ...]  # of all studies
    means: tuple[tuple[StudyCell | None, ...], ...]  # (cells, studies); None where a study has no value
    differences: tuple[CellDifference, ...]  # of common cells, to the first study
    unpaired: tuple[tuple[str, str, tuple[str, ...]], ...]  # study, why seeds are not paired, in which cells


@dataclass(frozen=True)
class Comparison:
    """Two studies or more. The first is the one that others are compared with."""

    names: tuple[str, ...]
    titles: tuple[str, ...]  # whole names, where `names` are letters
    metrics: tuple[MetricComparison, ...]
    differing: StudyDifferences
    shared: tuple[tuple[str, str], ...]  # study, and a clause on the confirmed stage runs that the first has too
    planned: tuple[tuple[str, tuple[str, ...]], ...]  # study, and its cells

    @property
    def only(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Study, and its cells that no other has, where it has any."""
        count = Counter(cell for _, cells in self.planned for cell in cells)
        own = ((name, tuple(cell for cell in cells if count[cell] == 1)) for name, cells in self.planned)
        return tuple((name, cells) for name, cells in own if cells)


def compare_folders(folders: Sequence[Path], metric: str | None = None) -> Comparison:
    """Compare studies' output folders in `metric`, or in every metric that all of them report.

    Raises ResultsError where results cannot be read, or no metric is common to all.
    """
    studies = load_studies(folders)
    asked = [study.header.report.metrics for study in studies]
    metrics = [metric] if metric else [name for name in asked[0] if all(name in other for other in asked[1:])]
    names = tuple(study.name for study in studies)
    if not metrics:
        raise ResultsError(
            f"{' and '.join(study.title for study in studies)} report no metric in common: name one with --metric"
        )
    return Comparison(
        names=names,
        titles=tuple(study.title for study in studies),
        metrics=tuple(_in_metric(studies, name) for name in metrics),
        differing=study_differences(studies),
        shared=tuple((one.name, said) for one in studies[1:] if (said := shared_runs(studies[0], one))),
        planned=tuple((study.name, tuple(cell.label for cell in study.header.cells)) for study in studies),
    )


def _in_metric(studies: Sequence[StoredStudy], metric: str) -> MetricComparison:
    found = [replicate_results(study.results, study.header, metric) for study in studies]
    labels = dict.fromkeys(cell for one in found for cell in one)
    means = tuple(
        tuple(
            study_cell(one.get(cell, ()), study.header.pretrainings) for study, one in zip(studies, found, strict=True)
        )
        for cell in labels
    )
    rows: list[CellDifference] = []
    unpaired: list[tuple[str, str, tuple[str, ...]]] = []
    for study, theirs in zip(studies[1:], found[1:], strict=True):
        more, whys = _against_first(studies[0], study, found[0], theirs, metric)
        rows += more
        unpaired += [(study.name, why, tuple(where)) for why, where in whys.items()]
    corrected = holm([row.p for row in rows])
    return MetricComparison(
        metric=metric,
        percent=all(study.header.in_percent(metric) for study in studies),
        cells=tuple(labels),
        means=means,
        differences=tuple(row._replace(p_holm=float(p)) for row, p in zip(rows, corrected, strict=True)),
        unpaired=tuple(unpaired),
    )


def study_cell(runs: tuple[ReplicateResult, ...], expected: int) -> StudyCell | None:
    """Mean and interval of a cell's independent values; None where it has none."""
    values = list(independent_values(runs).values())
    return StudyCell(mean_std(values), t_interval(values), expected) if values else None


def _against_first(
    first: StoredStudy, other: StoredStudy, ours: Replicates, theirs: Replicates, metric: str
) -> tuple[list[CellDifference], dict[str, list[str]]]:
    """Differences of the cells with values in both, and for those whose seeds are not paired why."""
    rows: list[CellDifference] = []
    whys: dict[str, list[str]] = {}
    runs = _runs_by_cell(first, metric), _runs_by_cell(other, metric)
    for cell in ours:
        a, b = (list(independent_values(side.get(cell, ())).values()) for side in (ours, theirs))
        if not a or not b:
            continue
        if why := why_not_paired(first, other, cell, metric):
            whys.setdefault(why, []).append(cell)
            found = welch(a, b)
            rows.append(CellDifference(cell, other.name, *found, math.nan, 0, same_runs=runs[0][cell] == runs[1][cell]))
        else:
            rows.append(_paired(other.name, cell, (theirs[cell], ours[cell]), runs))
    better = {"maximize": 1, "minimize": -1, None: 0}[first.header.definition(metric).direction]
    return [_checked(row, any_failed(ours[row.cell]), any_failed(theirs[row.cell]), better) for row in rows], whys


def _checked(row: CellDifference, first_failed: bool, other_failed: bool, better: int) -> CellDifference:
    """The row with its claims limited: none of the same stage runs, none that a failure may have made."""
    if row.same_runs:
        return row._replace(low=math.nan, high=math.nan, p=math.nan)
    ahead = better * row.difference
    lost = other_failed if ahead > 0 else first_failed if ahead < 0 else first_failed or other_failed
    return row._replace(flattered=lost)


def _paired(
    study: str,
    cell: str,
    sides: tuple[tuple[ReplicateResult, ...], tuple[ReplicateResult, ...]],
    runs: tuple[Mapping[str, set[str]], Mapping[str, set[str]]],
) -> CellDifference:
    theirs, ours, unpaired = paired_values(*sides)
    if not ours:
        return CellDifference(cell, study, math.nan, math.nan, math.nan, math.nan, math.nan, 0, unpaired)
    found = paired_difference(theirs, ours)
    finished = sum(math.isfinite(run.value) for side in sides for run in side)
    shared = len(runs[0][cell] & runs[1][cell])
    same = shared == (finished - unpaired) // 2 and bool(np.array_equal(theirs, ours))  # every run that has a partner
    std = mean_std(np.subtract(theirs, ours)).std
    return CellDifference(cell, study, *found[:4], math.nan, found.n, unpaired, std, same)


def _runs_by_cell(study: StoredStudy, metric: str) -> dict[str, set[str]]:
    """Cell -> fingerprints of the confirmed stage runs that report the metric."""
    results, header = study.results, study.header
    rows = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    kept = rows[rows["stage"].str.startswith("probe:" if is_probe(metric) else "finetune")]
    found: dict[str, set[str]] = {cell.label: set() for cell in header.cells}
    for row in kept.drop_duplicates(["cell", "fingerprint"]).to_dict("records"):
        for label in cells_of({str(name): value for name, value in row.items()}, header):
            found[label].add(str(row["fingerprint"]))
    return found


# ---------------------------------------------------------------------------------------------------------- pairing


def why_not_paired(first: StoredStudy, other: StoredStudy, cell: str, metric: str) -> str:
    """Reason why seeds of a cell are not paired between two studies, as a clause; "" where they are.

    Paired are equal seeds that mean the same images in training, validation and test: equal content, split and `limit`,
    equal held streams, and equally many fine-tunings for each pretraining.
    """
    sides = (first.cell(cell), other.cell(cell))
    lacking = [study.name for study, side in zip((first, other), sides, strict=True) if side is None]
    if lacking:
        return f"this version cannot resolve the settings of {' and '.join(lacking)}"
    data = [_data_of(side.configuration(), metric) for side in sides if side is not None]
    ours, theirs = data
    if ours is None or theirs is None:
        return "their settings do not name the data of this metric"
    contents = [study.header.data.get(name) for study, (name, _) in zip((first, other), (ours, theirs), strict=True)]
    unstored = [study.name for study, found in zip((first, other), contents, strict=True) if not found]
    if unstored:
        return f"the content of the data is not stored in {' and '.join(unstored)}"
    named = ours[0] if ours[0] == theirs[0] else f"{ours[0]} and {theirs[0]}"
    if contents[0] != contents[1]:
        return f"the content of data {named} differs{_TEST_IMAGES}"
    if len(contents[0] or ()) > 1 and _beside_split(ours[1]) != _beside_split(theirs[1]):
        return f"the settings of data {named} differ, which has several contents{_TEST_IMAGES}"
    changed = _changed(ours[1].split.model_dump(mode="json"), theirs[1].split.model_dump(mode="json"))
    if changed:
        perhaps = _TEST_IMAGES if changed.keys() - _VALIDATION else ""
        return f"the split of data {named} differs ({', '.join(changed.values())}){perhaps}"
    return _other_seeds(first, other)


def _other_seeds(first: StoredStudy, other: StoredStudy) -> str:
    if first.header.held != other.header.held:
        return "seeds.hold differs"
    nested = [one.header.replicates // one.header.pretrainings for one in (first, other)]
    return "" if nested[0] == nested[1] else f"a pretraining has {nested[0]} and {nested[1]} fine-tunings"


def _data_of(configuration: Configuration, metric: str) -> tuple[str, Data] | None:
    """Name and settings of the data that a metric is measured on."""
    if not is_probe(metric):
        stage = configuration.finetune
        return None if stage is None else (stage.data, configuration.data[stage.data])
    named = parts_of(metric).probe
    probes = [probe for name, probe in configuration.probe.items() if named in ("", name)]
    return (probes[0].data, configuration.data[probes[0].data]) if len(probes) == 1 else None


def _beside_split(data: Data) -> dict[str, object]:
    """Settings by which one of several contents of a data set is told from the others."""
    return data.model_dump(mode="json", exclude={"split", "root", "source"})


def _changed(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, str]:
    """Setting -> both values in words, where they differ."""
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    return {key: f"{key} {ours.get(key)} and {theirs.get(key)}" for key in keys}


# ------------------------------------------------------------------------------------------------------ shared runs


def shared_runs(first: StoredStudy, other: StoredStudy) -> str:
    """A clause on the confirmed stage runs that two studies share, by fingerprint; "" for none."""
    ours, theirs = _confirmed(first.results), _confirmed(other.results)
    if not (both := ours.keys() & theirs.keys()):
        return ""
    names = f"{other.name} and {first.name}"
    if ours.keys() == theirs.keys():
        return f"{names} hold the same {len(both)} confirmed stage runs and no others"
    stages = Counter(ours[run] for run in sorted(both))
    named = few([f"{count} {stage}" for stage, count in sorted(stages.items())])
    return f"{names} share {len(both)} confirmed stage runs ({named}) of {len(theirs)} and {len(ours)}"


def _confirmed(results: pandas.DataFrame) -> dict[str, str]:
    """Fingerprint -> title of the stage of every confirmed stage run that finished."""
    rows = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    return dict(zip(rows["fingerprint"].astype(str), map(title_of, rows.to_dict("records")), strict=True))


def welch(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Welch:
    """Welch's t-test and interval for mean(b) - mean(a), both `(runs,)` and independent, assuming normal runs.

    NaN bounds and p where a side has one run, or neither has any spread.
    """
    x, y = mean_std(a), mean_std(b)
    errors = np.array([x.std**2 / x.n, y.std**2 / y.n])
    difference, total = y.mean - x.mean, float(errors.sum())
    if not total > 0:  # one run (NaN), or no spread on either side
        return Welch(difference, math.nan, math.nan, math.nan)
    degrees = total**2 / float((errors**2 / np.array([x.n - 1, y.n - 1])).sum())
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(total)
    p = 2 * float(stats.t.sf(abs(difference) / math.sqrt(total), degrees))
    return Welch(difference, difference - half, difference + half, p)
