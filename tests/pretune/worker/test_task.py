"""A task crosses the process boundary whole, and leaves in the store what readers of old stores know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pretune import search_spaces
from pretune.search_spaces import space
from pretune.search_spaces.resolve import load
from pretune.search_spaces.stages import Stage, encoder_stage, fingerprint, pair_stage, replicates, stages_of
from pretune.store.lookup import TASK, costs, task_of
from pretune.store.store import Entry
from pretune.worker.task import Folders, StageTask

SHIPPED = sorted(Path(search_spaces.__file__).parent.glob("*/*.yaml"))
FOLDERS = Folders("s3://bucket/store", "/cache", "/data", "/shared/.seen-1")


def stages(path: Path) -> Iterator[Stage]:
    """Stages of every cell of a study, ranges at their centres; a pairwise probe of an encoder with itself."""
    study = load(path)
    (first, *_) = replicates(study.header.seeds, "report")
    content = lambda data: fingerprint({"data": data.dataset})  # noqa: E731
    for cell in study.cells:
        configuration = cell.configuration(space.centre)
        made = stages_of(configuration, first, study.header, content, True)
        yield from made.values()
        for name, probe in configuration.probe.items():
            if probe.kind == "cka" and (encoder := encoder_stage(made, probe.of)):
                yield pair_stage(configuration, name, first, study.header, content, (encoder, encoder))


def lineage(stage: Stage) -> list[Stage]:
    return [*stage.ancestors(), stage]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_field_of_every_shipped_stage_survives(path: Path) -> None:
    for stage in {stage.fingerprint: stage for stage in stages(path)}.values():
        task = StageTask(stage, "a stage", 0.5, FOLDERS, 7.0)
        back = StageTask.from_json(task.to_json())
        assert (back.label, back.gpus, back.folders, back.checkpoint_seconds) == ("a stage", 0.5, FOLDERS, 7.0)
        assert len(lineage(back.stage)) == len(lineage(stage))
        for one, other in zip(lineage(stage), lineage(back.stage), strict=True):
            for field in fields(Stage):
                assert getattr(one, field.name) == getattr(other, field.name), field.name
                assert type(getattr(one, field.name)) is type(getattr(other, field.name)), field.name


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_record_holds_what_old_stores_hold_under_the_same_names(path: Path) -> None:
    """Written as JSON beside each field as it was written before: models dumped one by one, parents by fingerprint."""
    for stage in {stage.fingerprint: stage for stage in stages(path)}.values():
        record = StageTask(stage, "a stage", 0.5, FOLDERS).record()
        assert json.loads(json.dumps(record)) == record
        before = {
            "fingerprint": stage.fingerprint,
            "kind": stage.kind,
            "name": stage.name,
            "settings": stage.settings.model_dump(mode="json"),
            "model": stage.model.model_dump(mode="json"),
            "data": stage.data.model_dump(mode="json"),
            "digest": stage.digest,
            "streams": stage.streams,
            "parent": stage.parent.fingerprint if stage.parent else None,
            "other": stage.other.fingerprint if stage.other else None,
            "gpus": 0.5,
            "workers": stage.resources.workers,
            "on_test": stage.on_test,
            "until": stage.until,
            "series": stage.series,
            "reach": stage.reach,
            "keep_state": stage.keep_state,
        }
        assert {name: record[name] for name in before} == before


def test_an_entry_of_an_old_store_is_read_and_one_without_a_task_costs_its_seconds() -> None:
    order = {"fingerprint": "f", "gpus": 0.5, "workers": 4, "threads": 2, "folders": None}
    old = Entry("f", "a", "finetune", "finished", "", {}, 10.0, {}, {"order": order, "machine": {"gpu_memory": 3}})
    assert task_of(old) == order
    assert costs(old) == {"cost/seconds": 10.0, "cost/gpu_seconds": 20.0, "cost/gpu_memory": 3.0}
    none = Entry("f", "a", "finetune", "finished", "", {}, 10.0)
    assert (TASK, task_of(none)) == ("order", {})
    assert costs(none) == {"cost/seconds": 10.0, "cost/gpu_seconds": 0.0}
