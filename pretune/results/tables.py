"""Files that a study leaves in its output folder, for `analysis` and for people.

study.yaml          the study as resolved: scales and --set applied
study.json          header for analysis: factors, cells, report
results.parquet     tidy: one row per (cell, replicate, stage run, metric); equal for equal results
stage_runs.parquet  one row per stage run: seconds, attempt, machine, when it started (since 1970) and in which process
searches.parquet    one row per configuration that a search asked for: values, what it was told, why it was stopped
test_images.parquet one row per confirmed fine-tuning: pixel counts of every test image, for resampling images
curves.parquet      tidy: one row per (cell, replicate, stage run, step, metric) of the learning curves
table.md table.csv  the result table (written by analysis)
best/               the best model: weights, settings, scores
optuna.journal      the searches, readable by optuna-dashboard
status.json         for `pretune status`
pretune.log         every event, with its time
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pretune.analysis.load.results import STUDY_FORMAT
from pretune.analysis.load.searches import listed_values
from pretune.errors import SearchStorageError
from pretune.outcomes import Outcome, Outcomes
from pretune.results.image_counts import read_counts
from pretune.results.warnings import warnings_of
from pretune.search.replicates import ReplicatePlan, Run, TrialRecord, Values, stages_in
from pretune.search_spaces import schema, space
from pretune.search_spaces.cells import Cell
from pretune.search_spaces.metrics import (
    definition_of,
    direction_of,
    scored_by,
    sign_of,
    to_json,
    turned,
)
from pretune.search_spaces.resolve import Study
from pretune.search_spaces.stages import DigestOf, Stage
from pretune.store.store import Entry, Store, write_atomically
from pretune.trainables.files import HISTORY, NOTES, WEIGHTS

Row = dict[str, Any]


def write_header(study: Study, folder: Path, digest_of: DigestOf | None = None) -> None:
    """study.yaml and study.json; `digest_of` names the content of the data."""
    write_atomically(folder / "study.yaml", study.to_yaml())
    report, tune = study.header.report, study.header.tune
    content = {
        "format": STUDY_FORMAT,
        "study": study.name,
        "scale": study.scale,
        "question": study.header.question,
        "factors": {name: list(levels) for name, levels in study.factors.items()},
        "cells": [{"label": cell.label, "levels": cell.levels} for cell in study.cells],
        "report": report.model_dump(mode="json"),
        "seeds": study.header.seeds.model_dump(mode="json"),
        "published": study.published,
        "tune": tune.model_dump(mode="json"),
        "ranges": described_ranges(study),
        "sets": sets_of_levels(study),
        "metrics": {
            name: to_json(turned(definition_of(name), name, tune.target, tune.direction)) for name in compared_by(study)
        },
        "checkpoints": {cell.label: _checkpoint(cell) for cell in study.cells if "finetune" in cell.template},
        "data": {} if digest_of is None else data_digests(study, digest_of),
        "tasks": {cell.label: task_of(cell) for cell in study.cells if "finetune" in cell.template},
    }
    write_atomically(folder / "study.json", json.dumps(content, indent=1))


def _checkpoint(cell: Cell) -> str:
    """The weights of a cell's fine-tunings that are scored: last, best, or "tuned" where that is searched."""
    found = cell.template["finetune"].get("checkpoint", "last")
    return found if isinstance(found, str) else "tuned"


def task_of(cell: Cell) -> str:
    """The data set that a cell is fine-tuned on: its kind, and its folder where the study names one."""
    settings = cell.configuration()
    assert settings.finetune is not None
    data = settings.data[settings.finetune.data]
    root = getattr(data, "root", None)  # invented images have none
    return data.dataset if root is None else f"{data.dataset} ({root})"


def data_digests(study: Study, digest_of: DigestOf) -> dict[str, list[str]]:
    """Data set by its name in the study -> digests of its content, several where its settings are a factor."""
    found: dict[str, set[str]] = {}
    for settings in {
        json.dumps(space.to_plain(cell.template.get("data")), sort_keys=True, default=str): cell for cell in study.cells
    }.values():
        for name, data in settings.configuration().data.items():
            found.setdefault(name, set()).add(digest_of(data))
    return {name: sorted(digests) for name, digests in found.items()}


def compared_by(study: Study) -> list[str]:
    """Metrics that this study's tables show or its searches go by: what they mean is stored with the results."""
    report, tune = study.header.report, study.header.tune
    searched = (tune.target, scored_by(tune.pretrain.target, tune.target), *tune.also, *tune.constraints)
    return list(dict.fromkeys((*report.metrics, *searched)))


