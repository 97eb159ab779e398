"""What searches asked and found out, from searches.parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest

from pretune.analysis.load.results import ResultsError
from pretune.analysis.load.searches import load_notes, load_searches, summaries


def row(search: str, index: int, told: str, reason: str = "") -> dict[str, object]:
    chosen = json.dumps({"finetune.optimizer.lr": 0.012345, "finetune.loss": 1})
    return {"search": search, "index": index, "told": told, "reason": reason, "chosen": chosen, "value": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row("a", 0, "complete"), row("a", 1, "partial", "raced out after 2 of 6 seeds"), row("b", 0, "failed", "x")]
    pandas.DataFrame(rows).to_parquet(tmp_path / "searches.parquet")
    (tmp_path / "study.json").write_text(json.dumps({"notes": ["a: 8 of 20 configurations asked"]}))
    return tmp_path


def test_searches_are_summed_up_in_their_order(folder: Path) -> None:
    first, second = summaries(load_searches(folder))
    assert first.sentence == "a: 2 configurations; 1 went the whole way, 1 raced out or stopped early"
    assert second.sentence == "b: 1 configuration; 1 crashed"
    [ended] = first.ended
    assert (ended.index, ended.reason) == (1, "raced out after 2 of 6 seeds")
    assert ended.values == "finetune.optimizer.lr 0.0123, finetune.loss 1"
    assert load_notes(folder) == ("a: 8 of 20 configurations asked",)


def test_the_configuration_that_went_into_the_table_is_named(folder: Path) -> None:
    rows = load_searches(folder)
    rows["confirmed"] = [True, False, False]
    first, second = summaries(rows)
    assert first.sentence.endswith("; confirmed was no. 0 (0.5): finetune.optimizer.lr 0.0123, finetune.loss 1")
    assert "confirmed" not in second.sentence


def test_a_study_without_searches_has_none_and_a_torn_file_is_named(folder: Path) -> None:
    content = (folder / "searches.parquet").read_bytes()
    (folder / "searches.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResultsError, match=r"searches\.parquet cannot be read"):
        load_searches(folder)
    (folder / "searches.parquet").unlink()
    assert summaries(load_searches(folder)) == ()
