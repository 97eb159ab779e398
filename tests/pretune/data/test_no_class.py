"""Values and colours of masks that are no class: those of a palette that no mask has, borders, and what is ignored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from pretune.cli import cli
from pretune.data.survey.masks import meaning_of_masks
from pretune.data.survey.no_class import borders_among, no_class
from pretune.data.survey.pairs import survey_coco
from pretune.search_spaces import schema
from pretune.search_spaces.schema.palettes import PALETTES
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.build import load_images

Colors = list[tuple[int, int, int]]
OWN: Colors = [(10, 200, 10), (200, 0, 0), (0, 0, 250)]
FOLDER: TypeAdapter[schema.ImageMaskFolder] = TypeAdapter(schema.ImageMaskFolder)


def scene(border: int = 4, radius: int = 16, thick: int = 0, side: int = 64) -> NDArray[np.int32]:
    """A disc (1) on a wall (0) above a floor (2), with a ring (3) of `border` px; a pole (4) of `thick` px."""
    away = np.hypot(*(np.mgrid[:side, :side] - side / 2.0))
    drawn = np.zeros((side, side), np.int32)
    drawn[side * 3 // 4 :] = 2
    drawn[:, 3 : 3 + thick] = 4
    drawn[away < radius + border] = 3
    drawn[away < radius] = 1
    return drawn


def saved(folder: Path, colors: Colors, drawn: NDArray[np.int32] | None = None, count: int = 4) -> list[Path]:
    """Pairs of which the masks show number i in colour i; a mask has stripes of all colours if nothing is drawn."""
    stripes = np.arange(64 * 64).reshape(64, 64) % 64 * len(colors) // 64
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{i}.png")
        pixels = np.array(colors, np.uint8)[stripes if drawn is None else drawn]
        Image.fromarray(pixels).save(folder / "masks" / f"{i}.png")
    return sorted((folder / "masks").iterdir())


def init(folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The data set in the file of `pretune init`, and the words said."""
    words = ["--images", folder / "images", "--masks", folder / "masks", *more]
    ended = CliRunner().invoke(cli, ["init", str(folder / "my.yaml"), *map(str, words)])
    assert ended.exit_code == 0, ended.output
    text = (folder / "my.yaml").read_text()
    (folder / "my.yaml").unlink()
    return yaml.safe_load(text)["data"]["mine"], ended.output


# ------------------------------------------------------------------------------------------- classes of a palette


@pytest.mark.parametrize("name", sorted(PALETTES))
@pytest.mark.parametrize("seed", range(3))
def test_classes_of_a_palette_that_no_mask_has_are_left_out(tmp_path: Path, name: str, seed: int) -> None:
    palette = PALETTES[name]
    rng = np.random.default_rng(seed)
    some = sorted(rng.choice(np.arange(1, len(palette.colors)), 2 + seed * 3, replace=False).tolist())
    names = [list(palette.colors)[i] for i in some]
    paths = saved(tmp_path, [*(palette.colors[one][0] for one in names), palette.ignored[-1]])
    meaning = meaning_of_masks(paths)
    assert meaning.classes == tuple(names)
    assert sum(meaning.shares) == pytest.approx(1)
    assert meaning.ignored == pytest.approx(1 / (len(names) + 1), abs=0.03)
    data = FOLDER.validate_python({"dataset": "image-mask-folder", "root": str(tmp_path), **meaning.settings})
    assert (data.classes, data.ignore_colors) == (tuple(names), palette.ignored)
    assert f"`mask_colors: {name}`" in meaning.notes[0]
    assert str(len(palette.colors) - len(names)) in meaning.notes[0]


def test_all_classes_of_a_palette_stay_where_other_masks_were_not_read(tmp_path: Path) -> None:
    colors = PALETTES["camvid"].colors
    paths = saved(tmp_path, [colors["Road"][0], colors["Car"][0]])
    meaning = meaning_of_masks(paths, all_read=False)
    assert meaning.settings == {"mask_colors": "camvid"}
    assert meaning.classes == tuple(colors)
    assert len(meaning.notes) == 1


def test_a_palette_with_all_its_classes_is_written_by_its_name_and_nothing_is_noted(tmp_path: Path) -> None:
    colors = [several[0] for several in PALETTES["cityscapes"].colors.values()]
    meaning = meaning_of_masks(saved(tmp_path, colors))
    assert meaning.settings == {"mask_colors": "cityscapes"}
    assert meaning.notes == ()


def test_a_class_of_a_palette_can_be_ignored(tmp_path: Path) -> None:
    colors = PALETTES["camvid"].colors
    paths = saved(tmp_path, [colors[one][0] for one in ("Road", "Car", "Sky")])
    meaning = meaning_of_masks(paths, ignore=colors["Sky"][0])
    assert meaning.classes == ("Car", "Road")
    assert meaning.settings["ignore_colors"] == [[0, 0, 0], list(colors["Sky"][0])]


@pytest.mark.parametrize("given_names", [False, True])
def test_categories_of_a_coco_file_without_objects_in_these_images_are_left_out(
    tmp_path: Path, given_names: bool
) -> None:
    pytest.importorskip("pycocotools")
    saved(tmp_path, OWN)
    square = [[8, 8, 24, 8, 24, 24, 8, 24]]
    read = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(6)],  # two are missing
        "categories": [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "cow", "owl"))],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 2 if i < 4 else 3, "segmentation": square} for i in range(6)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(read))
    names = ["cow", "dog"] if given_names else None
    meaning = survey_coco(tmp_path / "images", tmp_path / "coco.json", names).meaning
    assert meaning.classes == (("background", "cow", "dog") if given_names else ("background", "cow"))
    assert [bool(re.search("cat, dog, owl", note)) for note in meaning.notes] == [True] * (not given_names)


