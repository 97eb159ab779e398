"""Pairwise probes: which confirmed replicates are compared with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pretune.search.replicates import ReplicatePlan, Run, values_or_centres
from pretune.search_spaces import schema
from pretune.search_spaces.stages import encoder_stage, pair_stage


def pairwise_plans(run: Run, new: Sequence[ReplicatePlan]) -> list[ReplicatePlan]:
    """Pairwise probes of `new` confirmed replicates with earlier ones.

    The cells of a pair differ in the probe's factor alone. Its first level is that which the study names first,
    whichever was confirmed first. The probe is noted under both, with the other level in its name.
    """
    found: list[ReplicatePlan] = []
    for plan in new:
        for name, probe in pairwise_probes(plan).items():
            levels = run.study.factors[probe.between]
            for partner in [other for other in run.replicates if other.phase == "confirm" and not other.pair]:
                if differ_alone(plan, partner, probe.between):
                    pair = sorted((plan, partner), key=lambda one: levels.index(one.cell.levels[probe.between]))
                    found += pair_plans(run, name, probe, pair[0], pair[1])
    run.replicates += found
    return found


def pairwise_probes(plan: ReplicatePlan) -> dict[str, schema.CKA]:
    probes = plan.cell.configuration(values_or_centres(plan.values)).probe
    return {name: probe for name, probe in probes.items() if isinstance(probe, schema.CKA)}


def differ_alone(one: ReplicatePlan, other: ReplicatePlan, factor: str) -> bool:
    """Whether two plans are of one replicate, and of cells that differ in one factor and in no other."""
    a, b = one.cell.levels, other.cell.levels
    return one.replicate == other.replicate and [name for name in a if a[name] != b[name]] == [factor]


def pair_plans(
    run: Run, name: str, probe: schema.CKA, first: ReplicatePlan, second: ReplicatePlan
) -> list[ReplicatePlan]:
    """Both sides of a pair; none where a cell has no such probe, or no encoder to compare."""
    parents = encoder_stage(first.stages, probe.of), encoder_stage(second.stages, probe.of)
    if parents[0] is None or parents[1] is None or not all(name in pairwise_probes(plan) for plan in (first, second)):
        return []
    configuration = first.cell.configuration(values_or_centres(first.values))
    stage = pair_stage(configuration, name, first.replicate, run.study.header, run.digest_of, (parents[0], parents[1]))
    sides = ((first, second), (second, first))
    return [
        replace(side, stages={f"probe:{name}/{other.cell.levels[probe.between]}": stage}, pair=True)
        for side, other in sides
    ]
