"""The store on servers that speak S3 and Google's API, through a proxy that errs, dawdles and cuts: whole entries or
none."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gcs
import pandas as pd
import pytest
import s3
import yaml
from rich.console import Console
from s3 import Proxy, address, served
from zipped import zipped

from pretune.cli.store import collect, print_usage
from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.store.lease import single_flight
from pretune.store.mirror import Publisher
from pretune.store.object_store import Bucket, ObjectError, open_bucket
from pretune.store.store import DONE, Entry, Store, StoreError, open_store
from pretune.trainables.files import CONTINUE, STATE
from tests.pretune.cli.test_study import pretune as pretune  # the fixture

KEY = "f" * 32
SECRET = "tester-secret-9f2c"
FATES = ("ok", "ok", "error", "ok", "slow", "ok", "cut")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@dataclass(frozen=True)
class Server:
    kind: str
    port: int
    proxy: Proxy

    def address(self, prefix: str, port: int | None = None) -> str:
        return (s3 if self.kind == "s3" else gcs).address(port or self.port, prefix)


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with (s3 if request.param == "s3" else gcs).served(*FATES) as (port, proxy):
        yield Server(request.param, port, proxy)


def written(store: Store, weights: bytes = b"weights", **files: bytes) -> Path:
    folder = store.begin(KEY)
    (folder / "model.safetensors").write_bytes(weights)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def finish(store: Store, folder: Path) -> Entry:
    return store.finish(folder, "finetune", "finished", "", {"val/jaccard": 0.5}, 1.5, {})


def two(server: Server, tmp_path: Path, prefix: str) -> tuple[Store, Store]:
    """Two nodes with caches of their own; the second sees the server through the faulty proxy."""
    first = open_store(server.address(prefix), tmp_path / "a")
    return first, Store(tmp_path / "b", open_bucket(server.address(prefix, server.proxy.port)))


def test_what_one_node_finished_another_finds_and_fetches_once(server: Server, tmp_path: Path) -> None:
    first, second = two(server, tmp_path, "shared")
    entry = finish(first, written(first, b"w" * 3_000_000))
    assert second.find(KEY) == entry
    path = second.file(entry, "model.safetensors")
    assert path.read_bytes() == b"w" * 3_000_000
    before = sum(server.proxy.met.values())
    assert second.find(KEY) == entry
    assert second.file(entry, "model.safetensors") == path
    assert sum(server.proxy.met.values()) == before


def test_entries_written_through_faults_are_whole(server: Server, tmp_path: Path) -> None:
    first, second = two(server, tmp_path, "faulty")
    count = 6 if server.kind == "s3" else 3  # Google's client makes long pauses of its own
    for index in range(count):
        folder = second.begin(f"{index:032d}")
        (folder / "model.safetensors").write_bytes(bytes([index]) * 700_000)
        finish(second, folder)
    assert {entry.fingerprint for entry in first.entries()} == {f"{index:032d}" for index in range(count)}
    for index, entry in enumerate(first.entries()):
        assert first.file(entry, "model.safetensors").read_bytes() == bytes([index]) * 700_000
    assert min(server.proxy.met[fate] for fate in ("error", "slow", "cut")) > 0  # the faults did happen


@pytest.mark.parametrize("harm", ["no marker", "shorter", "gone", "half a marker"])
def test_a_partial_upload_is_not_taken_for_whole(server: Server, tmp_path: Path, harm: str) -> None:
    first, second = two(server, tmp_path, f"partial-{harm.replace(' ', '-')}")
    entry = finish(first, written(first))
    assert first.bucket is not None
    marker = first.bucket.read(f"{KEY}/{DONE}")
    assert marker is not None
    if harm == "no marker":
        first.bucket.write(f"{KEY}/{DONE}", b"")
    if harm == "half a marker":
        first.bucket.write(f"{KEY}/{DONE}", marker[: len(marker) // 2])
    if harm == "shorter":
        first.bucket.write(f"{KEY}/{entry.attempt}/model.safetensors", b"weight")
    if harm == "gone":
        first.bucket.delete(f"{KEY}/{entry.attempt}")
    assert second.find(KEY) is None


def test_other_bytes_of_the_same_size_are_refused_and_leave_nothing(server: Server, tmp_path: Path) -> None:
    first = open_store(server.address("bytes"), tmp_path / "a")
    entry = finish(first, written(first))
    bucket = open_bucket(server.address("bytes"))
    bucket.write(f"{KEY}/{entry.attempt}/model.safetensors", b"WEIGHTS")
    second = Store(tmp_path / "b", type(bucket)(bucket.url, bucket.files, bucket.prefix, pauses=(0.01,)))
    found = second.find(KEY)
    assert found == entry
    with pytest.raises(ObjectError, match="damaged: its size or sha256"):
        second.file(found, "model.safetensors")
    assert list((tmp_path / "b").rglob("*model*")) == []


def test_a_state_goes_on_on_another_node_and_only_a_newer_one(server: Server, tmp_path: Path) -> None:
    first, second = two(server, tmp_path, "states")
    folder = written(first)
    assert second.resumable(KEY) is None
    kept = -1
    for content in (b"early", b"later"):
        (folder / STATE).write_bytes(zipped(content))
        kept = first.keep_state(folder, kept)
    assert first.keep_state(folder, kept) == kept
    path = second.resumable(KEY)
    assert path is not None
    assert path.read_bytes() == zipped(b"later")
    own = second.begin(KEY) / STATE
    own.write_bytes(zipped(b"newest"))
    assert second.resumable(KEY) == own


def states(store: Store) -> list[str]:
    """Names of all that the bucket holds of resumable states."""
    assert store.bucket is not None
    return sorted(name.rpartition("/")[2] for name in store.bucket.sizes() if "/state" in name)


def test_of_a_state_only_the_newest_stays_and_of_a_finished_stage_none(server: Server, tmp_path: Path) -> None:
    """The first attempt is cut off and leaves its state, the second goes on from it and finishes."""
    store = open_store(server.address("dropped"), tmp_path / "a")
    with single_flight(store, KEY, lambda values: None) as flight:
        flight.attempt = written(store)
        kept = -1
        for content in (b"early", b"later", b"last"):
            (flight.attempt / STATE).write_bytes(zipped(content))
            kept = store.keep_state(flight.attempt, kept)
            assert states(store) == [f"state-{kept}.pt", "state.json"]
    assert len(states(store)) == 2
    with single_flight(store, KEY, lambda values: None) as flight:
        flight.attempt = written(store)
        path = store.resumable(KEY)
        assert path is not None
        assert path.read_bytes() == zipped(b"last")
        (flight.attempt / STATE).write_bytes(zipped(b"of the second attempt"))
        store.keep_state(flight.attempt, -1)
        assert len(states(store)) == 4
        entry = finish(store, flight.attempt)
    assert states(store) == []
    assert open_store(server.address("dropped"), tmp_path / "b").find(KEY) == entry


@pytest.mark.parametrize("fault", [ObjectError("the server keeps failing"), FileNotFoundError()])
def test_a_state_that_cannot_be_deleted_harms_nothing(server: Server, tmp_path: Path, fault: OSError) -> None:
    store = open_store(server.address(f"stays-{type(fault).__name__}"), tmp_path / "a")
    folder = written(store)
    (folder / STATE).write_bytes(zipped(b"early"))
    kept = store.keep_state(folder, -1)
    (folder / STATE).write_bytes(zipped(b"later"))
    with mock.patch.object(type(store.bucket), "remove", side_effect=fault):
        assert store.keep_state(folder, kept) > kept
    path = Store(tmp_path / "b", store.bucket).resumable(KEY)
    assert path is not None
    assert path.read_bytes() == zipped(b"later")


def test_removing_what_is_not_there_is_no_error(server: Server) -> None:
    bucket = open_bucket(server.address("removed"))
    bucket.write("a", b"1")
    for _ in range(2):
        bucket.remove("a")
    assert bucket.read("a") is None


# ------------------------------------------------------------------------------------- the copy of a study's folder


def copy_of(folder: Path, server: Server, prefix: str, **files: str) -> Publisher:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return Publisher(folder, server.address(prefix))


def test_a_copy_that_was_fetched_in_part_is_fetched_again(server: Server, tmp_path: Path) -> None:
    """The connection fails while the third of four files is read; `study.json`, which makes it a study, comes last."""
    here = copy_of(tmp_path / "a", server, "half", study_json="{}", a_txt="a" * 9, table_md="table", z_txt="z")
    with here.alone():
        here.send()
    there, real, reads = copy_of(tmp_path / "b", server, "half"), Bucket.read, list[str]()

    def reading(bucket: Bucket, name: str) -> bytes | None:
        reads.append(name)
        if reads.count(name) and name == "z.txt":
            raise ObjectError("z.txt cannot be read")
        return real(bucket, name)

    with (
        mock.patch.object(Bucket, "read", reading),
        pytest.raises(StoreError, match=r"z.txt cannot be read"),
        there.alone(),
    ):
        raise AssertionError
    assert not (there.folder / "study.json").exists()
    with there.alone():
        fetched = {path.name: path.read_text() for path in there.folder.iterdir()}
    assert fetched == {"study.json": "{}", "a.txt": "a" * 9, "table.md": "table", "z.txt": "z"}


def test_a_file_of_a_copy_that_comes_in_part_is_an_error(server: Server, tmp_path: Path) -> None:
    here = copy_of(tmp_path / "a", server, "part", study_json="{}", table_md="table")
    here.send()
    there, real = copy_of(tmp_path / "b", server, "part"), Bucket.read

    def reading(bucket: Bucket, name: str) -> bytes | None:
        content = real(bucket, name)
        return content[:3] if content and name == "table.md" else content

    with (
        mock.patch.object(Bucket, "read", reading),
        pytest.raises(StoreError, match=r"://pretune/part/table\.md cannot be read: 3 of 5 bytes"),
        there.alone(),
    ):
        raise AssertionError
    assert not list(there.folder.iterdir())


def test_two_runs_do_not_send_to_one_copy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is on another node and lives: it renews its lease. Times are a fifteenth of the real ones; a lease then
    outlives a renewal that the proxy delays."""
    for name in ("LEASE_SECONDS", "BEAT_SECONDS", "WAIT_SECONDS"):
        for module in ("pretune.store.lease", "pretune.store.mirror"):
            if hasattr(sys.modules[module], name):
                monkeypatch.setattr(f"{module}.{name}", getattr(sys.modules[module], name) / 15)
    here, there = (copy_of(tmp_path / name, server, "twice", study_json=name) for name in "ab")
    said: list[str] = []
    with here.alone():
        here.send()
        monkeypatch.setattr("pretune.store.lease._host", lambda: "another pid:[1]")
        with (
            pytest.raises(StoreError, match=r"sends its results to ..://pretune/twice"),
            there.alone(said.append),
        ):
            there.send()
    assert len(said) == 1
    assert "waiting up to 5 s" in said[0]
    with there.alone(said.append):  # the first has ended and given it back
        there.send()
    assert len(said) == 1
    assert open_bucket(server.address("twice")).read("study.json") == b"b"


