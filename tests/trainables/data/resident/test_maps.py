"""Region and depth maps: what they hold, that they are computed once, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident import maps
from pretune.trainables.data.resident.build import ensure_built, load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.resident.open import open_cached

FELZENSZWALB: dict[str, object] = {"name": "felzenszwalb", "scale": 100, "sigma": 0, "min_size": 4}
SLIC: dict[str, object] = {"name": "slic", "segments": 4}


def scenes(**changes: object) -> schema.Scenes:
    return schema.Scenes.model_validate({"dataset": "scenes", "images": 4, "cache_size": 32} | changes)


def quarters() -> NDArray[np.uint8]:
    """One image of four even squares of clearly different colours."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, 16:], image[16:, :16], image[16:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return image


@pytest.mark.parametrize(
    "settings", [schema.Felzenszwalb.model_validate(FELZENSZWALB), schema.SLIC.model_validate(SLIC)]
)
def test_four_even_squares_are_four_regions(settings: schema.Felzenszwalb | schema.SLIC) -> None:
    expected = np.repeat(np.repeat(np.array([[1, 2], [3, 4]]), 16, 0), 16, 1)
    assert maps.regions_of(quarters()[None], settings)[0].tolist() == expected.tolist()


def test_compactness_holds_superpixels_to_even_squares() -> None:
    """Two halves that meet at column 12: regions follow them, or, compact enough, stay squares of 16."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 12:] = (255, 0, 0)

    def columns(compactness: float) -> list[int]:
        found = maps.regions_of(image[None], schema.SLIC(name="slic", segments=4, compactness=compactness))[0]
        return (np.flatnonzero(found[4, 1:] != found[4, :-1]) + 1).tolist()

    assert columns(0.1) == [12]
    assert columns(1e6) == [16]


def test_many_images_on_several_processes_are_the_same_as_one_by_one() -> None:
    """Five chunks, the last one short: more than are worked on within this process."""
    rng = np.random.default_rng(0)
    many = rng.integers(0, 256, (4 * maps.CHUNK + 3, 8, 8, 3), np.uint8)
    settings = schema.Felzenszwalb.model_validate(FELZENSZWALB)
    together = np.concatenate(list(maps.region_maps(many, settings)))
    assert together.shape == many.shape[:3]
    assert np.array_equal(together[::50], maps.regions_of(many[::50], settings))


def test_the_bars_beside_a_padded_image_are_in_no_region() -> None:
    """A 32 x 16 picture of two halves in the middle of a square: two regions, and nothing above and below them."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, :16], image[8:24, 16:] = (255, 0, 0), (0, 255, 0)
    settings = schema.Felzenszwalb.model_validate(FELZENSZWALB)
    [[found]] = maps.region_maps(image[None], settings, None, padded=True)
    assert np.unique(found[:8]).tolist() == np.unique(found[24:]).tolist() == [0]
    assert (found[8:24, :16] == 1).all()
    assert (found[8:24, 16:] == 2).all()
    [[whole]] = maps.region_maps(quarters()[None], settings, None, padded=True)
    assert np.unique(whole[:16, 16:]).tolist() != [0]
    [[black]] = maps.region_maps(np.zeros((1, 8, 8, 3), np.uint8), settings, None, padded=True)
    assert not black.any()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_regions_are_numbered_as_they_appear(values: list[int]) -> None:
    found = maps.numbered(np.array([values]))[0].tolist()
    names: dict[int, int] = {}
    assert found == [names.setdefault(value, len(names) + 1) for value in values]


