"""What stages ask of data sets: told in sentences exactly where the stage itself could not run."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables.data.checks.requirements import (
    Facts,
    check_requirements,
    facts_of_images,
    facts_of_settings,
    unmet,
)
from pretune.trainables.data.errors import DataError, RequirementsError
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split, label_subset, visible
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import build_method
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.views.regions import uses_regions

DATA: TypeAdapter[schema.Data] = TypeAdapter(schema.Data)
STAGES: TypeAdapter[Any] = TypeAdapter(schema.Pretrain | schema.Finetune | schema.Probe)

LABELS = np.arange(20, dtype=np.int64) % 4
ALL = Facts(20, 3, LABELS, np.arange(20) < 5, regions=True, depth=True)
BARE = Facts(20, 0, None, None, regions=False, depth=False)
FOLDER = {"dataset": "image-folder", "root": "photos"}


def pretrain(**changes: Any) -> schema.Pretrain:
    return schema.Pretrain.model_validate({"data": "mine", "method": {"name": "simclr"}, "epochs": 1} | changes)


def finetune(**changes: Any) -> schema.Finetune:
    return schema.Finetune.model_validate({"data": "mine", "epochs": 1} | changes)


def unmet_of(settings: Any, facts: Facts, data: dict[str, Any] = FOLDER, workers: int = 1) -> list[str]:
    where = {schema.Pretrain: "pretrain", schema.Finetune: "finetune"}.get(type(settings), "probe.p")
    return list(unmet(where, settings, DATA.validate_python(data), facts, workers))


@pytest.mark.parametrize("name", sorted(name for name, facts in schema.FACTS.items() if facts.trains))
def test_the_facts_say_what_the_modules_read(name: str) -> None:
    """`images` are always there; `region boxes` come from regions."""
    model = schema.UNet(widths=(4, 8))
    small = {"hidden": 8, "dim": 4, "bottleneck": 4, "prototypes": 4, "queue": 8, "local_views": 0}
    settings = pretrain(method={"name": name})
    fields = type(settings.method).model_fields
    chosen = settings.method.model_copy(update={key: value for key, value in small.items() if key in fields})
    parts = Parts(build_encoder(model), lambda: build_decoder(model), 3, 4)
    method = build_method(chosen, schema.Views(size=16), parts)
    reads = (method.requirements - {"images"}) | ({"regions"} if uses_regions(method.recipes) else set())
    assert reads == set(schema.FACTS[name].requires)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (pretrain(method={"name": "classification"}), "pretrain.method: classification needs image classes"),
        (pretrain(method={"name": "segmentation"}), "pretrain.method: segmentation needs masks"),
        (pretrain(method={"name": "samclr"}), "pretrain.method: samclr needs regions"),
        (pretrain(method={"name": "pixelcl++"}), "pretrain.method: pixelcl++ needs depth maps"),
        (pretrain(views={"within": "region"}), "pretrain.views.within: region needs regions"),
        (pretrain(online_knn_every=2), "pretrain.online_knn_every: 2 needs image classes"),
        (finetune(), "finetune.data: mine needs masks"),
        (schema.KNN(kind="knn", data="mine"), "probe.p: knn needs image classes"),
        (schema.LinearProbe(kind="linear", data="mine"), "probe.p: linear needs image classes"),
        (schema.CAM(kind="cam", data="mine"), "probe.p: cam needs image classes"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is_and_a_way(settings: Any, expected: str) -> None:
    (sentence,) = unmet_of(settings, BARE)
    assert sentence.startswith(f"{expected}, but data.mine (image-folder) has none; ")
    assert unmet_of(settings, ALL) == []


def test_weights_are_of_classes_that_there_are() -> None:
    named = dataclasses.replace(ALL, classes=("ground", "leaf", "spot"))
    (sentence,) = unmet_of(finetune(loss="focal", class_weights={"leef": 2.0, "leaf": 3.0}), named)
    assert sentence == (
        "finetune.class_weights names 'leef', but the classes of data.mine (image-folder) are ground, leaf, spot; use "
        "their names"
    )
    assert unmet_of(finetune(loss="focal", class_weights={"leaf": 3.0}), named) == []


@pytest.mark.parametrize(
    ("settings", "data", "way"),
    [
        (pretrain(method={"name": "classification"}), FOLDER, "put its images into one folder for each class"),
        (pretrain(method={"name": "samclr"}), FOLDER, "add `regions: {name: felzenszwalb}`"),
        (pretrain(method={"name": "pixelcl++"}), FOLDER, "add `depth: {weights: FOLDER}`"),
        (finetune(), {"dataset": "parquet", "root": "x"}, "name the column that holds them as `mask:`"),
        (finetune(), {"dataset": "cifar10"}, "use a data set that has them"),
    ],
)
def test_the_way_is_that_of_the_data_set(settings: Any, data: dict[str, Any], way: str) -> None:
    (sentence,) = unmet_of(settings, BARE, data)
    assert way in sentence


def split(**values: Any) -> dict[str, Any]:
    return FOLDER | {"split": values}


@pytest.mark.parametrize(
    ("settings", "data", "expected"),
    [
        (
            finetune(labels=17),
            FOLDER,
            "17 labelled images requested, but data.mine (image-folder) has 16 images for tr",
        ),
        (finetune(checkpoint="best"), split(val=0.01), "finetune.checkpoint: best needs validation images, but"),
        (finetune(threshold_scores=True), FOLDER, "the masks of data.mine (image-folder) have 3; remove it"),
        (pretrain(), split(test=19, val=0), "pretrain.sees: train shows pretraining 1 image of the 20"),
        (pretrain(online_knn_every=1), split(val=0), "data.mine.split.val: 0 of 20 images leaves none"),
        (pretrain(method={"name": "moco"}, batch_size=8), FOLDER, "pretrain.method.bn_splits: 8 parts of 2 images"),
        (schema.KNN(kind="knn", data="mine"), split(val=0), "probe.p: knn is scored on validation images, but"),
        (
            schema.CKA(kind="cka", data="mine", between="f"),
            split(val=3),
            "cka compares at least 4 images at once, and 3",
        ),
        (schema.CKA(kind="cka", data="mine", between="f", batch_size=4), split(val=5), "and 5 images of data.mine"),
        (finetune(), split(test=20), "data.mine.split: 20 images leave train 0"),
        (
            finetune(),
            FOLDER | {"split": "none"},
            "finetune is scored on test images, but data.mine.split.test: 0 leaves",
        ),
        (schema.KNN(kind="knn", data="mine", on="test"), split(test=0), "probe.p: knn is scored on test images, but"),
    ],
)
def test_too_few_images_are_counted(settings: Any, data: dict[str, Any], expected: str) -> None:
    (sentence,) = unmet_of(settings, ALL, data)
    assert expected in sentence


def test_a_batch_that_does_not_divide_among_workers_is_unmet_of() -> None:
    (sentence,) = unmet_of(pretrain(batch_size=64), ALL, FOLDER, workers=3)
    assert "pretraining sees 16 images" in sentence
    assert "set it to 15" in sentence
    assert unmet_of(pretrain(batch_size=15), ALL, FOLDER, workers=3) == []


def test_classification_takes_two_classes() -> None:
    (sentence,) = unmet_of(pretrain(method={"name": "classification"}), replace(ALL, labels=np.zeros(20, np.int64)))
    assert sentence.endswith("needs at least two image classes; data.mine (image-folder) has 1")


def test_all_problems_of_a_stage_are_told_at_once() -> None:
    data = split(stratify=True, test="official")
    found = unmet_of(pretrain(method={"name": "classification"}, online_knn_every=1), BARE, data)
    starts = [sentence.split(",")[0] for sentence in found]
    assert starts == [
        "data.mine.split: `stratify: true`",
        "data.mine.split: `test: official`",
        "pretrain.method: classification needs image classes",
        "pretrain.online_knn_every: 1 needs image classes",
    ]
    with pytest.raises(RequirementsError) as caught:
        check_requirements("pretrain", pretrain(method={"name": "classification"}), DATA.validate_python(data), BARE)
    assert len(caught.value.problems) == 3


def test_what_is_stratified_needs_no_more_than_classes() -> None:
    assert unmet_of(finetune(), ALL, split(stratify=True, test="official")) == []


def test_ready_made_weights_ask_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    method = {"name": "weights", "source": str(tmp_path / "w.pt")}
    assert unmet_of(schema.Pretrain.model_validate({"data": "mine", "method": method}), BARE) == []


parts = st.one_of(st.integers(1, 12), st.floats(0, 0.9))


@given(
    n=st.integers(1, 12), test=parts, val=parts, labels=st.one_of(st.integers(1, 12), st.floats(0.01, 1)),
    sees=st.sampled_from(["train", "train+val", "all"]), stratify=st.booleans(), seed=st.integers(0, 5),
)  # fmt: skip
def test_a_stage_is_refused_exactly_where_its_own_steps_would_raise(
    n: int, test: Any, val: Any, labels: Any, sees: Any, stratify: bool, seed: int
) -> None:
    """The reference: draw the split of a replicate, then its labels, or the images that pretraining sees."""
    data = DATA.validate_python(split(test=test, val=val, stratify=stratify))
    facts = Facts(n, 3, np.arange(n) % 2, None, False, False)

    def fails(train: bool) -> bool:
        try:
            drawn = draw_split(n, data.split, seed, None, facts.labels)
            if train:
                return len(visible(drawn, sees)) < 2
            label_subset(drawn.train, labels, seed)
            return len(drawn.test) == 0  # nothing to be scored on
        except DataError:
            return True

    for_pretraining = list(unmet("pretrain", pretrain(sees=sees), data, facts))
    for_finetuning = list(unmet("finetune", finetune(labels=labels), data, facts))
    assert (bool(for_pretraining), bool(for_finetuning)) == (fails(True), fails(False))


def test_what_is_listed_is_what_is_opened(tmp_path: Path) -> None:
    """Of what is generated; folders and shards have theirs in the tests of a whole study."""
    for chosen in ({"dataset": "scenes", "images": 6, "cache_size": 32}, {"dataset": "volumes", "images": 3}):
        settings = DATA.validate_python(chosen | {"limit": 2})
        assert facts_of_settings(settings) == facts_of_images(load_images(settings, None, tmp_path))


def test_regions_and_depth_count_where_they_are_asked_for(tmp_path: Path) -> None:
    scene = schema.Scenes(dataset="scenes", images=4, cache_size=32)
    opened = load_images(scene, None, tmp_path)
    assert facts_of_images(replace(opened, regions=None)).regions is False
    assert facts_of_settings(scene).regions is True


@pytest.mark.parametrize(
    ("settings", "data", "expected"),
    [
        (
            finetune(),
            FOLDER,
            "finetune.data: mine needs masks, but data.mine (image-folder) has none; set",
        ),
        (pretrain(method={"name": "segmentation"}), FOLDER, "pretrain.method: segmentation needs masks, but"),
        (pretrain(method={"name": "samclr"}), FOLDER, "pretrain.method: samclr needs regions, but"),
        (finetune(checkpoint="best"), {"dataset": "camvid", "split": {"val": 0}}, "best needs validation images, but"),
        (schema.KNN(kind="knn", data="mine"), split(val=0), "probe.p: knn is scored on validation images, but"),
        (
            schema.CKA(kind="cka", data="mine", between="f"),
            split(val=0),
            "cka compares validation images, but",
        ),
    ],
)
def test_settings_alone_show_what_no_file_can_change(settings: Any, data: dict[str, Any], expected: str) -> None:
    chosen = DATA.validate_python(data)
    (sentence,) = unmet_of(settings, facts_of_settings(chosen), data)
    assert expected in sentence


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        (finetune(labels=10_000, checkpoint="best", patience=3), {"dataset": "camvid"}),
        (finetune(checkpoint="best"), {"dataset": "camvid", "split": {"val": 0, "val_fold": "1/5"}}),
        (pretrain(method={"name": "classification"}, online_knn_every=1), FOLDER),
        (schema.KNN(kind="knn", data="mine", on="test"), split(val=0)),
        (schema.CKA(kind="cka", data="mine", between="f", images="all"), split(val=0)),
        (schema.CKA(kind="cka", data="mine", between="f"), split(val=3)),
    ],
)
def test_what_only_files_can_show_is_not_judged_by_settings(settings: Any, data: dict[str, Any]) -> None:
    assert unmet_of(settings, facts_of_settings(DATA.validate_python(data)), data) == []
