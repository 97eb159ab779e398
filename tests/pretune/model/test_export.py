"""Exports of an untrained network: what is checked is that they compute the same, not that it is any good."""

import dataclasses
import json
import math
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from studies import write_study

from pretune.errors import ModelError
from pretune.model.check_images import CheckImages, check_images, generated_images
from pretune.model.export import WRITERS, compare, config_of, export_model, stride_of, trace
from pretune.model.model_card import licence, model_card
from pretune.model.predict import load_model
from pretune.search_spaces import schema
from pretune.trainables.data.resident.build import ensure_built
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.models.table import build_unet

CARD = {
    "study": "s", "cell": "a=x", "seed": 1, "fingerprint": "f", "question": "Which?", "target": "test/dice",
    "model": {"name": "unet", "widths": [4, 8]}, "data": {"dataset": "scenes", "cache_size": 32, "fit": "squash"},
    "data_digest": "d", "pretraining": [{"method": {"name": "simclr"}}], "finetune": {"size": 16}, "chosen": {},
    "classes": ["background", "one", "two"], "input": {"size": 16}, "test": [], "scores": {"test/jaccard": 0.75},
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    """Two seeds 0.7 and 0.8 in the cell of the kept model: mean 0.75, std 0.0707."""
    metrics = ("test/jaccard", "test/dice")
    folder = write_study(
        tmp_path / "study", {"a=x": [0.7, 0.8, math.nan], "a=y": [0.5]}, {"a": ["x", "y"]}, metrics=metrics
    )
    torch.manual_seed(0)
    network = build_unet(schema.UNet.model_validate(CARD["model"]), 3)
    (folder / "best").mkdir()
    save_file(dict(network.state_dict()), folder / "best" / "model.safetensors")
    (folder / "best" / "model.json").write_text(json.dumps(CARD))
    return folder


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def expected(study, images):
    with torch.no_grad():
        return load_model(study).network(images).numpy()


def test_safetensors_are_the_weights_with_what_it_takes_to_build_the_network(study, images, tmp_path):
    exported = export_model(study, tmp_path / "out", "safetensors", tmp_path)
    assert "the same masks" in exported.checked
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    network = build_unet(schema.UNet.model_validate(config["model"]), len(config["classes"]))
    network.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        assert np.array_equal(network.eval()(images).numpy(), expected(study, images))


def test_onnx_gives_the_same_masks_at_any_batch_size(study, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_model(study, tmp_path / "out", "onnx", tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(None, {"image": images[:count].numpy()})
        assert logits == pytest.approx(expected(study, images[:count]), abs=1e-4)
        assert (logits.argmax(1) == expected(study, images[:count]).argmax(1)).all()


def test_an_exported_program_gives_the_same_logits_at_any_batch_size(study, images, tmp_path):
    export_model(study, tmp_path / "out", "torch-export", tmp_path)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for count in (1, 5):
        assert program(images[:count]).detach().numpy() == pytest.approx(expected(study, images[:count]), abs=1e-5)


def test_an_export_that_computes_something_else_is_an_error_and_not_kept(study, tmp_path, monkeypatch):
    def wrong(model, traced, out, config):
        (out / "model.onnx").write_bytes(b"wrong")
        return out / "model.onnx", lambda images: -model.network(images)

    monkeypatch.setitem(WRITERS, "onnx", wrong)
    with pytest.raises(ModelError, match="computes something else"):
        export_model(study, tmp_path / "out", "onnx", tmp_path)
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_the_check_counts_pixels_that_differ_and_those_that_were_ties(study):
    model = load_model(study)
    shown = CheckImages(generated_images(model, 8), "8 images")
    same = compare(model, model.network, shown)
    assert (same.pixels, same.different, same.largest) == (8 * 16 * 16, 0, 0.0)
    with torch.no_grad():
        swapped = compare(model, lambda images: model.network(images).flip(1), shown)
        assert swapped.different > swapped.ties
        nudge = torch.tensor([0.0, 1e-4, -1e-4]).reshape(1, 3, 1, 1)
        nudged = compare(model, lambda images: model.network(images) + nudge, shown)
    assert nudged.different == nudged.ties
    assert nudged.largest == pytest.approx(1e-4, rel=0.01)


def test_without_the_studys_images_the_check_says_that_it_used_generated_ones(study, tmp_path):
    export_model(study, tmp_path / "out", "safetensors", tmp_path / "no-cache")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pixels of 8 generated images (study images not in the cache), in which the model finds" in card
    assert "of its 3 classes" in card


def test_the_check_uses_test_images_of_the_study_where_the_cache_has_them(study, tmp_path):
    """Twelve scenes, of which 3, 5, 6, 9 and 11 are for testing: all five, at the model's 16 px."""
    settings = schema.Scenes(dataset="scenes", images=12, classes=3, cache_size=32)
    digest = ensure_built(settings, None, tmp_path / "cache")
    data = open_cached(digest, tmp_path / "cache")
    chosen = CARD | {"data_digest": digest, "test": [3, 5, 6, 9, 11]}
    (study / "best" / "model.json").write_text(json.dumps(chosen))
    shown = check_images(load_model(study), tmp_path / "cache")
    assert shown.what == "5 of the study's 5 test images"
    expected_images = torch.from_numpy(np.asarray(data.images)[[3, 5, 6, 9, 11]]).permute(0, 3, 1, 2).float() / 255
    halved = torch.nn.functional.interpolate(expected_images, (16, 16), mode="bilinear", antialias=True)
    assert shown.images.shape == (5, 3, 16, 16)
    assert float((shown.images - halved).abs().max()) < 0.02
    exported = export_model(study, tmp_path / "out", "torch-export", tmp_path / "cache")
    assert "1,280 pixels of 5 of the study's 5 test images" in exported.checked


def test_generated_images_go_from_dark_to_bright(study):
    images = generated_images(load_model(study), 8)
    assert images.min() >= 0
    assert images.max() <= 1
    means = images.mean(dim=(1, 2, 3))
    assert means[-1] > 3 * means[0]


def test_the_card_tells_data_licence_and_scores_with_their_spread(study):
    model = load_model(study)
    text = model_card(model, study, "model.onnx", "checked: well", "logits", "load it")
    assert "# s: a=x" in text
    assert "| test/jaccard | 0.7500 ± 0.0707 | 2 | 0.7500 |" in text
    assert "| test/dice | 0.7600 ± 0.0707 | 2 | – |" in text
    assert "| licence of the data | generated by Pretune" in text
    assert "| pretraining | simclr |" in text
    own = dataclasses.replace(model, card=CARD | {"data": CARD["data"] | {"dataset": "image-mask-folder"}})
    assert "not known to Pretune: state it here" in model_card(own, study, "m", "", "", "")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"source": "/far/away/vit.pth", "sha256": "12ab"}, "| starting weights | `vit.pth`, sha256 `12ab` |"),
        ({"source": "timm:vit_tiny"}, "| starting weights | `timm:vit_tiny` |"),
    ],
)
def test_the_card_names_the_starting_weights_and_no_path(study, weights, said):
    model = dataclasses.replace(load_model(study), card=CARD | {"weights": [weights]})
    text = model_card(model, study, "model.onnx", "checked: well", "logits", "load it")
    assert said in text
    assert "/far/away" not in text