def readable(cell: Cell, values: Values) -> Values:
    """Chosen values as a study file would write them: keys as there, an option's name in place of its number."""
    ranges = dict(cell.all_ranges)
    return {
        written_key(cell, name): item.labels()[value] if isinstance(item := ranges.get(name), space.Choice) else value
        for name, value in values.items()
    }


def written_key(cell: Cell, name: str) -> str:
    """Dotted key as a study file has it: `pretrain` is a list only where it is a chain."""
    alone = len(cell.template["pretrain"]) == 1 and name.startswith("pretrain.0.")
    return name.replace("pretrain.0.", "pretrain.", 1) if alone else name


def values_reaching(use: ReplicatePlan, stage: Stage) -> Values:
    """Chosen values that a stage depends on: of a pretraining, and of its probes, those of the pretraining alone."""
    if stage.kind == "finetune":
        return use.values
    own = set(use.cell.ranges("pretrain"))
    return {name: value for name, value in use.values.items() if name in own}


def shown_values(use: ReplicatePlan, stage: Stage) -> str:
    """'finetune.optimizer.lr 0.003', for people."""
    return listed_values(readable(use.cell, values_reaching(use, stage)))


def parameters(use: ReplicatePlan, name: str, stage: Stage) -> Row:
    """Return what tells a stage run from others of its study, in the words of results.parquet."""
    seed = use.replicate.finetune if stage.kind == "finetune" else use.replicate.pretrain
    levels = {f"factor.{factor}": level for factor, level in use.cell.levels.items()}
    chosen = readable(use.cell, values_reaching(use, stage))
    return {"stage": name, "phase": use.phase, "seed": seed} | levels | chosen


def described_ranges(study: Study) -> dict[str, Any]:
    """Every range of the study by its dotted key, as a study file writes it; a choice by its options' names."""
    found: dict[str, Any] = {}
    for cell in study.cells:
        for name, item in cell.all_ranges:
            plain = {"choice": list(item.labels())} if isinstance(item, space.Choice) else space.to_plain(item)
            found[written_key(cell, name)] = plain
    return found


