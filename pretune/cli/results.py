"""Commands about a study's folder: its report, how far it is, another beside it, and the use of its best model."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from pretune.cli import options
from pretune.errors import EXIT_FAILED_STAGES
from pretune.monitor.plain import plain
from pretune.search_spaces.words import counted


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--html/--no-html", default=True, show_default=True, help="Also write report.html, which needs no network."
)
@click.option("--watch", is_flag=True, help="Update report.html whenever results change, until the study ends.")
@click.option(
    "--figures", type=click.Choice(["svg", "pdf", "png"]), help="Also write every figure as a file to figures/."
)
@click.option(
    "--inches",
    type=click.FloatRange(2, 20),
    help="Width of these figures, with 8 pt text; 3.4 fits a column, 7 a page.",
)
@options.details
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Image cache, needed to draw images.  [default: ROOT/cache]"
)
@click.option("--store", metavar="PATH", help="Store, needed to draw images.  [default: ROOT/store]")
def report(
    folder: Path,
    html: bool,
    watch: bool,
    figures: str | None,
    inches: float | None,
    details: bool,
    cache: Path | None,
    store: str | None,
) -> None:
    """Print the tables of a study. Also writes them and the HTML report again.

    \b
    pretune report runs/quickstart                  the table, and runs/quickstart/report.html
    pretune report runs/quickstart --details        also differences, intervals and tests
    pretune report runs/quickstart --watch          while the study runs
    pretune report runs/quickstart --figures pdf --inches 3.4    figures for a paper's column
    """
    from pretune.analysis.load.results import load_header
    from pretune.analysis.report import figures as report_figures
    from pretune.analysis.report import html as report_html

    console = Console()
    load_header(folder)  # says what is missing, before anything else does
    if watch:
        report_html.watch(folder, lambda line: console.print(plain(line), highlight=False, soft_wrap=True))
    if html:
        for missing in draw_panels(folder, cache or folder.parent / "cache", store or folder.parent / "store"):
            console.print(f"[dim]the report has no example images: {plain(missing)}[/]", highlight=False)
    print_report(folder, console, html, details)
    if html:
        console.print(f"report  {plain(folder / report_html.REPORT_NAME)}", highlight=False, soft_wrap=True)
    if figures:
        written = report_figures.write_figures(folder, figures, inches)
        console.print(f"{counted(len(written), 'figure')} in {plain(folder / 'figures')}")


def draw_panels(folder: Path, cache: Path, store: Path | str) -> list[str]:
    """The image panels that a study's models allow, drawn unless they are there; answers why any is not."""
    from pretune.results.panels import write_panels
    from pretune.results.probe_panels import write_probe_panels
    from pretune.results.reconstructions import write_reconstructions
    from pretune.store.store import open_store

    held = open_store(store, cache)
    reasons = (
        write_panels(folder, cache),
        write_reconstructions(folder, held, cache),
        write_probe_panels(folder, held),
    )
    return [why for why in reasons if why]


