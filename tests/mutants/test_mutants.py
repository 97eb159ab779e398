"""No statement of the loops can go, and no two settings of a method can change places, without a test that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutations import deletions, later_comparisons, other_streams, swaps
from runner import SOURCES, TARGETS

RUNNER = Path(__file__).with_name("runner.py")


@pytest.mark.slow  # some hundred faults, a second or two each
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS)
def test_every_fault_is_seen(target: str) -> None:
    done = subprocess.run([sys.executable, RUNNER, target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_every_file_that_hands_settings_to_a_module_is_a_target() -> None:
    methods = set((RUNNER.parents[2] / SOURCES / "methods").glob("*.py"))
    methods = {path for path in methods if path.stem != "restored"}  # its `method` is a module
    assert {f"methods/{path.stem}" for path in methods if swaps(path.read_text())} <= TARGETS.keys()


def test_every_statement_is_deleted_in_turn_blocks_as_a_whole_too() -> None:
    source = (
        'def f(x):\n    """Says."""\n    assert x\n    if x:\n        x = 1\n    else:\n        x = 2\n    return x\n'
    )
    names = [name for name, _ in deletions(source)]
    assert names == ["f: without if x:", "f: without x = 1", "f: without x = 2", "f: without return x"]
    assert deletions(source)[1].source == source.replace("x = 1", "pass").rstrip()


def test_equal_statements_are_told_apart_and_methods_have_their_class() -> None:
    source = "class A:\n    def f(self):\n        g()\n        g()\n"
    assert [name for name, _ in deletions(source)] == ["A.f: without g()", "A.f: without g() (2)"]


def test_every_two_settings_change_places() -> None:
    source = "def build(method):\n    return M(method.a, (method.b, method.c), method.a)"
    found = dict(swaps(source))
    assert found["build: a <-> b"] == source.replace("method.a, (method.b", "method.b, (method.a")
    assert len(found) == 5  # a b, a c, b c, and the second a with each of b and c


def test_every_stream_is_replaced_by_each_other_and_every_border_moves() -> None:
    assert [name for name, _ in other_streams('def f(streams):\n    g(streams["order"])')] == [
        f"f: order from the stream of {other}" for other in ("init", "augmentation", "labels")
    ]
    assert [name for name, _ in later_comparisons("def f(x):\n    return 0 <= x < 5")] == [
        "f: 0 < x < 5 for 0 <= x < 5"
    ]
