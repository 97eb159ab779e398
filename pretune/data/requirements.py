"""Whether the data of a study have what its stages require: `trainables.data.checks`, over all cells and ranges."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pretune.search_spaces import schema
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.rules import extremes
from pretune.search_spaces.stages import Replicate, in_its_fold, uses_pretraining

if TYPE_CHECKING:
    from pretune.trainables.data.checks.requirements import Held, StageSettings

HeldOf = Callable[[schema.Data], "Held | None"]  # None where the data set is not at hand


def refuse_study(study: Study, held_of: HeldOf) -> None:
    """Raises NeedsError with everything that stages ask of their data in vain, a sentence each."""
    from pretune.trainables.data.errors import RequirementsError

    if problems := unmet_needs(study, held_of):
        raise RequirementsError(
            f"{study.name}: stages ask of their data what these do not have; nothing was started:", problems
        )


def unmet_needs(study: Study, held_of: HeldOf) -> list[str]:
    """Each sentence once, with the cells it is true of unless these are all."""
    cells: dict[str, list[str]] = {}
    for cell in study.cells:
        for suggest in extremes(cell):  # both ends of every range
            for sentence in _unmet(cell.configuration(suggest), study.header, held_of):
                labels = cells.setdefault(sentence, [])
                if cell.label not in labels:
                    labels.append(cell.label)
    return [sentence + _where(labels, len(study.cells)) for sentence, labels in cells.items()]


def _where(labels: list[str], cells: int) -> str:
    if len(labels) == cells:
        return ""
    return f" (cell {labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''})"


def _unmet(configuration: schema.Configuration, header: schema.Header, held_of: HeldOf) -> Iterator[str]:
    from pretune.trainables.data.checks.requirements import unmet

    folds = {data.split.val_folds - 1 for data in configuration.data.values() if data.split.val_folds}
    for number in sorted({0, *folds}):  # of validation folds the first is the largest, the last the smallest
        turned = in_its_fold(configuration, Replicate(number, number, number))
        for where, settings, workers in _stages(configuration, header):
            held = held_of(configuration.data[settings.data])
            if held is not None:
                yield from unmet(where, settings, turned.data[settings.data], held, workers)


def _stages(configuration: schema.Configuration, header: schema.Header) -> Iterator[tuple[str, StageSettings, int]]:
    """What will be run: its key, its settings, and on how many workers."""
    chain = [stage for stage in configuration.pretrain if stage.method.name != "none"]
    for i, stage in enumerate(chain if uses_pretraining(configuration) else []):
        for workers in header.resources.pretrain.worker_counts:
            yield f"pretrain.{i}" if len(configuration.pretrain) > 1 else "pretrain", stage, workers
    if configuration.finetune is not None:
        yield "finetune", configuration.finetune, 1
    for name, probe in configuration.probe.items():
        if chain or isinstance(probe, schema.CKA):
            yield f"probe.{name}", probe, 1


def listed(data_root: Path | None, missing: bool = False) -> HeldOf:
    """What data sets hold as far as their files are listed. With `missing` None for those that cannot be.

    Raises DataError without it.
    """
    from pretune.trainables.data.checks.requirements import held_by_listing
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sets.table import GENERATED, list_files

    @functools.cache
    def held(settings: schema.Data) -> Held | None:
        try:
            generated = isinstance(settings, GENERATED)
            return held_by_listing(settings, None if generated else list_files(settings, data_root))
        except DataError:
            if missing:
                return None
            raise

    return lambda data: held(data.model_copy(update={"split": schema.Split(seed=data.split.seed)}))  # folds are alike
