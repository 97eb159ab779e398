"""The report: one HTML file that needs nothing else (`page` has what keeps it safe)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
from markupsafe import Markup

from pretune.analysis.load import runs
from pretune.analysis.load.counts import load_counts
from pretune.analysis.load.results import ResultsError, StudyHeader, load, load_header
from pretune.analysis.load.searches import load_notes, load_searches, summaries
from pretune.analysis.questions.differences import differences_of
from pretune.analysis.report.figures import figure_groups, of_metrics, write_figures
from pretune.analysis.report.page import (
    asset,
    plotly_script,
    pretune_version,
    script_hash,
    script_json,
    template,
    write_page,
)
from pretune.analysis.report.panels import load_panels
from pretune.analysis.report.tables import (
    component_tables,
    effect_tables,
    facts_of,
    fold_tables,
    interval_tables,
    marginal_tables,
    processor_notes,
    several_factors,
    value_tables,
)
from pretune.analysis.text import formats
from pretune.analysis.text.answer import answer
from pretune.analysis.text.headline import headline, left_open
from pretune.search_spaces.metrics import parts_of

REPORT_NAME = "report.html"
RELOAD_SECONDS = 5.0


def write(folder: Path, live: bool = False) -> Path:
    """Write `report.html` into a study's folder and return its path; `live`: the page loads itself anew.

    Raises ResultsError where the stored results cannot be read.
    """
    return write_page(folder / REPORT_NAME, build_page(folder, live))


def build_page(folder: Path, live: bool = False) -> str:
    """The page of a study's stored results. Raises ResultsError as `write` does."""
    header, everything, stage_runs = load_header(folder), load(folder), runs.load_stage_runs(folder)
    groups, notes = figure_groups(folder)
    metrics, searched = header.report.metrics, summaries(load_searches(folder))
    results, counts = of_metrics(everything, metrics), load_counts(folder)
    found, compared = facts_of(results, header, counts), differences_of(results, header)
    app, draw, plotly = asset("report_runs.js"), asset("report_draw.js"), plotly_script()
    return template("report.html.j2").render(
        header=header,
        sections=_sections(
            bool(header.report.baseline), several_factors(header), bool(panels := load_panels(folder)), bool(searched)
        ),
        progress=progress(folder),
        answers=[
            (
                metric,
                first := headline(results, header, metric),
                [said for said in answer(results, header, metric, found[metric]) if said != first],
            )
            for metric in metrics
        ],
        how=table_caption(metrics),
        facts=facts(everything, stage_runs, header),
        tables=[
            *(
                Markup(formats.to_html(table))
                for table in value_tables(results, header, found, processor_notes(everything, stage_runs), compared)
            ),
            *(Markup(formats.to_html(table)) for table in fold_tables(results, header)),
        ],
        intervals=[Markup(formats.to_html(table)) for table in interval_tables(results, header, counts)],
        left_open=left_open(results, header),
        differences=[Markup(formats.to_html(table)) for table in compared.values() if table.rows],
        marginal=[Markup(formats.to_html(table)) for table in marginal_tables(everything, header)],
        effects=[(Markup(formats.to_html(table)), said) for table, said in effect_tables(results, header)],
        components=[Markup(formats.to_html(table)) for table in component_tables(results, header)],
        groups=groups,
        figure_notes=notes,
        panels=panels,
        costs=[_cost_row(cost) for cost in runs.stage_costs(stage_runs)],
        nodes=runs.hardware_used(stage_runs),
        failures=runs.failures(everything),
        searches=searched,
        study_notes=load_notes(folder),
        version=pretune_version(),
        settings=_read(folder / "study.yaml"),
        css=Markup(asset("report.css")),
        app=Markup(app),
        draw=Markup(draw),
        plotly=Markup(plotly),
        script_hashes=Markup(" ".join(map(script_hash, (app, plotly, draw)))),
        figure_data=script_json([[figure.to_plotly_json() for _, figure in group.figures] for group in groups]),
        run_data=script_json(run_data(everything, stage_runs, metrics[0], RELOAD_SECONDS if live else 0.0)),
    )


