"""Volumes and images do not mix, and volumes are taken whole: every mistake has its line and its fix."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pretune.search_spaces.document import StudyError
from pretune.search_spaces.identities import encoder_of
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.schema import GenesisUNet

STUDY: dict[str, Any] = {
    "study": "solid",
    "data": {
        "cubes": {"dataset": "volumes", "images": 20, "cache_size": 16, "slices": 8, "split": {"test": 4, "val": 4}},
        "scenes": {"dataset": "scenes", "images": 20, "cache_size": 16, "split": {"test": 4, "val": 4}},
    },
    "model": {"name": "genesis-unet", "widths": [4, 8]},
    "pretrain": {"data": "cubes", "method": {"name": "genesis"}, "views": {"size": 16}, "batch_size": 4, "epochs": 1},
    "finetune": {"data": "cubes", "size": 16, "epochs": 1, "threshold_scores": True},
    "factors": {"start": {"random": {"finetune.transfer": "none"}, "both": {"finetune.transfer": "encoder+decoder"}}},
    "report": {"rows": "start", "columns": [], "metrics": ["test/jaccard_thresholds"]},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    study = copy.deepcopy(STUDY)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = study
        for part in path:
            place = place[part]
        place[last] = value
    return study


def test_a_study_of_volumes_is_accepted() -> None:
    assert len(from_dict(changed({})).cells) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "unet", "widths": [4, 8]}}, "takes images, and cubes holds volumes"),
        ({"finetune.data": "scenes"}, "takes volumes, and scenes holds images.*set model.dimensions: 2"),
        ({"data.cubes.slices": 7}, "7 slices are not a multiple of 2"),
        ({"finetune.size": 32}, "32 px is not the 16 px of cubes.*set it to 16"),
        ({"pretrain.views.size": 8}, "8 px is not the 16 px of cubes"),
        ({"pretrain.views": {"size": 16, "gray": 0.2}}, "of these settings only `size` is used"),
        ({"finetune.augment": {"crop": [0.5, 1.0]}}, "volumes are flipped, not cropped"),
        ({"finetune.test_sizes": [32]}, "volumes are taken whole, at one size"),
        ({"pretrain.method": {"name": "mae"}}, "mae takes images, and cubes holds volumes.*use genesis"),
        ({"probe": {"knn": {"kind": "knn", "data": "cubes"}}}, "probes take images, not volumes"),
        (
            {"finetune.threshold_scores": False},
            "only with finetune.threshold_scores.*set finetune.threshold_scores: true",
        ),
        ({"model.widths": [4, 7]}, "multiple of 2"),
        ({"data.cubes.regions": {"name": "slic"}}, "data.cubes.regions"),
        ({"data.cubes.fit": "pad"}, "squash"),
    ],
)
def test_what_cannot_be_is_said_with_its_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=f"(?s){message}"):
        from_dict(changed(changes))


def test_images_go_through_the_same_model_in_two_dimensions() -> None:
    changes = {"finetune.data": "scenes", "pretrain.data": "scenes", "model.dimensions": 2}
    assert len(from_dict(changed(changes)).cells) == 2


def test_the_encoder_is_the_same_however_its_decoder_goes_up() -> None:
    """A method that trains no decoder is one stage run for both."""
    nearest, transposed = (
        GenesisUNet.model_validate({"name": "genesis-unet", "up": up}) for up in ("nearest", "transposed")
    )
    assert encoder_of(nearest) == encoder_of(transposed)
    assert encoder_of(nearest) != encoder_of(nearest.model_copy(update={"dimensions": 2}))
