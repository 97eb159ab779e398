"""Whether each method learns on real pixels: its probes beside a random encoder's, seed by seed.

    pretune run search_spaces/studies/knn_real.yaml --data <folder that holds cifar10 and oxford-iiit-pet> --root runs
    python -m benchmarks.learning runs/knn-real

and so for knn_real_small.yaml, whose folder is runs/knn-real-small.

The study does the work and may be stopped and run again; this reads its results, whole or not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas

from pretune import analysis

RANDOM = "random encoder"
ON_OTHER_IMAGES = {  # batch norm of the random encoder saw the same
    "segmentation": f"{RANDOM} on pets",
    "pixelcl++": f"{RANDOM} on scenes",
    "pixelcl on scenes": f"{RANDOM} on scenes",
}
KNN, LINEAR = "probe/knn/accuracy", "probe/linear/accuracy"


def scores(results: pandas.DataFrame, metric: str) -> pandas.DataFrame:
    """Accuracies, methods down and seeds across."""
    rows = results[(results["phase"] == "confirm") & (results["metric"] == metric)]
    return rows.pivot_table(index="factor.method", columns="seed", values="value", sort=False)


def spread(values: pandas.Series) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}" if values.count() > 1 else "-"


def seeds_above(gain: pandas.Series) -> str:
    """Count the seeds that are above the random encoder of the same seed."""
    return f"{int((gain > 0).sum())} of {int(gain.count())}"


def seconds(results: pandas.DataFrame, runs: pandas.DataFrame) -> pandas.Series:
    """Mean wall seconds of the pretraining of each method."""
    trained = results[results["stage"] == "pretrain"][["factor.method", "fingerprint"]].drop_duplicates()
    return trained.merge(runs, on="fingerprint").groupby("factor.method")["seconds"].mean()


def table(folder: Path) -> str:
    """Markdown: a line per method."""
    results = analysis.load(folder)
    took = seconds(results, pandas.read_parquet(folder / "stage_runs.parquet"))
    found = {name: scores(results, metric) for name, metric in (("kNN", KNN), ("linear", LINEAR))}
    found = {name: values for name, values in found.items() if len(values)}
    head = " | ".join(f"{name} | minus random | seeds above" for name in found)
    lines = [f"| method | {head} | seconds |", "| --- |" + " ---: | ---: | ---: |" * len(found) + " ---: |"]
    for method in next(iter(found.values())).index:
        cells = [cell for values in found.values() for cell in row(values, str(method))]
        lines.append("| " + " | ".join([str(method), *cells, f"{took[method]:.0f}"]) + " |")
    return "\n".join(lines)


def row(values: pandas.DataFrame, method: str) -> tuple[str, str, str]:
    """Mean ± std, gain over the random encoder and how many seeds are above it; a random encoder has no gain."""
    if method.startswith(RANDOM):
        return spread(values.loc[method]), "", ""
    other = ON_OTHER_IMAGES.get(method)
    gain = values.loc[method] - values.loc[other if other in values.index else RANDOM]
    return spread(values.loc[method]), f"{gain.mean():+.3f}", seeds_above(gain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the study's folder, e.g. runs/knn-real")
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    main()
