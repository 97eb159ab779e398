"""Every published data set: a miniature copy in its real layout is found, listed and decoded.

torchvision reads the same copies where it has a class that does not insist on checksums.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from scipy.io import savemat
from torchvision import datasets

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.listing import Pack
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets import classed, packed, segmented
from pretune.trainables.data.sets.table import ABOUT, ABOUT_GENERATED, DATA_SETS, GENERATED, locate
from pretune.trainables.data.sets.wnids import TINY_IMAGENET

DATA: TypeAdapter[schema.Data] = TypeAdapter(schema.Data)


def settings(dataset: str, **changes: object) -> schema.Data:
    return DATA.validate_python({"dataset": dataset, "cache_size": 8} | changes)


def loaded(dataset: str, data_root: Path, **changes: object) -> ImageSet:
    return load_images(settings(dataset, **changes), data_root, data_root / "cache")


def draw(path: Path, color: tuple[int, int, int] = (90, 60, 30), size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def draw_mask(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def halves(left: int, right: int, side: int = 8) -> NDArray[np.uint8]:
    """Columns of `left`, then of `right`."""
    pixels = np.full((side, side), left, np.uint8)
    pixels[:, side // 2 :] = right
    return pixels


def labels(made: ImageSet) -> list[int]:
    assert made.labels is not None
    return [int(label) for label in made.labels]


def on_test(made: ImageSet) -> list[bool]:
    assert made.official_test is not None
    return [bool(flag) for flag in made.official_test]


def sides(made: ImageSet, row: int) -> tuple[int, int]:
    """Mask values at the left and right edge."""
    assert made.masks is not None
    return int(made.masks[row, 4, 0]), int(made.masks[row, 4, 7])


# ------------------------------------------------------------------------------------------------- the table itself


UNION = {
    get_args(member.model_fields["dataset"].annotation)[0]: member for member in get_args(get_args(schema.Data)[0])
}
TESTS = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))


def test_generated_data_sets_are_described() -> None:
    assert {get_args(kind.model_fields["dataset"].annotation)[0] for kind in get_args(GENERATED)} == {*ABOUT_GENERATED}


@pytest.mark.parametrize("name", sorted({*UNION, *DATA_SETS, *ABOUT_GENERATED}))
def test_nothing_of_a_data_set_is_forgotten(name: str) -> None:
    """CONTRIBUTING.md, 'A data set': settings, a row with adapter and licence, and a test that reads a small copy."""
    assert name in UNION, (
        f"{name}: no settings; add a class with `dataset: Literal[{name!r}]` to schema/published.py's PublishedData"
    )
    assert UNION[name].__doc__, f"{name}: its settings have no docstring, which the reference page shows"
    if name in ABOUT_GENERATED:
        return
    assert name in DATA_SETS, f"{name}: no adapter; add a row to the *_SETS of its module in trainables/data/sets"
    row = DATA_SETS[name]
    assert isinstance(row.about, str) == UNION[name].model_fields["root"].is_required(), (
        f"{name}: a published data set has an About and is found below --data; the user's own has a required `root`"
    )
    for key in ("title", "licence", "size", "layout", "get", "folders", "markers"):
        assert isinstance(row.about, str) or getattr(row.about, key), f"{name}: its About has no {key}"
    loads = (f'("{name}"', f'"dataset": "{name}"', f'dataset="{name}"')
    assert any(text in TESTS for text in loads), f"{name}: no test below tests/trainables/data reads a small copy of it"


@pytest.mark.parametrize("name", sorted(ABOUT))
def test_a_missing_data_set_says_what_is_expected_where_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected a folder with") as caught:
        locate(settings(name), tmp_path)
    assert ABOUT[name].get in str(caught.value)
    assert str(tmp_path / ABOUT[name].folders[0]) in str(caught.value)


def test_what_is_generated_is_named_as_before_the_adapters() -> None:
    """Pinned: another digest means that finished studies are run again."""
    digest = "266272095ccd24686ebe837851b0d08c6cfa08b42d79e3cf4fd19ddb7117b485"
    assert content_digest(schema.Scenes(dataset="scenes"), None) == digest
    assert content_digest(schema.Scenes(dataset="scenes", noise=0.1), None) != digest


# -------------------------------------------------------------------------------------------------------------- pets


def pets(root: Path) -> Path:
    """A Bengal (CLASSID 6), a beagle (5) and a yorkshire terrier (37, the last)."""
    lines = ["Bengal_1 6 1 2", "beagle_1 5 2 4", "yorkshire_terrier_1 37 2 25"]
    for line in lines:
        name = line.split()[0]
        draw(root / "images" / f"{name}.jpg")
        draw_mask(root / "annotations" / "trimaps" / f"{name}.png", halves(1, 2))
    (root / "annotations" / "trainval.txt").write_text("\n".join(lines[:2]))
    (root / "annotations" / "test.txt").write_text(lines[2])
    return root


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("Bengal_1", 5), ("beagle_1", 4), ("yorkshire_terrier_1", 36)]),
        ({"classes": "species"}, [("Bengal_1", 0), ("beagle_1", 1), ("yorkshire_terrier_1", 1)]),
        ({"species": "dogs"}, [("beagle_1", 3), ("yorkshire_terrier_1", 24)]),
        ({"species": "cats"}, [("Bengal_1", 1)]),
        ({"species": "cats", "classes": "species"}, [("Bengal_1", 0)]),
    ],
)
def test_pets_by_breed_and_species(tmp_path: Path, changes: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    """Breeds 1 to 4 before the beagle are Abyssinian (a cat) and three dogs: among dogs it is number 3, from 0."""
    pets(tmp_path / "oxford-iiit-pet")
    made = loaded("oxford-iiit-pet", tmp_path, **changes)
    assert list(zip(made.names, labels(made), strict=True)) == expected


# -------------------------------------------------------------------------------------------------------------- VOC


def voc(root: Path) -> Path:
    """a: aeroplane (1) beside background; b: cat (8) beside car (7); c (val): cat beside the ignored border."""
    masks = {"a": halves(0, 1), "b": halves(8, 7), "c": halves(8, 255)}
    for name, mask in masks.items():
        draw(root / "JPEGImages" / f"{name}.jpg")
        path = root / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(mask).convert("P")
        image.putdata(mask.ravel().tolist())  # the values are indices, whatever the palette shows
        image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
        image.save(path)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    return root


def test_voc_all_classes(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    made = loaded("voc2012", tmp_path)
    assert (made.names, on_test(made), len(made.classes)) == (("a", "b", "c"), [False, False, True], 21)
    assert [sides(made, row) for row in range(3)] == [(0, 1), (8, 7), (8, 255)]
    assert made.classes[8] == "cat"
    theirs = datasets.VOCSegmentation(str(tmp_path), year="2012", image_set="train")
    assert np.asarray(theirs[1][1])[4, [0, 7]].tolist() == [8, 7]


def test_voc_one_class_keeps_the_images_that_show_it(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2012")
    made = loaded("voc2012", tmp_path, only="cat")
    assert (made.names, made.classes) == (("b", "c"), ("background", "cat"))
    assert [sides(made, row) for row in range(2)] == [(1, 0), (1, 255)]


def test_voc_classification_keeps_images_with_one_of_the_classes(tmp_path: Path) -> None:
    """b shows two of the four and would have two labels."""
    voc(tmp_path / "VOC2012")
    made = loaded("voc2012", tmp_path, classify=("motorbike", "car", "cat", "aeroplane"))
    assert (made.names, labels(made)) == (("a", "c"), [3, 2])
    assert made.label_names == ("motorbike", "car", "cat", "aeroplane")


def test_a_listed_file_that_is_missing_is_a_problem(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC2012")
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/a\.png: listed"):
        loaded("voc2012", tmp_path)


# ------------------------------------------------------------------------------------------------------- Cityscapes


def cityscapes(root: Path) -> Path:
    """a: road (7) beside car (26); b (val): sky (23) beside 'out of roi' (3)."""
    for part, city, mask in (("train", "ulm", halves(7, 26, 16)), ("val", "bonn", halves(23, 3, 16))):
        stem = f"{city}_000000_000019"
        draw(root / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", size=(16, 16))
        draw_mask(root / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png", mask)
    return root


def test_cityscapes_has_nineteen_classes(tmp_path: Path) -> None:
    """The class numbers are torchvision's train_id of the same labelIds."""
    root = cityscapes(tmp_path / "cityscapes")
    made = loaded("cityscapes", tmp_path)
    train_id = {c.id: c.train_id for c in datasets.Cityscapes.classes if c.train_id not in (-1, 255)}
    names = [c.name for c in datasets.Cityscapes.classes if c.train_id not in (-1, 255)]
    assert dict(zip(segmented.CITYSCAPES_IDS, range(19), strict=True)) == train_id
    assert list(made.classes) == names
    assert on_test(made) == [False, True]
    assert [sides(made, row) for row in range(2)] == [(train_id[7], train_id[26]), (train_id[23], 255)]
    theirs = datasets.Cityscapes(str(root), split="train", mode="fine", target_type="semantic")
    assert np.asarray(theirs[0][1])[8, [0, 15]].tolist() == [7, 26]


