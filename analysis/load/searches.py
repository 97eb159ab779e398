"""Searches of a study, summed up: how many configurations went how far, and why others did not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from pretune.analysis.load.results import read_parquet
from pretune.search_spaces.words import counted

ENDINGS = {
    "complete": "went the whole way",
    "partial": "raced out or stopped early",
    "infeasible": "diverged or broke a constraint",
    "failed": "crashed",
    "unscored": "had no score",
}


@dataclass(frozen=True)
class EndedTrial:
    """A configuration that did not go the whole way."""

    index: int
    ending: str
    reason: str
    values: str  # 'pretrain.method.temperature 0.21, finetune.optimizer.lr 0.003'


@dataclass(frozen=True)
class SearchSummary:
    """One search: of a pretraining for the cells that share it, or of a cell's fine-tuning."""

    name: str
    counts: dict[str, int]  # by ENDINGS' keys, those that occur
    confirmed: str  # 'no. 7 (0.243): finetune.optimizer.lr 0.003', what went into the table; "" for none
    ended: tuple[EndedTrial, ...]

    @property
    def sentence(self) -> str:
        """'search of finetune for all: 20 configurations; 12 went the whole way, 8 raced out or stopped early'."""
        parts = ", ".join(f"{count} {ENDINGS[end]}" for end, count in self.counts.items())
        kept = f"; confirmed was {self.confirmed}" if self.confirmed else ""
        return f"{self.name}: {counted(sum(self.counts.values()), 'configuration')}; {parts}{kept}"


def load_searches(folder: Path) -> pandas.DataFrame:
    """searches.parquet; empty where the study searched nothing. Raises ResultsError where it cannot be read."""
    path = folder / "searches.parquet"
    if not path.is_file():
        return pandas.DataFrame()
    return read_parquet(path)


def summaries(searches: pandas.DataFrame) -> tuple[SearchSummary, ...]:
    """One per search, in stored order."""
    if searches.empty:
        return ()
    return tuple(_summary(str(name), rows) for name, rows in searches.groupby("search", sort=False))


def _summary(name: str, rows: pandas.DataFrame) -> SearchSummary:
    ends: Sequence[str] = rows["told"].tolist()
    counts = {key: ends.count(key) for key in ENDINGS if key in ends}
    left = rows[rows["told"] != "complete"]
    ended = tuple(
        EndedTrial(int(row["index"]), ENDINGS[row["told"]], str(row["reason"]), shown_values(row["chosen"]))
        for row in left.to_dict("records")
    )
    kept = rows[rows["confirmed"]].head(1).to_dict("records") if "confirmed" in rows else []
    confirmed = "".join(f"no. {row['index']} ({row['value']:.4g}): {shown_values(row['chosen'])}" for row in kept)
    return SearchSummary(name, counts, confirmed, ended)


def shown_values(chosen: str) -> str:
    """'finetune.optimizer.lr 0.003, ...' of the JSON in a column `chosen`."""
    return listed_values(json.loads(chosen))


def listed_values(values: Mapping[str, Any]) -> str:
    """'finetune.optimizer.lr 0.003, ...' of values by their dotted keys."""
    return ", ".join(f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in values.items())


def load_notes(folder: Path) -> tuple[str, ...]:
    """Notes that the study's run left beside the table: budgets used up, warm starts."""
    header = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return tuple(map(str, header.get("notes", ())))
