"""A study's metrics, published through Ray for Prometheus: see `monitor.prometheus` for which there are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pretune.monitor.prometheus import METRICS, SECONDS, Facts, Metric, Reading, readings

PUBLISH_SECONDS = 2.0


@contextmanager
def published(take: Callable[[], Facts], seconds: Callable[[], float]) -> Iterator[None]:
    """Publish a study's metrics from a thread of its own, every two seconds and once at the end. Needs Ray started."""
    over, series = threading.Event(), _series()
    before: Facts | None = None
    last, failed = seconds(), False

    def publish() -> None:
        nonlocal before, last, failed
        try:
            now, moment = take(), seconds()
            for reading in readings(now, before, moment - last):
                _set(series[reading.name], reading, now.snapshot.study)
            before, last = now, moment
        except Exception as error:  # watching must never stop the study; the next reading brings what this one missed
            if not failed:
                logging.getLogger("pretune").warning("metrics for Prometheus may be missing: %s", error)
            failed = True

    def keep_on() -> None:
        while not over.wait(PUBLISH_SECONDS):
            publish()

    thread = threading.Thread(target=keep_on, name="pretune-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        publish()


def _series() -> dict[str, Any]:
    from ray.util.metrics import Counter, Gauge, Histogram

    def made(name: str, metric: Metric) -> Any:
        labels = ("study", *metric.labels)
        if metric.kind == "histogram":
            return Histogram(name, metric.what, SECONDS, labels)
        return {"gauge": Gauge, "counter": Counter}[metric.kind](name, metric.what, labels)

    return {name: made(name, metric) for name, metric in METRICS.items()}


def _set(series: Any, reading: Reading, study: str) -> None:
    tags, kind = {"study": study} | reading.labels, METRICS[reading.name].kind
    if kind == "gauge":
        series.set(reading.value, tags)
    elif kind == "histogram":
        series.observe(reading.value, tags)
    elif reading.value > 0:  # Ray refuses an increase of nothing
        series.inc(reading.value, tags)
