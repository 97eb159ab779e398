"""The share of studies in which the answer's sentence or an importance claims something where nothing is.

    python -m benchmarks.null_studies [STUDIES] > benchmarks/results/null_studies.md

Simulates studies whose cells are all equal (paired seeds, and noise of each cell) and searches whose parameters do
nothing, and counts "Shown" in `headline`, and parameters above their floor in `importance`.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas
from numpy.typing import NDArray

from benchmarks.known_truths import write_study
from pretune.analysis import load, load_header
from pretune.analysis.load.results import StudyHeader
from pretune.analysis.questions.importance import importance
from pretune.analysis.questions.searched import ScoredTrial, SearchRuns
from pretune.analysis.text.headline import headline

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]
NOISES: dict[str, Noise] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed (lognormal)": lambda generator, shape: generator.lognormal(0.0, 1.0, shape),
    "heavy (t, 3 degrees)": lambda generator, shape: generator.standard_t(3, shape),
}
METRIC = "test/jaccard"
SPREAD = 0.01


def scores_of(cells: int, seeds: int, noise: Noise, failing: bool, generator: np.random.Generator) -> Array:
    """(cells, seeds) of equal cells; `failing`: the first cell loses its worst 40 %."""
    scores = 0.6 + SPREAD * (generator.normal(size=seeds) + noise(generator, (cells, seeds)))
    if failing:
        scores[0, np.argsort(scores[0])[: max(1, int(0.4 * seeds))]] = math.nan
    return scores


def claims(
    cells: int, seeds: int, noise: Noise, failing: bool, baseline: bool, studies: int, generator: np.random.Generator
) -> float:
    """Share of studies whose answer begins with "Shown"."""
    levels = [f"c{i:02d}" for i in range(cells)]
    report = {"baseline": {"a": levels[-1]}} if baseline else {}
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder) / "null", {"a": levels}, lambda _: 0.6, generator, seeds=seeds, **report)
        results, header = load(study), load_header(study)
    found = (_claims(results, header, scores_of(cells, seeds, noise, failing, generator)) for _ in range(studies))
    return sum(found) / studies


def _claims(results: pandas.DataFrame, header: StudyHeader, scores: Array) -> bool:
    """Rows are written cell by cell, seed by seed; a lost one has diverged."""
    lost = np.isnan(scores.ravel())
    outcome, metric = np.where(lost, "diverged", "finished"), np.where(lost, "", METRIC)
    drawn = results.assign(value=scores.ravel(), outcome=outcome, metric=metric)
    return headline(drawn, header, METRIC).startswith("Shown")


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


def lines(studies: int) -> Iterator[str]:
    generator = np.random.default_rng(0)
    yield f"# Studies in which nothing is: how often something is claimed ({studies} studies a line)\n"
    yield '"Shown" in the answer\'s sentence, of cells that are all equal:\n'
    yield "| cells | seeds | noise | against a baseline | best against all |\n| ---: | ---: | --- | ---: | ---: |"
    kinds = [(name, noise, False) for name, noise in NOISES.items()]
    kinds.append(("normal; the first cell loses its worst 40 %", NOISES["normal"], True))
    for cells, seeds, (name, noise, failing) in itertools.product((6, 12, 24), (3, 5, 10), kinds):
        found = [claims(cells, seeds, noise, failing, baseline, studies, generator) for baseline in (True, False)]
        yield f"| {cells} | {seeds} | {name} | {100 * found[0]:.1f} % | {100 * found[1]:.1f} % |"
    yield "\nAny of four parameters above its importance's floor, where none does anything:\n"
    yield "| trials of a search | searches together | noise | above |\n| ---: | ---: | --- | ---: |"
    for (trials, cells), (name, noise) in itertools.product(((12, 1), (24, 1), (12, 6)), NOISES.items()):
        yield f"| {trials} | {cells} | {name} | {100 * above_floor(trials, cells, noise, studies, generator):.1f} % |"


if __name__ == "__main__":
    for line in lines(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
        print(line, flush=True)
