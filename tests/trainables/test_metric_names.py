"""Every metric that fine-tunings and probes write stands in the table of metrics.

Those of pretraining methods: tests/trainables/test_contract_methods.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pretune.search_spaces import schema
from pretune.search_spaces.identities import trained_settings
from pretune.search_spaces.metrics import DEFINITIONS, is_reportable, pattern_of, setting_of
from pretune.search_spaces.schema.scores import AVERAGE_SCORES, AVERAGES, EXTRA_SCORES
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import RunContext
from pretune.trainables.metrics.table import SCORERS
from pretune.trainables.models.table import build_encoder
from pretune.trainables.probes import accuracy, cka, maps

CPU = torch.device("cpu")
MODEL = schema.UNet(widths=(4, 8))
STREAMS = {"init": 1, "order": 2, "labels": 3, "augmentation": 4, "split": 5}
SPLIT = Split(train=np.arange(24), val=np.arange(24, 32), test=np.arange(32, 40))


def missing(names: set[str]) -> list[str]:
    return [name for name in sorted(names) if pattern_of(name) not in DEFINITIONS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 scenes of 32 px in two classes of pixels called `bone loss` and `glossy`, and three of images."""
    torch.set_num_threads(1)
    made = load_images(
        schema.Scenes(dataset="scenes", images=40, cache_size=32), None, tmp_path_factory.mktemp("cache")
    )
    assert made.masks is not None
    two = np.minimum(np.asarray(made.masks), 1)
    return dataclasses.replace(made, masks=two, classes=("bone loss", "glossy"), labels=np.arange(40) % 3)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    encoder, path = build_encoder(MODEL), tmp_path / "parent.safetensors"
    checkpoints.save_weights(torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(8, 3)}), path)
    return path


@pytest.mark.parametrize("average", AVERAGES)
def test_finetuning_writes_what_the_table_knows(data: ImageSet, tmp_path: Path, average: str) -> None:
    plain = {"data": "d", "size": 32, "epochs": 9, "validate_every": 1, "patience": 1, "optimizer": {"lr": 1e-12}}
    asked = {setting: extra.value for setting, extra in EXTRA_SCORES.items()}
    chosen = schema.Finetune.model_validate(
        plain | asked | {"average": average, "score_loss": True, "test_sizes": [16]}
    )
    written = finetune(chosen, MODEL, data, SPLIT, STREAMS, RunContext(tmp_path, CPU), on_test=True)
    history = json.loads((tmp_path / "history.json").read_text(encoding="utf-8"))
    names = {*written, *(key for row in history for key in row if key not in ("step", "epoch"))}
    assert missing(names) == []
    others = {name for value, extra in AVERAGE_SCORES.items() if value != average for name in extra.rows}
    defined = [key for key in DEFINITIONS if key.startswith("SPLIT/") and key not in others]
    of_classes = [key.split("/")[1] for key in defined if key.endswith("/CLASS")]
    of_splits = [key.split("/")[1] for key in defined if not key.endswith("/CLASS")]
    per_class = {f"{score}/{label}" for score in of_classes for label in data.classes}
    expected = {f"{split}/{name}" for split in ("val", "test", "test@16") for name in {*of_splits, *per_class}}
    expected |= {"train/loss", "train/stopped_epoch"}
    assert sorted(expected - names) == [], "defined in search_spaces, and not computed"
    assert sorted(names - expected) == []
    assert all(map(is_reportable, expected - {"train/loss", "train/stopped_epoch"}))


def test_every_extra_score_has_its_setting_and_its_scorer() -> None:
    asked = sorted(schema.ExtraSettings.model_fields.keys() - {"average"})
    assert asked == sorted(EXTRA_SCORES), "search_spaces/schema/scores.py"
    assert sorted(SCORERS) == sorted(EXTRA_SCORES), "SCORERS in trainables/metrics/table.py"


@pytest.mark.parametrize("setting", EXTRA_SCORES)
def test_an_extra_score_has_its_test_and_is_in_no_fingerprint_where_it_is_off(setting: str) -> None:
    module = SCORERS[setting].__module__.rpartition(".")[2]
    assert (Path(__file__).parent / f"test_{module}.py").exists(), f"{setting}: tests/trainables/test_{module}.py"
    if setting != "threshold_scores":  # older than this rule, and in the fingerprints of all fine-tunings
        assert setting not in trained_settings(schema.Finetune(data="d", epochs=1)), f"{setting}: default it to None"


def test_an_extra_score_is_computed_where_asked_alone(data: ImageSet, tmp_path: Path) -> None:
    plain = schema.Finetune.model_validate({"data": "d", "size": 32, "epochs": 1, "optimizer": {"lr": 1e-12}})
    written = finetune(plain, MODEL, data, SPLIT, STREAMS, RunContext(tmp_path, CPU), on_test=True)
    assert [name for name in written if setting_of(name)] == []


@pytest.mark.parametrize(
    "settings",
    [schema.KNN(kind="knn", data="d", size=32), schema.LinearProbe(kind="linear", data="d", size=32, epochs=1)],
    ids=lambda settings: settings.kind,
)
def test_probes_of_accuracy_write_what_the_table_knows(
    settings: schema.KNN | schema.LinearProbe, data: ImageSet, parent: Path, tmp_path: Path
) -> None:
    written = accuracy.probe_accuracy(settings, MODEL, data, SPLIT, RunContext(tmp_path, CPU, parent=parent))
    assert "probe/accuracy" in written
    assert missing(set(written)) == []


@pytest.mark.parametrize(
    "settings",
    [schema.CAM(kind="cam", data="d", size=32), schema.FeatureMaps(kind="maps", data="d", size=32)],
    ids=lambda settings: settings.kind,
)
def test_maps_write_what_the_table_knows(
    settings: schema.CAM | schema.FeatureMaps, data: ImageSet, parent: Path, tmp_path: Path
) -> None:
    written = maps.write_maps(settings, MODEL, data, SPLIT, RunContext(tmp_path, CPU, parent=parent))
    assert missing(set(written)) == []


def test_pairwise_probes_write_what_the_table_knows(data: ImageSet, parent: Path) -> None:
    settings = schema.CKA(kind="cka", data="d", between="f", size=32)
    written = cka.compare_encoders(settings, (MODEL, MODEL), (parent, parent), data, SPLIT, CPU)
    assert set(written) == {"probe/level1", "probe/output"}
    assert missing(set(written)) == []
