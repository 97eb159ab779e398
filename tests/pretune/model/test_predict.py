"""A network whose logits are known by hand: class 1 where red is above one half, class 0 elsewhere."""

import json
import os
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from pretune.errors import ModelError
from pretune.model.predict import Model, colored, load_model, logits_of, mask_of, overlay, prepare
from pretune.model.predict_folder import How, find_images, output_names, predict_folder
from pretune.model.spans import spans
from pretune.model.tiles import tiled_mask
from pretune.search_spaces import schema
from pretune.trainables.data.sets.folders import list_images
from pretune.trainables.models.table import build_unet

QUIET = Console(quiet=True)
CARD = {
    "study": "s", "cell": "a=x", "seed": 0, "fingerprint": "f", "question": "", "target": "val/jaccard", "chosen": {},
    "model": {"name": "unet", "widths": [4, 8]}, "data": {"dataset": "scenes", "cache_size": 32, "fit": "squash"},
    "data_digest": "d", "pretraining": [], "finetune": {}, "classes": ["background", "blob"],
    "input": {"size": 16}, "test": [], "scores": {},
}  # fmt: skip


class Red(nn.Module):
    """Logits 0 and 10 (red - 1/2): class 1 exactly where red is above one half."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[:, 0]), self.scale * (x[:, 0] - 0.5)], dim=1)


def red_model(fit="squash", size=16, cache_size=32):
    return Model(Red(), ("background", "red"), size, cache_size, fit, CARD)


def write_best(folder, card=CARD):
    """A study folder with untrained weights."""
    (folder / "best").mkdir(parents=True)
    torch.manual_seed(0)
    network = build_unet(schema.UNet.model_validate(card["model"]), len(card["classes"]))
    save_file(dict(network.state_dict()), folder / "best" / "model.safetensors")
    (folder / "best" / "model.json").write_text(json.dumps(card))
    return folder


def left_half_red(width, height):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128), (256, 96)])
def test_a_mask_has_the_images_size_and_its_parts_in_their_place(fit, size):
    image, model = left_half_red(*size), red_model(fit)
    mask = mask_of(model, logits_of(model, [prepare(model, image)])[0], image.size)
    assert mask.shape == (size[1], size[0])
    truth = np.zeros_like(mask)
    truth[:, : size[0] // 2] = 1
    edge = 2 * max(size) // 16  # two pixels of the logits: corners of the padding are rounded
    away = np.abs(np.arange(size[0]) - size[0] // 2) > edge
    assert (mask[:, away] == truth[:, away]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["squash", "pad", "crop"]))
def test_any_size_down_to_one_pixel_gets_a_mask_of_that_size(width, height, fit):
    model, image = red_model(fit), Image.new("RGB", (width, height), (255, 0, 0))
    mask = mask_of(model, logits_of(model, [prepare(model, image)])[0], image.size)
    assert mask.shape == (height, width)
    if fit == "squash" or max(width, height) <= 4 * min(width, height):  # black padding reaches no further in
        assert mask[height // 2, width // 2] == 1


def test_an_image_is_cut_out_of_its_padded_square_where_it_was_put():
    # 32 x 8 in a square of 32: rows 12 to 19. The logits of class 1 are 1 there and -1 elsewhere, at equal size.
    logits = torch.zeros(2, 32, 32)
    logits[1] = -1.0
    logits[1, 12:20] = 1.0
    model = red_model("pad", size=32, cache_size=32)
    assert (mask_of(model, logits, (32, 8)) == 1).all()
    logits[1, 12] = -1.0
    mask = mask_of(model, logits, (32, 8))
    assert mask.any(axis=1).tolist() == [False] + [True] * 7


def test_logits_are_resized_as_torch_resizes_all_classes_at_once():
    torch.manual_seed(0)
    model, logits = red_model(), torch.randn(5, 16, 16)
    whole = torch.nn.functional.interpolate(logits[None], (40, 24), mode="bilinear")[0].argmax(dim=0)
    assert (mask_of(model, logits, (24, 40)) == whole.numpy()).all()


def test_a_folder_is_segmented_and_bad_files_are_named(tmp_path):
    study, images, out = write_best(tmp_path / "study"), tmp_path / "images", tmp_path / "out"
    (images / "more").mkdir(parents=True)
    left_half_red(50, 30).save(images / "a.png")
    left_half_red(20, 40).save(images / "more" / "b.jpg")
    (images / "broken.png").write_text("no image")
    (images / "notes.txt").write_text("not looked at")
    ended = predict_folder(study, images, out, How(device="cpu"), QUIET)
    assert ended.done == 2
    assert list(ended.failed) == ["broken.png"]
    assert "not an image" in ended.failed["broken.png"]
    with Image.open(out / "masks" / "a.png") as mask, Image.open(out / "overlays" / "more" / "b.jpg") as over:
        assert (mask.size, mask.mode) == ((50, 30), "P")
        assert set(np.unique(np.asarray(mask))) <= {0, 1}
        assert over.size == (20, 40)
    assert json.loads((out / "classes.json").read_text()) == {"0": "background", "1": "blob"}


@pytest.mark.parametrize(("background", "said"), [(None, 1), ([255, 255, 255], 0)])
def test_transparent_images_are_counted_unless_the_study_names_a_background(tmp_path, background, said):
    given = {} if background is None else {"background": background}
    study, images = write_best(tmp_path / "study", CARD | {"data": CARD["data"] | given}), tmp_path / "images"
    images.mkdir()
    for name, alpha in (("clear", 0), ("opaque", 255)):
        Image.new("RGBA", (8, 8), (9, 9, 9, alpha)).save(images / f"{name}.png")
    assert predict_folder(study, images, tmp_path / "out", How(device="cpu"), QUIET) == (2, {}, said)


def test_coco_names_the_images_that_were_segmented(tmp_path):
    study, images, out = write_best(tmp_path / "study"), tmp_path / "images", tmp_path / "out"
    (images / "more").mkdir(parents=True)
    left_half_red(50, 30).save(images / "a.png")
    left_half_red(20, 40).save(images / "more" / "b.jpg")
    (images / "broken.png").write_text("no image")
    predict_folder(study, images, out, How(device="cpu", coco=True), QUIET)
    held = json.loads((out / "annotations.json").read_text())
    assert [(one["file_name"], one["width"], one["height"]) for one in held["images"]] == [
        ("a.png", 50, 30), ("more/b.jpg", 20, 40),
    ]  # fmt: skip
    assert held["categories"] == [{"id": 2, "name": "blob"}]
    areas = {one["image_id"]: one["area"] for one in held["annotations"]}
    for number, name in ((1, "a"), (2, "more/b")):
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert areas.get(number, 0) == int((np.asarray(mask) == 1).sum())


def test_the_masks_of_a_folder_are_those_of_the_network_itself(tmp_path):
    study, images = write_best(tmp_path / "study"), tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    card = CARD | {"data": CARD["data"] | {"cache_size": 16}}  # nothing is resampled anywhere
    (study / "best" / "model.json").write_text(json.dumps(card))
    Image.fromarray(pixels).save(images / "a.png")
    predict_folder(study, images, tmp_path / "out", How(overlays=False, device="cpu"), QUIET)
    network = load_model(study).network
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].argmax(dim=0).numpy()
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert (np.asarray(mask) == expected).all()
    assert not (tmp_path / "out" / "overlays").exists()


def test_a_second_run_into_the_same_folder_does_not_segment_its_own_masks(tmp_path):
    study, images = write_best(tmp_path / "study"), tmp_path / "images"
    images.mkdir()
    left_half_red(20, 20).save(images / "a.png")
    for _ in range(2):
        assert predict_folder(study, images, images, How(device="cpu"), QUIET).done == 1
    assert [path.name for path in find_images(images, images).images] == ["a.png"]


# ------------------------------------------------------------------------------------------------------------- tiles


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_tiles_cover_a_side_once_and_keep_away_from_inner_edges(data):
    length = data.draw(st.integers(1, 600))
    tile, overlap = data.draw(st.integers(1, length)), data.draw(st.floats(0, 0.9))
    found = spans(length, tile, overlap)
    assert [span.first for span in found] == [0, *(span.end for span in found[:-1])]
    assert found[-1].end == length
    for span in found:
        assert 0 <= span.start <= span.first < span.end <= span.start + tile <= length
    for left, right in pairwise(found):
        shared = left.start + tile - right.start
        assert shared >= min(round(tile * overlap), tile - 1)
        assert left.start + tile - left.end >= shared // 2
        assert right.first - right.start >= shared // 2


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0.5), (11, 0.5), (5, 1.0), (5, -0.1)])
def test_tiles_that_do_not_fit_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="need 1 <= tile <= 10"):
        spans(10, tile, overlap)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(100, 70), (33, 200), (20, 20)])
def test_a_tile_of_the_models_own_size_gives_the_networks_answer_at_every_pixel(fit, size):
    """Tiles of 32 px for a model of 32 px are resampled nowhere, and Red looks at one pixel at a time: whatever the
    overlap, the mask is red > 1/2, also where the image had to be continued."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    model = red_model(fit, size=32, cache_size=32)
    for overlap in (0.0, 0.25, 0.6):
        mask = tiled_mask(model, Image.fromarray(pixels), 32, overlap)
        assert (mask == (pixels[..., 0] > 127)).all()


