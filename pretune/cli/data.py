"""`pretune data list | check | fetch | views`: the data sets there are, copies of them, and what is made of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from pretune.cli import options
from pretune.monitor.plain import plain

if TYPE_CHECKING:  # numpy and torch are imported where they are used: the command line starts without them
    from pretune.trainables.data.sets.catalogue import Download

SHEET_IMAGES = 24

_data = click.option("--data", "root", type=click.Path(path_type=Path), help="Folder that contains the data sets.")
_images = click.option("--images", type=click.IntRange(1, 400), default=SHEET_IMAGES, show_default=True,
                       help="Number of images on the contact sheet.")  # fmt: skip


@click.group("data")
def data() -> None:
    """List, download and check data sets."""


@data.command("list")
def list_command() -> None:
    """List all data sets with their licence, size and folder layout.

    \b
    pretune data list
    """
    print_list(Console())


@data.command()
@click.argument("name", metavar="NAME|STUDY.yaml")
@_data
@options.runs
@click.option("--scale", metavar="NAME", help="For a study: use the settings of one of its scales, e.g. small.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a setting of the data set or of the study; repeatable.")  # fmt: skip
@_images
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Contact sheet (PNG); an HTML page with all problems gets the same name. A study gets one of each per "
    "data set.  [default: ./NAME.png; of a study ROOT/STUDY/data-SET.png]",
)
def check(
    name: str,
    root: Path | None,
    runs: Path,
    scale: str | None,
    overrides: tuple[str, ...],
    images: int,
    out: Path | None,
) -> None:
    """Read every file of a data set, or of all data sets of a study. Lists all problems and draws a contact sheet.

    \b
    pretune data check oxford-iiit-pet --data ~/datasets
    pretune data check voc2012 --data ~/datasets --set only=cat
    pretune data check image-mask-folder --set root=~/photos --set classes=[background,leaf]
    pretune data check study.yaml --data ~/datasets
    """
    from pretune.data.check import check_data, check_study, page_of, settings_of
    from pretune.search_spaces.resolve import load
    from pretune.trainables.data.errors import SHOWN, DataError

    if name.endswith((".yaml", ".yml")):
        study = load(name, scale, overrides)
        sheet = out or options.folder_of(study, scale, runs) / "data.png"
        problems = check_study(study, root, runs / "cache", images, sheet, Console())
        pages = f"all are listed on the pages {page_of(sheet).with_suffix('')}-*.html"
    else:
        settings, sheet = settings_of(name, overrides), out or Path(f"{name}.png")
        problems = check_data(settings, root, runs / "cache", images, sheet, Console())
        pages = f"all are listed on the page {page_of(sheet)}"
    if problems:
        where = f" ({pages})" if len(problems) > SHOWN else ""
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in this data set{where}:", problems)


@data.command()
@click.argument("name")
@_data
@click.option("--keep/--no-keep", default=False, show_default=True, help="Keep the archives after unpacking.")
def fetch(name: str, root: Path | None, keep: bool) -> None:
    """Download a data set, or say how to get it if its licence does not allow this. Run again to continue.

    \b
    pretune data fetch oxford-iiit-pet --data ~/datasets
    """
    fetch_data(name, root or Path(), keep, Console())


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data
@options.runs
@click.option("--scale", metavar="NAME", help="Use the settings of one of the study's scales, e.g. small.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the study; repeatable."
)
@click.option(
    "--images", type=click.IntRange(1, 100), default=8, show_default=True, help="Number of images on the sheet."
)
@click.option("--out", type=click.Path(path_type=Path), help="Image to write.  [default: ROOT/STUDY/views.png]")
def views(
    file: Path,
    root: Path | None,
    runs: Path,
    scale: str | None,
    overrides: tuple[str, ...],
    images: int,
    out: Path | None,
) -> None:
    """Draw the augmented views that the first pretraining of a study will see.

    \b
    pretune data views study.yaml --data ~/datasets
    """
    from pretune.data.views import draw_views
    from pretune.search_spaces.resolve import load

    study = load(file, scale, overrides)
    sheet = out or options.folder_of(study, scale, runs) / "views.png"
    for line in draw_views(study.cells[0].configuration(), root, runs / "cache", images, sheet):
        click.echo(line)
    click.echo(f"wrote {sheet}")


# ------------------------------------------------------------------------------------------------------------- list


def print_list(console: Console) -> None:
    """One line for each published data set, and the forms of one's own."""
    from pretune.trainables.data.sets.table import ABOUT, ABOUT_GENERATED, DATA_SETS

    table = Table(Column("name", no_wrap=True), Column("size", min_width=8), "login", Column("what", overflow="fold"))
    for name, about in sorted(ABOUT.items()):
        what = f"{about.title}\nlicence: {about.licence}\nholds: {about.layout}"
        table.add_row(name, about.size, "yes" if about.login else "no", what, end_section=True)
    own = {name: row.about for name, row in DATA_SETS.items() if isinstance(row.about, str)}
    for name, what in (ABOUT_GENERATED | own).items():
        table.add_row(name, "", "no", what)
    console.print(table)
    console.print("fetch: pretune data fetch NAME; check a copy: pretune data check NAME", highlight=False)


