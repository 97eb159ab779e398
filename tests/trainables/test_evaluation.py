"""Scores of images in tiles and under sliding windows: of whole images, each pixel once."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables import evaluation
from pretune.trainables.constants import IGNORE
from pretune.trainables.evaluation import Evaluator
from pretune.trainables.loop import DataFeed
from pretune.trainables.losses import cross_entropy_loss
from pretune.trainables.metrics.boundary import boundary_counts, boundary_f1, split_scores
from pretune.trainables.upload import upload
from pretune.trainables.windows import slide

CPU = torch.device("cpu")
CLASSES = ("ground", "leaf")
SIZES = {"a": (11, 7), "b": (4, 9), "c": (8, 8)}  # height, width in px; tiles of 4
TILE = 4


class Bright(nn.Module):
    """Leaf where red is above a half; a pixel's answer also depends on the mean of its window if `shared`."""

    def __init__(self, shared: float) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(shared))

    def forward(self, x: Tensor) -> Tensor:
        leaf = x[:, :1] - 0.5 + self.shared * (x.mean(dim=(1, 2, 3), keepdim=True) - 0.5)
        return torch.cat([-leaf, leaf], dim=1)


class Tiles:
    """Images of other sides than a multiple of the tile's, cut as `fit: tile` cuts them, in a mixed order."""

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self.images = {name: random.integers(1, 256, (*size, 3), np.uint8) for name, size in SIZES.items()}
        self.masks = {name: random.integers(0, 2, size).astype(np.uint8) for name, size in SIZES.items()}
        self.masks["a"][2, 3] = IGNORE
        pixels, masks, names = [], [], []
        for name, image in self.images.items():
            down, right = (-side % TILE for side in image.shape[:2])
            whole = np.pad(image, [(0, down), (0, right), (0, 0)])
            mask = np.pad(self.masks[name], [(0, down), (0, right)], constant_values=IGNORE)
            for y in range(0, len(whole), TILE):
                for x in range(0, whole.shape[1], TILE):
                    pixels.append(whole[y : y + TILE, x : x + TILE])
                    masks.append(mask[y : y + TILE, x : x + TILE])
                    names.append(f"{name}#r{y // TILE:03d}c{x // TILE:03d}")
        self.names = tuple(names)
        self.rows = np.random.default_rng(2).permutation(len(names))
        self.feeds = (DataFeed(np.stack(pixels), CPU), DataFeed(np.stack(masks), CPU))

    def evaluator(self, network: nn.Module, **changes: Any) -> Evaluator:
        plain = {"data": "d", "epochs": 1, "size": TILE, "batch_size": 2}
        chosen = schema.Finetune.model_validate(plain | changes)
        return Evaluator(network, *self.feeds, CLASSES, chosen, self.names)  # type: ignore[arg-type]

    def in_order(self) -> list[str]:
        """Names of the images as the split shows them first."""
        return list(dict.fromkeys(self.names[row].partition("#")[0] for row in self.rows))


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    torch.set_num_threads(1)
    return Tiles()


def jaccard(truth: Any, guess: Any) -> float:
    kept = truth != IGNORE
    return float(jaccard_score(truth[kept], guess[kept], average="macro"))


WINDOWS = [{}, {"evaluate": {"overlap": 0.0}}, {"evaluate": {"overlap": 0.5}}, {"evaluate": {"weights": "uniform"}}]


@pytest.mark.parametrize("changes", WINDOWS)
def test_scores_of_tiles_are_those_of_their_images(tiles: Tiles, changes: dict[str, Any]) -> None:
    """A network that looks at no neighbour: with and without windows the scores are scikit-learn's of whole images."""
    found = tiles.evaluator(Bright(0.0), average="image", boundary_tolerance=0.05, **changes).evaluate(
        tiles.rows, TILE, "test", 0
    )
    guesses = {name: (image[..., 0] > 127).astype(np.int64) for name, image in tiles.images.items()}
    order = tiles.in_order()
    masks = [tiles.masks[name] for name in order]
    pooled = [np.concatenate([x.ravel() for x in parts]) for parts in (masks, [guesses[name] for name in order])]
    assert found.scores["test/jaccard"] == pytest.approx(jaccard(*pooled))
    each = [jaccard(tiles.masks[name], guesses[name]) for name in order]
    assert found.scores["test/jaccard_images"] == pytest.approx(np.mean(each))
    f1 = torch.cat(
        [
            boundary_f1(
                boundary_counts(*(torch.from_numpy(x[None]).long() for x in (guesses[n], tiles.masks[n])), 2, 0.05)
            )
            for n in order
        ]
    )
    expected = {f"test/{name}": value for name, value in split_scores(f1, CLASSES).items()}
    assert {name: value for name, value in found.scores.items() if "boundary" in name} == pytest.approx(expected)
    assert [tiles.names[row].partition("#")[0] for row in found.images] == order
    assert found.counts[..., 1].sum(1).tolist() == [int((mask != IGNORE).sum()) for mask in masks]


