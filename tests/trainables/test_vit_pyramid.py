"""Plain transformers of timm with a simple feature pyramid: timm's own features, ViTDet's layers, the paths they go."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from test_contract_methods import METHOD_SETTINGS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.search_spaces.identities import encoder_of
from pretune.trainables import checkpoints, loop
from pretune.trainables.buildable import unbuildable
from pretune.trainables.data.checks.requirements import facts_of_settings
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import NOTES, WEIGHTS
from pretune.trainables.finetune import finetune
from pretune.trainables.methods import weights
from pretune.trainables.models import timm_unet, vit_pyramid
from pretune.trainables.models.table import build_encoder, build_unet
from pretune.trainables.pretrain import pretrain
from pretune.trainables.sample_step import memory_of, sample_step

CPU = torch.device("cpu")
NARROW = {"pyramid_width": 8, "decoder_width": 4}
DATA = schema.Scenes(dataset="scenes", images=24, cache_size=32)
SPLIT = Split(train=np.arange(16), val=np.arange(16, 20), test=np.arange(20, 24))
STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}


def model_of(backbone: str = "test_vit3", name: str = "vit-pyramid", **changes: Any) -> Any:
    narrow = NARROW if name == "vit-pyramid" else {"decoder_widths": [8] * 5}
    return TypeAdapter(schema.Model).validate_python({"name": name, "backbone": backbone} | narrow | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return load_images(DATA, None, tmp_path_factory.mktemp("cache"))


# ------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("test_vit3", 64), ("vit_tiny_patch16_dinov3_qkvb", 32), ("vit_small_patch14_dinov2", 56)],
)
def test_the_map_is_the_places_of_timms_last_tokens(backbone: str, size: int) -> None:
    """`forward_features` of the whole model is timm's own way to the normed tokens; prefix tokens are class and
    registers. Images are not square, so that rows and columns are told apart."""
    torch.manual_seed(0)
    encoder = build_encoder(model_of(backbone)).eval()
    whole = timm.create_model(backbone, num_classes=0, dynamic_img_size=True).eval()
    state = {timm_unet.name_in_timm(name): value for name, value in encoder.state_dict().items()}
    missing = whole.load_state_dict(state, strict=False).missing_keys
    assert all(name.startswith(("fc_norm", "attn_pool")) for name in missing)  # behind the tokens
    x = torch.rand(2, 3, size, 2 * size)
    with torch.no_grad():
        (found,) = encoder(x)
        tokens = whole.forward_features(x)[:, whole.num_prefix_tokens :]
    stride = encoder.strides[-1]
    expected = tokens.transpose(1, 2).unflatten(2, (size // stride, 2 * size // stride))
    torch.testing.assert_close(found, expected)
    assert encoder.widths == (whole.num_features,)


def test_no_random_numbers_are_drawn_while_training() -> None:
    """DINOv3 may shift and scale its rotary embedding at random; none of this is on."""
    for backbone in ("test_vit3", "vit_tiny_patch16_dinov3_qkvb"):
        network = build_unet(model_of(backbone), 2).train()
        before = torch.get_rng_state()
        network(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("backbone", "plain", "size"),
    [
        ("test_vit3", True, None),
        ("test_convnext", False, None),
        ("test_vit_relpos", True, 160),
        ("resnet10t", False, None),
    ],
)
def test_the_model_that_suits_a_backbone(backbone: str, plain: bool, size: int | None) -> None:
    assert timm_unet.suited(backbone) == timm_unet.Backbone(backbone, size, plain)


@pytest.mark.parametrize(
    ("backbone", "changes", "said"),
    [
        ("test_convnext", {}, r"has maps of several strides \(4, 8, 16, 32\): use the model timm-unet"),
        ("test_vit_relpos", {}, r"any multiple of 16 px.*tied to one size: set model.image_size .* such as 160"),
        ("test_vit_relpos", {"image_size": 40}, r"40 px, model.image_size, is not a multiple of 16, .*; use 32 or 48"),
        ("no_such_vit", {}, "timm has no model 'no_such_vit'"),
    ],
)
def test_a_backbone_that_cannot_serve_says_what_would(backbone: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(timm_unet.BackboneError, match=said):
        build_encoder(model_of(backbone, **changes))
    with pytest.raises(timm_unet.BackboneError, match=r"not tied to one .*leave model\.image_size out"):
        build_encoder(model_of("test_convnext", "timm-unet", image_size=64))


def test_a_backbone_tied_to_one_size_is_built_for_it() -> None:
    """Hiera, whose positional embedding has one size: four maps at 64 px, as many as at its own 224."""
    encoder = build_encoder(model_of("hiera_tiny_224", "timm-unet", image_size=64)).eval()
    whole = timm.create_model("hiera_tiny_224", num_classes=0, img_size=64).eval()
    state = {timm_unet.name_in_timm(name): value for name, value in encoder.state_dict().items()}
    whole.load_state_dict(state, strict=False)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = whole.forward_intermediates(x, intermediates_only=True), encoder(x)
    assert [one.shape[-1] for one in found] == [16, 8, 4, 2]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_settings_that_are_not_given_leave_no_trace() -> None:
    """An encoder's identity is that of studies from before the settings were there."""
    old = {"name": "timm-unet", "backbone": "test_vit"}
    assert encoder_of(model_of("test_vit", "timm-unet")) == old
    assert encoder_of(model_of("test_vit", "timm-unet", image_size=64)) == old | {"image_size": 64}
    assert (
        encoder_of(model_of(decoder_width=2))
        == encoder_of(model_of())
        == {"name": "vit-pyramid", "backbone": "test_vit3"}
    )


