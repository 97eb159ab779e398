"""Facts of methods: declared for each, and true of its settings."""

from __future__ import annotations

from typing import get_args

import pytest

from pretune.search_spaces import schema
from pretune.search_spaces.schema import methods
from pretune.search_spaces.schema.base import Settings

CLASSES: list[type[Settings]] = [
    found
    for found in vars(methods).values()
    if isinstance(found, type) and issubclass(found, Settings) and "name" in found.model_fields
]


@pytest.mark.parametrize("settings", CLASSES, ids=lambda one: one.__name__)
def test_a_method_of_the_schema_can_be_chosen_and_has_facts_of_its_own(settings: type[Settings]) -> None:
    """A class that the union `Method` lacks is a method that no study can name."""
    (name,) = get_args(settings.model_fields["name"].annotation)
    assert name in schema.FACTS, f"{settings.__name__} is not in the union `Method` of search_spaces/schema/methods.py"
    assert "facts" in vars(settings), f"{settings.__name__} declares no facts"
    assert schema.FACTS[name] is vars(settings)["facts"]


@pytest.mark.parametrize("settings", CLASSES, ids=lambda one: one.__name__)
def test_a_ramp_lies_between_settings_of_the_method(settings: type[Settings]) -> None:
    (name,) = get_args(settings.model_fields["name"].annotation)
    assert set(schema.FACTS[name].ramp or ()) <= settings.model_fields.keys()


def test_a_ramp_counts_only_where_it_moves() -> None:
    moco = schema.MoCo(name="moco", momentum=0.9)
    assert not schema.ramps(moco)
    assert schema.ramps(moco.model_copy(update={"momentum_end": 1.0}))
    assert not schema.ramps(moco.model_copy(update={"momentum_end": 0.9}))
    assert not schema.ramps(schema.SimCLR(name="simclr"))


def test_the_decoding_tasks_decide_what_is_read_restored_and_held_still() -> None:
    plain = schema.Reconstruction(name="reconstruction")
    colors = plain.model_copy(update={"tasks": ("original-colors",)})
    assert schema.requirements_of(plain) == frozenset()
    assert schema.requirements_of(colors) == {"images"}
    assert schema.restores_views(plain)
    assert not schema.restores_views(colors)
    assert (schema.cut_targets(plain), schema.cut_targets(colors)) == (None, "pixels")
    assert schema.metrics_of(colors) == {"loss_over_uniform", "original_colors_error"}