def watch(folder: Path, say: Callable[[str], None], seconds: float = 2.0) -> None:
    """Write the report anew whenever the stored results or the status change, until the study has ended.

    Ctrl-C ends it too, quietly. Raises ResultsError where there is no such folder or its files cannot be read.
    """
    seen: tuple[int, ...] | None = None
    try:
        while True:
            ended = _ended(folder)
            if (now := _changed(folder)) != seen:
                seen = now
                say(_watched(folder, ended))
            if ended:
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        say("stopped watching; the report is no longer updated")


def _watched(folder: Path, ended: bool) -> str:
    """Write what there is to show, and say so."""
    if not (folder / "results.parquet").is_file():
        return progress(folder) or str(folder / REPORT_NAME) + " is written as soon as results are stored"
    return f"{time.strftime('%H:%M:%S')} {write(folder, live=not ended)}"


def _changed(folder: Path) -> tuple[int, ...]:
    """Times of change of what the report is made from."""
    if not folder.is_dir():
        raise ResultsError(f"there is no study folder {folder}: check the path")
    paths = [folder / name for name in ("results.parquet", "status.json")]
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)


def _ended(folder: Path) -> bool:
    return (folder / "status.json").is_file() and (folder / "results.parquet").is_file() and not progress(folder)


# ------------------------------------------------------------------------------------------------------------ facts


def facts(results: pandas.DataFrame, stage_runs: pandas.DataFrame, header: StudyHeader) -> list[tuple[str, str]]:
    """The few numbers at the top: cells, seeds, stage runs, failures, work."""
    ended = results.drop_duplicates("fingerprint")
    seeds = [("seeds per cell", str(header.replicates))]
    if header.pretrainings < header.replicates:
        each = str(header.replicates // header.pretrainings)
        seeds = [("pretrainings per cell", str(header.pretrainings)), ("fine-tunings of each", each)]
    failed = int((ended["outcome"] != "finished").sum())
    return [
        ("cells", str(len(header.cells))),
        *seeds,
        ("stage runs", f"{len(ended):,}"),
        ("did not finish", f"{failed:,}"),
        ("work", readable_seconds(float(stage_runs["seconds"].sum()))),
    ]


def table_caption(metrics: Sequence[str]) -> str:
    """The sentence above the tables: their seeds, and the test data where every metric is of a test set."""
    tested = all(parts_of(metric).part.startswith("test") for metric in metrics)
    return "Results of the confirm phase: fresh seeds" + (
        ", and test data that was not used for any choice." if tested else "."
    )


def _cost_row(cost: runs.Cost) -> list[str]:
    size = f"{cost.bytes / 1e6:,.1f} MB"
    return [cost.stage, f"{cost.runs:,}", readable_seconds(cost.seconds), readable_seconds(cost.mean_seconds), size]


def readable_seconds(seconds: float) -> str:
    """'4.2 s', '12 min', '3 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress(folder: Path) -> str:
    """A sentence from status.json on a study that has not ended; "" for one that has."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        done = int(status["finished"]) + int(status["reused"]) + int(status["failed"])
        total = status["total"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if total is not None and done >= int(total):
        return ""
    of = "" if total is None else f" of {total}"
    so_far = f"{done}{of} stage runs are done. The tables show only these."
    return f"This study is not finished ({status['phase']} phase): {so_far}"


def run_data(results: pandas.DataFrame, stage_runs: pandas.DataFrame, metric: str, reload: float) -> dict[str, Any]:
    """The data of the table of stage runs."""
    return runs.run_table(results, stage_runs)._asdict() | {"first_metric": metric, "reload_seconds": reload}


# ------------------------------------------------------------------------------------------------------------- page


def _sections(baseline: bool, factors: bool, panels: bool, searched: bool) -> list[tuple[str, str]]:
    names = [("answer", "Answer"), ("table", "Table")]
    names += [("differences", "Differences")] if baseline else []
    names += [("effects", "Effects")] if factors else []
    names += [("figures", "Figures")] + ([("panels", "Images")] if panels else [])
    names += [("searches", "Searches")] if searched else []
    return [*names, ("cost", "Cost"), ("failures", "Failures"), ("runs", "Stage runs"), ("reproduce", "Reproduce")]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "(study.yaml was not found)"


__all__ = ["build_page", "watch", "write", "write_figures"]
