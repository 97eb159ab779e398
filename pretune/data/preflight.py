"""The one check before anything trains, called by plan, run and submit: whatever it lets through can be run.

Settings and the numbers of one stage were checked with the file (`search_spaces/rules*.py`, with lines). Here stands
what needs the data or the networks: requirements of every distinct stage, networks at their sizes and smallest batches,
classes that metrics name, and validation images to tune by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from pretune.data.backbones import check_backbones, check_packaged_weights
from pretune.data.requirements import FactsOf, of_cells, unmet_requirements
from pretune.search_spaces import schema
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.document import did_you_mean
from pretune.search_spaces.metrics import parts_of
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import Replicate, in_its_fold, replicates, split_seeds

if TYPE_CHECKING:
    from pretune.trainables.data.checks.contents import Glance
    from pretune.trainables.data.checks.requirements import Facts

GlanceOf = Callable[[schema.Data], "Glance | None"]


def check_before_training(study: Study, facts_of: FactsOf) -> None:
    """Raise ModelError for an unknown backbone, else RequirementsError with every problem, a sentence each."""
    from pretune.trainables.data.errors import RequirementsError

    check_backbones(study)
    check_packaged_weights(study)
    problems = [*unmet_requirements(study, facts_of), *metric_problems(study, facts_of)]
    if problems:
        raise RequirementsError(f"{study.name} cannot run; nothing was started:", problems)


def metric_problems(study: Study, facts_of: FactsOf) -> Iterator[str]:
    """Metrics of the report and of the tuning that no fine-tuning of this study will have."""
    header = study.header
    for name in header.report.metrics:
        yield from _problems_of("report.metrics", name, study, study.cells, facts_of, "report", anywhere=True)
    searched = [cell for cell in study.cells if _scored_by_fine_tuning(cell, header)]
    for key, names in (
        ("tune.target", (header.tune.target,)),
        ("tune.also", header.tune.also),
        ("tune.constraints", tuple(header.tune.constraints)),
    ):
        for name in names:
            yield from _problems_of(key, name, study, searched, facts_of, "search", anywhere=False)
    yield from _pretext_problems(study, facts_of)


def _scored_by_fine_tuning(cell: Cell, header: schema.Header) -> bool:
    tuned = bool(cell.ranges("pretrain")) and header.tune.pretrain.target == "cells"
    return cell.template.get("finetune") is not None and (tuned or bool(cell.ranges("finetune")))


def _problems_of(
    key: str,
    name: str,
    study: Study,
    cells: tuple[Cell, ...] | list[Cell],
    facts_of: FactsOf,
    phase: str,
    *,
    anywhere: bool,
) -> Iterator[str]:
    """Sentences about one metric; with `anywhere` it is enough that one cell has it."""
    found = parts_of(name)
    if found.part != "val" and not (found.part.startswith("test") and found.label):
        return
    lacking: dict[str, list[str]] = {}
    distinct: dict[tuple[schema.Data, schema.Data], str] = {}
    for cell in cells:
        for data, folded in _fine_tuned_on(cell, study.header, phase):
            known = (data, folded)
            if known not in distinct:
                distinct[known] = _lack(key, name, data, folded, facts_of)
            if sentence := distinct[known]:
                lacking.setdefault(sentence, []).append(cell.label)
    if anywhere and len({label for labels in lacking.values() for label in labels}) < len(cells):
        return
    for sentence, labels in lacking.items():
        yield sentence + of_cells(list(dict.fromkeys(labels)), len(study.cells))


def _fine_tuned_on(cell: Cell, header: schema.Header, phase: str) -> Iterator[tuple[schema.Data, schema.Data]]:
    """The data set of a cell's fine-tuning, and the same in the first and the last validation fold."""
    configuration = cell.configuration()
    if configuration.finetune is None:
        return
    name = configuration.finetune.data
    data = configuration.data[name]
    folds = data.split.val_folds
    for number in sorted({0, (folds or 1) - 1}):
        yield data, in_its_fold(configuration, Replicate(number, number, number)).data[name]


def _lack(key: str, name: str, data: schema.Data, folded: schema.Data, facts_of: FactsOf) -> str:
    """Say why a fine-tuning on a data set has no such metric; "" if it has, or where the files are not at hand."""
    found, facts = parts_of(name), facts_of(data)
    if found.label and facts.classes and found.label not in facts.classes:
        fix = did_you_mean(found.label, facts.classes)
        return f"{key}: {name} names a class that {data.dataset} does not have; {fix}"
    sizes = facts.sizes(folded.split)[0]
    if found.part == "val" and (sizes.val == 0 if sizes is not None else _none_for_sure(folded)):
        return f"{key}: {name} needs validation images, but the split of {data.dataset} leaves none; increase split.val"
    return ""


