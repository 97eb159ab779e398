"""Seconds and requests until a driver knows what a bucket of many finished stage runs holds, 30 ms away.

    python -m benchmarks.bucket_start --entries 2000

The server is moto's, on this machine, behind the delaying proxy of the tests; its own time for a listing is in it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pretune"))
from s3 import Proxy, address, served  # noqa: E402  # of the tests

from pretune.store.index import look  # noqa: E402
from pretune.store.lookup import find_in  # noqa: E402
from pretune.store.store import DONE, Entry, Store, marker_of, open_store  # noqa: E402

METRICS = {f"val/jaccard/class {i}": 0.5 for i in range(40)}


def fill(entries: int) -> list[str]:
    """Put so many entries of two objects into moto's own memory; their fingerprints."""
    from moto.backends import get_backend

    backend = get_backend("s3")["123456789012"]["global"]
    keys = [f"{number:032x}" for number in range(entries)]
    for key in keys:
        files = {"model.safetensors": {"size": 1, "sha256": "0" * 64}}
        entry = Entry(key, "a" * 32, "finetune", "finished", "", METRICS, 1.0, files, {"order": {"settings": METRICS}})
        backend.put_object("pretune", f"store/{key}/{'a' * 32}/model.safetensors", b"x")
        backend.put_object("pretune", f"store/{key}/{DONE}", marker_of(entry).encode())
    return keys


def measure(name: str, store: Store, keys: list[str], proxy: Proxy, listed: bool) -> None:
    before, began = sum(proxy.met.values()), time.perf_counter()
    find = find_in(store, listing=look(store) if listed else None)
    found = sum(find(key) is not None for key in keys)
    seconds, requests = time.perf_counter() - began, sum(proxy.met.values()) - before
    print(f"{name:28} {found} of {len(keys)} found, {requests} requests, {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--one-by-one", type=int, default=100, help="Entries that are asked for one by one.")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server would print every request
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    with served("far") as (_, proxy), tempfile.TemporaryDirectory() as folder:
        keys = fill(given.entries)
        place = address(proxy.port)
        one = open_store(place, Path(folder) / "one")
        measure("one by one", one, keys[: given.one_by_one], proxy, False)
        measure("one by one, none there", one, [f"{i:032x}f" for i in range(given.one_by_one)], proxy, False)
        for name, cache in (("no index", "a"), ("index, empty cache", "b"), ("warm cache", "b")):
            measure(name, open_store(place, Path(folder) / cache), keys, proxy, True)


if __name__ == "__main__":
    main()
