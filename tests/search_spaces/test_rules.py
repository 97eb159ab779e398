"""Rules between settings: what pretraining may see, whether cells can be compared."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pretune.search_spaces import schema
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.resolve import Study, from_dict
from pretune.search_spaces.stages import replicates, stages_of

DATA = {"d": {"dataset": "scenes"}}


def study(**changes: Any) -> Study:
    base: dict[str, Any] = {
        "study": "s",
        "data": DATA,
        "pretrain": {"data": "d", "method": {"name": "simclr"}, "epochs": 1},
        "finetune": {"data": "d", "epochs": 1},
    }
    return from_dict(base | changes)


def test_a_probe_shares_the_split_of_its_pretraining_and_no_other_seed_does() -> None:
    made = study(probe={"near": {"kind": "knn", "data": "d"}})
    seeds = replicates(made.header.seeds, "report")
    found = [stages_of(made.cells[0].configuration(), seed, made.header, lambda data: "x", True) for seed in seeds]
    assert all(stages["probe:near"].streams["split"] == stages["pretrain"].streams["split"] for stages in found)
    assert len({stages["probe:near"].streams["split"] for stages in found}) == len(seeds)


@pytest.mark.parametrize("sees", ["train+val", "all"])
@pytest.mark.parametrize("method", ["segmentation", "classification"])
def test_supervised_pretraining_never_sees_other_labels_than_those_for_training(method: str, sees: str) -> None:
    with pytest.raises(StudyError, match=f"pretrain.sees: {method} would train on the labels"):
        study(pretrain={"data": "d", "method": {"name": method}, "epochs": 1, "sees": sees})


def test_that_pretraining_sees_test_images_is_said() -> None:
    made = study(pretrain={"data": "d", "method": {"name": "simclr"}, "epochs": 1, "sees": "all"})
    assert any("also sees test images" in warning for warning in made.warnings)
    assert study().warnings == ()


def test_the_same_files_split_twice_are_said() -> None:
    again = {"dataset": "scenes", "split": {"seed": 1}}
    made = study(data=DATA | {"again": again}, finetune={"data": "again", "epochs": 1})
    assert any("the same files but different splits" in warning for warning in made.warnings)


@pytest.mark.parametrize(("split", "said"), [({}, True), ({"fold": "1/2"}, True), ("none", False)])
def test_a_pool_that_holds_back_a_test_set_is_said(split: Any, said: bool) -> None:
    pool = {"dataset": "image-folder", "root": "pool", "split": split}
    pretrain = {"data": "pool", "method": {"name": "simclr"}, "epochs": 1}
    made = study(data=DATA | {"pool": pool}, pretrain=pretrain)
    assert any("set `split: none` to pretrain on all images" in warning for warning in made.warnings) == said
    of_the_tested = study(pretrain=pretrain | {"data": "d"})
    assert not any("`split: none`" in warning for warning in of_the_tested.warnings)


def test_cells_with_other_test_images_are_said_and_other_validation_images_are_not() -> None:
    test = study(factors={"f": {"data.d.split.seed": [0, 1]}})
    assert any("the cells differ in test images" in warning for warning in test.warnings)
    assert study(factors={"f": {"data.d.split.val": [0.1, 0.2]}}).warnings == ()


def test_a_projection_from_more_levels_than_there_are_is_refused() -> None:
    method = {"name": "simclr", "projection_levels": 5}
    pretrain = {"data": "d", "method": method, "batch_size": 8, "steps": 2}
    with pytest.raises(StudyError, match=r"projection_levels 5, .* 4 levels"):
        study(pretrain=pretrain)
    study(pretrain=pretrain, model={"name": "resnet-unet", "depth": 18})
    study(pretrain=pretrain, model={"name": "timm-unet", "backbone": "whatever"})


@pytest.mark.parametrize(
    ("sizes", "metrics", "message"),
    [
        ([50], "test/jaccard", r"finetune\.test_sizes: 50 px is not a multiple of 8"),
        ([128], "test/jaccard", r"finetune: test_sizes: each once, and none is size \(128\)"),
        ([64], "test@96/jaccard", r"no fine-tuning is tested at 96 px \(add 96 to finetune.test_sizes\)"),
        ([64], "val@64/jaccard", r"no stage reports 'val@64/jaccard'"),
    ],
)
def test_other_test_sizes_must_fit_the_model_and_be_there(sizes: list[int], metrics: str, message: str) -> None:
    finetune = {"data": "d", "size": 128, "epochs": 1}
    with pytest.raises(StudyError, match=message):
        study(finetune=finetune | {"test_sizes": sizes}, report={"metrics": metrics})
    study(finetune=finetune | {"test_sizes": [64]}, report={"metrics": "test@64/jaccard"})


@pytest.mark.parametrize(
    ("method", "extra", "said"),
    [
        ({"name": "segmentation"}, ["elastic"], "elastic moves pixels"),
        ({"name": "segmentation"}, ["rotation"], "rotation moves pixels"),
        ({"name": "conrec", "tasks": ["original-colors"]}, ["rotation", "elastic"], "elastic moves pixels"),
        ({"name": "pixelcl"}, ["elastic", "rotation"], "rotation moves pixels"),
        ({"name": "pixelcl"}, ["elastic"], None),
        ({"name": "simclr"}, ["elastic", "rotation"], None),
    ],
)
def test_views_move_no_pixels_that_targets_cannot_follow(
    method: dict[str, Any], extra: list[str], said: str | None
) -> None:
    values = {"data": "d", "method": method, "views": {"extra": extra}, "epochs": 1}
    if said is None:
        assert schema.Pretrain.model_validate(values).views.extra == tuple(extra)
    else:
        with pytest.raises(ValueError, match=f"views.extra: {said} that this method's targets cannot follow"):
            schema.Pretrain.model_validate(values)


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("report.metrics", {"report": {"metrics": "test/boundary_f1/sky"}}),
        ("tune.target", {"tune": {"target": "val/boundary_f1"}}),
        ("tune.also", {"tune": {"also": "val/boundary_f1", "sampler": "nsga2"}}),
        ("tune.constraints", {"tune": {"constraints": {"val/boundary_f1": 0.5}}}),
    ],
)
def test_a_metric_that_a_setting_turns_on_is_named_only_where_it_is_on(where: str, changes: dict[str, Any]) -> None:
    (name,) = {"test/boundary_f1/sky", "val/boundary_f1"} & {*re.findall(r"[\w/]+", str(changes))}
    message = rf"{where}: {name} is computed only with finetune.boundary_tolerance \(set .*boundary_tolerance: 0.0075\)"
    with pytest.raises(StudyError, match=message):
        study(**changes)
    assert study(finetune={"data": "d", "epochs": 1, "boundary_tolerance": 0.01}, **changes)


@pytest.mark.parametrize("tolerance", [2, 0.75, -0.1])
def test_a_tolerance_in_px_or_percent_is_refused(tolerance: float) -> None:
    with pytest.raises(StudyError, match=r"finetune\.boundary_tolerance: .* 0"):
        study(finetune={"data": "d", "epochs": 1, "boundary_tolerance": tolerance})


def test_the_tolerance_of_boundaries_is_part_of_the_fingerprint_where_it_is_given() -> None:
    found = set()
    for extra in ({}, {"boundary_tolerance": None}, {"boundary_tolerance": 0.0075}, {"boundary_tolerance": 0.01}):
        made = study(finetune={"data": "d", "epochs": 1} | extra)
        seed = replicates(made.header.seeds, "report")[0]
        stages = stages_of(made.cells[0].configuration(), seed, made.header, lambda data: "x", True)
        found.add(stages["finetune"].fingerprint)
    assert len(found) == 3