def test_cityscapes_one_class(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    made = loaded("cityscapes", tmp_path, only="car")
    assert (len(made.names), made.classes, sides(made, 0)) == (1, ("background", "car"), (0, 1))


def test_cityscapes_patches_show_the_class_or_not_as_labelled(tmp_path: Path) -> None:
    """Eight images, half car: with patches of 4 px both labels can be had from each; b's sky never shows a car."""
    root = cityscapes(tmp_path / "cityscapes")
    for i in range(8):
        stem = f"ulm_{i:06d}_000019"
        draw(root / "leftImg8bit" / "train" / "ulm" / f"{stem}_leftImg8bit.png", size=(16, 16))
        draw_mask(root / "gtFine" / "train" / "ulm" / f"{stem}_gtFine_labelIds.png", halves(7, 26, 16))
    made = loaded("cityscapes", tmp_path, patches={"of": "car", "size": 4})
    assert made.masks is not None
    assert made.label_names == ("no car", "car")
    assert set(labels(made)) == {0, 1}
    for label, mask in zip(labels(made), made.masks, strict=True):
        share = float((mask == 1).mean())
        assert share >= 0.2 if label else share == 0
    assert content_digest(settings("cityscapes", patches={"size": 4, "seed": 1}), tmp_path) != content_digest(
        settings("cityscapes", patches={"size": 4}), tmp_path
    )


@given(side=st.integers(4, 20), size=st.integers(1, 24), seed=st.integers(0, 2**30), fill=st.floats(0, 1))
def test_a_patch_lies_inside_and_keeps_the_rule(side: int, size: int, seed: int, fill: float) -> None:
    shown = np.random.default_rng(seed).random((side, side + 3)) < fill
    found = segmented.find_patch(shown, size, 0.2, [seed])
    if found is None:  # 1000 draws cover the at most 20 * 23 places only almost surely: one label has no or few places
        return
    label, (left, top, right, bottom) = found
    assert 0 <= left < right <= side + 3
    assert 0 <= top < bottom <= side
    assert right - left == bottom - top == min(size, side)
    inside = shown[top:bottom, left:right]
    assert inside.mean() >= 0.2 if label else not inside.any()


def test_a_patch_that_must_show_what_is_nowhere_is_not_found() -> None:
    found = [segmented.find_patch(np.zeros((8, 8), np.bool_), 4, 0.2, [seed]) for seed in range(20)]
    assert {None if hit is None else hit[0] for hit in found} == {None, 0}


# ------------------------------------------------------------------------------------------------- ADE20K and CamVid


def ade20k(root: Path) -> Path:
    for part, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        draw(root / "images" / part / f"{name}.jpg")
        draw_mask(root / "annotations" / part / f"{name}.png", halves(0, 150))
    return root


def test_ade20k_ignores_other_and_counts_from_zero(tmp_path: Path) -> None:
    root = ade20k(tmp_path / "ADEChallengeData2016")
    made = loaded("ade20k", tmp_path)
    assert (sides(made, 0), on_test(made), len(made.classes)) == ((255, 149), [False, True], 150)
    rows = "\n".join(f"{i}\t0.1\t1\t1\t0\tname {i}, synonym" for i in range(1, 151))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    assert loaded("ade20k", tmp_path).classes[149] == "name 150"
    (root / "objectInfo150.txt").write_text("1\t0.1\t1\t1\t0\twall")
    with pytest.raises(DataError, match="classes 1 to 150"):
        loaded("ade20k", tmp_path)


def camvid(root: Path, *parts: str) -> Path:
    for part in parts:
        draw(root / part / "f.png")
        draw_mask(root / f"{part}annot" / "f.png", halves(8, 11))
    return root


@pytest.mark.parametrize(
    ("parts", "expected"), [(("train", "val", "test"), [True, False, False]), (("train", "val"), [False, True])]
)
def test_camvid_tests_on_test_or_else_on_val(tmp_path: Path, parts: tuple[str, ...], expected: list[bool]) -> None:
    camvid(tmp_path / "camvid", *parts)
    made = loaded("camvid", tmp_path)
    assert on_test(made) == expected
    assert (made.classes[8], sides(made, 0)) == ("car", (8, 255))


# ----------------------------------------------------------------------------------------------------------- flowers


def segmentation(path: Path) -> Path:
    """Left half blue background, right half flower, as JPEG."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (0, 0, 254), (220, 180, 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)
    return path


def flowers102(root: Path) -> Path:
    for i in (1, 2, 3):
        draw(root / "jpg" / f"image_{i:05d}.jpg", size=(32, 32))
        segmentation(root / "segmim" / f"segmim_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 1, 102]])})
    savemat(root / "setid.mat", {"trnid": np.array([[1]]), "valid": np.array([[3]]), "tstid": np.array([[2]])})
    return root


def test_flowers102_masks_are_what_is_not_blue(tmp_path: Path) -> None:
    flowers102(tmp_path / "flowers-102")
    made = loaded("flowers102", tmp_path)
    assert (labels(made), on_test(made), made.classes) == ([76, 0, 101], [False, True, False], ("background", "flower"))
    assert made.masks is not None
    assert made.masks[0].tolist() == halves(0, 1).tolist()
    assert loaded("flowers102", tmp_path, masks=False).masks is None


def test_flowers102_without_its_segmentations_names_them(tmp_path: Path) -> None:
    (flowers102(tmp_path) / "segmim" / "segmim_00002.jpg").unlink()
    with pytest.raises(DataError, match=r"segmim/segmim_00002\.jpg: listed"):
        loaded("flowers102", tmp_path)


def test_flowers17_uses_the_images_that_have_a_trimap(tmp_path: Path) -> None:
    """Images 1, 80 and 81: classes 0, 0 and 1; dark red is the flower, black is not labelled."""
    root = tmp_path / "17flowers"
    for i in (1, 80, 81):
        draw(root / "jpg" / f"image_{i:04d}.jpg")
    for i in (1, 81):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, :3], pixels[:, 3:6] = (128, 0, 0), (0, 128, 0)
        draw_mask(root / "trimaps" / f"image_{i:04d}.png", pixels)
    made = loaded("flowers17", tmp_path)
    assert (made.names, labels(made), made.official_test) == (("image_0001", "image_0081"), [0, 1], None)
    assert made.masks is not None
    assert made.masks[0, 0].tolist() == [1] * 3 + [0] * 3 + [255] * 2
    savemat(root / "datasplits.mat", {"tst1": np.array([[80]])})
    whole = loaded("flowers17", tmp_path, masks=False)
    assert (labels(whole), on_test(whole)) == ([0, 0, 1], [False, True, False])


# ------------------------------------------------------------------------------------------------- folders by class


def test_imagenette_labels_follow_the_wordnet_ids(tmp_path: Path) -> None:
    root = tmp_path / "imagenette2-160"
    for part in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            draw(root / part / wnid / f"{part}.JPEG")
    made = loaded("imagenette", tmp_path)
    assert (labels(made), on_test(made)) == ([0, 9, 0, 9], [False, False, True, True])
    assert (made.label_names[0], made.label_names[9]) == ("tench", "parachute")


def test_imagenet_reads_as_torchvisions_folder_does(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    for wnid in ("n02000001", "n01000001"):
        draw(root / "train" / wnid / "x.JPEG")
        draw(root / "val" / wnid / "y.JPEG")
    made = loaded("imagenet", tmp_path)
    theirs = datasets.ImageFolder(str(root / "train"))
    assert (list(made.label_names), labels(made)[:2]) == (theirs.classes, theirs.targets)
    assert on_test(made) == [False, False, True, True]


def test_imagenet_in_the_classes_of_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    for wnid in (*TINY_IMAGENET, "n00000001"):
        (root / "train" / wnid).mkdir(parents=True)
    (root / "val").mkdir()
    draw(root / "train" / "n00000001" / "x.JPEG")
    draw(root / "train" / sorted(TINY_IMAGENET)[7] / "x.JPEG")
    assert labels(loaded("imagenet", tmp_path, subset="tiny-imagenet", on_error="skip")) == [7]
    (root / "train" / TINY_IMAGENET[0]).rmdir()
    with pytest.raises(DataError, match="lacks 1 classes of the subset"):
        loaded("imagenet", tmp_path, subset="tiny-imagenet")


def test_tiny_imagenet_as_folders(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        draw(root / "train" / wnid / "images" / f"{wnid}_0.JPEG")
    draw(root / "val" / "images" / "val_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\n")
    made = loaded("tiny-imagenet", tmp_path)
    assert list(zip(made.names, labels(made), on_test(made), strict=True)) == [
        ("train/n01/n01_0.JPEG", 0, False),
        ("train/n02/n02_0.JPEG", 1, False),
        ("val/val_0.JPEG", 1, True),
    ]


INATURALIST = {
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris": "Animalia",
    "02000_Animalia_Arthropoda_Insecta_Diptera_Syrphidae_Eristalis_tenax": "Insects",
    "02800_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax": "Birds",
    "05000_Animalia_Mollusca_Gastropoda_Stylommatophora_Helicidae_Helix_pomatia": "Mollusks",
    "05500_Fungi_Basidiomycota_Agaricomycetes_Agaricales_Amanitaceae_Amanita_muscaria": "Fungi",
    "06000_Plantae_Tracheophyta_Liliopsida_Asparagales_Iridaceae_Iris_pumila": "Plants",
}


def test_inaturalist_without_plants_and_fungi(tmp_path: Path) -> None:
    for folder in INATURALIST:
        draw(tmp_path / "inaturalist2021" / "train_mini" / folder / "a.jpg")
    assert {folder: classed.supercategory(folder) for folder in INATURALIST} == INATURALIST
    made = loaded("inaturalist2021", tmp_path, leave_out=("Plants", "Fungi"))
    assert (labels(made), made.official_test) == ([0, 1, 2, 3], None)
    draw(tmp_path / "inaturalist2021" / "val" / next(iter(INATURALIST)) / "b.jpg")
    assert on_test(loaded("inaturalist2021", tmp_path)) == [False] * 6 + [True]


INSECT = next(folder for folder, kind in INATURALIST.items() if kind == "Insects")


@pytest.mark.parametrize(
    ("dataset", "held", "empty"),
    [
        ("imagenette", "imagenette2/train/n01440764/a.JPEG", "imagenette2/{}train/n02102040"),
        ("imagenette", "imagenette2/train/n01440764/a.JPEG", "imagenette2/{}val/n02102040"),
        ("imagenet", "imagenet/train/n01/a.JPEG", "imagenet/{}train/n02"),
        ("tiny-imagenet", "tiny-imagenet-200/train/n01/images/a.JPEG", "tiny-imagenet-200/{}train/n02"),
        ("inaturalist2021", f"inat2021/train/{INSECT}/a.jpg", "inat2021/{}train/00001_Animalia_Chordata_Aves_x"),
    ],
)
def test_an_empty_class_folder_of_a_published_set_is_named(tmp_path: Path, dataset: str, held: str, empty: str) -> None:
    draw(tmp_path / held)
    root = tmp_path / held.split("/")[0]
    (root / "val").mkdir(exist_ok=True)
    (tmp_path / empty.format("")).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        loaded(dataset, tmp_path)
    name = empty.split("{}")[1]
    assert caught.value.problems == (
        f"{name}: a class folder without an image; unpack the archive anew, or remove the folder",
    )
    assert labels(loaded(dataset, tmp_path, on_error="skip")) == [0 if dataset != "inaturalist2021" else 1]


def test_a_folder_that_is_not_inaturalists_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "cats" / "a.jpg")
    with pytest.raises(DataError, match="'cats' is not NNNNN_Kingdom"):
        loaded("inaturalist2021", tmp_path)


# ---------------------------------------------------------------------------------------- files that hold many images


def python2_batch(data: NDArray[np.uint8], targets: list[int]) -> bytes:
    """The bytes that Python 2's pickle, protocol 2, gives {'data': data, 'labels': targets}: CIFAR-10's own form."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    shape = b"".join(b"J" + side.to_bytes(4, "little") for side in data.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    raw = data.tobytes()
    state = b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R" + state
    numbers = b"](" + b"".join(b"K" + bytes([target]) for target in targets) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def cifar_pixels(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), np.uint8)


