"""A study's tables, written beside its results and returned for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas
from rich.console import RenderableType
from rich.text import Text

from pretune.analysis.load import runs
from pretune.analysis.load.counts import Counts, load_counts
from pretune.analysis.load.results import StudyHeader, load, load_header
from pretune.analysis.load.searches import load_notes, load_searches, summaries
from pretune.analysis.questions.components import Components, components
from pretune.analysis.questions.differences import Differences, differences_of
from pretune.analysis.questions.effects import Effects, effects, sentences
from pretune.analysis.questions.facts import Facts, facts
from pretune.analysis.questions.folds import Folds, over_folds
from pretune.analysis.questions.image_bootstrap import Intervals, intervals
from pretune.analysis.questions.marginal import marginal_effects
from pretune.analysis.questions.tables import Table, against_baseline, build_table
from pretune.analysis.text import formats
from pretune.analysis.text.csv import joined
from pretune.analysis.text.facts import fact_sentences, processor_sentences
from pretune.analysis.text.grids import AnyTable
from pretune.analysis.text.headline import headline, left_open


class Tables(NamedTuple):
    """Every table of a study, one of each kind per metric of the report; empty where the design does not ask for it."""

    values: tuple[Table, ...]
    folds: tuple[Folds, ...]  # with a factor whose levels are folds
    intervals: tuple[Intervals, ...]  # where pixels were counted image by image
    differences: tuple[Differences, ...]  # with a baseline
    marginal: tuple[Differences, ...]  # with a factor whose levels are sets, as of transforms
    effects: tuple[Effects, ...]  # with two factors or more
    components: tuple[Components, ...]  # with nested seeds, or a search on two seeds or more


def all_tables(
    results: pandas.DataFrame, header: StudyHeader, counts: Mapping[str, Counts], notes: tuple[str, ...] = ()
) -> Tables:
    """The tables of a study's results; `counts`: of single test images, by fingerprint; `notes`: for the tables of
    values. Raises ResultsError."""
    compared = differences_of(results, header)
    return Tables(
        value_tables(results, header, facts_of(results, header, counts), notes, compared),
        fold_tables(results, header),
        interval_tables(results, header, counts),
        tuple(compared.values()),
        marginal_tables(results, header),
        tuple(table for table, _ in effect_tables(results, header)),
        component_tables(results, header),
    )


def facts_of(results: pandas.DataFrame, header: StudyHeader, counts: Mapping[str, Counts]) -> dict[str, Facts]:
    """Metric of the report -> the facts beside its scores."""
    return {metric: facts(results, header, metric, counts) for metric in header.report.metrics}


def value_tables(
    results: pandas.DataFrame,
    header: StudyHeader,
    found: Mapping[str, Facts],
    notes: tuple[str, ...],
    compared: Mapping[str, Differences],
) -> tuple[Table, ...]:
    """Mean ± standard deviation of every metric, with the facts found beside its scores and `notes` as notes."""
    return tuple(
        replace(
            table,
            notes=(*fact_sentences(found[table.metric]), *table.notes, *notes),
            against=against_baseline(table, header, compared[table.metric]) if compared else None,
        )
        for table in (build_table(results, header, metric) for metric in header.report.metrics)
    )


def processor_notes(results: pandas.DataFrame, stage_runs: pandas.DataFrame) -> tuple[str, ...]:
    """A note on tables whose stage runs ran on several kinds of processor."""
    return processor_sentences(runs.processors_of_table(results, stage_runs))


def fold_tables(results: pandas.DataFrame, header: StudyHeader) -> tuple[Folds, ...]:
    """Means over the folds of a cross-validation, of every metric."""
    return tuple(table for metric in header.report.metrics for table in over_folds(results, header, metric))


def interval_tables(
    results: pandas.DataFrame, header: StudyHeader, counts: Mapping[str, Counts]
) -> tuple[Intervals, ...]:
    """Intervals over seeds beside those over test images, of every metric that is made of pixels' counts."""
    found = [intervals(results, header, metric, counts) for metric in header.report.metrics if counts]
    return tuple(table for table in found if table.rows)


