"""Fault injection on what is stored: whatever happened to a file, its content is believed as written or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from damages import damage
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.analysis.load.results import RESULT_COLUMNS, ResultsError, load
from pretune.errors import SearchStorageError
from pretune.results.tables import _write_parquet, own_name
from pretune.search.optuna_internals import SUM
from pretune.search.optuna_study import close_storage, open_storage
from pretune.search.warm_start import earlier
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import from_dict
from pretune.store.lookup import stored_outcome
from pretune.store.store import DAMAGED, DONE, Entry, Store
from pretune.trainables import checksums
from pretune.trainables.checkpoints import load_state, save_state
from pretune.trainables.checksums import SMALL, sealed, unsealed
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import ensure_built
from pretune.trainables.data.resident.hashes import MEMO, hash_files
from pretune.trainables.data.resident.open import open_cached
from pretune.trainables.files import CONTINUE, STATE

KEY, SERIES = "f" * 32, "e" * 32
KINDS = ["flip", "zeros", "cut", "empty", "foreign", "text for a number"]


def make(root: Path) -> Entry:
    """A store with an entry of every kind of file, and a shorter training to go on from."""
    store = Store(root)
    folder = store.begin(KEY)
    for name in ("model.safetensors", "history.json", "notes.json", "test_images.npz", CONTINUE):
        (folder / name).write_bytes(f'{{"{name}": 0.5}}'.encode() * 30)
    about = {"label": "a", "order": {"gpus": 0.5, "workers": 1}, "machine": {"gpu_memory": 1e9}}
    entry = store.finish(folder, "pretrain", "finished", "", {"val/jaccard": 0.5, "pretext_loss": 3.25}, 1.5, about)
    store.note_length(SERIES, 5, KEY)
    return entry


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), place=st.floats(0, 1))
def test_an_entry_is_the_one_that_was_written_or_none(data: st.DataObject, kind: str, place: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, entry = Store(Path(folder)), make(Path(folder))
        files = sorted(path for path in store.root.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        content = {name: store.file(entry, name).read_bytes() for name in entry.files}
        changed = damage(path, kind, place)
        found, listed = store.find(KEY), list(store.entries())
        assert found in (None, entry)
        assert listed == [entry] * (found is not None)
        assert (found is not None) == (not changed or path.name.endswith(".length") or _is_same(path, entry))
        if found is not None:
            assert {name: store.file(found, name).read_bytes() for name in found.files} == content
            stored_outcome(found)
        if (going_on := store.shorter(SERIES, 9)) is not None:
            assert going_on.read_bytes() == content[CONTINUE]
        again = make(Path(folder))  # running again is all it takes
        assert store.find(KEY) == again


def _is_same(marker: Path, entry: Entry) -> bool:
    """Whether a damaged marker still says the same, as with another space between two words."""
    try:
        return marker.name == DONE and Entry(**_without_checksum(marker)) == entry
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _without_checksum(marker: Path) -> dict[str, object]:
    content: dict[str, dict[str, object]] = json.loads(marker.read_bytes())
    del content["about"]["sha256"]
    return content  # type: ignore[return-value]


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1))
def test_a_marker_of_before_checksums_is_read_or_none_and_never_a_traceback(kind: str, place: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        entry = make(store.root)
        marker = store.root / KEY / DONE
        marker.write_text(json.dumps(_without_checksum(marker)))
        assert store.find(KEY) == entry
        damage(marker, kind, place)
        if (found := store.find(KEY)) is not None:
            stored_outcome(found)


def test_a_large_file_that_was_changed_later_is_not_believed_and_one_that_was_not_costs_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    folder = store.begin(KEY)
    (folder / "model.safetensors").write_bytes(bytes(SMALL + 1))
    entry = store.finish(folder, "pretrain", "finished", "", {}, 1.0, {})
    read: list[Path] = []
    monkeypatch.setattr("pretune.trainables.checksums.sha256_of", lambda path: read.append(path) or "another")
    assert store.find(KEY) == entry
    assert read == []
    (folder / "model.safetensors").write_bytes(bytes(SMALL) + b"1")
    assert store.find(KEY) is None
    assert len(read) == 1


def test_a_file_that_is_damaged_without_a_trace_is_noticed_when_it_is_used(tmp_path: Path) -> None:
    """A disk that loses bits changes no times; the next run makes the entry again."""
    store = Store(tmp_path)
    folder = store.begin(KEY)
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(SMALL + 1))
    older = store.finish(store.begin(KEY), "pretrain", "finished", "", {}, 1.0, {})
    entry = store.finish(folder, "pretrain", "finished", "", {}, 1.0, {})
    marker = tmp_path / KEY / DONE
    weights.write_bytes(bytes(SMALL) + b"1")
    marker.touch()
    assert store.find(KEY) == entry != older
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of f+ is damaged .*run again"):
        store.file(entry, "model.safetensors")
    assert store.find(KEY) is None
    assert (tmp_path / KEY / DAMAGED).exists()


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1))
def test_a_state_is_the_one_that_was_written_or_none(kind: str, place: float) -> None:
    """600 zeroed bytes inside once blocked a stage for ever; zeroed weights inside would have changed its digits."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        attempt = store.begin(KEY)
        save_state({"step": 3, "weights": torch.arange(500.0), "best": {"a": 0.5}}, attempt)
        damage(attempt / STATE, kind, place)
        state = load_state(store.resumable(KEY), torch.device("cpu"))
        if state is not None:
            assert (state["step"], state["best"]) == (3, {"a": 0.5})
            assert torch.equal(state["weights"], torch.arange(500.0))


