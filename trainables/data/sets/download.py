"""Fetch a file over HTTP: resumed where it broke off, verified by its checksum, unpacked inside of its folder alone.

Not pooch: it starts from the first byte after every break, and half of the archives here have 0.5 to 50 GB. Nor does it
tell an unreachable server from a slow one. See docs/decisions/dependencies.md.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pretune.trainables.data.errors import DataError
from pretune.trainables.data.sets.catalogue import Download

BLOCK = 1 << 20  # bytes
CONNECT = 5  # s to reach the server
TIMEOUT = 60  # s without a byte
ATTEMPTS = 6  # without progress, before giving up
UNREACHED = 3  # attempts at a server that was never reached
FIRST_WAIT = 1.0  # s, doubled with every attempt

BytesDone = Callable[[int, int | None], None]  # bytes there, bytes in all if the server says
Say = Callable[[str], None]  # takes a sentence: what went wrong, and when it is tried again


def fetch(
    download: Download,
    folder: Path,
    progress: BytesDone | None = None,
    first_wait: float = FIRST_WAIT,
    say: Say | None = None,
) -> Path:
    """The file in `folder`, fetched unless it is there. A partial one, NAME.part, is continued.

    Raises DataError: the address cannot be reached, or the file does not have its checksum. It says what to do by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / PurePosixPath(download.url.split("?")[0]).name
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        _complete(download.url, part, progress, first_wait, say)
        _verify(download, part)
        os.replace(part, target)
    return target


def _complete(url: str, part: Path, progress: BytesDone | None, first_wait: float, say: Say | None) -> None:
    failures, wait, reached = 0, first_wait, False
    by_hand = f"or fetch it by hand, put it at {part.with_suffix('')}, and run the same command again"
    while True:
        before = _size(part)
        try:
            if _continue(url, part, progress):
                return
            error: Exception = OSError("the connection ended before the file did")
            reached = True
        except urllib.error.HTTPError as refused:
            if refused.code in (404, 403, 401, 410):  # waiting does not help
                raise DataError(
                    f"{url} answers {refused.code} {refused.reason}: look for it elsewhere, {by_hand}"
                ) from refused
            error, reached = refused, True
        except (OSError, http.client.HTTPException) as broken:
            error = broken
        reached = reached or _size(part) > before
        failures, wait = (1, first_wait) if _size(part) > before else (failures + 1, wait * 2)
        most = ATTEMPTS if reached else UNREACHED
        reason = getattr(error, "reason", error)
        if failures >= most:
            again = f"to go on from {part}" if reached else "once it can be reached"
            raise DataError(f"{url} cannot be fetched ({reason}): run the same command {again}, {by_hand}") from error
        if say is not None:
            say(f"{url}: {reason}; trying again in {wait:.0f} s ({failures + 1} of {most})")
        time.sleep(wait)


def _continue(url: str, part: Path, progress: BytesDone | None) -> bool:
    """Append what the server still has; whether the file is whole."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = _OPENER.open(request, timeout=CONNECT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start and error.headers.get("Content-Range", "") == f"bytes */{start}":
            return True  # nothing is left to fetch
        raise
    with response:
        resumed = response.status == 206
        total = _total(response, start if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:  # a server that knows no ranges starts over
            while block := response.read1(BLOCK):
                file.write(block)
                if progress is not None:
                    progress(file.tell(), total)
    return total is None or _size(part) == total


class _PatientHTTP(http.client.HTTPConnection):
    """Connects within its time-out, and then waits longer for bytes: urllib has one time-out for both."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(TIMEOUT)


class _PatientHTTPS(http.client.HTTPSConnection):
    """The same, encrypted."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(TIMEOUT)


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PatientHTTP, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PatientHTTPS, req)


_OPENER = urllib.request.build_opener(_HTTPHandler, _HTTPSHandler)


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else start + int(length)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(download: Download, part: Path) -> None:
    if download.checksum is None:
        return
    kind = "sha1" if len(download.checksum) == 40 else "md5"
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if found != download.checksum:
        part.unlink()
        raise DataError(
            f"{download.url}: the file's {kind} is {found}, published is {download.checksum}; it was deleted, run again"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack .tar, .tgz, .tar.gz and .zip; anything else is copied. Nothing leaves `folder`. Raises DataError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as files:  # drops leading slashes and '..' of names by itself
                files.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")  # refuses links and names that lead out of the folder
        else:
            shutil.copy2(archive, folder / archive.name)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}); delete it and fetch it again") from error
