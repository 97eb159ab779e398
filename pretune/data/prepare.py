"""What is made ready before Ray starts: every data set, and what is to be said about them and about the study."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bar

from pretune.data import requirements
from pretune.data.leaks import in_the_test_set
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import DigestOf


def prepare_data(
    study: Study, data_root: Path | None, cache: Path, console: Console | None
) -> tuple[DigestOf, list[str], list[str]]:
    """Decode every data set into the cache, with a progress bar.

    Returns:
        What names a data set's content, sentences about pictures that are in a test set and outside of it, and a line
        for every file that was left out.

    Raises:
        DataError: data that cannot be used. NeedsError, before anything is decoded where the files' list shows it: data
            that do not have what the study asks for.
    """
    from pretune.trainables.data.checks.requirements import Held, held_by
    from pretune.trainables.data.image_set import ImageSet
    from pretune.trainables.data.sources import Choice, open_set, prepare

    @functools.cache
    def prepared(data: schema.Data) -> tuple[str, Choice]:
        if console is None:
            return prepare(data, data_root, cache)
        with Bar(console=console, transient=True) as bar:
            task = bar.add_task(f"preparing {data.dataset}")
            return prepare(data, data_root, cache, lambda done, total: bar.update(task, completed=done, total=total))

    @functools.cache
    def opened(data: schema.Data) -> ImageSet:
        return open_set(data, prepared(data)[0], data_root, cache)

    requirements.refuse_study(study, requirements.listed(data_root))
    said: set[str] = set()
    held: dict[schema.Data, Held] = {}
    left_out: list[str] = []
    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            digest, choice = prepared(data)
            if data not in held:
                held[data] = held_by(opened(data))
            if digest not in said:
                said.add(digest)
                say_source(name, choice.why, console)
                left_out += say_left_out(name, data, opened(data), data_root, console)
    requirements.refuse_study(study, held.get)
    found = list(in_the_test_set(study, lambda data: (prepared(data)[0], opened(data)), cache))
    for sentence in found:
        if console is None:
            break
        console.print(f"[yellow]note:[/] {sentence}", highlight=False, soft_wrap=True)
    return lambda data: prepared(data)[0], found, left_out


def say_source(name: str, why: str, console: Console | None) -> None:
    """Whether a data set is decoded once or streamed, and why."""
    if console is not None:
        console.print(f"[dim]data {name}: {why}[/]", highlight=False)


def say_left_out(name: str, data: schema.Data, held: Any, data_root: Path | None, console: Console | None) -> list[str]:
    """Which files `on_error: skip` left out, the first ten of them, and which types of file are not read.

    Returns a line for each, for the log.
    """
    from pretune.trainables.data.checks.excluded import images_left_out, types_not_read

    skipped, ignored = held.skipped, types_not_read(data, data_root)
    if console is not None:
        if ignored:
            console.print(f"note: data {name}: {ignored}", highlight=False, markup=False, soft_wrap=True)
        if skipped:
            many = images_left_out(data, data_root, len(held.images))
            console.print(f"note: data {name}: {many} left out (on_error: skip)", highlight=False)
        for line in skipped[:10]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        if len(skipped) > 10:
            where = "pretune.log and pretune data check list all (on its page)"
            console.print(f"  and {len(skipped) - 10} more; {where}", highlight=False)
    return [f"data {name}: left out: {line}" for line in skipped] + ([f"data {name}: {ignored}"] if ignored else [])
