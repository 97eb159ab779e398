"""Studies that once failed after training, or trained nothing, are refused by plan (../shared/cases)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.data.preflight import check_before_training
from pretune.data.requirements import facts_before_decoding
from pretune.search_spaces.document import StudyError
from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.resolve import load

CASES = Path(__file__).parents[4] / "shared" / "cases"

REFUSED = {
    "late-refusals/bn.yaml": "finetune.batch_size: 4 leaves one of 5 labelled images for the last step of an epoch, "
    "and at 8 px the coarsest features of unet have one place",
    "late-refusals/dino.yaml": "pretrain.method.local_size: small views of 1 px are below 2",
    "late-refusals/metric.yaml": "report.metrics: test/jaccard/zzz names a class that scenes does not have",
    "late-refusals/moco.yaml": "pretrain.method.queue: 4 cannot hold a batch of 6 images",
    "late-refusals/rows.yaml": "report.columns: factor 'c' is in the rows and in the columns",
    "late-refusals/swav.yaml": "pretrain.method.queue: 4 cannot hold a batch of 6 images",
    "late-refusals/target.yaml": "tune.target: val/jaccard/zzz names a class that scenes does not have",
    "late-refusals/warmup.yaml": "finetune.schedule.warmup_epochs: a warm-up of 99 epochs does not end within the 1",
    "mae-sees-nothing/black.yaml": "pretrain.method.patch: one patch covers a view of 16 px (patch 20)",
    "mae-sees-nothing/none.yaml": "pretrain.method.patch: 4 patches cover a view of 16 px (patch 8), and a ratio of "
    "0.1 masks nothing",
}
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


@needs_cases
@pytest.mark.parametrize("file", REFUSED)
def test_a_case_is_refused_before_anything_trains(file: str) -> None:
    with pytest.raises((StudyError, UsageError)) as error:
        check_before_training(load(CASES / file), facts_before_decoding(None))
    problem = str(error.value).splitlines()[-1]
    assert REFUSED[file] in problem


@needs_cases
@pytest.mark.parametrize("folder", ["late-refusals", "mae-sees-nothing"])
def test_no_case_is_left_out(folder: str) -> None:
    found = {f"{folder}/{file.name}" for file in (CASES / folder).glob("*.yaml")}
    assert found == {file for file in REFUSED if file.startswith(folder)}
