"""`pretune data`: what it prints, writes and refuses."""

from __future__ import annotations

import base64
import os
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from pretune.cli import data as data_cli
from pretune.data.check import duplicate_report
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.sets.catalogue import About, Download
from pretune.trainables.data.sets.table import ABOUT, ABOUT_GENERATED, DATA_SETS


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(data_cli.data, [str(argument) for argument in arguments])


def folder(root: Path, n: int = 4) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.full((8, 8), i % 2, np.uint8)).save(root / "masks" / f"{i}.png")
    return root


def check(root: Path, tmp_path: Path) -> Result:
    settings = ["--set", f"root={root}", "--set", "classes=[sky, road]", "--set", "cache_size=8"]
    return call("check", "image-mask-folder", *settings, "--root", tmp_path / "runs", "--out", tmp_path / "sheet.png")


def test_the_list_names_every_data_set_with_its_licence() -> None:
    shown = call("list").output
    for name in [*ABOUT, *DATA_SETS, *ABOUT_GENERATED]:
        assert name in shown
    assert "CC BY-SA 4.0" in shown


def test_a_whole_copy_is_described_and_drawn(tmp_path: Path) -> None:
    ended = check(folder(tmp_path / "d"), tmp_path)
    assert ended.exit_code == 0
    assert "4 images, cached at 8 px" in ended.output
    assert "share of pixels: sky 50.0%, road 50.0%" in ended.output
    assert "no duplicates" in ended.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 2 * 128
    page = (tmp_path / "sheet.html").read_text()
    assert "share of pixels: sky 50.0%, road 50.0%" in page
    assert base64.b64encode((tmp_path / "sheet.png").read_bytes()).decode() in page


