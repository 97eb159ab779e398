"""Is a method of knn_causes.yaml above a random encoder? More seeds and twice the scored images, with intervals.

    python -m benchmarks.learning_precise --data <folder that holds cifar10> --out runs/knn-causes --seeds 10

The same pretrainings, store and batch norm's statistics as `benchmarks.learning_causes`. Three seeds with 1,200 images
cannot tell a gain of 0.01 from none: one kNN score has a standard error of 0.012.

- knn, linear: the coarsest level on the 1,200 validation images and the 1,200 official test images of CIFAR-10. No
  pretraining saw either, and no setting was chosen on the latter.
- knn whitened: the same neighbours after all principal directions of the features were scaled to one standard
  deviation. kNN compares by the cosine, in which the few directions of the largest variance decide.
- places, places linear: as in `learning_causes`, with 2,000 scenes in place of 900, by kNN and by a linear probe.

The tables have mean differences to the random encoder of the same seed and images (`--pairs`: between methods), 95 %
paired t intervals, and p with Holm's correction over all cells of a table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import learning_causes
from benchmarks.gpu_study import prepared
from benchmarks.learning import RANDOM, seeds_above
from benchmarks.learning_causes import COLUMNS, ON_SCENES, STUDY, Bank, Places
from pretune.analysis.statistics import holm, paired_difference
from pretune.plan import simulate
from pretune.search_spaces.resolve import load
from pretune.search_spaces.shipped import find_study
from pretune.search_spaces.stages import Stage
from pretune.trainables.data.sources import open_set
from pretune.trainables.models.interface import Encoder
from pretune.trainables.probes.linear import Labelled, linear_probe
from pretune.worker.task import Folders

SCENES, SCENE_BANK = 2000, 1000
FLOOR = 1e-4  # of the largest standard deviation, added to all: some directions have none
IMAGES, PLACES = ("knn", "knn whitened", "linear"), ("places", "places linear")


def more_images(probe: Stage, where: Folders) -> Bank:
    """The probe's bank with the official test images behind its validation images."""
    bank = learning_causes.bank_of(probe, where)
    data = open_set(probe.data, probe.digest, Path(where.data or "."), Path(where.cache))
    assert data.labels is not None
    assert data.official_test is not None
    test = np.asarray(data.official_test)
    pixels = torch.from_numpy(np.array(data.images[test])).permute(0, 3, 1, 2).float() / 255
    classes = torch.from_numpy(data.labels[test])
    return Bank(torch.cat([bank.pixels, pixels]), torch.cat([bank.classes, classes]), bank.count)


def probed(train: Labelled, val: Labelled) -> float:
    return linear_probe(train, val, learning_causes.EPOCHS, 0.1, 256, batch_norm=True).last


def image_scores(encoder: Encoder, bank: Bank) -> dict[str, float]:
    learning_causes.take_statistics(encoder, bank.pixels[: bank.count])
    parts = bank.parts(learning_causes.pooled_levels(encoder, bank.pixels)[-1])
    return {
        "knn": learning_causes.knn_accuracy(*parts),
        "knn whitened": learning_causes.knn_accuracy(*whitened(*parts)),
        "linear": probed(*parts),
    }


def whitened(train: Labelled, val: Labelled) -> tuple[Labelled, Labelled]:
    """Features turned to their principal directions over the bank, each with mean 0 and standard deviation 1."""
    mean = train.features.mean(dim=0)
    _, singular, directions = torch.linalg.svd(train.features - mean, full_matrices=False)
    std = singular / len(train.features) ** 0.5
    turn = directions.T / (std + FLOOR * std[0])
    return Labelled((train.features - mean) @ turn, train.classes), Labelled((val.features - mean) @ turn, val.classes)


def evenly(features: Tensor, classes: Tensor) -> Labelled:
    """As many places of each class as the rarest has; -1 is no class."""
    of_class = [torch.nonzero(classes == c)[:, 0] for c in range(int(classes.max()) + 1)]
    rows = torch.cat([places[: min(map(len, of_class))] for places in of_class])
    return Labelled(features[rows], classes[rows])


def place_scores(encoder: Encoder, places: Places) -> dict[str, float]:
    """Accuracies for the class of a place, of which all are equally frequent, from the coarsest map."""
    learning_causes.take_statistics(encoder, places.pixels[: places.count])
    with torch.no_grad():
        maps = torch.cat([encoder(batch)[-1].flatten(2).movedim(1, 2) for batch in torch.split(places.pixels, 100)])
    parts = [evenly(part.features.flatten(0, 1), part.classes.flatten()) for part in places.parts(maps)]
    train, val = parts
    by_knn = learning_causes.knn_accuracy(train, val, learning_causes.PLACES_K)
    return {"places": by_knn, "places linear": probed(train, val)}


class Asked(NamedTuple):
    study: Path
    methods: list[str] | None  # all
    seeds: int


