"""Cubes in Models Genesis' layout: rows of .npy files, slices first in the cache, problems named by file and row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pretune.search_spaces import schema
from pretune.trainables.data.errors import DataError
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.resident.digest import content_digest
from pretune.trainables.data.sets.cubes import grey

SIZE, SLICES = 8, 4


def luna(**changes: Any) -> schema.LUNA16:
    body: dict[str, Any] = {"dataset": "luna16", "root": ".", "cache_size": SIZE, "slices": SLICES}
    return schema.LUNA16.model_validate(body | changes)


def cubes(seed: int, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((count, SIZE, SIZE, SLICES))


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Folds 0 and 7 of two and three cubes."""
    for fold, count in ((0, 2), (7, 3)):
        np.save(tmp_path / f"bat_32_s_64x64x32_{fold}.npy", cubes(fold, count))
    return tmp_path


@pytest.fixture
def nodules(tmp_path: Path) -> Path:
    """Two cubes in each part, with their masks; the train files carry a channel, as some of the authors' do."""
    for seed, part in enumerate(("train", "valid", "test")):
        x, m = cubes(seed, 2), (cubes(seed + 10, 2) > 0.8).astype(np.int64)
        extra = (slice(None), None) if part == "train" else ()
        np.save(tmp_path / f"x_{part}_64x64x32.npy", x[extra])
        np.save(tmp_path / f"m_{part}_64x64x32.npy", m[extra])
    return tmp_path


def test_cubes_of_the_chosen_folds_with_slices_first(folds: Path, tmp_path: Path) -> None:
    held = load_images(luna(folds=[0, 7]), folds, tmp_path / "cache")
    assert held.images.shape == (5, SLICES, SIZE, SIZE, 1)
    assert held.masks is None
    assert held.official_test is not None
    assert held.official_test.tolist() == [False, False, True, True, True]
    expected = np.rint(cubes(0, 2)[1] * 255)  # rows, columns, slices
    difference = held.images[1, ..., 0].transpose(1, 2, 0).astype(np.float64) - expected
    assert np.abs(difference).max() <= 1  # where x * 255 ends in .5 the two roundings may differ
    assert np.mean(difference != 0) < 0.01


def test_nodules_have_masks_and_the_authors_test_part(nodules: Path, tmp_path: Path) -> None:
    held = load_images(luna(part="nodules"), nodules, tmp_path / "cache")
    assert held.classes == ("background", "nodule")
    assert held.masks is not None
    assert held.official_test is not None
    assert [held.names[i] for i in np.flatnonzero(held.official_test)] == ["test/0000000", "test/0000001"]
    expected = np.squeeze(np.load(nodules / "m_train_64x64x32.npy"))[1]
    assert np.array_equal(held.masks[held.names.index("train/0000001")], expected.transpose(2, 0, 1))


@given(st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_grey_levels_are_within_half_a_step(value: float) -> None:
    """One step is 2000 / 255 = 7.8 Hounsfield units."""
    assert abs(float(grey(np.full((1, 1, 1), value))[0, 0, 0]) / 255 - value) <= 0.5 / 255 + 1e-9


def test_missing_folds_are_named(folds: Path) -> None:
    with pytest.raises(DataError, match=r"bat_\*_1\.npy, bat_\*_2\.npy; `folds:`"):
        content_digest(luna(folds=[0, 1, 2]), folds)


def test_another_shape_is_refused_with_the_setting_to_change(folds: Path) -> None:
    with pytest.raises(DataError, match=r"is \(2, 8, 8, 4\), not \(N, 64, 64, 32\); set cache_size and slices"):
        content_digest(luna(folds=[0], cache_size=64, slices=32), folds)


def test_hounsfield_units_are_refused_by_file_and_row(folds: Path, tmp_path: Path) -> None:
    raw = cubes(0, 2)
    raw[1] = raw[1] * 2000 - 1000
    np.save(folds / "bat_32_s_64x64x32_0.npy", raw)
    with pytest.raises(DataError, match=r"bat_32_s_64x64x32_0.npy\[1\]: values from -.*scale -1000 to 1000"):
        load_images(luna(folds=[0, 7]), folds, tmp_path / "cache")
    held = load_images(luna(folds=[0, 7], on_error="skip"), folds, tmp_path / "cache")
    assert len(held.names) == 4
    assert "bat_32_s_64x64x32_0.npy[1]" in held.skipped[0]


def test_a_mask_with_other_values_is_refused(nodules: Path, tmp_path: Path) -> None:
    np.save(nodules / "m_valid_64x64x32.npy", np.full((2, SIZE, SIZE, SLICES), 2))
    with pytest.raises(DataError, match=r"m_valid_64x64x32.npy\[0\]: a mask holds 0 \(background\) and 1 \(nodule\)"):
        load_images(luna(part="nodules"), nodules, tmp_path / "cache")


def test_masks_without_their_images_are_refused(nodules: Path) -> None:
    (nodules / "x_test_64x64x32.npy").unlink()
    with pytest.raises(DataError, match=r"must hold one x_test_\*.npy and one m_test_\*.npy"):
        content_digest(luna(part="nodules"), nodules)
    np.save(nodules / "x_test_64x64x32.npy", cubes(0, 3))
    with pytest.raises(DataError, match=r"x_test_64x64x32.npy holds 3 cubes, m_test_64x64x32.npy 2"):
        content_digest(luna(part="nodules"), nodules)


def test_a_file_that_is_no_array_is_refused(folds: Path) -> None:
    (folds / "bat_32_s_64x64x32_0.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"\.npy file that can be read"):
        content_digest(luna(folds=[0]), folds)
