"""JSON Schema of a study file, for editors: completion, types and meanings while a study is written.

It is as strict as it can be without reading a study: every value may be a range, and some rules hold between settings.
`pretune plan` checks the rest.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from pretune.search_spaces.meanings import meanings
from pretune.search_spaces.schema import Configuration, Header, Pretrain
from pretune.search_spaces.space import RANGE_KEYS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RANGE = {"$ref": "#/$defs/Range"}


@functools.cache
def json_schema_text() -> str:
    """The schema as the content of a file."""
    return json.dumps(json_schema(), indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema of a whole study as plain data. Deterministic: the same for the same settings."""
    parts = [_schema_of(model) for model in (Header, Configuration, Pretrain)]
    definitions = {name: one for part in parts for name, one in part.pop("$defs", {}).items()}
    header, configuration, pretrain = parts
    definitions["Pretrain"] = pretrain
    one = {"$ref": "#/$defs/Pretrain"}
    said = meanings()
    definitions = {name: _with_ranges(definition, said.get(name, {})) for name, definition in definitions.items()}
    stages = _with_ranges(configuration, {})["properties"]
    stages |= {"pretrain": {"anyOf": [one, {"type": "array", "items": one}]}}
    definitions["Range"] = {
        "description": "A range in place of a value: it is tuned.",
        "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
        "properties": {key: {"type": ["array", "object"]} for key in RANGE_KEYS},
    }  # fmt: skip
    levels = {"description": "Levels by name, each a mapping of dotted keys, or one dotted key with its values."}
    return {
        "$schema": DIALECT,
        "title": "Pretune study",
        "type": "object",
        "properties": _with_ranges(header, said["Header"])["properties"] | stages | {
            "factors": {"type": "object", "additionalProperties": {"type": "object"} | levels},
            "scales": {"type": "object", "additionalProperties": {"type": "object"}},
        },
        "required": header.get("required", []),
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }  # fmt: skip


def _schema_of(model: type[Any]) -> dict[str, Any]:
    made: dict[str, Any] = model.model_json_schema(mode="validation")
    return made


def _with_ranges(definition: dict[str, Any], said: dict[str, str]) -> dict[str, Any]:
    """The definition with a range allowed in place of every property, its meaning, and what validators read besides."""
    properties = {
        name: _property(name, one) | ({"description": said[name]} if said.get(name) else {})
        for name, one in definition.get("properties", {}).items()
    }
    kept = {key: value for key, value in definition.items() if key not in ("properties", "title")}
    if "mask_colors" in properties:  # which name the classes too
        kept["required"] = [name for name in kept.get("required", []) if name != "classes"]
    return kept | ({"properties": properties} if properties else {})


def _property(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = {key: schema[key] for key in ("description", "default") if key in schema}
    body = {key: value for key, value in schema.items() if key not in ("title", "description", "default")}
    if "const" in body or (name in ("dataset", "name", "kind") and "enum" in body):  # names of branches
        return body | said
    return {"anyOf": [*(_flat(body)), *READ_BESIDES.get(name, []), RANGE]} | said


def _flat(body: dict[str, Any]) -> list[dict[str, Any]]:
    return body["anyOf"] if set(body) == {"anyOf"} else [body]


PERCENT = {"type": "string", "pattern": r"^\s*[0-9.]+\s*%\s*$"}
TEXTS = {"type": "string"}
# What the validators of a setting read beside its type: 10% for 0.1, none for no split, a count for seeds.
READ_BESIDES: dict[str, list[dict[str, Any]]] = {
    "test": [PERCENT],
    "val": [PERCENT],
    "labels": [PERCENT, {"const": "all"}],
    "split": [{"const": "none"}],
    "mask_colors": [{"type": "object"}, TEXTS],
    **{key: [{"type": "integer", "minimum": 1}] for key in ("search", "select", "report")},
    **{key: [TEXTS] for key in ("rows", "columns", "metrics", "published", "also")},
    **{key: [{"type": "object"}] for key in ("optimizer", "schedule", "model")},
}
