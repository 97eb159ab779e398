"""Nodes on which stages crash that run well elsewhere: found out, and excluded. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pretune.outcomes import FAILURES, Outcome

CRASHES = 3  # different stages, in a row, after which a node is excluded


@dataclass
class Health:
    """Record of how stages ended on each node.

    A node is excluded once three different stages crashed on it with none ending well in between. A stage that
    crashes on a second node too has itself to blame: it no longer counts against either, so that a node excluded
    wrongly is used again. One that does not see the shared folder, or its own GPU, is excluded at once.
    """

    where: dict[str, set[str]] = field(default_factory=dict)  # by stage: the nodes on which it crashed
    against: dict[str, dict[str, str]] = field(default_factory=dict)  # by node: stages that count, and why
    without: dict[str, str] = field(default_factory=dict)  # by node: why it cannot run any stage

    def crashed(self, stage: str, node: str, outcome: Outcome) -> None:
        policy, cause = FAILURES[outcome.failure], outcome.cause
        if policy.of_node:
            self.without[node] = cause
        if not policy.counts:
            return
        places = self.where.setdefault(stage, set())
        places.add(node)
        if len(places) == 1:
            self.against.setdefault(node, {})[stage] = cause
        else:
            for stages in self.against.values():
                stages.pop(stage, None)

    def ended_well(self, node: str) -> None:
        self.against.pop(node, None)

    def excluded(self, there: AbstractSet[str]) -> dict[str, str]:
        """Return the excluded nodes and the reason; never excludes the last node."""
        found = {node: why for node in there if (why := self._why(node))}
        return found if len(found) < len(there) else {}

    def _why(self, node: str) -> str:
        if node in self.without:
            return self.without[node]
        stages = self.against.get(node, {})
        if len(stages) < CRASHES:
            return ""
        return f"{len(stages)} stages crashed there in a row, the last with {list(stages.values())[-1]}"