# ------------------------------------------------------------------------------------------------------------- pyramid


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(1, 5))
def test_the_norm_is_timms_layer_norm_of_maps(channels: int, height: int, width: int) -> None:
    ours, theirs = vit_pyramid.ChannelNorm(channels, eps=1e-6), LayerNorm2d(channels, eps=1e-6)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, channels))
            norm.bias.copy_(torch.linspace(-1, 1, channels))
        x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ours(x), theirs(x))


def test_the_layers_are_those_of_vitdet() -> None:
    """Detectron2's SimpleFeaturePyramid, scales 4, 2 and 1, for 16 channels in and 8 out, counted by hand: transposed
    convolutions have a bias, the others none; a norm has two numbers for each channel."""
    tail = 8 * 8 * 9 + 2 * 8 + 2 * 8  # 3x3 convolution and norm, and the norm of the 1x1 before it
    four = (16 * 8 * 4 + 8) + 2 * 8 + (8 * 4 * 4 + 4) + 4 * 8 + tail
    two = (16 * 8 * 4 + 8) + 8 * 8 + tail
    one = 16 * 8 + tail
    found = [sum(p.numel() for p in vit_pyramid.level(16, 8, scale).parameters()) for scale in vit_pyramid.SCALES]
    assert found == [four, two, one]


def test_levels_are_added_up_at_a_quarter_of_the_patch() -> None:
    torch.manual_seed(0)
    decoder = vit_pyramid.Decoder(16, 8, 4).eval()
    x = torch.rand(2, 16, 3, 5)
    shapes = [one(x).shape for one in decoder.blocks[0].levels]
    assert shapes == [(2, 8, 12, 20), (2, 8, 6, 10), (2, 8, 3, 5)]
    with torch.no_grad():
        summed = sum(F.interpolate(one(x), (12, 20), mode="bilinear") for one in decoder.blocks[0].levels)
        torch.testing.assert_close(decoder([x]), F.relu(decoder.blocks[1].convolution(summed)))


def test_a_mask_depends_on_no_other_image_of_the_batch() -> None:
    torch.manual_seed(0)
    network, x = build_unet(model_of(), 3).train(), torch.rand(3, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[:1], network(x[:1]))
        assert network(x).shape == (3, 3, 32, 48)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# --------------------------------------------------------------------------------------------------------------- sizes


def said_of(model: schema.Model, key: str, size: int, **method: Any) -> list[str]:
    """Sentences about a stage of this size before anything trains."""
    body: dict[str, Any]
    if key == "finetune":
        body, kind = {"data": "d", "size": size, "epochs": 1}, schema.Finetune
    elif key == "pretrain":
        body = {
            "data": "d",
            "views": {"size": size},
            "method": {"name": "simclr"} | method,
            "epochs": 1,
            "batch_size": 8,
        }
        kind = schema.Pretrain  # type: ignore[assignment]
    else:
        body, kind = {"data": "d", "size": size, "kind": "knn"}, schema.KNN  # type: ignore[assignment]
    stage: Any = kind.model_validate(body)
    return list(unbuildable(key, stage, model, DATA, facts_of_settings(DATA)))


STRIDES = {"test_vit3": 16, "vit_small_patch14_dinov2": 14}


@settings(max_examples=12, deadline=None)
@given(backbone=st.sampled_from(sorted(STRIDES)), size=st.integers(1, 150))
def test_the_patch_decides_which_sizes_a_transformer_takes(backbone: str, size: int) -> None:
    """Exactly the multiples pass, and the two sizes that the sentence names are the nearest ones that do."""
    stride = STRIDES[backbone]
    for key in ("finetune", "pretrain", "probe.p"):
        said = said_of(model_of(backbone), key, size)
        where = "pretrain.views.size" if key == "pretrain" else f"{key}.size"
        low = size // stride * stride
        if size % stride == 0:
            assert said == []
        elif low:
            fix = f"use {low} or {low + stride}"
            assert said == [f"{where}: {size} px is not a multiple of {stride}, the stride of timm:{backbone}; {fix}"]
        else:
            assert said == [
                f"{where}: {size} px is below {stride}, the stride of timm:{backbone}; use {stride} or more"
            ]