def test_every_bad_file_of_a_copy_is_named_and_the_good_ones_are_drawn(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    (root / "images" / "0.png").write_bytes(b"")
    (root / "masks" / "3.png").unlink()
    ended = check(root, tmp_path)
    assert isinstance(ended.exception, DataError)
    assert sorted(problem.split(":")[0] for problem in ended.exception.problems) == ["images/0.png", "images/3.png"]
    assert "2 images, cached" in ended.output
    assert (tmp_path / "sheet.png").exists()
    assert "images/0.png: empty file" in (tmp_path / "sheet.html").read_text()


def test_images_and_not_masks_are_counted_and_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Five images of which one is empty and one a GIF; the mask of the GIF is not an image."""
    root = folder(tmp_path / "d", 5)
    (root / "images" / "0.png").write_bytes(b"")
    (root / "images" / "4.png").rename(root / "images" / "4.gif")
    ended = check(root, tmp_path)
    assert "1 of 4 images left out" in ended.output
    assert "1 file is not read as images: 1 .gif (read are .bmp, .jpeg, .jpg" in ended.output
    assert isinstance(ended.exception, DataError)
    assert "masks/4.png: its image images/4.gif has an unsupported type" in ended.exception.problems[0]


def study_of(tiny: dict[str, Any], data: dict[str, Any], tmp_path: Path) -> Path:
    tiny["data"] |= data
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    return tmp_path / "tiny.yaml"


def test_all_data_sets_of_a_study_are_checked(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """One of them has a bad file, one is not there, and one is used in two folds; a stage asks for too many labels."""
    root = folder(tmp_path / "d")
    (root / "masks" / "3.png").write_bytes(b"")
    mine = {"dataset": "image-mask-folder", "root": str(root), "classes": ["sky", "road"], "cache_size": 8}
    gone = {"dataset": "image-folder", "root": str(tmp_path / "gone")}
    tiny["factors"]["fold"] = {"data.scenes.split.fold": ["1/2", "2/2"]}
    tiny["finetune"]["labels"] = 30
    file = study_of(tiny, {"mine": mine, "gone": gone}, tmp_path)
    ended = call("check", file, "--root", tmp_path / "runs", "--out", tmp_path / "sheet.png", "--images", 2)
    assert isinstance(ended.exception, DataError)
    assert sorted(path.name for path in tmp_path.glob("sheet-*.png")) == ["sheet-mine.png", "sheet-scenes.png"]
    assert ended.output.count("40 images, cached at 32 px") == 1
    starts = [problem.split(" (")[0].split(", but")[0] for problem in ended.exception.problems]
    assert starts == [
        f"gone: image-folder: the folder {tmp_path / 'gone'} does not exist; set `root:`",
        "mine: masks/3.png: empty file",
        "finetune.labels: 30 labelled images requested",
    ]


def test_sheets_of_a_study_lie_in_its_folder_and_in_that_of_its_scale(tmp_path: Path, tiny: dict[str, Any]) -> None:
    file, runs = study_of(tiny, {}, tmp_path), tmp_path / "runs"
    file.write_text(file.read_text() + "scales: {small: {finetune.steps: 2}}\n")
    for scale in ([], ["--scale", "small"]):
        for verb in ("check", "views"):
            ended = call(verb, file, "--root", runs, "--images", 2, "--set", "seeds.report=1", *scale)
            assert ended.exit_code == 0, ended.output
    for folder in ("tiny", "tiny-small"):
        assert {path.name for path in (runs / folder).iterdir()} == {
            "data-scenes.png", "data-scenes.html", "views.png",
        }  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(32, 8), (8, 32), (30, 10), (32, 31)])
def test_padding_has_no_share_of_the_pixels_and_what_is_ignored_has(tmp_path: Path, width: int, height: int) -> None:
    """Left half sky, right half road, and of its upper left quarter the inside is ignored."""
    values = np.zeros((height, width), np.uint8)
    values[:, width // 2 :] = 1
    values[1 : height // 2, 1 : width // 2] = 9
    root = tmp_path / "d"
    for part, pixels in (("images", np.zeros((height, width, 3), np.uint8)), ("masks", values)):
        (root / part).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(pixels).save(root / part / f"{i}.png")
    settings = ["--set", f"root={root}", "--set", "classes=[sky,road]", "--set", "cache_size=32", "--set", "fit=pad",
                "--set", "ignore=9", "--set", "split.test=1"]  # fmt: skip
    ended = call("check", "image-mask-folder", *settings, "--root", tmp_path / "r", "--out", tmp_path / "sheet.png")
    found = re.search(r"sky ([\d.]+)%, road ([\d.]+)%, ignored ([\d.]+)%", ended.output)
    assert found, ended.output
    sides = [round(side * 32 / max(width, height)) for side in (width, height)]
    cached = np.asarray(Image.fromarray(values).resize((sides[0], sides[1]), Image.Resampling.NEAREST))
    expected = [100 * float(np.mean(cached == value)) for value in (0, 1, 9)]
    assert [float(share) for share in found.groups()] == pytest.approx(expected, abs=0.051)


def test_a_study_without_fault_is_checked(tmp_path: Path, tiny: dict[str, Any]) -> None:
    file = study_of(tiny, {}, tmp_path)
    ended = call("check", file, "--root", tmp_path / "runs", "--out", tmp_path / "sheet.png", "--set", "seeds.report=1")
    assert ended.exit_code == 0, ended.output
    with Image.open(tmp_path / "sheet-scenes.png") as sheet:  # image, mask and regions, in two columns of 24 rows
        assert sheet.width > 2 * 3 * 128


def test_the_same_image_twice_is_reported(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    (root / "images" / "3.png").write_bytes((root / "images" / "1.png").read_bytes())
    assert "1 pair of images looks alike:\n    1 = 3" in check(root, tmp_path).output


def test_images_that_look_alike_call_for_groups_only_where_some_are_for_testing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8).repeat(3, axis=0)
    images = SimpleNamespace(images=pixels, names=list("abc"), streamed=False, official_test=None)
    tested, pool = (duplicate_report(cast(Any, images), given) for given in (True, False))
    assert tested[:-1] == pool
    assert "split.group" in tested[-1]


def test_a_name_that_is_not_utf8_is_read_and_printed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "d" / "a.png")
    data = (tmp_path / "d" / "a.png").read_bytes()
    Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/\xff.png")).write_bytes(data)
    chosen: list[str | Path] = [
        "--set",
        f"root={tmp_path / 'd'}",
        "--root",
        tmp_path / "runs",
        "--out",
        tmp_path / "sheet.png",
    ]
    ended = call("check", "image-folder", *chosen)
    assert ended.exit_code == 0, ended.output
    assert "a.png = \\udcff.png" in ended.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "pets"], "no data set 'pets'; choose from: ade20k, camvid"),
        (["check", "voc2012", "--set", "only=kat"], "voc2012: only: unknown value 'kat' (did you mean \"cat\"?)"),
        (
            ["check", "image-folder", "--set", "root=caf\udce9"],
            r"root=caf\udce9: the value is not valid YAML (quote it;",
        ),
        (["check", "scenes", "--set", "regions=slic"], "scenes: regions: should be a mapping of keys to values"),
        (["check", "scenes", "--set", "split.tset=0.1"], 'split.tset: there is no such key (did you mean "test"?)'),
        (["check", "scenes", "--set", "images=1", "--set", "images.x=1"], "images is a single value, and holds no x"),
        (["check", "voc2012", "--set", "only"], "'only' is not KEY=VALUE"),
        (["fetch", "npz"], "'npz' cannot be fetched"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], message: str) -> None:
    ended = call(*arguments)
    assert ended.exit_code == 2
    assert message in ended.output


def flat(text: str) -> str:
    return " ".join(text.split())


def test_what_needs_an_account_says_what_to_do(tmp_path: Path) -> None:
    ended = call("fetch", "cityscapes", "--data", tmp_path)
    assert ended.exit_code == 0
    assert ABOUT["cityscapes"].get in flat(ended.output)
    assert list(tmp_path.iterdir()) == []


def test_a_server_out_of_reach_is_said_with_what_to_do_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = (tmp_path / "gone.tar").as_uri()
    both = (Download(address, None), Download("http://elsewhere/b.tar", None))
    about = About("A set", "free", "1 kB", False, "images/", ("set",), (("images",),), "", both)
    monkeypatch.setitem(ABOUT, "tiny", about)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    ended = call("fetch", "tiny", "--data", tmp_path / "all")
    assert isinstance(ended.exception, DataError)
    assert f"fetching {address} ..." in ended.output
    assert "trying again in 2 s (2 of 3)" in ended.output or "trying again in 1 s (2 of 3)" in ended.output
    assert f"put it at {tmp_path / 'all' / '.set' / 'archives' / 'gone.tar'}" in str(ended.exception)
    assert str(ended.exception).endswith("(and so on: http://elsewhere/b.tar)")


def test_a_fetched_data_set_is_unpacked_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two archives, one of which brings its own folder; served from files."""
    for name, member in (("a.tar", "set/images/x.txt"), ("b.tar", "masks/y.txt")):
        (tmp_path / "x.txt").write_text(name)
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(tmp_path / "x.txt", member)
    downloads = (Download((tmp_path / "a.tar").as_uri(), None, ".."), Download((tmp_path / "b.tar").as_uri(), None))
    about = About("A set", "free", "1 kB", False, "images/ and masks/", ("set",), (("images", "masks"),), "", downloads)
    monkeypatch.setitem(ABOUT, "tiny", about)
    assert call("fetch", "tiny", "--data", tmp_path / "all").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["set"]
    assert (tmp_path / "all" / "set" / "images" / "x.txt").read_text() == "a.tar"
    assert (tmp_path / "all" / "set" / "masks" / "y.txt").read_text() == "b.tar"
    assert "tiny is there" in call("fetch", "tiny", "--data", tmp_path / "all").output


def test_views_are_drawn_beside_their_images(tmp_path: Path, tiny: dict[str, Any]) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny))
    out = tmp_path / "views.png"
    ended = call("views", tmp_path / "study.yaml", "--root", tmp_path / "runs", "--images", "3", "--out", out)
    assert ended.exit_code == 0, ended.output
    assert "simclr on data.scenes: 2 views of each image, 16 px" in ended.output
    with Image.open(out) as sheet:  # an image and four views, three times, each 128 px and a line
        assert sheet.width > 5 * 128
        assert 3 * 128 < sheet.height < 4 * 160