# ------------------------------------------------------------------------------------------------- what looks like none


@settings(max_examples=30, deadline=None)
@given(
    border=st.integers(1, 6),
    radius=st.integers(9, 16),
    values=st.lists(st.integers(0, 0xFFFFFF), min_size=5, max_size=5, unique=True),
)
def test_a_ring_around_an_object_is_a_border_and_nothing_else_is(border: int, radius: int, values: list[int]) -> None:
    """Whatever the values are; a pole is as thin, and stands before one other class."""
    with_ring, without = (np.array(values, np.int32)[scene(width, radius, thick=4)] for width in (border, 0))
    assert borders_among([with_ring]) == {values[3]}
    assert borders_among([without, without.T]) == set()


@pytest.mark.parametrize(("gap", "found"), [(0, {2}), (12, set())])
def test_a_wide_border_is_one_only_if_it_keeps_the_others_apart(gap: int, found: set[int]) -> None:
    """A ring of 8 px around a disc has inner pixels; with a gap of 12 rows the disc touches what is outside."""
    away = np.hypot(*(np.mgrid[:96, :96] - 48.0))
    trimap = np.select([away < 20, away < 28], [1, 2], 0).astype(np.int32)
    trimap[48 : 48 + gap, 48:] = np.where(trimap[48 : 48 + gap, 48:] == 2, 0, trimap[48 : 48 + gap, 48:])
    assert borders_among([trimap]) == found


def test_a_wide_mask_is_looked_at_with_fewer_pixels() -> None:
    assert borders_among([scene(border=12, radius=500, side=2048)]) == {3}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({0xE0E0C0: 0.1, 1: 0.5, 2: 0.4}, 0xE0E0C0),
        ({0: 0.05, 1: 0.5, 2: 0.2, 3: 0.25}, 0),
        ({0: 0.5, 1: 0.2, 2: 0.2, 3: 0.1}, None),  # black is the background
        ({0: 0.05, 1: 0.95}, None),
    ],
)
def test_colours_that_often_mean_no_label_are_named(shares: dict[int, float], expected: int | None) -> None:
    found = no_class(shares, in_color=True, masks=[])
    assert (found and found[0]) == expected
    assert no_class(shares, in_color=False, masks=[]) is None


@pytest.mark.parametrize("void", [(255, 255, 255), (224, 224, 192), (0, 0, 0), (128, 128, 128)])
def test_init_says_which_colour_may_be_no_class_and_its_advice_leaves_it_out(
    tmp_path: Path, void: tuple[int, int, int]
) -> None:
    saved(tmp_path, [*OWN, void], scene())
    data, said = init(tmp_path)
    assert len(data["mask_colors"]) == 4
    advice = re.search(r"--ignore (\S+)", said)
    assert advice is not None
    assert advice.group(1) == ",".join(map(str, void))
    data, said = init(tmp_path, "--ignore", advice.group(1))
    assert sorted(data["mask_colors"].values()) == sorted(map(list, OWN))
    assert data["ignore_colors"] == [list(void)]
    assert "note:" not in said
    masks = load_images(FOLDER.validate_python(data), None, tmp_path / "cache").masks
    assert masks is not None
    assert (np.asarray(masks[0]) == 255).mean() == pytest.approx((scene() == 3).mean(), abs=0.02)


@pytest.mark.parametrize(("values", "void"), [((0, 255, 0, 128), 128), ((2, 1, 2, 3), 3)])
def test_init_says_which_value_may_be_no_class(tmp_path: Path, values: tuple[int, ...], void: int) -> None:
    """Masks of 0, 128, 255, and the trimaps of Oxford's pets."""
    saved(tmp_path, [(v, v, v) for v in values], scene())
    assert f"--ignore {void}\n" in init(tmp_path)[1]
    data, said = init(tmp_path, "--ignore", str(void))
    assert data["ignore"] == void
    assert "note:" not in said


# -------------------------------------------------------------------------------------------------------- --ignore


def test_a_grey_colour_may_be_given_as_one_number(tmp_path: Path) -> None:
    paths = saved(tmp_path, [*OWN, (9, 9, 9)])
    assert meaning_of_masks(paths, ignore=9) == meaning_of_masks(paths, ignore=(9, 9, 9))


@pytest.mark.parametrize(
    ("colors", "ignore"),
    [(OWN, (1, 2, 3)), (OWN, 7), ([(0, 0, 0), (1, 1, 1), (2, 2, 2)], (1, 2, 3))],
)
def test_a_colour_that_no_mask_has_is_refused(tmp_path: Path, colors: Colors, ignore: Any) -> None:
    paths = saved(tmp_path, colors)
    with pytest.raises(DataError):
        meaning_of_masks(paths, ignore=ignore)


@pytest.mark.parametrize("given_value", ["1,2", "256", "-1", "1,2,3,4", "red", "", "1,2,300", "²"])
def test_ignore_is_a_value_or_a_colour(tmp_path: Path, given_value: str) -> None:
    saved(tmp_path, OWN)
    words = ["init", tmp_path / "my.yaml", "--images", tmp_path / "images", "--ignore", given_value]
    ended = CliRunner().invoke(cli, [*map(str, words)])
    assert ended.exit_code == 2
    assert not (tmp_path / "my.yaml").exists()