# ------------------------------------------------------------------------------------------------------------ fetch


def fetch_data(name: str, root: Path, keep: bool, console: Console) -> None:
    """Download and unpack below `root`, or print what to do. Raises DataError, click.UsageError."""
    from pretune.trainables.data.sets.table import ABOUT, find_folder

    if name not in ABOUT:
        raise click.UsageError(f"{name!r} cannot be fetched; there are: {', '.join(sorted(ABOUT))}")
    about = ABOUT[name]
    if found := find_folder(root, about):
        console.print(
            f"{name} is there: {plain(found)}; pretune data check {name} --data {plain(root)}", highlight=False
        )
        return
    console.print(f"{about.title}: {about.size}, licence: {about.licence}", highlight=False)
    if not about.downloads:
        reason = "its site asks for an account" if about.login else "it has no archive of its own"
        console.print(f"Not downloaded: {reason}. To get it: {about.get}.", highlight=False)
        return
    if (root / about.folders[0]).exists():
        raise click.UsageError(f"{root / about.folders[0]} exists but is incomplete; move it away, then fetch again")
    _fetch_all(about.downloads, root, about.folders[0], keep, console)
    console.print(
        f"{name} is in {plain(root / about.folders[0])}; pretune data check {name} --data {plain(root)}",
        highlight=False,
    )


def _fetch_all(downloads: Sequence[Download], root: Path, name: str, keep: bool, console: Console) -> None:
    """Everything is fetched and unpacked beside its place, then moved: a folder that is found is a whole one."""
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sets.download import unpack

    waiting = root / f".{name.replace('/', '-')}"
    archives: list[Path] = []
    for download in downloads:
        try:
            archives.append(_fetch_one(download, waiting / "archives", console))
        except DataError as error:
            others = ", ".join(other.url for other in downloads[len(archives) + 1 :])
            raise DataError(f"{error}{f' (and so on: {others})' if others else ''}") from error
    staged = waiting / "unpacked"
    for download, archive in zip(downloads, archives, strict=True):
        unpack(archive, (staged / name / download.into).resolve())
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (staged / name).rename(root / name)
    shutil.rmtree(staged if keep else waiting)


def _fetch_one(download: Download, folder: Path, console: Console) -> Path:
    from pretune.trainables.data.sets.download import fetch

    console.print(f"  fetching {plain(download.url)} ...", highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(download.url.rsplit("/", 1)[1], total=None)
        archive = fetch(
            download,
            folder,
            lambda done, total: bar.update(task, completed=done, total=total),
            say=lambda text: bar.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True),
        )
    note = "" if download.checksum else " (no published checksum is known: not verified)"
    console.print(f"  fetched {plain(download.url)}{plain(note)}", highlight=False)
    return archive
