"""`pretune data check`: every file of a copy read, what was found in words, and a contact sheet to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from pretune.trainables.data.errors import printable

if TYPE_CHECKING:  # numpy and torch are imported where they are used: the command line starts without them
    from pretune.search_spaces import schema
    from pretune.search_spaces.resolve import Study
    from pretune.trainables.data.image_set import ImageSet

ROWS = 256  # masks counted at a time
SHOWN_COPIES = 5

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% } .bad { color: #a40000 }</style>
<h1>{{ title }}</h1>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% if problems %}<h2>{{ problems | length }} {{ "left out of the sheet" if picture else "problems" }}</h2>
<ul class="bad">{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if picture %}<img alt="contact sheet of {{ title }}" src="data:image/png;base64,{{ picture }}">{% endif %}
</html>
"""


def settings_of(name: str, overrides: Sequence[str]) -> schema.Data:
    """The settings of a data set by name, with KEY=VALUE laid over them. Raises click.UsageError."""
    import yaml

    from pretune.search_spaces import schema
    from pretune.search_spaces.check import problems_of
    from pretune.search_spaces.document import Places
    from pretune.trainables.data.sets.table import ADAPTERS

    known = sorted({*ADAPTERS, "scenes", "volumes"})
    if name not in known:
        raise click.UsageError(f"no data set {name!r}; there are: {', '.join(known)}; a study file ends in .yaml")
    values: dict[str, Any] = {"dataset": name}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise click.UsageError(f"--set {item!r} is not KEY=VALUE")
        holder = values
        *above, last = key.split(".")
        for step in above:
            holder = holder.setdefault(step, {})
            if not isinstance(holder, dict):
                raise click.UsageError(f"--set {item!r}: {step} is a single value, and holds no {last}")
        try:
            holder[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.UsageError(
                printable(
                    f"--set {item}: the value is not valid YAML (quote it; a name that is not UTF-8 goes by --data)"
                )
            ) from None
    found, problems = problems_of(schema.Configuration, {"data": {name: values}}, Places({}))
    if problems or found is None:
        raise click.UsageError("; ".join(p.format(name).replace(f"data.{name}.", "") for p in problems))
    return found.data[name]


def check_data(
    settings: schema.Data, root: Path | None, cache: Path, count: int, sheet: Path, console: Console
) -> tuple[str, ...]:
    """Report and sheet of a copy; what is wrong with each of its files. Raises DataError where none can be used, with
    every file on the page."""
    from pretune.trainables.data.checks.excluded import images_left_out, types_not_read
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sets.table import locate

    where = locate(settings, root)
    title = f"{settings.dataset} {where or ''}"
    try:
        held = _decoded(settings, root, cache)
    except DataError as error:
        if error.problems:
            page = write_page(title, [error.summary], error.problems, sheet, drawn=False)
            console.print(f"wrote {page}, which lists all {len(error.problems)} problems", highlight=False)
        raise
    console.print(printable(f"{settings.dataset} {f'in {where}' if where else '(generated)'}"), highlight=False)
    lines = [*describe(held), *duplicate_report(held)]
    if held.skipped:
        lines.append(f"{images_left_out(settings, root, len(held.names))} cannot be used")
    if ignored := types_not_read(settings, root):
        lines.append(ignored)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    draw_sheet(held, count, sheet)
    page = write_page(title, lines, held.skipped, sheet)
    console.print(f"wrote {sheet} and {page}", highlight=False)
    return held.skipped


def check_study(
    study: Study, root: Path | None, cache: Path, count: int, out: Path | None, console: Console
) -> tuple[str, ...]:
    """The same of every data set of a study, a sheet for each, and what the study asks of them in vain."""
    from pretune.data.requirements import unmet_needs
    from pretune.search_spaces.schema import Split
    from pretune.trainables.data.checks.requirements import Held, held_by
    from pretune.trainables.data.errors import DataError

    sheet = out or Path(f"{study.name}.png")
    drawn: dict[schema.Data, str] = {}  # folds of one data set are drawn once
    held: dict[schema.Data, Held] = {}
    problems: list[str] = []

    def whole(data: schema.Data) -> schema.Data:
        return data.model_copy(update={"split": Split(seed=data.split.seed)})

    for cell in study.cells:
        for name, data in cell.configuration().data.items():
            if whole(data) in drawn:
                continue
            again = sum(label.split(".")[0] == name for label in drawn.values())
            drawn[whole(data)] = label = f"{name}.{again + 1}" if again else name
            console.print(f"data {label}:", highlight=False)
            path = sheet.with_name(f"{sheet.stem}-{label}{sheet.suffix}")
            try:
                problems += [f"{label}: {line}" for line in check_data(whole(data), root, cache, count, path, console)]
                held[whole(data)] = held_by(_decoded(whole(data), root, cache))
            except DataError as error:
                problems += [f"{label}: {line}" for line in (error.summary, *error.problems)]
    return (*problems, *unmet_needs(study, lambda data: held.get(whole(data))))


def _decoded(settings: schema.Data, root: Path | None, cache: Path) -> ImageSet:
    """Under the study's own settings where all is well, so that a run finds it cached; else without the bad files.

    A set that is streamed is read once and stays where it is.
    """
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.resident.build import load_images
    from pretune.trainables.data.sources import choose_source, open_set, prepare

    lenient = settings.model_copy(update={"on_error": "skip"})
    with Progress(transient=True) as bar:
        task = bar.add_task("reading every image")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if choose_source(settings, root, cache).source == "streaming":
            digest, _ = prepare(lenient, root, cache, progress)
            return open_set(lenient, digest, root, cache)
        try:
            return load_images(settings, root, cache, progress)
        except DataError as error:
            if not error.problems:
                raise
        return load_images(lenient, root, cache, progress)


def describe(held: ImageSet) -> list[str]:
    """How many images, classes and tests there are, and how the classes share the pixels."""
    import numpy as np

    size = f"{held.images.shape[-2]} px"
    if len(held.images.shape) == 5:
        size = f"{' x '.join(map(str, held.images.shape[1:4]))} voxels"
    lines = [f"{len(held.names)} images, {'streamed' if held.streamed else 'cached'} at {size}"]
    if held.official_test is not None:
        tests = int(held.official_test.sum())
        lines.append(f"official lists: {len(held.names) - tests} train, {tests} test")
    if held.labels is not None:
        counts = np.bincount(held.labels)  # as many classes as the stages count
        seen = counts[counts > 0]
        empty = f", {len(counts) - len(seen)} of them without an image" if len(seen) < len(counts) else ""
        lines.append(f"{len(counts)} image classes with {seen.min()} to {seen.max()} images each{empty}")
    if held.masks is not None:
        lines.append(
            "share of pixels: " + ", ".join(f"{name} {share:.1%}" for name, share in mask_shares(held).items())
        )
    return lines


def mask_shares(held: ImageSet) -> Mapping[str, float]:
    """Class name -> share of all pixels, `ignored` last."""
    import numpy as np

    assert held.masks is not None
    counts = np.zeros(256, np.int64)
    for rows in np.array_split(np.arange(len(held.names)), -(-len(held.names) // ROWS)):
        counts += np.bincount(np.asarray(held.masks[rows]).ravel(), minlength=256)
    shares = counts / counts.sum()
    named = {name: float(share) for name, share in zip(held.classes, shares, strict=False)}
    return named | ({"ignored": float(shares[255])} if shares[255] > 0 else {})


def duplicate_report(held: ImageSet) -> list[str]:
    """Pictures that are there twice, those on both sides of the official lists first."""
    import numpy as np

    from pretune.trainables.data.checks.duplicates import copies_in, find_alike, pairs, summarised

    if len(held.images.shape) == 5:
        return ["volumes are not searched for copies"]
    if held.streamed:
        return ["copies are not searched for in a set that is streamed"]
    alike = find_alike(summarised(np.asarray(held.images)))
    found = [(pair.first, pair.second) for pair in pairs(alike)]
    if not found:
        return ["no picture is there twice"]
    tests = held.official_test
    leaked = [] if tests is None else copies_in(alike, tests, ~tests)
    shown = list(dict.fromkeys([*map(_ordered, leaked), *found]))[:SHOWN_COPIES]
    examples = [f"  {held.names[one]} = {held.names[other]}" for one, other in shown]
    sides = f", {len(leaked)} pictures of the official test list are outside of it too" if tests is not None else ""
    rest = len(set(found).difference(shown))
    more = [f"  and {rest} more"] if rest else []
    return [f"{len(found)} pairs show the same picture{sides}:", *examples, *more]


def _ordered(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


def draw_sheet(held: ImageSet, count: int, sheet: Path) -> None:
    """A random but fixed choice of images, with their masks and the outlines of their regions."""
    from pretune.trainables.data.checks.contact_sheets import data_sheet, image_to_show
    from pretune.trainables.data.splits import draw_subset

    rows = [int(i) for i in draw_subset(len(held.names), count, 0)]
    pairs = [image_to_show(held.images[i], None if held.masks is None else held.masks[i]) for i in rows]
    masks = None if held.masks is None else [mask for _, mask in pairs if mask is not None]
    captions = [f"{held.names[i]}{_label(held, i)}" for i in rows]
    regions = None if held.regions is None else [held.regions[i] for i in rows]
    columns = 8 // (1 + (masks is not None) + (regions is not None))
    picture = data_sheet([image for image, _ in pairs], masks, captions, held.classes, columns, regions)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    picture.save(sheet)


def page_of(sheet: Path) -> Path:
    return sheet.with_suffix(".html")


def write_page(title: str, lines: Sequence[str], problems: Sequence[str], sheet: Path, drawn: bool = True) -> Path:
    """The sheet if it was drawn, what was found and every bad file as one HTML file beside it, which opens offline."""
    import base64

    from jinja2 import Template

    picture = base64.b64encode(sheet.read_bytes()).decode() if drawn else ""
    text = Template(PAGE, autoescape=True).render(title=title, lines=lines, problems=problems, picture=picture)
    page = page_of(sheet)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(printable(text), encoding="utf-8")
    return page


def _label(held: ImageSet, row: int) -> str:
    if held.labels is None:
        return ""
    label = int(held.labels[row])
    return f" [{held.label_names[label] if held.label_names else label}]"
