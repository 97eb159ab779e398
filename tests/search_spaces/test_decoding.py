"""Which cells share a pretraining, and which do not: methods that train a decoder depend on the whole model."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.search_spaces import identities, resolve, schema, stages
from pretune.search_spaces.document import StudyError


def study(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "study": "s",
        "data": {"scenes": {"dataset": "scenes"}},
        "model": {"widths": [4, 8]},
        "pretrain": {"data": "scenes", "method": method, "views": {"size": 32}, "epochs": 1},
        "finetune": {"data": "scenes", "size": 16, "epochs": 1},
        "factors": {"skip": {"model.skip_connections": [True, False]}},
    }
    return body | changes


def pretrainings(body: dict[str, Any]) -> tuple[int, int]:
    """How many pretrainings the cells of a study tune apart, and how many fingerprints they have."""
    found = resolve.from_dict(body)
    replicate = stages.replicates(found.header.seeds, "report")[0]
    all_stages = [
        stages.stages_of(cell.configuration(), replicate, found.header, lambda data: "d", True) for cell in found.cells
    ]
    return len({cell.pretraining() for cell in found.cells}), len({each["pretrain"] for each in all_stages})


@pytest.mark.parametrize(
    ("name", "expected"), [("simclr", 1), ("classification", 1), ("mae", 2), ("conrec", 2), ("segmentation", 2)]
)
def test_skip_connections_divide_the_pretrainings_of_decoders_alone(name: str, expected: int) -> None:
    assert pretrainings(study({"name": name})) == (expected, expected)


def test_a_choice_that_may_train_a_decoder_is_tuned_apart() -> None:
    either = {"choice": [{"name": "simclr"}, {"name": "mae"}]}
    cells = resolve.from_dict(study(either)).cells
    assert len({cell.pretraining() for cell in cells}) == 2


def test_both_resnet_models_have_one_encoder() -> None:
    """P1's head and a U-Net of the same depth share a pretraining of the encoder, and no other does."""
    levels = [{"name": "resnet-head", "depth": 18}, {"name": "resnet-unet", "depth": 18}]
    other = [{"name": "resnet-unet", "depth": 18, "stem": "cifar"}, {"name": "resnet-unet", "depth": 34}]
    encoders = [identities.encoder_of(_model(level)) for level in levels + other]
    assert encoders[0] == encoders[1]
    assert encoders.count(encoders[0]) == 2
    assert encoders[2] != encoders[3]


def _model(level: dict[str, Any]) -> schema.Model:
    return schema.Configuration.model_validate({"data": {}, "model": level}).model


@pytest.mark.parametrize("name", ["mae", "reconstruction", "conrec", "segmentation"])
def test_a_trained_decoder_may_be_transferred(name: str) -> None:
    finetune = {"data": "scenes", "size": 16, "epochs": 1, "transfer": "encoder+decoder"}
    assert len(resolve.from_dict(study({"name": name}, finetune=finetune)).cells) == 2


@pytest.mark.parametrize("name", ["simclr", "classification"])
def test_a_decoder_that_nobody_trained_may_not(name: str) -> None:
    finetune = {"data": "scenes", "size": 16, "epochs": 1, "transfer": "encoder+decoder"}
    with pytest.raises(StudyError, match=f"{name} trains no decoder to transfer"):
        resolve.from_dict(study({"name": name}, finetune=finetune))


def test_views_that_a_decoder_cannot_meet_are_refused() -> None:
    body = study({"name": "mae"}, model={"widths": [4, 8, 16]})
    body["pretrain"]["views"]["size"] = 18
    with pytest.raises(StudyError, match=r"pretrain\.views\.size.*18 px .* 4"):
        resolve.from_dict(body)
    body["pretrain"]["method"] = {"name": "simclr"}
    resolve.from_dict(body)


@pytest.mark.parametrize(
    ("model", "stride"),
    [
        ({}, 8),
        ({"name": "conrec-unet"}, 8),
        ({"name": "resnet-unet"}, 32),
        ({"name": "resnet-unet", "stem": "cifar"}, 8),
        ({"name": "resnet-head"}, 32),
    ],
)
def test_the_stride_of_each_model(model: dict[str, Any], stride: int) -> None:
    assert _model(model).stride == stride
