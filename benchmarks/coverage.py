"""Simulation of how often intervals cover and tests err, by simulation through the functions that the tables use.

    python -m benchmarks.coverage                # writes benchmarks/results/coverage.md; about 10 minutes on one core
    python -m benchmarks.coverage --studies 500  # quick

Every simulated study draws seeds, asks one function, and compares its claim with the truth that made the numbers.
Noise: normal; and skewed, a log-normal (sigma 1, skewness 6.2) turned downwards and shifted to mean 0: most seeds a
little above the mean, a few far below. A seed's own effect on all cells is part of paired numbers, as in a study.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pretune.analysis import statistics
from pretune.analysis.questions.compare import welch
from pretune.analysis.questions.components import nested
from pretune.analysis.questions.effects import analysis_of_variance

Array = NDArray[np.float64]
SIZES = (2, 3, 5, 10)
TRUTH = 0.7
MARGIN = 1.0  # of equivalence, in standard deviations of one seed
CELLS = 5


class Noise(NamedTuple):
    """Draws `shape` values of mean 0 and standard deviation 1."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array]


class Rate(NamedTuple):
    """Rate at which something happened, against how often it should."""

    what: str
    noise: str
    n: int
    rate: float
    nominal: float


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return generator.normal(size=shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Log-normal with sigma 1: mean sqrt(e), variance e (e - 1)."""
    return -(np.exp(generator.normal(size=shape)) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))


NOISES = (Noise("normal", normal), Noise("skewed", skewed))


# ------------------------------------------------------------------------ one study each: did it cover, did it err?


def t_interval_covers(values: Array) -> bool:
    _, low, high = statistics.t_interval(TRUTH + values[0])
    return low <= TRUTH <= high


def percentile_bootstrap_covers(values: Array) -> bool:
    generator = np.random.default_rng(zlib.crc32(values.tobytes()))
    _, low, high = statistics.percentile_interval(TRUTH + values[0], generator, resamples=1000)
    return low <= TRUTH <= high


def paired_interval_covers(values: Array) -> bool:
    shared, a, b = values[:3]
    found = statistics.paired_difference(TRUTH + shared + a, shared + b)
    return found.low <= TRUTH <= found.high


def paired_t_errs(values: Array) -> bool:
    shared, a, b = values[:3]
    return statistics.paired_difference(shared + a, shared + b).p < 0.05


def sign_flip_errs(values: Array) -> bool:
    shared, a, b = values[:3]
    return statistics.sign_flip_test(shared + a, shared + b).p < 0.05


def holm_errs(values: Array) -> bool:
    """Any of four comparisons with a baseline that differ in nothing."""
    baseline, *others = values[:CELLS]
    p = [statistics.paired_difference(other, baseline).p for other in others]
    return bool((statistics.holm(p) < 0.05).any())


def best_set_errs_among_ties(values: Array) -> bool:
    """Any of five equally good cells is said to be worse."""
    return not statistics.not_distinguishable_from_best(values[:CELLS].T).not_distinguishable.all()


def best_set_errs_beside_worse(values: Array) -> bool:
    """The same, where two are equally good and three are three standard deviations worse."""
    shifted = values[:CELLS].T - 3.0 * (np.arange(CELLS) > 1)
    return not statistics.not_distinguishable_from_best(shifted).not_distinguishable[:2].all()


def equivalence_errs(values: Array) -> bool:
    """Cells that differ by exactly the margin are said to be equivalent."""
    shared, a, b = values[:3]
    return statistics.tost(shared + a + MARGIN, shared + b, MARGIN).equivalent


def interaction_errs(values: Array) -> bool:
    shared, *cells = values[:7]
    rows = analysis_of_variance((np.array(cells) + shared).T, {"a": 2, "b": 3})
    return rows[-1].p < 0.05


def interaction_errs_with_unequal_spread(values: Array) -> bool:
    """The same where one of three levels scatters three times as much, as few labels do."""
    shared, *cells = values[:7]
    scaled = np.array(cells) * np.array([1, 1, 3, 1, 1, 3])[:, None] + shared
    return analysis_of_variance(scaled.T, {"a": 2, "b": 3})[-1].p < 0.05


def share_interval_covers(values: Array) -> bool:
    """Pretraining's share of the variance, truly 0.8: n pretrainings with two fine-tunings each."""
    between, first, second = values[:3]
    found = nested(np.stack([2 * between + first, 2 * between + second], axis=1))
    return found.low <= 0.8 <= found.high


def welch_covers(values: Array) -> bool:
    found = welch(values[0], TRUTH + values[1])
    return found.low <= TRUTH <= found.high


def welch_covers_with_unequal_spread(values: Array) -> bool:
    """One study scatters three times as much as the other."""
    found = welch(values[0], TRUTH + 3 * values[1])
    return found.low <= TRUTH <= found.high


def iqm_bootstrap_covers(values: Array, truth: float) -> bool:
    """Seven tasks of one distribution, n runs each; `truth` is the mean of the distribution's middle half."""
    generator = np.random.default_rng(zlib.crc32(values.tobytes()))
    _, low, high = statistics.iqm_interval(values.T, generator, resamples=500)
    return low <= truth <= high


COVER = {
    "t interval of a mean": t_interval_covers,
    "paired t interval of a difference": paired_interval_covers,
    "percentile bootstrap of a mean (for contrast; no table uses it)": percentile_bootstrap_covers,
    "interval of pretraining's share of the variance": share_interval_covers,
    "Welch's interval (`pretune compare`)": welch_covers,
    "Welch's interval, one study with three times the spread": welch_covers_with_unequal_spread,
}
IQM = {
    "normal": 0.0,
    "skewed": -(2 * math.exp(0.5) * (ndtr(ndtri(0.75) - 1) - ndtr(ndtri(0.25) - 1)) - math.exp(0.5))
    / math.sqrt(math.e * (math.e - 1)),  # E[e^Z; Z between its quartiles] / (1/2), standardised as in `skewed`
}
ERR = {
    "paired t-test": paired_t_errs,
    "exact sign-flip test": sign_flip_errs,
    "Holm over four comparisons: any error": holm_errs,
    "set of the best (bold, ≈), five tied: any of them left out": best_set_errs_among_ties,
    "set of the best (bold, ≈), two tied and three worse: either of the two left out": best_set_errs_beside_worse,
    "equivalence at the margin": equivalence_errs,
    "interaction (2 × 3 levels)": interaction_errs,
    "interaction, one level with three times the spread": interaction_errs_with_unequal_spread,
}


def rate(study: Callable[[Array], bool], noise: Noise, n: int, studies: int, seed: int) -> float:
    """Share of simulated studies in which `study` says yes; each is handed (7, n) values."""
    generator = np.random.default_rng([seed, n, zlib.crc32(noise.name.encode())])
    return float(np.mean([study(noise.draw(generator, (7, n))) for _ in range(studies)]))


def corrected_resampling(noise: Noise, n: int, studies: int, seed: int, corrected: bool) -> float:
    """False positives of Nadeau and Bengio's test, and of the plain one, over n random re-splits of 100 images.

    Each image has a score difference of mean 0; a re-split tests on 20 of them, and what it learns from the other 80
    does not matter. The test sets overlap, so the n values are not independent.
    """
    generator = np.random.default_rng([seed, n])
    zeros, wrong = np.zeros(n), 0
    for _ in range(studies):
        images = noise.draw(generator, (100,))
        values = [images[generator.permutation(100)[:20]].mean() for _ in range(n)]
        plain = statistics.paired_difference(values, zeros)
        p = statistics.nadeau_bengio(values, zeros, 20 / 80).p if corrected else plain.p
        wrong += p < 0.05
    return wrong / studies


def rates(studies: int, seed: int = 0) -> Iterator[Rate]:
    for noise in NOISES:
        for n in SIZES:
            yield from (Rate(what, noise.name, n, rate(f, noise, n, studies, seed), 0.95) for what, f in COVER.items())
            yield from (Rate(what, noise.name, n, rate(f, noise, n, studies, seed), 0.05) for what, f in ERR.items())
            iqm = rate(lambda values: iqm_bootstrap_covers(values, IQM[noise.name]), noise, n, studies // 10, seed)  # noqa: B023  # called at once
            yield Rate("stratified bootstrap of the IQM, 7 tasks (a tenth of the studies)", noise.name, n, iqm, 0.95)
            plain, corrected = (corrected_resampling(noise, n, studies, seed, way) for way in (False, True))
            yield Rate("re-splits of 100 images, plain paired t-test", noise.name, n, plain, 0.05)
            yield Rate("re-splits of 100 images, Nadeau-Bengio", noise.name, n, corrected, 0.05)


def markdown(found: list[Rate], studies: int) -> str:
    error = math.sqrt(0.95 * 0.05 / studies)
    lines = [
        "# Coverage and false positives, simulated",
        "",
        f"`python -m benchmarks.coverage --studies {studies}`: {studies:,} simulated studies per figure, through the "
        f"functions that the tables use. Per cent; one standard error of 95 % or 5 % is {100 * error:.2f} points.",
        "",
    ]
    for nominal, title in ((0.95, "How often a 95 % interval covers"), (0.05, "How often a 5 % test errs")):
        for noise in NOISES:
            part = [row for row in found if row.nominal == nominal and row.noise == noise.name]
            lines += [f"## {title}, {noise.name} noise", "", "| | " + " | ".join(f"n={n}" for n in SIZES) + " |"]
            lines += ["| --- |" + " ---: |" * len(SIZES)]
            for what in dict.fromkeys(row.what for row in part):
                values = {row.n: f"{100 * row.rate:.1f}" for row in part if row.what == what}
                lines.append(f"| {what} | " + " | ".join(values[n] for n in SIZES) + " |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.md")
    asked = parser.parse_args()
    found = list(rates(asked.studies))
    asked.out.write_text(markdown(found, asked.studies), encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