def test_every_data_set_of_a_study_has_a_licence_or_says_that_it_is_ones_own():
    names = {get_args(data.model_fields["dataset"].annotation)[0] for data in get_args(get_args(schema.Data)[0])}
    unknown = {name for name in names if "not known to Pretune" in licence(name)}
    assert {"scenes", "oxford-iiit-pet", "camvid", "cityscapes"} <= names - unknown
    assert unknown <= {"coco", "image-folder", "image-mask-folder", "npz", "parquet"}  # of one's own


@pytest.mark.parametrize(
    ("changes", "step"), [({"fit": "tile"}, "overlapping tiles of"), ({"channels": 3}, "read all 3 channels")]
)
def test_what_the_script_cannot_do_is_left_to_pretune(study, changes, step):
    """Tiles and other channels: the card describes them, and names no script."""
    model = load_model(study)
    model = dataclasses.replace(
        model, fit=changes.get("fit", model.fit), card=model.card | {"data": model.card["data"] | changes}
    )
    stride = stride_of(model)
    config = config_of(model, trace(model.network, generated_images(model, 2), stride), stride)
    assert any(step in line for line in config["steps"])
    card = model_card(model, study, "model.onnx", "checked", "logits", "use", config)
    assert "`pretune predict` does this:" in card
    assert "predict.py" not in card


def test_a_study_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"model\.json"):
        export_model(tmp_path, tmp_path / "out", "onnx", tmp_path)
