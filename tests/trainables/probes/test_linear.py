"""The linear probe, the probe stage on stored encoders, online kNN, and pictures of features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import loop
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import WEIGHTS
from pretune.trainables.pretrain import pretrain
from pretune.trainables.probes.accuracy import probe_accuracy
from pretune.trainables.probes.linear import Labelled, accuracy, classifier, linear_probe
from pretune.trainables.probes.maps import pca_map, similarity_map

MODEL = schema.UNet(widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4}
SPLIT = Split(train=np.arange(24), val=np.arange(24, 32), test=np.arange(32, 40))


def blobs(count: int, seed: int) -> Labelled:
    """Three Gaussian clouds in 5 dimensions that overlap a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = 2.0 * np.eye(5)[:3]
    x = centres[labels] + 0.7 * rng.standard_normal((count, 5))
    return Labelled(torch.from_numpy(x).float(), torch.from_numpy(labels))


def test_the_probe_is_as_good_as_logistic_regression() -> None:
    """scikit-learn's optimum of the same loss, without a penalty."""
    train, val = blobs(300, 0), blobs(400, 1)
    reference = LogisticRegression(C=np.inf, max_iter=2000).fit(train.features.numpy(), train.classes.numpy())
    expected = reference.score(val.features.numpy(), val.classes.numpy())
    scores = linear_probe(train, val, 40, 0.1, 64, batch_norm=False)
    assert scores.last == pytest.approx(expected, abs=0.01)
    assert 0.8 < scores.last <= scores.best


def test_last_and_best_are_reported_apart() -> None:
    """One epoch is the last and the best; of more epochs the best is never below the last."""
    clouds = blobs(60, 0)
    one = linear_probe(clouds, clouds, 1, 0.1, 16, batch_norm=False)
    assert one.last == one.best
    random = clouds._replace(classes=torch.arange(60) % 3)
    noisy = linear_probe(random, random, 12, 5.0, 8, batch_norm=False)
    assert noisy.best > noisy.last


def test_batch_norm_makes_the_scale_of_features_irrelevant() -> None:
    (x, y), (val_x, val_y) = blobs(200, 0), blobs(200, 1)
    small, large = (
        linear_probe(Labelled(f * x, y), Labelled(f * val_x, val_y), 3, 0.1, 64, batch_norm=True).last
        for f in (1.0, 100.0)
    )
    assert small == pytest.approx(large, abs=0.02)
    assert small > 0.8
    assert [p.shape for p in classifier(5, 3, batch_norm=True).parameters()] == [(3, 5), (3,)]  # no scale or shift


def test_the_same_features_give_the_same_score_whatever_came_before() -> None:
    clouds = blobs(50, 0)
    torch.manual_seed(1)
    first = linear_probe(clouds, clouds, 3, 0.1, 16, batch_norm=False)
    torch.manual_seed(2)
    assert linear_probe(clouds, clouds, 3, 0.1, 16, batch_norm=False) == first


def test_accuracy_by_hand() -> None:
    assert accuracy(nn.Identity(), torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])) == 2 / 3