def views(tiny: dict[str, Any], tmp_path: Path) -> Result:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny))
    out = tmp_path / "views.png"
    return call("views", tmp_path / "study.yaml", "--root", tmp_path / "runs", "--images", "3", "--out", out)


def test_views_are_those_of_the_method(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """DINO's two large and three small views, in one epoch: six images in a row."""
    method = {"name": "dino", "hidden": 8, "bottleneck": 4, "prototypes": 4, "local_views": 3, "local_size": 8}
    tiny["pretrain"]["method"] = method
    ended = views(tiny, tmp_path)
    assert ended.exit_code == 0, ended.output
    assert "dino on data.scenes: 5 views of each image, 16 px, 8 px" in ended.output
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.width == 6 * 130 + 2 * 6


@pytest.mark.parametrize(
    ("method", "drawn"),
    [({"name": "mae", "ratio": 0.75, "patch": 4}, 4), ({"name": "conrec"}, 7)],
    ids=["one view masked", "two views corrupted"],
)
def test_what_a_restoring_method_gives_its_network_is_drawn_beside_the_views(
    tmp_path: Path, tiny: dict[str, Any], method: dict[str, Any], drawn: int
) -> None:
    """The image, views of two epochs, and those of the first epoch as the network gets them."""
    tiny["pretrain"]["method"] = method
    ended = views(tiny, tmp_path)
    assert ended.exit_code == 0, ended.output
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.width == drawn * 130 + 2 * 6
        tile = np.asarray(sheet)[30:140, 6 + (drawn - 1) * 130 : 6 + (drawn - 1) * 130 + 120]
    if method["name"] == "mae":
        assert 0.6 < (tile.max(axis=-1) == 0).mean() < 0.9  # three quarters of the patches are black


def test_views_that_fall_back_to_the_whole_image_are_said(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """No region of a scene of 32 px has more pixels than the scene."""
    tiny["pretrain"]["method"]["name"] = "samclr"
    ended = views(tiny, tmp_path)
    assert ended.exit_code == 0, ended.output
    assert "image" in ended.output
    tiny["pretrain"]["views"]["region_min_area"] = 32 * 32 + 1
    assert "3 of these 3 images have no region of the least area" in views(tiny, tmp_path).output
    tiny["pretrain"]["views"]["region_min_area"] = 1
    assert "no region" not in views(tiny, tmp_path).output


def test_views_within_regions_of_data_without_say_what_to_do(tmp_path: Path, tiny: dict[str, Any]) -> None:
    mine = folder(tmp_path / "d")
    tiny["data"]["scenes"] = {"dataset": "image-folder", "root": str(mine / "images"), "cache_size": 16}
    tiny["pretrain"]["views"]["within"] = "region"
    del tiny["finetune"], tiny["factors"]
    tiny["probe"] = {"maps": {"kind": "maps", "data": "scenes", "size": 16}}
    tiny["report"] = {"metrics": ["probe/maps/explained_variance"]}
    assert "add `regions: {name: felzenszwalb}` to data.scenes" in flat(views(tiny, tmp_path).output)


def test_a_study_without_pretraining_has_no_views(tmp_path: Path, tiny: dict[str, Any]) -> None:
    del tiny["pretrain"]
    tiny["finetune"]["transfer"] = "none"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny | {"factors": {}, "report": {}}))
    assert "has no pretraining that makes views" in call("views", tmp_path / "study.yaml").output