def sets_of_levels(study: Study) -> dict[str, dict[str, list[str]]]:
    """Factors whose levels are sets of one setting, as transforms are: factor -> level -> members.

    Only named levels that set exactly one list of names, the same key in each; a level without it (a baseline without
    pretraining) is left out.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for factor, levels in (yaml.safe_load(study.to_yaml()).get("factors") or {}).items():
        named = {str(name): over for name, over in levels.items() if isinstance(over, dict)}
        lists = {
            (key, level): value
            for level, over in named.items()
            for key, value in over.items()
            if isinstance(value, list) and all(isinstance(item, str) for item in value)
        }
        keys = {key for key, _ in lists}
        if len(keys) == 1 and len(lists) > 1:
            found[factor] = {level: value for (_, level), value in lists.items()}
    return found


def in_order(study: Study, uses: Sequence[ReplicatePlan]) -> list[ReplicatePlan]:
    """Search before confirm, then cell by cell, in each in the order of asking: searches of several cells run side by
    side, and which of them asked first is a matter of timing that no result may show."""
    place = {cell.label: i for i, cell in enumerate(study.cells)}
    return sorted(
        uses,
        key=lambda use: (
            ("search", "select", "confirm").index(use.phase),
            place[use.cell.label],
            list(use.stages) if use.pair else [],
        ),
    )


def result_rows(study: Study, uses: Sequence[ReplicatePlan], outcomes: Outcomes) -> list[Row]:
    """One row per (cell, replicate, stage run, metric), in the order in which they were asked for.

    A pretraining that several cells share stands there once per phase, with an empty cell and the levels that these
    cells have in common; failed stage runs are rows without a metric. What has not ended is left out.
    """
    rows: list[Row] = []
    shared = _shared(uses)
    for placed in _placed(uses, outcomes):
        key = placed.stage.fingerprint
        levels, cells = (placed.use.cell.levels, "") if placed.cell else _where_shared(study, shared[key])
        rows += _rows(study, placed, outcomes[key], levels, cells)
    return rows


def _where_shared(study: Study, sharing: Sequence[Cell]) -> tuple[Mapping[str, str], str]:
    """Levels that the cells sharing a stage have in common; labels as JSON where others have these levels too."""
    levels = common_levels(sharing)
    alike = [cell for cell in study.cells if all(cell.levels.get(name) == level for name, level in levels.items())]
    return levels, json.dumps([cell.label for cell in sharing]) if len(alike) > len(sharing) else ""


def common_levels(cells: Sequence[Cell]) -> dict[str, str]:
    """Factor -> level, of the factors in which all cells have one level."""
    first, *others = (cell.levels for cell in cells)
    return {name: level for name, level in first.items() if all(other.get(name) == level for other in others)}


class _Placed(NamedTuple):
    """A stage run that has ended, in one of its places in the results."""

    use: ReplicatePlan
    name: str  # of the stage
    stage: Stage
    cell: str  # its label; "" where several cells share the stage


def _placed(uses: Sequence[ReplicatePlan], outcomes: Outcomes) -> Iterator[_Placed]:
    """Every stage run that has ended, once for each place in the results."""
    shared = _shared(uses)
    seen: set[tuple[str, str, str, str, str]] = set()
    for use in uses:
        for name, stage in use.stages.items():
            cell = "" if stage.fingerprint in shared else use.cell.label
            key = (use.phase, cell, name, stage.fingerprint, "" if not cell else str(use.replicate.seed))
            if stage.fingerprint in outcomes and key not in seen:
                seen.add(key)
                yield _Placed(use, name, stage, cell)


def _shared(uses: Sequence[ReplicatePlan]) -> dict[str, list[Cell]]:
    """Pretrainings and their probes that more than one cell uses, and which do; a pairwise probe is of its cells."""
    cells: dict[str, dict[str, Cell]] = {}
    for use in uses:
        for stage in use.stages.values():
            if stage.kind != "finetune" and not use.pair:
                cells.setdefault(stage.fingerprint, {})[use.cell.label] = use.cell
    return {key: list(found.values()) for key, found in cells.items() if len(found) > 1}


def _rows(study: Study, placed: _Placed, outcome: Outcome, levels: Mapping[str, str], cells: str) -> Iterator[Row]:
    use, name, stage, cell = placed
    head: Row = {"study": study.name, "phase": use.phase, "cell": cell}
    head |= {f"factor.{factor}": levels.get(factor) for factor in study.factors}
    head |= {"configuration": use.configuration if cell else "", "seed": use.replicate.seed}
    head |= {"seed_pretrain": use.replicate.pretrain, "seed_finetune": use.replicate.finetune}
    head |= {
        "stage": name,
        "method": stage.method,
        "fingerprint": stage.fingerprint,
        "outcome": outcome.state,
        "cause": outcome.cause,
    }
    chosen = use.values if cell else values_reaching(use, stage)  # all cells that share a stage have these
    head |= {"chosen": json.dumps(readable(use.cell, chosen), sort_keys=True)}
    head |= {"cells": cells}
    head |= {"until": None if use.until is None else f"{use.until.part} {use.until.epochs}"}  # a rung, not a whole run
    metrics = {metric_name(name, metric): value for metric, value in outcome.metrics.items()}
    for metric, value in (metrics or {"": math.nan}).items():
        yield head | {"metric": metric, "value": float(value)}


def metric_name(stage: str, metric: str) -> str:
    """A probe's metric carries the probe's name, which its fingerprint does not: probe/NAME/accuracy, and of a
    pairwise one the other level too: probe/NAME/LEVEL/output."""
    if stage.startswith("probe:"):
        return metric.replace("probe/", f"probe/{stage.removeprefix('probe:')}/", 1)
    return metric


def write_results(study: Study, uses: Sequence[ReplicatePlan], outcomes: Outcomes, store: Store, folder: Path) -> None:
    """results.parquet and stage_runs.parquet, each replaced whole."""
    uses = in_order(study, uses)
    rows = result_rows(study, uses, outcomes)
    if rows:
        frame = pd.DataFrame(rows)
        entries = {key: entry for key in stages_in(uses) if (entry := store.find(key))}
        weights = [_weights_hash(entries.get(key)) for key in frame["fingerprint"]]
        _write_parquet(frame.assign(weights=weights), folder / "results.parquet")
        if entries:  # no stage run ended where everything crashed
            methods = [stage.method for key, stage in stages_in(uses).items() if key in entries]
            ran = pd.DataFrame(map(_stage_run, entries.values()))
            _write_parquet(ran.assign(method=methods), folder / "stage_runs.parquet")
    if curves := list(curve_rows(uses, outcomes, store)):
        _write_parquet(pd.DataFrame(curves), folder / "curves.parquet")


def _weights_hash(entry: Entry | None) -> str:
    """SHA-256 of the weights that a stage run left; "" where it left none."""
    return "" if entry is None or WEIGHTS not in entry.files else str(entry.files[WEIGHTS]["sha256"])


def curve_rows(uses: Sequence[ReplicatePlan], outcomes: Outcomes, store: Store) -> Iterator[Row]:
    """The learning curves that finished stage runs left in the store, in the places their results have."""
    read = functools.cache(functools.partial(_history, store))
    for use, name, stage, cell in _placed(uses, outcomes):
        head: Row = {"phase": use.phase, "cell": cell, "seed": use.replicate.seed, "stage": name}
        head["fingerprint"] = stage.fingerprint
        for point in read(stage.fingerprint):
            where = {"step": int(point["step"]), "epoch": float(point["epoch"])}
            values = {metric: value for metric, value in point.items() if metric not in where}
            yield from (head | where | {"metric": metric, "value": float(value)} for metric, value in values.items())


def _history(store: Store, fingerprint: str) -> tuple[Mapping[str, float], ...]:
    """Return the records of a stage run while it trained; a probe writes none."""
    entry = store.find(fingerprint)
    if entry is None or HISTORY not in entry.files:
        return ()
    return tuple(json.loads(store.file(entry, HISTORY).read_text(encoding="utf-8")))


def _stage_run(entry: Entry) -> Row:
    size = sum(int(about["size"]) for about in entry.files.values())
    row = {"fingerprint": entry.fingerprint, "stage": entry.stage, "outcome": entry.outcome, "seconds": entry.seconds}
    row |= {"bytes": size, "attempt": entry.attempt, "machine": json.dumps(entry.about.get("machine"))}
    return row | {"started": entry.about.get("started"), "pid": entry.about.get("pid")}


def write_searches(study: Study, run: Run, folder: Path) -> None:
    """searches.parquet, and in study.json what should be known beside the table."""
    rows = [_search_row(run, trial) for trial in in_search_order(study, run.trials)]
    if rows:
        frame = pd.DataFrame(rows)
        if study.header.tune.also:
            frame["front"] = [on_front(row, rows, study.header.tune) for row in rows]
        _write_parquet(frame, folder / "searches.parquet")
    notes = sorted({*study.warnings, *run.notes})
    if notes and (folder / "study.json").exists():
        header = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        write_atomically(folder / "study.json", json.dumps(header | {"notes": notes}, indent=1))


def in_search_order(study: Study, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Searches by the first cell that they are for, since which of them began first is a matter of timing."""
    place = {cell.label: i for i, cell in enumerate(study.cells)}
    return sorted(trials, key=lambda one: (place[one.cells[0]], one.search, one.index))


