"""Pixel counts of single test images, as fine-tunings left them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.analysis.load.results import ResultsError, read_parquet


class Counts(NamedTuple):
    """Pixels that one fine-tuning counted."""

    classes: tuple[str, ...]
    images: NDArray[np.int64]  # (N,) positions in the data set
    counts: NDArray[np.int64]  # (N, classes, 3): right, true and predicted pixels


def load_counts(folder: Path) -> dict[str, Counts]:
    """Fingerprint -> counts, from `test_images.parquet`; {} where there is none. Raises ResultsError if damaged."""
    path = folder / "test_images.parquet"
    if not path.is_file():
        return {}
    try:
        rows = read_parquet(path).to_dict("records")
        return {str(row["fingerprint"]): _counts(row["classes"], row["images"], row["counts"]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise ResultsError(f"{path} cannot be read: it is cut off or damaged; run the study again") from error


def _counts(classes: Sequence[str], images: NDArray[np.int64], counts: NDArray[np.int64]) -> Counts:
    return Counts(tuple(classes), np.asarray(images), np.asarray(counts).reshape(len(images), len(classes), 3))