def write_cifar(root: Path, form: str) -> None:
    root.mkdir(parents=True)
    batches = [f"data_batch_{i}" for i in range(1, 6)] if form != "npz" else ["data_batch_1"]
    for name, n in [*((name, 2) for name in batches), ("test_batch", 1)]:
        planes, targets = cifar_pixels(n), [9, 3][:n]
        if form == "python2":
            (root / name).write_bytes(python2_batch(planes.reshape(n, -1), targets))
        elif form == "python3":
            (root / name).write_bytes(pickle.dumps({"data": planes.reshape(n, -1), "labels": targets}, protocol=2))
        elif form == "binary":
            records = np.concatenate([np.array(targets, np.uint8)[:, None], planes.reshape(n, -1)], 1)
            (root / f"{name}.bin").write_bytes(records.tobytes())
        else:
            part = "test" if name.startswith("test") else "train"
            np.savez(root / f"{part}.npz", images=planes.transpose(0, 2, 3, 1), labels=np.array(targets))


@pytest.mark.parametrize("form", ["python2", "python3", "binary", "npz"])
def test_cifar10_in_all_of_its_forms(tmp_path: Path, form: str) -> None:
    write_cifar(tmp_path / "cifar10", form)
    made = loaded("cifar10", tmp_path, cache_size=32)
    by_test = {bool(flag): row for row, flag in enumerate(on_test(made))}
    batches = 1 if form == "npz" else 5
    assert sorted(labels(made)) == [3] * batches + [9] * (batches + 1)
    assert np.array_equal(made.images[by_test[True]], cifar_pixels(1)[0].transpose(1, 2, 0))
    train = [row for row, flag in enumerate(on_test(made)) if not flag]
    assert np.array_equal(made.images[train], np.tile(cifar_pixels(2).transpose(0, 2, 3, 1), (batches, 1, 1, 1)))
    assert made.label_names[9] == "truck"


