"""`pretune data list | check | fetch | views`: the data sets there are, copies of them, and what is made of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

if TYPE_CHECKING:  # numpy and torch are imported where they are used: the command line starts without them
    from search_spaces import schema
    from trainables.data.catalogue import Download
    from trainables.data.images import ImageSet

SHEET_IMAGES = 24

OWN = {
    "scenes": "generated scenes with exact masks, regions and depth; nothing to fetch",
    "volumes": "generated volumes with exact masks; nothing to fetch",
    "image-folder": "your images, all in one folder or in one for each class",
    "image-mask-folder": "your images/ and masks/ with equal file names",
    "parquet": "your shards of image files, on a disk or in an object store (s3://, gs://)",
    "npz": "your arrays in one file: images, and masks and labels if there are any",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% } .bad { color: #a40000 }</style>
<h1>{{ title }}</h1>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% if problems %}<h2>{{ problems | length }} left out of the sheet</h2>
<ul class="bad">{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<img alt="contact sheet of {{ title }}" src="data:image/png;base64,{{ picture }}">
</html>
"""

_data = click.option(
    "--data", "root", type=click.Path(path_type=Path), help="Folder in which data sets are looked for."
)
_runs = click.option("--root", "runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
                     help="Holds the image cache.")  # fmt: skip
_set = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of it; repeatable.")
_images = click.option("--images", type=click.IntRange(1, 400), default=SHEET_IMAGES, show_default=True,
                       help="Images on the sheet.")  # fmt: skip


@click.group("data")
def data() -> None:
    """Look at data sets: which there are, whether a copy is whole, how to get one, what views show."""


@data.command("list")
def list_command() -> None:
    """Every data set, with its licence, its size, and what its folder holds.

    \b
    pretune data list
    """
    print_list(Console())


@data.command()
@click.argument("name")
@_data
@_runs
@_set
@_images
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The sheet, and beside it a page with the findings.  [default: ./NAME.png]",
)
def check(name: str, root: Path | None, runs: Path, overrides: tuple[str, ...], images: int, out: Path | None) -> None:
    """Read every file of a copy, report what is wrong with it, and draw a contact sheet with its masks.

    \b
    pretune data check oxford-iiit-pet --data ~/datasets
    pretune data check voc2012 --data ~/datasets --set only=cat
    pretune data check image-mask-folder --set root=~/photos --set classes=[background,leaf]
    """
    check_data(settings_of(name, overrides), root, runs / "cache", images, out or Path(f"{name}.png"), Console())


@data.command()
@click.argument("name")
@_data
@click.option("--keep/--no-keep", default=False, show_default=True, help="Keep the archives once they are unpacked.")
def fetch(name: str, root: Path | None, keep: bool) -> None:
    """Download a data set that may be downloaded, or say exactly what to do. Run it again to go on.

    \b
    pretune data fetch oxford-iiit-pet --data ~/datasets
    """
    fetch_data(name, root or Path(), keep, Console())


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@_data
@_runs
@click.option("--scale", metavar="NAME", help="Apply one of the study's scales, e.g. small.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--images", type=click.IntRange(1, 100), default=8, show_default=True, help="Images on the sheet.")
@click.option("--out", type=click.Path(path_type=Path), help="The sheet.  [default: ./STUDY-views.png]")
def views(
    file: Path,
    root: Path | None,
    runs: Path,
    scale: str | None,
    overrides: tuple[str, ...],
    images: int,
    out: Path | None,
) -> None:
    """Draw what the network will see: the views of a study's first pretraining stage, in two epochs.

    \b
    pretune data views study.yaml --data ~/datasets
    """
    from search_spaces.resolve import load

    study = load(file, scale, overrides)
    written = draw_views(
        study.cells[0].configuration(), root, runs / "cache", images, out or Path(f"{study.name}-views.png")
    )
    click.echo(f"wrote {written}")


# ------------------------------------------------------------------------------------------------------------- list


def print_list(console: Console) -> None:
    """One line for each published data set, and the forms of one's own."""
    from trainables.data.catalogue import ABOUT

    table = Table(Column("name", no_wrap=True), Column("size", min_width=8), "login", Column("what", overflow="fold"))
    for name, about in sorted(ABOUT.items()):
        what = f"{about.title}\nlicence: {about.licence}\nholds: {about.layout}"
        table.add_row(name, about.size, "yes" if about.login else "no", what, end_section=True)
    for name, what in OWN.items():
        table.add_row(name, "", "no", what)
    console.print(table)
    console.print("fetch: pretune data fetch NAME; check a copy: pretune data check NAME", highlight=False)


# ------------------------------------------------------------------------------------------------------------ check


