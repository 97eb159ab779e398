"""Scores with more seeds and more images: whitened features, places of equally frequent classes, and the table."""

from __future__ import annotations

import argparse

import pandas
import pytest
import torch
from torch import Tensor, nn

from benchmarks import learning_causes
from benchmarks.learning_causes import Places
from benchmarks.learning_precise import differences, evenly, pairs_of, place_scores, table, whitened
from pretune.trainables.probes.linear import Labelled


def test_whitened_features_of_the_bank_are_uncorrelated_and_the_scored_ones_turn_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(500, 3, generator=generator) @ torch.tensor([[1.0, 9.0, 0.0], [0.0, 3.0, 0.3], [0.0, 0.0, 1.0]])
    features = torch.cat([mixed + 5, torch.full((500, 1), 2.0)], dim=1)  # one feature is the same everywhere
    train, val = whitened(Labelled(features, torch.zeros(500)), Labelled(features[:7], torch.zeros(7)))
    varied = train.features[:, :3]
    assert torch.allclose(varied.T @ varied / 500, torch.eye(3), atol=1e-2)
    assert torch.allclose(train.features[:, 3], torch.zeros(500), atol=1e-2)
    assert torch.allclose(val.features, train.features[:7], atol=1e-4)


def test_as_many_places_of_each_class_as_the_rarest_has() -> None:
    classes = torch.tensor([0, -1, 0, 1, 0, 2, 2, 1])
    chosen = evenly(torch.arange(8.0)[:, None], classes)
    assert chosen.classes.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.features[:, 0].tolist() == [0, 2, 3, 7, 5, 6]


class Mean(nn.Module):
    """An encoder whose map is the mean colour of each place."""

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(pixels, learning_causes.CELL)]


def test_places_are_told_by_neighbours_and_by_a_line_where_the_features_show_them(monkeypatch) -> None:
    monkeypatch.setattr(learning_causes, "PLACES_K", 5)
    places = Places(60, 40)
    cells = nn.functional.one_hot(places.classes.clamp(min=0), 3).movedim(-1, 1).float().unflatten(2, (4, 4))
    places.pixels = cells.repeat_interleave(learning_causes.CELL, 2).repeat_interleave(learning_causes.CELL, 3)
    assert place_scores(Mean(), places) == {"places": 1.0, "places linear": 1.0}
    places.pixels = torch.ones_like(places.pixels)
    assert place_scores(Mean(), places) == pytest.approx({"places": 1 / 3, "places linear": 1 / 3})


def test_the_table_pairs_seeds_and_corrects_over_its_methods() -> None:
    values = {"random encoder": [0.2, 0.3, 0.25], "byol": [0.31, 0.42, 0.36], "mae": [0.2, 0.29, 0.26],
              "random encoder on scenes": [0.5, 0.5, 0.5], "byol on scenes": [0.4, 0.5, 0.45]}  # fmt: skip
    rows = [(m, seed, "knn", value) for m, found in values.items() for seed, value in enumerate(found)]
    scores = pandas.DataFrame(rows, columns=learning_causes.COLUMNS)
    lines = table(scores, ["knn", "places"]).splitlines()
    assert "p of 3" in lines[0]
    assert lines[2] == "| byol | 3 | +0.113 [+0.099, +0.128], 3 of 3, p 0.003 |  |"
    assert lines[4].startswith("| byol on scenes | 3 | -0.050 [-0.174, +0.074], 0 of 3, p 0.4")
    assert len(lines) == 5
    beside = table(scores[~scores["method"].str.endswith("on scenes")], ["knn"], "mae").splitlines()
    assert beside[2].startswith("| byol | 3 | +0.113 [")
    assert len(beside) == 3


def test_pairs_of_methods_have_a_table_of_their_own() -> None:
    values = {"a, 2": [0.2, 0.3, 0.25], "b": [0.31, 0.42, 0.36], "c": [0.2, 0.29]}
    rows = [(m, seed, "knn", value) for m, found in values.items() for seed, value in enumerate(found)]
    scores = pandas.DataFrame(rows, columns=learning_causes.COLUMNS)
    lines = differences(scores, ["knn"], pairs_of("b minus a, 2|c minus a, 2"), "difference").splitlines()
    assert lines[0] == "| difference, p of 2 | n | knn |"
    assert lines[2].startswith("| b minus a, 2 | 3 | +0.113 [+0.099, +0.128], 3 of 3, p 0.00")
    assert lines[3].startswith("| c minus a, 2 | 2 | -0.005 [")
    with pytest.raises(argparse.ArgumentTypeError, match="METHOD minus METHOD"):
        pairs_of("b minus a|c")