def test_a_missing_batch_and_a_label_beyond_the_classes_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path / "a" / "cifar10", "binary")
    (tmp_path / "a" / "cifar10" / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4.bin: this batch is missing"):
        loaded("cifar10", tmp_path / "a")
    write_cifar(tmp_path / "b" / "cifar10", "binary")
    path = tmp_path / "b" / "cifar10" / "data_batch_2.bin"
    path.write_bytes(bytes([200]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"labels \[200\]"):
        loaded("cifar10", tmp_path / "b")


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("harmed",)


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Harmful(), "labels": []}))
    (tmp_path / "test_batch").touch()
    with pytest.raises(DataError, match=r"data_batch_1 .*posix\.mkdir"):
        loaded("cifar10", tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_batch_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10", "binary")
    path = tmp_path / "cifar10" / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_1.bin is cut off \(6145 bytes"):
        loaded("cifar10", tmp_path)


def write_stl(root: Path) -> NDArray[np.uint8]:
    root.mkdir(parents=True)
    planes = np.random.default_rng(1).integers(0, 256, (4, 3, 96, 96), np.uint8)
    for part, rows, targets in (("train", slice(0, 2), [1, 10]), ("test", slice(2, 3), [4])):
        (root / f"{part}_X.bin").write_bytes(planes[rows].tobytes())
        (root / f"{part}_y.bin").write_bytes(bytes(targets))
    (root / "unlabeled_X.bin").write_bytes(planes[3:].tobytes())
    return planes


def test_stl10_reads_columns_as_torchvision_does(tmp_path: Path) -> None:
    """torchvision turns (N, 3, 96, 96) by transpose(0, 1, 3, 2) into planes of rows."""
    planes = write_stl(tmp_path / "stl10_binary")
    made = loaded("stl10", tmp_path, cache_size=96)
    rows = planes.transpose(0, 1, 3, 2).transpose(0, 2, 3, 1)
    assert (labels(made), on_test(made)) == ([3, 0, 9], [True, False, False])
    assert np.array_equal(made.images, rows[[2, 0, 1]])
    free = loaded("stl10", tmp_path, cache_size=96, part="unlabelled")
    assert (free.labels, free.official_test) == (None, None)
    assert np.array_equal(free.images, rows[3:])


def test_stl10_with_labels_that_do_not_fit_is_named(tmp_path: Path) -> None:
    write_stl(tmp_path / "stl10_binary")
    (tmp_path / "stl10_binary" / "train_y.bin").write_bytes(b"\x01")
    with pytest.raises(DataError, match=r"train_y.bin holds 1 labels for 2 images"):
        loaded("stl10", tmp_path)


def test_imagenet64_counts_labels_from_one(tmp_path: Path) -> None:
    root = tmp_path / "imagenet64"
    root.mkdir()
    planes = np.random.default_rng(2).integers(0, 256, (2, 3, 64, 64), np.uint8)
    for name, label in (("train_data_batch_1", 1), ("val_data", 1000)):
        np.savez(root / f"{name}.npz", data=planes[:1].reshape(1, -1), labels=np.array([label]), mean=np.zeros(3))
    made = loaded("imagenet64", tmp_path, cache_size=64)
    assert (labels(made), on_test(made)) == ([0, 999], [False, True])
    assert np.array_equal(made.images[0], planes[0].transpose(1, 2, 0))


def npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_an_npz_of_ones_own_with_masks_and_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), np.uint8)
    masks = np.stack([halves(0, 1), halves(1, 0), halves(1, 9)])
    npz(tmp_path / "mine.npz", images=pixels, masks=masks, labels=np.array([5, 6, 7]))
    made = loaded("npz", tmp_path, root="mine.npz", classes=("x", "y"), ignore=9)
    assert (labels(made), made.names[0]) == ([5, 6, 7], "mine/0000000")
    assert np.array_equal(made.images, pixels)
    assert [sides(made, row) for row in range(3)] == [(0, 1), (1, 0), (1, 255)]


