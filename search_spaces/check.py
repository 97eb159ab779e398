"""Turns what pydantic finds wrong with settings into problems with a line and a fix."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import itertools
import math
import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pretune.search_spaces.document import KeyPath, Locations, Problem, did_you_mean, dotted, is_number
from pretune.search_spaces.space import LARGEST

NUMBERS = frozenset((int, float, type(None)))  # which a mapping holds for the most part
ACCUMULATION = (
    "gradients are not accumulated: batch norm, contrastive losses and dice take the whole batch at once; set "
    "resources.*.workers to share a batch, or lower batch_size"
)
CHECKPOINTING = "activations are computed again with resources.*.activation_checkpointing: true"
REFUSED = {  # settings of other tools: the reason why there are none, or what they are called here
    "accumulate": ACCUMULATION,
    "accumulate_grad_batches": ACCUMULATION,
    "accumulation_steps": ACCUMULATION,
    "grad_accumulation": ACCUMULATION,
    "gradient_accumulation": ACCUMULATION,
    "gradient_accumulation_steps": ACCUMULATION,
    "gradient_checkpointing": CHECKPOINTING,
    "grad_checkpointing": CHECKPOINTING,
    "activation_checkpointing": CHECKPOINTING,
}
BROKEN = ...  # stands in the settings for a value whose fault was reported before
Checked = TypeVar("Checked", bound=BaseModel)


def problems_of(
    model: type[Checked], data: Mapping[str, Any], locations: Locations
) -> tuple[Checked | None, list[Problem]]:
    """Validate `data`; one problem per faulty value.

    Where there are problems, the model has defaults in place of what is faulty (None where there are none): it stands
    in for the real one while the rest of the study is looked through, so that all is reported at once.
    """
    with contextlib.suppress(ValidationError):  # nearly always; without the copy that taking faults out needs
        checked = model.model_validate(dict(data))
        return checked, [*no_numbers(data, checked, (), locations)]
    kept, problems, removed = copy.deepcopy(dict(data)), list[Problem](), set[KeyPath]()
    for turn in range(3):  # what is left of a mapping may be faulty in its turn, up to the whole stage
        try:
            checked = model.model_validate(kept)
            return checked, [*problems, *no_numbers(kept, checked, (), locations)]
        except ValidationError as error:
            found = [(_path_in(kept, item), item) for item in error.errors()]
        new = [item for path, item in found if turn == 0 or _breaks_a_rule(path, item, removed)]
        unknown = {path for path, item in found if item["type"] == "extra_forbidden"}
        new = [item for item in new if not _misspelt(_path_in(kept, item), item, unknown)]
        problems += _merged(_problem(model, kept, locations, item) for item in new if not _repeats(item))
        for path, _ in found:
            removed.add(path)
            _remove(kept, path)
    return None, problems


def no_numbers(given: Any, taken: Any, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    """Values that pydantic takes for a number and YAML 1.2 does not: true for 1, 010 for 10."""
    if type(given) is dict or isinstance(given, Mapping):  # by far the fastest to tell first, here and below
        for key, value in given.items():
            if type(value) in NUMBERS:
                continue
            inner = taken.get(key) if isinstance(taken, dict | Mapping) else getattr(taken, str(key), None)
            if type(value) is str and type(inner) not in NUMBERS:
                continue
            yield from no_numbers(value, inner, (*path, key), locations)
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for i, (value, inner) in enumerate(zip(given, taken, strict=False)):
            yield from no_numbers(value, inner, (*path, i), locations)
    elif isinstance(given, bytes):
        yield locations.problem(path, f"{SHOULD}text, received {_short(given)}")
    elif isinstance(taken, int | float) and not isinstance(taken, bool):
        if isinstance(given, bool):
            yield locations.problem(path, f"{SHOULD}a number, received {str(given).lower()}")
        elif isinstance(given, str) and given != "all" and not is_number(given.strip().removesuffix("%")):
            yield locations.problem(path, f"{SHOULD}a number, received {_shown(given)}", f"write {_plain(given)}")


def check_finite(value: Any, path: KeyPath, locations: Locations) -> Iterator[Problem]:
    """`.inf` and `.nan` are numbers to YAML, and settings of nothing; nor are numbers of a hundred digits."""
    if isinstance(value, float) and not math.isfinite(value):
        yield locations.problem(path, f"should be a finite number, received {value}")
    if isinstance(value, int) and abs(value) > LARGEST:
        yield locations.problem(path, "is a number above 2^53", "no setting is so large")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, int | float | dict | list):
            yield from check_finite(item, (*path, key), locations)


def _shown(text: str) -> str:
    return text if text.isascii() and len(text) <= 80 else _short(text)


def _plain(text: str) -> str:
    """010 -> 10, 1_000 -> 1000: how a number is written that Python reads and YAML 1.2 does not."""
    number, sign, _ = text.strip().replace("_", "").partition("%")
    return f"{int(number) if number.lstrip('+-').isdecimal() else float(number):.15g}{sign}"


def _breaks_a_rule(path: KeyPath, error: Any, removed: set[KeyPath]) -> bool:
    """Whether a fault of a mapping is one of its own, and not that a key it names was faulty and is gone."""
    gone = [str(key[-1]) for key in removed if key[:-1] == path]
    return error["type"] == "value_error" and not any(_close(name, error["msg"].split()) for name in gone)


def _misspelt(path: KeyPath, error: Any, unknown: set[KeyPath]) -> bool:
    """Whether a key is missing because it is there under a misspelt name, which is reported."""
    beside = [str(key[-1]) for key in unknown if key[:-1] == path[:-1]]
    return error["type"] == "missing" and any(_close(name, [str(path[-1])]) for name in beside)


def _close(name: str, words: list[str]) -> bool:
    return bool(difflib.get_close_matches(name, words, n=1, cutoff=0.7))


def _remove(data: Any, path: KeyPath) -> None:
    """Take out what stands at `path`, or the closest mapping's key above it: half a list would mean something else."""
    holder, key = None, None
    for part in path:
        if isinstance(data, dict) and part in data:
            holder, key = data, part
        elif not (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            break  # taken out already, or missing
        data = data[part]
    if holder is not None:
        holder.pop(key)


def _repeats(error: Any) -> bool:
    """Whether a fault follows from one reported elsewhere: of the value itself, or of an item of a list."""
    short = error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]
    return short or error["input"] is BROKEN


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """One problem where a value fits none of several types."""
    merged: dict[tuple[int, str, str], Problem] = {}
    for problem in problems:
        key = (problem.line, problem.where, problem.fix)
        if problem.fix or not problem.what.startswith(SHOULD):
            key = (problem.line, problem.where, problem.what)
        elif key in merged:
            what, tail = merged[key].what.partition(", received")[::2]
            other = problem.what.partition(", received")[0].removeprefix(SHOULD)
            if other not in what.removeprefix(SHOULD).split(" or "):
                problem = replace(problem, what=f"{what} or {other}" + (f", received{tail}" if tail else ""))
            else:
                problem = merged[key]
        merged[key] = problem
    return list(merged.values())


