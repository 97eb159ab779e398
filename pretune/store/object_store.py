"""A prefix of an object store (S3, GCS): whole small objects, files up and down, with retries.

What an object store lacks (a rename, a conditional write) nothing here pretends to have; `store.py` says how entries
are written so that they are whole or not there. Keys come from where the cloud's own tools look for them (environment,
~/.aws, the node's role), never from the address.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from pyarrow import ArrowInvalid, fs

from pretune.search_spaces.errors import UsageError

SCHEMES = ("s3", "gs")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # never a `:`, which is what `key:secret/@` begins with
OPTIONS = ("region", "scheme", "endpoint_override")  # what may follow a `?` in an address
VALUE = re.compile(r"[A-Za-z0-9.:/_\[\]-]+")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
CHUNK = 1 << 22  # bytes
# Times that an empty answer is asked for: a connection cut within the head of an answer gives an empty object or list
# and no error (pyarrow 26, measured with tests/pretune/s3.py).
LOOKS = 2
# Trying again does not help against these (AWS's and Google's words for them).
PERMANENT = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID"
    "|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|Bucket .* not found|credentials",
    re.IGNORECASE,
)
# Google forgets an upload under way: 404, and the upload is to begin anew. Any other 404 of a write: no such bucket.
LOST_UPLOAD = re.compile("UploadChunk|QueryResumableUpload")
T = TypeVar("T")


class ObjectError(UsageError, OSError):
    """An object store cannot be used: one sentence."""


class Objects(Protocol):
    """Interface of an object store, as the store needs it. Names are `/`-separated and relative to the prefix."""

    @property
    def url(self) -> str: ...
    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, content: bytes) -> None: ...
    def upload(self, path: Path, name: str) -> None: ...
    def download(self, name: str, path: Path, about: dict[str, Any]) -> None: ...
    def sizes(self, folder: str = "") -> dict[str, int]: ...
    def remove(self, name: str) -> None: ...
    def delete(self, folder: str) -> None: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class Bucket:
    """Objects below a prefix."""

    url: str
    files: fs.FileSystem
    prefix: str  # bucket/folder
    pauses: tuple[float, ...] = PAUSES

    def read(self, name: str) -> bytes | None:
        """A small object, or None where there is none. An empty answer is doubted: see `LOOKS`."""

        def once() -> bytes | None:
            try:
                with self.files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

        for _ in range(LOOKS):
            if (content := self._retried("read", name, once)) != b"":
                break
        return content

    def write(self, name: str, content: bytes) -> None:
        """A small object, in one request. A reader sees the old, the new, or the new one cut at the size of the old."""

        def once() -> None:
            with self.files.open_output_stream(self._path(name)) as stream:
                stream.write(content)

        self._retried("written", name, once)

    def upload(self, path: Path, name: str) -> None:
        """A file. One that is cut off looks whole in S3: only what a marker describes counts."""

        def once() -> None:
            with path.open("rb") as file, self.files.open_output_stream(self._path(name)) as stream:
                while block := file.read(CHUNK):
                    stream.write(block)

        self._retried("written", name, once)

    def download(self, name: str, path: Path, about: dict[str, Any]) -> None:
        """Fetch an object of known size and sha256; `path` is the whole file or is not there.

        Raises FileNotFoundError where there is no such object, ObjectError where it stays another than described.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")

        def once() -> None:
            digest = hashlib.sha256()
            with self.files.open_input_stream(self._path(name)) as stream, temporary.open("wb") as file:
                while block := stream.read(CHUNK):
                    digest.update(block)
                    file.write(block)
            if (temporary.stat().st_size, digest.hexdigest()) != (about["size"], about["sha256"]):
                raise OSError("it is damaged: its size or sha256 differs from the recorded one")

        try:
            self._retried("read", name, once)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object below `folder`, by its name relative to the prefix."""
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        for _ in range(LOOKS):
            if found := self._retried("listed", folder, lambda: self.files.get_file_info(selector)):
                break
        start = len(self.prefix) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def remove(self, name: str) -> None:
        """One object; that it is not there is no error."""

        def once() -> None:
            try:
                self.files.delete_file(self._path(name))
            except FileNotFoundError:
                return

        self._retried("deleted", name, once)

    def delete(self, folder: str) -> None:
        """Everything below `folder`; what is not there is no error."""

        def once() -> None:
            try:
                self.files.delete_dir(self._path(folder))
            except FileNotFoundError:
                return

        self._retried("deleted", folder, once)

    def check(self) -> None:
        """Raises ObjectError unless an object can be written and read back."""
        token = uuid.uuid4().hex.encode()
        quick = Bucket(self.url, self.files, self.prefix, self.pauses[:2])
        quick.write(".probe", token)
        quick.read(".probe")

    def _path(self, name: str) -> str:
        return f"{self.prefix}/{name}" if name else self.prefix

    def _retried(self, verb: str, name: str, once: Callable[[], T]) -> T:
        """Call again, after longer and longer pauses, what fails for a reason that may pass."""
        for pause in (*self.pauses, None):
            try:
                return once()
            except FileNotFoundError as error:
                if verb == "read":
                    raise
                if pause is None or not LOST_UPLOAD.search(str(error)):
                    raise ObjectError(f"{self.url}/{name} cannot be {verb}: {reason_of(error)}") from None
            except (OSError, ArrowInvalid) as error:  # ArrowInvalid: an answer of Google's that was cut
                if pause is None or PERMANENT.search(str(error)):
                    raise ObjectError(f"{self.url}/{name} cannot be {verb}: {reason_of(error)}") from None
            time.sleep(pause)
        raise AssertionError  # the last pause is None


def is_address(place: str | Path) -> bool:
    """Whether it names an object store and not a folder."""
    return "://" in str(place)


def parse(url: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, bucket, path and options of an address; nothing is asked.

    Raises ObjectError for an address that is none or that holds keys. A secret may stand anywhere in a mistyped
    address, and hold a `/`, so what is not known to be harmless is not shown.
    """
    try:
        parts = urlsplit(url)
        given = parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        raise ObjectError("the address cannot be read; write s3://bucket/folder or gs://bucket/folder") from None
    if parts.scheme not in SCHEMES:
        raise ObjectError("***://*** is not an object store's address; write s3://bucket/folder or gs://bucket/folder")
    if "@" in unquote(url):
        raise ObjectError(
            f"{parts.scheme}://***: keys do not belong in an address; set AWS_ACCESS_KEY_ID and its secret, or a role"
        )
    if not BUCKET.fullmatch(parts.netloc) or parts.fragment:
        raise ObjectError(f"{parts.scheme}://*** is no address of a bucket; write {parts.scheme}://bucket/folder")
    if given.keys() - set(OPTIONS):
        raise ObjectError(f"{parts.scheme}://{parts.netloc}: after the ? only {', '.join(OPTIONS)} are known")
    options = {name: values[-1] for name, values in given.items()}
    for name, value in options.items():
        if not VALUE.fullmatch(value):
            raise ObjectError(f"{parts.scheme}://{parts.netloc}: what is given as {name} cannot be used")
    return parts.scheme, parts.netloc, parts.path, options


