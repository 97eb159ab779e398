"""Simulation of how often the bootstrap over test images covers the score on all images of the kind.

    python -m benchmarks.coverage_images --sets 1000

20,000 images of three classes (about 69, 26 and 5 % of the pixels) are "all images"; each has its own share of wrong
pixels (beta distributed, 15 % on average) and of the rare class, which is absent in half of them. A test set is drawn
from them without replacement; its mean Jaccard and interval come from the functions that the report uses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretune.analysis.load.counts import Counts
from pretune.analysis.questions.image_bootstrap import draw_images, image_interval, score

CLASSES = ("background", "object", "rare")
SIZES = (20, 60, 150, 300)
PIXELS = 1024


def images(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Counts (count, 3, 3); a wrong pixel is given one of the other two classes at random."""
    rare = np.where(generator.random(count) < 0.5, 0.0, generator.beta(2, 18, count))
    shares = np.stack([(1 - rare) * 0.73, (1 - rare) * 0.27, rare], axis=1)
    wrong = generator.beta(1.5, 8.5, count)
    true = np.array([generator.multinomial(PIXELS, share) for share in shares])
    missed = generator.binomial(true, wrong[:, None])
    to_next = generator.binomial(missed, 0.5)
    predicted = true - missed + np.roll(to_next, 1, axis=1) + np.roll(missed - to_next, 2, axis=1)
    return np.stack([true - missed, true, predicted], axis=-1)


def covered(every: NDArray[np.int64], size: int, sets: int, generator: np.random.Generator) -> float:
    """Share of test sets whose interval holds the score on all images."""
    truth, inside = float(score(every.sum(axis=0), "test/jaccard", CLASSES)), 0
    for _ in range(sets):
        seen = every[generator.choice(len(every), size, replace=False)]
        found = image_interval(
            [Counts(CLASSES, np.arange(size), seen)], [1.0], "test/jaccard", draw_images(size, generator)
        )
        inside += found.low <= truth <= found.high
    return inside / sets


def main() -> None:
    """Write benchmarks/results/coverage_images.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage_images.md")
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    every = images(20_000, generator)
    rates = [covered(every, size, asked.sets, generator) for size in SIZES]
    lines = [
        "# Coverage of the bootstrap over test images, simulated",
        "",
        f"`python -m benchmarks.coverage_images --sets {asked.sets}`: {asked.sets:,} simulated test sets per figure. "
        "Per cent of the 95 % intervals that hold the score on all images of the kind; one standard error of 95 % is "
        f"{100 * (0.95 * 0.05 / asked.sets) ** 0.5:.1f} points.",
        "",
        "| test images | " + " | ".join(map(str, SIZES)) + " |",
        "| --- |" + " ---: |" * len(SIZES),
        "| mean Jaccard of three classes, one of them rare | "
        + " | ".join(f"{100 * rate:.1f}" for rate in rates)
        + " |",
    ]
    asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
