"""Sets far larger than what the stream holds: each image once, and memory that does not grow.

`pytest -s -m slow tests/trainables/data/test_stream_large.py` prints the figures of benchmarks/measurements.md.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretune.search_spaces import schema
from pretune.trainables.data import sources
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.loop import epoch_order

SIDE, BATCH = 8, 500  # px, images
HEADER = np.frombuffer(b"P6 8 8 255\n", np.uint8)
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # raised by Ray of itself


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    from pretune.cluster.tune import start_ray, stop_ray

    start_ray(None, 2)
    yield
    stop_ray()


def shards(root: Path, n: int, rows: int) -> Path:
    """`n` images of 8 px, image i with the bytes of i in its first pixels, in files of `rows`."""
    root.mkdir(parents=True)
    for start in range(0, n, rows):
        files = np.zeros((min(rows, n - start), len(HEADER) + 3 * SIDE**2), np.uint8)
        files[:, : len(HEADER)] = HEADER
        numbers = np.arange(start, start + len(files), dtype=np.uint32)
        files[:, len(HEADER) : len(HEADER) + 4] = numbers[:, None].view(np.uint8)
        offsets = np.arange(len(files) + 1, dtype=np.int32) * files.shape[1]
        cells = pa.BinaryArray.from_buffers(
            pa.binary(), len(files), [None, pa.py_buffer(offsets), pa.py_buffer(files.tobytes())]
        )
        pq.write_table(pa.table({"image": cells}), root / f"{start:08d}.parquet", row_group_size=256)
    return root


def numbers_in(pixels: np.ndarray) -> np.ndarray:
    """The index that `shards` wrote into each image (B, 8, 8, 3)."""
    return np.ascontiguousarray(pixels.reshape(len(pixels), -1)[:, :4]).view(np.uint32)[:, 0]


def opened(root: Path) -> ImageSet:
    settings = schema.Parquet(dataset="parquet", root=str(root), cache_size=SIDE, source="streaming")
    digest, _ = sources.prepare(settings, None, root / "cache")
    return sources.open_set(settings, digest, None, root / "cache", processes=2)


def private_mb() -> float:
    """Memory that this process and those it started hold for themselves, MB: Ray's shared memory is not in it."""
    parents, memory = {}, {}
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        except OSError:  # it has ended meanwhile
            continue
        number = int(lines["Pid"])
        parents[number], memory[number] = int(lines["PPid"]), int(lines.get("RssAnon", "0").split()[0])

    def ours(number: int) -> bool:
        return number == os.getpid() or (number in parents and ours(parents[number]))

    return sum(kib for number, kib in memory.items() if ours(number)) / 1024


def epoch(root: Path, n: int, epoch: int = 0) -> tuple[float, list[float]]:
    """One epoch, checked image by image: seconds to the first batch, and MB of memory along the way."""
    began = time.perf_counter()
    held = opened(root)
    order = epoch_order(n, 7, epoch, held.shuffle_window)
    held.coming([order], BATCH)
    first, seen, memory = 0.0, np.zeros(n, np.bool_), []
    for start in range(0, n, BATCH):
        rows = order[start : start + BATCH]
        assert np.array_equal(numbers_in(held.images[rows]), rows)
        first = first or time.perf_counter() - began
        seen[rows] = True
        if start // BATCH % max(1, n // BATCH // 20) == 0:
            memory.append(private_mb())
    assert seen.all()
    held.close()
    return first, memory


@QUIET
@pytest.mark.ray
def test_twenty_thousand_images_come_once_each_from_row_groups_read_once(two_cpus: None, tmp_path: Path) -> None:
    root = shards(tmp_path / "d", 20_000, 8_000)
    for number in range(2):
        epoch(root, 20_000, number)


@QUIET
@pytest.mark.ray
@pytest.mark.slow
def test_a_million_images_take_no_more_memory_than_twenty_thousand(two_cpus: None, tmp_path: Path) -> None:
    """Over the second half of the epoch the processes together may grow by 64 MB: what allocators keep, not images.

    The set is 192 MB decoded. The seconds are printed, not asserted.
    """
    small, large = shards(tmp_path / "small", 20_000, 8_000), shards(tmp_path / "large", 1_000_000, 100_000)
    epoch(small, 20_000)  # starts Ray Data's workers
    first_small, memory_small = epoch(small, 20_000)
    began = time.perf_counter()
    first_large, memory_large = epoch(large, 1_000_000)
    rate = 1_000_000 / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"first batch: {first_small:.2f} s of 20,000 images, {first_large:.2f} s of 1,000,000; {rate:.0f} images/s")
    print(f"private memory of all processes, MB, along 20,000: {[round(mb) for mb in memory_small]}")
    print(f"along 1,000,000: {[round(mb) for mb in memory_large]}; peak of the loop's own process {peak:.0f} MB")
    half = len(memory_large) // 2
    assert max(memory_large[half:]) - max(memory_large[:half]) < 64
