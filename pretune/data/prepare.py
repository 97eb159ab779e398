"""Preparation before Ray starts: every data set decoded or opened, its requirements and leaks checked and reported."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import Progress as Bar

from pretune.data.leaks import find_leaks
from pretune.data.preflight import check_before_training, check_masks
from pretune.data.requirements import facts_before_decoding
from pretune.monitor.plain import plain
from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import DigestOf

if TYPE_CHECKING:
    from pretune.trainables.data.image_set import ImageSet


def prepare_data(
    study: Study, data_root: Path | None, cache: Path, console: Console | None
) -> tuple[DigestOf, list[str], list[str], dict[str, Literal["resident", "streaming"]]]:
    """Decode every data set into the cache, with a progress bar.

    Returns:
        The function from a data set's settings to its digest, sentences to be known beside the table (leaks into test
        sets, transparent images), a line for every file that is excluded, and by digest where images come from.

    Raises:
        DataError: data that cannot be used. RequirementsError, before anything is decoded where the listed files show
            it: data that do not have what the study asks for.
    """
    from pretune.trainables.data.checks.contents import glance_at_images
    from pretune.trainables.data.checks.requirements import Facts, facts_of_images
    from pretune.trainables.data.errors import laid_over_black
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

    @functools.cache
    def facts(data: schema.Data) -> Facts:
        return facts_of_images(opened(data))

    check_before_training(study, facts_before_decoding(data_root))
    reported: set[str] = set()
    excluded: list[str] = []
    notes: list[str] = []
    sources: dict[str, Literal["resident", "streaming"]] = {}
    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            digest, choice = prepared(data)
            if digest not in reported:
                reported.add(digest)
                sources[digest] = "streaming" if opened(data).streamed else "resident"
                if console is not None:
                    console.print(f"[dim]data {plain(name)}: {plain(choice.why)}[/]", highlight=False)
                excluded += report_excluded(name, data, opened(data), data_root, console)
                if count := len(opened(data).transparent):
                    notes.append(f"data {name}: {laid_over_black(count)}")
    check_before_training(study, facts)
    check_masks(study, facts, functools.cache(lambda data: glance_at_images(opened(data), data.fit)))
    notes += find_leaks(study, lambda data: (prepared(data)[0], opened(data)), cache)
    if console is not None:
        for sentence in notes:
            console.print(f"[yellow]note:[/] {plain(sentence)}", highlight=False, soft_wrap=True)
    return lambda data: prepared(data)[0], notes, excluded, sources


def report_excluded(
    name: str, data: schema.Data, images: ImageSet, data_root: Path | None, console: Console | None
) -> list[str]:
    """Print a line on the files that `on_error: skip` excludes, and one on the types of file that are not read.

    Every run of a study prints them. Returns a line for each file, for the log.
    """
    from pretune.trainables.data.checks.excluded import count_excluded, types_not_read

    skipped, ignored = images.skipped, types_not_read(data, data_root)
    if console is not None:
        if ignored:
            console.print(f"note: data {name}: {ignored}", highlight=False, markup=False, soft_wrap=True)
        if skipped:
            many = f"{count_excluded(data, data_root, len(images.images))} excluded (on_error: skip)"
            others = " (pretune.log and `pretune data check` list all)" if len(skipped) > 1 else ""
            line = f"note: data {name}: {many}, for example {skipped[-1]}{others}"  # masks left alone come first
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return [f"data {name}: excluded: {line}" for line in skipped] + ([f"data {name}: {ignored}"] if ignored else [])
