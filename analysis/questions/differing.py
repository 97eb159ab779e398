"""Settings, tuned values, data, versions and hardware in which studies differ.

Settings are compared as resolved, defaults included, cell by cell where cells have equal labels. A part is called equal
only where it was compared in every study.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pretune.analysis.digits import DASH, few
from pretune.analysis.load.runs import nodes_of_table, processor_of
from pretune.analysis.load.searches import shown_values
from pretune.analysis.load.studies import StoredStudy
from pretune.search_spaces import space
from pretune.search_spaces.cells import Cell, level_label
from pretune.search_spaces.schema import Configuration, Header

SETTINGS, TUNED, DATA, VERSIONS, HARDWARE = "settings", "tuned values", "data", "versions", "hardware"
PARTS = (SETTINGS, TUNED, DATA, VERSIONS, HARDWARE)
_NO_RESULT = ("study", "question", "report", "published", "scales")  # settings that no result depends on
_PLACES = ("root", "source")  # of a data set: where it lies and how it is read, with the same digits
_GROUPS = ("pretrain", "probe", "data")  # of settings; each has members of its own
_TITLES = ("method.name", "dataset", "kind", "sampler")  # the setting by which a group's member is called
_DIGEST = 12  # letters of a digest that are shown
_SHOWN = 3  # cells or values that are named

Flat = dict[str, str]  # dotted key -> value as text


class Differing(NamedTuple):
    """One thing in which studies differ; `where`: the cells with these values, "" for all."""

    part: str  # one of PARTS
    name: str
    where: str
    values: tuple[str, ...]  # one for each study; "" where it has none of the cells


@dataclass(frozen=True)
class StudyDifferences:
    """All in which studies differ, which parts are equal, and what could not be compared."""

    rows: tuple[Differing, ...]
    equal: tuple[str, ...]  # parts compared in all studies, without a difference
    unknown: tuple[tuple[str, str], ...]  # part, and why it was not, or not wholly, compared
    as_written: tuple[str, ...] = ()  # studies whose settings this version cannot resolve: defaults are not filled in


def study_differences(studies: Sequence[StoredStudy]) -> StudyDifferences:
    """Compare all but the scores of two studies or more."""
    common = common_cells(studies)
    as_written = tuple(study.name for study in studies if study.settings is None)
    rows = [*(_written(studies) if as_written else _resolved(studies, common))]
    rows += [*_tuned(studies, common), *_contents(studies), *_nodes(studies)]
    unknown = [
        *([(TUNED, "no cell is in two of the studies")] if not common else _lacking(TUNED, studies, _keeps_values)),
        *_lacking(DATA, studies, lambda study: bool(study.header.data)),
        *_lacking(VERSIONS, studies, _knows_nodes),
        *_lacking(HARDWARE, studies, _knows_nodes),
    ]
    differing = {*(row.part for row in rows), *(part for part, _ in unknown)}
    return StudyDifferences(
        tuple(rows), tuple(part for part in PARTS if part not in differing), tuple(unknown), as_written
    )


def common_cells(studies: Sequence[StoredStudy]) -> tuple[str, ...]:
    """Labels of the cells that two studies or more have, in the order of the first that has them."""
    labels = dict.fromkeys(cell.label for study in studies for cell in study.header.cells)
    held = [{cell.label for cell in study.header.cells} for study in studies]
    return tuple(label for label in labels if sum(label in cells for cells in held) > 1)


def _lacking(part: str, studies: Sequence[StoredStudy], stored: Callable[[StoredStudy], bool]) -> list[tuple[str, str]]:
    names = [study.name for study in studies if not stored(study)]
    return [(part, f"not stored in {few(names)}")] if names else []


def _keeps_values(study: StoredStudy) -> bool:
    return "chosen" in study.results


def _knows_nodes(study: StoredStudy) -> bool:
    return bool(nodes_of_table(study.results, study.stage_runs))


# --------------------------------------------------------------------------------------------------------- settings


def _resolved(studies: Sequence[StoredStudy], common: Sequence[str]) -> Iterator[Differing]:
    """Settings as resolved: in the common cells, or over all cells where studies have none in common."""
    tables = [{cell.label: _settings(cell, study) for cell in study.settings.cells} for study in studies
              if study.settings is not None]  # fmt: skip
    if not common:
        yield from _over_all_cells(tables)
        return
    aligned = {label: _without_absent([table.get(label) for table in tables]) for label in common}
    chains = any(key.startswith("pretrain.1") for found in aligned.values() for part in found for key in part or {})
    keys = dict.fromkeys(key for found in aligned.values() for part in found for key in part or {})
    for key in keys:
        groups: dict[tuple[str, ...], list[str]] = {}
        for label, found in aligned.items():
            present = {part.get(key, DASH) for part in found if part is not None}
            if len(present) > 1:
                values = tuple("" if part is None else part.get(key, DASH) for part in found)
                groups.setdefault(values, []).append(label)
        for values, labels in groups.items():
            where = "" if len(labels) == len(common) else few(labels, _SHOWN)
            yield Differing(SETTINGS, key if chains else key.replace("pretrain.0", "pretrain"), where, values)


def _over_all_cells(tables: Sequence[Mapping[str, Flat]]) -> Iterator[Differing]:
    for key in dict.fromkeys(key for table in tables for found in table.values() for key in found):
        sets = [dict.fromkeys(found.get(key, DASH) for found in table.values()) for table in tables]
        if any(one.keys() != sets[0].keys() for one in sets):
            yield Differing(SETTINGS, key, "", tuple(few(list(values), _SHOWN) for values in sets))


def _settings(cell: Cell, study: StoredStudy) -> Flat:
    """All that a cell's results depend on: a range as it is written, all else with its default filled in."""
    configuration = cell.configuration()
    content = configuration.model_dump(mode="json", exclude={} if cell.pretrained else {"pretrain"})
    content["data"] = {
        name: {key: value for key, value in settings.items() if key not in _PLACES}
        for name, settings in content["data"].items()
        if name in _used_data(configuration, cell.pretrained)
    }
    flat = dict(_flat(content))
    for name, item in cell.all_ranges:
        if "[" in name or (name.startswith("pretrain") and not cell.pretrained):  # of an option; of no one's
            continue
        flat = {key: value for key, value in flat.items() if key != name and not key.startswith(f"{name}.")}
        flat[name] = level_label(space.to_plain(item))
    return flat | dict(_flat(_of_study(study.settings.header if study.settings else Header(study="none"), cell)))