def test_windows_reach_across_tiles(tiles: Tiles) -> None:
    """A network that looks at its whole window: predictions are those of `slide` over the uncut image."""
    network, how = Bright(3.0), schema.Evaluate(overlap=0.5)
    found = tiles.evaluator(network, evaluate=how.model_dump()).evaluate(tiles.rows, TILE, "test", 0)
    for name, counts in zip(tiles.in_order(), found.counts, strict=True):
        image = torch.from_numpy(tiles.images[name])
        with torch.no_grad():
            logits = slide(image, TILE, how, lambda x: network(x.float().movedim(-1, 1) / 255), 3)
        guess, truth = logits.argmax(0).numpy(), tiles.masks[name]
        assert counts[:, 2].tolist() == [int((guess[truth != IGNORE] == k).sum()) for k in (0, 1)]
    side_by_side = tiles.evaluator(network).evaluate(tiles.rows, TILE, "test", 0)
    assert not torch.equal(found.counts, side_by_side.counts)


def test_a_mean_over_batches_takes_whole_images(tiles: Tiles) -> None:
    """Batches of two images, whatever the number of their tiles."""
    found = tiles.evaluator(Bright(0.0), average="batch").evaluate(tiles.rows, TILE, "test", 0)
    order = tiles.in_order()
    parts = [order[:2], order[2:]]
    scores = [
        jaccard(
            np.concatenate([tiles.masks[name].ravel() for name in part]),
            np.concatenate([(tiles.images[name][..., 0] > 127).ravel() for name in part]),
        )
        for part in parts
    ]
    assert found.scores["test/jaccard_batches"] == pytest.approx(np.mean(scores))


def test_the_loss_is_the_mean_over_images_of_the_loss_of_each(tiles: Tiles) -> None:
    """Scores are of whole images, whatever their tiles and their sizes."""
    network = Bright(0.0)
    evaluator = dataclasses.replace(tiles.evaluator(network), loss=cross_entropy_loss)
    expected = []
    for name in tiles.in_order():
        image, mask = (torch.from_numpy(part) for part in (tiles.images[name], tiles.masks[name]))
        with torch.no_grad():
            logits = network(image.permute(2, 0, 1)[None].float() / 255)
        expected.append(float(F.cross_entropy(logits, mask[None].long(), ignore_index=IGNORE)))
    found = evaluator.evaluate(tiles.rows, TILE, "val", 0).scores
    assert found["val/loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert "val/loss" not in tiles.evaluator(network).evaluate(tiles.rows, TILE, "val", 0).scores


@pytest.mark.parametrize("changes", [{}, {"evaluate": {"overlap": 0.5}}])
def test_what_scoring_sends_goes_by_the_way_that_waits_for_nothing(
    tiles: Tiles, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that a batch belongs to and, of images in tiles, the tiles that are missing."""
    sent: list[np.ndarray[Any, Any]] = []

    def noting(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
        sent.append(array)
        return upload(array, device)

    monkeypatch.setattr(evaluation, "upload", noting)
    tiles.evaluator(Bright(0.0), **changes).evaluate(tiles.rows, TILE, "test", 0)
    positions = np.concatenate([array for array in sent if array.dtype != bool])
    assert sorted({*positions.tolist()}) == [*range(len(SIZES))]
    assert [array.any() for array in sent if array.dtype == bool] == ([False] * len(SIZES) if changes else [])
