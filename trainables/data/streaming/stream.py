"""Images that are never in memory whole: read, decoded and resized by Ray Data just ahead of the training loop.

The loop says which images it will ask for next, in which order (`Stream.coming`), and then asks for them batch by
batch. What comes is what the resident copy holds, byte for byte, in the loop's own order: where the images are read
from changes no digit. Images that were not announced, and all of them where Ray does not run, are decoded on the spot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretune.trainables.data.decode.entry import Decoded, decode
from pretune.trainables.data.decode.fitting import Fit
from pretune.trainables.data.errors import DataError, Unopened
from pretune.trainables.data.listing import Entry, Listing, Pack
from pretune.trainables.data.sets import parquet

Indices = NDArray[np.int64]  # (B,) rows of the set

TASK_BYTES = 32 << 20  # of decoded images that one task makes
SMALLEST = 32  # images of a task
TASKS = 4  # of each process in all that was announced, at least: they end at about the same time
AT_ONCE = 2  # tasks of each process: Ray Data sees up to 0.1 s late that one has ended
AHEAD = 16  # tasks' worth of decoded images (512 MB) that wait for the loop at most


class Batch(NamedTuple):
    """Some images, in the order asked for."""

    indices: Indices  # (B,)
    images: NDArray[np.uint8]  # (B, S, S, C)
    masks: NDArray[np.uint8] | None  # (B, S, S)


@dataclass(frozen=True)
class Recipe:
    """All that it takes to decode an image of the set, in any process."""

    entries: Sequence[Entry]  # cheap to send: see listing.Columns and parquet.Shards
    listing: Listing  # without its entries
    size: int
    fit: Fit

    def decoded(self, indices: Indices, pool: ThreadPoolExecutor | None = None) -> tuple[Batch, list[str]]:
        """Images and masks of `indices`, and what is wrong with any of them; a bad one stays black."""
        entries = [self.entries[int(i)] for i in indices]
        return self.fill(indices, entries, self.opener(entries), pool)

    def fill(
        self,
        indices: Indices,
        entries: Sequence[Entry],
        unpack: Callable[[Path], Pack] | None,
        pool: ThreadPoolExecutor | None = None,
    ) -> tuple[Batch, list[str]]:
        batch = self.black(indices)

        def one(entry: Entry) -> Decoded:
            return decode(entry, self.listing, unpack, self.size, self.fit)

        problems: list[str] = []
        for row, found in enumerate((pool.map if pool else map)(one, entries)):
            problems += found.problems
            if found.image is not None:
                batch.images[row] = found.image
            if batch.masks is not None and found.mask is not None:
                batch.masks[row] = found.mask
        return batch, problems

    @property
    def channels(self) -> int:
        return self.listing.reading.channels or 3

    def black(self, indices: Indices) -> Batch:
        """A batch to be filled."""
        square = (len(indices), self.size, self.size)
        masks = None if self.listing.mask_values is None else np.zeros(square, np.uint8)
        return Batch(indices, np.zeros((*square, self.channels), np.uint8), masks)

    def opener(self, entries: Sequence[Entry]) -> Callable[[Path], Pack] | None:
        """Opens files of many images; of Parquet shards, the rows of `entries` are read at once, in storage order."""
        if isinstance(self.listing.unpack, parquet.Reader):
            return self.listing.unpack.only(entries)
        return None if self.listing.unpack is None else lru_cache(maxsize=16)(self.listing.unpack)


class Stream:
    """A set of images on disk or in an object store, by batches of indices.

    Args:
        processes: that decode at the same time. They ask Ray for no CPU: the stage that waits for them holds one, and
            where all are held by stages, tasks that asked for more would never run.
        window: images that are shuffled together, see `loop.epoch_order`: one task reads them, each row group once.
    """

    def __init__(self, recipe: Recipe, processes: int = 1, window: int | None = None) -> None:
        self.recipe, self._processes, self._window = recipe, processes, window
        self._pool = ThreadPoolExecutor(processes)
        self._ahead: Iterator[dict[str, NDArray[Any]]] | None = None  # blocks of decoded images, in the order announced
        self._block: dict[str, NDArray[Any]] = {"index": np.empty(0, np.int64)}
        self._row = 0  # the first of the block that was not asked for yet
        self._order, self._at = np.empty(0, np.int64), 0  # all that was announced, and how far it was asked for
        self._last: Batch | None = None
        self._sent: Any = None

    def __len__(self) -> int:
        return len(self.recipe.entries)

    def coming(self, orders: Sequence[Indices], batch: int) -> None:
        """These images will be asked for next, epoch by epoch, about `batch` at a time: start to read them."""
        self.close()
        if _ray_runs() and any(map(len, orders)):
            self._order, self._ahead = np.concatenate(orders), self._started(orders, batch)

    def batch(self, indices: Indices) -> Batch:
        """The images (B,). Raises DataError naming the files that cannot be used."""
        if self._last is None or not np.array_equal(self._last.indices, indices):
            expected = self._order[self._at : self._at + len(indices)]
            if self._ahead is not None and np.array_equal(expected, indices):
                found = self._next(self._ahead, indices)
            else:
                found = self.recipe.decoded(indices, self._pool)
            self._last = _whole(*found, self.recipe.listing)
        return self._last

    def close(self) -> None:
        """Stop reading ahead."""
        ahead, self._ahead, self._block, self._row = self._ahead, None, {"index": np.empty(0, np.int64)}, 0
        self._order, self._at = np.empty(0, np.int64), 0
        if ahead is not None:
            ahead.close()  # type: ignore[attr-defined]  # a generator: ends Ray Data's executor

    def _next(self, ahead: Iterator[dict[str, NDArray[Any]]], indices: Indices) -> tuple[Batch, list[str]]:
        """The images read ahead, from as many blocks as they lie in, and what is wrong with any of them."""
        batch, problems = self.recipe.black(indices), []
        filled = 0
        while filled < len(indices):
            if self._row == len(self._block["index"]):
                self._block, self._row = next(ahead), 0
            count = min(len(indices) - filled, len(self._block["index"]) - self._row)
            rows, into = slice(self._row, self._row + count), slice(filled, filled + count)
            if not np.array_equal(self._block["index"][rows], indices[into]):
                raise RuntimeError("Ray Data gave images in another order than asked for; please report this")
            batch.images[into] = self._block["image"][rows]
            if batch.masks is not None:
                batch.masks[into] = self._block["mask"][rows]
            problems += [str(text) for text in self._block["problem"][rows] if text]
            problems += [Unopened(text) for text in self._block["unopened"][rows] if text]
            filled, self._row = filled + count, self._row + count
        self._at += filled
        return batch, problems

    def _started(self, orders: Sequence[Indices], batch: int) -> Iterator[dict[str, NDArray[Any]]]:
        import pyarrow as pa
        import ray
        from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy, from_blocks

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every epoch
        if self._sent is None:
            self._sent = ray.put(self.recipe)
        per_image = self.recipe.size**2 * (self.recipe.channels + (self.recipe.listing.mask_values is not None))
        announced = sum(map(len, orders))
        task = self._window or min(TASK_BYTES // per_image, announced // (TASKS * self._processes))
        task = max(SMALLEST, task)
        limits = ExecutionResources(object_store_memory=AHEAD * TASK_BYTES)
        sent = self._sent
        with _set_for_new_datasets(
            enable_progress_bars=False,
            execution_options=ExecutionOptions(preserve_order=True, resource_limits=limits),
            target_max_block_size=max(1 << 20, batch * per_image),
        ):
            # from_numpy and from_arrow would ask for a CPU to count rows
            parts = [order[first : first + task] for order in orders for first in range(0, len(order), task)]
            tasks = from_blocks([pa.table({"index": part}) for part in parts])
            read = tasks.map_batches(
                _decode_task,
                batch_size=None,
                zero_copy_batch=True,
                fn_kwargs={"sent": [sent], "step": min(batch, task)},
                num_cpus=0,
                compute=TaskPoolStrategy(size=min(AT_ONCE * self._processes, len(parts))),
            )
        return iter(read.iter_batches(batch_size=None, prefetch_batches=1, batch_format="numpy"))


@contextmanager
def _set_for_new_datasets(**values: Any) -> Iterator[None]:
    """Settings of Ray Data for the data sets that are made inside; each keeps those of its making."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in values}
    for name, value in values.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


