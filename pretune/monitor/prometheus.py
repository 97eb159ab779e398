"""A study as metrics of its Ray cluster: what Prometheus scrapes and the Grafana dashboard of `pretune monitor` draws.

Labels are names that the study file gives (study, stage, cell) and a few states: never a fingerprint, seed or
configuration, which would make a new time series with every stage run. Of cells only the first `MOST` get one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pretune.monitor.terminal import Snapshot

MOST = 50  # series per metric of one study
SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0]  # bounds of the histogram


class Metric(NamedTuple):
    """One metric. Ray exports it as `ray_NAME`, a counter as `ray_NAME_total`."""

    kind: str  # gauge, counter or histogram
    labels: tuple[str, ...]  # beside `study`
    what: str


METRICS = {
    "pretune_stage_runs": Metric("gauge", ("state",), "stage runs: waiting, running, finished, reused, failed"),
    "pretune_stage_seconds": Metric("histogram", ("stage",), "seconds that finished stage runs took"),
    "pretune_images": Metric("counter", ("stage",), "training images seen, as far as stage runs have reported"),
    "pretune_images_per_second": Metric("gauge", ("stage",), "training images per second since the last reading"),
    "pretune_cell_target": Metric("gauge", ("cell",), "tuning target of a cell, mean over its replicates so far"),
    "pretune_cells_left_out": Metric("gauge", (), f"cells beyond the first {MOST}, which have no series"),
    "pretune_gpu_memory_bytes": Metric("gauge", ("stage",), "most GPU memory that a finished stage run took"),
    "pretune_reuse_ratio": Metric("gauge", (), "share of the stage runs known so far that the store held already"),
    "pretune_seconds_left": Metric("gauge", (), "last estimate of the seconds left"),
}


class Facts(NamedTuple):
    """A study at one moment; mappings go by the stage's title. Everything but the snapshot only ever grows."""

    snapshot: Snapshot
    seconds: Mapping[str, tuple[float, ...]]  # of each finished stage run
    images: Mapping[str, int]  # seen in training
    gpu_memory: Mapping[str, float]  # bytes, the most of any


class Reading(NamedTuple):
    """A value for one series: a gauge's value, a counter's increase, or one observation of a histogram."""

    name: str
    labels: dict[str, str]  # without `study`
    value: float


def readings(now: Facts, before: Facts | None, apart: float) -> Iterator[Reading]:
    """Numbers to publish of a study.

    Args:
        before: as published last; None at first.
        apart: seconds between the two.
    """
    shot = now.snapshot
    counts = {"waiting": shot.waiting, "running": len(shot.running), "finished": shot.finished,
              "reused": shot.reused, "failed": shot.failed}  # fmt: skip
    for state, count in counts.items():
        yield Reading("pretune_stage_runs", {"state": state}, count)
    yield from _of_stages(now, before, apart)
    for cell in shot.cells[:MOST]:
        if cell.target is not None:
            yield Reading("pretune_cell_target", {"cell": cell.label}, cell.target)
    yield Reading("pretune_cells_left_out", {}, max(0, len(shot.cells) - MOST))
    known = shot.total if shot.total is not None else sum(counts.values())
    yield Reading("pretune_reuse_ratio", {}, shot.reused / max(1, known))
    if shot.remaining is not None:
        yield Reading("pretune_seconds_left", {}, shot.remaining)


def _of_stages(now: Facts, before: Facts | None, apart: float) -> Iterator[Reading]:
    for name, seconds in _first(now.seconds):
        for value in seconds[len(before.seconds.get(name, ())) if before else 0 :]:
            yield Reading("pretune_stage_seconds", {"stage": name}, value)
    for name, images in _first(now.images):
        more = images - (before.images.get(name, 0) if before else 0)
        yield Reading("pretune_images", {"stage": name}, more)
        yield Reading("pretune_images_per_second", {"stage": name}, more / apart if apart > 0 else 0.0)
    for name, memory in _first(now.gpu_memory):
        yield Reading("pretune_gpu_memory_bytes", {"stage": name}, memory)


def _first(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The first stages by order of appearance: a study names few, but nothing stops it from naming many."""
    return list(values.items())[:MOST]
