"""A real S3 server on this machine (moto's), and a proxy before it that errs, dawdles and cuts connections."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
DELAYS = {"slow": 0.3, "far": 0.03}  # seconds; a bucket in another region is 30 ms away
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def answer(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: "
    return head + str(len(body)).encode() + b"\r\n\r\n" + body


class Proxy:
    """Forwards TCP to `target`; every request meets the next of `fates`: ok, slow, far, cut, error or denied.

    cut: the first half of the first piece of the answer goes through, then the connection ends.
    """

    def __init__(self, target: int, fates: Iterator[str]) -> None:
        self.target, self.fates, self.met = target, fates, Counter[str]()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.create_connection(("127.0.0.1", self.target))
        fate = ["ok"]

        def back() -> None:
            with suppress(OSError):
                while data := upstream.recv(65536):
                    if fate[0] == "cut":
                        client.sendall(data[: len(data) // 2])
                        break
                    client.sendall(data)
            end()

        def end() -> None:
            for end in (client, upstream):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=back, daemon=True).start()
        with suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(METHODS):
                    fate[0] = next(self.fates)
                    self.met[fate[0]] += 1
                if fate[0] in ("error", "denied"):
                    status, body = (b"503 Slow Down", SLOW_DOWN) if fate[0] == "error" else (b"403 Forbidden", REFUSED)
                    client.sendall(answer(status, body))
                    break
                time.sleep(DELAYS.get(fate[0], 0.0))
                upstream.sendall(data)
        end()
        client.close()
        upstream.close()


@contextmanager
def served(*fates: str) -> Iterator[tuple[int, Proxy]]:
    """An S3 server with an empty bucket `pretune`: its port, and a proxy before it whose fates recur."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = Proxy(port, itertools.cycle(fates or ("ok",)))
    try:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="tester",
            aws_secret_access_key="tester-secret",
        )
        client.create_bucket(Bucket="pretune")
        yield port, proxy
    finally:
        proxy.close()
        server.stop()


def address(port: int, prefix: str = "store") -> str:
    return f"s3://pretune/{prefix}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
