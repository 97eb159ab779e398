"""Rules of probes: a pretraining to look at, a factor to compare along, and metrics that they report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pretune.search_spaces.cells import Cell, Level
from pretune.search_spaces.document import Locations, Problem, did_you_mean
from pretune.search_spaces.metrics import parts_of
from pretune.search_spaces.schema import CAM, Configuration, Header

REPORTED = {  # by kind: what stands after probe/NAME/
    "knn": "accuracy",
    "linear": "accuracy",
    "cam": "accuracy",
    "maps": "explained_variance",
    "cka": "LEVEL/output",
}


def check_probes(settings: Configuration, locations: Locations) -> Iterator[Problem]:
    """Class-activation maps need a pretraining by classification."""
    for name, probe in settings.probe.items():
        trained = [(stage.method.facts.classifier, stage.data) for stage in settings.pretrain[-1:]]
        if isinstance(probe, CAM) and trained and trained != [(True, probe.data)]:
            what = "class-activation maps need a pretraining by classification on the same data"
            yield locations.problem(("probe", name), what, "leave the probe out of the levels that have none")


def check_probe_metric(metric: str, probes: Mapping[str, Any], locations: Locations) -> Iterator[Problem]:
    """A metric of the report that begins with probe/."""
    name = parts_of(metric).probe
    probe = probes.get(name)
    if probe is None:
        yield locations.problem(("report", "metrics"), f"there is no probe {name!r}", did_you_mean(name, probes))
        return
    kind = probe.get("kind") if isinstance(probe, Mapping) else None
    if isinstance(kind, str) and kind in REPORTED and not _reports(kind, metric):
        what = f"the probe {name!r} does not report {metric}"
        yield locations.problem(("report", "metrics"), what, f"it reports probe/{name}/{REPORTED[kind]}")


def _reports(kind: str, metric: str) -> bool:
    found = parts_of(metric)
    return bool(found.level) if kind == "cka" else not found.level and found.metric == REPORTED[kind]


def check_probe_target(target: str, probes: Mapping[str, Any], locations: Locations) -> Iterator[Problem]:
    """A pretraining can be tuned by a probe that scores one encoder."""
    if not target.startswith("probe."):
        return
    name, place = target.removeprefix("probe."), ("tune", "pretrain", "target")
    probe = probes.get(name)
    if probe is None:
        yield locations.problem(place, f"there is no probe {name!r}", did_you_mean(name, probes))
    elif isinstance(probe, Mapping) and probe.get("on") == "test":
        yield locations.problem(place, f"the probe {name!r} is scored on the test set", "tune by one without on: test")
    elif isinstance(probe, Mapping) and probe.get("kind") in ("cka", "maps"):
        what = f"the probe {name!r} gives a single pretraining no score"
        yield locations.problem(place, what, "use knn, linear, cam, pretext or cells")


def check_pairs(
    header: Header, cells: Sequence[tuple[Cell, Locations]], factors: Mapping[str, Mapping[str, Level]]
) -> Iterator[Problem]:
    """A pairwise probe needs a factor of at least two levels, and its metrics name one of them."""
    for cell, locations in cells:
        probes = cell.template.get("probe")
        for name, probe in probes.items() if isinstance(probes, Mapping) else ():
            between = probe.get("between") if isinstance(probe, Mapping) and probe.get("kind") == "cka" else None
            if isinstance(between, str):
                yield from _check_pair(name, between, header, factors, locations)


def _check_pair(
    name: str, between: str, header: Header, factors: Mapping[str, Mapping[str, Level]], locations: Locations
) -> Iterator[Problem]:
    levels = factors.get(between)
    if levels is None:
        fix = did_you_mean(between, factors)
        yield locations.problem(("probe", name, "between"), f"there is no factor {between!r}", fix)
        return
    if len(levels) < 2:
        what = f"the factor {between!r} has no two levels to compare"
        yield locations.problem(("probe", name, "between"), what, "add one, or leave the probe out")
        return
    for metric in header.report.metrics:
        level = parts_of(metric).level
        if level and parts_of(metric).probe == name and level not in levels:
            what = f"factor {between!r} has no level {level!r}"
            yield locations.problem(("report", "metrics"), what, did_you_mean(level, levels))
