"""The store: an entry is whole or not there, whatever is killed between two writes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zipped import zipped

from pretune.store.store import DONE, Entry, Store, StoreError, write_atomically
from pretune.trainables.files import STATE

FINGERPRINT = "f" * 32


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@contextmanager
def killed_before(operation: int) -> Iterator[list[str]]:
    """Raises before the given file system operation (0 is the first); the list names those that were begun."""
    begun: list[str] = []

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(begun) == operation:
                raise KilledError
            begun.append(name)
            return real(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for owner, name in ((Path, "unlink"), (Path, "open"), (Path, "replace"), (os, "fsync"), (os, "open")):
            stack.enter_context(mock.patch.object(owner, name, counting(name, getattr(owner, name))))
        try:
            yield begun
        except KilledError:
            return


def attempt(store: Store, weights: bytes = b"weights", state: bool = False) -> Path:
    """An attempt that has written its payload."""
    folder = store.begin(FINGERPRINT)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "notes.json").write_text("{}")
    if state:
        (folder / STATE).write_bytes(zipped(b"state"))
    return folder


def finish(store: Store, folder: Path, score: float = 0.5) -> Entry:
    return store.finish(folder, "finetune", "finished", "", {"val/jaccard": score}, 1.5, {"label": "a"})


def test_a_finished_attempt_is_found_with_its_metrics_sizes_and_hashes(tmp_path: Path) -> None:
    """sha256 of the bytes `weights`, from the sha256sum command."""
    store = Store(tmp_path)
    entry = finish(store, attempt(store))
    assert store.find(FINGERPRINT) == entry
    assert entry.metrics == {"val/jaccard": 0.5}
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert entry.files["model.safetensors"] == {"size": 7, "sha256": digest}
    assert store.file(entry, "model.safetensors").read_bytes() == b"weights"


def test_nothing_is_found_before_an_attempt_is_finished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(FINGERPRINT) is None
    attempt(store)
    assert store.find(FINGERPRINT) is None
    assert list(store.entries()) == []


@settings(max_examples=60, deadline=None)
@given(operation=st.integers(0, 24), state=st.booleans(), earlier=st.booleans())
def test_a_kill_between_any_two_writes_leaves_the_old_entry_the_new_one_or_none(
    operation: int, state: bool, earlier: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        old = finish(store, attempt(store, b"old"), 0.1) if earlier else None
        new = attempt(store, b"longer weights", state)
        with killed_before(operation):
            finish(store, new, 0.9)
        found = store.find(FINGERPRINT)
        assert found is not None or not earlier
        if found is not None:
            assert found == old or (found.attempt == new.name and found.metrics == {"val/jaccard": 0.9})
            expected = b"longer weights" if found.attempt == new.name else b"old"
            assert store.file(found, "model.safetensors").read_bytes() == expected
        finish(store, attempt(store, b"again"), 0.7)  # running again is all it takes
        again = store.find(FINGERPRINT)
        assert again is not None
        assert again.metrics == {"val/jaccard": 0.7}


def test_the_crash_points_reach_past_the_last_write(tmp_path: Path) -> None:
    """The property above covers every operation: `finish` makes fewer than 25."""
    store = Store(tmp_path)
    folder = attempt(store, state=True)
    with killed_before(1000) as begun:
        finish(store, folder)
    assert 5 < len(begun) <= 24
    assert "replace" in begun


@settings(max_examples=20, deadline=None)
@given(operation=st.integers(0, 10))
def test_a_kill_while_an_entry_is_removed_leaves_nothing_half_there(operation: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        finish(store, attempt(store))
        with killed_before(operation):
            store.remove(FINGERPRINT)
        found = store.find(FINGERPRINT)
        assert found is None or store.file(found, "model.safetensors").read_bytes() == b"weights"


def test_a_file_of_another_size_or_a_missing_one_is_not_finished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    weights = store.file(finish(store, attempt(store)), "model.safetensors")
    weights.write_bytes(b"weight")
    assert store.find(FINGERPRINT) is None
    weights.write_bytes(b"weights")
    assert store.find(FINGERPRINT) is not None
    weights.unlink()
    assert store.find(FINGERPRINT) is None


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"fingerprint": "f"}', '{"unknown": 1}', "\x00\x00"])
def test_an_unreadable_marker_is_not_finished(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    finish(store, attempt(store))
    (tmp_path / FINGERPRINT / DONE).write_text(text)
    assert store.find(FINGERPRINT) is None


@pytest.mark.parametrize("files", [[], {"model.safetensors": {}}, {"model.safetensors": 7}])
def test_a_marker_whose_files_are_not_described_is_not_finished(tmp_path: Path, files: object) -> None:
    store = Store(tmp_path)
    finish(store, attempt(store))
    marker = tmp_path / FINGERPRINT / DONE
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"files": files}))
    assert store.find(FINGERPRINT) is None


def test_of_two_writers_the_last_wins_and_both_entries_are_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = attempt(store, b"one"), attempt(store, b"three")
    one = finish(store, first, 0.1)
    assert store.find(FINGERPRINT) == one
    two = finish(store, second, 0.2)
    assert store.find(FINGERPRINT) == two
    assert store.file(one, "model.safetensors").read_bytes() == b"one"
    assert store.file(two, "model.safetensors").read_bytes() == b"three"


def test_a_late_writer_in_its_own_folder_does_not_touch_the_entry(tmp_path: Path) -> None:
    """The orphan of a killed driver goes on writing for a while."""
    store = Store(tmp_path)
    orphan = attempt(store, b"orphan")
    entry = finish(store, attempt(store))
    (orphan / "model.safetensors").write_bytes(b"more of the orphan")
    (orphan / STATE).write_bytes(b"late state")
    assert store.find(FINGERPRINT) == entry


def test_the_newest_state_is_the_one_to_resume_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.resumable(FINGERPRINT) is None
    older, newer = attempt(store, state=True), attempt(store, state=True)
    os.utime(older / STATE, (1, 1))
    os.utime(newer / STATE, (2, 2))
    assert store.resumable(FINGERPRINT) == newer / STATE
    os.utime(older / STATE, (3, 3))
    assert store.resumable(FINGERPRINT) == older / STATE


def test_a_damaged_state_is_set_aside_and_the_one_before_is_resumed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    older, newer = attempt(store, state=True), attempt(store, state=True)
    os.utime(older / STATE, (1, 1))
    content = bytearray((newer / STATE).read_bytes())
    content[content.index(b"state")] ^= 1
    (newer / STATE).write_bytes(content)
    assert store.resumable(FINGERPRINT) == older / STATE
    assert not (newer / STATE).exists()
    assert (newer / f"{STATE}.damaged").read_bytes() == content


def test_a_state_that_vanishes_while_it_is_looked_at_is_not_resumed(tmp_path: Path) -> None:
    """Another driver on the same store finished and dropped it."""
    store = Store(tmp_path)
    gone = attempt(store) / STATE
    gone.symlink_to(tmp_path / "nowhere")
    assert store.resumable(FINGERPRINT) is None
    kept = attempt(store, state=True)
    assert store.resumable(FINGERPRINT) == kept / STATE


def test_finishing_drops_the_states_of_every_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    attempt(store, state=True)
    entry = finish(store, attempt(store, state=True))
    assert store.resumable(FINGERPRINT) is None
    assert STATE not in entry.files


def test_entries_and_unfinished_attempts_are_told_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = attempt(store)
    entry = finish(store, attempt(store))
    (tmp_path / ("e" * 32) / "attempt").mkdir(parents=True)
    assert list(store.entries()) == [entry]
    assert set(store.unfinished()) == {left, tmp_path / ("e" * 32) / "attempt"}


def test_metrics_come_back_digit_for_digit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    score = 0.1 + 0.2
    finish(store, attempt(store), score)
    found = store.find(FINGERPRINT)
    assert found is not None
    assert found.metrics["val/jaccard"] == score


def test_a_store_below_a_plain_file_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the store .*file/store cannot be written: .*--store"):
        Store(tmp_path / "file" / "store").check()


def test_check_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "store").check()
    assert list((tmp_path / "a" / "store").iterdir()) == []


@settings(max_examples=10, deadline=None)
@given(operation=st.integers(0, 5))
def test_an_atomic_write_shows_the_old_text_or_the_new(operation: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "status.json"
        write_atomically(path, "old")
        with killed_before(operation):
            write_atomically(path, "new and longer")
        assert path.read_text() in ("old", "new and longer")


@contextmanager
def remembered_as_missing(store: Store, opened_for: int = 1) -> Iterator[list[Path]]:
    """As an NFS client that has looked for the marker before it was written: it says that there is none until both
    folders on the way were opened so many times. The list has the folders that were opened."""
    opened: list[Path] = []
    real_open, real_read = os.scandir, Path.read_bytes

    def opening(path: Any) -> Any:
        opened.append(Path(path))
        return real_open(path)

    def reading(path: Path) -> bytes:
        fresh = min(opened.count(store.root), opened.count(store.root / FINGERPRINT)) >= opened_for
        if path.name == DONE and not fresh:
            raise FileNotFoundError(path)
        return real_read(path)

    with mock.patch.object(os, "scandir", opening), mock.patch.object(Path, "read_bytes", reading):
        yield opened


@pytest.mark.parametrize("looks", [1, 3])
def test_what_another_node_says_it_has_finished_is_found_behind_a_cache_of_names(tmp_path: Path, looks: int) -> None:
    store = Store(tmp_path)
    entry = finish(store, attempt(store))
    with remembered_as_missing(store, looks):
        assert store.find(FINGERPRINT) is None
        assert store.find_announced(FINGERPRINT, (0.0, 0.01, 0.01)) == entry


def test_what_stays_unseen_is_not_there_and_looking_for_it_does_not_raise(tmp_path: Path) -> None:
    assert Store(tmp_path).find_announced(FINGERPRINT, (0.0, 0.01)) is None
    assert Store(tmp_path / "nowhere").find_announced(FINGERPRINT, (0.0,)) is None