SHOULD = "should be "


def _problem(model: type[BaseModel], data: Mapping[str, Any], locations: Locations, error: Any) -> Problem:
    path, kind = _path_in(data, error), error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        name = str(error["loc"][-1])
        fix = REFUSED.get(name) or elsewhere(model, path) or did_you_mean(name, known)
        return locations.problem(path, "there is no such key", fix)
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        key, received = error["ctx"]["discriminator"].strip("'"), error["ctx"]["tag"]
        return locations.problem((*path, key), f"unknown value {received!r}", did_you_mean(str(received), tags))
    if kind == "union_tag_not_found":
        key = error["ctx"]["discriminator"].strip("'")
        return locations.problem(path, f"needs a key {key!r}", f"for example {key}: ...")
    if kind == "literal_error":
        words = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        return locations.problem(
            path, f"unknown value {_short(error['input'])}", did_you_mean(str(error["input"]), words)
        )
    if kind == "missing":
        return locations.problem(path, "is missing", "add it")
    if kind == "string_pattern_mismatch":
        fix = "use only letters, digits and '_'; remove a tag such as .a1_in1k"
        if path[-1:] != ("backbone",):
            fix = "use letters, digits, '.', '_' and '-'"
        return locations.problem(path, f"unusable name {_short(error['input'])}", fix)
    if kind in PLAIN:
        if error["input"] is None:
            return locations.problem(path, "is empty", "give it a value, or remove it")
        return locations.problem(path, f"{SHOULD}{PLAIN[kind]}, received {_short(error['input'])}")
    if kind in MAPPING_WANTED:
        if error["input"] is None:
            return locations.problem(path, "is empty", "give it keys, or remove it")
        return locations.problem(path, f"should be a mapping of keys to values, received {_short(error['input'])}")
    received = "" if isinstance(error["input"], Mapping) else f", received {_short(error['input'])}"
    return locations.problem(path, _reworded(error["msg"]) + received)


