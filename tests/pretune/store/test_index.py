"""The start of a study on a bucket that holds many entries: few requests, and nothing that is not there."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pretune.outcomes import Outcome
from pretune.store import index
from pretune.store.lookup import find_in
from pretune.store.object_store import Objects
from pretune.store.store import DONE, Store

COUNT = 110  # entries


@dataclass
class Memory(Objects):
    """A bucket in memory, which counts what is asked of it."""

    url: str = "s3://memory"
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def read(self, name: str) -> bytes | None:
        self.asked["read"] += 1
        return self.objects.get(name)

    def write(self, name: str, content: bytes) -> None:
        self.asked["write"] += 1
        self.objects[name] = content

    def upload(self, path: Path, name: str) -> None:
        self.objects[name] = path.read_bytes()

    def sizes(self, folder: str = "") -> dict[str, int]:
        self.asked["list"] += 1
        return {name: len(content) for name, content in self.objects.items() if name.startswith(folder)}

    def remove(self, name: str) -> None:
        self.objects.pop(name, None)

    def delete(self, folder: str) -> None:
        for name in [name for name in self.objects if name.startswith(f"{folder}/")]:
            del self.objects[name]


def key(number: int) -> str:
    return f"{number:032x}"


def finish(store: Store, number: int, score: float) -> None:
    attempt = store.begin(key(number))
    (attempt / "weights").write_bytes(b"%d" % number)
    store.finish(attempt, "finetune", "finished", "", {"val/jaccard": score}, 1.0, {})


def scores(bucket: Memory, cache: Path, numbers: range) -> list[float | None]:
    """The store as a driver with this cache sees it at its start."""
    store = Store(cache, bucket)
    find = find_in(store, listing=index.look(store))
    found: list[Outcome | None] = [find(key(number)) for number in numbers]
    return [None if one is None else one.metrics["val/jaccard"] for one in found]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """COUNT entries, of which the score says the number."""
    made = Memory()
    for number in range(COUNT):
        finish(Store(tmp_path_factory.mktemp("made"), made), number, float(number))
    return made.objects


@pytest.fixture
def bucket(objects: dict[str, bytes]) -> Memory:
    return Memory(objects=dict(objects))


def test_a_driver_reads_one_by_one_what_no_index_holds_and_the_next_one_an_index(
    bucket: Memory, tmp_path: Path
) -> None:
    expected = [float(number) for number in range(COUNT)] + [None] * 50
    assert scores(bucket, tmp_path / "a", range(COUNT + 50)) == expected
    assert bucket.asked == {"list": 1, "read": COUNT, "write": 1}
    bucket.asked.clear()
    assert scores(bucket, tmp_path / "b", range(COUNT + 50)) == expected
    assert bucket.asked == {"list": 1, "read": 1}
    bucket.asked.clear()
    assert scores(bucket, tmp_path / "b", range(COUNT + 50)) == expected
    assert bucket.asked == {"list": 1}


def test_an_entry_that_was_removed_or_made_anew_since_is_not_taken_from_an_index(
    bucket: Memory, tmp_path: Path
) -> None:
    scores(bucket, tmp_path / "a", range(COUNT))
    other = Store(tmp_path / "other", bucket)
    other.remove(key(3))
    other.remove(key(4))
    finish(other, 4, 99.0)
    expected = [float(number) for number in range(COUNT)]
    expected[3:5] = [None, 99.0]  # type: ignore[list-item]
    assert scores(bucket, tmp_path / "b", range(COUNT)) == expected


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no gzip",
        gzip.compress(b"{}\n"),
        gzip.compress(json.dumps("{}").encode()),
        gzip.compress(json.dumps(json.dumps({"fingerprint": key(1)})).encode()),
        gzip.compress(json.dumps(json.dumps({"fingerprint": key(1), "attempt": "x", "files": 1})).encode()),
    ],
    ids=["empty", "no gzip", "no text", "no marker", "no attempt", "no files"],
)
def test_a_damaged_index_costs_requests_and_nothing_else(damaged: bytes, bucket: Memory, tmp_path: Path) -> None:
    bucket.objects[f"{index.FOLDER}x.jsonl.gz"] = damaged
    assert scores(bucket, tmp_path / "a", range(COUNT)) == list(map(float, range(COUNT)))


def test_a_cut_index_gives_what_is_whole(bucket: Memory, tmp_path: Path) -> None:
    scores(bucket, tmp_path / "a", range(COUNT))
    (name,) = (name for name in bucket.objects if name.startswith(index.FOLDER))
    bucket.objects[name] = bucket.objects[name][:-40]
    assert scores(bucket, tmp_path / "b", range(COUNT)) == list(map(float, range(COUNT)))


def test_what_was_not_there_at_the_start_is_asked_for_once_it_may_be(
    bucket: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "a", bucket)
    find = find_in(store, listing=index.look(store))
    assert find(key(900)) is None
    assert find(key(901)) is None
    finish(Store(tmp_path / "other", bucket), 900, 0.5)
    assert find(key(900)) == Outcome("finished", {"val/jaccard": 0.5}, costs=_any_costs(store))
    finish(Store(tmp_path / "other", bucket), 902, 0.5)
    monkeypatch.setattr(index, "FRESH_SECONDS", -1.0)
    assert find(key(902)) is not None


def _any_costs(store: Store) -> Any:
    found = find_in(store)(key(900))
    assert found is not None
    return found.costs


def test_a_folder_needs_no_listing(tmp_path: Path) -> None:
    assert index.look(Store(tmp_path)) is None
    finish(Store(tmp_path), 1, 0.5)
    assert (tmp_path / key(1) / DONE).exists()