def print_report(folder: Path, console: Console, html: bool = True, details: bool = False) -> None:
    """Tables to the terminal, to table.md, table.tex and table.csv, and all of it to report.html."""
    from pretune.analysis.report.html import write
    from pretune.analysis.report.tables import write_tables

    for table in write_tables(folder, details):
        console.print(table)
    if not details:
        where = f"pretune report {folder} --details"
        console.print(f"[dim]differences, intervals and tests: {plain(where)}[/]", highlight=False, soft_wrap=True)
    if html:
        write(folder)


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="FIRST OTHER...", type=click.Path(path_type=Path))
@click.option("--metric", help="Metric to compare.  [default: all metrics that every study reports]")
@click.option("--html", type=click.Path(path_type=Path), help="HTML page to write.  [default: FIRST/comparison.html]")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the comparison to this file.")
def compare(folders: tuple[Path, ...], metric: str | None, html: Path | None, markdown: Path | None) -> None:
    """Compare studies with the first one, cell by cell.

    Prints tables, lists what else differs, and writes an HTML page. Seeds are paired if data, split and seeds are
    equal.

    \b
    pretune compare runs/simclr runs/byol
    pretune compare runs/a runs/b runs/c --html abc.html
    pretune compare runs/simclr runs/byol --metric test/dice --markdown comparison.md
    """
    from pretune.analysis.questions.compare import compare_folders
    from pretune.analysis.report.comparison import PAGE_NAME, write_comparison
    from pretune.analysis.text.comparison import comparison_markdown, comparison_tables

    found = compare_folders(folders, metric)
    console = Console()
    for part in comparison_tables(found):
        console.print(part)
    page = html or folders[0] / PAGE_NAME
    try:
        write_comparison(found, page)
        if markdown is not None:
            markdown.write_text(comparison_markdown(found), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise click.UsageError(
            f"{error.filename or page} cannot be written ({error.strerror}): choose another path"
        ) from None
    console.print(f"page  {plain(page)}", highlight=False, soft_wrap=True)


def introduce(folder: Path) -> None:
    """Say which model is used, and what should be known of it."""
    try:
        card = json.loads((folder / "best" / "model.json").read_text(encoding="utf-8"))
        warnings = list(card.get("warnings", ()))
    except (OSError, ValueError, TypeError, AttributeError):
        return  # whoever loads the model says so
    with suppress(LookupError, TypeError, ValueError, AttributeError):  # likewise, of what the line needs
        click.echo(model_line(card, folder), err=True)
    for text in warnings:
        click.echo(f"warning: {text}", err=True)


def model_line(card: dict[str, Any], folder: Path) -> str:
    """'best model: start=pretrained, seed 101, val/jaccard 0.712, test/jaccard 0.698 (runs/leaves/best)'.

    The test score is that of the metric by which the model was chosen, where the study has it.
    """
    target = str(card["target"])
    scores = {name: card["scores"].get(name) for name in (target, target.replace("val/", "test/", 1))}
    said = "".join(f", {name} {value:.3f}" for name, value in scores.items() if value is not None)
    return f"best model: {card['cell'] or 'the only cell'}, seed {card['seed']}{said} ({folder / 'best'})"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--overlays/--no-overlays",
    default=True,
    show_default=True,
    help="Also write each image with its mask drawn over it.",
)
@click.option("--coco/--no-coco", default=False, show_default=True, help="Also write annotations.json (COCO).")
@click.option(
    "--tile",
    type=click.IntRange(16),
    metavar="PX",
    help="Cut images into tiles of this size, at full resolution. Use it for images much larger than those of the "
    "study.  [default: resize the whole image]",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 0.9),
    default=0.25,
    show_default=True,
    help="Overlap of neighbouring tiles, as a share of a tile.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of processes. More than 1 uses Ray Data, for large folders.",
)
@click.option("--address", help="Address of a Ray cluster with access to the same folders.  [default: this machine]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def predict(
    folder: Path, images: Path, out: Path, overlays: bool, coco: bool, tile: int | None, overlap: float, workers: int,
    address: str | None, device: str,
) -> None:  # fmt: skip
    """Segment a folder of images with the best model. Images can have any size.

    \b
    pretune predict runs/my-study photos/ segmented/
    pretune predict runs/my-study scans/ segmented/ --tile 512     large images, in tiles
    pretune predict runs/my-study photos/ segmented/ --workers 8   a large folder, with Ray Data

    Exit code 0: all images were segmented. 3: some files could not be read; they are named.
    """
    from pretune.model.predict_folder import How, predict_folder
    from pretune.trainables.data.errors import laid_over_black

    how = How(overlays, device, tile, overlap, workers, address, coco)
    introduce(folder)
    ended = predict_folder(folder, images, out, how, Console(stderr=True))
    for name, why in ended.failed.items():
        click.echo(f"failed {name}: {why}", err=True)
    if ended.transparent:
        click.echo(f"note: {laid_over_black(ended.transparent)}", err=True)
    click.echo(f"{counted(ended.done, 'image')} segmented, {len(ended.failed)} failed; masks in {out / 'masks'}")
    sys.exit(EXIT_FAILED_STAGES if ended.failed else 0)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["safetensors", "onnx", "torch-export", "ray-tune"]),
    default="safetensors",
    show_default=True,
)
@click.option("--encoder-only", is_flag=True, help="Export only the encoder, as safetensors.")
@click.option(
    "--keys",
    type=click.Choice(["own", "torchvision", "timm"]),
    default="own",
    show_default=True,
    help="Library whose tensor names to use, so that the library can load the encoder.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: STUDY_OUT/export-FORMAT]")
@click.option("--cache", type=click.Path(path_type=Path), help="Image cache, for the check.  [default: ROOT/cache]")
def export(folder: Path, kind: str, encoder_only: bool, keys: str, out: Path | None, cache: Path | None) -> None:
    """Export the best model of a study with a model card. Checks that the export gives the same masks.

    `--format ray-tune` instead exports all stage runs as an experiment that Ray's ResultGrid can read.

    \b
    pretune export runs/my-study --format onnx
    pretune export runs/my-study --format ray-tune
    pretune export runs/my-study --encoder-only --keys timm     a backbone for other code
    """
    from pretune.model.export import export_model
    from pretune.model.export_encoder import export_encoder

    if not encoder_only and keys != "own":
        raise click.UsageError(f"--keys {keys} works only for an encoder: add --encoder-only")
    if encoder_only and kind != "safetensors":
        raise click.UsageError(f"--encoder-only can only write safetensors: remove --format {kind}")
    if kind == "ray-tune":
        from pretune.cluster.experiment import write_experiment

        target = out or folder / f"export-{kind}"
        click.echo(f"wrote {counted(write_experiment(folder, target), 'stage run')} to {target}")
        return
    held = cache or folder.parent / "cache"
    if encoder_only:
        exported = export_encoder(folder, out or folder / f"export-encoder-{keys}", keys, held)
    else:
        exported = export_model(folder, out or folder / f"export-{kind}", kind, held)
    introduce(folder)
    click.echo(exported.checked)
    for path in exported.files:
        click.echo(f"wrote {path}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def status(folder: Path, as_json: bool) -> None:
    """Show the progress of a study, while it runs or afterwards.

    \b
    pretune status runs/quickstart
    """
    from pretune.monitor.terminal import CellStatus, RunningStage, Snapshot, render

    try:
        values = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        why = "the study has not started yet, or this is not a study's output folder"
        raise click.UsageError(f"{folder} holds no status.json: {why}") from None
    try:
        parts = {
            "running": tuple(RunningStage(**item) for item in values["running"]),
            "cells": tuple(CellStatus(**item) for item in values["cells"]),
            "messages": tuple(values["messages"]),
        }
        shot = Snapshot(**{**values, **parts})
    except (KeyError, TypeError):
        raise click.UsageError(
            f"{folder}/status.json is from another version of Pretune; run the study again"
        ) from None
    if as_json:
        click.echo(json.dumps(values, indent=1))
        return
    Console().print(render(shot))


COMMANDS = (report, compare, predict, export, status)
