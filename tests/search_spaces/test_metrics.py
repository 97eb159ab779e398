"""The table of metrics: names are read by their parts, and every name that a stage can write stands in it."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretune.search_spaces.metrics import (
    COSTS,
    DEFINITIONS,
    RATIOS,
    SCORES,
    Direction,
    MetricName,
    UnknownMetricError,
    definition_of,
    direction_of,
    from_json,
    is_reportable,
    parts_of,
    pattern_of,
    scored_by,
    to_json,
)

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("label", ["glossy", "bone loss", "loss", "cost/x", "probe/near/accuracy", "a/b/c", "level1"])
@pytest.mark.parametrize("part", ["val", "test", "test@256"])
def test_a_class_does_not_turn_its_metric_over(part: str, label: str) -> None:
    name = f"{part}/jaccard/{label}"
    assert parts_of(name) == MetricName(part, "jaccard", label)
    assert pattern_of(name) == "SPLIT/jaccard/CLASS"
    assert direction_of(name) == "maximize"
    assert definition_of(name).unit == "fraction"
    assert is_reportable(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test@64/dice", MetricName("test@64", "dice")),
        ("probe/accuracy", MetricName("probe", "accuracy")),
        ("probe/loss/accuracy", MetricName("probe", "accuracy", probe="loss")),
        ("probe/alike/1/3/output", MetricName("probe", "output", probe="alike", level="1/3")),
        ("probe/alike/glossy/level2", MetricName("probe", "level2", probe="alike", level="glossy")),
        ("cost/gpu_memory", MetricName("cost", "gpu_memory")),
        ("train/loss", MetricName("train", "loss")),
    ],
)
def test_names_are_read_by_their_parts(name: str, expected: MetricName) -> None:
    assert parts_of(name) == expected
    assert pattern_of(name) in DEFINITIONS


@pytest.mark.parametrize(
    ("metric", "asked", "expected"),
    [
        ("val/jaccard", None, "maximize"),
        ("train/loss", None, "minimize"),
        ("val/pretext_loss", None, "minimize"),
        ("cost/seconds", None, "minimize"),
        ("probe/bone loss/accuracy", None, "maximize"),
        ("val/jaccard", "minimize", "minimize"),
        ("val/pretext_loss", "maximize", "maximize"),
    ],
)
def test_the_table_says_which_direction_is_better_unless_the_study_does(
    metric: str, asked: Direction | None, expected: str
) -> None:
    assert direction_of(metric, asked) == expected


@pytest.mark.parametrize(
    "name",
    ["val/losses", "test/jacard", "test/accuracy/pet", "test/soft_dice/pet", "jaccard", "train/jaccard", "probe/a/b",
     "probe/near/x/accuracy", "cost/euros", "test@x/jaccard", "val/"],
)  # fmt: skip
def test_what_no_stage_reports_has_no_direction(name: str) -> None:
    with pytest.raises(UnknownMetricError, match="no stage reports"):
        direction_of(name)
    assert not is_reportable(name)


@pytest.mark.parametrize("name", ["probe/alike/b/output", "train/encoder_rank"])
def test_nothing_is_searched_by_what_has_no_better_direction(name: str) -> None:
    with pytest.raises(UnknownMetricError, match="neither high nor low values"):
        direction_of(name)


@pytest.mark.parametrize("name", ["train/loss", "val/pretext_loss", "cost/seconds", "probe/accuracy", "probe/output"])
def test_tables_show_scores_and_named_probes_alone(name: str) -> None:
    assert not is_reportable(name)


@pytest.mark.parametrize("pattern", DEFINITIONS)
def test_a_row_is_whole_and_comes_back_from_the_results(pattern: str) -> None:
    row = DEFINITIONS[pattern]
    assert from_json(json.loads(json.dumps(to_json(row), allow_nan=False))) == row
    assert row.low < row.high
    assert row.average
    assert row.meaning
    assert row.unit != "fraction" or math.isfinite(row.span)


def test_a_damaged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown direction 'up'"):
        from_json(to_json(DEFINITIONS["SPLIT/dice"]) | {"direction": "up"})


def test_ratios_of_counts_are_scores_of_one_class_and_of_all() -> None:
    assert {f"SPLIT/{name}" for name in RATIOS} | {f"SPLIT/{name}/CLASS" for name in RATIOS} <= DEFINITIONS.keys()
    assert set(RATIOS) < set(SCORES)


def test_searches_go_by_the_metric_of_their_target() -> None:
    assert scored_by("cells", "val/dice") == "val/dice"
    assert scored_by("pretext", "val/dice") == "val/pretext_loss"
    assert scored_by("probe.bone loss", "val/dice") == "probe/bone loss/accuracy"


def literals(path: Path) -> Iterator[str]:
    """Whole names of metrics that a file spells out; parts of f-strings are none."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield from re.findall(r"^(?:train|val|test|probe|cost)/\w+$", node.value)


def sources() -> list[Path]:
    return [
        path
        for folder in ("trainables", "pretune")
        for path in sorted((TOP / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(TOP)))
def test_every_metric_that_the_code_names_is_in_the_table(path: Path) -> None:
    """Names that are put together (diagnostics of methods, scores of a split) are collected from runs, in
    tests/trainables/test_contract_methods.py and test_metric_names.py."""
    assert [name for name in literals(path) if pattern_of(name) not in DEFINITIONS] == []


def test_costs_are_those_that_the_store_is_asked_for() -> None:
    assert set(literals(TOP / "pretune" / "store" / "lookup.py")) == set(COSTS)
