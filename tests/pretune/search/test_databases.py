"""Searches kept in a journal file, SQLite and a real PostgreSQL server: killed, shared, watched, and out of reach."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from optuna.storages import BaseStorage
from rich.console import Console

from pretune.cli import main
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.results import tables
from pretune.run import Options, run_study
from pretune.search import program
from pretune.search.optuna_study import close_storage, open_storage
from pretune.search.replicates import Run
from pretune.search_spaces.resolve import from_dict

STUDY: dict[str, Any] = {
    "study": "searched",
    "data": {"d": {"dataset": "scenes", "images": 40}},
    "finetune": {"data": "d", "epochs": 3, "optimizer": {"lr": {"log_uniform": [1e-4, 1e-1]}}},
    "factors": {"freeze": {"finetune.freeze": ["none", "encoder"]}},
    "seeds": {"search": 3, "report": 1},
    "tune": {"trials": 8, "batch": 4, "startup": 4, "racing": {"first": 2}},
}
PASSWORD = "not-to-be-shown"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ------------------------------------------------------------------------------------------------------- the server


@dataclass
class Server:
    """A PostgreSQL server of this test alone."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = PASSWORD, name: str = "postgres") -> str:
        return f"postgresql+psycopg://tester:{password}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        words = ["postgres", "-D", str(self.folder / "db"), "-h", "127.0.0.1", "-p", str(self.port)]
        words += ["-k", str(self.folder), "-c", "fsync=off"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder, **self.user())
        until(self.answers, "PostgreSQL does not start")

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill() if self.process.poll() is None else None
        self.process.wait()

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url().replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    @staticmethod
    def user() -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def until(happened: Callable[[], bool], else_say: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, else_say
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not shutil.which("initdb") or not shutil.which("postgres"):
        pytest.skip("no initdb and postgres on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="pretune-postgres-"))  # pytest's own folders are closed to other users
    secret = folder / "password"
    secret.write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, secret):
            shutil.chown(path, "nobody", "nogroup")
    command = ["initdb", "-D", str(folder / "db"), "-U", "tester", "--auth=scram-sha-256", f"--pwfile={secret}"]
    subprocess.run(
        [*command, "--locale=C", "-E", "UTF8", "--no-sync"], check=True, capture_output=True, **Server.user()
    )
    found = Server(folder, free_port())
    found.start()
    yield found
    found.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where searches are kept: empty at the start of each test."""
    if request.param == "journal":
        yield tmp_path / "out" / "optuna.journal"
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/searches.db"
    else:
        import psycopg

        server, name = request.getfixturevalue("server"), f"d{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
        with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as open_one:
            open_one.execute(f"create database {name}")  # type: ignore[arg-type]
        yield server.url(name=name)


# -------------------------------------------------------------------------------------------------- without training


class KilledError(Exception):
    pass


def drive(
    place: Path | str | None, prefix: str = "", kill_at: int | None = None, halfway: Callable[[], None] = lambda: None
) -> list[Any]:
    """The study with invented scores; every trial and result of it."""
    with opened(place) as storage:
        run = Run(from_dict(copy.deepcopy(STUDY)), lambda data: "digest", storage, search_prefix=prefix)
        scheduler = Scheduler(lambda key: None, 0)
        scheduler.start(program.start(run))
        for count, stage in enumerate(iter(scheduler.take, None)):
            if count == kill_at:
                raise KilledError
            if count == 10:
                halfway()
            value = int.from_bytes(hashlib.sha256(stage.fingerprint.encode()).digest()[:4], "big") / 2**32
            scheduler.complete(stage, Outcome("finished", {"val/jaccard": value, "test/jaccard": value}))
        assert scheduler.finished
    trials = [(one.search, one.index, tuple(one.values.items()), one.result) for one in run.trials]
    return sorted(trials, key=lambda trial: trial[:2])


@contextlib.contextmanager
def opened(place: Path | str | None) -> Iterator[BaseStorage]:
    storage = open_storage(place)
    try:
        yield storage
    finally:
        close_storage(storage)


def test_a_search_killed_at_any_point_goes_on_the_same_in_any_storage(place: Path | str) -> None:
    for kill_at in (3, 17, 30):
        with pytest.raises(KilledError):
            drive(place, kill_at=kill_at)
    assert drive(place) == drive(None)


def test_two_studies_in_one_database_do_not_mix(place: Path | str, tmp_path: Path) -> None:
    """Equal files, other folders: the second runs every trial anew and finds no results of the first."""
    study = from_dict(copy.deepcopy(STUDY))
    prefixes = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        prefixes.append(tables.own_name(study, folder))
        assert tables.own_name(study, folder) == prefixes[-1]  # also when it is run again
    with pytest.raises(KilledError):
        drive(place, prefixes[0], kill_at=20)
    second = drive(place, prefixes[1])
    assert drive(place, prefixes[0]) == second == drive(None)
    with opened(place) as storage:
        names = [found.study_name for found in storage.get_all_studies()]
        assert len(names) == 4  # two searches of each study
        assert all(sum(name.startswith(prefix) for name in names) == 2 for prefix in prefixes)
        for found in storage.get_all_studies():
            ended = [one for one in storage.get_all_trials(found._study_id) if one.state.name in ("COMPLETE", "PRUNED")]
            assert sorted(one.user_attrs["pretune:index"] for one in ended) == list(range(8))


def test_the_dashboard_shows_the_searches_while_they_run(place: Path | str, tmp_path: Path) -> None:
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    if not dashboard.exists():
        pytest.skip("no optuna-dashboard beside this Python")
    port = free_port()
    seen: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    process: subprocess.Popen[bytes] | None = None

    def ask() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
            seen[:] = json.load(answer)["study_summaries"]
        for one in seen[:1]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{one['study_id']}") as answer:
                details.update(json.load(answer))
        return bool(details)

    def halfway() -> None:
        nonlocal process
        words = [str(dashboard), str(place), "--host", "127.0.0.1", "--port", str(port)]
        with (tmp_path / "dashboard.log").open("wb") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log)
        until(ask, "optuna-dashboard shows nothing: " + (tmp_path / "dashboard.log").read_text()[-500:])

    try:
        drive(place, "mine/", halfway=halfway)
    finally:
        if process is not None:
            process.kill()
            process.wait()
    names = [one["study_name"] for one in seen]
    assert len(names) == 2
    assert all(name.startswith("mine/finetune freeze=") for name in names)
    assert details["objective_names"] == ["val/jaccard"]
    assert [one["name"] for one in details["union_search_space"]] == ["finetune.optimizer.lr"]


# -------------------------------------------------------------------------------------------------------- real runs


@pytest.mark.ray
def test_a_real_study_gives_the_same_results_from_postgresql_as_from_a_journal(
    server: Server, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The second run runs the same trials, so that everything it needs is in the store."""
    tiny["tune"] = {"trials": 2, "batch": 2, "startup": 1}
    tiny["finetune"] |= {"steps": 2, "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}}}
    tiny["seeds"] = {"search": 1, "report": 1}
    first = Options(tmp_path / "a", tmp_path / "store", tmp_path / "cache", search_storage=server.url())
    ended = run_study(from_dict(tiny), first, Console(file=io.StringIO()))
    assert (ended.exit_code, ended.reused) == (0, 0)
    assert not (tmp_path / "a" / "optuna.journal").exists()
    second = Options(tmp_path / "b", tmp_path / "store", tmp_path / "cache")
    again = run_study(from_dict(tiny), second, Console(file=io.StringIO()))
    assert (again.exit_code, again.trained) == (0, 0)
    frames = [pd.read_parquet(tmp_path / name / "results.parquet") for name in ("a", "b")]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert PASSWORD.encode() not in everything


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql+psycopg://me:not-to-be-shown@127.0.0.1:1/x", "cannot be opened"),
        ("postgresql+psycopg://me:not-to-be-shown@no.such.host.invalid/x", "cannot be opened"),
        ("sqlite:////no/such/folder/x.db", "cannot be opened"),
        ("mongodb://me:not-to-be-shown@127.0.0.1/x", "use one of sqlite, postgresql, mysql"),
        ("searches.db", "is not a database URL; write sqlite:///"),
        ("WRONG PASSWORD", "password authentication failed"),
        ("WRONG NAME", 'database "nowhere" does not exist'),
    ],
)
def test_a_database_out_of_reach_is_one_sentence_without_the_password(
    url: str,
    says: str,
    tiny: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    secret = PASSWORD
    if url.startswith("WRONG"):
        server = request.getfixturevalue("server")
        secret = "mistyped-secret" if url == "WRONG PASSWORD" else PASSWORD
        url = server.url(secret, "nowhere" if url == "WRONG NAME" else "postgres")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny))
    code, words = called(capsys, monkeypatch, "run", file, "--root", tmp_path / "runs", "--search-storage", url)
    assert code == 2
    assert says in words
    assert secret not in words
    assert [line for line in words.splitlines() if line.startswith("error: ")] == words.strip().splitlines()[-1:]
    assert not list((tmp_path / "runs" / "store").glob("*/done.json"))


def called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["pretune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return stop.value.code, out + err