# ------------------------------------------------------------------------------------------------- the image cache

SCENES = schema.Scenes(dataset="scenes", images=4, cache_size=16)
MAPS = SCENES.model_copy(update={"regions": schema.SLIC(name="slic", segments=4)})


def arrays_of(found: ImageSet | None) -> list[list[Any]]:
    assert found is not None
    return [np.asarray(part).tolist() for part in (found.images, found.masks, found.regions, found.depth, found.names)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cache")
    return folder, ensure_built(MAPS, None, folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), place=st.floats(0, 1), silently=st.booleans())
def test_cached_images_are_those_that_were_decoded_or_are_decoded_anew(
    data: st.DataObject, kind: str, place: float, silently: bool, cache: tuple[Path, str]
) -> None:
    """Images, their index, and maps in a folder of their own; a disk that loses bits changes no times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(cache[0], Path(folder) / "cache"))
        path = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
        before = path.stat()
        changed = damage(path, kind, place)
        if silently:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (open_cached(cache[1], root) is None) == changed  # all of them are small: always hashed
        assert ensure_built(MAPS, None, root) == cache[1]
        assert arrays_of(open_cached(cache[1], root)) == arrays_of(open_cached(cache[1], cache[0]))


@pytest.mark.parametrize("silently", [False, True])
def test_a_large_array_that_was_changed_is_decoded_anew_when_the_next_study_starts(
    silently: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.trainables.checksums.SMALL", 0)
    monkeypatch.setattr("pretune.trainables.checksums._believed", {})
    name = ensure_built(SCENES, None, tmp_path)
    right = arrays_of(open_cached(name, tmp_path))
    path = tmp_path / name / "images.npy"
    before = path.stat()
    damage(path, "flip", 0.9)
    after = (before.st_atime_ns, before.st_mtime_ns) if silently else (time.time_ns(), time.time_ns())
    os.utime(path, ns=after)
    checksums._believed.clear()  # as in another process
    assert (open_cached(name, tmp_path) is None) is not silently
    ensure_built(SCENES, None, tmp_path)
    assert arrays_of(open_cached(name, tmp_path)) == right


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1))
def test_what_else_the_cache_holds_is_read_as_written_or_not_at_all(kind: str, place: float) -> None:
    """Hashes of files, rows that can be used, images that look alike: a changed digit in one changes a table."""
    with tempfile.TemporaryDirectory() as folder:
        content, path = {"rows": [0.5, 12, 31], "sha256": "ab" * 32}, Path(folder) / "x.json"
        path.write_text(sealed(content))
        damage(path, kind, place)
        assert unsealed(path) in (None, content)


def test_a_damaged_memo_of_hashes_renames_no_data_set(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"an image")
    os.utime(file, (1, 1))  # long ago, so that its hash is remembered
    right = hash_files([file], tmp_path)
    memo = tmp_path / MEMO
    memo.write_text(memo.read_text().replace(right[0][:8], "0" * 8))
    assert hash_files([file], tmp_path) == right


# ----------------------------------------------------------------------------------------------- a study's own files


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS[:-1]), place=st.floats(0, 1))
def test_results_are_those_that_were_written_or_refused_in_one_sentence(kind: str, place: float) -> None:
    """Parquet believes whatever bytes a page has, unless its pages hold checksums and they are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.parquet"
        rows = [dict.fromkeys(RESULT_COLUMNS, "x") | {"value": n / 7, "seed": n} for n in range(40)]
        frame = pd.DataFrame(rows)
        _write_parquet(frame, path)
        damage(path, kind, place)
        try:
            found = load(Path(folder))
        except ResultsError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert "run the study again" in str(error)  # noqa: PT017
        else:
            assert found["value"].tolist() == frame["value"].tolist()


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS[:-1]), place=st.floats(0, 1))
def test_what_a_search_began_with_is_as_noted_or_refused(kind: str, place: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, out = Store(Path(folder) / "store"), Path(folder)
        make(store.root)
        before = earlier(store, out)
        changed = damage(out / "warm-start.json", kind, place)
        try:
            assert earlier(store, out) == before
        except SearchStorageError as error:
            assert changed
            assert "warm-start.json is damaged" in str(error)  # noqa: PT017


def test_noted_stage_runs_of_before_checksums_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make(store.root)
    (tmp_path / "warm-start.json").write_text(json.dumps([KEY]))
    (tmp_path / "b").mkdir()
    assert earlier(store, tmp_path) == earlier(store, tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0123456789a", b"{}"])
def test_a_damaged_name_of_a_studys_searches_is_said(content: bytes, tmp_path: Path, tiny: dict[str, Any]) -> None:
    study = from_dict(tiny)
    assert own_name(study, tmp_path) == own_name(study, tmp_path)
    (tmp_path / "search-id").write_bytes(content)
    with pytest.raises(SearchStorageError, match="search-id is damaged"):
        own_name(study, tmp_path)


# ------------------------------------------------------------------------------------------------------ the searches


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "optuna.journal"
    storage = open_storage(path)
    study = optuna.create_study(storage=storage, study_name="a")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    close_storage(storage)
    return path


@pytest.mark.parametrize("line", [b"", b"{}", b"\xff\xfe", b"[]", b"7", b'{"op_code": 99, "worker_id": "a"}'])
@pytest.mark.parametrize("at", [0, 4, 11])
def test_a_bad_line_of_a_journal_is_named_with_its_number_and_what_to_do(
    line: bytes, at: int, journal: Path, tmp_path: Path
) -> None:
    lines = journal.read_bytes().splitlines()
    path = tmp_path / "optuna.journal"
    path.write_bytes(b"\n".join([*lines[:at], line, *lines[at:]]) + b"\n")
    with pytest.raises(SearchStorageError, match=rf"optuna.journal, line {at + 1} is damaged .*move the file away"):
        open_storage(path)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1))