def test_a_convolution_takes_views_of_any_size_and_masks_by_its_stride() -> None:
    model = model_of("test_convnext", "timm-unet")
    assert said_of(model, "pretrain", 50) == []
    assert "use 32 or 64" in said_of(model, "finetune", 50)[0]
    assert "use 32 or 64" in said_of(model, "pretrain", 50, name="mae")[0]
    assert said_of(model_of("test_vit", "timm-unet"), "finetune", 48) == []  # 32 was asked of all backbones


def test_small_views_and_test_sizes_are_named() -> None:
    (said,) = said_of(model_of(), "pretrain", 64, name="dino", local_size=40)
    assert said.startswith("pretrain.method.local_size: 40 px is not a multiple of 16")
    stage = schema.Finetune.model_validate({"data": "d", "size": 32, "test_sizes": [64, 72], "epochs": 1})
    (said,) = unbuildable("finetune", stage, model_of(), DATA, facts_of_settings(DATA))
    assert said.startswith("finetune.test_sizes: 72 px is not a multiple of 16")


def test_all_stages_have_the_size_that_a_backbone_is_built_for() -> None:
    model = model_of("test_vit_relpos", image_size=64)
    assert said_of(model, "finetune", 64) == said_of(model, "pretrain", 64) == []
    (said,) = said_of(model, "pretrain", 32)
    assert (
        said
        == "pretrain.views.size: 32 px, but timm:test_vit_relpos is built for 64 px; let model.image_size be the same"
    )


# ------------------------------------------------------------------------------------------------------------- weights


def published(grid: int, prefix: str = "", **more: Tensor) -> dict[str, Tensor]:
    """Tensors of a small ViT as others publish them, with positional embeddings of a grid of this side."""
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", num_classes=7, img_size=16 * grid)
    return {prefix + name: value for name, value in whole.state_dict().items()} | more


def imported(model: schema.Model, file: Path, out: Path) -> dict[str, Tensor]:
    out.mkdir()
    asked = schema.Weights(name="weights", source=str(file))
    weights.check_weights(asked, model)
    weights.import_weights(asked, model, loop.RunContext(out, CPU))
    encoder = build_encoder(model)
    checkpoints.load_part(encoder, out / WEIGHTS, "encoder")
    return load_file(out / WEIGHTS)


@pytest.mark.parametrize(("size", "grid"), [(None, 10), (64, 4)])  # the grid that timm builds test_vit with, and ours
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_positional_embeddings_of_another_grid_are_resized(
    size: int | None, grid: int, prefix: str, tmp_path: Path
) -> None:
    """The class token keeps its embedding; places are resized as images of as many channels, by a form of our own."""
    given = published(6, prefix)
    save_file(given, tmp_path / "w.safetensors")
    found = imported(model_of("test_vit", image_size=size), tmp_path / "w.safetensors", tmp_path / "out")
    old = given[f"{prefix}pos_embed"]
    places = old[:, 1:].transpose(1, 2).unflatten(2, (6, 6))
    new = F.interpolate(places, (grid, grid), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found["encoder.body.model.pos_embed"], torch.cat([old[:, :1], new], dim=1))
    assert torch.equal(found["encoder.body.model.norm.weight"], given[f"{prefix}norm.weight"])
    assert not any("head" in name for name in found)


def test_dinov2s_own_file_is_read(tmp_path: Path) -> None:
    """Its tensor for masked patches is not the model's; everything else has timm's names, at 518 px."""
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2").state_dict() | {"mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    found = imported(model_of("vit_small_patch14_dinov2"), tmp_path / "dinov2_vits14_pretrain.pth", tmp_path / "out")
    for name, value in state.items():
        assert name == "mask_token" or torch.equal(found[f"encoder.body.model.{name}"], value)
    trained = timm.get_pretrained_cfg("vit_small_patch14_dinov2")
    assert found["encoder.mean"].tolist() == pytest.approx(trained.mean)


