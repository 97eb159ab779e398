"""Reading a study's stored results: `results.parquet` (one row per stage run and metric) and `study.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
import pyarrow

from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.metrics import (
    Direction,
    MetricDefinition,
    UnknownMetricError,
    definition_of,
    from_json,
    turned,
)
from pretune.search_spaces.words import titled

RESULT_COLUMNS = (
    *("study", "phase", "cell", "configuration", "seed"),
    *("stage", "fingerprint", "outcome", "cause", "metric", "value"),
)
STUDY_FORMAT = 1  # of study.json and the files beside it; a study of before it was numbered is of the first
DESIGNS = ("grid", "random", "qmc")  # samplers that learn nothing
_DAMAGED = "it is cut off or damaged; run the study again to rewrite it"


class ResultsError(UsageError):
    """Stored results cannot be used as they are; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class StoredCell:
    """One cell of the result table: its label, and its level label for every factor."""

    label: str
    levels: Mapping[str, str]


@dataclass(frozen=True)
class ReportSettings:
    """The wishes of a study for its tables; `None` rows or columns take the default layout."""

    rows: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    metrics: tuple[str, ...]
    baseline: Mapping[str, str]
    percent: bool
    margin: float | None = (
        None  # differences below it make none (equivalence tests); None: nothing of the kind is asked
    )
    differs: tuple[str, ...] | None = None  # sentences: how it differs from what was published; None: it does not say


@dataclass(frozen=True)
class PublishedValue:
    """A number from a paper, as a fraction where the paper prints percent; `std` is None where none is given."""

    labels: tuple[str, ...]  # row labels, then column labels
    mean: float
    std: float | None


@dataclass(frozen=True)
class PublishedTable:
    """A published table to be shown beside ours, for one metric."""

    metric: str
    values: tuple[PublishedValue, ...]
    note: str


@dataclass(frozen=True)
class StudyHeader:
    """The content of `study.json`: everything that tables take beside the numbers."""

    study: str
    question: str
    factors: Mapping[str, tuple[str, ...]]  # name -> level labels in the study's order
    cells: tuple[StoredCell, ...]
    report: ReportSettings
    replicates: int  # expected per cell in the confirm phase
    pretrainings: int  # of them with a pretraining seed of their own; fewer than replicates where seeds are nested
    published: tuple[PublishedTable, ...]  # each of a metric of its own
    target: str = "val/jaccard"  # what searches optimise
    sets: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)  # factor -> level -> its members
    held: Mapping[str, int] = field(default_factory=dict)  # stream of random numbers -> the one seed it is held at
    metrics: Mapping[str, MetricDefinition] = field(default_factory=dict)  # as the study stored them
    direction: Direction | None = None  # of `target` on every split, where the study gives one
    designed: bool = False  # searches try points laid out beforehand, whatever was found
    checkpoints: Mapping[str, str] = field(default_factory=dict)  # cell -> weights that are scored: last, best, tuned
    data: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # data set -> digests of its content
    tasks: Mapping[str, str] = field(default_factory=dict)  # cell -> the data set that is fine-tuned on
    scale: str = ""  # of the study's scales the one that was run; "" for none, and before 2026-11-29

    @property
    def title(self) -> str:
        """The study's name for people, with the scale."""
        return titled(self.study, self.scale)

    def definition(self, metric: str) -> MetricDefinition:
        """As stored with the results, else today's table. Raises ResultsError for a metric that neither knows."""
        return turned(known_definition(self.metrics, metric), metric, self.target, self.direction)

    def in_percent(self, metric: str) -> bool:
        """Whether tables print it in percent."""
        return self.report.percent and self.definition(metric).unit == "fraction"


def load(folder: Path | str) -> pandas.DataFrame:
    """The tidy results of the study stored in `folder`.

    One row per (cell, replicate, stage run, metric); failed stage runs are rows with metric "" and value NaN.
    Raises ResultsError where the folder or the file is missing, unreadable, or lacks a column.
    """
    path = _existing(Path(folder), "results.parquet", "no stage of this study has ended yet")
    results = read_parquet(path)
    missing = [name for name in RESULT_COLUMNS if name not in results.columns]
    if missing:
        raise ResultsError(
            f"{path} lacks the columns {', '.join(missing)}: it was not written by a Pretune study, or "
            "by another version; run the study again, which reuses every finished stage run"
        )
    if results["value"].notna().any() and not pandas.api.types.is_numeric_dtype(results["value"]):
        raise ResultsError(f"{path} holds text where numbers belong (column value): {_DAMAGED}")
    return results


def read_parquet(path: Path) -> pandas.DataFrame:
    """A table as it was written: its pages are read against the checksums that they hold.

    Raises ResultsError: it is cut off, damaged or none.
    """
    try:
        return pandas.read_parquet(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise ResultsError(f"{path} cannot be read ({_first_line(error)}): {_DAMAGED}") from error


def load_header(folder: Path | str) -> StudyHeader:
    """The study's own description, from `study.json` in `folder`. Raises ResultsError as `load` does."""
    path = _existing(Path(folder), "study.json", "the study has not started yet")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_format(path, content)
        return parse_header(content)
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} cannot be read ({_first_line(error)}): {_DAMAGED}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} does not describe a study ({error!r}): {_DAMAGED}") from error


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if (found := content.get("format", STUDY_FORMAT)) != STUDY_FORMAT:
        raise ResultsError(
            f"{path} is of format {found!r} and this version of Pretune reads format {STUDY_FORMAT}: read it with the "
            "version that wrote it, or run the study again, which reuses every finished stage run that still fits"
        )