def _of_study(header: Header, cell: Cell) -> dict[str, Any]:
    """Settings of the whole study; those of the search only where the cell has something to search."""
    content = header.model_dump(mode="json", include={"seeds", "resources", "tune"})
    if not (cell.ranges("pretrain") or cell.ranges("finetune")):
        content = {"seeds": {"report": content["seeds"]["report"], "hold": content["seeds"]["hold"]}} | {
            "resources": content["resources"]
        }
    return content


def _used_data(configuration: Configuration, pretrained: bool) -> set[str]:
    finetune = {configuration.finetune.data} if configuration.finetune else set()
    used = {probe.data for probe in configuration.probe.values()} | finetune
    return used | {stage.data for stage in configuration.pretrain if pretrained}


def _without_absent(found: Sequence[Flat | None]) -> list[Flat | None]:
    """A pretraining, probe, data set or search that a study lacks is one line, not one for each of its settings."""
    members = [{_member(key) for key in part} - {""} for part in found if part is not None]
    absent = {name for one in members for name in one if not all(name in other for other in members)}
    return [None if part is None else _collapsed(part, absent) for part in found]


def _collapsed(part: Flat, absent: set[str]) -> Flat:
    kept = {key: value for key, value in part.items() if _member(key) not in absent}
    for member in sorted({_member(key) for key in part} & absent):
        titles = [part[f"{member}.{title}"] for title in _TITLES if f"{member}.{title}" in part]
        kept[member] = titles[0] if titles else "given"
    return kept


