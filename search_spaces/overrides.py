"""Values laid over a document by dotted key: scales, the command line's --set, and the levels of factors."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pretune.search_spaces import space
from pretune.search_spaces.document import (
    MAX_DEPTH,
    Document,
    KeyPath,
    Locations,
    Problem,
    StudyError,
    did_you_mean,
    dotted,
    line_of,
    parse_value,
)

_NO_SCORE = frozenset(
    ("study", "question", "seeds", "report", "published", "resources", "retries", "keep_states", "checkpoint_seconds")
)  # sections of a study that are no setting of a training
Lines = dict[KeyPath, int]


def apply_overrides(
    document: Document, scale: str | None, overrides: Sequence[str], problems: list[Problem]
) -> tuple[dict[str, Any], Lines]:
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    scales = _read_scales(data.get("scales") or {}, Locations(lines), problems)
    if scale is not None and scale not in scales:
        hint = did_you_mean(scale, scales) if scales else "the study has no scales"
        problems.append(Locations(lines).problem(("scales",), f"there is no scale {scale!r}", hint))
    for key, value in scales.get(scale or "", {}).items():
        path = ("scales", str(scale), key)
        put(data, lines, split_key(key, data), value, lines_under(lines, path), dotted(path), problems)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            problems.append(Problem(0, f"--set {text}", "is not of the form dotted.key=value"))
            continue
        try:
            parsed = parse_value(value)
        except StudyError as error:
            what = f"the value cannot be read: {error.problems[0].what}"
            problems.append(Problem(0, f"--set {text[:80]}", what, "quote it"))
            continue
        put(data, lines, split_key(key.strip(), data), parsed, {(): 0}, f"--set {key}", problems)
    return data, lines


def state_overlays(data: Mapping[str, Any], scales: Any, scale: str | None, overrides: Sequence[str]) -> None:
    """Add to `report.differs`, where published values are shown, what a scale and --set replace; in place.

    Sections that no score depends on are left out, and a file with faults in these sections is left as it is.
    """
    report, laid = data.get("report"), scales.get(scale) if isinstance(scales, Mapping) else None
    keys = {str(key): _named(value) for key, value in laid.items()} if isinstance(laid, Mapping) else {}
    if not isinstance(report, dict) or not report.get("published"):
        return
    for what, given in ((f"Scale {scale}", keys), ("--set", dict.fromkeys(overrides, ""))):
        replaced = [
            key.strip() + value
            for key, value in given.items()
            if re.split(r"[.=]", key.strip())[0].strip() not in _NO_SCORE
        ]
        differs = report.get("differs") or []
        if replaced and isinstance(differs, str | list):
            said = [differs] if isinstance(differs, str) else differs
            report["differs"] = [*said, f"{what} replaces {', '.join(replaced)}."]


def _named(value: Any) -> str:
    """' (2)' of a number or a word, ' (camvid)' of a data set's or a method's settings; '' of others."""
    if isinstance(value, Mapping):
        value = value.get("dataset") or value.get("name")
    return f" ({value})" if isinstance(value, str | int | float) else ""


def _read_scales(scales: Any, locations: Locations, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    fix = "for example scales: {small: {finetune.epochs: 1}}"
    if not isinstance(scales, Mapping):
        problems.append(locations.problem(("scales",), "is a mapping of scales to their settings", fix))
        return {}
    for name, settings in scales.items():
        if not isinstance(settings, Mapping):
            problems.append(locations.problem(("scales", name), "is a mapping of dotted keys to values", fix))
    return {name: dict(settings) if isinstance(settings, Mapping) else {} for name, settings in scales.items()}


def split_key(key: str, data: Any) -> KeyPath:
    """'pretrain.0.epochs' -> ('pretrain', 0, 'epochs') where pretrain is a list."""
    path: list[str | int] = []
    for part in str(key).split("."):
        if isinstance(data, list) and part.isdecimal() and part == str(int(part[:9])):  # 00 would be a second name
            path.append(int(part))
            data = data[int(part)] if int(part) < len(data) else None
        else:
            path.append(part)
            data = data.get(part) if isinstance(data, Mapping) else None
    return tuple(path)


def put(data: Any, lines: Lines, path: KeyPath, value: Any, new: Lines, where: str, problems: list[Problem]) -> None:
    """Put `value` at `path`, in place; what stood there goes, whole, with its line numbers."""
    if len(path) > MAX_DEPTH:
        problems.append(Problem(new.get((), 0), where[:80], f"is a key of {len(path)} parts: at most {MAX_DEPTH}"))
        return
    for i, part in enumerate(path):
        fits = isinstance(data, dict) or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if not fits:
            what = f"cannot be set, because {dotted(path[:i])} is {_described(data)}"
            fix = "set the whole of it, in one level if factors meet here"
            problems.append(Problem(new.get((), 0), where, what, fix))
            return
        if i < len(path) - 1:
            if isinstance(data, dict) and data.get(part) is None:
                data[part] = {}
            data = data[part]
    last = path[-1]
    data[last] = copy.deepcopy(value)
    for old in [key for key in lines if key[: len(path)] == path]:
        del lines[old]
    lines.update({(*path, *key): line for key, line in new.items()})


def _described(value: Any) -> str:
    if space.is_range(value):
        return "a range"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)


def lines_under(lines: Lines, path: KeyPath) -> Lines:
    return {key[len(path) :]: line for key, line in lines.items() if key[: len(path)] == path} or {
        (): line_of(lines, path)
    }