def settings_of(name: str, overrides: Sequence[str]) -> schema.Data:
    """The settings of a data set by name, with KEY=VALUE laid over them. Raises click.UsageError."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from search_spaces import schema
    from trainables.data.adapters import ADAPTERS

    known = sorted({*ADAPTERS, "scenes", "volumes"})
    if name not in known:
        raise click.UsageError(f"no data set {name!r}; there are: {', '.join(known)}")
    values: dict[str, Any] = {"dataset": name}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise click.UsageError(f"--set {item!r} is not KEY=VALUE")
        values[key] = yaml.safe_load(value)
    try:
        adapter: TypeAdapter[schema.Data] = TypeAdapter(schema.Data)
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise click.UsageError(f"{name}: {where}: {first['msg']}") from None


def check_data(
    settings: schema.Data, root: Path | None, cache: Path, count: int, sheet: Path, console: Console
) -> None:
    """Report and sheet of a copy. Raises DataError naming every bad file, after the sheet of the good ones."""
    from trainables.data.errors import DataError
    from trainables.data.images import locate

    where = locate(settings, root)
    held = _decoded(settings, root, cache)
    console.print(f"{settings.dataset} {f'in {where}' if where else '(generated)'}", highlight=False)
    lines = [*describe(held), *duplicate_report(held)]
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False)
    draw_sheet(held, count, sheet)
    page = write_page(f"{settings.dataset} {where or ''}", lines, held.skipped, sheet)
    console.print(f"wrote {sheet} and {page}", highlight=False)
    if held.skipped:
        raise DataError(f"{len(held.skipped)} problem{'s' * (len(held.skipped) > 1)} in this copy:", held.skipped)


def _decoded(settings: schema.Data, root: Path | None, cache: Path) -> ImageSet:
    """Under the study's own settings where all is well, so that a run finds it cached; else without the bad files."""
    from trainables.data.errors import DataError
    from trainables.data.images import load

    with Progress(transient=True) as bar:
        task = bar.add_task("reading every image")
        try:
            return load(settings, root, cache, lambda done, total: bar.update(task, completed=done, total=total))
        except DataError as error:
            if not error.problems:
                raise
        lenient = settings.model_copy(update={"on_error": "skip"})
        return load(lenient, root, cache, lambda done, total: bar.update(task, completed=done, total=total))


def describe(held: ImageSet) -> list[str]:
    """How many images, classes and tests there are, and how the classes share the pixels."""
    import numpy as np

    size = f"{held.images.shape[-2]} px"
    if len(held.images.shape) == 5:
        size = f"{' x '.join(map(str, held.images.shape[1:4]))} voxels"
    lines = [f"{len(held.names)} images, cached at {size}"]
    if held.official_test is not None:
        tests = int(held.official_test.sum())
        lines.append(f"official lists: {len(held.names) - tests} train, {tests} test")
    if held.labels is not None:
        counts = np.bincount(held.labels)
        counts = counts[counts > 0]
        lines.append(f"{len(counts)} image classes with {counts.min()} to {counts.max()} images each")
    if held.masks is not None:
        lines.append(
            "share of pixels: " + ", ".join(f"{name} {share:.1%}" for name, share in mask_shares(held).items())
        )
    return lines


def mask_shares(held: ImageSet) -> Mapping[str, float]:
    """Class name -> share of all pixels, `ignored` last."""
    import numpy as np

    assert held.masks is not None
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in np.asarray(held.masks)), np.zeros(256, np.int64))
    shares = counts / counts.sum()
    named = {name: float(share) for name, share in zip(held.classes, shares, strict=False)}
    return named | ({"ignored": float(shares[255])} if shares[255] > 0 else {})