def test_region_maps_are_stored_beside_images_that_are_not_decoded_again(tmp_path: Path) -> None:
    plain = ensure_built(scenes(), None, tmp_path)
    told: list[int] = []
    name = ensure_built(scenes(regions=SLIC), None, tmp_path, lambda done, total: told.append(done))
    assert told == [4]  # one chunk of maps, and no image
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["index.json", "regions.npy"]
    made, exact = open_cached(name, tmp_path), open_cached(plain, tmp_path)
    assert made is not None
    assert exact is not None
    assert made.regions is not None
    assert np.array_equal(made.regions, maps.regions_of(exact.images, schema.SLIC.model_validate(SLIC)))
    assert made.depth is not None  # the scenes' own stays
    assert exact.depth is not None
    assert np.array_equal(made.depth, exact.depth)
    told.clear()
    assert ensure_built(scenes(regions=SLIC), None, tmp_path, lambda done, total: told.append(done)) == name
    assert told == []


def test_maps_are_named_by_the_images_and_their_own_settings() -> None:
    digests = {
        content_digest(scenes(**changes), None)
        for changes in ({}, {"regions": SLIC}, {"regions": SLIC | {"segments": 5}}, {"regions": SLIC, "seed": 1})
    }
    assert len(digests) == 4
    assert content_digest(scenes(regions=SLIC), None) == content_digest(scenes(regions=dict(SLIC)), None)


def test_maps_whose_images_are_gone_are_none_until_these_are_made_anew(tmp_path: Path) -> None:
    plain = ensure_built(scenes(), None, tmp_path)
    name = ensure_built(scenes(regions=SLIC), None, tmp_path)
    (tmp_path / plain / "index.json").unlink()
    assert open_cached(name, tmp_path) is None
    assert ensure_built(scenes(regions=SLIC), None, tmp_path) == name
    assert open_cached(name, tmp_path) is not None


# ------------------------------------------------------------------------------------------------------------ depth