def test_a_longer_training_finds_the_shorter_one_of_another_node(server: Server, tmp_path: Path) -> None:
    first, second = two(server, tmp_path, "lengths")
    finish(first, written(first, continue_pt=b"end"))
    first.note_length("series", 4, KEY)
    path = second.shorter("series", 8)
    assert path is not None
    assert path.name == CONTINUE
    assert path.read_bytes() == b"end"
    assert second.shorter("series", 4) is None


def test_what_is_gone_from_the_bucket_is_made_again(server: Server, tmp_path: Path) -> None:
    first, second = two(server, tmp_path, "gone")
    entry = finish(first, written(first))
    assert second.find(KEY) == entry
    first.remove(KEY)
    with pytest.raises(FileNotFoundError, match=r"is gone from ..://pretune/gone; run again"):
        second.file(entry, "model.safetensors")
    assert second.find(KEY) is None


def test_a_store_in_a_bucket_is_measured_and_cleaned(server: Server, tmp_path: Path) -> None:
    place = server.address("clean")
    store = open_store(place, tmp_path / "cache")
    left = written(store, b"old")
    (left / STATE).write_bytes(zipped(b"state"))
    store.keep_state(left, -1)
    entry = finish(store, written(store))
    assert list(store.unfinished()) == [left]
    text = io.StringIO()
    print_usage(place, tmp_path / "cache", Console(file=text, width=200))
    assert "unfinished" in text.getvalue()
    collect(place, tmp_path / "cache", tmp_path, False, True, Console(file=text, width=200))
    assert "deleted 1 unfinished attempt" in text.getvalue()
    fresh = open_store(place, tmp_path / "other")
    assert list(fresh.unfinished()) == []
    assert fresh.find(KEY) == entry


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("s3://nowhere/x?{o}", r"the store s3://nowhere/x/.probe cannot be written: there is no such bucket"),
        ("s3://key:s3cret@pretune/x", r"the store s3://\*\*\*: keys do not belong in an address"),
        ("ftp://pretune/x", "write s3://bucket/folder or gs://bucket/folder"),
        ("s3://pretune/x?secret_key=1", r"after the \? only region, scheme, endpoint_override are known"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(tmp_path: Path, place: str, sentence: str) -> None:
    with served() as (port, _), pytest.raises(StoreError, match=sentence) as caught:
        open_store(place.format(o=address(port).split("?")[1]), tmp_path).check()
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_one_sentence_on_googles_storage_too(tmp_path: Path) -> None:
    with gcs.served() as (port, _), pytest.raises(StoreError) as caught:
        open_store(gcs.address(port).replace("//pretune/", "//nowhere/"), tmp_path).check()
    said = "the store gs://nowhere/store/.probe cannot be written: there is no such bucket; choose another with --store"
    assert str(caught.value) == said


def test_an_unwritable_bucket_is_one_sentence(tmp_path: Path) -> None:
    with served("denied") as (_, proxy), pytest.raises(StoreError, match="access denied"):
        open_store(address(proxy.port), tmp_path).check()


@pytest.mark.parametrize("option", ["--store", "--out"])
def test_run_names_a_bucket_that_cannot_be_written_and_starts_nothing(
    pretune: Any, tiny: dict[str, Any], tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.run.start_ray", lambda *arguments, **named: pytest.fail("Ray was started"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    with served("denied") as (_, proxy):
        place = address(proxy.port, "x")
        code, _, err = pretune("run", tmp_path / "tiny.yaml", "--root", tmp_path / "runs", option, place)
    what = "the store" if option == "--store" else "the output folder"
    assert (code, err) == (
        2, f"error: {what} s3://pretune/x/.probe cannot be written: access denied; choose another with {option}\n"
    )  # fmt: skip


RARE = ("ok",) * 9 + ("error",) + ("ok",) * 9 + ("cut",) + ("slow",)


@pytest.mark.ray
@pytest.mark.parametrize("fates", [RARE, pytest.param(FATES, marks=pytest.mark.slow)], ids=["rare", "frequent"])
def test_a_study_on_a_faulty_object_store_ends_in_the_local_table(
    fates: tuple[str, ...], tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and results through the proxy; then another node, with empty disks, goes on from the copy.

    No key, token or password is in anything that was written, here, in the bucket or in Ray's logs.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as ray, served(*fates) as server:  # names of sockets must be short
        monkeypatch.setenv("RAY_TMPDIR", ray)
        _whole_study(server, tiny, tmp_path)
        objects = _objects_of(server[0])
        files = {str(path): path.read_bytes() for top in (tmp_path, Path(ray)) for path in _files(top)}
    assert len(objects) > 20
    assert any("/logs/" in name and content for name, content in files.items())
    token = os.environ["RAY_AUTH_TOKEN"]  # that the study's cluster had; Ray reads it once in the life of a process
    for secret in (SECRET, token):
        assert [name for name, content in (objects | files).items() if secret.encode() in content] == []


def _files(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]


def _objects_of(port: int) -> dict[str, bytes]:
    everything = open_bucket(address(port, "study"))
    return {name: everything.read(name) or b"" for name in everything.sizes()}


def _whole_study(server: tuple[int, Proxy], tiny: dict[str, Any], tmp_path: Path) -> None:
    port, proxy = server
    console = Console(file=io.StringIO())
    tables = []
    for where in ("here", "there", "elsewhere"):
        root = tmp_path / where
        remote = where != "here"
        options = Options(
            root / "tiny",
            address(proxy.port, "study/store") if remote else root / "store",
            root / "cache",
            parallel=2,
            results=address(proxy.port, "study/out") if remote else None,
        )
        ended = run_study(from_dict(tiny), options, console)
        assert (ended.exit_code, ended.failed) == (0, ())
        assert (ended.trained, ended.reused) == ((0, 6) if where == "elsewhere" else (6, 0))
        tables.append(pd.read_parquet(root / "tiny" / "results.parquet"))
        assert (root / "tiny" / "best" / "model.safetensors").exists()
    costs = tables[0].metric.str.startswith("cost/")
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0][~costs], table[~costs])
    copy = open_bucket(address(port, "study/out"))
    assert json.loads(copy.read("study.json") or b"{}")["study"] == "tiny"
    assert pd.read_parquet(io.BytesIO(copy.read("results.parquet") or b"")).equals(tables[2])
    assert proxy.met["cut"] > 0
    assert proxy.met["error"] > 0