def parse_header(content: Mapping[str, Any]) -> StudyHeader:
    """The content of `study.json` as a header. Raises KeyError, TypeError or ValueError on a malformed one."""
    report = _report(content.get("report") or {})
    replicates, pretrainings = _seed_counts(content["seeds"]["report"])
    return StudyHeader(
        study=content["study"],
        question=content.get("question", ""),
        factors={name: tuple(map(stored_label, levels)) for name, levels in content["factors"].items()},
        cells=tuple(StoredCell(cell["label"], _levels(cell["levels"])) for cell in content["cells"]),
        report=report,
        replicates=replicates,
        pretrainings=pretrainings,
        published=_published(content.get("published") or (), report),
        sets={
            factor: {level: frozenset(items) for level, items in levels.items()}
            for factor, levels in (content.get("sets") or {}).items()
        },
        held={str(name): int(seed) for name, seed in (content["seeds"].get("hold") or {}).items()},
        target=str((content.get("tune") or {}).get("target", "val/jaccard")),
        metrics=stored_definitions(content),
        direction=(content.get("tune") or {}).get("direction"),
        designed=is_design(content.get("tune") or {}),
        checkpoints={str(cell): str(kept) for cell, kept in (content.get("checkpoints") or {}).items()},
        data={str(name): tuple(map(str, digests)) for name, digests in (content.get("data") or {}).items()},
        tasks={str(cell): str(task) for cell, task in (content.get("tasks") or {}).items()},
        scale=str(content.get("scale") or ""),
    )


def is_design(tune: Mapping[str, Any]) -> bool:
    """Whether searches try points laid out beforehand: a sampler that learns nothing, and no trial stopped early."""
    return tune.get("sampler") in DESIGNS and not tune.get("racing") and not tune.get("rungs")


def stored_definitions(content: Mapping[str, Any]) -> dict[str, MetricDefinition]:
    """Metric -> its definition, from `study.json`; a study stored before 2026-11-28 has none."""
    return {str(name): from_json(stored) for name, stored in (content.get("metrics") or {}).items()}


def known_definition(stored: Mapping[str, MetricDefinition], metric: str) -> MetricDefinition:
    """As stored, else today's. Raises ResultsError."""
    try:
        return stored[metric] if metric in stored else definition_of(metric)
    except UnknownMetricError as error:
        raise ResultsError(str(error)) from error


def stored_label(level: object) -> str:
    """Return a level as it is written everywhere: true and false as in YAML, all else as Python prints it."""
    return str(level).lower() if isinstance(level, bool) else str(level)


def _existing(folder: Path, name: str, why: str) -> Path:
    if not folder.is_dir():
        raise ResultsError(f"there is no study folder {folder}: check the path")
    path = folder / name
    if not path.is_file():
        raise ResultsError(f"{folder} holds no {name}: {why}, or this is not a study's output folder")
    return path


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _levels(levels: Mapping[str, object]) -> dict[str, str]:
    return {factor: stored_label(level) for factor, level in levels.items()}


def _names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, str) else tuple(value)  # type: ignore[arg-type]  # a JSON list of names


def _report(content: Mapping[str, Any]) -> ReportSettings:
    return ReportSettings(
        rows=_names(content.get("rows")),
        columns=_names(content.get("columns")),
        metrics=_names(content.get("metrics")) or ("test/jaccard",),
        baseline=_levels(content.get("baseline") or {}),
        percent=bool(content.get("percent", False)),
        margin=None if content.get("margin") is None else float(content["margin"]),
        differs=_names(content.get("differs")),
    )


def _seed_counts(report: Any) -> tuple[int, int]:
    """Replicates and pretrainings per cell; nested seeds are {"pretrain": p, "finetune": f}."""
    if isinstance(report, Mapping):
        return int(report["pretrain"]) * int(report["finetune"]), int(report["pretrain"])
    return int(report), int(report)


def _published(content: Any, report: ReportSettings) -> tuple[PublishedTable, ...]:
    """One table or several; a study stored before 2026-11-21 has one, or none.

    Values are on the scale the report prints, unless "percent" says otherwise, and for its first metric.
    """
    return tuple(
        PublishedTable(
            metric=table.get("metric", report.metrics[0]),
            values=tuple(
                _published_value(entry, 0.01 if table.get("percent", report.percent) else 1.0)
                for entry in table["values"]
            ),
            note=table.get("note") or "",
        )
        for table in ([content] if isinstance(content, Mapping) else content)
    )


def _published_value(entry: list[Any], scale: float) -> PublishedValue:
    """[labels..., mean] or, where std is known, [labels..., [mean, std]]."""
    *labels, value = entry
    mean, std = value if isinstance(value, list) else (value, None)
    return PublishedValue(
        labels=tuple(map(stored_label, labels)),
        mean=float(mean) * scale,
        std=None if std is None else float(std) * scale,
    )
