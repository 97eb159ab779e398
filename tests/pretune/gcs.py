"""A server on this machine that speaks Google's storage API (gcp-storage-emulator), behind the same proxy as S3's."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from s3 import Proxy


@contextmanager
def served(*fates: str) -> Iterator[tuple[int, Proxy]]:
    """A server with an empty bucket `pretune`: its port, and a proxy before it whose fates recur."""
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    proxy = Proxy(port, itertools.cycle(fates or ("ok",)))
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="pretune")
    server.start()
    try:
        yield port, proxy
    finally:
        proxy.close()
        server.stop()


def address(port: int, prefix: str = "store") -> str:
    return f"gs://pretune/{prefix}?endpoint_override=127.0.0.1:{port}&scheme=http"
