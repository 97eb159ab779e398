"""Parts of `pretune plan`: contents and sources of its data, looks at masks, and the time it will take."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pretune.search_spaces.stages import Stage


def timed_plan(made: Any, missing: list[Stage], size_of: Callable[[Any], int]) -> Any:
    """The plan with what the missing stages cost."""
    from pretune.calibration import busy_note, calibrate
    from pretune.cluster.capacity import usable_cpus

    busy = busy_note(os.getloadavg()[0], usable_cpus())  # before the timing, which is load too
    click.echo("timing a few training steps of each kind of stage ...", err=True)
    return dataclasses.replace(made, warnings=(*made.warnings, *busy), **calibrate(missing, size_of)._asdict())


def at_once(timed: bool) -> int:
    """Return how many stage runs run at once here, as `pretune doctor` says; 1 where no time is estimated."""
    from pretune.calibration import gpu_count
    from pretune.cluster.capacity import stages_at_once, usable_cpus

    return stages_at_once(usable_cpus(), gpu_count()) if timed else 1


def glances(data: Path | None, cache: Path | None, digest_of: Callable[[Any], str]) -> Callable[[Any], Any]:
    """Return a function that looks at the masks of a data set; it gives None for one that is not at hand."""
    from pretune.data.requirements import is_at_hand, without_folds
    from pretune.search_spaces.schema import Data
    from pretune.trainables.data.checks.contents import Glance, glance

    @functools.cache
    def look(settings: Data) -> Glance | None:
        return glance(settings, data, cache, digest_of(settings)) if is_at_hand(settings, data) else None

    return lambda settings: look(without_folds(settings))


def sources_of(names: dict[Any, str], data: Path | None, cache: Path) -> Iterator[str]:
    """Yield which data sets are decoded once and which streamed. Data sets that are missing are skipped."""
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sources import choose_source

    lines: dict[str, None] = {}  # folds of one data set say the same
    for settings, name in names.items():
        with contextlib.suppress(DataError):  # said already
            lines[f"data {name}: {choose_source(settings, data, cache).why}"] = None
    yield from lines


def contents_of(data: Path | None, root: Path, names: Mapping[Any, str]) -> tuple[Any, Any]:
    """Return functions that name and count the content of data sets; without the data, by their settings."""
    from pretune.search_spaces.identities import fingerprint
    from pretune.search_spaces.schema import Data
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.resident.digest import content_digest
    from pretune.trainables.data.sets.table import count_images

    missing: set[str] = set()

    def digest_of(settings: Data) -> str:
        try:
            return content_digest(settings, data, root / "cache" if (root / "cache").is_dir() else None)
        except DataError as error:
            if str(error) not in missing:
                missing.add(str(error))
                name = names.get(settings, settings.dataset)
                click.echo(f"note: planned without data {name}: {error}", err=True)
            return fingerprint(settings.model_dump(mode="json"))

    def size_of(settings: Data) -> int:
        try:
            return count_images(settings, data)
        except DataError:
            return settings.limit or 1000

    return functools.cache(digest_of), functools.cache(size_of)
