"""Experiments on methods that are not above a random encoder: scores of whole images, of masked ones and of scenes.

    python -m benchmarks.learning_causes --data <folder that holds cifar10> --out runs/knn-causes

Runs the pretrainings of knn_causes.yaml one after the other in this process, without Ray, and scores every encoder
beside the random encoder of the same seed. **Batch norm's statistics are taken anew, from the images that are scored**,
for both. Finished pretrainings are in the store and are not run again.

- whole: kNN on CIFAR-10 from the pooled features of each level, 1 the finest; a linear probe of the coarsest.
- masked: the same with half of the patches of 8 px black, in bank and queries, as MAE's encoder saw them.
- places: which of three classes covers a place of 16 px of scenes that no pretraining saw, by kNN of the coarsest map.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu_study import prepared
from benchmarks.learning import RANDOM, seeds_above, spread
from pretune.plan import simulate
from pretune.search_spaces.resolve import load
from pretune.search_spaces.shipped import find_study
from pretune.search_spaces.stages import Stage
from pretune.trainables.data.sets.scenes import generate_scene
from pretune.trainables.data.sources import open_set
from pretune.trainables.data.splits import draw_split, marks_for
from pretune.trainables.methods.mae import patch_count, patch_mask
from pretune.trainables.models.interface import Encoder
from pretune.trainables.probes.accuracy import knn
from pretune.trainables.probes.features import load_encoder
from pretune.trainables.probes.linear import Labelled, linear_probe
from pretune.worker.execute import execute
from pretune.worker.stage import weights_of
from pretune.worker.task import Folders, StageTask

STUDY = "knn_causes"
ON_SCENES = "on scenes"  # ends the name of what learned from scenes
K, PLACES_K, TEMPERATURE = 200, 50, 0.1
EPOCHS = 90  # of the linear probe
PATCH, RATIO = 8, 0.5  # of the masked images
SCENE_SEED, SCENES, SCENE_BANK, CELL = 1, 900, 600, 16  # the study's own scenes have seed 0
PURE = 0.75  # share of a place that its class covers
PER_CLASS = 1000  # places in the bank: background is most of a scene
CLASSES = 3
COLUMNS = ["method", "seed", "metric", "value"]


class Bank:
    """Images (N, 3, S, S) in [0, 1] and their classes (N,); the first `count` teach, the others are scored."""

    def __init__(self, pixels: Tensor, classes: Tensor, count: int) -> None:
        self.pixels, self.classes, self.count = pixels, classes, count

    def masked(self) -> Bank:
        """The same images with RATIO of their patches black, by draws that depend on the place in the bank alone."""
        size = self.pixels.shape[-1]
        draws = np.random.default_rng(0).uniform(size=(len(self.pixels), patch_count(size, PATCH) ** 2))
        black = patch_mask(draws, RATIO, PATCH, size)
        return Bank(self.pixels.masked_fill(black, 0.0), self.classes, self.count)

    def parts(self, features: Tensor) -> tuple[Labelled, Labelled]:
        return (
            Labelled(features[: self.count], self.classes[: self.count]),
            Labelled(features[self.count :], self.classes[self.count :]),
        )


def bank_of(probe: Stage, where: Folders) -> Bank:
    """Training and validation images of a probe's replicate."""
    data = open_set(probe.data, probe.digest, Path(where.data or "."), Path(where.cache))
    assert data.labels is not None
    asked, seed = probe.data.split, probe.streams.get("split", 0)
    split = draw_split(
        len(data.images), asked, seed, data.official_test, data.labels, marks_for(probe.data.split, data)
    )
    order = np.concatenate([split.train, split.val])
    pixels = torch.from_numpy(np.array(data.images[order])).permute(0, 3, 1, 2).float() / 255
    return Bank(pixels, torch.from_numpy(data.labels[order]), len(split.train))


@torch.no_grad()
def take_statistics(encoder: nn.Module, pixels: Tensor) -> None:
    """Batch norm's running statistics become the means of those of batches of 64. Leaves the encoder in eval mode."""
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
    encoder.train()
    for batch in pixels.split(64):
        encoder(batch)
    encoder.eval()


@torch.no_grad()
def pooled_levels(encoder: Encoder, pixels: Tensor) -> list[Tensor]:
    """Pooled features (N, C) of each level, the finest first."""
    parts = [[level.mean(dim=(2, 3)) for level in encoder(batch)] for batch in pixels.split(256)]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def knn_accuracy(train: Labelled, val: Labelled, k: int = K) -> float:
    queries, bank = (F.normalize(part.features, dim=1) for part in (val, train))
    return float((knn(queries, bank, train.classes, k, TEMPERATURE) == val.classes).double().mean())


def image_scores(encoder: Encoder, bank: Bank) -> dict[str, float]:
    """Accuracies of whole and of masked images, by level."""
    found = {}
    for name, shown in (("whole", bank), ("masked", bank.masked())):
        take_statistics(encoder, shown.pixels[: shown.count])
        levels = pooled_levels(encoder, shown.pixels)
        found |= {f"{name} {k}": knn_accuracy(*shown.parts(level)) for k, level in enumerate(levels, 1)}
        found[f"{name} linear"] = linear_probe(*shown.parts(levels[-1]), EPOCHS, 0.1, 256, batch_norm=True).last
    return found


