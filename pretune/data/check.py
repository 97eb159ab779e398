"""`pretune data check`: read every file of a copy, report what was found, and draw a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from pretune.monitor.plain import plain
from pretune.search_spaces.words import counted
from pretune.trainables.data.errors import laid_over_black, printable

if TYPE_CHECKING:  # numpy and torch are imported where they are used: the command line starts without them
    from pretune.search_spaces import schema
    from pretune.search_spaces.resolve import Study
    from pretune.trainables.data.image_set import ImageSet

ROWS = 256  # masks counted at a time
SHOWN_DUPLICATES = 5

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% } .bad { color: #a40000 }</style>
<h1>{{ title }}</h1>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% if problems %}<h2>{{ problems | length }} {{ "excluded from the sheet" if sheet else "problems" }}</h2>
<ul class="bad">{% for line in problems %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if sheet %}<img alt="contact sheet of {{ title }}" src="data:image/png;base64,{{ sheet }}">{% endif %}
</html>
"""


def settings_of(name: str, overrides: Sequence[str]) -> schema.Data:
    """The settings of a data set by name, with KEY=VALUE laid over them. Raises click.UsageError."""
    import yaml

    from pretune.search_spaces import schema
    from pretune.search_spaces.check import problems_of
    from pretune.search_spaces.document import Locations
    from pretune.trainables.data.sets.table import ABOUT_GENERATED, DATA_SETS

    known = sorted({*DATA_SETS, *ABOUT_GENERATED})
    if name not in known:
        raise click.UsageError(
            f"there is no data set {name!r}; choose from: {', '.join(known)}. A study file ends in .yaml"
        )
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
    found, problems = problems_of(schema.Configuration, {"data": {name: values}}, Locations({}))
    if problems or found is None:
        raise click.UsageError("; ".join(p.format(name).replace(f"data.{name}.", "") for p in problems))
    return found.data[name]


def check_data(
    settings: schema.Data, root: Path | None, cache: Path, count: int, sheet: Path, console: Console
) -> tuple[str, ...]:
    """Report on a copy and draw its sheet; returns what is wrong with each of its files.

    Raises DataError where no image can be used, with every file on the page.
    """
    from pretune.trainables.data.checks.excluded import count_excluded, types_not_read
    from pretune.trainables.data.errors import DataError
    from pretune.trainables.data.sets.table import locate

    where = locate(settings, root)
    title = f"{settings.dataset} {where or ''}"
    try:
        image_set = _decoded(settings, root, cache)
    except DataError as error:
        if error.problems:
            page = write_page(title, [error.summary], error.problems, sheet, drawn=False)
            console.print(f"wrote {plain(page)}, which lists all {len(error.problems)} problems", highlight=False)
        raise
    console.print(plain(f"{settings.dataset} {f'in {where}' if where else '(generated)'}"), highlight=False)
    lines = [*describe(image_set, settings), *duplicate_report(image_set, settings.split.test != 0)]
    if image_set.skipped:
        many = count_excluded(settings, root, len(image_set.names))
        lines.append(f"{many} left out (the page lists why); images without a mask can still be used for pretraining")
    if ignored := types_not_read(settings, root):
        lines.append(ignored)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    draw_sheet(image_set, count, sheet)
    page = write_page(title, lines, image_set.skipped, sheet)
    console.print(f"wrote {plain(sheet)} and {plain(page)}", highlight=False)
    return image_set.skipped


def check_study(
    study: Study, root: Path | None, cache: Path, count: int, sheet: Path, console: Console
) -> tuple[str, ...]:
    """The same of every data set of a study, a sheet for each, and the requirements of the study that are unmet."""
    from pretune.data.requirements import unmet_requirements, without_folds
    from pretune.trainables.data.checks.requirements import Facts, facts_of_images, facts_of_settings
    from pretune.trainables.data.errors import DataError

    drawn: dict[schema.Data, str] = {}  # folds of one data set are drawn once
    facts: dict[schema.Data, Facts] = {}
    problems: list[str] = []
    for cell in study.cells:
        for name, folded in cell.configuration().data.items():
            data = without_folds(folded)
            if data in drawn:
                continue
            again = sum(label.split(".")[0] == name for label in drawn.values())
            drawn[data] = label = f"{name}.{again + 1}" if again else name
            console.print(f"data {plain(label)}:", highlight=False)
            path = sheet.with_name(f"{sheet.stem}-{label}{sheet.suffix}")
            try:
                excluded = check_data(folded, root, cache, count, path, console)
                problems += [f"{label}: {line}" for line in excluded if data.on_error == "fail"]
                facts[data] = facts_of_images(_decoded(data, root, cache))
            except DataError as error:
                problems += [f"{label}: {line}" for line in (error.summary, *error.problems)]
            facts.setdefault(data, facts_of_settings(data))
    return (*problems, *unmet_requirements(study, lambda data: facts[without_folds(data)]))


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