def test_a_folder_in_tiles_has_masks_of_the_images_sizes(tmp_path):
    study, images = write_best(tmp_path / "study"), tmp_path / "images"
    images.mkdir()
    left_half_red(90, 50).save(images / "a.png")
    ended = predict_folder(study, images, tmp_path / "out", How(device="cpu", tile=32), QUIET)
    assert (ended.done, ended.failed) == (1, {})
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert mask.size == (90, 50)


# ---------------------------------------------------------------------------------------------------------- Ray Data


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray Data warns of its own defaults, and leaves files open
def test_workers_on_ray_data_write_the_same_files_and_name_the_same_failures(tmp_path):
    study, images = write_best(tmp_path / "study"), tmp_path / "images"
    images.mkdir()
    for number in range(20):
        left_half_red(20 + number, 30).save(images / f"{number}.png")
    (images / "broken.png").write_text("no image")
    here = predict_folder(study, images, tmp_path / "here", How(device="cpu"), QUIET)
    there = predict_folder(study, images, tmp_path / "there", How(device="cpu", workers=2), QUIET)
    assert here == there
    assert (there.done, list(there.failed)) == (20, ["broken.png"])
    files = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert len(files) == 41
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_two_files_of_one_stem_keep_their_endings(tmp_path):
    paths = [tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png"]
    assert list(output_names(paths, tmp_path).values()) == ["a.jpg", "a.png", "b"]


NAMES = st.sampled_from([f"{stem}{ending}" for stem in ("a", "A", "é", "e\u0301", "d/a") for ending in
                        (".jpg", ".png", ".jpg.png", ".png.jpg", ".jpg.png.tif", ".png.png")])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sets(NAMES, min_size=1, max_size=12))
