"""Learning curves, as stage runs left them."""

from __future__ import annotations

from pathlib import Path

import pandas

from pretune.analysis.load.results import ResultsError, read_parquet

CURVE_COLUMNS = ("phase", "cell", "seed", "stage", "fingerprint", "step", "epoch", "metric", "value")


def load_curves(folder: Path | str) -> pandas.DataFrame:
    """`curves.parquet` of a study, or an empty frame where no stage run left a curve.

    Raises ResultsError where the file is there and cannot be used.
    """
    path = Path(folder) / "curves.parquet"
    if not path.is_file():
        return pandas.DataFrame(columns=list(CURVE_COLUMNS))
    curves = read_parquet(path)
    missing = [name for name in CURVE_COLUMNS if name not in curves.columns]
    if missing:
        raise ResultsError(f"{path} lacks the columns {', '.join(missing)}: it was not written by a Pretune study")
    return curves
