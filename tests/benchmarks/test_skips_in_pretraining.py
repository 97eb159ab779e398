"""Which network each arm pretrains and fine-tunes, and that an interrupted table goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas
import pytest

from benchmarks import skips_in_pretraining
from benchmarks.skips_in_pretraining import ARMS, finetunings
from pretune.worker.task import Folders

WHERE = Folders("store", "cache", None)


@pytest.fixture(autouse=True)
def no_images(monkeypatch) -> None:
    monkeypatch.setattr(skips_in_pretraining, "prepared", lambda study, where: lambda settings: "digest")


def test_only_the_pretraining_loses_its_skips() -> None:
    bare, with_skips = (
        finetunings(ARMS[name], 4, WHERE) for name in ("MAE, half masked, no skips", "MAE, half masked")
    )
    assert set(bare) == {0, 1, 2}
    for seed, stage in bare.items():
        other = with_skips[seed]
        assert (stage.model, stage.settings, stage.streams) == (other.model, other.settings, other.streams)
        assert stage.fingerprint != other.fingerprint
        parent, skipped = stage.parent, other.parent
        assert parent is not None
        assert skipped is not None
        assert (parent.model.skip_connections, skipped.model.skip_connections) == (False, True)
        assert (parent.settings, parent.streams) == (skipped.settings, skipped.streams)
    assert len({stage.fingerprint for stage in bare.values()}) == 3


def test_the_arm_without_pretraining_has_no_parent() -> None:
    assert [stage.parent for stage in finetunings(ARMS["no pretraining"], 0, WHERE).values()] == [None] * 3


def test_scores_are_kept_a_seed_at_a_time_and_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        skips_in_pretraining, "score", lambda stage, name, where: {"test/dice": 0.5, "test/jaccard": 0.4}
    )
    arguments = ["skips", "--data", str(tmp_path), "--out", str(tmp_path), "--arms", "no pretraining|MAE, half masked"]
    monkeypatch.setattr(sys, "argv", arguments)
    skips_in_pretraining.main()
    skips_in_pretraining.main()
    scores = pandas.read_csv(tmp_path / "skips.csv")
    assert len(scores) == 2 * 3 * 2
    assert scores["seed"].is_monotonic_increasing
    assert scores.set_index("arm")["epochs"].to_dict() == {"no pretraining": 0, "MAE, half masked": 4}
