"""How deep, floating-point, transparent and stacked files are read, where a study says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables.data.decode.images import _in_range, read_image
from pretune.trainables.data.errors import BadFileError, DataError
from pretune.trainables.data.listing import PLAIN, Reading, reading_of
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest

DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)


def pixels(path: Path, reading: Reading) -> list[Any]:
    return np.asarray(read_image(path, reading=reading))[..., 0].tolist()


def saved(path: Path, values: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


# --------------------------------------------------------------------------------------------------------- value_range


@pytest.mark.parametrize(
    ("dtype", "low", "high", "values"),
    [
        (np.uint16, 0, 4095, [0, 2048, 4095, 60000]),
        (np.uint16, 1000, 3000, [0, 2000, 3000, 3001]),
        (np.float32, 0.0, 1.0, [0.0, 0.5, 1.0, 7.0]),
        (np.float32, -1.0, 1.0, [-5.0, 0.0, 1.0, 1.5]),
        (np.uint8, 10, 20, [0, 15, 20, 255]),
    ],
)
def test_a_fixed_range_is_black_to_white_and_cut_beyond(
    tmp_path: Path, dtype: Any, low: float, high: float, values: list[float]
) -> None:
    path = saved(tmp_path / "a.tif", np.array([values], dtype))
    assert pixels(path, Reading((low, high))) == [[0, 128, 255, 255]]


@given(values=st.lists(st.integers(0, 65535), min_size=4, max_size=30), low=st.integers(0, 40))
def test_percentiles_are_those_of_the_image(values: list[int], low: int) -> None:
    grey = np.array([values], np.uint16)
    black, white = np.percentile(grey, [low, 100 - low])
    image = _in_range(Image.fromarray(grey), Reading(percentiles=(low, 100 - low)))
    scaled = (grey - black) / (white - black) if white > black else np.zeros(grey.shape)
    assert np.array_equal(np.asarray(image), np.rint(scaled.clip(0, 1) * 255))


def test_without_a_range_twelve_bits_and_floats_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="would turn black"):
        pixels(saved(tmp_path / "a.tif", np.array([[0, 4095]], np.uint16)), PLAIN)
    path = saved(tmp_path / "b.tif", np.array([[0.0, 1.0]], np.float32))
    with pytest.raises(BadFileError, match=r"by `value_range: \[0, 1\]`"):
        pixels(path, PLAIN)
    assert pixels(path, Reading((0, 1))) == [[0, 255]]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="NaN or infinite"):
        pixels(saved(tmp_path / "a.tif", np.array([[0.0, np.nan]], np.float32)), Reading((0, 1)))


# ---------------------------------------------------------------------------------------------------------- background


@pytest.mark.parametrize(("background", "expected"), [(None, 0), ((255, 255, 255), 255), ((90, 0, 0), 90)])
def test_transparency_is_laid_over_the_background(tmp_path: Path, background: Any, expected: int) -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert pixels(saved(tmp_path / "a.png", clear), Reading(background=background)) == [[expected, 10]]


# --------------------------------------------------------------------------------------------------------------- pages


def stack(path: Path, values: list[int]) -> Path:
    pages = [Image.new("L", (4, 4), value) for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


def test_a_page_is_read_where_it_is_named(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.tif", [10, 20, 30])
    assert [pixels(path, Reading(page=page))[0][0] for page in (1, 2, 3)] == [10, 20, 30]
    with pytest.raises(BadFileError, match="page 4 does not exist"):
        pixels(path, Reading(page=4))
    with pytest.raises(BadFileError, match="choose it with `page: 1`"):
        pixels(path, PLAIN)
    assert pixels(saved(tmp_path / "b.tif", np.full((1, 1), 7, np.uint8)), Reading(page=3)) == [[7]]


def test_images_and_masks_of_a_study_are_read_at_the_page(tmp_path: Path) -> None:
    stack(tmp_path / "images" / "a.tif", [10, 200])
    stack(tmp_path / "masks" / "a.tif", [0, 1])
    given = {"dataset": "image-mask-folder", "root": str(tmp_path), "classes": ["a", "b"], "cache_size": 4}
    for page, expected in ((1, (10, 0)), (2, (200, 1))):
        made = load_images(DATA.validate_python(given | {"page": page}), None, tmp_path / "cache")
        assert made.masks is not None
        assert (int(made.images[0, 0, 0, 0]), int(made.masks[0, 0, 0])) == expected
    with pytest.raises(DataError, match="has 2 pages"):
        load_images(DATA.validate_python(given), None, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------------------- studies


def test_each_way_of_reading_is_a_content_of_its_own(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", np.full((4, 4), 100, np.uint8))
    ways: list[dict[str, Any]] = [
        {}, {"value_range": [0, 200]}, {"value_range": {"percentiles": [1, 99]}}, {"background": [9, 9, 9]},
        {"page": 1},
    ]  # fmt: skip
    settings = [DATA.validate_python({"dataset": "image-folder", "root": str(tmp_path)} | way) for way in ways]
    assert len({content_digest(one, None) for one in settings}) == len(ways)
    assert reading_of(settings[0]) == PLAIN
    assert reading_of(settings[2]) == Reading(percentiles=(1, 99))
    assert reading_of(DATA.validate_python({"dataset": "camvid"})) == PLAIN


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"value_range": [1, 1]}, "should rise: black first"),
        ({"value_range": {"percentiles": [99, 1]}}, "should rise"),
        ({"page": 0}, "greater than 0"),
        ({"background": [0, 0]}, "background"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        DATA.validate_python({"dataset": "image-folder", "root": "x"} | change)