def _search_row(run: Run, trial: TrialRecord) -> Row:
    result, study = trial.result, run.study
    tune = study.header.tune
    cell = next(cell for cell in study.cells if cell.label == trial.cells[0])
    went_on = {  # to the selection, to the table: with what a later search found beside it
        use.phase
        for use in run.replicates
        if use.phase != "search" and use.cell.label in trial.cells and trial.values.items() <= use.values.items()
    }
    row: Row = {"search": trial.search, "cells": json.dumps(trial.cells), "index": trial.index}
    row |= {"told": result.state, "value": result.value, "reason": result.reason}
    row |= {"reached": result.reached if result.state == "partial" else None}
    row |= {"selected": "select" in went_on, "confirmed": "confirm" in went_on}
    scores = [score if math.isfinite(score) else None for score in result.scores]  # None: no score at that seed
    row |= {"scores": json.dumps(scores), "chosen": json.dumps(readable(cell, trial.values), sort_keys=True)}
    row |= {f"also.{name}": value for name, value in zip(tune.also, result.also, strict=False)}
    return row | {f"over.{name}": value for name, value in zip(tune.constraints, result.over, strict=False)}


def on_front(row: Row, rows: Sequence[Row], tune: schema.Tune) -> bool:
    """Whether no other configuration of its search is at least as good in every target and better in one."""
    if row["told"] != "complete":
        return False
    mine = _goodness(row, tune)
    others = [_goodness(r, tune) for r in rows if r["search"] == row["search"] and r["told"] == "complete"]
    return not any(all(a >= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)


def _goodness(row: Row, tune: schema.Tune) -> tuple[float, ...]:
    """The targets, larger is better."""
    first = sign_of(direction_of(tune.target, tune.direction)) * row["value"]
    return (first, *(sign_of(direction_of(name)) * row[f"also.{name}"] for name in tune.also))


def own_name(study: Study, folder: Path) -> str:
    """Return the key of this study's searches in a shared database: its name, and an identity of its folder."""
    path = folder / "search-id"
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:12])
    own = path.read_bytes().decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{12}", own):
        raise SearchStorageError(
            f"{path} is damaged: it tells this study's searches in the database from those of others; restore it, or "
            "delete it, and they begin anew"
        )
    return f"{study.name} {own}/"


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_page_checksum=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