def duplicate_report(held: ImageSet) -> list[str]:
    """Pictures that are there twice, those on both sides of the official lists first."""
    import numpy as np

    from trainables.data.duplicates import across, find_duplicates

    if len(held.images.shape) == 5:
        return ["volumes are not searched for copies"]
    found = find_duplicates(np.asarray(held.images))
    if not found:
        return ["no picture is there twice"]
    part = np.zeros(len(held.names), np.int64) if held.official_test is None else held.official_test.astype(np.int64)
    between = across(found, part)
    across_lists = set(between)
    shown = [*between, *(pair for pair in found if pair not in across_lists)][:5]
    examples = [f"  {_printable(held.names[pair.first])} = {_printable(held.names[pair.second])}" for pair in shown]
    sides = f", {len(between)} of them on both sides of the official lists" if held.official_test is not None else ""
    more = [f"  and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return [f"{len(found)} pairs show the same picture{sides}:", *examples, *more]


def _printable(name: str) -> str:
    """A file name that is not UTF-8 cannot be printed as it is."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def draw_sheet(held: ImageSet, count: int, sheet: Path) -> None:
    """A random but fixed choice of images, with their masks."""
    from trainables.data.sheets import data_sheet
    from trainables.data.slices import shown
    from trainables.data.splits import draw_subset

    rows = [int(i) for i in draw_subset(len(held.names), count, 0)]
    pairs = [shown(held.images[i], None if held.masks is None else held.masks[i]) for i in rows]
    masks = None if held.masks is None else [mask for _, mask in pairs if mask is not None]
    captions = [f"{held.names[i]}{_label(held, i)}" for i in rows]
    _save(data_sheet([image for image, _ in pairs], masks, captions, held.classes, 4 if masks else 8), sheet)


def write_page(title: str, lines: Sequence[str], problems: Sequence[str], sheet: Path) -> Path:
    """The sheet, what was found and every bad file as one HTML file beside it, which opens offline."""
    import base64

    from jinja2 import Template

    picture = base64.b64encode(sheet.read_bytes()).decode()
    printed = [[_printable(line) for line in part] for part in (lines, problems)]
    text = Template(PAGE, autoescape=True).render(
        title=_printable(title), lines=printed[0], problems=printed[1], picture=picture
    )
    page = sheet.with_suffix(".html")
    page.write_text(text, encoding="utf-8")
    return page


def _label(held: ImageSet, row: int) -> str:
    if held.labels is None:
        return ""
    label = int(held.labels[row])
    return f" [{held.label_names[label] if held.label_names else label}]"


def _save(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


# ------------------------------------------------------------------------------------------------------------ fetch


def fetch_data(name: str, root: Path, keep: bool, console: Console) -> None:
    """Download and unpack below `root`, or print what to do. Raises DataError, click.UsageError."""
    from trainables.data.adapters import find
    from trainables.data.catalogue import ABOUT

    if name not in ABOUT:
        raise click.UsageError(f"{name!r} cannot be fetched; there are: {', '.join(sorted(ABOUT))}")
    about = ABOUT[name]
    if found := find(root, about):
        console.print(f"{name} is there: {found}; pretune data check {name} --data {root}", highlight=False)
        return
    console.print(f"{about.title}: {about.size}, licence: {about.licence}", highlight=False)
    if not about.downloads:
        reason = "its site asks for an account" if about.login else "it has no archive of its own"
        console.print(f"Not downloaded: {reason}. To have it: {about.get}.", highlight=False)
        return
    if (root / about.folders[0]).exists():
        raise click.UsageError(
            f"{root / about.folders[0]} is there already, and is no whole copy; move it away, then fetch again"
        )
    _fetch_all(about.downloads, root, about.folders[0], keep, console)
    console.print(f"{name} is in {root / about.folders[0]}; pretune data check {name} --data {root}", highlight=False)


def _fetch_all(downloads: Sequence[Download], root: Path, name: str, keep: bool, console: Console) -> None:
    """Everything is fetched and unpacked beside its place, then moved: a folder that is found is a whole one."""
    from trainables.data.download import unpack

    waiting = root / f".{name.replace('/', '-')}"
    archives = [_fetch_one(download, waiting / "archives", console) for download in downloads]
    staged = waiting / "unpacked"
    for download, archive in zip(downloads, archives, strict=True):
        unpack(archive, (staged / name / download.into).resolve())
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (staged / name).rename(root / name)
    shutil.rmtree(staged if keep else waiting)


def _fetch_one(download: Download, folder: Path, console: Console) -> Path:
    from trainables.data.download import fetch

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(download.url.rsplit("/", 1)[1], total=None)
        archive = fetch(download, folder, lambda done, total: bar.update(task, completed=done, total=total))
    note = "" if download.checksum else " (no published checksum is known: not verified)"
    console.print(f"  fetched {download.url}{note}", highlight=False)
    return archive


# ------------------------------------------------------------------------------------------------------------ views


def draw_views(configuration: schema.Configuration, root: Path | None, cache: Path, count: int, sheet: Path) -> Path:
    """The views of the first pretraining stage in epochs 0 and 1, each beside its image. Raises click.UsageError."""
    import torch

    from trainables.data.sheets import view_sheet
    from trainables.data.sources import open_set, prepare
    from trainables.data.splits import draw_subset
    from trainables.views.regions import region_table
    from trainables.views.two_views import views_of

    stage = next((stage for stage in configuration.pretrain if stage.method.name != "none"), None)
    if stage is None:
        raise click.UsageError("this study has no pretraining, so it has no views")
    settings = configuration.data[stage.data]
    held = open_set(settings, prepare(settings, root, cache)[0], root, cache)
    rows = draw_subset(len(held.names), count, 0)
    table = None
    if stage.views.within == "region":
        if held.regions is None:
            raise click.UsageError(f"views within regions, but data set {stage.data!r} has no region maps")
        table = region_table(held.regions[rows])
    if len(held.images.shape) == 5:
        raise click.UsageError("views of volumes are the volumes themselves: pretune data check draws them")
    images = torch.from_numpy(held.images[rows])
    seen = [view for epoch in (0, 1) for view in views_of(images, rows, [stage.views] * 2, 0, epoch, table)]
    pixels = [list((view.pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()) for view in seen]
    captions = [f"{held.names[i]}   views 1, 2 of epoch 0 and of epoch 1, {stage.views.size} px" for i in rows]
    _save(view_sheet(list(held.images[rows]), pixels, [view.boxes.numpy() for view in seen], captions), sheet)
    return sheet
