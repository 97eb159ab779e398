"""Two studies side by side: cells of equal label, their difference, and the settings in which the studies differ.

Seeds are not paired here. Two studies may use other data, splits or code, and then equal seed numbers have nothing in
common; Welch's test needs no pairing, at the price of a wider interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import yaml
from numpy.typing import ArrayLike
from scipy import stats

from pretune.analysis.digits import DASH
from pretune.analysis.load.replicates import FINISHED, ReplicateResult, independent_values, replicate_results
from pretune.analysis.load.results import ResultsError, StudyHeader, load, load_header
from pretune.analysis.load.searches import shown_values
from pretune.analysis.statistics import MeanStd, holm, mean_std

_NAMES = ("study", "question", "report", "published", "scales")  # what no result depends on
COMPARED = ("settings", "tuned values", "data")


class Welch(NamedTuple):
    """Difference of two means with unequal variances; NaN where either side has one run."""

    difference: float  # mean of b - mean of a
    low: float  # 95 % interval
    high: float
    p: float  # two-sided


class ComparedCell(NamedTuple):
    """One cell in both studies."""

    cell: str
    first: MeanStd
    second: MeanStd
    welch: Welch
    p_holm: float  # Holm-corrected over all rows


@dataclass(frozen=True)
class Comparison:
    """Two studies in one metric. Cells that only one of them has are named, not guessed."""

    metric: str
    first: str
    second: str
    rows: tuple[ComparedCell, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]  # dotted key, value in the first, value in the second
    percent: bool = False  # where both studies print percent
    not_compared: tuple[str, ...] = COMPARED  # of settings, tuned values and data: what could not be, or was not
    shared: str = ""  # which confirmed stage runs are in both, which makes them no independent samples


def compare_folders(first: Path, second: Path, metric: str | None = None) -> tuple[Comparison, ...]:
    """Compare two studies' output folders in `metric`, or in every metric that both report.

    Raises ResultsError where results cannot be read, or no metric or no finished cell is common to both.
    """
    a, b = load_header(first), load_header(second)
    metrics = [metric] if metric else [name for name in a.report.metrics if name in b.report.metrics]
    if not metrics:
        raise ResultsError(f"{a.study} and {b.study} report no metric in common: name one with --metric")
    found = [*different_settings(first, second)]
    names = (a.study, b.study) if a.study != b.study else (str(first), str(second))
    results = load(first), load(second)
    found += different_values(*results)
    unknown = () if a.data and b.data else ("data",)  # a study of before 2026-11-28 did not store their content
    if not unknown:
        found += different_data(a, b)
    compared = (
        compare_replicates(
            replicate_results(results[0], a, name), replicate_results(results[1], b, name), name, names, tuple(found)
        )
        for name in metrics
    )
    shared = shared_runs(*results)
    return tuple(
        replace(
            one,
            percent=a.in_percent(one.metric) and b.in_percent(one.metric),
            shared=shared,
            not_compared=unknown,
        )
        for one in compared
    )


def shared_runs(first: pandas.DataFrame, second: pandas.DataFrame) -> str:
    """A sentence on the confirmed stage runs that two studies share, by fingerprint; "" for none."""
    ours, theirs = _confirmed(first), _confirmed(second)
    if not (both := ours.keys() & theirs.keys()):
        return ""
    if ours.keys() == theirs.keys():
        return f"both hold the same {len(both)} stage runs: this is one study compared with itself; nothing is compared"
    stages = Counter(ours[run] for run in both)
    named = ", ".join(f"{count} {stage}" for stage, count in stages.items())
    return (
        f"the studies share {len(both)} confirmed stage runs ({named}) of {len(ours)} and {len(theirs)}: they are not "
        "independent, which Welch's interval and p take them to be"
    )


def _confirmed(results: pandas.DataFrame) -> dict[str, str]:
    """Fingerprint -> stage of every confirmed stage run that finished."""
    rows = results[(results["phase"] == "confirm") & (results["outcome"] == FINISHED)]
    return dict(zip(rows["fingerprint"].astype(str), rows["stage"].astype(str), strict=True))


def compare_replicates(
    first: Mapping[str, tuple[ReplicateResult, ...]],
    second: Mapping[str, tuple[ReplicateResult, ...]],
    metric: str,
    names: tuple[str, str],
    settings: tuple[tuple[str, str, str], ...] = (),
) -> Comparison:
    """Cell label -> replicates, of both; nested fine-tunings are averaged per pretraining. Raises ResultsError."""
    ours, theirs = _values(first), _values(second)
    cells = [cell for cell in ours if cell in theirs]
    if not cells:
        raise ResultsError(f"{names[0]} and {names[1]} have no finished cell of equal name: nothing can be compared")
    tests = [welch(ours[cell], theirs[cell]) for cell in cells]
    corrected = holm([test.p for test in tests])
    rows = tuple(
        ComparedCell(cell, mean_std(ours[cell]), mean_std(theirs[cell]), test, float(p))
        for cell, test, p in zip(cells, tests, corrected, strict=True)
    )
    only = tuple(cell for cell in ours if cell not in theirs), tuple(cell for cell in theirs if cell not in ours)
    return Comparison(metric, *names, rows, *only, settings)


def _values(found: Mapping[str, tuple[ReplicateResult, ...]]) -> dict[str, list[float]]:
    values = {cell: list(independent_values(runs).values()) for cell, runs in found.items()}
    return {cell: runs for cell, runs in values.items() if runs}


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


def different_settings(first: Path, second: Path) -> Iterator[tuple[str, str, str]]:
    """Dotted keys of the two studies' files with other values, without those that no result depends on."""
    a, b = dict(_flat(_study_file(first))), dict(_flat(_study_file(second)))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key) and key.split(".")[0] not in _NAMES:
            yield key, str(a.get(key, DASH)), str(b.get(key, DASH))


def different_values(first: pandas.DataFrame, second: pandas.DataFrame) -> Iterator[tuple[str, str, str]]:
    """'tuned values of CELL' and both, for the cells of which the two studies confirmed other ones."""
    ours, theirs = _confirmed_values(first), _confirmed_values(second)
    for cell in ours:
        if cell in theirs and ours[cell] != theirs[cell]:
            yield f"tuned values of {cell}", shown_values(ours[cell]) or DASH, shown_values(theirs[cell]) or DASH


def _confirmed_values(results: pandas.DataFrame) -> dict[str, str]:
    """Cell -> chosen values as JSON, of the confirm phase; {} where results do not hold them."""
    if "chosen" not in results:
        return {}
    rows = results[(results["phase"] == "confirm") & (results["cell"] != "")].drop_duplicates("cell")
    return dict(zip(rows["cell"].astype(str), rows["chosen"].fillna("{}").astype(str), strict=True))


def different_data(first: StudyHeader, second: StudyHeader) -> Iterator[tuple[str, str, str]]:
    """'content of data NAME' and both digests, where they differ."""
    for name in sorted(first.data.keys() | second.data.keys()):
        ours, theirs = (", ".join(one.data.get(name, [DASH])) for one in (first, second))
        if ours != theirs:
            yield f"content of data {name}", ours, theirs


def _study_file(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ResultsError(f"{folder / 'study.yaml'} cannot be read: it is missing or damaged") from error


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif value != {}:  # a mapping without keys says nothing
        yield key, value
