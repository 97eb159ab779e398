"""Scores that tell why a method is not above a random encoder: of whole and masked images, of places, and the table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import learning_causes
from benchmarks.learning_causes import Bank, Places, place_score, table, take_statistics

STUDY = """
study: t
data: {own: {dataset: image-folder, root: ROOT, cache_size: 16, split: {test: 0, val: 0.25, seed: 0}}}
model: {name: unet, widths: [4, 8]}
pretrain: {data: own, method: {name: mae, patch: 8, ratio: 0.5}, views: {size: 16}, batch_size: 8, steps: 1}
probe: {knn: {kind: knn, data: own, size: 16}}
factors: {method: {random encoder: {pretrain.optimizer: {name: sgd, lr: 1.0e-12}}, mae: {}}}
seeds: {report: 2}
report: {rows: method, metrics: [probe/knn/accuracy]}
"""


def test_statistics_are_those_of_the_images_whatever_was_there_before() -> None:
    pixels = torch.rand(128, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(3)
    norm(5 + pixels)
    take_statistics(norm, pixels)
    assert not norm.training
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, pixels.mean(dim=(0, 2, 3)), atol=1e-6)


def test_half_of_each_masked_image_is_black_and_the_rest_is_as_it_was() -> None:
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.1
    masked = Bank(pixels, torch.zeros(5), 3).masked().pixels
    black = (masked == 0).all(dim=1)
    assert torch.equal(black.flatten(1).sum(dim=1), torch.full((5,), 512))
    assert torch.equal(masked.movedim(1, 3)[~black], pixels.movedim(1, 3)[~black])


class Told(nn.Module):
    """An encoder whose features are what `tells` makes of the pixels of a place."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(pixels, learning_causes.CELL)]


def test_places_are_told_by_features_that_show_the_class_and_by_chance_otherwise(monkeypatch) -> None:
    monkeypatch.setattr(learning_causes, "PLACES_K", 5)
    places = Places(60, 40)
    assert {-1, 0, 1, 2} == set(places.classes.unique().tolist())
    cells = F.one_hot(places.classes.clamp(min=0), 3).movedim(-1, 1).float().unflatten(2, (4, 4))
    places.pixels = cells.repeat_interleave(learning_causes.CELL, 2).repeat_interleave(learning_causes.CELL, 3)
    assert place_score(Told(), places) == 1.0
    places.pixels = torch.ones_like(places.pixels)
    assert place_score(Told(), places) == pytest.approx(1 / 3)


def test_each_method_stands_beside_the_random_encoder_of_its_images() -> None:
    values = {"random encoder": [0.2, 0.3], "mae": [0.3, 0.2], "random encoder on scenes": [0.5, 0.5],
              "pixelcl on scenes": [0.6, 0.7]}  # fmt: skip
    rows = [
        {"method": m, "seed": seed, "metric": "whole 5", "value": value}
        for m, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    assert table(pandas.DataFrame(rows), ["whole 5", "places"]).splitlines()[2:] == [
        "| random encoder | 0.250 ± 0.071 |  |  |  |  |  |",
        "| mae | 0.250 ± 0.071 | +0.000 | 1 of 2 |  |  |  |",
        "| random encoder on scenes | 0.500 ± 0.000 |  |  |  |  |  |",
        "| pixelcl on scenes | 0.650 ± 0.071 | +0.150 | 2 of 2 |  |  |  |",
    ]


def test_a_tiny_study_ends_in_a_table_and_its_scores(tmp_path: Path, monkeypatch, capsys) -> None:
    random = np.random.default_rng(0)
    for number in range(16):
        file = tmp_path / "own" / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    study = tmp_path / "t.yaml"
    study.write_text(STUDY.replace("ROOT", str(tmp_path / "own")))
    out = tmp_path / "out"
    arguments = ["learning_causes", "--data", str(tmp_path), "--out", str(out), "--study", str(study)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(learning_causes, "EPOCHS", 2)
    learning_causes.main()
    shown = capsys.readouterr().out
    assert "| mae | " in shown
    scores = pandas.read_csv(out / "scores.csv")
    assert set(scores["metric"]) == {f"{kind} {what}" for kind in ("whole", "masked") for what in ("1", "2", "linear")}
    assert len(scores) == 6 * 2 * 2
    monkeypatch.delattr(learning_causes, "image_scores")  # what is scored is not scored again
    learning_causes.main()
    again = capsys.readouterr().out
    assert again == shown[shown.index("| method") :]