# ---------------------------------------------------------------------------------------------------------- stages


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Scenes darkened to two levels of brightness, which are the classes: any encoder sees the difference."""
    chosen = schema.Scenes(dataset="scenes", images=40, cache_size=16)
    scenes = load_images(chosen, None, tmp_path_factory.mktemp("cache"))
    labels = np.arange(40) % 2
    pixels = np.where(labels[:, None, None, None] == 1, scenes.images, scenes.images // 8)
    return dataclasses.replace(scenes, images=pixels, labels=labels)


def train(data: ImageSet, out: Path, split: Split = SPLIT, **changes: Any) -> dict[str, float]:
    out.mkdir()
    body = {"data": "scenes", "method": {"name": "simclr", "hidden": 8, "dim": 4}, "views": {"size": 8}}
    stage = schema.Pretrain.model_validate(body | {"batch_size": 8, "epochs": 4} | changes)
    context = loop.RunContext(out, torch.device("cpu"))
    return pretrain(stage, MODEL, data, split, STREAMS, context)


def probed(how: schema.Probe, data: ImageSet, out: Path, split: Split = SPLIT) -> dict[str, float]:
    context = loop.RunContext(out, torch.device("cpu"), parent=out / WEIGHTS)
    return probe_accuracy(how, MODEL, data, split, context)


def test_a_linear_probe_of_a_stored_encoder(data: ImageSet, tmp_path: Path) -> None:
    train(data, tmp_path / "out")
    how = schema.LinearProbe(kind="linear", data="scenes", size=16, epochs=60, lr=1.0, batch_norm=True)
    scores = probed(how, data, tmp_path / "out")
    assert scores.keys() == {"probe/accuracy", "probe/accuracy_best"}
    assert scores["probe/accuracy"] >= 7 / 8


def test_a_probe_without_validation_images_or_classes_is_refused(data: ImageSet, tmp_path: Path) -> None:
    how = schema.KNN(kind="knn", data="scenes")
    with pytest.raises(ValueError, match="image classes and a pretrained"):
        probed(how, dataclasses.replace(data, labels=None), tmp_path)
    with pytest.raises(ValueError, match=r"split\.val leaves none"):
        probed(how, data, tmp_path, SPLIT._replace(val=np.arange(0)))


def test_online_knn_is_the_probe_of_that_moment_and_changes_nothing(data: ImageSet, tmp_path: Path) -> None:
    """Scored every second epoch; the last score is that of a kNN probe of the stored encoder."""
    plain = train(data, tmp_path / "plain")
    metrics = train(data, tmp_path / "online", online_knn_every=2)
    history = json.loads((tmp_path / "online/history.json").read_text())
    assert ["val/online_knn" in row for row in history] == [False, True, False, True]
    score = probed(schema.KNN(kind="knn", data="scenes", size=8), data, tmp_path / "online")
    assert metrics.pop("val/online_knn") == score["probe/accuracy"] == history[-1]["val/online_knn"]
    assert metrics == plain
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "online/model.safetensors").read_bytes()


def test_online_knn_is_refused_where_it_would_score_trained_images(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation images, .*sees: all"):
        train(data, tmp_path / "all", sees="all", online_knn_every=1)
    with pytest.raises(ValueError, match="online_knn_every needs image classes"):
        train(dataclasses.replace(data, labels=None), tmp_path / "unlabelled", online_knn_every=1)


def test_a_collapsed_run_says_so_in_its_notes(data: ImageSet, tmp_path: Path) -> None:
    """Images that are all the same have the same features, whatever is learned."""
    same = dataclasses.replace(data, images=np.repeat(data.images[:1], 40, axis=0))
    views = {"size": 8, "crop": [1.0, 1.0], "aspect": [1.0, 1.0], "flip": 0.0, "color_jitter": 0.0}
    metrics = train(same, tmp_path / "out", views=views)
    warnings = json.loads((tmp_path / "out/notes.json").read_text())["warnings"]
    assert metrics["train/collapse_signs"] == len(warnings) >= 2
    assert warnings[0].startswith("encoder_spread 0")
    assert metrics["train/encoder_spread"] < 0.01


# -------------------------------------------------------------------------------------------------------- pictures


def test_a_similarity_map_is_the_cosine_with_the_chosen_place() -> None:
    features = torch.tensor([[[1.0, 2.0], [0.0, -1.0]], [[0.0, 2.0], [3.0, 0.0]]])
    expected = torch.tensor([[1.0, 0.5**0.5], [0.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(similarity_map(features, 0, 0), expected)


def test_a_place_outside_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 3 map, got 2, 0"):
        similarity_map(torch.zeros(4, 2, 3), 2, 0)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_pca_map_is_numpys_svd(seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((2, 6, 3, 4)) * np.arange(1, 7)[:, None, None]
    x = features.transpose(0, 2, 3, 1).reshape(-1, 6)
    x = x - x.mean(axis=0)
    axes = np.linalg.svd(x)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    scores = x @ axes.T
    expected = ((scores - scores.min(axis=0)) / np.ptp(scores, axis=0)).reshape(2, 3, 4, 3).transpose(0, 3, 1, 2)
    assert np.abs(pca_map(torch.from_numpy(features)).numpy() - expected).max() < 1e-6


def test_components_without_variation_are_black() -> None:
    """Features along one direction: a ramp in red, nothing in green and blue."""
    ramp = torch.tensor([0.0, 1.0, 2.0, 4.0]).reshape(1, 1, 1, 4) * torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    picture = pca_map(ramp)[0, :, 0]
    assert torch.allclose(picture[0], torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    assert not picture[1:].any()


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 channels, got 2"):
        pca_map(torch.zeros(1, 2, 3, 3))
