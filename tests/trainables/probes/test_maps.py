"""Maps kept by probes: class activation by hand and against the classifier's logits, features of stored encoders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split, draw_split
from pretune.trainables.files import MAPS, WEIGHTS
from pretune.trainables.loop import RunContext
from pretune.trainables.models.table import build_encoder
from pretune.trainables.pretrain import pretrain
from pretune.trainables.probes.features import pixels_of
from pretune.trainables.probes.maps import (
    class_activation_maps,
    explained_variance,
    pca_map,
    similarity_map,
    write_maps,
)

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
SPLIT = schema.Split(test=0.25, val=0.25, seed=0)
CLASSES = schema.CAM(kind="cam", data="d", size=16, count=3)
FEATURES = schema.FeatureMaps(kind="maps", data="d", size=16, count=3, place=(0.0, 0.99))


def test_class_activation_by_hand() -> None:
    """Two channels of 2 x 2. Class 1 weighs them (2, -1): top left 2 * 1 - 3 = -1, top right 2 * 0 - 1 = -1, bottom
    left 2 * 4 - 0 = 8, bottom right 2 * 2 - 2 = 2; their mean is 2. Class 0 weighs them (0, 1): the second channel."""
    maps = torch.tensor([[[[1.0, 0], [4, 2]], [[3, 1], [0, 2]]]]).repeat(2, 1, 1, 1)
    weight = torch.tensor([[0.0, 1], [2, -1]])
    found = class_activation_maps(maps, weight, torch.tensor([1, 0]))
    assert found.tolist() == [[[-1, -1], [8, 2]], [[3, 1], [0, 2]]]
    assert (maps.mean(dim=(2, 3)) @ weight.T)[0, 1] == 2


def test_explained_variance() -> None:
    """Four independent directions of variance 4, 3, 2, 1 leave 9 tenths to three; constant features leave nothing."""
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    x = torch.cat([signs, -signs]) * torch.tensor([4.0, 3, 2, 1]).sqrt()
    assert explained_variance(x.T.reshape(1, 4, 2, 4)) == pytest.approx(0.9)
    assert explained_variance(torch.ones(1, 4, 2, 4)) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """24 scenes with classes: bright ones and dark ones."""
    torch.set_num_threads(1)
    made = load_images(
        schema.Scenes(dataset="scenes", images=24, cache_size=16), None, tmp_path_factory.mktemp("cache")
    )
    labels = np.arange(24, dtype=np.int64) % 2
    images = (made.images * np.array([0.3, 1.0])[labels][:, None, None, None]).astype(np.uint8)
    return dataclasses.replace(made, images=images, labels=labels)


@pytest.fixture(scope="module")
def split(data: ImageSet) -> Split:
    return draw_split(24, SPLIT, 3, None)


@pytest.fixture(scope="module")
def classified(data: ImageSet, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pretraining by classification leaves."""
    out = tmp_path_factory.mktemp("classification")
    body = {"data": "d", "method": {"name": "classification"}, "views": {"size": 16}, "batch_size": 4, "steps": 30}
    body |= {"optimizer": {"lr": 0.01}}
    streams = {"init": 1, "order": 2, "augmentation": 3, "split": 4}
    pretrain(schema.Pretrain.model_validate(body), MODEL, data, split, streams, RunContext(out, CPU))
    return out / WEIGHTS


def written(settings: Any, parent: Path, data: ImageSet, split: Split, out: Path) -> tuple[dict[str, float], Any]:
    out.mkdir()
    metrics = write_maps(settings, MODEL, data, split, RunContext(out, CPU, parent))
    with np.load(out / MAPS, allow_pickle=False) as file:
        return metrics, dict(file)


def test_a_map_averages_to_the_logit_of_its_class(
    classified: Path, data: ImageSet, split: Split, tmp_path: Path
) -> None:
    """Recomputed from the stored weights, without anything of the probe."""
    assert data.labels is not None
    metrics, kept = written(CLASSES, classified, data, split, tmp_path / "a")
    encoder, head = build_encoder(MODEL), nn.Linear(8, 2)
    checkpoints.load_part(encoder, classified, "encoder")
    checkpoints.load_part(head, classified, "head")
    pixels = torch.from_numpy(data.images[split.val]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = head(encoder.eval()(pixels)[-1].mean(dim=(2, 3)))
    labels = data.labels[split.val]
    expected = logits.gather(1, torch.from_numpy(labels)[:, None])[:3, 0] - head.bias[labels[:3]]
    assert kept["maps"].mean(axis=(1, 2)) == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert kept["maps"].shape == (3, 8, 8)
    assert kept["images"].tolist() == split.val[:3].tolist()
    assert kept["labels"].tolist() == labels[:3].tolist()
    assert kept["predicted"].tolist() == logits.argmax(dim=1)[:3].tolist()
    assert metrics == {"probe/accuracy": pytest.approx(float((logits.argmax(dim=1).numpy() == labels).mean()))}
    assert np.array_equal(kept["pixels"], data.images[split.val[:3]])


@pytest.mark.parametrize(("level", "size"), [(1, 8), (2, 16)])
def test_feature_maps_are_those_of_the_stored_encoder(
    classified: Path, data: ImageSet, split: Split, tmp_path: Path, level: int, size: int
) -> None:
    metrics, kept = written(FEATURES.model_copy(update={"level": level}), classified, data, split, tmp_path / "a")
    encoder = build_encoder(MODEL)
    checkpoints.load_part(encoder, classified, "encoder")
    pixels = pixels_of(lambda indices: torch.from_numpy(data.images[indices]), split.val[:3], 16)
    with torch.no_grad():
        features = encoder.eval()(pixels)[-level]
    assert kept["place"].tolist() == [0, size - 1]
    for one, found in zip(features, kept["similarity"], strict=True):
        assert np.allclose(found, similarity_map(one, 0, size - 1).numpy(), atol=1e-6)
        assert found[0, size - 1] == pytest.approx(float(one[:, 0, size - 1].any()))  # 0 where there are no features
    expected: NDArray[np.float64] = pca_map(features).permute(0, 2, 3, 1).numpy()
    assert np.allclose(kept["components"], expected, atol=1e-5)
    assert metrics == {"probe/explained_variance": pytest.approx(explained_variance(features))}
    assert 0 < metrics["probe/explained_variance"] <= 1


def test_what_lacks_is_said(classified: Path, data: ImageSet, split: Split, tmp_path: Path) -> None:
    checkpoints.save_weights(nn.ModuleDict({"encoder": build_encoder(MODEL)}), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="the classifier of a classification"):
        written(CLASSES, tmp_path / "bare.safetensors", data, split, tmp_path / "a")
    with pytest.raises(ValueError, match=r"split.val leaves none"):
        written(FEATURES, classified, data, split._replace(val=split.val[:0]), tmp_path / "b")
    with pytest.raises(ValueError, match="level 3: this encoder has 2 levels"):
        written(FEATURES.model_copy(update={"level": 3}), classified, data, split, tmp_path / "c")
