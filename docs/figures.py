"""Draws the figures of real studies that docs/analysis.md shows, from the results in benchmarks/results/studies.

    python docs/figures.py                 lists them
    python docs/figures.py freeze_skip     writes docs/images/freeze_skip.png and prints its caption

Needs the extra `figures` and a Chromium or Chrome.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go

from pretune.analysis import plots

TOP = Path(__file__).resolve().parents[1]
STUDIES = TOP / "benchmarks" / "results" / "studies"
IMAGES = TOP / "docs" / "images"
FIGURES: dict[str, Callable[[], go.Figure]] = {
    "freeze_skip": lambda: plots.interactions(STUDIES / "pets-freeze-skip")[1],  # encoder over labels, with and without
    "augmentation_sets": lambda: plots.differences(STUDIES / "augmentation-sets"),
    "temperature": lambda: plots.sensitivity(STUDIES / "temperature", stage="pretrain", columns=2),
    "ssl_length": lambda: plots.labels(STUDIES / "ssl-length", factor="epochs"),
    "learning_rates": lambda: plots.sensitivity(STUDIES / "temperature"),
}


def main(names: list[str]) -> None:
    if not names or set(names) - FIGURES.keys():
        raise SystemExit(f"name figures of: {', '.join(FIGURES)}")
    for name in names:
        figure = FIGURES[name]()
        plots.save(figure, IMAGES / f"{name}.png")
        print(f"{name}: {plots.caption_of(figure)}")


if __name__ == "__main__":
    main(sys.argv[1:])
