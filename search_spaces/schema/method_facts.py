"""Facts of the pretraining methods by name, and of a method with given settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from pretune.search_spaces.schema.facts import Map, MethodFacts
from pretune.search_spaces.schema.methods import Method, MoCo


def _by_name() -> dict[str, MethodFacts]:
    classes = get_args(get_args(Method)[0])
    return {name: settings.facts for settings in classes for name in get_args(settings.model_fields["name"].annotation)}


FACTS: Mapping[str, MethodFacts] = _by_name()


def requirements_of(method: Method) -> frozenset[Map]:
    """Return what a method with these settings reads of a data set beside its views."""
    return frozenset(method.facts.requires) | requirements_of_tasks(getattr(method, "tasks", ()))


def requirements_of_tasks(tasks: Sequence[str]) -> frozenset[Map]:
    """Inputs of P3's decoding tasks: original colours are those of the images before any view."""
    return frozenset({"images"} if "original-colors" in tasks else ())


def metrics_of(method: Method) -> frozenset[str]:
    """Diagnostics that a method with these settings may report, as train/NAME."""
    errors = {f"{task.replace('-', '_')}_error" for task in getattr(method, "tasks", ())}
    return frozenset(method.facts.metrics) | {name for name, _ in method.facts.terms} | errors


def cut_targets(method: Method) -> Literal["places", "pixels"] | None:
    """Return what a method with these settings cuts out by a view's box: nothing may move it in the view."""
    return "pixels" if "original-colors" in getattr(method, "tasks", ()) else method.facts.targets


def restores_views(method: Method) -> bool:
    """Whether a method with these settings is trained to restore the view itself."""
    return method.facts.corrupts and "reconstruction" in getattr(method, "tasks", ("reconstruction",))


def ramps(method: Method) -> bool:
    """Whether a value of a method with these settings moves over the whole training, however long that is."""
    if method.facts.ramp is None:
        return False
    start, end = (getattr(method, name) for name in method.facts.ramp)
    return end is not None and start != end


def batch_parts(method: Method) -> int:
    """Parts of a batch that batch norm sees apart from each other."""
    return method.bn_splits if isinstance(method, MoCo) else 1
