"""Requirements of a study's stages against the facts of its data sets, over all cells, ranges and folds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pretune.search_spaces import schema
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.rules import extremes
from pretune.search_spaces.stages import Replicate, in_its_fold, uses_pretraining

if TYPE_CHECKING:
    from pretune.trainables.data.checks.requirements import Facts, StageSettings

FactsOf = Callable[[schema.Data], "Facts"]


class Asked(NamedTuple):
    """One stage that will run on a data set."""

    where: str  # its key in the study
    settings: StageSettings
    model: schema.Model
    data: schema.Data  # as in the study
    folded: schema.Data  # the same in one validation fold
    resources: schema.StageResources
    workers: int


def unmet_requirements(study: Study, facts_of: FactsOf) -> list[str]:
    """Each sentence once, with the cells it is true of unless these are all.

    Stages that cannot be built are among them: their networks at their sizes, and their smallest batches.
    """
    from pretune.trainables.buildable import unbuildable
    from pretune.trainables.data.checks.requirements import unmet

    found: dict[str, list[str]] = {}  # stages that are equal in several cells are looked at once
    cells: dict[str, dict[str, None]] = {}
    for cell in study.cells:
        for asked in _asked(cell, study.header):
            where, settings, model, data, folded, resources, workers = asked
            key = _key(asked)
            if key not in found:
                facts = facts_of(data)
                sentences = list(unmet(where, settings, folded, facts, workers))
                found[key] = sentences or list(
                    unbuildable(where, settings, model, folded, facts, workers, resources.batch_norm)
                )
            for sentence in found[key]:
                cells.setdefault(sentence, {})[cell.label] = None
    return [sentence + of_cells(list(labels), len(study.cells)) for sentence, labels in cells.items()]


def cut_batches(study: Study, facts_of: FactsOf) -> list[str]:
    """Say of which trainings a batch is larger than the images there are: each step then takes all of them."""
    from pretune.trainables.data.checks.requirements import labelled_by, seen_by

    cells: dict[str, dict[str, None]] = {}
    for cell in study.cells:
        for asked in _asked(cell, study.header):
            settings, sizes = asked.settings, facts_of(asked.data).sizes(asked.folded.split)[0]
            if isinstance(settings, schema.Pretrain) and settings.method.facts.trains:
                images, which = seen_by(settings, sizes), "images that it sees"
            elif isinstance(settings, schema.Finetune):
                images, which = labelled_by(settings, sizes), "labelled images"
            else:
                continue
            if images is not None and settings.batch_size > images:
                said = f"{asked.where}.batch_size: {settings.batch_size} is cut to {images}, the number of {which}"
                cells.setdefault(said, {})[cell.label] = None
    return [sentence + of_cells(list(labels), len(study.cells)) for sentence, labels in cells.items()]


def _key(asked: Asked) -> str:
    """Equal for stages of which the same is required."""
    parts = (asked.settings, asked.model, asked.data, asked.folded)
    return f"{asked.where} {asked.workers} {' '.join(part.model_dump_json() for part in parts)}"


def of_cells(labels: list[str], cells: int) -> str:
    """' (cell A and 2 more)'; nothing where these are all."""
    if len(labels) == cells:
        return ""
    return f" (cell {labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})"


def _asked(cell: Cell, header: schema.Header) -> Iterator[Asked]:
    """All stages of a cell, at both ends of every range, and in the largest and the smallest validation fold."""
    for suggest in extremes(cell):
        configuration = cell.configuration(suggest)
        folds = {data.split.val_folds - 1 for data in configuration.data.values() if data.split.val_folds}
        for number in sorted({0, *folds}):  # of validation folds the first is the largest, the last the smallest
            folded = in_its_fold(configuration, Replicate(number, number, number)).data
            for where, settings, resources, workers in _stages(configuration, header):
                name, model = settings.data, configuration.model
                yield Asked(where, settings, model, configuration.data[name], folded[name], resources, workers)


def _stages(
    configuration: schema.Configuration, header: schema.Header
) -> Iterator[tuple[str, StageSettings, schema.StageResources, int]]:
    """The stages that will run: key, settings, resources, and a number of workers that may come to run them."""
    chain = [stage for stage in configuration.pretrain if stage.method.name != "none"]
    resources = header.resources
    for i, stage in enumerate(chain if uses_pretraining(configuration) else []):
        for workers in resources.pretrain.worker_counts:
            yield f"pretrain.{i}" if len(configuration.pretrain) > 1 else "pretrain", stage, resources.pretrain, workers
    if configuration.finetune is not None:
        for workers in resources.finetune.worker_counts:
            yield "finetune", configuration.finetune, resources.finetune, workers
    for name, probe in configuration.probe.items():
        if chain or isinstance(probe, schema.CKA):
            yield f"probe.{name}", probe, resources.probe, 1


def facts_before_decoding(data_root: Path | None, missing: bool = False) -> FactsOf:
    """Facts of the listed files. With `missing`, data sets that are not at hand are judged by their settings alone.

    Raises DataError without it, and for files that are at hand and cannot be used.
    """
    from pretune.trainables.data.checks.requirements import facts_of_listing, facts_of_settings
    from pretune.trainables.data.sets.table import GENERATED, list_files

    @functools.cache
    def facts(settings: schema.Data) -> Facts:
        if isinstance(settings, GENERATED):
            return facts_of_settings(settings)
        if missing and not is_at_hand(settings, data_root):
            return facts_of_settings(settings)
        return facts_of_listing(settings, list_files(settings, data_root))

    return lambda data: facts(without_folds(data))


def is_at_hand(settings: schema.Data, data_root: Path | None) -> bool:
    """Whether the files of a data set can be looked for here; those of an address are, where they can be listed."""
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sets.table import GENERATED, list_files, locate

    if isinstance(settings, GENERATED):
        return True
    try:
        where = locate(settings, data_root)
        if settings.root is not None and "://" in settings.root:
            list_files(settings, data_root)
    except DataError:
        return False
    return where is not None


def without_folds(data: schema.Data) -> schema.Data:
    """The data set whatever its split: folds of one set have equal files."""
    kept = schema.Split(seed=data.split.seed)  # what `split.file` says is part of the files
    return data.model_copy(
        update={"split": kept.model_copy(update={"file": data.split.file, "group": data.split.group})}
    )
