"""Turns what pydantic finds wrong with settings into problems with a line and a fix."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from search_spaces.document import KeyPath, Problem, did_you_mean, dotted, line_of


def problems_of(
    model: type[BaseModel], data: Mapping[str, Any], lines: Mapping[KeyPath, int]
) -> tuple[BaseModel | None, list[Problem]]:
    """Validate `data`; return the model, or None and one problem per error."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, [_problem(model, data, dict(lines), item) for item in error.errors()]


def _problem(model: type[BaseModel], data: Mapping[str, Any], lines: dict[KeyPath, int], error: Any) -> Problem:
    path = _path_in(data, error["loc"])
    where, line, kind = dotted(path), line_of(lines, path), error["type"]
    if kind == "extra_forbidden":
        known = _known_keys(model, error["loc"][:-1])
        return Problem(line, where, "there is no such key", did_you_mean(str(error["loc"][-1]), known))
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        key = error["ctx"]["discriminator"].strip("'")
        received = error["ctx"]["tag"]
        return Problem(line, f"{where}.{key}", f"unknown value {received!r}", did_you_mean(str(received), tags))
    if kind == "union_tag_not_found":
        key = error["ctx"]["discriminator"].strip("'")
        return Problem(line, where, f"needs a key {key!r}", f"for example {key}: ...")
    if kind == "literal_error":
        words = [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        return Problem(line, where, f"unknown value {error['input']!r}", did_you_mean(str(error["input"]), words))
    if kind == "missing":
        return Problem(line, where, "is missing", "add it")
    message = error["msg"].removeprefix("Value error, ")
    received = "" if isinstance(error["input"], Mapping) else f", received {error['input']!r}"
    return Problem(line, where, f"{message[0].lower()}{message[1:]}{received}")


def _path_in(data: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """Pydantic's location without the tags of unions, which are no keys of the data."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        missing = i == len(loc) - 1 and isinstance(data, Mapping)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if not missing:
                continue
        path.append(part)
    return tuple(path)


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