def describe(image_set: ImageSet, settings: schema.Data) -> list[str]:
    """Count images, classes and tests, and say how the classes share the pixels."""
    import numpy as np

    size = f"{image_set.images.shape[-2]} px"
    if len(image_set.images.shape) == 5:
        size = f"{' x '.join(map(str, image_set.images.shape[1:4]))} voxels"
    lines = [f"{counted(len(image_set.names), 'image')}, {'streamed' if image_set.streamed else 'cached'} at {size}"]
    if image_set.official_test is not None:
        tests = int(image_set.official_test.sum())
        vals = sum(of_validation(image_set)) if settings.split.val == "official" else 0
        listed = f"{vals} validation, " if vals else ""
        lines.append(f"official lists: {len(image_set.names) - tests - vals} train, {listed}{tests} test")
        if count := vals == 0 and sum(of_validation(image_set)):
            lines.append(
                f"the folder val/ is not used as a split: its {counted(count, 'image')} are mixed into training and "
                "validation (to keep it: split.val: official)"
            )
    if image_set.labels is not None:
        counts = np.bincount(image_set.labels)  # as many classes as the stages count
        seen = counts[counts > 0]
        empty = f", {len(counts) - len(seen)} of them without an image" if len(seen) < len(counts) else ""
        lines.append(f"{len(counts)} image classes with {seen.min()} to {seen.max()} images each{empty}")
    if count := len(image_set.transparent):
        lines.append(f"{laid_over_black(count)}, first {image_set.transparent[0]}")
    if image_set.masks is not None:
        lines.append(
            "share of pixels: "
            + ", ".join(f"{name} {share:.1%}" for name, share in mask_shares(image_set, settings).items())
        )
    return lines


def of_validation(image_set: ImageSet) -> list[bool]:
    """(N,) whether an image lies in a folder val/ and is not on the test list."""
    from pretune.trainables.data.sets.folders import VAL

    tests = image_set.official_test
    tops = (name.partition("/")[0].lower() for name in image_set.names)
    return [top in VAL and (tests is None or not tests[row]) for row, top in enumerate(tops)]


def mask_shares(image_set: ImageSet, settings: schema.Data) -> Mapping[str, float]:
    """Class name -> share of the pixels of all images without their padding, `ignored` last."""
    import numpy as np

    from pretune.trainables.data.checks.contents import class_counts

    assert image_set.masks is not None
    counts = np.zeros(256, np.int64)
    for rows in np.array_split(np.arange(len(image_set.names)), -(-len(image_set.names) // ROWS)):
        counts += class_counts(np.asarray(image_set.masks[rows]), settings.fit)
    shares = counts / counts.sum()
    named = {name: float(share) for name, share in zip(image_set.classes, shares, strict=False)}
    return named | ({"ignored": float(shares[255])} if shares[255] > 0 else {})


def duplicate_report(image_set: ImageSet, tested: bool) -> list[str]:
    """Images that are there twice, those on both sides of the official lists first; `tested`: some are for testing."""
    import numpy as np

    from pretune.trainables.data.checks.duplicates import duplicates_among, find_alike, pairs, summarised

    if len(image_set.images.shape) == 5:
        return ["duplicates are not searched in volumes"]
    if image_set.streamed:
        return ["duplicates are not searched in a streamed data set"]
    alike = find_alike(summarised(np.asarray(image_set.images)))
    found = [(pair.first, pair.second) for pair in pairs(alike)]
    if not found:
        return ["no duplicates"]
    tests = image_set.official_test
    leaked = [] if tests is None else duplicates_among(alike, tests, ~tests)
    shown = list(dict.fromkeys([*map(_ordered, leaked), *found]))[:SHOWN_DUPLICATES]
    examples = [f"  {image_set.names[one]} = {image_set.names[other]}" for one, other in shown]
    sides = f", {len(leaked)} images of the official test list are outside of it too" if tests is not None else ""
    rest = len(set(found).difference(shown))
    more = [f"  and {rest} more"] if rest else []
    many = "1 pair of images looks" if len(found) == 1 else f"{len(found):,} pairs of images look"
    advice = [
        "  if one image of a pair is in the test set, test scores are inflated: keep pairs together with split.group"
    ]
    return [f"{many} alike{sides}:", *examples, *more, *(advice if tested else [])]


def _ordered(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


def draw_sheet(image_set: ImageSet, count: int, sheet: Path) -> None:
    """A random but fixed choice of images, with their masks and the outlines of their regions."""
    from pretune.trainables.data.checks.contact_sheets import data_sheet, image_to_show
    from pretune.trainables.data.splits import draw_subset

    rows = [int(i) for i in draw_subset(len(image_set.names), count, 0)]
    pairs = [image_to_show(image_set.images[i], None if image_set.masks is None else image_set.masks[i]) for i in rows]
    masks = None if image_set.masks is None else [mask for _, mask in pairs if mask is not None]
    captions = [f"{image_set.names[i]}{_label(image_set, i)}" for i in rows]
    regions = None if image_set.regions is None else [image_set.regions[i] for i in rows]
    columns = 8 // (1 + (masks is not None) + (regions is not None))
    drawn = data_sheet([image for image, _ in pairs], masks, captions, image_set.classes, columns, regions)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(sheet)


def page_of(sheet: Path) -> Path:
    return sheet.with_suffix(".html")


def write_page(title: str, lines: Sequence[str], problems: Sequence[str], sheet: Path, drawn: bool = True) -> Path:
    """Write the sheet if it was drawn, the findings and every bad file as one HTML file beside it; it opens offline."""
    import base64

    from jinja2 import Template

    encoded = base64.b64encode(sheet.read_bytes()).decode() if drawn else ""
    text = Template(PAGE, autoescape=True).render(title=title, lines=lines, problems=problems, sheet=encoded)
    page = page_of(sheet)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(printable(text), encoding="utf-8")
    return page


def _label(image_set: ImageSet, row: int) -> str:
    if image_set.labels is None:
        return ""
    label = int(image_set.labels[row])
    return f" [{image_set.label_names[label] if image_set.label_names else label}]"
