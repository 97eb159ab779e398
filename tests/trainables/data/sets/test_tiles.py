"""Large images in tiles: every pixel once, at its own resolution, and tiles of an image always together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from pretune.search_spaces import schema
from pretune.trainables.constants import IGNORE
from pretune.trainables.data import sources
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.image_set import ImageSet, whole_images
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import draw_split, marks_for

DATA: TypeAdapter[Any] = TypeAdapter(schema.Data)
SIZES = {"a": (20, 9), "b": (8, 8), "c": (17, 33)}  # width, height


def own(root: Path, **changes: Any) -> Any:
    plain = {"dataset": "image-mask-folder", "root": str(root), "classes": ["x", "y"], "cache_size": 8, "fit": "tile"}
    return DATA.validate_python(plain | changes)


def write(root: Path, sizes: dict[str, tuple[int, int]] = SIZES) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, (width, height) in sizes.items():
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(pixels[..., 0] % 2).save(root / "masks" / f"{name}.png")
    return root


def put_together(found: ImageSet, name: str, size: int) -> tuple[Any, Any]:
    """The tiles of an image side by side."""
    rows = [i for i, one in enumerate(found.names) if one.startswith(f"{name}#")]
    places = [tuple(int(part) for part in found.names[i].rpartition("#r")[2].split("c")) for i in rows]
    high, wide = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    image, mask = np.zeros((high * size, wide * size, 3), np.uint8), np.zeros((high * size, wide * size), np.uint8)
    assert found.masks is not None
    for row, (y, x) in zip(rows, places, strict=True):
        part = slice(y * size, (y + 1) * size), slice(x * size, (x + 1) * size)
        image[part], mask[part] = found.images[row], found.masks[row]
    return image, mask


@pytest.mark.parametrize("source", ["resident", "streaming"])
def test_tiles_hold_every_pixel_once_and_ignore_what_is_beyond(tmp_path: Path, source: str) -> None:
    study = own(write(tmp_path / "d"), source=source)
    digest, _ = sources.prepare(study, None, tmp_path / "cache")
    found = sources.open_set(study, digest, None, tmp_path / "cache")
    assert len(found.names) == 6 + 1 + 15
    for name, (width, height) in SIZES.items():
        image, mask = put_together(found, name, 8)
        with Image.open(tmp_path / "d" / "images" / f"{name}.png") as whole:
            expected = np.asarray(whole)
        assert (image[:height, :width] == expected).all()
        assert (mask[:height, :width] == expected[..., 0] % 2).all()
        for beyond, value in ((image, 0), (mask, IGNORE)):
            rest = np.ones(beyond.shape[:2], np.bool_)
            rest[:height, :width] = False
            assert (beyond[rest] == value).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(0, 9), st.sampled_from([0.0, 0.2, 0.4]))
def test_tiles_of_an_image_are_in_one_part(tiles: list[int], seed: int, val: float) -> None:
    """Whatever the split draws, and without a word about groups in the study."""
    names = [f"deep/i{i}#r{t:03d}c000" for i, count in enumerate(tiles) for t in range(count)]
    split = own(Path("d"), split={"test": 0.3, "val": val}).split
    found = ImageSet(np.zeros((len(names), 1, 1, 3)), None, None, None, None, None, names, (), ())
    try:
        drawn = draw_split(len(names), split, seed, None, None, marks_for(split, found))
    except DataError:  # too few groups for the shares asked for
        return
    parts: dict[str, set[int]] = {}
    for number, rows in enumerate(drawn):
        for row in rows:
            parts.setdefault(names[row].partition("#")[0], set()).add(number)
    assert all(len(held) == 1 for held in parts.values())


def test_a_pattern_of_groups_is_looked_for_in_the_name_of_the_image(tmp_path: Path) -> None:
    """`([0-9])$` is the image's own number, not the tile's."""
    found = load_images(own(write(tmp_path / "d", {"s1": (8, 30), "s2": (8, 30)})), None, tmp_path / "c")
    split = own(tmp_path, split={"test": 0.5, "val": 0, "group": {"pattern": "([0-9])$"}}).split
    drawn = draw_split(len(found.names), split, 0, None, None, marks_for(split, found))
    assert len({found.names[row][:2] for row in drawn.test}) == 1


def test_counts_of_tiles_are_summed_by_image() -> None:
    names = ["a#r000c000", "a#r000c001", "b#r000c000", "a#r001c000"]
    first, places = whole_images(names, np.array([3, 2, 0]))
    assert (first.tolist(), places.tolist()) == ([3, 2], [0, 1, 0])
    plain = np.array([2, 0])
    assert whole_images(["a", "b", "c"], plain)[0].tolist() == [2, 0]


def test_images_inside_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((4, 9, 9, 3), np.uint8))
    study = DATA.validate_python({"dataset": "npz", "root": str(tmp_path / "d.npz"), "fit": "tile", "cache_size": 4})
    with pytest.raises(DataError, match="fit: tile cuts image files"):
        load_images(study, None, tmp_path / "c")


def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path) -> None:
    root = write(tmp_path / "d")
    (root / "images" / "b.png").write_bytes(b"none")
    with pytest.raises(DataError, match=r"b\.png: not an image") as caught:
        load_images(own(root), None, tmp_path / "c")
    assert len(caught.value.problems) == 1


def test_channels_are_cut_too(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 5), np.uint8)
    np.save(tmp_path / "d" / "a.npy", pixels)
    study = DATA.validate_python(
        {"dataset": "image-folder", "root": str(tmp_path / "d"), "channels": 5, "cache_size": 8, "fit": "tile"}
    )
    found = load_images(study, None, tmp_path / "c")
    assert list(found.names) == [f"a.npy#r{y:03d}c{x:03d}" for y in (0, 1) for x in (0, 1)]
    assert (found.images[0] == pixels[:8, :8]).all()
    assert (found.images[1][:, :4] == pixels[:8, 8:]).all()