def test_an_npz_of_grey_images_alone(tmp_path: Path) -> None:
    grey = np.random.default_rng(4).integers(0, 256, (2, 8, 8), np.uint8)
    npz(tmp_path / "mine.npz", images=grey)
    made = loaded("npz", tmp_path, root="mine.npz")
    assert (made.masks, made.labels) == (None, None)
    assert np.array_equal(made.images, np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 8, 8), np.uint8)}, "holds pictures, but no array `images`"),
        ({"images": np.zeros((1, 8, 8), np.float32)}, r"must be uint8 .* it is float32 \(1, 8, 8\)"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "labels": np.zeros(2, np.int64)}, "`labels` must be 1 whole"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.zeros((1, 8, 8), np.uint8)}, "`classes:` must name"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "masks": np.zeros((1, 4, 8), np.uint8)}, "`masks` .* must be uint8"),
    ],
)
def test_an_npz_that_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str) -> None:
    npz(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=message):
        loaded("npz", tmp_path, root="mine.npz")


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"mine.npz is not an .npz file"):
        loaded("npz", tmp_path, root="mine.npz")


def test_a_changed_array_file_has_another_digest(tmp_path: Path) -> None:
    npz(tmp_path / "mine.npz", images=np.zeros((2, 8, 8), np.uint8))
    before = content_digest(settings("npz", root="mine.npz"), tmp_path)
    assert content_digest(settings("npz", root="mine.npz", limit=1), tmp_path) != before
    npz(tmp_path / "mine.npz", images=np.ones((2, 8, 8), np.uint8))
    assert content_digest(settings("npz", root="mine.npz"), tmp_path) != before