def _none_for_sure(data: schema.Data) -> bool:
    return data.split.val == 0 and data.split.val_fold is None


def _pretext_problems(study: Study, facts_of: FactsOf) -> Iterator[str]:
    """A pretext loss on validation images compares two or more."""
    if study.header.tune.pretrain.target != "pretext":
        return
    for cell in study.cells:
        configuration = cell.configuration()
        if not configuration.pretrain or not cell.ranges("pretrain"):
            continue
        data = configuration.data[configuration.pretrain[-1].data]
        for replicate in replicates(study.header.seeds, "search")[-1:]:
            folded = in_its_fold(configuration, replicate).data[configuration.pretrain[-1].data]
            sizes = facts_of(data).sizes(folded.split)[0]
            if sizes is not None and sizes.val < 2:
                yield (
                    f"tune.pretrain.target: pretext needs two validation images or more, and the split of "
                    f"{data.dataset} leaves {sizes.val}; raise split.val"
                )
                return


# ------------------------------------------------------------------------------------------------------------ masks


def check_masks(study: Study, facts_of: FactsOf, glance_of: GlanceOf) -> None:
    """Raise RequirementsError for masks of one class alone, and for test, validation or labelled images of which no
    pixel counts in any replicate."""
    from pretune.trainables.data.errors import RequirementsError

    if problems := list(dict.fromkeys(_ignored_parts(study, facts_of, glance_of))):
        raise RequirementsError(f"{study.name} cannot run; nothing was started:", problems)


def _ignored_parts(study: Study, facts_of: FactsOf, glance_of: GlanceOf) -> Iterator[str]:
    """Each data set and amount of labels is looked at once; most parts have a pixel in their first mask."""
    done: set[tuple[schema.Data, float | int]] = set()
    for cell in study.cells:
        configuration = cell.configuration()
        if configuration.finetune is None:
            continue
        name, labels = configuration.finetune.data, configuration.finetune.labels
        data = configuration.data[name]
        if (data, labels) in done:
            continue
        done.add((data, labels))
        seen = glance_of(data)
        if seen is None or not seen.exact or not seen.classes:
            continue
        if (only := seen.only_class()) is not None:
            yield _ONE_CLASS.format(name=name, count=seen.images, only=only)
            continue
        searched = bool(cell.ranges("pretrain") or cell.ranges("finetune"))
        phases: tuple[Literal["search", "report"], ...] = ("search", "report") if searched else ("report",)
        for phase in phases:
            for replicate in replicates(study.header.seeds, phase):
                folded = in_its_fold(configuration, replicate).data[name]
                seeds = split_seeds(replicate, study.header.seeds)
                yield from _ignored(name, folded, labels, seeds, phase, facts_of(data), seen)


def _ignored(
    name: str,
    data: schema.Data,
    labels: float | int,
    seeds: tuple[int, int],
    phase: str,
    facts: Facts,
    seen: Glance,
) -> Iterator[str]:
    from pretune.trainables.data.splits import draw_split, label_subset

    if data.split.stratify == "pixels":  # which reads every mask before it can be drawn
        return
    drawn = draw_split(seen.images, data.split, seeds[0], facts.official_test, facts.labels, facts.marks)
    labelled = label_subset(drawn.train, labels, seeds[1], facts.labels if data.split.stratify else None)
    parts = {"labelled": labelled, "validation": drawn.val} | ({"test": drawn.test} if phase == "report" else {})
    for part, rows in parts.items():
        if len(rows) and not any(seen.scored(int(row)) for row in rows):
            yield _IGNORED[part].format(name=name, count=len(rows))


_ONE_CLASS = (
    "data.{name}: all {count} masks contain only {only!r} (and ignored pixels), so a model that predicts {only!r} "
    "everywhere scores 1; check the masks, `mask_values` and `ignore`"
)
_IGNORED = {
    "labelled": "finetune.labels: in a replicate, the masks of all {count} labelled images of data.{name} are ignored, "
    "so there is nothing to learn; label more images, or change the masks",
    "validation": "data.{name}.split.val: in a replicate, the masks of all {count} validation images are ignored, so "
    "that no pixel is scored; raise it, or change the masks",
    "test": "data.{name}.split.test: the masks of all {count} test images are ignored, so that no pixel is scored; "
    "raise it, set another split.seed, or change the masks",
}