# -------------------------------------------------------------------------------------------------------- the model


def keep_best(
    study: Study, uses: Sequence[ReplicatePlan], outcomes: Outcomes, store: Store, folder: Path
) -> Path | None:
    """Copy the weights of the best fine-tuning to `best/`: the cell with the best mean validation score, and in it
    the replicate with the best; the test set has no say in it."""
    target = study.header.tune.target
    sign = sign_of(direction_of(target, study.header.tune.direction))
    scored: dict[str, list[tuple[float, ReplicatePlan]]] = {}
    for use in in_order(study, uses):
        outcome = outcomes.get(use.stages["finetune"].fingerprint) if "finetune" in use.stages else None
        if use.phase == "confirm" and outcome is not None and target in outcome.metrics:
            scored.setdefault(use.cell.label, []).append((sign * outcome.metrics[target], use))
    if not scored:
        return None
    label = max(scored, key=lambda name: float(np.mean([value for value, _ in scored[name]])))
    _, use = max(scored[label], key=lambda item: item[0])
    entry = store.find(use.stages["finetune"].fingerprint)
    if entry is None:
        return None
    warnings = warnings_of(study, use, uses, outcomes, read_counts(store, entry))
    files = {name: store.file(entry, name) for name in (WEIGHTS, NOTES)}
    more = {"weights": _starting_weights(use.stages["finetune"], store), "warnings": warnings}
    return _copy_model(study, use, outcomes, files, more, folder / "best")


def _starting_weights(stage: Stage, store: Store) -> list[dict[str, str]]:
    """Sources, and sha256 of files, of the ready-made weights that a chain of stages began with."""
    found = []
    for parent in stage.ancestors():
        settings = parent.settings
        if not isinstance(settings, schema.Pretrain) or not isinstance(settings.method, schema.Weights):
            continue
        if (entry := store.find(parent.fingerprint)) is not None:
            notes = json.loads(store.file(entry, NOTES).read_text(encoding="utf-8"))
            found.append({key: notes[key] for key in ("source", "sha256") if key in notes})
    return found


def _copy_model(
    study: Study,
    use: ReplicatePlan,
    outcomes: Outcomes,
    files: Mapping[str, Path],
    more: Mapping[str, Any],
    target: Path,
) -> Path:
    target.mkdir(exist_ok=True)
    stage = use.stages["finetune"]
    shutil.copyfile(files[WEIGHTS], target / WEIGHTS)
    notes: Mapping[str, Any] = json.loads(files[NOTES].read_text(encoding="utf-8"))
    order = "RGB, channels first" if schema.slices_of(stage.data) is None else "grey volumes, channels first"
    card = {
        "study": study.name,
        "cell": use.cell.label,
        "seed": use.replicate.seed,
        "fingerprint": stage.fingerprint,
        "chosen": readable(use.cell, use.values),
        "levels": use.cell.levels,
        "question": study.header.question,
        "target": study.header.tune.target,
        "model": stage.model.model_dump(mode="json"),
        "data": stage.data.model_dump(mode="json", exclude={"root"}),
        "data_digest": stage.digest,
        "pretraining": [parent.settings.model_dump(mode="json") for parent in stage.ancestors()],
        "pretraining_data": [parent.data.model_dump(mode="json", exclude={"root"}) for parent in stage.ancestors()],
        "finetune": stage.settings.model_dump(mode="json"),
        "classes": notes["classes"],
        "input": {"size": notes["size"], "range": [0.0, 1.0], "order": order},
        "test": notes["test"] if stage.on_test else [],
        "scores": dict(outcomes[stage.fingerprint].metrics),
        **more,
    }
    write_atomically(target / "model.json", json.dumps(card, indent=1))
    return target
