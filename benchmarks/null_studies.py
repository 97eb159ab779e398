"""The share of studies in which an answer, a mark, a comparison or an importance claims something where nothing is.

    python -m benchmarks.null_studies claims [STUDIES]         half a minute of one core
    python -m benchmarks.null_studies importance [STUDIES]     minutes

prints the two parts of benchmarks/results/null_studies.md. Cells are all equal (seeds shared by all cells, and noise of
each cell), parameters of searches do nothing. `null_claims` has the tests of the reports over whole arrays of studies.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.null_claims import BaselineClaims, MarkClaims, has_an_effect, studies_differ
from pretune.analysis.questions.importance import importance
from pretune.analysis.questions.searched import ScoredTrial, SearchRuns

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]
NOISES: dict[str, Noise] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed (lognormal)": lambda generator, shape: generator.lognormal(0.0, 1.0, shape),
    "heavy (t, 3 degrees)": lambda generator, shape: generator.standard_t(3, shape),
}
SIZES = {6: {"a": 2, "b": 3}, 12: {"a": 3, "b": 4}, 24: {"a": 2, "b": 3, "c": 4}}  # factors of so many cells
LOST = 0.4  # share of its replicates that a failing cell loses: the worst


def scores_of(shape: tuple[int, int, int], noise: Noise, failing: int | None, generator: np.random.Generator) -> Array:
    """(studies, seeds, cells) of equal cells, of which the cell `failing` loses its worst replicates."""
    studies, seeds, _ = shape
    scores = generator.normal(size=(studies, seeds, 1)) + noise(generator, shape)
    if failing is not None:
        lost = np.argsort(scores[:, :, failing], axis=1)[:, : max(1, int(LOST * seeds))]
        np.put_along_axis(scores[:, :, failing], lost, math.nan, axis=1)
    return scores


def claims(
    shape: tuple[int, int, int], noise: Noise, failing: int | None, generator: np.random.Generator
) -> dict[str, float]:
    """Share of studies with each kind of claim; the last cell is the baseline."""
    scores, other = (scores_of(shape, noise, failing, generator) for _ in range(2))
    whole = scores_of(shape, noise, None, generator)
    baseline, marks = BaselineClaims(scores, shape[2] - 1), MarkClaims(scores)
    found = {
        "higher or lower than the baseline": baseline.differs(),
        "Shown, against the baseline": baseline.shown(),
        "neither bold nor ≈": marks.worse(),
        "Shown, best against all": marks.best_shown(),
        "effect or interaction": has_an_effect(scores, SIZES[shape[2]]),
        "compare, paired": studies_differ(whole, other, paired=True),
        "compare, Welch": studies_differ(whole, other, paired=False),
    }
    return {name: float(np.mean(claimed)) for name, claimed in found.items()}


def above_floor(trials: int, cells: int, noise: Noise, studies: int, generator: np.random.Generator) -> float:
    """Share of searches of four parameters in which any is above its floor."""
    names = ("a", "b", "c", "d")
    ranges = {name: {"uniform": [0.0, 1.0]} for name in names}
    count = 0
    for _ in range(studies):
        found = [
            SearchRuns(str(cell), "m", False, tuple(
                ScoredTrial(dict(zip(names, row, strict=True)), float(score) + cell, 1)
                for row, score in zip(generator.uniform(size=(trials, 4)).tolist(), noise(generator, (trials,)),
                                      strict=True)
            ))
            for cell in range(cells)
        ]  # fmt: skip
        count += bool(importance(found, ranges, generator).above)
    return count / studies


def claim_lines(studies: int) -> Iterator[str]:
    generator = np.random.default_rng(0)
    kinds: list[tuple[str, Noise, int | None]] = [(name, noise, None) for name, noise in NOISES.items()]
    kinds += [("normal; a cell loses its worst 40 %", NOISES["normal"], 0)]
    kinds += [("normal; the baseline loses its worst 40 %", NOISES["normal"], -1)]
    found = {
        (cells, seeds, name): claims((studies, seeds, cells), noise, failing, generator)
        for cells, seeds, (name, noise, failing) in itertools.product(SIZES, (3, 5, 10), kinds)
    }
    names = list(next(iter(found.values())))
    yield f"# Studies in which nothing is: how often something is claimed ({studies:,} studies a line)\n"
    yield "Share of studies, in percent, with at least one claim of a family. All cells are equal.\n"
    yield f"| cells | seeds | noise | {' | '.join(names)} |\n| ---: | ---: | --- |{' ---: |' * len(names)}"
    for (cells, seeds, noise), shares in found.items():
        yield f"| {cells} | {seeds} | {noise} | {' | '.join(f'{100 * share:.1f}' for share in shares.values())} |"
    means = [100 * float(np.mean([shares[name] for shares in found.values()])) for name in names]
    most = [100 * max(shares[name] for shares in found.values()) for name in names]
    for title, values in (("mean of all lines", means), ("highest line", most)):
        yield f"| | | {title} | {' | '.join(f'{value:.1f}' for value in values)} |"
    error = 100 * math.sqrt(0.05 * 0.95 / studies)
    yield f"\nA line has a standard error of {error:.1f} points at 5 %.\n"


def importance_lines(studies: int) -> Iterator[str]:
    generator = np.random.default_rng(0)
    yield f"Any of four parameters above its importance's floor, where none does anything ({studies} studies a line):\n"
    yield "| trials of a search | searches together | noise | above |\n| ---: | ---: | --- | ---: |"
    for (trials, cells), (name, noise) in itertools.product(((12, 1), (24, 1), (12, 6)), NOISES.items()):
        yield f"| {trials} | {cells} | {name} | {100 * above_floor(trials, cells, noise, studies, generator):.1f} % |"


if __name__ == "__main__":
    part, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for line in claim_lines(count or 2000) if part == "claims" else importance_lines(count or 200):
        print(line, flush=True)