def test_a_flipped_bit_of_a_journal_changes_no_search(place: float, journal: Path) -> None:
    """A digit of a value that a trial was given would make another search, and another table, of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(journal, folder))
        before = [json.loads(line) for line in path.read_bytes().splitlines()]
        damage(path, "flip", place)
        try:
            close_storage(open_storage(path))
        except SearchStorageError as error:
            assert "move the file away" in str(error)  # noqa: PT017
        else:  # the torn last line was cut off
            after = [json.loads(line) for line in path.read_bytes().splitlines()]
            assert after == before[: len(after)]
            assert len(after) >= len(before) - 1


def test_a_journal_of_before_checksums_is_given_them_and_each_line_needs_its_own(journal: Path, tmp_path: Path) -> None:
    logs = [json.loads(line) for line in journal.read_bytes().splitlines()]
    older = [{key: value for key, value in log.items() if key != SUM} for log in logs]
    path = tmp_path / "optuna.journal"
    path.write_text("".join(json.dumps(log) + "\n" for log in older))
    close_storage(open_storage(path))
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == logs
    for mixed, number in (([*logs[:5], *older[5:]], 6), ([*older[:5], *logs[5:]], 1)):
        path.write_text("".join(json.dumps(log) + "\n" for log in mixed))
        with pytest.raises(SearchStorageError, match=rf"line {number} is damaged"):
            open_storage(path)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1))
def test_a_damaged_journal_opens_or_is_refused_in_one_sentence(kind: str, place: float, journal: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(journal, folder))
        damage(path, kind, place)
        said = "move the file away"
        try:
            close_storage(open_storage(path))
        except SearchStorageError as error:
            said = str(error)
        assert "move the file away" in said
