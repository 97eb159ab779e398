"""Whether each method learns on real pixels: its probes beside a random encoder's, seed by seed.

    pretune run search_spaces/studies/knn_real.yaml --data <folder that holds cifar10> --root runs
    python -m benchmarks.learning runs/knn-real

The study does the work and may be stopped and run again; this reads its results, whole or not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas

import analysis

RANDOM = "random encoder"
KNN, LINEAR = "probe/knn/accuracy", "probe/linear/accuracy"


def scores(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Accuracies, methods down and seeds across."""
    rows = results[(results["phase"] == "confirm") & (results["metric"] == metric)]
    return rows.pivot_table(index="factor.method", columns="seed", values="value", sort=False)


def spread(values: pandas.Series) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}" if values.count() > 1 else "-"


def verdict(gain: pandas.Series) -> str:
    """How many seeds are above the random encoder of the same seed."""
    return f"{int((gain > 0).sum())} of {int(gain.count())}"


def seconds(results: pandas.DataFrame, runs: pandas.DataFrame) -> pandas.Series:
    """Mean wall seconds of the pretraining of each method."""
    trained = results[results["stage"] == "pretrain"][["factor.method", "fingerprint"]].drop_duplicates()
    return trained.merge(runs, on="fingerprint").groupby("factor.method")["seconds"].mean()


def table(folder: Path) -> str:
    """Markdown: a line per method."""
    results = analysis.load(folder)
    took = seconds(results, pandas.read_parquet(folder / "stage_runs.parquet"))
    knn, linear = scores(results, KNN), scores(results, LINEAR)
    lines = [
        "| method | kNN | minus random | seeds above | linear | minus random | seeds above | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in knn.index:
        cells = [str(method)]
        for found in (knn, linear):
            gain = found.loc[method] - found.loc[RANDOM]
            own = method == RANDOM
            cells += [spread(found.loc[method]), "" if own else f"{gain.mean():+.3f}", "" if own else verdict(gain)]
        lines.append("| " + " | ".join([*cells, f"{took[method]:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study's folder, e.g. runs/knn-real")
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    main()