# --------------------------------------------------------------------------------------------------------- real copies


def test_real_camvid(shared_data: Path, tmp_path: Path) -> None:
    """The pack states 9.1 % sky and 29.1 % road over val."""
    made = load_images(settings("camvid", cache_size=64), shared_data, tmp_path)
    assert made.masks is not None
    assert made.official_test is not None
    assert (len(made.names), int(made.official_test.sum())) == (468, 101)
    val = made.masks[made.official_test]
    assert (val == 0).mean() == pytest.approx(0.091, abs=0.01)
    assert (val == 3).mean() == pytest.approx(0.291, abs=0.01)


def test_real_cifar10(shared_data: Path, tmp_path: Path) -> None:
    made = load_images(settings("cifar10", cache_size=32), shared_data, tmp_path)
    with np.load(shared_data / "cifar10" / "test.npz") as test:
        assert np.array_equal(made.images[on_test(made)], test["images"])
        assert np.array_equal(np.array(labels(made))[on_test(made)], test["labels"])
    assert np.bincount(labels(made)).tolist() == [720] * 10


def test_real_tiny_imagenet(shared_data: Path, tmp_path: Path) -> None:
    made = load_images(settings("tiny-imagenet", cache_size=64, limit=300), shared_data, tmp_path)
    assert made.images.shape == (300, 64, 64, 3)
    assert made.images.std() > 30
    assert (len(made.label_names), max(labels(made)) < 200) == (200, True)


def test_real_dogs(shared_data: Path) -> None:
    """The pack states 2,127 + 2,098 dogs."""
    listing = DATA_SETS["oxford-iiit-pet"].list_files(
        schema.Pets(dataset="oxford-iiit-pet", species="dogs"), shared_data / "oxford-iiit-pet"
    )
    assert len(listing.entries) == 2127 + 2098
    assert {entry.label for entry in listing.entries} == set(range(25))


def test_packed_files_are_opened_once_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    unpack = packed._unpack_npz

    def counting(file: Path) -> Pack:
        opened.append(file)
        return unpack(file)

    monkeypatch.setattr(packed, "_unpack_npz", counting)
    npz(tmp_path / "mine.npz", images=np.zeros((50, 8, 8), np.uint8))
    loaded("npz", tmp_path, root="mine.npz")
    assert len(opened) == 1
