"""The report: one HTML file that needs nothing else, not even a network.

Everything that came from a study goes through jinja2's escaping, through JSON with every "<" written as \\u003c, or
through plotly labels that were escaped; and a content security policy names the page's own scripts by their hashes,
so that text which slipped through could still not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import curves, figures, layout, runs, sensitivity, tables
from analysis.answer import answer
from analysis.results import ResultsError, StudyHeader, load, load_header

NAME = "report.html"
ASSETS = Path(__file__).parent / "assets"
RELOAD_SECONDS = 5.0
_MOST_FIGURES = 24  # of one group; a study with more cells has them in its table


class Group(NamedTuple):
    """Figures that one place of the page shows in turn."""

    title: str
    note: str
    figures: tuple[tuple[str, go.Figure], ...]  # (what it shows, the figure)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.figures)

    @property
    def height(self) -> int:
        return max(int(figure.layout.height) for _, figure in self.figures)


class PanelRow(NamedTuple):
    label: str
    note: str
    images: tuple[str, ...]  # data: URLs


class Panels(NamedTuple):
    """Test images with truth, prediction and error, as `pretune report` left them in panels/."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[PanelRow, ...]
    legend: tuple[tuple[str, str], ...]  # class, colour


def write(folder: Path, live: bool = False) -> Path:
    """Write `report.html` into a study's folder and return its path; `live`: the page loads itself anew.

    Raises ResultsError where the stored results cannot be read.
    """
    path = folder / NAME
    temporary = path.with_name(f".{NAME}.tmp")
    temporary.write_text(build(folder, live), encoding="utf-8")
    return temporary.replace(path)


def build(folder: Path, live: bool = False) -> str:
    """The page of a study's stored results. Raises ResultsError as `write` does."""
    header, everything, stage_runs = load_header(folder), load(folder), runs.load_stage_runs(folder)
    groups, notes = figure_groups(folder)
    metrics = header.report.metrics
    results = of_metrics(everything, metrics)
    app, draw, plotly = _asset("report_runs.js"), _asset("report_draw.js"), _plotly()
    return _template().render(
        header=header,
        sections=_sections(bool(header.report.baseline), bool(panels := load_panels(folder))),
        progress=progress(folder),
        answers=[(metric, answer(results, header, metric).sentences) for metric in metrics],
        facts=facts(everything, stage_runs, header),
        tables=[Markup(layout.to_html(tables.build(results, header, metric))) for metric in metrics],
        differences=[Markup(layout.to_html(table)) for table in _differences(results, header)],
        groups=groups,
        figure_notes=notes,
        panels=panels,
        costs=[_cost_row(cost) for cost in runs.costs(stage_runs)],
        machines=runs.machines(stage_runs),
        failures=runs.failures(everything),
        version=_version(),
        settings=_read(folder / "study.yaml"),
        css=Markup(_asset("report.css")),
        app=Markup(app),
        draw=Markup(draw),
        plotly=Markup(plotly),
        script_hashes=Markup(" ".join(map(_hash, (app, plotly, draw)))),
        figure_data=_json([[figure.to_plotly_json() for _, figure in group.figures] for group in groups]),
        run_data=_json(run_data(everything, stage_runs, metrics[0], RELOAD_SECONDS if live else 0.0)),
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
        say("no longer watching; the report stays as it is")


def _watched(folder: Path, ended: bool) -> str:
    """Write what there is to show, and say so."""
    if not (folder / "results.parquet").is_file():
        return progress(folder) or str(folder / NAME) + " is written as soon as results are stored"
    return f"{time.strftime('%H:%M:%S')} {write(folder, live=not ended)}"


def _changed(folder: Path) -> tuple[int, ...]:
    """Times of change of what the report is made from."""
    if not folder.is_dir():
        raise ResultsError(f"there is no study folder {folder}: check the path")
    paths = [folder / name for name in ("results.parquet", "status.json")]
    return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)


def _ended(folder: Path) -> bool:
    return (folder / "status.json").is_file() and (folder / "results.parquet").is_file() and not progress(folder)