PLAIN = (
    dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number")
    | dict.fromkeys(("float_type", "float_parsing"), "a number")
    | dict.fromkeys(("bool_type", "bool_parsing"), "true or false")
    | dict.fromkeys(("tuple_type", "list_type"), "a list such as [a, b]")
    | {"string_type": "text"}
)
MAPPING_WANTED = ("model_type", "model_attributes_type", "dict_type")


def _reworded(message: str) -> str:
    """Pydantic's sentence as it reads after a key: 'should be greater than 0'."""
    message = message.removeprefix("Value error, ").removeprefix("Input ").partition(", unable to ")[0]
    return f"{message[:1].lower()}{message[1:]}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path_in(data: Any, error: Any) -> KeyPath:
    """Pydantic's location without the tags of unions, which are no keys of the data."""
    path: list[str | int] = []
    for i, part in enumerate(error["loc"]):
        missing = error["type"] == "missing" and i == len(error["loc"]) - 1
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if not missing:
                continue
        path.append(part)
    return tuple(path)


def elsewhere(model: type[BaseModel], path: KeyPath) -> str:
    """'it is pretrain.schedule': where a key of this name stands, of several those closest to `path`; else ''."""
    words = tuple(part for part in path if isinstance(part, str))
    found = [place for place in places_of_keys(model) if place[-1] == path[-1]]
    if words in found:  # right there, beside another `name`
        return ""
    shared = {place: sum(1 for _ in itertools.takewhile(bool, map(operator.eq, place, words))) for place in found}
    best = [place for place in found if shared[place] == max(shared.values())]
    shortest = sorted(dotted(place) for place in best if len(place) == min(map(len, best)))
    return f"it is {' or '.join(shortest)}" if 0 < len(shortest) <= 3 else ""


@functools.lru_cache
def places_of_keys(annotation: Any, depth: int = 5) -> frozenset[tuple[str, ...]]:
    """Every key that settings have, with the keys above it; NAME for one that the user names."""
    found: set[tuple[str, ...]] = set()
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel) and depth:
            for key, field in member.model_fields.items():
                below: Any = field.annotation
                found |= {(key,), *((key, *inner) for inner in places_of_keys(below, depth - 1))}
        elif get_origin(member) in (tuple, list):
            found |= places_of_keys(get_args(member)[0], depth)
        elif get_origin(member) is dict:
            found |= {("NAME", *inner) for inner in places_of_keys(get_args(member)[1], depth)}
    return frozenset(found)


def _known_keys(annotation: Any, loc: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand at a location, found by walking the models' annotations."""
    members = list(_members(annotation))
    if not loc:
        return [key for member in members for key in getattr(member, "model_fields", {})]
    head, rest = loc[0], loc[1:]
    inner: list[Any] = []
    for member in members:
        if isinstance(member, type) and issubclass(member, BaseModel):
            if head in member.model_fields:
                inner.append(member.model_fields[str(head)].annotation)
            elif _has_tag(member, head):
                return _known_keys(member, rest)
        elif get_origin(member) in (dict, tuple, list):
            inner.append(get_args(member)[1 if get_origin(member) is dict else 0])
    return [key for item in inner for key in _known_keys(item, rest)]


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for item in get_args(annotation):
            yield from _members(item)
    else:
        yield annotation


def _has_tag(model: type[BaseModel], tag: object) -> bool:
    return any(
        get_origin(field.annotation) is Literal and tag in get_args(field.annotation)
        for name, field in model.model_fields.items()
        if name in ("name", "dataset", "kind")
    )
