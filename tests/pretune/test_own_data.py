"""People's own folders, from `pretune init` alone to a table and a mask: nothing is renamed, converted or edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from inline import run_inline
from numpy.typing import NDArray
from PIL import Image

from pretune.analysis.report.tables import write_tables
from pretune.cli import cli
from pretune.search_spaces.resolve import load
from pretune.search_spaces.schema.palettes import PALETTES

SIZE = 40
# As the study stands, with smaller networks and one step of each stage.
SMALL = (
    "model.widths=[4, 8, 12]", "pretrain.steps=2", "finetune.epochs=1", "seeds.report=1", "pretrain.views.size=32",
    "finetune.size=32",
)  # fmt: skip


def photo(seed: int, width: int = SIZE, height: int = SIZE) -> tuple[Image.Image, NDArray[np.bool_]]:
    """An image of a bright disc, and where it is."""
    random = np.random.default_rng(seed)
    (x, y), r = random.integers(10, 30, 2).tolist(), 8
    inside = np.hypot(*(np.mgrid[:height, :width] - np.array([[[y]], [[x]]]))) < r
    pixels = random.integers(0, 90, (height, width, 3)) + 120 * inside[..., None]
    return Image.fromarray(pixels.astype(np.uint8)), inside


def saved(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]


def grey(inside: NDArray[np.bool_], value: int = 1) -> Image.Image:
    return Image.fromarray((inside * value).astype(np.uint8))


def same_stems(root: Path) -> list[str]:
    for i in range(12):
        image, inside = photo(i)
        saved(image, root / "images" / f"{i}.jpg")
        saved(grey(inside), root / "masks" / f"{i}.png")
    return ["--images", f"{root}/images", "--masks", f"{root}/masks"]


def colour_masks(root: Path) -> list[str]:
    colors = np.array([PALETTES["camvid"].colors[name][0] for name in ("Road", "Car")], np.uint8)
    for i in range(12):
        image, inside = photo(i)
        mask = colors[inside.astype(int)]
        mask[:3] = 0
        saved(image, root / "images" / f"{i}.png")
        saved(Image.fromarray(mask), root / "labels" / f"{i}_L.png")
    return ["--images", f"{root}/images", "--masks", f"{root}/labels"]


def palette_with_border(root: Path) -> list[str]:
    voc = [channel for several in PALETTES["voc"].colors.values() for channel in several[0]]
    for i in range(12):
        image, inside = photo(i)
        values = (inside * 15).astype(np.uint8)
        values[inside ^ np.roll(inside, 1, 0)] = 255
        mask = Image.fromarray(values)
        mask.putpalette([*voc, *[0] * (768 - len(voc))])
        saved(image, root / "JPEGImages" / f"{i}.jpg")
        saved(mask, root / "SegmentationClass" / f"{i}.png")
    return ["--images", str(root)]


def jpeg_masks(root: Path) -> list[str]:
    for i in range(12):
        image, inside = photo(i)
        saved(image, root / "a" / f"{i}.jpg")
        saved(grey(inside, 255), root / "b" / f"{i}.jpg", quality=75)
    return ["--images", f"{root}/a", "--masks", f"{root}/b"]


def coco(root: Path) -> list[str]:
    pytest.importorskip("pycocotools")
    images, annotations = [], []
    for i in range(12):
        image, inside = photo(i)
        saved(image, root / "photos" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE})
        ys, xs = np.nonzero(inside)
        box = [int(v) for v in (xs.min(), ys.min(), xs.max(), ys.min(), xs.max(), ys.max(), xs.min(), ys.max())]
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], inside.T.ravel(), [-1]]))), prepend=0)
        counts = [*([] if not inside[0, 0] else [0]), *map(int, runs)]
        segmentation = [box] if i % 2 else {"size": [SIZE, SIZE], "counts": counts}
        annotations.append({"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": segmentation})
    file = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (root / "instances.json").write_text(json.dumps(file))
    return ["--images", f"{root}/photos", "--masks", f"{root}/instances.json"]


def suffix_in_one_folder(root: Path) -> list[str]:
    for i in range(12):
        image, inside = photo(i)
        saved(image, root / f"site{i % 2}" / f"img{i}.jpg")
        saved(grey(inside, 255), root / f"site{i % 2}" / f"img{i}_mask.png")
    return ["--images", str(root)]


def mixed_kinds(root: Path) -> list[str]:
    """Grey, RGBA, 16-bit, CMYK, turned by EXIF, and all of other sizes."""
    for i in range(12):
        width, height = SIZE + 3 * i, 2 * SIZE - 2 * i
        image, inside = photo(i, width, height)
        mask, options = grey(inside), {}
        if i % 6 == 0:
            image = image.convert("L")
        elif i % 6 == 1:
            image.putalpha(Image.new("L", image.size, 255))
        elif i % 6 == 2:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        elif i % 6 == 3:
            image = image.convert("CMYK")
        elif i % 6 == 4:  # stored lying, its mask as it is seen
            options = {"exif": Image.Exif()}
            options["exif"][0x0112] = 6
            image = image.transpose(Image.Transpose.ROTATE_90)
        saved(image, root / "images" / (f"{i}.jpg" if i % 6 in (3, 4) else f"{i}.png"), **options)
        saved(mask, root / "masks" / f"{i}.png")
    return ["--images", f"{root}/images", "--masks", f"{root}/masks"]


def pool_and_labels(root: Path) -> list[str]:
    for i in range(30):
        saved(photo(100 + i)[0], root / "A" / f"{i}.jpg")
    return ["--unlabelled", f"{root}/A", *same_stems(root / "B")]


def patients(root: Path) -> list[str]:
    for i in range(12):
        image, inside = photo(i)
        saved(image, root / "images" / f"patient{i // 3}_{i % 3}.png")
        saved(grey(inside), root / "masks" / f"patient{i // 3}_{i % 3}.png")
    return ["--images", f"{root}/images", "--masks", f"{root}/masks"]


def rare_foreground(root: Path) -> list[str]:
    for i in range(12):
        image, inside = photo(i)
        inside[np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 13 > 0] = False
        saved(image, root / "images" / f"{i}.png")
        saved(grey(inside), root / "masks" / f"{i}.png")
    return ["--images", f"{root}/images", "--masks", f"{root}/masks"]


def spectrum(seed: int, channels: int, width: int = SIZE, height: int = SIZE) -> tuple[NDArray[np.uint16], Any]:
    """Reflectances of up to about 3,000 of a brighter disc, (height, width, channels), and where it is."""
    image, inside = photo(seed, width, height)
    grey = np.asarray(image.convert("L")).astype(np.uint16)[..., None]
    return 10 * grey + np.arange(channels, dtype=np.uint16) * 100, inside


def write_geotiff(path: Path, pixels: NDArray[np.uint16]) -> None:
    """With pixels of 10 m from a corner in UTM zone 32."""
    tifffile = pytest.importorskip("tifffile")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5.4e6, 0), True),
            (34735, "H", len(keys), keys, True)]  # fmt: skip
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig", extratags=tags)


def multispectral(root: Path) -> list[str]:
    for i in range(12):
        pixels, inside = spectrum(i, 4)
        write_geotiff(root / "scenes" / f"{i}.tif", pixels)
        saved(grey(inside), root / "labels" / f"{i}.png")
    return ["--images", f"{root}/scenes", "--masks", f"{root}/labels"]


def arrays(root: Path) -> list[str]:
    for i in range(12):
        pixels, inside = spectrum(i, 6)
        (root / "images").mkdir(parents=True, exist_ok=True)
        np.save(root / "images" / f"{i}.npy", pixels)
        saved(grey(inside), root / "masks" / f"{i}.png")
    return ["--images", str(root)]


SITUATIONS: dict[str, tuple[Callable[[Path], list[str]], int, int]] = {  # files, cells, classes
    "same stems": (same_stems, 6, 2),
    "colour masks": (colour_masks, 6, 2),
    "palette with 255": (palette_with_border, 6, 2),
    "JPEG masks": (jpeg_masks, 6, 2),
    "COCO polygons and run lengths": (coco, 6, 2),
    "_mask in nested folders": (suffix_in_one_folder, 6, 2),
    "mixed kinds and sizes": (mixed_kinds, 6, 2),
    "A unlabelled, B labelled": (pool_and_labels, 6, 2),
    "four-channel GeoTIFF": (multispectral, 6, 2),
    "six-channel arrays": (arrays, 6, 2),
    "patients with folds": (patients, 24, 2),
    "one in a hundred pixels": (rare_foreground, 3, 2),
}


def write_new(folder: Path, situation: str) -> None:
    """An image of another size, of the kind that the model was trained on."""
    folder.mkdir()
    if situation == "four-channel GeoTIFF":
        write_geotiff(folder / "x.tif", spectrum(7, 4, 61, 47)[0])
    elif situation == "six-channel arrays":
        np.save(folder / "x.npy", spectrum(7, 6, 61, 47)[0])
    else:
        saved(photo(7, 61, 47)[0], folder / "x.jpg")


def assert_same_place(image: Path, mask: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(image) as a, tifffile.TiffFile(mask) as b:
        assert b.geotiff_metadata == a.geotiff_metadata
        assert a.geotiff_metadata["ModelPixelScale"][:2] == [10.0, 10.0]
        assert b.pages[0].shape == a.pages[0].shape[:2]


def written(root: Path, situation: str) -> Path:
    """The study that `pretune init` writes for the files of a situation."""
    given = SITUATIONS[situation][0](root / "files")
    study = root / "mine.yaml"
    ended = CliRunner().invoke(cli, ["init", str(study), *given], catch_exceptions=False)
    assert ended.exit_code == 0
    return study


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_init_leads_to_a_table_and_a_mask(tmp_path: Path, situation: str) -> None:
    _, cells, classes = SITUATIONS[situation]
    study = load(written(tmp_path, situation), None, SMALL)
    ended = run_inline(study, tmp_path / "runs")
    assert (ended.exit_code, list(ended.failed)) == (0, [])
    assert len(study.cells) == cells
    write_tables(tmp_path / "runs" / "mine")
    table = (tmp_path / "runs" / "mine" / "table.md").read_text(encoding="utf-8")
    assert "| random |" in table
    card = json.loads((tmp_path / "runs" / "mine" / "best" / "model.json").read_text(encoding="utf-8"))
    assert len(card["classes"]) == classes
    write_new(tmp_path / "new", situation)
    ended_well = CliRunner().invoke(
        cli, ["predict", str(tmp_path / "runs" / "mine"), str(tmp_path / "new"), str(tmp_path / "out")]
    )
    assert ended_well.exit_code == 0, ended_well.output
    with Image.open(tmp_path / "out" / "masks" / "x.png") as mask:
        assert mask.size == (61, 47)
    if situation == "four-channel GeoTIFF":
        assert_same_place(tmp_path / "new" / "x.tif", tmp_path / "out" / "masks" / "x.tif")


@pytest.mark.slow
def test_large_images_are_trained_and_segmented_at_full_resolution(tmp_path: Path) -> None:
    """`fit: tile` and nothing else: three by two tiles of each image, together in the split, counted by image."""
    for i in range(8):
        image, inside = photo(i, 90, 60)
        saved(image, tmp_path / "d" / "images" / f"{i}.png")
        saved(grey(inside), tmp_path / "d" / "masks" / f"{i}.png")
    study = tmp_path / "mine.yaml"
    given = ["--images", f"{tmp_path}/d/images", "--masks", f"{tmp_path}/d/masks"]
    assert CliRunner().invoke(cli, ["init", str(study), *given], catch_exceptions=False).exit_code == 0
    tiled = ("data.mine.fit=tile", "data.mine.cache_size=32", "finetune.batch_size=4", "pretrain.batch_size=8")
    ended = run_inline(load(study, None, (*SMALL, *tiled)), tmp_path / "runs")
    assert (ended.exit_code, list(ended.failed)) == (0, [])
    card = json.loads((tmp_path / "runs" / "mine" / "best" / "model.json").read_text(encoding="utf-8"))
    assert len(card["test"]) % 6 == 0
    counts = pd.read_parquet(tmp_path / "runs" / "mine" / "test_images.parquet")
    assert {len(images) for images in counts["images"]} == {len(card["test"]) // 6}
    saved(photo(7, 70, 50)[0], tmp_path / "new" / "x.png")
    found = CliRunner().invoke(
        cli, ["predict", str(tmp_path / "runs" / "mine"), str(tmp_path / "new"), str(tmp_path / "out")]
    )
    assert found.exit_code == 0, found.output
    with Image.open(tmp_path / "out" / "masks" / "x.png") as mask:
        assert mask.size == (70, 50)
