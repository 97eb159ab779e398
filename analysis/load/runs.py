"""Stage runs one by one: what was run, what it cost, what failed, and all of it for the report's drill-down."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from pretune.analysis.load.results import ResultsError, read_parquet
from pretune.analysis.load.searches import shown_values
from pretune.search_spaces.words import counted, stage_title

_COLUMNS = ["fingerprint", "stage", "seconds", "bytes", "machine"]
_KEYS = ["phase", "stage", "cell", "seed", "fingerprint"]


class Cost(NamedTuple):
    """Time and room that the runs of one stage took."""

    stage: str
    runs: int
    seconds: float  # of work, all runs together; runs at the same time count each
    mean_seconds: float
    bytes: int  # kept in the store


class FailedRuns(NamedTuple):
    """Stage runs of one configuration that did not finish, for one cause."""

    stage: str
    cell: str
    values: str  # of the ranges that reach it: 'finetune.optimizer.lr 0.003'; "" where nothing is tuned
    outcome: str
    cause: str
    seeds: tuple[int, ...]


class RunTable(NamedTuple):
    """Every stage run with all its metrics, as lists: `rows` and `values` are parallel."""

    columns: tuple[str, ...]
    rows: list[list[Any]]
    metrics: tuple[str, ...]
    values: list[list[float | None]]  # (runs, metrics), six significant digits; None where not measured


def load_stage_runs(folder: Path) -> pandas.DataFrame:
    """`stage_runs.parquet`, or an empty frame where there is none. Raises ResultsError for a damaged file."""
    path = folder / "stage_runs.parquet"
    if not path.is_file():
        return pandas.DataFrame(columns=[*_COLUMNS, "outcome", "attempt"])
    found = read_parquet(path)
    if missing := [name for name in _COLUMNS if name not in found.columns]:
        lacks = f"{path} lacks the columns {', '.join(missing)}"
        raise ResultsError(f"{lacks}: another version wrote it; run the study again, which reuses what has finished")
    return found


def title_of(row: Mapping[Any, Any]) -> str:
    """The stage of a row for people: with its method, which rows of before 2026-11-29 do not have."""
    return stage_title(str(row["stage"]), str(row.get("method") or ""))


def stage_costs(stage_runs: pandas.DataFrame) -> tuple[Cost, ...]:
    """One entry per stage, and of pretrainings per method, in the order in which they first appear."""
    groups = stage_runs.groupby([title_of(row) for row in stage_runs.to_dict("records")], sort=False)
    return tuple(_cost(str(stage), rows) for stage, rows in groups)


def _cost(stage: str, rows: pandas.DataFrame) -> Cost:
    seconds = rows["seconds"]
    return Cost(stage, len(rows), float(seconds.sum()), float(seconds.mean()), int(rows["bytes"].sum()))


def hardware_used(stage_runs: pandas.DataFrame) -> tuple[str, ...]:
    """Distinct hardware and versions, the most used first."""
    texts = stage_runs["machine"].dropna()
    return tuple(node for node, _ in Counter(_node(json.loads(str(text)) or {}) for text in texts).most_common())


def processors_of_table(results: pandas.DataFrame, stage_runs: pandas.DataFrame) -> dict[str, int]:
    """Kind of GPU or processor, with its instruction sets -> stage runs of the table's replicates, most first."""
    return dict(Counter(map(processor_of, nodes_of_table(results, stage_runs))).most_common())


def nodes_of_table(results: pandas.DataFrame, stage_runs: pandas.DataFrame) -> list[dict[str, Any]]:
    """Hardware and versions of each stage run of the table's replicates, as the run recorded them."""
    behind = set(results.loc[results["phase"] == "confirm", "fingerprint"])
    texts = stage_runs.loc[stage_runs["fingerprint"].isin(behind), "machine"].dropna()
    return [json.loads(str(text)) or {} for text in texts]


def processor_of(about: Mapping[str, Any]) -> str:
    """Kind of GPU, or of processor with its instruction sets."""
    if about.get("gpu"):
        return str(about["gpu"])
    instructions = f" [{about['instructions']}]" if "instructions" in about else ""
    return f"{about.get('cpu') or 'unknown processor'}{instructions}"


def _node(about: Mapping[str, Any]) -> str:
    where = processor_of(about)
    threads = f", {counted(about['threads'], 'thread')}" if "threads" in about else ""
    return f"{where}{threads}, Python {about.get('python', '?')}, PyTorch {about.get('torch', '?')}"


def failures(results: pandas.DataFrame) -> tuple[FailedRuns, ...]:
    """Stage runs that diverged, crashed or were blocked: a line for each configuration and cause, with its seeds."""
    failed = results[results["outcome"] != "finished"].drop_duplicates(_KEYS)
    groups: dict[tuple[str, str, str, str, str], list[int]] = {}
    for row in failed.to_dict("records"):
        where, values = _levels_of(row), shown_values(str(row.get("chosen") or "{}"))
        key = (title_of(row), where, values, str(row["outcome"]), _cause(row["cause"]))
        groups.setdefault(key, []).append(int(row["seed"]))
    return tuple(FailedRuns(*key, tuple(sorted(set(seeds)))) for key, seeds in groups.items())


def _levels_of(row: Mapping[Any, Any]) -> str:
    """The cell of a stage run; of one that several share the levels that they have in common."""
    if row["cell"]:
        return str(row["cell"])
    levels = {
        str(name).removeprefix("factor."): level for name, level in row.items() if str(name).startswith("factor.")
    }
    shown = " ".join(f"{name}={level}" for name, level in levels.items() if isinstance(level, str) and level)
    return f"all cells of {shown}" if shown else "all cells"


def _cause(cause: object) -> str:
    return cause if isinstance(cause, str) else ""


def run_table(results: pandas.DataFrame, stage_runs: pandas.DataFrame) -> RunTable:
    """All stage runs with their metrics; a run that serves several cells stands there once per place it has."""
    named = results.assign(run=results.groupby(_KEYS, sort=False, dropna=False).ngroup())
    heads = named.drop_duplicates("run").sort_values("run")
    seconds = dict(zip(stage_runs["fingerprint"], stage_runs["seconds"], strict=True))
    columns = ("phase", "stage", "cell", "seed", "outcome", "seconds", "cause", "chosen", "fingerprint")
    rows = [_run_row(row, seconds) for row in heads.to_dict("records")]
    measured = named[named["metric"] != ""]
    wide = measured.pivot_table(index="run", columns="metric", values="value", sort=False).reindex(heads["run"])
    values = [[_short(value) for value in row] for row in wide.to_numpy().tolist()]
    return RunTable(columns, rows, tuple(map(str, wide.columns)), values)


def _run_row(row: Mapping[Any, Any], seconds: Mapping[str, float]) -> list[Any]:
    took = seconds.get(row["fingerprint"])
    chosen = str(row.get("chosen") or "{}")
    head = [row["phase"], title_of(row), row["cell"], int(row["seed"]), row["outcome"]]
    return [*map(_item, head), _short(took), _cause(row["cause"]), "" if chosen == "{}" else chosen, row["fingerprint"]]


def _item(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
