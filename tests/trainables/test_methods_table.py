"""From a method's settings to its module: every row leads to a module, and every number arrives under its own name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.methods.protocol import Parts
from pretune.trainables.methods.table import METHODS, build_method
from pretune.trainables.models.table import build_decoder, build_encoder

SETTINGS_OF: dict[str, type[Any]] = {
    name: settings
    for settings in get_args(get_args(schema.Method)[0])
    for name in get_args(settings.model_fields["name"].annotation)
}
TRAINED = sorted(name for name, facts in schema.FACTS.items() if facts.trains)
MODEL = schema.UNet(widths=(4, 8, 16))
VIEWS = schema.Views(size=32, blur=0.77, solarize=0.78)
FIXED = {"projection_levels": 2, "local_size": 40}  # distinct too, and possible for this model

# Where a setting arrives, for those that are no attribute of the module of the same name.
Arrival = Callable[[Any], Any]
EVERYWHERE: dict[str, Arrival] = {
    "hidden": lambda m: layers(head_of(m))[0][1],
    "dim": lambda m: layers(head_of(m))[-1][1],
    "projection_levels": lambda m: m.levels,
    "blur": lambda m: (m.recipes[0].blur, m.recipes[1].blur),
    "solarize": lambda m: (m.recipes[0].solarize, m.recipes[1].solarize),
    "local_views": lambda m: len(m.recipes) - 2,
    "local_size": lambda m: m.recipes[-1].size,
    "local_crop": lambda m: m.recipes[-1].crop,
    "local_blur": lambda m: m.recipes[-1].blur,
}
ARRIVALS: dict[str, dict[str, Arrival]] = {
    "moco": {"queue": lambda m: len(m.queue.rows)},
    "dino": {
        "hidden": lambda m: layers(m.head.layers)[0][1],
        "bottleneck": lambda m: layers(m.head.layers)[-1][1],
        "prototypes": lambda m: m.head.prototypes.out_features,
    },
    "swav": {"prototypes": lambda m: m.prototypes.out_features, "queue": lambda m: len(m.queues[0].rows)},
    "conrec": {
        "hidden": lambda m: layers(m.projection)[0][1],
        "dim": lambda m: layers(m.projection)[-1][1],
    },
    "genesis": {
        "shuffle": lambda m: m.rates.shuffle,
        "shuffle_blocks": lambda m: m.rates.blocks,
        "intensity": lambda m: m.rates.intensity,
        "paint": lambda m: m.rates.paint,
        "in_paint": lambda m: m.rates.in_paint,
    },
}


def head_of(method: nn.Module) -> nn.Module:
    """The first part of a method beside its encoder and decoder that has several layers."""
    parts = [part for name, part in method.named_children() if name not in ("encoder", "decoder")]
    return next(part for part in parts if len(layers(part)) > 1)


def layers(module: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear layers and 1x1 convolutions, in their order."""
    found = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [(layer.weight.shape[1], layer.weight.shape[0]) for layer in found]


def distinct(field: FieldInfo, k: int) -> Any:
    """The k-th number of the kind that a setting takes; None for a setting that is no number."""
    kind = field.default if field.default is not None else 0.5
    if isinstance(kind, bool | str) or not isinstance(kind, int | float | tuple):
        return None
    if isinstance(kind, tuple):
        numbers = all(isinstance(part, float) for part in kind)
        return (0.3 + 0.01 * k, 0.6 + 0.01 * k) if numbers and len(kind) == 2 else None
    return 5 + k if isinstance(kind, int) else round(0.11 + 0.01 * k, 2)


def numbers_of(name: str) -> dict[str, Any]:
    """Every setting of a method that is a number or two, each with another value."""
    fields = SETTINGS_OF[name].model_fields
    values = {key: distinct(field, k) for k, (key, field) in enumerate(fields.items()) if not field.is_required()}
    numbers = {key: FIXED.get(key, value) for key, value in values.items() if value is not None and key != "head_norm"}
    assert len({str(value) for value in numbers.values()}) == len(numbers)
    return numbers


def built(name: str, **settings: Any) -> Any:
    chosen = SETTINGS_OF[name].model_validate({"name": name} | settings)
    return build_method(chosen, VIEWS, Parts(build_encoder(MODEL), lambda: build_decoder(MODEL), 3, 4))


@pytest.mark.parametrize("name", TRAINED)
def test_every_number_arrives_under_its_own_name(name: str) -> None:
    numbers = numbers_of(name)
    method = built(name, **numbers)
    places = EVERYWHERE | ARRIVALS.get(name, {})
    arrived = {key: places.get(key, lambda m, key=key: getattr(m, key))(method) for key in numbers}
    assert arrived == numbers


def test_every_method_of_the_schema_has_its_row_and_every_row_its_settings() -> None:
    assert sorted(METHODS) == sorted(TRAINED), "METHODS in trainables/methods/table.py"


@pytest.mark.parametrize("name", METHODS)
def test_a_builder_takes_the_methods_settings(name: str) -> None:
    taken = METHODS[name].__annotations__["method"].replace("schema.", "").split(" | ")
    assert SETTINGS_OF[name].__name__ in taken


def test_task_weights_arrive_with_their_tasks() -> None:
    weights = {"reconstruction": 2.0, "black-masks": 3.0}
    for name in ("reconstruction", "conrec"):
        assert built(name, tasks=list(weights), task_weights=weights).weights == weights
