"""Kinds of failure: what follows from each, and that nothing follows from a sentence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pretune
from pretune.dispatch.node_health import CRASHES, Health
from pretune.dispatch.scheduler import Scheduler
from pretune.outcomes import FAILURES, Failure, Outcome
from pretune.search_spaces.resolve import from_dict
from pretune.search_spaces.stages import Stage, replicates, stages_of

# retried; the node is excluded after CRASHES such stages; after one; the study stops
EXPECTED = {
    Failure.ERROR: (True, True, False, False),
    Failure.BAD_DATA: (False, False, False, False),
    Failure.DEFECT: (False, False, False, False),
    Failure.OUT_OF_MEMORY: (False, False, False, False),
    Failure.NO_GPU: (True, True, True, False),
    Failure.NOT_SHARED: (True, True, True, False),
    Failure.NODE_DISK_FULL: (True, True, False, False),
    Failure.STORE_FULL: (True, False, False, True),
    Failure.LOST: (True, True, False, False),
    Failure.NOT_VISIBLE: (True, True, False, False),
}


def a_stage(tiny: dict[str, Any]) -> Stage:
    study = from_dict(tiny)
    (first, *_) = replicates(study.header.seeds, "report")
    made = stages_of(study.cells[0].configuration(), first, study.header, lambda data: "content", True)
    return next(iter(made.values()))


def excluded_after(kind: Failure, crashes: int) -> bool:
    health = Health()
    for number in range(crashes):
        health.crashed(f"stage {number}", "bad", Outcome("crashed", {}, "some words", failure=kind))
    return bool(health.excluded({"bad", "good"}))


@pytest.mark.parametrize("kind", list(Failure))
def test_what_follows_from_a_kind(kind: Failure, tiny: dict[str, Any]) -> None:
    """A stage with one retry that crashes twice: it is started twice, or once where trying again is no use."""
    retried, counts, at_once, stops = EXPECTED[kind]
    stage, events = a_stage(tiny), list[str]()

    def program() -> Iterator[Any]:
        yield [stage]
        return []

    scheduler = Scheduler(lambda key: None, 1, lambda event, stage, text: events.append(event))
    scheduler.start([program()])  # type: ignore[list-item]
    while (taken := scheduler.take()) is not None:
        scheduler.complete(taken, Outcome("crashed", {}, "some words", failure=kind))
    assert events == (["started", "retried", "started", "crashed"] if retried else ["started", "crashed"])
    assert (excluded_after(kind, CRASHES), excluded_after(kind, 1)) == (counts, at_once)
    assert FAILURES[kind].stops_study is stops


def test_every_kind_has_a_policy_and_only_a_crash_is_treated() -> None:
    assert FAILURES.keys() == EXPECTED.keys() == set(Failure)
    ends = ("finished", "diverged", "blocked", "preempted")
    assert [Outcome(end, {}, failure=Failure.STORE_FULL).policy for end in ends] == [None] * 4


def is_a_cause(node: ast.AST) -> bool:
    """`outcome.cause`, or a variable called `cause`."""
    return (isinstance(node, ast.Attribute) and node.attr == "cause") or (
        isinstance(node, ast.Name) and node.id == "cause"
    )


def decisions_on_a_sentence(source: str) -> list[int]:
    """Lines that look into a cause: `in`, `==`, a method of its text, or a regular expression over it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        looked_at: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            looked_at = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            into = {"search", "match", "fullmatch", "findall"}
            looked_at = [node.func.value, *(node.args if node.func.attr in into else [])]
        found += [node.lineno for part in looked_at if is_a_cause(part)]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "line", ["'full' in outcome.cause", "cause == 'x'", "outcome.cause.startswith('x')", "re.search('x', o.cause)"]
)
def test_a_decision_on_a_sentence_is_found(line: str) -> None:
    assert decisions_on_a_sentence(line) == [1]


def test_no_module_decides_on_the_text_of_a_cause() -> None:
    folder = Path(pretune.__file__).parent
    own = [path for path in sorted(folder.rglob("*.py")) if not any(parent.is_symlink() for parent in path.parents)]
    assert len(own) > 50
    assert {str(path): lines for path in own if (lines := decisions_on_a_sentence(path.read_text("utf-8")))} == {}