@dataclass(frozen=True)
class Column:
    """The images or the masks of a stream, to be indexed like the array that they would be."""

    stream: Stream
    masks: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        size = self.stream.recipe.size
        return (len(self), size, size) if self.masks else (len(self), size, size, self.stream.recipe.channels)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """(B,) indices -> (B, ...); one index -> (...)."""
        indices = np.atleast_1d(np.asarray(index, np.int64))
        found = self.stream.batch(indices)
        values = found.masks if self.masks else found.images
        assert values is not None
        return values if np.ndim(index) else values[0]


def _decode_task(block: dict[str, Indices], sent: list[Any], step: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Runs in a worker of Ray Data: one block of indices -> decoded images, `step` at a time."""
    import ray

    recipe: Recipe = ray.get(sent[0])
    indices = block["index"]
    entries = [recipe.entries[int(i)] for i in indices]
    unpack = recipe.opener(entries)
    for i in range(0, len(indices), step):
        part = slice(i, i + step)
        batch, problems = recipe.fill(indices[part], entries[part], unpack)
        rest = [""] * (len(batch.indices) - 1)
        unopened = "\n".join(problem for problem in problems if isinstance(problem, Unopened))
        others = "\n".join(problem for problem in problems if not isinstance(problem, Unopened))
        columns: dict[str, NDArray[Any]] = {"index": batch.indices, "image": batch.images}
        columns |= {"problem": np.array([others, *rest], object), "unopened": np.array([unopened, *rest], object)}
        yield columns if batch.masks is None else columns | {"mask": batch.masks}


def _whole(batch: Batch, problems: Sequence[str], listing: Listing) -> Batch:
    if problems:
        advice = "repair or remove them; `pretune data check` lists all there are on its page"
        raise DataError(f"{listing.root}: images that cannot be used; {advice}:", problems)
    return batch


def _ray_runs() -> bool:
    import sys

    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