def effect_tables(results: pandas.DataFrame, header: StudyHeader) -> tuple[tuple[Effects, tuple[str, ...]], ...]:
    """The analysis of variance of every metric, and what it says in words; none with fewer than two factors.

    Why there is none is said once, not for every metric.
    """
    every = [effects(results, header, metric) for metric in header.report.metrics if several_factors(header)]
    found = [
        table for place, table in enumerate(every) if table.rows or table.notes not in [e.notes for e in every[:place]]
    ]
    return tuple((table, sentences(table) if table.rows else ()) for table in found)


def marginal_tables(results: pandas.DataFrame, header: StudyHeader) -> tuple[Differences, ...]:
    """The gain by each member of a set, for every metric."""
    return tuple(table for metric in header.report.metrics for table in marginal_effects(results, header, metric))


def component_tables(results: pandas.DataFrame, header: StudyHeader) -> tuple[Components, ...]:
    """Variance components of every metric, where the design tells sources of spread apart."""
    found = [components(results, header, metric) for metric in header.report.metrics]
    return tuple(table for table in found if table.rows)


def several_factors(header: StudyHeader) -> bool:
    """Whether two factors or more have two levels or more."""
    return sum(len(levels) > 1 for levels in header.factors.values()) > 1


def write_tables(folder: Path, details: bool = True) -> list[RenderableType]:
    """Write table.md and table.tex with everything, and table.csv, intervals.csv, differences.csv and so on.

    Returns for a terminal: the tables of values, and with `details` all others and effects in words, else one sentence
    for each metric. Raises ResultsError where there is nothing to read.
    """
    results, header = load(folder), load_header(folder)
    found = all_tables(results, header, load_counts(folder), processor_notes(results, runs.load_stage_runs(folder)))
    shown: list[AnyTable] = [table for kind in found for table in kind]
    text = _markdown(header, shown) + searches_as_text(folder)
    (folder / "table.md").write_text(text, encoding="utf-8", errors="backslashreplace")  # as names in old notes
    latex = f"{formats.latex_remark(header.title)}\n" + "\n".join(map(formats.to_latex, shown))
    (folder / "table.tex").write_text(latex, encoding="utf-8")
    _write_csv(folder / "table.csv", found.values)
    _write_csv(folder / "folds.csv", found.folds)
    _write_csv(folder / "intervals.csv", found.intervals)
    _write_csv(folder / "differences.csv", found.differences)
    _write_csv(folder / "marginal.csv", found.marginal)
    _write_csv(folder / "effects.csv", found.effects)
    _write_csv(folder / "components.csv", found.components)
    first: list[AnyTable] = [*found.values, *found.folds]
    if not details:
        summed = [headline(results, header, metric) for metric in header.report.metrics]
        more = [Text(line, style="dim") for line in [left_open(results, header)] if line]
        return [*formats.all_to_rich(first), *map(Text, dict.fromkeys(summed)), *more]
    said = [
        Text(f"{table.metric}: {sentence}")
        for table in found.effects
        if table.rows
        for sentence in sentences(table) or table.notes
    ]
    first += [*found.differences, *found.marginal]
    return [*formats.all_to_rich(first), *said, *formats.all_to_rich(found.components)]


def searches_as_text(folder: Path) -> str:
    """Searches summed up, and notes beside the table, as lists in Markdown."""
    parts = {"Searches": [search.sentence for search in summaries(load_searches(folder))], "Notes": load_notes(folder)}
    return "".join(
        "\n".join(["", f"## {title}", "", *(f"- {line}" for line in lines)]) + "\n"
        for title, lines in parts.items()
        if lines
    )


def _write_csv(path: Path, tables: Sequence[AnyTable]) -> None:
    """Write the tables, or take away what an earlier report wrote and this one has not."""
    if tables:
        path.write_text(joined(tables), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _markdown(header: StudyHeader, shown: Sequence[AnyTable]) -> str:
    question = f"{header.question}\n\n" if header.question else ""
    return f"# {header.title}\n\n{question}" + "\n\n".join(map(_section, shown)) + "\n"


def _section(table: AnyTable) -> str:
    """A table, and beneath an analysis of variance what it says."""
    said = sentences(table) if isinstance(table, Effects) and table.rows else ()
    return formats.to_markdown(table) + "".join(f"\n{sentence}\n" for sentence in said)