def save_dpt(folder: Path, seed: int = 0) -> Path:
    """A DPT of a few thousand random weights, with its processor, as transformers stores them."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(seed)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    save: Any = DPTImageProcessor(size={"height": 32, "width": 32}, keep_aspect_ratio=False)
    save.save_pretrained(folder)
    return folder


def test_depth_by_a_real_model_is_computed_once_and_lies_in_zero_to_one(tmp_path: Path) -> None:
    save_dpt(tmp_path / "weights")
    settings = scenes(depth={"weights": "weights"})
    made = load_images(settings, tmp_path, tmp_path / "cache")
    assert made.depth is not None
    assert made.depth.shape == (4, 32, 32)
    assert made.depth.dtype == np.float16
    assert made.depth.min(axis=(1, 2)).tolist() == [0.0] * 4
    assert made.depth.max(axis=(1, 2)).tolist() == [1.0] * 4
    told: list[int] = []
    load_images(settings, tmp_path, tmp_path / "cache", lambda done, total: told.append(done))
    assert told == []


def test_depth_is_named_by_what_the_weights_hold_and_not_where_they_lie(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_dpt(tmp_path / name, seed)
    a, b, c = (content_digest(scenes(depth={"weights": name}), tmp_path) for name in "abc")
    assert a == b != c


def test_disparity_is_turned_and_each_image_has_its_own_range() -> None:
    """2, 4, 6 as disparities: the largest is the nearest, 0; as depths: the farthest, 1. An even map is 0."""
    given_maps = np.array([[[2, 4, 6]], [[20, 40, 60]], [[5, 5, 5]]], np.float32)
    assert maps.normalised(given_maps, True).tolist() == [[[1, 0.5, 0]], [[1, 0.5, 0]], [[0, 0, 0]]]
    assert maps.normalised(given_maps, False).tolist() == [[[0, 0.5, 1]], [[0, 0.5, 1]], [[0, 0, 0]]]


def test_missing_weights_are_named_with_their_place_and_where_to_get_them(tmp_path: Path) -> None:
    message = r"config.json, preprocessor_config.json, model.safetensors expected in .*midas; .*hf download Intel"
    with pytest.raises(DataError, match=message):
        content_digest(scenes(depth={"weights": "midas"}), tmp_path)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    folder = save_dpt(tmp_path / "weights")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="no depth model"):
        load_images(scenes(depth={"weights": "weights"}), tmp_path, tmp_path / "cache")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"need skimage, .*'pretune\[maps\]'"):
        list(maps.region_maps(quarters()[None], schema.SLIC.model_validate(SLIC)))


def test_an_unknown_kind_of_region_is_refused() -> None:
    with pytest.raises(ValidationError, match="felzenszwalb"):
        scenes(regions={"name": "watershed"})


# -------------------------------------------------------------------------------------------------------------- SAM


def save_sam(folder: Path, seed: int = 0, hq: bool = False) -> Path:
    """A SAM of a few thousand random weights for images of 32 px, with its processor, as transformers stores it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    prefix = "SamHQ" if hq else "Sam"
    parts: list[Any] = [
        getattr(transformers, f"{prefix}{name}Config") for name in ("Vision", "MaskDecoder", "PromptEncoder")
    ]
    vision, decoder, prompt = parts
    more = {"vit_dim": 16} if hq else {}
    whole: Any = getattr(transformers, f"{prefix}Config")
    config = whole(
        vision_config=vision(
            hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
            mlp_dim=16, window_size=2, global_attn_indexes=[1], num_pos_feats=8,
        ),
        prompt_encoder_config=prompt(hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4),
        mask_decoder_config=decoder(
            hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16,
            iou_head_depth=2, **more,
        ),
    )  # fmt: skip
    model: Any = getattr(transformers, f"{prefix}Model")
    model(config).save_pretrained(folder)
    processor: Any = transformers.SamImageProcessor(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}, mask_size={"longest_edge": 8},
        mask_pad_size={"height": 8, "width": 8},
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("hq", [False, True])
def test_regions_by_a_real_sam_are_the_coarsest_of_its_masks(tmp_path: Path, hq: bool) -> None:
    """Thresholds of 0 keep what random weights give. The masks are asked of the model again and ranked by area."""
    from pretune.trainables.data.resident.segment_anything import mask_model

    save_sam(tmp_path / "weights", hq=hq)
    regions = {"name": "sam", "weights": "weights", "points_per_side": 3, "min_iou": 0, "min_stability": 0}
    settings = scenes(regions=regions)
    made = load_images(settings, tmp_path, tmp_path / "cache")
    assert made.regions is not None
    assert made.regions.shape == (4, 32, 32)
    assert isinstance(settings.regions, schema.SAM)
    masks_of = mask_model(settings.regions, tmp_path / "weights")
    for image, found in zip(np.asarray(made.images), np.asarray(made.regions), strict=True):
        masks = masks_of(image)
        assert masks.shape[1:] == (32, 32)
        largest = max(masks, key=lambda mask: mask.sum(), default=np.zeros((32, 32), bool))
        assert np.array_equal(found == 1, largest)
    assert any(image.any() for image in np.asarray(made.regions))


def test_where_sam_finds_nothing_there_is_no_region(tmp_path: Path) -> None:
    save_sam(tmp_path / "weights")
    settings = scenes(regions={"name": "sam", "weights": "weights", "points_per_side": 2, "min_iou": 1})
    made = load_images(settings, tmp_path, tmp_path / "cache")
    assert made.regions is not None
    assert not np.asarray(made.regions).any()


def test_sams_regions_are_named_by_what_the_weights_hold(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_sam(tmp_path / name, seed)
    a, b, c = (content_digest(scenes(regions={"name": "sam", "weights": name}), tmp_path) for name in "abc")
    assert a == b != c


def test_missing_weights_of_sam_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    message = r"region maps by SAM: config.json, .*model.safetensors expected in .*sam; .*hf download facebook/sam"
    with pytest.raises(DataError, match=message):
        content_digest(scenes(regions={"name": "sam", "weights": "sam"}), tmp_path)


def test_weights_of_another_model_are_no_sam(tmp_path: Path) -> None:
    save_dpt(tmp_path / "weights")
    with pytest.raises(DataError, match=r"no SAM .*dpt"):
        load_images(scenes(regions={"name": "sam", "weights": "weights"}), tmp_path, tmp_path / "cache")
