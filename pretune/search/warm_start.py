"""Beginning a search with what earlier studies left in the store."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretune.errors import SearchStorageError
from pretune.search.optuna_study import Search
from pretune.search.replicates import Run, Values, values_or_centres
from pretune.search.samplers import SpaceVisitor, params_of
from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.metrics import Bound
from pretune.search_spaces.stages import Replicate, Stage, replicates, stages_of
from pretune.store.lookup import TASK, costs
from pretune.store.store import Store, write_atomically
from pretune.trainables.checksums import sealed, unsealed

OWN = "own"  # the pretraining of the search itself


class Known(NamedTuple):
    """A configuration that the store holds scores of."""

    values: Values
    score: float  # mean over the seeds
    over: tuple[float, ...]  # by how much it exceeds each constraint, of its worst seed


def begin(run: Run, optuna_search: Search, visit: SpaceVisitor, cell: Cell, fixed: Values) -> str:
    """Tell the sampler what fine-tunings in the store scored with settings of this search's space; a note of it.

    They guide the sampler and are in no table. What was taken is written into the search's storage once, so a rerun
    begins with the same, whatever the store holds by then.

    Args:
        fixed: what the search of the pretraining found.
    """
    own = set(cell.ranges("finetune"))
    ranges = {found: item for found, item in cell.all_ranges if found in own}
    found, said = stored_scores(run, cell, fixed, list(run.earlier()))
    known = []
    for values, score, over in found:
        parts = [params_of(key, ranges[key], value) for key, value in values.items()]
        known.append(({key: value for part in parts for key, value in part.items()}, score, over))
    return optuna_search.begin_with(known, visit, said)


def earlier(store: Store, out: Path) -> list[dict[str, Any]]:
    """Return the store's stage runs as of the study's first run, without those that the study adds.

    The fingerprints are noted in the study's folder, so that a killed study begins with the same.
    """
    path = out / "warm-start.json"
    if not path.exists():
        write_atomically(path, sealed([entry.fingerprint for entry in store.entries()]))
    found = (store.find(fingerprint) for fingerprint in _noted(path))
    return [
        {**entry.about, "metrics": {**entry.metrics, **costs(entry)}}
        for entry in found
        if entry is not None and TASK in entry.about
    ]


def _noted(path: Path) -> list[str]:
    """Fingerprints that `earlier` noted. Raises SearchStorageError: another search would begin with others."""
    try:
        noted = unsealed(path)
        noted = json.loads(path.read_bytes()) if noted is None else noted  # a bare list before 2026-11-29
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, list) or not all(isinstance(one, str) and one.isalnum() for one in noted):
        raise SearchStorageError(
            f"{path} is damaged: it names the stage runs that the searches began with; restore it, or move it and "
            "optuna.journal away, and they begin anew with what the store holds now"
        )
    return noted


def stored_scores(run: Run, cell: Cell, fixed: Values, entries: Sequence[Mapping[str, Any]]) -> tuple[list[Known], str]:
    """Configurations of the cell's space that the store holds scores of, and a sentence that says what these are.

    Scores are comparable only if all are of the same seeds and of one pretraining. So they are of those search seeds of
    this study that every configuration has, and of this cell's own pretraining if there is any, else of that with
    most configurations. What diverged at a seed is left out: a mean over survivors would flatter it.
    """
    tasks = {entry[TASK]["fingerprint"]: entry[TASK] for entry in entries}
    found: dict[str, dict[str, tuple[Values, dict[Replicate, Mapping[str, float]]]]] = {}  # by pretraining, by values
    stages: dict[str, dict[Replicate, Stage]] = {}
    for entry in entries:
        task = entry[TASK]
        if task["kind"] != "finetune" or task.get("until") is not None or task["on_test"]:
            continue
        values = in_space({"finetune": cell.template["finetune"]}, {"finetune": task["settings"]})
        if values is None or not is_of(run, cell, values, task):
            continue
        name = repr(sorted(values.items()))
        for seed, stage in stages.setdefault(name, searched(run, cell, fixed | values)).items():
            if stage.streams == task["streams"]:
                parent = stage.parent.fingerprint if stage.parent else None
                source = OWN if task["parent"] == parent else pretraining_of(task["parent"], tasks)
                held = found.setdefault(source, {}).setdefault(name, (values, {}))
                held[1][seed] = entry["metrics"]
    if not found:
        return [], "no stored trials match this search at its seeds; starting cold"
    source = max(found, key=lambda key: (key == OWN, len(found[key]), key))
    target, constraints = run.study.header.tune.target, run.study.header.tune.constraints
    needed, bounds = (target, *constraints), constraints.items()
    whole = {
        key: (values, by_seed)
        for key, (values, by_seed) in sorted(found[source].items())
        if all(math.isfinite(metrics.get(name, math.nan)) for metrics in by_seed.values() for name in needed)
    }
    common = [seed for seed in replicates(run.study.header.seeds, "search") if whole]
    common = [seed for seed in common if all(seed in by_seed for _, by_seed in whole.values())]
    if not common:
        return [], "stored trials of this search have different seeds; starting cold"
    known = [
        Known(
            values,
            float(np.mean([by_seed[seed][target] for seed in common])),
            tuple(Bound(name, bound).excess([by_seed[seed][name] for seed in common]) for name, bound in bounds),
        )
        for values, by_seed in whole.values()
    ]
    of = "its own pretraining" if source == OWN else "another pretraining"
    seeds = f"{len(common)} seed{'s' * (len(common) > 1)}"
    return known, f"of {of}, mean over {seeds} of {len(replicates(run.study.header.seeds, 'search'))}"


def searched(run: Run, cell: Cell, values: Values) -> dict[Replicate, Stage]:
    """The fine-tunings of a configuration, by search seed."""
    configuration, header = cell.configuration(values_or_centres(values)), run.study.header
    return {
        seed: stages_of(configuration, seed, header, run.digest_of, False)["finetune"]
        for seed in replicates(header.seeds, "search")
    }


def pretraining_of(fingerprint: str | None, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Names a pretraining whatever its seed: its settings, and those of what it starts from."""
    if fingerprint is None or fingerprint not in tasks:
        return f"pretraining {fingerprint}"
    task = tasks[fingerprint]
    before = pretraining_of(task["parent"], tasks) if task["parent"] else ""
    return json.dumps([task["settings"], task["model"], task["digest"], before], sort_keys=True, default=str)


