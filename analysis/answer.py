"""What a study found, in sentences, with the doubt beside each number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas

from analysis.differences import Differences, differences
from analysis.figures import CellDots
from analysis.replicates import Replicate, independent_values, lower_is_better, replicates
from analysis.results import StudyHeader
from analysis.statistics import BestSet, Interval, not_distinguishable_from_best, t_interval

ALPHA = 0.05


class Answer(NamedTuple):
    """Sentences in the order in which they are read; `dots` hold the numbers of the first."""

    sentences: tuple[str, ...]
    dots: tuple[CellDots, ...]


def answer(results: pandas.DataFrame, header: StudyHeader, metric: str) -> Answer:
    """The best cell with its interval, the cells not shown to be worse, and what Holm's test says of the baseline."""
    found = replicates(results, header, metric)
    dots = tuple(_dots(cell.label, found[cell.label]) for cell in header.cells)
    finished = [cell for cell in dots if cell.values]
    if not finished:
        return Answer((f"No replicate has finished with a value of {metric} yet: there is nothing to answer.",), dots)
    sentences = [_best_sentence(finished, metric)]
    if len(header.cells) > 1:
        sentences.append(_rivals_sentence(found, metric))
    if header.report.baseline and (table := differences(results, header, metric)).rows:
        sentences.append(_baseline_sentence(table))
    return Answer(tuple(sentences), dots)


def _dots(label: str, found: tuple[Replicate, ...]) -> CellDots:
    values = tuple(independent_values(found).values())
    return CellDots(label, values, t_interval(values) if values else Interval(math.nan, math.nan, math.nan))


def _best_sentence(cells: list[CellDots], metric: str) -> str:
    sign = -1.0 if lower_is_better(metric) else 1.0
    best = max(cells, key=lambda cell: sign * cell.mean.estimate)
    ties = sum(cell.mean.estimate == best.mean.estimate for cell in cells) - 1
    shared = f" (a tie with {ties} more)" if ties else ""
    mean, low, high = best.mean
    doubt = "one seed, so its uncertainty is not known"
    if len(best.values) > 1:
        doubt = f"95 % t interval {low:.3f} to {high:.3f}, {len(best.values)} seeds"
    direction = "lowest" if sign < 0 else "highest"
    return f"{best.cell} has the {direction} mean {metric}{shared}: {mean:.3f} ({doubt})."


def _rivals_sentence(found: Mapping[str, tuple[Replicate, ...]], metric: str) -> str:
    """Multiple comparisons with the best, over the seeds that finished in every cell that has any."""
    values = {label: seeds for label, part in found.items() if (seeds := independent_values(part))}
    common = sorted(set.intersection(*(set(seeds) for seeds in values.values())))
    if len(values) < 2 or len(common) < 2:
        return "With fewer than two seeds that finished in every cell, it cannot be said which others are worse."
    scores = [[seeds[seed] for seeds in values.values()] for seed in common]
    rivals = _rivals(list(values), not_distinguishable_from_best(scores, ALPHA, not lower_is_better(metric)))
    if not rivals:
        return f"Every other cell is shown to be worse (one-sided paired t-tests over {len(common)} seeds, Holm)."
    if len(rivals) == len(values) - 1:
        return f"No other cell is shown to be worse (one-sided paired t-tests over {len(common)} seeds, Holm)."
    shown = ", ".join(rivals[:4]) + (f" and {len(rivals) - 4} more" if len(rivals) > 4 else "")
    return (
        f"{len(rivals)} of the {len(values) - 1} other cells {_are(len(rivals))} not shown to be worse "
        f"(one-sided paired t-tests over {len(common)} seeds, Holm): {shown}."
    )


def _rivals(labels: list[str], tested: BestSet) -> list[str]:
    kept = enumerate(zip(labels, tested.not_distinguishable, strict=True))
    return [label for number, (label, same) in kept if same and number != tested.best]


def _baseline_sentence(table: Differences) -> str:
    shown = [row for row in table.rows if row.p_holm < ALPHA]
    higher = sum(row.difference > 0 for row in shown)
    counts = f"{higher} {_are(higher)} higher and {len(shown) - higher} {_are(len(shown) - higher)} lower"
    largest = max(table.rows, key=lambda row: abs(row.difference))
    around = f"[{_signed(largest.low)}, {_signed(largest.high)}]" if math.isfinite(largest.low) else "no interval"
    return (
        f"Against the baseline {table.baseline}, of {len(table.rows)} comparisons {counts} at a family-wise 5 % "
        f"(Holm); the largest difference is {_signed(largest.difference)} ({around}, {largest.cell})."
    )


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