def _member(key: str) -> str:
    """'pretrain.0', 'data.pets', 'tune': the part that a study may lack as a whole; "" for others."""
    first, *rest = key.split(".")
    if first in _GROUPS and len(rest) > 1:
        return f"{first}.{rest[0]}"
    if key.startswith(("seeds.search", "seeds.select")):  # of a search too
        return "tune"
    return first if first in ("tune", "finetune") else ""


def _written(studies: Sequence[StoredStudy]) -> Iterator[Differing]:
    """Settings as the study files have them, without defaults."""
    files = [{key: value for key, value in study.written.items() if key not in _NO_RESULT} for study in studies]
    found = [dict(_flat(content)) for content in files]
    for key in sorted({key for one in found for key in one}):
        values = tuple(one.get(key, DASH) for one in found)
        if len(set(values)) > 1:
            yield Differing(SETTINGS, key, "", values)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from _flat(item, f"{key}.{place}")
    elif value not in ({}, None):  # a mapping without keys says nothing; None is a setting that is off
        yield key, level_label(value)


# --------------------------------------------------------------------------------------- tuned values, data, hardware


def _tuned(studies: Sequence[StoredStudy], common: Sequence[str]) -> Iterator[Differing]:
    """Cells whose confirmed replicates have other tuned values."""
    found = [_confirmed_values(study) for study in studies]
    for label in common:
        values = [one.get(label) for one in found]
        if len({value for value in values if value is not None}) > 1:
            shown = tuple("" if value is None else shown_values(value) or DASH for value in values)
            yield Differing(TUNED, f"tuned values of {label}", "", shown)


def _confirmed_values(study: StoredStudy) -> dict[str, str]:
    """Cell -> chosen values as JSON, of the confirm phase."""
    if not _keeps_values(study):
        return {}
    results = study.results
    rows = results[(results["phase"] == "confirm") & (results["cell"] != "")].drop_duplicates("cell")
    texts = rows["chosen"].fillna("{}").astype(str)
    canonical = [json.dumps(json.loads(text), sort_keys=True) for text in texts]
    return dict(zip(rows["cell"].astype(str), canonical, strict=True))


def _contents(studies: Sequence[StoredStudy]) -> Iterator[Differing]:
    """Data sets of one name with other content, among the studies that stored it."""
    known = [study.header.data for study in studies]
    for name in dict.fromkeys(name for data in known for name in data):
        digests = [data.get(name, ()) if data else None for data in known]
        if len({tuple(found) for found in digests if found is not None}) > 1:
            values = tuple(
                "not stored" if found is None else few([one[:_DIGEST] for one in found], _SHOWN) or DASH
                for found in digests
            )
            yield Differing(DATA, f"content of data {name}", "", values)


_OF_NODES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], str]], ...] = (
    (VERSIONS, "Python", lambda about: str(about.get("python", "?"))),
    (VERSIONS, "PyTorch", lambda about: str(about.get("torch", "?"))),
    (HARDWARE, "GPU or processor", processor_of),
    (HARDWARE, "threads of a stage run", lambda about: str(about.get("threads", "?"))),
)


def _nodes(studies: Sequence[StoredStudy]) -> Iterator[Differing]:
    """Versions and hardware behind the tables, among the studies that have them on record."""
    nodes = [nodes_of_table(study.results, study.stage_runs) for study in studies]
    for part, name, fact in _OF_NODES:
        found = [sorted({fact(about) for about in one}) for one in nodes]
        if len({tuple(values) for values in found if values}) > 1:
            yield Differing(part, name, "", tuple(few(values, _SHOWN) or "not stored" for values in found))