def test_every_file_has_a_mask_of_its_own_also_where_a_disk_ignores_case(names):
    """The endings of names may be those of others (a.jpg beside a.jpg.png): no mask is lost."""
    root = Path("/photos")
    chosen = output_names([root / name for name in sorted(names)], root)
    forms = [unicodedata.normalize("NFC", name).casefold() for name in names]
    for path, name in chosen.items():
        assert name in (path.relative_to(root).as_posix(), path.relative_to(root).with_suffix("").as_posix())
    assert len(set(chosen.values())) == len(names)
    if len(set(forms)) == len(names):  # else a disk that ignores case could not even hold the photos
        assert len({unicodedata.normalize("NFC", name).casefold() for name in chosen.values()}) == len(names)


@pytest.fixture
def photos(tmp_path):
    """../shared/cases/predict-folder, and a pipe."""
    folder, other = tmp_path / "photos", tmp_path / "other"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    other.mkdir()
    for name in ("photos/a.jpg", "photos/a.png", "photos/a.jpg.png", "other/l.png", "photos/.ipynb_checkpoints/a.png"):
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / name)
    (folder / "linked").symlink_to(other)
    (folder / "._a.jpg").write_bytes(bytes((0, 5, 22, 7)))
    return folder


def test_a_folder_is_listed_as_for_training_and_each_image_has_a_mask(tmp_path, photos):
    study = write_best(tmp_path / "study")
    ended = predict_folder(study, photos, tmp_path / "out", How(overlays=False, device="cpu"), QUIET)
    assert ended == (4, {}, 0)
    masks = sorted(
        path.relative_to(tmp_path / "out" / "masks").as_posix() for path in (tmp_path / "out").rglob("*.png")
    )
    assert masks == ["a.jpg.png", "a.jpg.png.png", "a.png.png", "linked/l.png"]
    listed = [entry.name for entry in list_images(photos).entries]
    assert listed == ["a.jpg", "a.jpg.png", "a.png", "linked/l.png"]