def write_figures(folder: Path, kind: str) -> list[Path]:
    """Every figure of the report as a file in `figures/` (svg, pdf or png). Raises ResultsError."""
    groups, _ = figure_groups(folder)
    drawn = [(_file_name(f"{group.title} {name}"), figure) for group in groups for name, figure in group.figures]
    return figures.write_files(drawn, folder / "figures", kind)


def _file_name(text: str) -> str:
    kept = "".join(character if character.isalnum() or character in "=." else "-" for character in text.lower())
    return "-".join(filter(None, kept.split("-")))[:100]


# ---------------------------------------------------------------------------------------------------------- figures


def figure_groups(folder: Path) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Every figure of a study, and notes on those that could not be made. Raises ResultsError."""
    header, results = load_header(folder), load(folder)
    curve_rows = curves.load_curves(folder)
    asked = of_metrics(results, header.report.metrics)
    groups = [_dots(asked, header), *_against(asked, header), *_over_amounts(asked, header)]
    groups += _learning(curve_rows, header)
    found, notes = _sensitivity(results, _content(folder))
    return tuple(group for group in [*groups, *found] if group.figures), notes


def of_metrics(results: pandas.DataFrame, metrics: Sequence[str]) -> pandas.DataFrame:
    """The confirmed rows that tables of these metrics need, a few per cent of all where runs report many metrics.

    Every stage run keeps one row, so that it is still known to have run; a probe's metric may stand under its last
    part alone.
    """
    confirm = results[results["phase"] == "confirm"]
    names = {*metrics, *(metric.split("/", 2)[-1] for metric in metrics if metric.startswith("probe"))}
    first = ~confirm.duplicated(["cell", "seed", "stage", "fingerprint"])
    return confirm[first | confirm["metric"].isin(names)]


def _dots(results: pandas.DataFrame, header: StudyHeader) -> Group:
    drawn = [(m, figures.dot_plot(answer(results, header, m).dots, m)) for m in header.report.metrics]
    return Group("Every seed", "Mean with its 95 % Student-t interval; nested seeds are averaged first.", tuple(drawn))


def _against(results: pandas.DataFrame, header: StudyHeader) -> Iterator[Group]:
    drawn = tuple((table.metric, figures.difference_plot(table)) for table in _differences(results, header))
    note = "Paired over seeds, 95 % t interval; a filled mark has a Holm-corrected p below 0.05."
    yield Group("Differences to the baseline", note, drawn)


def _differences(results: pandas.DataFrame, header: StudyHeader) -> list[tables.Differences]:
    if not header.report.baseline:
        return []
    return [table for m in header.report.metrics if (table := tables.differences(results, header, m)).rows]


def _over_amounts(results: pandas.DataFrame, header: StudyHeader) -> Iterator[Group]:
    factor = curves.amount_factor(header)
    if factor is not None:
        made = [curves.amount_curves(results, header, factor, metric) for metric in header.report.metrics]
        yield Group(f"Over {factor}", "", tuple((item.metric, figures.amount_plot(item)) for item in made))


def _learning(rows: pandas.DataFrame, header: StudyHeader) -> Iterator[Group]:
    order = [cell.label for cell in header.cells]
    asked = sorted(curves.curve_metrics(rows), key=lambda key: (not key[1].startswith("val/jaccard"), key))
    made = [curves.learning_curves(rows, stage, metric, order) for stage, metric in asked[:_MOST_FIGURES]]
    drawn = tuple((f"{item.stage}: {item.metric}", figures.learning_plot(item)) for item in made)
    yield Group("Learning curves", "Of the confirm phase; click a name in the legend to hide its line.", drawn)


def _sensitivity(results: pandas.DataFrame, content: Mapping[str, Any]) -> tuple[list[Group], tuple[str, ...]]:
    found, ranges = sensitivity.searches(results, content), content.get("ranges") or {}
    drawn = [
        (f"{search.name}: {name}", figures.response_plot(sensitivity.response(search, name, ranges)))
        for search in found
        for name in sensitivity.varied(search)
    ]
    ranked = [sensitivity.importance(search, ranges, np.random.default_rng(0)) for search in found[:_MOST_FIGURES]]
    shares = tuple((item.search, figures.importance_plot(item)) for item in ranked if not item.note)
    note = "PED-ANOVA; whiskers are the 5th to 95th percentile over resampled trials. " + sensitivity.BIASED
    groups = [
        Group("Sensitivity", sensitivity.BIASED, tuple(drawn[:_MOST_FIGURES])),
        Group("Importance", note, shares),
    ]
    return groups, tuple(f"Importance in the {item.search}: {item.note}." for item in ranked if item.note)


# ------------------------------------------------------------------------------------------------------------ facts


def facts(results: pandas.DataFrame, stage_runs: pandas.DataFrame, header: StudyHeader) -> list[tuple[str, str]]:
    """The few numbers at the top: cells, seeds, stage runs, failures, work."""
    ended = results.drop_duplicates("fingerprint")
    failed = int((ended["outcome"] != "finished").sum())
    return [
        ("cells", str(len(header.cells))),
        ("seeds per cell", str(header.replicates)),
        ("stage runs", f"{len(ended):,}"),
        ("did not finish", f"{failed:,}"),
        ("work", duration(float(stage_runs["seconds"].sum()))),
    ]


def _cost_row(cost: runs.Cost) -> list[str]:
    size = f"{cost.bytes / 1e6:,.1f} MB"
    return [cost.stage, f"{cost.runs:,}", duration(cost.seconds), duration(cost.mean_seconds), size]


def duration(seconds: float) -> str:
    """'4.2 s', '12 min', '3 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress(folder: Path) -> str:
    """What status.json says of a study that has not ended; "" for one that has."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        done = int(status["finished"]) + int(status["reused"]) + int(status["failed"])
        total = status["total"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if total is not None and done >= int(total):
        return ""
    of = "" if total is None else f" of {total}"
    return f"This study has not ended ({status['phase']} phase): {done}{of} stage runs are done. The tables hold those."


def run_data(results: pandas.DataFrame, stage_runs: pandas.DataFrame, metric: str, reload: float) -> dict[str, Any]:
    """What the table of stage runs is made from."""
    return runs.run_table(results, stage_runs)._asdict() | {"first_metric": metric, "reload_seconds": reload}


def load_panels(folder: Path) -> Panels | None:
    """The images in `panels/`, inlined; None where there are none. Raises ResultsError for a damaged folder."""
    if not (folder / "panels" / "panels.json").is_file():
        return None
    try:
        content = json.loads((folder / "panels" / "panels.json").read_text(encoding="utf-8"))
        rows = tuple(_panel_row(folder / "panels", row) for row in content["rows"])
        legend = tuple((str(name), str(color)) for name, color in content["legend"])
        return Panels(content["caption"], tuple(content["columns"]), rows, legend)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{folder / 'panels'} is damaged ({error}): delete it and report again") from error


def _panel_row(folder: Path, row: Mapping[str, Any]) -> PanelRow:
    encoded = [base64.b64encode((folder / Path(name).name).read_bytes()).decode() for name in row["images"]]
    return PanelRow(row["label"], row["note"], tuple(f"data:image/png;base64,{text}" for text in encoded))


# ------------------------------------------------------------------------------------------------------------- page


def _sections(baseline: bool, panels: bool) -> list[tuple[str, str]]:
    names = [("answer", "Answer"), ("table", "Table")]
    names += [("differences", "Differences")] if baseline else []
    names += [("figures", "Figures")] + ([("panels", "Test images")] if panels else [])
    return [*names, ("cost", "Cost"), ("failures", "Failures"), ("runs", "Stage runs"), ("reproduce", "Reproduce")]


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html.j2")


def _json(content: object) -> Markup:
    """JSON that is safe inside a script element: no "<" can end it or open another."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=_plain)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | np.ndarray):
        return list(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _plotly() -> str:
    """plotly.js, its line ends as a browser reads them, or the policy's hash would not fit."""
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "(study.yaml is not there)"


def _content(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return content


def _version() -> str:
    try:
        return version("pretune")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


__all__ = ["build", "watch", "write", "write_figures"]