def test_tensors_that_do_not_fit_are_counted_in_one_sentence(tmp_path: Path) -> None:
    state = published(10)
    wide = {name: F.pad(value, (0, 1)) if name.endswith("mlp.fc1.weight") else value for name, value in state.items()}
    lacking = {f"x.{n}" if n.endswith("norm1.weight") else n: v for n, v in wide.items()}
    save_file(lacking, tmp_path / "w.safetensors")
    blocks = len(timm.create_model("test_vit").blocks)
    total = len(build_encoder(model_of("test_vit")).state_dict()) - 2  # mean and std are our own
    said = (
        rf"w.safetensors does not fit this model's encoder: {blocks} of {total} tensors are missing, such as "
        rf"'blocks.0.norm1.weight'; {blocks} have other shapes \('blocks.0.mlp.fc1.weight' is \(.*65\), the model "
        rf"wants \(.*64\)\); {blocks + 2} in the file are not the model's, such as .*x.blocks.0.norm1.weight"
    )
    with pytest.raises(weights.WeightsError, match=said):
        imported(model_of("test_vit"), tmp_path / "w.safetensors", tmp_path / "out")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_the_hash_of_the_file_is_recorded(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if name.endswith("pt"):
        torch.save({"state_dict": published(10)}, file)
    else:
        save_file(published(10), file)
    imported(model_of("test_vit"), file, tmp_path / "out")
    notes = json.loads((tmp_path / "out" / NOTES).read_text())
    assert notes == {"source": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_every_method_trains_a_plain_transformer(name: str) -> None:
    """Each trained number gets a gradient."""
    own = METHOD_SETTINGS[name] | {"name": name}
    own |= {key: value for key, value in {"local_size": 16, "patch": 8}.items() if key in own}
    own.pop("projection_levels", None)
    body = {"data": "d", "batch_size": 8, "steps": 3, "views": {"size": 32}, "method": own}
    sample = sample_step(schema.Pretrain.model_validate(body), model_of(), None, 8)
    sample.step()
    trained = [(part, p) for part, p in sample.whole.named_parameters() if p.requires_grad]
    assert [part for part, p in trained if p.grad is None] == []
    assert any(part.startswith(("encoder.", "twin.")) for part, _ in trained)  # DINO trains the student, its twin


def test_levels_that_a_transformer_does_not_have_are_refused() -> None:
    facts = facts_of_settings(DATA)
    body = {"data": "d", "epochs": 1, "batch_size": 8, "method": {"name": "byol", "projection_levels": 2}}
    stage = schema.Pretrain.model_validate(body | {"views": {"size": 32}})
    (said,) = unbuildable("pretrain", stage, model_of(), DATA, facts)
    assert (
        said == "pretrain.method: byol cannot be built for vit-pyramid: projection_levels 2: this encoder has 1 levels"
    )


def test_the_memory_formula_counts_weights_and_places() -> None:
    """Places grow by four from 32 to 64 px; resized embeddings, for one, are kept once for a whole batch."""
    needs = {}
    for size in (32, 64):
        stage = schema.Finetune.model_validate({"data": "d", "size": size, "epochs": 1})
        needs[size] = memory_of(stage, model_of(), None).plain
    assert needs[32].fixed == needs[64].fixed > 4 * sum(p.numel() for p in build_unet(model_of(), 3).parameters())
    assert 1.5 < needs[64].per_image / needs[32].per_image < 4.5


def test_a_transformer_is_pretrained_transferred_frozen_and_fine_tuned(data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    body = {"data": "scenes", "method": {"name": "simclr"}, "views": {"size": 32}, "batch_size": 8, "steps": 2}
    pretrain(
        schema.Pretrain.model_validate(body), model_of(), data, SPLIT, STREAMS, loop.RunContext(tmp_path / "a", CPU)
    )
    given = load_file(tmp_path / "a" / WEIGHTS)

    def tuned(name: str, **how: Any) -> dict[str, Tensor]:
        (tmp_path / name).mkdir()
        asked = {
            "data": "scenes",
            "size": 32,
            "batch_size": 8,
            "epochs": 1,
            "optimizer": {"name": "sgd", "lr": 0.1},
        } | how
        context = loop.RunContext(tmp_path / name, CPU, tmp_path / "a" / WEIGHTS)
        finetune(schema.Finetune.model_validate(asked), model_of(), data, SPLIT, STREAMS, context, on_test=True)
        return load_file(tmp_path / name / WEIGHTS)

    encoder = [name for name in given if name.startswith("encoder.")]
    frozen, free, slow = tuned("b", freeze="encoder"), tuned("c"), tuned("d", encoder_lr_mult=1e-3)
    assert all(torch.equal(frozen[name], given[name]) for name in encoder)

    def far(state: dict[str, Tensor]) -> float:
        return max(float((state[name] - given[name]).abs().max()) for name in encoder)

    assert 0 < far(slow) < far(free) / 10
    assert any(not torch.equal(free[name], frozen[name]) for name in free if name.startswith("decoder."))
