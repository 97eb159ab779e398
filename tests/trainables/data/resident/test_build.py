"""The cache: named by content alone, finished or absent, and every bad file in one message."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.build import ensure_built, load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.data.sets import scenes
from pretune.trainables.data.sets.table import locate


def write_pair(root: Path, stem: str, colour: int = 100, value: int = 1) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 0, 0)).save(root / "images" / f"{stem}.png")
    Image.new("L", (8, 6), value).save(root / "masks" / f"{stem}.png")


def folder(root: Path, n: int = 4) -> Path:
    for i in range(n):
        write_pair(root, f"s{i:02d}", colour=10 * i, value=i % 2)
    return root


def masked(root: Path, **changes: object) -> schema.ImageMaskFolder:
    base = schema.ImageMaskFolder(dataset="image-mask-folder", root=str(root), classes=("a", "b"), cache_size=8)
    return schema.ImageMaskFolder.model_validate(base.model_dump() | changes)


def generated(**changes: object) -> schema.Scenes:
    return schema.Scenes.model_validate({"dataset": "scenes", "images": 5, "cache_size": 32} | changes)


# ------------------------------------------------------------------------------------------------- what is loaded


def test_images_and_masks_are_what_the_files_hold(tmp_path: Path) -> None:
    made = load_images(masked(folder(tmp_path / "d")), None, tmp_path / "c")
    assert made.names == ("s00", "s01", "s02", "s03")
    assert made.classes == ("a", "b")
    assert made.images[:, 0, 0].tolist() == [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    assert made.masks is not None
    assert made.masks[:, 4, 4].tolist() == [0, 1, 0, 1]
    assert (made.regions, made.depth, made.labels, made.official_test, made.skipped) == (None, None, None, None, ())


def test_black_and_white_masks_are_read_as_their_values_say(tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    for i in range(4):
        Image.new("L", (8, 6), 255 * (i % 2)).save(root / "masks" / f"s{i:02d}.png")
    with pytest.raises(DataError, match=r"say so by `mask_values: \[0, 255\]`"):
        load_images(masked(root), None, tmp_path / "c")
    made = load_images(masked(root, mask_values=(0, 255)), None, tmp_path / "c")
    assert made.masks is not None
    assert made.masks[:, 4, 4].tolist() == [0, 1, 0, 1]


def test_arrays_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    made = load_images(masked(folder(tmp_path / "d")), None, tmp_path / "c")
    assert isinstance(made.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        made.images[0] = 0


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "d" / name / "1.jpg")
    settings = schema.ImageFolder(dataset="image-folder", root="d", cache_size=4)
    made = load_images(settings, tmp_path, tmp_path / "c")
    assert made.labels is not None
    assert (made.labels.tolist(), made.masks, made.classes) == ([0, 1], None, ())


def test_generated_scenes_are_stored_exactly(tmp_path: Path) -> None:
    made = load_images(generated(seed=3), None, tmp_path)
    scene = scenes.generate_scene(3, 4, 32, 3)
    assert made.masks is not None
    assert made.regions is not None
    assert made.depth is not None
    for stored, value in zip((made.images, made.masks, made.regions, made.depth), scene, strict=True):
        assert np.array_equal(stored[4], value)
        assert stored.dtype == value.dtype
    assert made.classes == scenes.SCENE_CLASSES[:3]


def test_a_limit_takes_a_random_part_by_the_split_seed(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", 12)
    first, second = (
        load_images(masked(root, limit=5, split={"seed": seed}), None, tmp_path / "c").names for seed in (0, 1)
    )
    assert len(first) == len(second) == 5
    assert first != second
    assert list(first) == sorted(first)


def test_progress_is_told_and_an_opened_cache_is_not_rebuilt(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = masked(folder(tmp_path / "d"))
    ensure_built(settings, None, tmp_path / "c", lambda done, total: told.append((done, total)))
    ensure_built(settings, None, tmp_path / "c", lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --------------------------------------------------------------------------------------------------- the digest


def test_a_moved_folder_has_the_same_digest(tmp_path: Path) -> None:
    before = content_digest(masked(folder(tmp_path / "here")), None)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert content_digest(masked(tmp_path / "there"), None) == before


@pytest.mark.parametrize("remember", [False, True])
def test_times_do_not_matter_and_bytes_do(tmp_path: Path, remember: bool) -> None:
    settings, cache = masked(folder(tmp_path / "d")), tmp_path / "c" if remember else None
    mask = tmp_path / "d" / "masks" / "s01.png"
    os.utime(mask, (1e9, 1e9))
    before = content_digest(settings, None, cache)
    os.utime(mask, (1.1e9, 1.1e9))
    assert content_digest(settings, None, cache) == before
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert content_digest(settings, None, cache) != before


def test_a_change_within_the_clocks_tick_is_seen(tmp_path: Path) -> None:
    """Same size, same time, other bytes, all within two seconds: such fresh files are not remembered."""
    settings = masked(folder(tmp_path / "d"))
    mask, now = tmp_path / "d" / "masks" / "s01.png", time.time()
    os.utime(mask, (now, now))
    before = content_digest(settings, None, tmp_path / "c")
    data = bytearray(mask.read_bytes())
    data[-1] ^= 1
    mask.write_bytes(data)
    os.utime(mask, (now, now))
    assert content_digest(settings, None, tmp_path / "c") != before


def test_remembered_hashes_are_used_and_a_broken_memo_is_not(tmp_path: Path) -> None:
    settings, cache = masked(folder(tmp_path / "d")), tmp_path / "c"
    mask = tmp_path / "d" / "masks" / "s01.png"
    os.utime(mask, (1e9, 1e9))
    before = content_digest(settings, None, cache)
    data = bytearray(mask.read_bytes())
    data[-1] ^= 1
    mask.write_bytes(data)
    os.utime(mask, (1e9, 1e9))  # size and time as remembered: the file is not read
    assert content_digest(settings, None, cache) == before
    (cache / "hashes.json").write_text('{"half a mem')
    assert content_digest(settings, None, cache) == content_digest(settings, None) != before


@pytest.mark.parametrize(
    "change",
    [{"cache_size": 16}, {"fit": "pad"}, {"on_error": "skip"}, {"classes": ("a", "c")}, {"ignore": 9}, {"limit": 3}],
)
def test_settings_that_change_the_arrays_change_the_digest(tmp_path: Path, change: dict[str, object]) -> None:
    root = folder(tmp_path)
    assert content_digest(masked(root, **change), None) != content_digest(masked(root), None)


def test_the_split_does_not_change_the_digest_nor_does_a_limit_that_limits_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path)
    before = content_digest(masked(root), None)
    assert content_digest(masked(root, split={"seed": 5, "test": 2}), None) == before
    assert content_digest(masked(root, limit=4, split={"seed": 5}), None) == before


def test_only_files_that_are_used_are_in_the_digest(tmp_path: Path) -> None:
    settings = masked(folder(tmp_path / "d", 6), limit=3)
    used = load_images(settings, None, tmp_path / "c").names
    before = content_digest(settings, None)
    unused = next(f"s{i:02d}" for i in range(6) if f"s{i:02d}" not in used)
    write_pair(tmp_path / "d", unused, colour=255)
    assert content_digest(settings, None) == before
    write_pair(tmp_path / "d", used[0], colour=255)
    assert content_digest(settings, None) != before


@pytest.mark.parametrize("change", [{"seed": 1}, {"images": 6}, {"classes": 4}, {"cache_size": 48}, {"limit": 3}])
def test_scenes_differ_by_what_they_show(change: dict[str, object]) -> None:
    assert content_digest(generated(**change), None) != content_digest(generated(), None)
    assert content_digest(generated(fit="pad", on_error="skip"), None) == content_digest(generated(), None)


# ---------------------------------------------------------------------------------------------------- bad files


def spoil(root: Path) -> list[str]:
    """Six bad files of six kinds among two good pairs; returns their names."""
    folder(root, 7)
    (root / "images" / "s00.png").write_bytes(b"")
    data = (root / "images" / "s01.png").read_bytes()
    (root / "images" / "s01.png").write_bytes(data[: len(data) - 30])
    Image.new("L", (6, 8)).save(root / "masks" / "s02.png")
    Image.new("L", (8, 6), 7).save(root / "masks" / "s03.png")
    (root / "masks" / "s04.png").unlink()
    Image.new("L", (8, 6)).save(root / "masks" / "orphan.png")
    return ["images/s00", "images/s01", "masks/s02", "masks/s03", "images/s04", "masks/orphan"]


def test_every_bad_file_is_in_one_message(tmp_path: Path) -> None:
    bad = spoil(tmp_path / "d")
    with pytest.raises(DataError, match=r"6 problems; .*on_error: skip") as caught:
        load_images(masked(tmp_path / "d"), None, tmp_path / "c")
    for name in bad:
        assert sum(problem.startswith(name) for problem in caught.value.problems) == 1
        assert name in str(caught.value)
    assert not any(path.is_dir() for path in (tmp_path / "c").iterdir())


def test_skipping_leaves_them_out_and_says_so(tmp_path: Path) -> None:
    bad = spoil(tmp_path / "d")
    made = load_images(masked(tmp_path / "d", on_error="skip"), None, tmp_path / "c")
    assert made.names == ("s05", "s06")
    assert made.images[:, 0, 0, 0].tolist() == [50, 60]
    assert made.masks is not None
    assert made.masks[:, 0, 0].tolist() == [1, 0]
    assert sorted(text.split(".png")[0] for text in made.skipped) == sorted(bad)


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    for i in range(12):
        write_pair(tmp_path / "d", f"s{i:02d}", value=9)
    with pytest.raises(DataError, match="none of the 12 images") as caught:
        load_images(masked(tmp_path / "d", on_error="skip"), None, tmp_path / "c")
    assert str(caught.value).count("outside the classes: 9") == 10
    assert str(caught.value).endswith("... and 2 more")


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_empty_folder_is_an_error(tmp_path: Path, on_error: str) -> None:
    (tmp_path / "d").mkdir()
    settings = schema.ImageFolder.model_validate(
        {"dataset": "image-folder", "root": str(tmp_path / "d"), "on_error": on_error}
    )
    with pytest.raises(DataError, match="no usable image in"):
        content_digest(settings, None)


def test_the_error_survives_pickling_with_its_problems() -> None:
    error = DataError("summary", [f"p{i}" for i in range(11)])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)


# ------------------------------------------------------------------------------------------ finished or not there


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from pretune.search_spaces import schema
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.resident.build import ensure_built, load_images
from pretune.trainables.data.sets.table import locate
from pretune.trainables.data.resident.open import open_cached
settings = schema.Scenes(dataset="scenes", images=5, cache_size=32)
ensure_built(settings, None, Path(sys.argv[1]), lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[4]
    done = subprocess.run([sys.executable, "-c", KILLED_BUILD, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith("building-") for path in tmp_path.iterdir()] == [True]
    assert open_cached(content_digest(generated(), None), tmp_path) is None
    assert len(load_images(generated(), None, tmp_path).names) == 5


def test_who_loses_the_race_takes_the_winners_copy(tmp_path: Path) -> None:
    settings = generated()
    name = content_digest(settings, None)

    def overtaken(done: int, total: int) -> None:
        if done == 1:
            ensure_built(settings, None, tmp_path)
            (tmp_path / name / "winner").touch()

    assert ensure_built(settings, None, tmp_path, overtaken) == name
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "winner").exists()


def test_what_was_never_built_cannot_be_opened(tmp_path: Path) -> None:
    assert open_cached("0" * 64, tmp_path) is None


def test_a_damaged_cache_is_none_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = ensure_built(generated(), None, tmp_path)
    (tmp_path / name / "index.json").unlink()
    assert open_cached(name, tmp_path) is None
    assert f"{name} is damaged" in caplog.text
    assert ensure_built(generated(), None, tmp_path) == name
    assert open_cached(name, tmp_path) is not None
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_damaged_cache_that_cannot_be_removed_says_what_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ensure_built(generated(), None, tmp_path)
    (tmp_path / name / "index.json").unlink()

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=f"{name} is damaged .not yours.; delete it and run again"):
        ensure_built(generated(), None, tmp_path)


def test_a_cache_of_before_checksums_is_opened(tmp_path: Path) -> None:
    name = ensure_built(generated(), None, tmp_path)
    index = json.loads((tmp_path / name / "index.json").read_text())
    older = {key: value for key, value in index.items() if key not in ("files", "sha256")}
    (tmp_path / name / "index.json").write_text(json.dumps(older))
    found = open_cached(name, tmp_path)
    assert found is not None
    assert list(found.names) == index["names"]


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cache needs .* GB"):
        ensure_built(generated(images=1, cache_size=40_000_000), None, tmp_path)


# ------------------------------------------------------------------------------------------------------- locating


def test_a_relative_root_is_taken_from_data_root_else_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    settings = schema.ImageFolder(dataset="image-folder", root="d")
    assert locate(settings, tmp_path) == tmp_path / "d"
    monkeypatch.chdir(tmp_path)
    assert locate(settings, None) == Path("d")
    with pytest.raises(DataError, match=r"image-folder: the folder .*elsewhere/d does not exist; set `root:`"):
        locate(settings, tmp_path / "elsewhere")


def test_scenes_have_no_folder() -> None:
    assert locate(generated(), None) is None


@pytest.mark.parametrize("given", [True, False])
def test_missing_pets_say_where_they_belong_and_how_to_get_them(tmp_path: Path, given: bool) -> None:
    with pytest.raises(DataError, match=r"images/ and annotations/ .*download=True.*--data or `root:`"):
        locate(schema.Pets(dataset="oxford-iiit-pet"), tmp_path if given else None)