def score_all(asked: Asked, where: Folders, file: Path) -> pandas.DataFrame:
    """Columns method, seed, metric, value: what `file` held, and after every encoder what it holds."""
    study = load(find_study(asked.study), overrides=[f"seeds.report={asked.seeds}"])
    run, _ = simulate(study, prepared(study, where))
    scores = pandas.read_csv(file) if file.exists() else pandas.DataFrame(columns=COLUMNS)
    scored = set(zip(scores["method"], scores["seed"], strict=True))
    places = Places(SCENES, SCENE_BANK)
    for plan in sorted(run.replicates, key=lambda plan: plan.replicate):
        method, seed = plan.cell.label.removeprefix("method="), plan.replicate.seed
        if (asked.methods and method not in asked.methods) or (method, seed) in scored:
            continue
        probe = plan.stages["probe:knn"]
        encoder = learning_causes.encoder_of(probe, method, where)
        found = image_scores(encoder, more_images(probe, where))
        if method.endswith(ON_SCENES):
            found |= place_scores(encoder, places)
        print(method, seed, json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)
        rows = [(method, seed, name, value) for name, value in found.items()]
        scores = pandas.DataFrame([*scores.itertuples(index=False), *rows], columns=COLUMNS)
        scores.to_csv(file, index=False)
    return scores


def table(scores: pandas.DataFrame, metrics: list[str], baseline: str = RANDOM) -> str:
    """Markdown: each method's gain over `baseline`, or over the random encoder of the same images."""
    rows = {method: (method, beside(method, baseline)) for method in scores["method"].unique()}
    return differences(scores, metrics, rows, f"minus {baseline}")


def differences(scores: pandas.DataFrame, metrics: list[str], rows: Mapping[str, tuple[str, str]], title: str) -> str:
    """Markdown: of each row the first method minus the second.

    A cell: mean difference, 95 % paired t interval, seeds above, p with Holm's correction over all cells of the table.
    """
    pairs = {
        (name, metric): pair
        for name, methods in rows.items()
        for metric in metrics
        if (pair := paired(scores[scores["metric"] == metric], *methods)) is not None
    }
    found = {key: paired_difference(*pair) for key, pair in pairs.items()}
    adjusted = dict(zip(found, holm([difference.p for difference in found.values()]), strict=True))
    lines = [
        f"| {title}, p of {len(found)} | n | " + " | ".join(metrics) + " |",
        "| --- | ---: |" + " --- |" * len(metrics),
    ]
    for row in dict.fromkeys(row for row, _ in found):
        n = max(difference.n for (name, _), difference in found.items() if name == row)
        cells = [
            f"{found[key].difference:+.3f} [{found[key].low:+.3f}, {found[key].high:+.3f}], "
            f"{seeds_above(pandas.Series(pairs[key][0] - pairs[key][1]))}, {worded(adjusted[key])}"
            if (key := (row, metric)) in found
            else ""
            for metric in metrics
        ]
        lines.append("| " + " | ".join([row, str(n), *cells]) + " |")
    return "\n".join(lines)


def beside(method: str, baseline: str) -> str:
    return f"{RANDOM} {ON_SCENES}" if baseline == RANDOM and method.endswith(ON_SCENES) else baseline


def paired(scores: pandas.DataFrame, method: str, other: str) -> NDArray[np.float64] | None:
    """(2, seeds) scores of the seeds that both have; None where there are none, or where both are one."""
    values = [scores[scores["method"] == name].set_index("seed")["value"] for name in (method, other)]
    both = pandas.concat(values, axis=1, join="inner")
    return None if method.startswith(RANDOM) or method == other or len(both) < 2 else both.to_numpy(np.float64).T


def pairs_of(text: str) -> dict[str, tuple[str, str]]:
    """'A minus B|C minus D' -> each part with its two methods."""
    found = {part: tuple(part.split(" minus ")) for part in text.split("|")}
    if any(len(methods) != 2 for methods in found.values()):
        raise argparse.ArgumentTypeError("each part should be: METHOD minus METHOD")
    return {part: (methods[0], methods[1]) for part, methods in found.items()}


def worded(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/knn-causes"))
    parser.add_argument("--study", type=Path, default=Path(STUDY))
    parser.add_argument("--methods", type=lambda text: text.split("|"), help="e.g. 'random encoder|pixelcl, 120 steps'")
    parser.add_argument("--seeds", type=int, default=10, help="0 to this number less 1")
    parser.add_argument("--baseline", default=RANDOM, help="a method in place of the random encoder")
    parser.add_argument("--pairs", type=pairs_of, default={}, help="'A minus B|C minus D': a table of these too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = Folders(str(options.out / "store"), str(options.out / "cache"), str(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    asked = Asked(options.study, options.methods, options.seeds)
    scores = score_all(asked, where, options.out / "precise.csv")
    asked_for = set(options.methods or scores["method"]) | {RANDOM, f"{RANDOM} {ON_SCENES}", options.baseline}
    of_seeds = scores[scores["seed"] < options.seeds]
    shown = of_seeds[of_seeds["method"].isin(asked_for)]
    print(table(shown, list(IMAGES), options.baseline), table(shown, list(PLACES), options.baseline), sep="\n\n")
    if options.pairs:
        print("", differences(of_seeds, list(IMAGES), options.pairs, "difference"), sep="\n")


if __name__ == "__main__":
    main()