def open_bucket(url: str) -> Bucket:
    """The objects below `s3://bucket/prefix` or `gs://bucket/prefix`.

    `?endpoint_override=host:port&scheme=http&region=...` names another server of the same protocol; AWS_ENDPOINT_URL
    does, too. Raises ObjectError for an address that is none.
    """
    scheme, bucket, path, options = parse(url)
    prefix = f"{bucket}{path}".rstrip("/")
    shown = f"{scheme}://{prefix}"
    try:
        return Bucket(shown, _google(options) if scheme == "gs" else _amazon(bucket, options), prefix)
    except (OSError, ValueError) as error:
        raise ObjectError(f"{shown} cannot be opened: {reason_of(error)}") from None


def _amazon(bucket: str, options: dict[str, str]) -> fs.FileSystem:
    endpoint = options.get("endpoint_override") or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")
    )
    scheme = options.get("scheme", "https")
    if endpoint and "://" in endpoint:
        scheme, endpoint = endpoint.rstrip("/").split("://")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    # allow_delayed_open: a small object is one request, which is what makes a marker atomic.
    return fs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint,
        scheme=scheme,
        connect_timeout=5,
        request_timeout=20,
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _google(options: dict[str, str]) -> fs.FileSystem:
    from datetime import timedelta

    endpoint, scheme = options.get("endpoint_override"), options.get("scheme", "https")
    return fs.GcsFileSystem(
        anonymous=endpoint is not None,  # a test server
        endpoint_override=endpoint,
        scheme=scheme,
        retry_time_limit=timedelta(seconds=20),
    )


def reason_of(error: BaseException) -> str:
    """Short words for what pyarrow tells at length."""
    text = " ".join(str(error).split())
    known = {
        "ACCESS_DENIED|HTTP status 403|PERMISSION_DENIED": "access denied",
        "NO_SUCH_BUCKET|bucket does not exist|Bucket .* not found|Path does not exist": "there is no such bucket",
        "NOT_FOUND.*=CreateResumableUpload,": "there is no such bucket",
        "INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|UNAUTHENTICATED": "the access key is not known there",
        "SIGNATURE_DOES_NOT_MATCH": "the secret key does not fit the access key",
        "NETWORK_CONNECTION|curlCode|Couldn't connect|Connection refused": "it cannot be reached",
        "SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status 5": "the server keeps failing",
    }
    return next((words for pattern, words in known.items() if re.search(pattern, text)), text[:300])
