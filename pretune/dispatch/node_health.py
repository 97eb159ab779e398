"""Machines on which stages crash that run well elsewhere: found out, and left out. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pretune.outcomes import FAILURES, Outcome

CRASHES = 3  # different stages, in a row, after which a machine is left out


@dataclass
class Health:
    """What ended how on which machine.

    A machine is left out once three different stages crashed on it with none ending well in between. A stage that
    crashes on a second machine too has itself to blame: it no longer counts against either, so that a machine left out
    wrongly is used again. One that does not see the shared folder, or its own GPU, is left out at once.
    """

    where: dict[str, set[str]] = field(default_factory=dict)  # by stage: the machines on which it crashed
    against: dict[str, dict[str, str]] = field(default_factory=dict)  # by machine: stages that count, and why
    without: dict[str, str] = field(default_factory=dict)  # by machine: why it cannot run any stage

    def crashed(self, stage: str, machine: str, outcome: Outcome) -> None:
        policy, cause = FAILURES[outcome.failure], outcome.cause
        if policy.of_node:
            self.without[machine] = cause
        if not policy.counts:
            return
        places = self.where.setdefault(stage, set())
        places.add(machine)
        if len(places) == 1:
            self.against.setdefault(machine, {})[stage] = cause
        else:
            for stages in self.against.values():
                stages.pop(stage, None)

    def ended_well(self, machine: str) -> None:
        self.against.pop(machine, None)

    def left_out(self, there: AbstractSet[str]) -> dict[str, str]:
        """Of the machines that are there those to keep all stages off, and why; none where no other would be left."""
        found = {machine: why for machine in there if (why := self._why(machine))}
        return found if len(found) < len(there) else {}

    def _why(self, machine: str) -> str:
        if machine in self.without:
            return self.without[machine]
        stages = self.against.get(machine, {})
        if len(stages) < CRASHES:
            return ""
        return f"{len(stages)} stages crashed there in a row, the last with {list(stages.values())[-1]}"
