"""Racing: find configurations that are clearly worse than the best, on the seeds that all of them ran on.

Scores follow the two-way model score = configuration + seed + noise. Differences are paired by seed, so the seeds'
own effects drop out, and the noise is estimated from all configurations together: with two or three seeds a
difference of two configurations alone has one or two degrees of freedom, and tells nothing. (Birattari et al. 2002
race in the same way with Friedman's ranks, which cannot reach 0.05 below six pairs.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """A pooled estimate of the residual variance: `squares` / `freedom`."""

    squares: float = 0.0
    freedom: int = 0

    def __add__(self, other: Noise) -> Noise:
        return Noise(self.squares + other.squares, self.freedom + other.freedom)


def residual(scores: NDArray[np.float64]) -> Noise:
    """The noise in (configurations, seeds) scores once means of rows and columns are taken out."""
    rows, columns = scores.shape
    left = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()
    return Noise(float((left**2).sum()), (rows - 1) * (columns - 1))


def clearly_worse(scores: NDArray[np.float64], noise: Noise, alpha: float) -> list[tuple[int, float, float]]:
    """The rows whose mean is below the highest at level `alpha`, one-sided: (row, mean difference, p).

    Args:
        scores: (configurations, seeds), larger is better, every configuration on the same seeds.
        noise: pooled over these scores and earlier races of the same search.
        alpha: for one comparison of one look; the caller divides by the number of looks (Bonferroni).
    """
    from scipy import stats  # takes a second to import, which no study without a race needs

    if noise.freedom < 1 or len(scores) < 2:
        return []
    means = scores.mean(axis=1)
    best = int(means.argmax())
    error = float(np.sqrt(2 * noise.squares / noise.freedom / scores.shape[1]))
    found = []
    for row, mean in enumerate(means):
        gap = float(mean - means[best])
        if row == best or gap == 0:
            continue
        p = float(stats.t.sf(-gap / error, noise.freedom)) if error > 0 else 0.0
        if p < alpha:
            found.append((row, gap, p))
    return found
