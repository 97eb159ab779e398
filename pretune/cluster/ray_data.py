"""Rows through a pool of processes, by Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pretune.cluster.tune import start_ray, stop_ray


@dataclass(frozen=True)
class Pool:
    """Processes on one CPU each, or on one GPU each."""

    workers: int
    batch_size: int  # rows of one call
    address: str | None  # of a Ray cluster; None: this machine
    on_gpus: bool


def run_in_pool(
    worker: type, arguments: Sequence[Any], rows: Sequence[dict[str, str]], pool: Pool, blocks: int
) -> Iterator[dict[str, Any]]:
    """Start Ray, call one `worker(*arguments)` per process with batches of rows, and yield the rows of its answers.

    Args:
        blocks: parts that the rows are cut into; at least one for each worker is made, and none is empty.
    """
    start_ray(pool.address, pool.workers if pool.address is None else None)
    import ray

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts rows
        parts = min(len(rows), max(pool.workers, blocks))
        answers = ray.data.from_items(list(rows), override_num_blocks=parts).map_batches(
            worker,
            fn_constructor_args=list(arguments),
            batch_size=pool.batch_size,
            compute=ray.data.ActorPoolStrategy(size=pool.workers),
            num_cpus=None if pool.on_gpus else 1,
            num_gpus=1 if pool.on_gpus else None,
        )
        yield from answers.iter_rows()
    finally:
        stop_ray()
