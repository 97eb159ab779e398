"""The kNN probe: votes worked by hand, scikit-learn as a reference, and what it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split
from pretune.trainables.loop import DataFeed, RunContext
from pretune.trainables.models.table import build_encoder
from pretune.trainables.probes import accuracy
from pretune.trainables.probes.accuracy import knn, probe_accuracy
from pretune.trainables.probes.features import embed

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
SPLIT = schema.Split(test=0.25, val=0.25, seed=0)
SETTINGS = schema.KNN(kind="knn", data="d", size=16, k=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """24 images, red ones of class 0 and blue ones of class 1 (black ones would have no features to normalise)."""
    torch.set_num_threads(1)
    chosen = schema.Scenes(dataset="scenes", images=24, cache_size=16)
    made = load_images(chosen, None, tmp_path_factory.mktemp("cache"))
    labels = np.arange(24, dtype=np.int64) % 2
    colours = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    images = np.ones_like(made.images) * colours[labels][:, None, None, :]
    return dataclasses.replace(made, images=images, labels=labels)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "parent.safetensors"
    checkpoints.save_weights(nn.ModuleDict({"encoder": build_encoder(MODEL)}), path)
    return path


def test_queries_are_compared_in_parts_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = (nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (23, 50))
    labels = torch.randint(4, (50,), generator=generator)
    whole = knn(queries, bank, labels, 7, 0.1)
    seen: list[int] = []
    monkeypatch.setattr(
        Tensor, "topk", lambda x, *a, _topk=Tensor.topk, **k: seen.append(x.numel()) or _topk(x, *a, **k)
    )
    monkeypatch.setattr(accuracy, "SIMILARITIES_BYTES", 4 * 50 * 10)
    assert knn(queries, bank, labels, 7, 0.1).tolist() == whole.tolist()
    assert seen == [10 * 50, 10 * 50, 3 * 50]
    monkeypatch.setattr(accuracy, "SIMILARITIES_BYTES", 1)  # a bank larger than the memory: one query after the other
    assert knn(queries, bank, labels, 7, 0.1).tolist() == whole.tolist()


@pytest.mark.parametrize(
    ("k", "temperature", "expected"),
    [
        (1, 1.0, 0),  # the nearest alone
        (3, 1.0, 1),  # e^1 = 2.72 against e^.6 + e^0 = 2.82
        (99, 1.0, 1),  # k is cut to the three there are
        (3, 0.1, 0),  # e^10 against e^6 + 1
        (2, 1.0, 0),  # e^1 against e^.6
    ],
)
def test_votes_are_weighted_by_similarity(k: int, temperature: float, expected: int) -> None:
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    predicted = knn(torch.tensor([[1.0, 0.0]]), bank, torch.tensor([0, 1, 1]), k, temperature)
    assert predicted.tolist() == [expected]


def test_votes_agree_with_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = (nn.functional.normalize(torch.randn(n, 6, generator=rng), dim=1) for n in (80, 40))
    labels = torch.randint(0, 4, (80,), generator=rng)

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.1)

    reference = KNeighborsClassifier(9, metric="cosine", algorithm="brute", weights=weights)
    reference.fit(bank.numpy(), labels.numpy())
    assert knn(queries, bank, labels, 9, 0.1).tolist() == reference.predict(queries.numpy()).tolist()


def test_an_encoder_tells_red_from_blue(tmp_path: Path, data: ImageSet, parent: Path) -> None:
    split = draw_split(24, SPLIT, 1, None)
    context = RunContext(tmp_path, CPU, parent)
    assert probe_accuracy(SETTINGS, MODEL, data, split, context) == {"probe/accuracy": 1.0}


def test_shuffled_classes_are_not_known(tmp_path: Path, data: ImageSet, parent: Path) -> None:
    """Validation labels turned round: every one is wrong."""
    split = draw_split(24, SPLIT, 1, None)
    assert data.labels is not None
    labels = data.labels.copy()
    labels[split.val] = 1 - labels[split.val]
    wrong = dataclasses.replace(data, labels=labels)
    assert probe_accuracy(SETTINGS, MODEL, wrong, split, RunContext(tmp_path, CPU, parent)) == {"probe/accuracy": 0.0}


def test_features_are_normalised_and_leave_the_encoder_as_it_was(data: ImageSet) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(MODEL).eval()
    before = checkpoints.clone_state(encoder)
    features = embed(encoder, DataFeed(data.images, CPU), np.arange(24), 8)
    assert features.shape == (24, 8)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(24))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_probe_needs_classes_and_an_encoder(tmp_path: Path, data: ImageSet, parent: Path) -> None:
    split = draw_split(24, SPLIT, 1, None)
    unlabelled = dataclasses.replace(data, labels=None)
    for given, weights in ((unlabelled, parent), (data, None)):
        with pytest.raises(ValueError, match="image classes and a pretrained"):
            probe_accuracy(SETTINGS, MODEL, given, split, RunContext(tmp_path, CPU, weights))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_on_test_scores_the_test_images_by_what_all_others_teach(
    kind: str, tmp_path: Path, data: ImageSet, parent: Path
) -> None:
    """With the test images' classes turned round all are wrong; with those of the others turned round too, right. The
    one training image, which has one class, could teach neither by itself."""
    split = draw_split(24, SPLIT, 1, None)
    split = split._replace(train=split.train[:1], val=np.concatenate((split.train[1:], split.val)))
    chosen: dict[str, Any] = {"kind": kind, "data": "d", "size": 16, "on": "test"}
    chosen |= {"batch_norm": True} if kind == "linear" else {}  # the features of a random encoder are small
    settings = TypeAdapter[schema.KNN | schema.LinearProbe](schema.Probe).validate_python(chosen)
    assert data.labels is not None
    for turned, expected in ((split.test, 0.0), (np.arange(24), 1.0)):
        labels = data.labels.copy()
        labels[turned] = 1 - labels[turned]
        given = dataclasses.replace(data, labels=labels)
        assert (
            probe_accuracy(settings, MODEL, given, split, RunContext(tmp_path, CPU, parent))["probe/accuracy"]
            == expected
        )
    with pytest.raises(ValueError, match=r"split\.test leaves none"):
        probe_accuracy(settings, MODEL, data, split._replace(test=split.test[:0]), RunContext(tmp_path, CPU, parent))
