"""Looking at a store and cleaning it."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from pretune.cli.store import MARK_SECONDS, collect, print_entries, print_usage, size, used_fingerprints
from pretune.cluster.join import marked
from pretune.store.lookup import TASK
from pretune.store.store import Store, StoreError


def finished(store: Store, key: str, payload: int, outcome: str = "finished", method: str = "") -> None:
    attempt = store.begin(key)
    (attempt / "model.safetensors").write_bytes(b"x" * payload)
    about = {TASK: {"settings": {"method": {"name": method}}}} if method else {}
    store.finish(attempt, "pretrain" if method else "finetune", outcome, "", {}, 2.0, about)


def test_used_fingerprints_are_those_of_all_studies(tmp_path: Path) -> None:
    for name, keys in (("one", ["a", "b"]), ("two", ["b", "c"])):
        (tmp_path / name).mkdir()
        pd.DataFrame({"fingerprint": keys, "other": 1}).to_parquet(tmp_path / name / "results.parquet")
    (tmp_path / "three").mkdir()
    assert used_fingerprints(tmp_path) == {"a", "b", "c"}
    assert used_fingerprints(tmp_path / "three") == set()


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, "a", 1000)
    (entry,) = store.entries()
    assert size(entry) == 1000
    assert store.size_of(tmp_path / "a" / entry.attempt) == 1000


def test_superseded_attempts_are_collected_and_the_entry_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    finished(store, "a", 10)
    finished(store, "a", 20)
    text = io.StringIO()
    collect(tmp_path / "store", tmp_path / "cache", tmp_path, False, True, Console(file=text, width=200))
    assert "deleted 1 unfinished attempt and 0 unused stage runs" in text.getvalue()
    (entry,) = store.entries()
    assert size(entry) == 20
    assert list(store.unfinished()) == []


def test_marks_of_killed_drivers_are_collected_and_fresh_ones_stay(tmp_path: Path) -> None:
    places = [tmp_path / "store", tmp_path / "cache"]
    for place in places:
        with marked(place) as mark:
            mark.with_name(f"{mark.name}-fresh").touch()
            old = mark.with_name(f"{mark.name}-old")
            old.touch()
            os.utime(old, (0, time.time() - MARK_SECONDS - 60))
    collect(*places, tmp_path, False, False, Console(file=io.StringIO()))
    assert [len(list(place.iterdir())) for place in places] == [2, 2]
    collect(*places, tmp_path, False, True, Console(file=io.StringIO()))
    assert ["-fresh" in path.name for place in places for path in place.iterdir()] == [True, True]


def test_a_divergence_is_listed_as_one(tmp_path: Path) -> None:
    finished(Store(tmp_path), "abc", 10, "diverged")
    text = io.StringIO()
    print_entries(tmp_path, tmp_path / "cache", Console(file=text, width=200))
    assert "diverged" in text.getvalue()


def test_pretrainings_are_listed_and_summed_by_method(tmp_path: Path) -> None:
    for key, method in (("a", "weights"), ("b", "simclr"), ("c", "simclr"), ("d", "")):
        finished(Store(tmp_path), key, 10, method=method)
    for show in (print_entries, print_usage):
        text = io.StringIO()
        show(tmp_path, tmp_path / "cache", Console(file=text, width=200))
        titles = ("pretrain weights", "pretrain simclr", "finetune")
        assert [text.getvalue().count(title) for title in titles] == [1, 2 if show is print_entries else 1, 1]


def test_a_store_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no store at .*nowhere; .*--store"):
        collect(tmp_path / "nowhere", tmp_path / "cache", tmp_path, False, False, Console(file=io.StringIO()))
