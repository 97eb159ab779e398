"""Masks as people have them: in colours, black and white, called `x_mask.png`, in the images' own folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from pretune.data.survey.masks import meaning_of_masks
from pretune.search_spaces import schema
from pretune.search_spaces.schema.palettes import CITYSCAPES, PALETTES, VOC_CLASSES
from pretune.trainables.constants import IGNORE
from pretune.trainables.data.decode.masks import read_color_mask, read_mask, read_threshold_mask
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.listing import Colors
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets.table import list_files
from pretune.trainables.data.sources import prepare

DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)
RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)


def own(root: Path | str = "d", **changes: Any) -> schema.ImageMaskFolder:
    plain = {"dataset": "image-mask-folder", "root": str(root), "cache_size": 4}
    made: schema.ImageMaskFolder = DATA.validate_python(plain | changes)
    return made


def write(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def pair(root: Path, image: str, mask: str, pixels: Any, **options: Any) -> None:
    pixels = np.asarray(pixels, np.uint8)
    write(root / image, np.full((*pixels.shape[:2], 3), 90))
    write(root / mask, pixels, **options)


def masks_of(settings: schema.ImageMaskFolder, cache: Path) -> Any:
    made = load_images(settings, None, cache)
    assert made.masks is not None
    return np.asarray(made.masks)


# ------------------------------------------------------------------------------------------------------------ colours


def test_colours_are_classes_in_the_order_of_the_study(tmp_path: Path) -> None:
    quarter = [[RED, BLUE], [BLACK, BLUE]]
    pair(tmp_path / "d", "images/a.png", "masks/a.png", np.repeat(np.repeat(quarter, 2, 0), 2, 1))
    colors = {"road": list(BLUE), "car": [list(RED), [9, 9, 9]]}
    settings = own(tmp_path / "d", mask_colors=colors, ignore_colors=[BLACK])
    assert settings.classes == ("road", "car")
    assert masks_of(settings, tmp_path / "c")[0, ::2, ::2].tolist() == [[1, 0], [IGNORE, 0]]
    turned = own(tmp_path / "d", mask_colors=colors, ignore_colors=[BLACK], classes=["car", "road"])
    assert masks_of(turned, tmp_path / "c")[0, ::2, ::2].tolist() == [[0, 1], [IGNORE, 1]]
    assert content_digest(settings, None) != content_digest(turned, None)


def test_a_palette_png_may_be_read_by_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8).repeat(2, 0).repeat(2, 1), mode=None)
    image.putpalette([*RED, *BLUE])
    pair(tmp_path / "d", "images/a.png", "masks/a.png", np.zeros((4, 4)))
    image.save(tmp_path / "d" / "masks" / "a.png")
    by_color = own(tmp_path / "d", mask_colors={"x": BLUE, "y": RED})
    assert masks_of(by_color, tmp_path / "c")[0, ::2, ::2].tolist() == [[1, 0], [0, 0]]
    assert masks_of(own(tmp_path / "d", classes=["x", "y"]), tmp_path / "c")[0, ::2, ::2].tolist() == [[0, 1], [1, 1]]


@given(
    pixels=st.lists(st.sampled_from([RED, BLUE, BLACK, (1, 2, 3)]), min_size=1, max_size=12),
    known=st.permutations([RED, BLUE, BLACK]),
)
def test_exact_colours_are_what_the_search_by_tolerance_finds(pixels: list[Any], known: list[Any]) -> None:
    """`other` or a tolerance takes the slow way, which is the definition."""
    image: NDArray[np.uint8] = np.array([pixels], np.uint8)
    classes = tuple((color, i) for i, color in enumerate(known))
    slow = np.asarray(read_color_mask(image, Colors(classes, 9, 0)))
    if (slow == 9).any():
        with pytest.raises(BadFileError, match=r"mask colour \(1, 2, 3\) has no meaning"):
            read_color_mask(image, Colors(classes, None, 0))
    else:
        assert np.array_equal(read_color_mask(image, Colors(classes, None, 0)), slow)


@pytest.mark.parametrize("name", sorted(PALETTES))
def test_a_palette_by_name_reads_each_of_its_colours(name: str) -> None:
    settings = own(mask_colors=name)
    palette = PALETTES[name]
    assert settings.classes == tuple(palette.colors)
    assert (settings.mask_colors, settings.ignore_colors) == (
        tuple((one, color) for one, several in palette.colors.items() for color in several),
        palette.ignored,
    )
    assert DATA.validate_python(settings.model_dump()) == settings
    assert DATA.validate_json(settings.model_dump_json()) == settings
    assert hash(settings) == hash(own(mask_colors=name))


def test_palettes_have_the_names_of_the_published_sets() -> None:
    assert ("background", *get_args(schema.VOCClass)) == VOC_CLASSES
    assert get_args(schema.CityscapesClass) == tuple(CITYSCAPES)
    voc = PALETTES["voc"]  # VOC's colour map as its development kit documents it
    assert (voc.colors["aeroplane"], voc.colors["tvmonitor"], voc.ignored) == (
        ((128, 0, 0),),
        ((0, 64, 128),),
        ((224, 224, 192),),
    )


# ---------------------------------------------------------------------------------------------------- black and white


def test_black_and_white_with_soft_edges_is_two_classes(tmp_path: Path) -> None:
    disc = np.hypot(*(np.mgrid[:32, :32] - 15.5)) < 9
    pair(tmp_path / "d", "images/a.png", "masks/a.jpg", disc * 255, quality=60)
    values = np.unique(np.asarray(Image.open(tmp_path / "d" / "masks" / "a.jpg")))
    assert len(values) > 2
    with pytest.raises(DataError, match="outside the classes"):
        load_images(own(tmp_path / "d", classes=["a", "b"], mask_values=[0, 255], cache_size=32), None, tmp_path / "c")
    made = masks_of(own(tmp_path / "d", classes=["a", "b"], mask_threshold=128, cache_size=32), tmp_path / "c")
    assert (made[0] == disc).mean() > 0.98


@pytest.mark.parametrize(("threshold", "expected"), [(1, [0, 1, 1, 1]), (128, [0, 0, 1, 1]), (255, [0, 0, 0, 1])])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_threshold_itself_is_the_second_class(threshold: int, expected: list[int], mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).convert(mode)
    made = read_threshold_mask(np.asarray(grey), threshold)
    assert np.asarray(made)[0].tolist() == expected


def test_a_digest_depends_on_the_threshold(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a.png", np.zeros((4, 4)))
    digests = {content_digest(own(tmp_path, classes=["a", "b"], mask_threshold=t), None) for t in (None, 100, 128)}
    assert len(digests) == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_values_in_three_equal_channels_are_values(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert(mode).save(path)
    assert np.asarray(read_mask(path, {0: 0, 1: 1, 2: 7})).tolist() == [[0, 1], [7, 1]]


# -------------------------------------------------------------------------------------------------------------- names


def pairs(root: Path, **changes: Any) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    listing = list_files(own(root, classes=["a", "b"], **changes), None)
    found = [(e.name, *(str(source.relative_to(root)) for source in (e.image, e.mask))) for e in listing.entries]  # type: ignore[union-attr]
    return found, listing.problems


@pytest.mark.parametrize(
    ("names", "image", "mask", "stem"),
    [
        ({"mask_name": "{stem}_mask"}, "x.jpg", "x_mask.png", "x"),
        ({"mask_name": "gt_{stem}"}, "x.png", "gt_x.png", "x"),
        ({"mask_name": "deep/{stem}_gt"}, "x.jpg", "deep/x_gt.png", "x"),
        ({"image_name": "{stem}_img", "mask_name": "{stem}_seg"}, "x_img.jpg", "x_seg.png", "x"),
        ({"image_name": "{stem}_img"}, "x_img.jpg", "x.png", "x"),
        ({"image_name": "{stem}/image", "mask_name": "{stem}/mask"}, "x/image.png", "x/mask.png", "x"),
        ({"mask_name": "{stem}.gt(1)"}, "x.jpg", "x.gt(1).png", "x"),
    ],
)
@pytest.mark.parametrize("folder", ["", "site 1/"])
@pytest.mark.parametrize("apart", [False, True])
def test_names_are_paired_in_one_folder_or_two(
    tmp_path: Path, names: dict[str, str], image: str, mask: str, stem: str, folder: str, apart: bool
) -> None:
    images, masks = ("images", "masks") if apart else (".", ".")
    image, mask = f"{folder}{image}", f"{folder}{mask}"
    pair(tmp_path, f"{images}/{image}", f"{masks}/{mask}", np.zeros((4, 4)))
    expected = tuple(str(Path(part)) for part in (f"{images}/{image}", f"{masks}/{mask}"))
    assert pairs(tmp_path, images=images, masks=masks, **names) == ([(f"{folder}{stem}", *expected)], ())


def test_masks_may_lie_below_the_images(tmp_path: Path) -> None:
    pair(tmp_path, "a.png", "masks/a.png", np.zeros((4, 4)))
    assert pairs(tmp_path, images=".") == ([("a", "a.png", "masks/a.png")], ())


def test_what_is_in_no_pair_is_named_with_the_name_that_is_expected(tmp_path: Path) -> None:
    pair(tmp_path, "a.png", "a_mask.png", np.zeros((4, 4)))
    write(tmp_path / "b.png", np.zeros((4, 4)))
    write(tmp_path / "c_mask.png", np.zeros((4, 4)))
    found, problems = pairs(tmp_path, images=".", masks=".", mask_name="{stem}_mask")
    assert [name for name, *_ in found] == ["a"]
    assert problems == (
        "b.png: no mask; expected b_mask.png (or another image type)",
        "c_mask.png: a mask without an image; add c.jpg or remove the mask",
    )


def test_a_name_that_fits_neither_pattern_is_a_problem(tmp_path: Path) -> None:
    pair(tmp_path, "images/a.png", "masks/a_gt.png", np.zeros((4, 4)))
    write(tmp_path / "masks" / "a_depth.png", np.zeros((4, 4)))
    _, problems = pairs(tmp_path, mask_name="{stem}_gt")
    assert problems == ("masks/a_depth.png: its name does not match `mask_name: {stem}_gt`; rename or remove it",)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mask_colors": "vok", "classes": ["a"]}, "one of camvid, voc, cityscapes"),
        ({"mask_colors": {"a": [0, 0, 0], "c": [0, 0, 1]}, "classes": ["b", "c"]}, "only one has a, b"),
        ({"mask_colors": {"a": [0, 0, 0], "b": [0, 0, 0]}}, r"\[0, 0, 0\] stands twice"),
        ({"mask_colors": {"a": [1, 0, 0], "b": [2, 0, 0]}, "ignore_colors": [[1, 0, 0]]}, r"\[1, 0, 0\] stands twice"),
        ({"mask_colors": {"a": [0, 0, 256]}}, "less than or equal to 255"),
        ({"mask_colors": {"a": [0, 0, 1], "b": [0, 0, 2]}, "ignore": 3}, "use ignore_colors"),
        ({"classes": ["a", "b"], "ignore_colors": [[0, 0, 0]]}, "mask_colors, which is missing"),
        ({"classes": ["a", "b", "c"], "mask_threshold": 9}, "classes names 3"),
        ({"classes": ["a", "b"], "mask_threshold": 9, "mask_values": [0, 2]}, "mask_values and mask_threshold both"),
        ({"classes": ["a", "b"], "mask_threshold": 9, "ignore": 2}, "leaves nothing to ignore"),
        ({"classes": ["a"], "mask_name": "mask"}, "should hold {stem} once"),
        ({"classes": ["a"], "mask_name": "{stem}{stem}"}, "should hold {stem} once"),
        ({"classes": ["a", "b"], "images": "x", "masks": "x"}, "mask_name should tell them apart"),
        ({}, "classes"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        own(**changes)


# ------------------------------------------------------------------------------------------ what is no class index


@given(values=st.lists(st.integers(0, 2), min_size=16, max_size=16), form=st.sampled_from(["LA", "RGB", "RGBA", "F"]))
def test_a_mask_means_the_same_however_its_values_are_stored(values: list[int], form: str) -> None:
    plain = np.array(values, np.uint8).reshape(4, 4)
    stored = Image.fromarray(plain.astype(np.float32) if form == "F" else plain)
    read = read_mask(as_file(stored.convert(form), "TIFF" if form == "F" else "PNG"), {0: 0, 1: 1, 2: 2})
    assert np.array_equal(np.asarray(read), plain)


@pytest.mark.parametrize("value", [0.9999, 10.921457, -1.0, 65536.0, float("nan"), float("inf")])
def test_a_floating_point_mask_whose_values_are_no_indices_is_refused_with_one_of_them(value: float) -> None:
    pixels = np.zeros((4, 4), np.float32)
    pixels[2, 1] = value
    with pytest.raises(BadFileError, match=rf"floating-point value {value:g}, .*; save it with whole numbers"):
        read_mask(as_file(Image.fromarray(pixels), "TIFF"), {0: 0, 1: 1})


def test_a_mask_that_is_transparent_in_part_is_refused() -> None:
    pixels = np.zeros((4, 4, 2), np.uint8)
    with pytest.raises(BadFileError, match="transparent in part"):
        read_mask(as_file(Image.fromarray(pixels, "LA"), "PNG"), {0: 0, 1: 1})


def as_file(image: Image.Image, form: str) -> bytes:
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


# ------------------------------------------------------------------------------------------------------------ palettes


def indexed(path: Path, indices: Any, palette: list[tuple[int, int, int]]) -> None:
    image = Image.fromarray(np.asarray(indices, np.uint8))
    image.putpalette([channel for color in palette for channel in color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def two_palettes(root: Path, second: list[tuple[int, int, int]]) -> Path:
    """Two masks of the same indices; the palette of the second is given."""
    indices = np.array([[0, 1], [1, 0]]).repeat(2, 0).repeat(2, 1)
    for name, palette in (("a", [BLACK, RED, BLUE]), ("b", second)):
        write(root / "images" / f"{name}.png", np.full((4, 4, 3), 90))
        indexed(root / "masks" / f"{name}.png", indices, palette)
    return root


@pytest.mark.parametrize("source", ["resident", "streaming"])
@pytest.mark.parametrize("second", [[RED, BLACK], [BLACK, BLUE]])
def test_one_index_of_two_colours_is_refused_with_both_files(
    tmp_path: Path, second: list[tuple[int, int, int]], source: str
) -> None:
    """mmsegmentation #3531: the order of a palette is the editor's own, and differs between files."""
    root = two_palettes(tmp_path / "d", second)
    for on_error in ("fail", "skip"):
        with pytest.raises(DataError, match=r"index \d .*masks/a\.png.*masks/b\.png"):
            prepare(own(root, classes=["x", "y"], on_error=on_error, source=source), None, tmp_path / "c")