def is_of(run: Run, cell: Cell, values: Values, task: Mapping[str, Any]) -> bool:
    """Whether the cell with these values is what was asked for, its pretraining apart."""
    configuration = cell.configuration(values_or_centres(values))
    if configuration.finetune is None or configuration.model.model_dump(mode="json") != task["model"]:
        return False
    same = configuration.finetune.model_dump(mode="json", exclude={"data"})
    theirs = {key: value for key, value in task["settings"].items() if key != "data"}
    data = configuration.data[configuration.finetune.data]
    split = data.split.model_dump(mode="json")  # the same test images, and validation drawn in the same way
    return same == theirs and run.digest_of(data) == task["digest"] and split == task["data"]["split"]


def in_space(template: Any, settings: Any, name: str = "") -> Values | None:
    """The values of the template's ranges that give these settings; None where a value is outside its range.

    Only ranges are looked at: whether the rest agrees shows when they are filled in.
    """
    if space.is_range(template):
        return _value_of(template, settings, name)
    found: Values = {}
    if isinstance(template, Mapping) and isinstance(settings, Mapping):
        for key, item in template.items():
            values = in_space(item, settings.get(key), f"{name}.{key}" if name else str(key))
            if values is None:
                return None
            found |= values
    return found


def _value_of(item: Any, value: Any, name: str) -> Values | None:
    if isinstance(item, space.Choice):
        for index, (label, option) in enumerate(zip(item.labels(), item.options, strict=True)):
            inside = in_space(option, value, f"{name}[{label}]")
            if inside is not None and _begins(option, value):
                return {name: index} | inside
        return None
    if isinstance(item, space.Subset):
        return {name: [o for o in item.of if o in value]} if isinstance(value, list) else None
    return {name: value} if isinstance(value, float | int) and item.low <= value <= item.high else None


def _begins(option: Any, value: Any) -> bool:
    """Whether an option of a choice may stand for a value: equal, or a mapping of the same name."""
    if isinstance(option, Mapping) and isinstance(value, Mapping):
        return "name" not in option or option["name"] == value.get("name")
    return bool(option == value)
