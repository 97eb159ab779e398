"""Beginning a search with what earlier studies left in the store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from pretune.outcomes import Run, Values, chosen
from pretune.samplers import params_of
from pretune.search import Search
from pretune.store import Store, write_atomically
from search_spaces import space
from search_spaces.cells import Cell


def begin(run: Run, questions: Search, cell: Cell, name: str) -> None:
    """Tell the sampler what fine-tunings in the store scored with settings of this search's space.

    Their pretraining may have been another: they guide the sampler and are in no table. What was taken is written into
    the search's storage once, so a rerun begins with the same, whatever the store holds by then.
    """
    own = set(cell.ranges("finetune"))
    ranges = {found: item for found, item in space.ranges(cell.template) if found in own}
    known = []
    for values, score in stored_scores(run, cell, run.earlier()):
        parts = [params_of(key, ranges[key], value) for key, value in values.items()]
        known.append(({key: value for part in parts for key, value in part.items()}, score))
    taken = questions.begin_with(known, distributions_of(ranges))
    run.notes.append(f"{name}: begins with {taken} configurations that earlier studies left in the store")


def earlier(store: Store, out: Path) -> list[dict[str, Any]]:
    """What the store told of its stage runs when the study was first run: what it adds itself is none of it.

    The fingerprints are noted in the study's folder, so that a killed study begins with the same.
    """
    path = out / "warm-start.json"
    if not path.exists():
        write_atomically(path, json.dumps([entry.fingerprint for entry in store.entries()]))
    found = (store.find(fingerprint) for fingerprint in json.loads(path.read_text(encoding="utf-8")))
    return [
        {**entry.about, "metrics": entry.metrics} for entry in found if entry is not None and "order" in entry.about
    ]


def stored_scores(run: Run, cell: Cell, entries: Iterable[Mapping[str, Any]]) -> list[tuple[Values, float]]:
    """Configurations of the cell's space that the store holds a score of: values, and the mean over their seeds."""
    target = run.study.header.tune.target
    scores: dict[str, tuple[Values, list[float]]] = {}
    for entry in entries:
        order = entry["order"]
        whole = order["kind"] == "finetune" and order.get("until") is None and not order["on_test"]
        if not whole or target not in entry["metrics"]:
            continue
        values = in_space({"finetune": cell.template["finetune"]}, {"finetune": order["settings"]})
        if values is not None and is_of(run, cell, values, order):
            scores.setdefault(repr(sorted(values.items())), (values, []))[1].append(entry["metrics"][target])
    return [(values, float(np.mean(found))) for _, (values, found) in sorted(scores.items())]


def is_of(run: Run, cell: Cell, values: Values, order: Mapping[str, Any]) -> bool:
    """Whether the cell with these values is what was ordered, its pretraining apart."""
    configuration = cell.configuration(chosen(values))
    if configuration.finetune is None or configuration.model.model_dump(mode="json") != order["model"]:
        return False
    same = configuration.finetune.model_dump(mode="json", exclude={"data"})
    theirs = {key: value for key, value in order["settings"].items() if key != "data"}
    data = configuration.data[configuration.finetune.data]
    split = data.split.model_dump(mode="json")  # the same test images, and validation drawn in the same way
    return same == theirs and run.digest_of(data) == order["digest"] and split == order["data"]["split"]


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


def distributions_of(ranges: Mapping[str, space.Range]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's distribution of every parameter of every range."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    suggest = space.suggest_from(trial)
    for name, item in ranges.items():
        suggest(name, item)
    return dict(trial.distributions)
