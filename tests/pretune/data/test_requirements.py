"""A study whose data do not have what it asks for: refused by plan and run before anything, and never retried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from pretune.cli import cli
from pretune.data.requirements import cut_batches, facts_before_decoding, unmet_requirements
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import Outcome
from pretune.plan import make_plan
from pretune.run import Options, run_study
from pretune.search_spaces.resolve import from_dict
from pretune.trainables.data.errors import RequirementsError
from pretune.trainables.data.resident.digest import content_digest
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask


def photos(root: Path, n: int = 10) -> dict[str, Any]:
    """A folder of images without classes."""
    root.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(root / f"{i}.png")
    return {"dataset": "image-folder", "root": str(root), "cache_size": 8}


@pytest.fixture
def asking(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Asks for more labels than the 22 training images in one of two cells, and for the classes of plain photos."""
    tiny["data"]["photos"] = photos(tmp_path / "photos")
    tiny["factors"] = {"labels": {"finetune.labels": [10, 30]}}
    tiny["report"] = {"rows": "labels", "metrics": ["test/jaccard"]}
    tiny["probe"] = {"seen": {"kind": "knn", "data": "photos", "size": 16}}
    return tiny


LABELS = "finetune.labels: 30 labelled images requested, but data.scenes (scenes) has 22 images for training"
PROBE = "probe.seen: knn needs image classes, but data.photos (image-folder) has none"


def test_every_problem_is_named_once_with_its_cells(asking: dict[str, Any]) -> None:
    first, second = unmet_requirements(from_dict(asking), facts_before_decoding(None))
    assert first.startswith(PROBE)
    assert "(cell" not in first
    assert second.startswith(LABELS)
    assert second.endswith("(cell labels=30)")


def test_a_batch_that_is_larger_than_the_images_is_told_with_its_cells(tiny: dict[str, Any]) -> None:
    """22 images for training, of which one of two cells uses 10 labels: a batch of 16 is cut in that cell alone."""
    tiny["factors"] = {"labels": {"finetune.labels": [10, "all"]}}
    tiny["report"] = {"rows": "labels", "metrics": ["test/jaccard"]}
    tiny["pretrain"]["batch_size"], tiny["finetune"]["batch_size"] = 80, 16
    assert cut_batches(from_dict(tiny), facts_before_decoding(None)) == [
        "pretrain.batch_size: 80 is cut to 22, the number of images that it sees",
        "finetune.batch_size: 16 is cut to 10, the number of labelled images (cell labels=10)",
    ]
    tiny["pretrain"]["batch_size"], tiny["finetune"]["batch_size"] = 22, 10
    assert not cut_batches(from_dict(tiny), facts_before_decoding(None))


def test_both_ends_of_a_range_are_looked_at(tiny: dict[str, Any]) -> None:
    tiny["finetune"]["labels"] = {"int": [5, 23]}
    found = unmet_requirements(from_dict(tiny), facts_before_decoding(None))
    assert [sentence.split(",")[0] for sentence in found] == ["finetune.labels: 23 labelled images requested"]


@pytest.mark.parametrize(("labels", "refused"), [(24, False), (25, True)])
def test_the_fold_with_the_most_images_decides(tiny: dict[str, Any], labels: int, refused: bool) -> None:
    """30 images that are not test in 4 parts: 8, 8, 7 and 7; 22 to 23 are left, and with 5 parts of 6 it is 24."""
    tiny["data"]["scenes"]["split"] = {"test": 10, "val_folds": 5}
    tiny["finetune"]["labels"] = labels
    assert bool(unmet_requirements(from_dict(tiny), facts_before_decoding(None))) == refused
    tiny["data"]["scenes"]["split"] = {"test": 10, "val_folds": 4}
    tiny["finetune"]["labels"] = 23
    assert unmet_requirements(from_dict(tiny), facts_before_decoding(None))