def test_a_set_that_is_streamed_is_read_and_not_copied(tmp_path: Path) -> None:
    """Its bad file is named, its masks are counted, and the cache holds no array of it."""
    root = folder(tmp_path / "set", 6)
    (root / "images" / "2.png").write_bytes(b"")
    keys = [f"root={root}", "classes=[a, b]", "cache_size=8", "source=streaming"]
    settings = [part for key in keys for part in ("--set", key)]
    out, runs = tmp_path / "sheet.png", tmp_path / "runs"
    ended = call("check", "image-mask-folder", *settings, "--root", runs, "--out", out)
    assert isinstance(ended.exception, DataError), ended.output
    assert ended.exception.problems == ("images/2.png: empty file (0 bytes); replace or remove it",)
    assert "5 images, streamed at 8 px" in ended.output
    assert "share of pixels: a 40.0%, b 60.0%" in ended.output
    assert "duplicates are not searched" in ended.output
    assert out.exists()
    assert not list(runs.rglob("*.npy"))


def test_more_bad_files_than_a_message_holds_are_all_on_the_page(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Of 24 images 12 are empty, then all: the message says where the others are, also that of a study."""
    root = folder(tmp_path / "d", 24)

    def said(page: Path, *arguments: str | Path) -> str:
        ended = call("check", *arguments, "--root", tmp_path / "runs", "--out", tmp_path / "sheet.png", "--images", 2)
        assert isinstance(ended.exception, DataError)
        assert str(ended.exception).endswith(f"... and {len(ended.exception.problems) - 10} more")
        listed = page.read_text()
        assert all(problem.removeprefix("mine: ") in listed for problem in ended.exception.problems[1:])
        return str(ended.exception).split("\n")[0]

    one = ["image-mask-folder", "--set", f"root={root}", "--set", "classes=[sky, road]", "--set", "cache_size=8"]
    mine = {"dataset": "image-mask-folder", "root": str(root), "classes": ["sky", "road"], "cache_size": 8}
    file = study_of(tiny, {"mine": mine}, tmp_path)
    for empty in (12, 24):
        for i in range(empty):
            (root / "images" / f"{i}.png").write_bytes(b"")
        first = said(tmp_path / "sheet.html", *one)
        assert (f"(all are listed on the page {tmp_path / 'sheet.html'}):" in first) == (empty == 12)
        assert ("(`pretune data check` lists all):" in first) == (empty == 24)
        assert f"(all are listed on the pages {tmp_path / 'sheet'}-*.html):" in said(tmp_path / "sheet-mine.html", file)


def test_classes_without_an_image_count_as_they_do_in_training(tmp_path: Path) -> None:
    """Labels 0 and 4 are five classes to whatever is trained on them."""
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.array([0, 4, 4]))
    ended = call("check", "npz", "--set", f"root={tmp_path / 'a.npz'}", "--root", tmp_path, "--out", tmp_path / "s.png")
    assert "5 image classes with 1 to 2 images each, 3 of them without an image" in ended.output


def test_a_folder_of_validation_images_and_transparency_are_said(tmp_path: Path) -> None:
    """val/ beside test/ is no list of its own; what is transparent is black."""
    for part in ("train", "val", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / "d" / part / kind).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(np.random.default_rng(len(part) + i).integers(0, 256, (8, 8, 4), np.uint8))
                image.putalpha(0 if (part, i) == ("train", 0) else 255)
                image.save(tmp_path / "d" / part / kind / f"{i}.png")
    found = call("check", "image-folder", "--set", f"root={tmp_path / 'd'}", "--root", tmp_path / "runs",
                 "--out", tmp_path / "sheet.png")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "official lists: 12 train, 6 test" in found.output
    assert "the folder val/ is not used as a split: its 6 images are mixed into training and validation" in found.output
    said = "2 images have transparent parts, which are drawn over black (`background:` of a data set sets another"
    assert f"{said} colour), first train/cat/0.png" in found.output


def test_stacks_and_animations_are_named(tmp_path: Path) -> None:
    """../shared/cases/first-page-only."""
    for part in ("images", "masks"):
        (tmp_path / "stack" / part).mkdir(parents=True)
    for i in range(4):
        pages = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 200, 250)]
        pages[0].save(tmp_path / "stack" / "images" / f"{i}.tif", save_all=True, append_images=pages[1:])
        Image.new("L", (32, 32)).save(tmp_path / "stack" / "masks" / f"{i}.png")
    found = call("check", "image-mask-folder", "--set", f"root={tmp_path / 'stack'}", "--set", "classes=[a,b]",
                 "--root", tmp_path / "runs", "--out", tmp_path / "sheet.png")  # fmt: skip
    assert isinstance(found.exception, DataError)
    assert "images/0.tif: has 3 pages or frames, and Pretune reads one" in str(found.exception)
