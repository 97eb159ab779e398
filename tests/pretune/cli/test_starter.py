"""The starter study: valid and fitting for whatever the folders hold and are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretune.cli import cli
from pretune.cli.starter import Hardware, quoted, starter
from pretune.data.backbones import IMAGENET, Network
from pretune.data.survey.groups import find_groups
from pretune.data.survey.masks import Meaning
from pretune.data.survey.pairs import PairsSeen
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study, from_yaml, load
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.listing import Entry, Listing
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.sets.folders import Names, official_tests
from pretune.trainables.data.splits import Marks, draw_split, marks_for

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20)
VIT = Network("vit_small_patch14_dinov2", "vit-pyramid", 14, None)
CPU, GPU = Hardware(gpu=False, cores=2), Hardware(gpu=True, cores=16)


def image(path: Path, width: int = 48, height: int = 48, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)


def mask(path: Path, values: tuple[int, ...] = (0, 1), width: int = 48, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width), values[0], np.uint8)
    for i, value in enumerate(values):
        pixels[:, i * width // len(values) :] = value
    Image.fromarray(pixels).save(path)


def pairs(root: Path, count: int = 12, **options: Any) -> tuple[Path, Path]:
    for i in range(count):
        image(root / "images" / f"a{i:02}.jpg", seed=i, **options)
        mask(root / "masks" / f"a{i:02}.png", **options)
    return root / "images", root / "masks"


def init(folder: Path, *options: Any) -> tuple[Study, str]:
    """The study that `pretune init` writes, and what it says."""
    ended = CliRunner().invoke(cli, ["init", str(folder / "my.yaml"), *map(str, options)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return from_yaml((folder / "my.yaml").read_text(encoding="utf-8")), ended.output


def seen_of(root: Path, names: list[str]) -> PairsSeen:
    """The survey of as many pairs, all of one image."""
    image(root / "x.png")
    tests = official_tests(names) or dict.fromkeys(names)
    entries = tuple(Entry(name, root / "x.png", root / "x.png", test=tests[name]) for name in names)
    meaning = Meaning(("background", "object"), (0.5, 0.5), 0.0, {}, "half and half")
    return PairsSeen(root, "images", "masks", Names(), Listing(root, entries), meaning, len(names))


def mine(study: Study, name: str = "mine") -> Any:
    return study.cells[0].configuration().data[name]


# -------------------------------------------------------------------------------------------------- what it is called


def test_without_folders_the_starter_is_a_valid_study_with_examples() -> None:
    text = starter("leaves", None, None, CPU)
    study = from_yaml(text)
    assert (study.name, len(study.cells)) == ("leaves", 6)
    assert "pretune run leaves.yaml" in text
    assert study.warnings == ()


@pytest.mark.parametrize("hardware", [CPU, GPU])
def test_the_small_scale_is_valid_too(hardware: Hardware) -> None:
    from_yaml(starter("s", None, None, hardware), "small")


@pytest.mark.parametrize("network", [None, IMAGENET, VIT])
@pytest.mark.parametrize("hardware", [CPU, GPU])
def test_the_first_scale_compares_all_starts_in_short_trainings(hardware: Hardware, network: Network | None) -> None:
    """Of 100 images 70 are for training."""
    text = starter("s", None, None, hardware, network)
    whole, first = from_yaml(text), from_yaml(text, "first")
    assert {cell.levels["start"] for cell in first.cells} == {cell.levels["start"] for cell in whole.cells}
    assert len(first.cells) * 2 == len(whole.cells)  # all labels alone
    for cell in first.cells:
        tuned = cell.configuration().finetune
        each = 70 // tuned.batch_size
        assert tuned.labels == 1.0
        assert tuned.size <= (128 if hardware.gpu else 64) or network == VIT
        assert 100 <= tuned.epochs * each < 100 + each
    steps = [stage.steps for study in (first, whole) for stage in study.cells[1].configuration().pretrain]
    assert steps[0] == 80  # in fewer SimCLR collapsed
    assert steps[1] >= 500


@pytest.mark.parametrize("hardware", [CPU, GPU])
def test_imagenet_adds_two_starts_that_share_their_weights(hardware: Hardware) -> None:
    text = starter("s", None, None, hardware, IMAGENET)
    study = from_yaml(text)
    starts = {cell.levels["start"]: cell.configuration() for cell in study.cells}
    assert list(starts) == ["random", "pretrained", "pretrained and frozen", "ImageNet", "ImageNet and frozen"]
    assert {configuration.model.name for configuration in starts.values()} == {"timm-unet"}
    weights = [starts[name].pretrain for name in ("ImageNet", "ImageNet and frozen")]
    assert weights[0] == weights[1]
    assert [stage.method.name for stage in weights[0]] == ["weights"]
    frozen = {name: configuration.finetune.freeze for name, configuration in starts.items()}
    assert frozen["ImageNet"] == "none"
    assert frozen["ImageNet and frozen"] == "encoder"
    pretrained, plain = starts["pretrained"].pretrain[0], from_yaml(starter("s", None, None, hardware)).cells[0]
    assert 500 <= pretrained.steps <= max(500, plain.configuration().pretrain[0].steps // 4)
    from_yaml(text, "small")


@pytest.mark.parametrize("hardware", [CPU, GPU])
@pytest.mark.parametrize(
    "network",
    [
        Network("vit_small_patch14_dinov2", "vit-pyramid", 14, None),
        Network("convnext_tiny", "timm-unet", 32, None),
        Network("hiera_tiny_224", "timm-unet", 32, 224),
    ],
    ids=lambda network: network.backbone,
)
def test_sizes_fit_the_stride_of_a_backbone(hardware: Hardware, network: Network) -> None:
    configuration = from_yaml(starter("s", None, None, hardware, network)).cells[0].configuration()
    assert configuration.finetune is not None
    assert configuration.model.model_dump()["backbone"] == network.backbone
    sizes = [configuration.finetune.size, *(stage.views.size for stage in configuration.pretrain)]
    assert all(0 < size <= max(hardware.largest, network.image_size or 0) for size in sizes)
    assert [size % network.stride for size in sizes] == [0, 0]
    assert network.image_size is None or set(sizes) == {network.image_size}


@pytest.mark.parametrize("name", ["2024", "true", "null", "-a", ".hidden", "_x", "ü", "", "a b#c", "x" * 300, "1e3"])
def test_any_file_name_gives_a_valid_study_name(name: str) -> None:
    from_yaml(starter(name, None, None, CPU))


@settings(max_examples=100, deadline=None)
@given(name=NAMES | st.text(max_size=5))
def test_what_is_quoted_reads_as_it_was(name: str) -> None:
    if "\ud800" <= max(name, default="a") <= "\udfff":
        return
    assert yaml.safe_load(f"x: [{quoted(name)}]  # why") == {"x": [name]}
    assert "\t" not in quoted(name)


@pytest.mark.parametrize("folder", ["a b", "no", "1: 2", "x#y", "ü | é", "'q\"", "{a}", "%s"])
def test_odd_folders_and_classes_are_quoted(tmp_path: Path, folder: str) -> None:
    pairs(tmp_path / folder, 4)
    study, _ = init(tmp_path, "--images", tmp_path / folder / "images", "--masks", tmp_path / folder / "masks",
                    "--classes", f"off,{folder}".replace(", ", ""))  # fmt: skip
    assert mine(study).root == str((tmp_path / folder).resolve())
    assert mine(study).classes == ("off", folder)


# ---------------------------------------------------------------------------------------------------- what it has seen


def test_a_pool_and_few_labels_are_two_data_sets_and_the_pool_is_used_whole(tmp_path: Path) -> None:
    images, masks = pairs(tmp_path / "B")
    for i in range(20):
        image(tmp_path / "A" / "deep" / f"{i}.png", seed=100 + i)
    study, said = init(tmp_path, "--unlabelled", tmp_path / "A", "--images", images, "--masks", masks)
    configuration = study.cells[0].configuration()
    assert [stage.data for stage in configuration.pretrain] == ["unlabelled"]
    assert configuration.finetune is not None
    assert configuration.finetune.data == "labelled"
    assert (mine(study, "unlabelled").split.test, mine(study, "unlabelled").split.val) == (0, 0)
    assert study.warnings == ()
    assert "2 classes; " in said
    assert "data labelled: 12 images (" in said
    assert "unlabelled: 20 images (all 48 x 48 px; 20 RGB)" in said


@pytest.mark.parametrize(
    ("values", "classes", "changes"),
    [
        ((0, 1), ("background", "object"), {}),
        ((0, 255), ("background", "object"), {"mask_values": (0, 255)}),
        ((0, 1, 2), ("background", "class 1", "class 2"), {}),
        ((1, 2, 3), ("class 1", "class 2", "class 3"), {"mask_values": (1, 2, 3)}),
        ((0, 1, 255), ("background", "object"), {"ignore": 255}),
        ((0, 1, 2, 255), ("background", "class 1", "class 2"), {"ignore": 255}),
        ((0, 128, 255), ("background", "class 128", "class 255"), {"mask_values": (0, 128, 255)}),
        ((0, 7), ("background", "object"), {"mask_values": (0, 7)}),
    ],
)
def test_the_values_of_masks_become_classes(
    tmp_path: Path, values: tuple[int, ...], classes: tuple[str, ...], changes: dict[str, Any]
) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png")
        mask(tmp_path / "masks" / f"{i}.png", values)
    study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    data = mine(study)
    assert data.classes == classes
    plain = {"mask_values": None, "ignore": None, "mask_threshold": None, "mask_colors": None}
    assert {key: getattr(data, key) for key in plain} == plain | changes
    made = load_images(data, None, tmp_path / "cache")
    assert made.masks is not None
    assert set(np.unique(made.masks)) == {*range(len(classes)), *([255] if data.ignore else [])}


@pytest.mark.parametrize(
    ("values", "ignore", "classes", "mask_values"),
    [
        ((0, 128, 255), 128, ("background", "object"), (0, 255)),
        ((0, 1, 2, 255), 2, ("background", "class 1", "class 255"), (0, 1, 255)),  # 255 is then a class
        ((0, 1, 255), 255, ("background", "object"), None),
        ((0, 1, 2), 0, ("class 1", "class 2"), (1, 2)),
    ],
)
def test_a_value_to_ignore_is_no_class_and_is_left_out(
    tmp_path: Path, values: tuple[int, ...], ignore: int, classes: tuple[str, ...], mask_values: tuple[int, ...] | None
) -> None:
    for i in range(4):
        image(tmp_path / "images" / f"{i}.png")
        mask(tmp_path / "masks" / f"{i}.png", values)
    folders = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    study, said = init(tmp_path, *folders, "--ignore", ignore)
    data = mine(study)
    assert (data.classes, data.mask_values, data.ignore) == (classes, mask_values, ignore)
    assert f"; {ignore} is ignored" in said
    made = load_images(data, None, tmp_path / "cache")
    assert made.masks is not None
    with Image.open(tmp_path / "masks" / "0.png") as file:
        left_out = np.asarray(file) == ignore
    assert ((np.asarray(made.masks[0]) == 255) == np.asarray(Image.fromarray(left_out).resize((32, 32), 0))).all()


def test_a_value_to_ignore_that_no_mask_holds_is_refused(tmp_path: Path) -> None:
    images, masks = pairs(tmp_path)
    asked = ["init", str(tmp_path / "my.yaml"), "--ignore", "7"]
    for folders in (["--images", str(images), "--masks", str(masks)], []):
        ended = CliRunner().invoke(cli, [*asked, *folders])
        assert ended.exit_code != 0
        assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    ("sizes", "cpu", "gpu", "fit"),
    [
        ([(48, 48)], 32, 32, "squash"),
        ([(500, 400)], 128, 256, "squash"),
        ([(1024, 512)], 128, 256, "squash"),  # all are squashed alike
        ([(300, 100), (100, 300), (200, 200)], 96, 96, "pad"),
        ([(20, 20)], 32, 32, "squash"),
    ],
)
def test_the_size_follows_the_images_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[tuple[int, int]], cpu: int, gpu: int, fit: str
) -> None:
    for i in range(6):
        width, height = sizes[i % len(sizes)]
        image(tmp_path / "images" / f"{i}.png", width, height)
        mask(tmp_path / "masks" / f"{i}.png", width=width, height=height)
    for has_gpu, expected in ((False, cpu), (True, gpu)):
        monkeypatch.setattr("pretune.calibration.has_gpu", lambda has_gpu=has_gpu: has_gpu)
        (tmp_path / "my.yaml").unlink(missing_ok=True)
        study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
        finetune = study.cells[0].configuration().finetune
        assert finetune is not None
        assert (mine(study).cache_size, finetune.size, mine(study).fit) == (expected, expected, fit)


def test_a_rare_class_asks_for_other_losses(tmp_path: Path) -> None:
    images, masks = pairs(tmp_path)
    for path in masks.iterdir():
        pixels = np.zeros((48, 48), np.uint8)
        pixels[:4, :5] = 1
        Image.fromarray(pixels).save(path)
    study, _ = init(tmp_path, "--images", images, "--masks", masks)
    assert {tuple(cell.levels) for cell in study.cells} == {("start",)}, "no more starts than the README says"
    finetune = study.cells[0].configuration().finetune
    assert finetune is not None
    assert finetune.loss == "dice+cross-entropy"
    written = (tmp_path / "my.yaml").read_text()
    assert "the rarest class has 0.9% of the pixels" in written
    more = written.replace("  # loss: {", "  loss: {").replace("rows: start", "rows: start, columns: loss")
    (tmp_path / "more.yaml").write_text(more)
    losses = {cell.levels["loss"] for cell in load(tmp_path / "more.yaml", None, ()).cells}
    assert losses == {"dice+cross-entropy", "focal"}


def test_official_parts_are_the_split(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for i in range(4):
            image(tmp_path / part / "images" / f"{i}.png")
            mask(tmp_path / part / "masks" / f"{i}.png")
    study, _ = init(tmp_path, "--images", tmp_path)
    assert mine(study).split.test == "official"


def test_a_file_without_a_partner_is_said_and_excluded(tmp_path: Path) -> None:
    images, masks = pairs(tmp_path)
    image(images / "lonely.png")
    study, _ = init(tmp_path, "--images", images, "--masks", masks)
    assert mine(study).on_error == "skip"
    assert "1 file without a partner: images/lonely.png" in (tmp_path / "my.yaml").read_text()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"patient{p:02}_slice{i}" for p in range(6) for i in range(3)], r"([^/_-]+)[_-][^/]*$"),
        ([f"site/P{p}-L-{i}" for p in range(6) for i in range(3)], r"([^/_-]+)[_-][^/]*$"),
        ([f"scan_{p}_{i}" for p in range(6) for i in range(3)], r"([^/]+)[_-][^/_-]*$"),
        ([f"case{p}/{i}" for p in range(6) for i in range(3)], "parent"),
        ([f"img_{i:04}" for i in range(20)], None),
        ([f"{i:04}" for i in range(20)], None),
        ([f"{breed}_{i}" for breed in ("Abyssinian", "pug", "Bengal", "beagle") for i in range(5)], None),
        ([f"{year}_{i:06}" for year in range(2007, 2013) for i in range(5)], None),
        ([f"p{i}_x" for i in range(20)], None),
    ],
)
def test_groups_are_found_in_names_with_numbers(names: list[str], expected: str | None) -> None:
    found = find_groups(names)
    setting = found.setting if found else None
    assert (setting["pattern"] if isinstance(setting, dict) else setting) == expected
    assert found is None or found.groups == 6


def test_patients_become_groups_and_folds(tmp_path: Path) -> None:
    for patient in range(4):
        for i in range(5):
            image(tmp_path / "images" / f"patient{patient}_{i}.png")
            mask(tmp_path / "masks" / f"patient{patient}_{i}.png")
    study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    assert {cell.levels["fold"] for cell in study.cells} == {"1/4", "2/4", "3/4", "4/4"}
    for cell in study.cells:
        data = cell.configuration().data["mine"]
        made = load_images(data, None, tmp_path / "cache")
        drawn = draw_split(20, data.split, 0, None, None, marks_for(data.split, made))
        patients = [{made.names[i].split("_")[0] for i in part} for part in drawn]
        assert sum(map(len, patients)) == 4
        assert len(patients[2]) == 1


@pytest.mark.parametrize(
    ("count", "parts", "labels"),
    [
        (4, (2, 1, 1), {"all"}),
        (5, (3, 1, 1), {"all"}),
        (6, (3, 1, 2), {"all"}),
        (8, (5, 1, 2), {"all"}),
        (10, (7, 1, 2), {"all"}),
        (12, (8, 1, 3), {"all", "4"}),
        (15, (10, 1, 4), {"all", "4"}),
        (16, (8, 4, 4), {"all", "4"}),
        (30, (14, 8, 8), {"all", "4"}),
        (100, (70, 10, 20), {"all", "10%"}),
        (1000, (700, 100, 200), {"all", "10%"}),
    ],
)
def test_few_images_are_divided_so_that_the_study_can_run(
    tmp_path: Path, count: int, parts: tuple[int, ...], labels: set[str]
) -> None:
    """`all` alone where half of the training images would be under four; one image or more choose the model."""
    text = starter("s", seen_of(tmp_path, [f"a{i}" for i in range(count)]), None, CPU)
    study = from_yaml(text)
    drawn = draw_split(count, mine(study).split, 0, None)
    assert tuple(map(len, drawn)) == parts
    assert {str(cell.levels.get("labels", "all")) for cell in study.cells} == labels


@pytest.mark.parametrize(
    ("names", "has", "more"),
    [
        (["a0"], "(1 in all)", 3),
        (["a0", "a1", "a2"], "(3 in all)", 1),
        (["train/a0", "train/a1", "test/a2", "test/a3"], "(1 for training)", 1),
        (["train/a0", "val/a4", "val/a5", "test/a1"], "(1 for training)", 1),
    ],
)
def test_fewer_images_than_a_study_needs_are_refused(tmp_path: Path, names: list[str], has: str, more: int) -> None:
    with pytest.raises(DataError) as refused:
        starter("s", seen_of(tmp_path, names), None, CPU)
    assert f"too few images with masks {has}; a study needs at least 2 to train on, 1" in str(refused.value)
    assert str(refused.value).endswith(f"label {more} more")


@pytest.mark.parametrize(
    ("names", "split", "drawn"),
    [
        ({"train": 20, "val": 5, "test": 4}, ("official", "official"), (20, 5, 4)),
        ({"train": 20, "validation": 5, "testing": 4}, ("official", "official"), (20, 5, 4)),
        ({"train": 20, "val": 5}, ("official", 2), (18, 2, 5)),  # val/ is the test list where there is no test/
        ({"train": 24, "test": 200}, ("official", 3), (21, 3, 200)),  # a share of all would be more than train/
        ({"train": 5, "test": 4}, ("official", 1), (4, 1, 4)),
    ],
)
def test_official_parts_are_used_as_they_are(
    tmp_path: Path, names: dict[str, int], split: tuple[Any, ...], drawn: tuple[int, ...]
) -> None:
    listed = [f"{part}/a{i}" for part, count in names.items() for i in range(count)]
    data = mine(from_yaml(starter("s", seen_of(tmp_path, listed), None, CPU)))
    assert (data.split.test, data.split.val) == split
    tests = np.array(list((official_tests(listed) or {}).values()))
    assert tuple(map(len, draw_split(len(listed), data.split, 0, tests, None, Marks(listed)))) == drawn


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("image_file", "mask_file", "expected"),
    [
        ("x/images/p{i}.jpg", "x/masks/p{i}.png", ("images", "masks", "{stem}", "{stem}")),
        ("x/p{i}.jpg", "x/p{i}_mask.png", (".", ".", "{stem}", "{stem}_mask")),
        ("x/p{i}.jpg", "x/masks/p{i}_gt.png", (".", "masks", "{stem}", "{stem}_gt")),
        ("x/s{i}/p.jpg", "x/s{i}/p_mask.png", (".", ".", "{stem}", "{stem}_mask")),
        ("x/s{i}/image.jpg", "x/s{i}/mask.png", (".", ".", "{stem}/image", "{stem}/mask")),
        ("x/images/{i}_training.png", "x/1st/{i}_manual1.png", ("images", "1st", "{stem}_training", "{stem}_manual1")),
        ("x/images/img_{i}.png", "x/labels/lbl_{i}.png", ("images", "labels", "img_{stem}", "lbl_{stem}")),
        ("x/train/images/{i}.png", "x/train/labels/{i}.png", ("images", "labels", "{stem}", "{stem}")),
    ],
)
def test_how_files_pair_is_found(
    tmp_path: Path, image_file: str, mask_file: str, expected: tuple[str, str, str, str]
) -> None:
    for i in range(11, 15):
        image(tmp_path / image_file.format(i=i))
        mask(tmp_path / mask_file.format(i=i))
    given = ["--masks", tmp_path / "x" / "1st"] if "1st" in mask_file else []
    where = tmp_path / "x" / "images" if given else tmp_path / "x"
    study, said = init(tmp_path, "--images", where, *given)
    data = mine(study)
    assert isinstance(data, schema.ImageMaskFolder)
    assert (data.images, data.masks, data.image_name, data.mask_name) == expected
    assert "data mine: 4 images (" in said
    assert len(load_images(data, None, tmp_path / "cache").images) == 4


# ------------------------------------------------------------------------------------------------------------- formats


def test_colours_are_written_as_a_mapping_and_named_by_a_known_palette(tmp_path: Path) -> None:
    images, masks = pairs(tmp_path)
    for path in masks.iterdir():
        pixels = np.zeros((48, 48, 3), np.uint8)
        pixels[:20, :20], pixels[30:] = (9, 8, 7), (200, 0, 0)
        Image.fromarray(pixels).save(path)
    study, _ = init(tmp_path, "--images", images, "--masks", masks)
    assert mine(study).mask_colors == (
        ("background", (0, 0, 0)), ("class 1", (200, 0, 0)), ("class 2", (9, 8, 7)),
    )  # fmt: skip
    for path in masks.iterdir():
        pixels[:20, :20], pixels[30:] = (128, 64, 128), (128, 128, 0)
        Image.fromarray(pixels).save(path)
    (tmp_path / "my.yaml").unlink()
    study, _ = init(tmp_path, "--images", images, "--masks", masks)
    assert mine(study).mask_colors == (("Road", (128, 64, 128)), ("Tree", (128, 128, 0)))
    assert mine(study).ignore_colors == ((0, 0, 0),)


def test_jpeg_masks_are_black_and_white(tmp_path: Path) -> None:
    for i in range(6):
        image(tmp_path / "images" / f"{i}.jpg", 64, 64)
        (tmp_path / "masks").mkdir(exist_ok=True)
        disc = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 15 + i
        Image.fromarray((disc * 255).astype(np.uint8)).save(tmp_path / "masks" / f"{i}.jpg", quality=70)
    study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    assert (mine(study).mask_threshold, mine(study).classes) == (128, ("background", "object"))
    made = load_images(mine(study), None, tmp_path / "cache")
    assert made.masks is not None
    assert set(np.unique(made.masks)) == {0, 1}


@pytest.mark.parametrize(("file", "given"), [("photos/x.json", False), ("photos/x.json", True), ("gt/x.json", True)])
def test_a_coco_file_is_found_beside_the_images_or_given(tmp_path: Path, file: str, given: bool) -> None:
    pytest.importorskip("pycocotools")
    square = [[8, 8, 24, 8, 24, 24, 8, 24]]
    for i in range(6):
        image(tmp_path / "photos" / f"{i}.jpg")
    (tmp_path / "gt").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 48} for i in range(6)]
    objects = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": square} for i in range(6)]
    names = [{"id": 1, "name": "leaf"}, {"id": 2, "name": "stem: old"}]
    (tmp_path / file).write_text(json.dumps({"images": images, "annotations": objects, "categories": names}))
    study, _ = init(tmp_path, "--images", tmp_path / "photos", *(["--masks", tmp_path / file] if given else []))
    data = mine(study)
    assert (data.dataset, data.classes) == ("coco", ("leaf", "stem: old"))
    made = load_images(data, None, tmp_path / "cache")
    assert (made.classes, len(made.images)) == (("background", "leaf", "stem: old"), 6)


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [
        (np.uint16, 65535, None), (np.uint16, 4000, (0, 4095)), (np.uint16, 900, (0, 1023)), (np.float32, 1, (0, 1)),
        (np.float32, 300, "percentiles"),
    ],
)  # fmt: skip
def test_deep_images_get_the_range_that_their_values_have(tmp_path: Path, dtype: Any, high: int, expected: Any) -> None:
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        ramp = np.linspace(0, high, 48 * 48).reshape(48, 48).astype(dtype)
        Image.fromarray(ramp).save(tmp_path / "images" / f"{i}.tif")
        mask(tmp_path / "masks" / f"{i}.png")
    study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    asked = mine(study).value_range
    assert asked == expected or (expected == "percentiles" and asked.percentiles == (1, 99))
    made = load_images(mine(study), None, tmp_path / "cache")
    assert np.asarray(made.images).max() > 200


def test_stacks_get_their_first_page(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        pages = [Image.new("L", (48, 48), value) for value in (50, 90)]
        pages[0].save(tmp_path / "images" / f"{i}.tif", save_all=True, append_images=pages[1:])
        mask(tmp_path / "masks" / f"{i}.png")
    study, _ = init(tmp_path, "--images", tmp_path / "images", "--masks", tmp_path / "masks")
    assert mine(study).page == 1
    assert np.unique(load_images(mine(study), None, tmp_path / "cache").images).tolist() == [50]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda root: image(root / "a" / "x.png"), ["--images", "a"], "no masks found in "),
        (lambda root: (root / "a").mkdir(), ["--unlabelled", "a"], "holds no image of a supported type"),
        (lambda root: pairs(root), ["--images", "images", "--masks", "masks", "--classes", "a,b,c"],
         "--classes names 3 classes, but the masks hold 2"),
        (lambda root: pairs(root), ["--masks", "masks"], "--masks also needs --images"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, options: list[str], expected: str
) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(cli, ["init", "my.yaml", *options])
    assert expected in (ended.output + str(ended.exception))
    assert ended.exit_code != 0
    assert not (tmp_path / "my.yaml").exists()


def test_photographs_given_as_masks_are_refused(tmp_path: Path) -> None:
    for i in range(3):
        for folder in ("images", "masks"):
            image(tmp_path / folder / f"{i}.jpg", 64, 64, seed=i)
    ended = CliRunner().invoke(cli, ["init", str(tmp_path / "m.yaml"), "--images", str(tmp_path)])
    assert "colours, too many for classes" in str(ended.exception)
