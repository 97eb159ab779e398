"""Whatever happens to any file below a study's root: never a traceback, and never another table.

Every kind of file that a study leaves is found by walking, so that a new kind is damaged, too.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from damages import damage
from inline import run_inline

from pretune.cli import main
from pretune.errors import EXIT_USAGE
from pretune.search_spaces.errors import UsageError
from pretune.search_spaces.resolve import from_dict
from pretune.store.store import Store
from pretune.trainables.files import STATE

TINY: dict[str, Any] = {
    "study": "tiny",
    "data": {
        "scenes": {
            "dataset": "scenes",
            "images": 24,
            "classes": 3,
            "cache_size": 16,
            "split": {"test": 0.25, "val": 0.2},
        }
    },
    "model": {"name": "unet", "widths": [4, 8]},
    "pretrain": {
        "data": "scenes",
        "method": {"name": "simclr", "hidden": 16, "dim": 8},
        "views": {"size": 16},
        "batch_size": 8,
        "epochs": 2,
    },
    "finetune": {
        "data": "scenes",
        "size": 16,
        "batch_size": 8,
        "epochs": 2,
        "optimizer": {"lr": {"log_uniform": [0.001, 0.1]}},
    },
    "probe": {"maps": {"kind": "maps", "data": "scenes", "size": 16, "count": 2}},
    "factors": {"encoder": {"unfrozen": {"finetune.freeze": "none"}, "frozen": {"finetune.freeze": "encoder"}}},
    "tune": {"trials": 2, "batch": 2, "startup": 1, "rungs": {"epochs": [1], "keep": 0.5}},
    "seeds": {"search": 1, "report": 1},
    "report": {"rows": "encoder", "metrics": ["test/jaccard"]},
}  # a search with rungs (states to go on from), maps of a probe, a confirmed table
DAMAGES = 200
WAYS = ("flip", "zeros", "cut", "empty", "foreign", "gone")


def kind_of(path: Path, root: Path) -> str:
    """A file's path without what names a content."""
    return re.sub(r"[0-9a-f]{12,}", "*", re.sub(r"\d+\.length$", "N.length", str(path.relative_to(root))))


def said_by(*arguments: str) -> tuple[int, str]:
    """Exit code and text of a command of Pretune's; an exception that it does not turn into a sentence is raised."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        patch.setattr(sys, "argv", ["pretune", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), text.getvalue()
    return 0, text.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert run_inline(from_dict(copy.deepcopy(TINY)), root).exit_code == 0
    assert said_by("report", str(root / "tiny"))[0] == 0
    states = Store(root / "store").begin("e" * 32)
    shutil.copy(next(root.glob("store/*/*/continue.pt")), states / STATE)  # as a killed stage run leaves it
    return root


def table_of(root: Path) -> str:
    """The table as `pretune report` prints it, "" where it says in a sentence why there is none."""
    code, text = said_by("report", str(root / "tiny"), "--no-html")
    assert code in (0, EXIT_USAGE), text
    assert code == 0 or text.startswith("error: "), text
    return re.sub(r"/\S+", "", text) if code == 0 else ""


def run_again(root: Path, damaged: Path) -> str:
    """Run the study again, and do what it says if it refuses; how often it refused, for the record."""
    study = from_dict(copy.deepcopy(TINY))
    try:
        run_inline(study, root)
    except UsageError as error:
        assert damaged.name in str(error), error  # noqa: PT017
        damaged.unlink(missing_ok=True)
        run_inline(study, root)
        return "refused, moved away, run again"
    return "run again"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_damages_to_all_kinds_of_files_change_no_table_and_leave_no_traceback(
    finished: Path, tmp_path: Path
) -> None:
    table, written = table_of(finished), ("tiny/results.parquet", "tiny/searches.parquet", "tiny/study.json")
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in finished.rglob("*") if path.is_file() and path.name != ".lock"):
        kinds.setdefault(kind_of(path, finished), []).append(path)
    draw, counts = random.Random(0), Counter[str]()
    for number in range(DAMAGES):
        kind = sorted(kinds)[number % len(kinds)]
        root = Path(shutil.copytree(finished, tmp_path / str(number)))
        damaged = root / draw.choice(kinds[kind]).relative_to(finished)
        way = draw.choice(WAYS)
        counts["changed"] += damage(damaged, way, draw.random())
        print(number, way, kind, dict(counts), flush=True)
        shown = table_of(root)
        assert shown in ("", table)
        counts["report refused"] += not shown
        if damaged.name == "status.json":
            assert said_by("status", str(root / "tiny"))[0] in (0, EXIT_USAGE)
        counts[run_again(root, damaged)] += 1
        assert all((root / name).read_bytes() == (finished / name).read_bytes() for name in written)
        shutil.rmtree(root)
    print(len(kinds), "kinds of files", dict(counts))