@pytest.mark.parametrize("second", [[BLACK, RED], [BLACK, RED, (9, 9, 9)]])
def test_palettes_that_differ_in_unused_indices_are_read(tmp_path: Path, second: list[tuple[int, int, int]]) -> None:
    root = two_palettes(tmp_path / "d", second)
    assert masks_of(own(root, classes=["x", "y"]), tmp_path / "c")[:, 0, ::2].tolist() == [[0, 1], [0, 1]]


def test_colours_or_mask_values_say_what_differing_palettes_mean(tmp_path: Path) -> None:
    root = two_palettes(tmp_path / "d", [RED, BLACK])
    by_color = own(root, mask_colors={"x": BLACK, "y": RED})
    assert masks_of(by_color, tmp_path / "c")[:, 0, ::2].tolist() == [[0, 1], [1, 0]]
    by_index = own(root, classes=["x", "y"], mask_values=[0, 1])
    assert masks_of(by_index, tmp_path / "c")[:, 0, ::2].tolist() == [[0, 1], [0, 1]]


def test_init_reads_differing_palettes_by_their_colours(tmp_path: Path) -> None:
    root = two_palettes(tmp_path / "d", [RED, BLACK])
    found = meaning_of_masks(sorted((root / "masks").iterdir()), ["x", "y"])
    assert found.settings == {"mask_colors": {"x": [0, 0, 0], "y": [255, 0, 0]}}
    assert found.shares == (0.5, 0.5)