class Places(Bank):
    """Scenes, and the class of each of their places where one covers PURE of it, else -1: (N, places)."""

    def __init__(self, count: int = SCENES, taught: int = SCENE_BANK, size: int = 64) -> None:
        scenes = [generate_scene(SCENE_SEED, index, size, CLASSES) for index in range(count)]
        masks = torch.from_numpy(np.stack([scene.mask for scene in scenes])).long()
        share, classes = F.avg_pool2d(F.one_hot(masks, CLASSES).movedim(-1, 1).float(), CELL).flatten(2).max(dim=1)
        pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
        super().__init__(pixels, classes.masked_fill(share < PURE, -1), taught)


@torch.no_grad()
def place_score(encoder: Encoder, places: Places) -> float:
    """Mean over the classes of the share of their places that neighbours tell."""
    take_statistics(encoder, places.pixels[: places.count])
    maps = torch.cat([encoder(batch)[-1].flatten(2).movedim(1, 2) for batch in places.pixels.split(100)])
    train, val = (Labelled(part.features.flatten(0, 1), part.classes.flatten()) for part in places.parts(maps))
    taught = torch.cat([torch.nonzero(train.classes == c)[:PER_CLASS, 0] for c in range(CLASSES)])
    bank = Labelled(train.features[taught], train.classes[taught])
    of_class = [val.classes == c for c in range(CLASSES)]
    return float(np.mean([knn_accuracy(bank, Labelled(*(part[rows] for part in val)), PLACES_K) for rows in of_class]))


def encoder_of(probe: Stage, method: str, where: Folders) -> Encoder:
    """The encoder that a probe scores, trained where the store lacks it."""
    for stage in probe.ancestors():
        outcome = execute(StageTask(stage, method, 0.0, where), lambda values: None)
        if outcome.state != "finished":
            raise SystemExit(f"{method}: {outcome.cause}")
    weights = weights_of(probe.parent, where.open_store())
    assert weights is not None
    return load_encoder(probe.model, weights, torch.device("cpu"))


def score_all(where: Folders, study: Path, methods: list[str] | None, file: Path) -> pandas.DataFrame:
    """Columns method, seed, metric, value: what `file` held, and after every encoder what it holds."""
    loaded = load(find_study(study))
    run, _ = simulate(loaded, prepared(loaded, where))
    scores = pandas.read_csv(file) if file.exists() else pandas.DataFrame(columns=COLUMNS)
    scored = set(zip(scores["method"], scores["seed"], strict=True))
    for plan in sorted(run.replicates, key=lambda plan: plan.replicate):
        method, seed = plan.cell.label.removeprefix("method="), plan.replicate.seed
        if (methods and method not in methods) or (method, seed) in scored:
            continue
        probe = plan.stages["probe:knn"]
        encoder = encoder_of(probe, method, where)
        found = image_scores(encoder, bank_of(probe, where))
        if method.endswith(ON_SCENES):
            found["places"] = place_score(encoder, Places())
        print(method, seed, json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)
        rows = [(method, seed, name, value) for name, value in found.items()]
        scores = pandas.DataFrame([*scores.itertuples(index=False), *rows], columns=COLUMNS)
        scores.to_csv(file, index=False)
    return scores


def table(scores: pandas.DataFrame, metrics: list[str]) -> str:
    """Markdown: for each method mean ± std, gain over the random encoder and how many seeds are above it."""
    lines = [
        "| method | " + " | ".join(f"{name} | minus random | seeds above" for name in metrics) + " |",
        "| --- |" + " ---: | ---: | ---: |" * len(metrics),
    ]
    for method in scores["method"].unique():
        beside = f"{RANDOM} {ON_SCENES}" if method.endswith(ON_SCENES) else RANDOM
        cells = [cell for name in metrics for cell in beside_random(scores[scores["metric"] == name], method, beside)]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(lines)


def beside_random(scores: pandas.DataFrame, method: str, random: str) -> tuple[str, str, str]:
    """Mean ± std, mean gain and seeds above; empty where there is nothing to say."""
    own, other = (scores[scores["method"] == name].set_index("seed")["value"] for name in (method, random))
    gain = (own - other).dropna()
    if own.empty:
        return "", "", ""
    if gain.empty or method == random:
        return spread(own), "", ""
    return spread(own), f"{gain.mean():+.3f}", seeds_above(gain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/knn-causes"))
    parser.add_argument("--study", type=Path, default=Path(STUDY))
    parser.add_argument(
        "--methods", type=lambda text: text.split("|"), help="e.g. 'random encoder|mae'; all by default"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = Folders(str(options.out / "store"), str(options.out / "cache"), str(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    scores = score_all(where, options.study, options.methods, options.out / "scores.csv")
    coarsest = max(name for name in scores["metric"] if name.startswith("whole") and name[-1].isdigit())
    shown = [coarsest, coarsest.replace("whole", "masked"), "whole linear", "places"]
    print(table(scores, [name for name in shown if name in set(scores["metric"])]))


if __name__ == "__main__":
    main()
