"""Downloads from a server on this machine that breaks off, answers late, or knows no ranges."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pretune.trainables.data.errors import DataError
from pretune.trainables.data.sets import download
from pretune.trainables.data.sets.catalogue import Download
from pretune.trainables.data.sets.download import fetch, unpack
from pretune.trainables.data.sets.table import ABOUT

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@contextmanager
def server(cut_after: int | None = None, ranges: bool = True, code: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Serves CONTENT under any name; hangs up after `cut_after` bytes of every answer. Yields address and ranges."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Range", ""))
            start = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] and ranges else 0
            if start >= len(CONTENT):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.end_headers()
                return
            self.send_response(code if code != 200 else (206 if start else 200))
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][:cut_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/set.bin", asked
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def test_a_whole_file_is_fetched_once_and_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    with server() as (url, asked):
        for _ in range(2):
            path = fetch(Download(url, MD5), tmp_path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert asked == [""]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_connection_that_breaks_is_continued_where_it_broke(tmp_path: Path) -> None:
    """100,000 bytes an answer: three answers, the second and third from where the one before ended."""
    with server(cut_after=100_000) as (url, asked):
        path = fetch(Download(url, MD5), tmp_path, first_wait=0.0)
    assert path.read_bytes() == CONTENT
    assert asked == ["", "bytes=100000-", "bytes=200000-"]


def test_what_an_earlier_run_left_is_continued(tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:250_000])
    with server() as (url, asked):
        path = fetch(Download(url, MD5), tmp_path)
    assert path.read_bytes() == CONTENT
    assert asked == ["bytes=250000-"]
    assert not (tmp_path / "set.bin.part").exists()


def test_a_part_that_is_already_whole_is_taken(tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    with server() as (url, _):
        assert fetch(Download(url, MD5), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1000)
    with server(ranges=False) as (url, _):
        # It answers 206 only to a range it honours; here the whole file comes with code 200.
        assert fetch(Download(url, MD5), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_goes(tmp_path: Path) -> None:
    with server() as (url, _), pytest.raises(DataError, match=f"md5 is {MD5}, published is 0000"):
        fetch(Download(url, "0000"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_checksum_of_forty_digits_is_a_sha1(tmp_path: Path) -> None:
    with server() as (url, _):
        assert fetch(Download(url, hashlib.sha1(CONTENT).hexdigest()), tmp_path).read_bytes() == CONTENT
        with pytest.raises(DataError, match="the file's sha1 is"):
            fetch(Download(url, "0" * 40), tmp_path / "other")


def test_what_is_fetched_has_a_published_checksum_but_for_one_archive() -> None:
    unknown = [part.url for about in ABOUT.values() for part in about.downloads if part.checksum is None]
    assert [url.rsplit("/", 1)[1] for url in unknown] == ["trimaps.tgz"]


def test_a_file_that_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    with server(code=404) as (url, asked), pytest.raises(DataError, match="answers 404"):
        fetch(Download(url, MD5), tmp_path)
    assert len(asked) == 1


def test_a_server_that_never_gets_on_is_given_up_with_what_to_do(tmp_path: Path) -> None:
    with server(cut_after=0) as (url, asked), pytest.raises(DataError, match="run the same command"):
        fetch(Download(url, MD5), tmp_path, first_wait=0.0)
    assert len(asked) == 6


def test_nobody_at_the_address(tmp_path: Path) -> None:
    with server() as (url, _):
        pass
    told: list[str] = []
    with pytest.raises(DataError, match=r"cannot be fetched .*run the same command") as caught:
        fetch(Download(url, None), tmp_path, first_wait=0.0, say=told.append)
    assert f"or fetch it by hand, put it at {tmp_path / 'set.bin'}, and run" in str(caught.value)
    assert [text[-24:] for text in told] == ["rying again in 0 s (2 of 3)"[-24:], "rying again in 0 s (3 of 3)"[-24:]]


def test_what_was_fetched_by_hand_is_taken(tmp_path: Path) -> None:
    with server() as (url, asked):
        (tmp_path / "set.bin").write_bytes(CONTENT)
        assert fetch(Download(url, MD5), tmp_path) == tmp_path / "set.bin"
    assert asked == []


def test_a_server_that_does_not_answer_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to connect is short; once connected, bytes may take longer."""
    seen: list[float | None] = []

    def connect(address: object, timeout: float | None = None, *rest: object) -> socket.socket:
        seen.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(download.http.client.socket, "create_connection", connect)
    with pytest.raises(DataError, match="timed out"):
        fetch(Download("http://192.0.2.1/set.bin", None), tmp_path, first_wait=0.0)
    assert seen == [download.CONNECT] * download.UNREACHED
    assert download.CONNECT * download.UNREACHED + 3 < 20  # seconds, waiting included


@pytest.mark.parametrize("kind", ["set.tgz", "set.tar", "set.zip"])
def test_archives_are_unpacked(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / kind
    if kind.endswith("zip"):
        with zipfile.ZipFile(archive, "w") as files:
            files.writestr("images/a.txt", "hello")
    else:
        with tarfile.open(archive, "w:gz" if kind.endswith("tgz") else "w") as members:
            info = tarfile.TarInfo("images/a.txt")
            info.size = 5
            members.addfile(info, io.BytesIO(b"hello"))
    unpack(archive, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "a.txt").read_text() == "hello"


def test_what_is_no_archive_is_put_there(tmp_path: Path) -> None:
    (tmp_path / "labels.mat").write_bytes(b"MATLAB")
    unpack(tmp_path / "labels.mat", tmp_path / "out")
    assert (tmp_path / "out" / "labels.mat").read_bytes() == b"MATLAB"


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as members:
        members.addfile(tarfile.TarInfo("../escaped.txt"))
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "bad.tar", tmp_path / "out")
    assert not (tmp_path / "escaped.txt").exists()