def test_data_that_are_not_at_hand_are_not_judged(asking: dict[str, Any], tmp_path: Path) -> None:
    asking["data"]["photos"]["root"] = str(tmp_path / "elsewhere")
    (only,) = unmet_requirements(from_dict(asking), facts_before_decoding(None, missing=True))
    assert only.startswith(LABELS)


def test_data_that_are_not_at_hand_are_judged_by_their_settings(tiny: dict[str, Any], tmp_path: Path) -> None:
    photos = {"dataset": "image-folder", "root": str(tmp_path / "elsewhere"), "split": {"val": 0}}
    tiny["data"]["photos"] = photos
    tiny["finetune"] |= {"data": "photos", "checkpoint": "best"}
    found = unmet_requirements(from_dict(tiny), facts_before_decoding(None, missing=True))
    assert [sentence.split(",")[0] for sentence in found] == [
        "finetune.data: photos needs masks",
        "finetune.checkpoint: best needs validation images",
    ]
    photos["split"] = {"val_folds": 5}
    assert len(unmet_requirements(from_dict(tiny), facts_before_decoding(None, missing=True))) == 1


@pytest.mark.parametrize("command", ["plan", "run"])
def test_plan_and_run_refuse_before_anything_is_decoded(asking: dict[str, Any], tmp_path: Path, command: str) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(asking))
    ended = CliRunner().invoke(cli, [command, str(tmp_path / "study.yaml"), "--root", str(tmp_path / "runs")])
    assert isinstance(ended.exception, RequirementsError)  # which the console script ends with exit code 2
    assert [problem.split(",")[0] for problem in ended.exception.problems] == [
        PROBE.split(",")[0],
        LABELS.split(",")[0],
    ]
    assert not list((tmp_path / "runs").glob("cache/*/images.npy"))


def test_what_is_left_after_skipping_bad_files_counts(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Ten images are listed, seven of them can be read; one is test, one validation."""
    chosen = photos(tmp_path / "photos")
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"")
    tiny["data"]["photos"] = chosen | {"on_error": "skip", "split": {"test": 1, "val": 5}}
    tiny["pretrain"] |= {"data": "photos", "views": {"size": 8}}
    del tiny["finetune"], tiny["factors"]
    tiny["report"] = {"metrics": []}
    tiny["probe"] = {"maps": {"kind": "maps", "data": "photos", "size": 8}}
    assert unmet_requirements(from_dict(tiny), facts_before_decoding(None)) == []
    with pytest.raises(RequirementsError, match="shows pretraining 1 image of the 7"):
        run_study(from_dict(tiny), Options(tmp_path / "out", tmp_path / "store", tmp_path / "cache"), _quiet())


def _quiet() -> Any:
    import io

    from rich.console import Console

    return Console(file=io.StringIO())


def test_a_stage_that_finds_out_itself_is_told_and_never_tried_again(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["finetune"] |= {"labels": 30, "transfer": "none"}
    del tiny["pretrain"]
    _, stages = make_plan(from_dict(tiny | {"factors": {}, "report": {}}), lambda data: content_digest(data, None))
    folders = Folders(str(tmp_path / "store"), str(tmp_path / "cache"), None)
    outcome = execute(StageTask(stages[0], "a fine-tuning", 0.0, folders), lambda values: None)
    assert (outcome.state, outcome.failure) == ("crashed", "bad_data")
    assert outcome.cause.startswith(f"finetune cannot run on data.scenes: | {LABELS}")

    events: list[str] = []
    scheduler = Scheduler(lambda fingerprint: None, 2, lambda kind, stage, text: events.append(kind))
    scheduler.start([iter_program(stages[0])])
    taken = scheduler.take()
    assert taken is not None
    scheduler.complete(taken, outcome)
    assert events == ["started", "crashed"]
    assert scheduler.outcomes[taken.fingerprint] == outcome
    assert scheduler.outcomes[taken.fingerprint] != Outcome("crashed", {}, outcome.cause)


def iter_program(stage: Any) -> Any:
    yield [stage]
    return []