def test_a_pipe_is_named_and_not_waited_for(tmp_path, photos):
    os.mkfifo(photos / "live.png")
    (photos / "film.gif").touch()
    ended = predict_folder(write_best(tmp_path / "study"), photos, tmp_path / "out", How(device="cpu"), QUIET)
    assert ended.done == 4
    assert list(ended.failed) == ["live.png"]
    assert "a pipe, a socket or a device" in ended.failed["live.png"]


def test_the_background_stays_black_in_masks_and_uncoloured_in_overlays():
    mask = np.array([[0, 1, 2]], np.uint8)
    assert colored(mask, background=1).convert("RGB").getpixel((1, 0)) == (0, 0, 0)
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    over = overlay(image, mask, background=1)
    assert over.getpixel((1, 0)) == (100, 100, 100)
    assert over.getpixel((0, 0)) == (165, 129, 50)  # halfway to the first colour, (230, 159, 0)
    assert len({over.getpixel((x, 0)) for x in range(3)}) == 3


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"no best/model\.json"):
        load_model(tmp_path)
    study = write_best(tmp_path / "study")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no images"):
        predict_folder(study, tmp_path / "empty", tmp_path / "out", How(device="cpu"), QUIET)
    with pytest.raises(ModelError, match="there is no such device"):
        predict_folder(study, tmp_path / "empty", tmp_path / "out", How(device="abacus"), QUIET)
    weights = study / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match="damaged or of another version"):
        load_model(study)


def test_a_model_of_tiles_segments_any_size_tile_by_tile(tmp_path):
    """Red pixels are found at the image's own resolution, by one call and for a folder."""
    card = CARD | {"data": CARD["data"] | {"fit": "tile"}}
    model = Model(Red(), ("background", "red"), 16, 16, "tile", card | {"input": {"size": 16}})
    pixels = np.zeros((37, 50, 3), np.uint8)
    pixels[5:20, 7:41, 0] = 255
    found = model.predict(pixels)
    assert found.mask.shape == (37, 50)
    assert (found.mask == (pixels[..., 0] > 0)).all()
    assert (found.mask == tiled_mask(model, Image.fromarray(pixels), 16, 0.25)).all()
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert model.predict(pixels[:9, :9]).mask.shape == (9, 9)


def test_a_model_of_channels_reads_arrays_and_shows_the_first_three(tmp_path):
    data = CARD["data"] | {"channels": 5, "value_range": [[0, 100]] * 5}
    card = CARD | {"model": CARD["model"] | {"channels": 5}, "data": data}
    study, images = write_best(tmp_path / "study", card), tmp_path / "images"
    images.mkdir()
    np.save(images / "a.npy", np.random.default_rng(0).integers(0, 100, (20, 30, 5), np.uint16))
    np.save(images / "b.npy", np.zeros((20, 30, 4), np.uint16))
    ended = predict_folder(study, images, tmp_path / "out", How(device="cpu", tile=16), QUIET)
    assert (ended.done, list(ended.failed)) == (1, ["b.npy"])
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as over, Image.open(tmp_path / "out/masks/a.png") as mask:
        assert over.size == mask.size == (30, 20)
    model = load_model(study)
    assert model.shape == (5, 16, 16)
    assert model.predict(images / "a.npy").mask.shape == (20, 30)


@pytest.mark.parametrize("background", [0, 3])
def test_no_two_classes_share_a_colour_and_thirty_are_told_apart(background: int) -> None:
    mask = colored(np.arange(255, dtype=np.uint8)[None], background)
    pixels = np.asarray(mask.convert("RGB"))[0].astype(int)
    assert len({tuple(pixel) for pixel in pixels.tolist()}) == 255
    assert pixels[background].tolist() == [0, 0, 0]
    apart = np.abs(pixels[:31, None] - pixels[None, :31]).sum(-1) + 1000 * np.eye(31, dtype=int)
    assert apart.min() >= 40  # summed over red, green and blue
