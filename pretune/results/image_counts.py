"""Pixel counts of confirmed fine-tunings on single test images, from the store into one file beside the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretune.analysis.load.counts import Counts
from pretune.search.replicates import ReplicatePlan
from pretune.store.store import Entry, Store
from pretune.trainables.files import NOTES, TEST_IMAGES

NAME = "test_images.parquet"
_SCHEMA = pa.schema([
    ("fingerprint", pa.string()), ("classes", pa.list_(pa.string())),
    ("images", pa.list_(pa.int64())), ("counts", pa.list_(pa.int64())),
])  # fmt: skip


def write_test_images(uses: Sequence[ReplicatePlan], store: Store, folder: Path) -> None:
    """test_images.parquet: one row per confirmed fine-tuning, written one at a time, as many may not fit into memory.

    `images` (N,) are positions in the data set, `counts` (N, classes, 3), flat, are the right, true and predicted
    pixels of each. Stage runs that were stored before these were counted are left out.
    """
    found = {use.stages["finetune"].fingerprint for use in uses if use.phase == "confirm" and "finetune" in use.stages}
    temporary = folder / f".{NAME}.tmp"
    with pq.ParquetWriter(temporary, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for fingerprint in sorted(found):
            entry = store.find(fingerprint)
            if entry is not None and (kept := read_counts(store, entry)) is not None:
                row = {"classes": list(kept.classes), "images": kept.images, "counts": kept.counts.ravel()}
                writer.write_table(pa.Table.from_pylist([{"fingerprint": fingerprint} | row], _SCHEMA))
    temporary.replace(folder / NAME)


def read_counts(store: Store, entry: Entry) -> Counts | None:
    """Pixel counts of one fine-tuning; None where it was stored before single images were counted."""
    if TEST_IMAGES not in entry.files:
        return None
    classes = json.loads(store.file(entry, NOTES).read_text(encoding="utf-8"))["classes"]
    with np.load(store.file(entry, TEST_IMAGES)) as kept:
        return Counts(tuple(classes), kept["images"], kept["counts"])
