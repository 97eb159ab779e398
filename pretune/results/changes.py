"""A study file that was edited since its last run: which keys changed, and where the earlier results go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from pretune.monitor.plain import plain
from pretune.search_spaces.resolve import Study

EARLIER = "earlier"  # folder for the results from before an edit of the study file
DERIVED = (
    *(
        "results.parquet",
        "stage_runs.parquet",
        "searches.parquet",
        "curves.parquet",
        "test_images.parquet",
        "table.md",
        "table.csv",
        "table.tex",
    ),
    *("differences.csv", "intervals.csv", "report.html", "best", "panels"),
)


def set_aside(folder: Path) -> None:
    """Move results of the settings before the edit to `earlier/`, so that nobody takes them for the new ones."""
    target = folder / EARLIER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in DERIVED:
        if (folder / name).exists():
            (folder / name).rename(target / name)


def changed_keys(study: Study, folder: Path) -> list[str] | None:
    """Keys of the study file that changed since the last run in this folder; None where none is known to have run."""
    try:
        before = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # none there, or damaged
        return None
    return sorted(differing(before, yaml.safe_load(study.to_yaml())))


def say_changes(study: Study, folder: Path, console: Console) -> bool:
    """Tell which keys of the study file changed since the last run; whether any did. Valid stage runs are reused."""
    changed = changed_keys(study, folder)
    if changed:
        console.print(f"the study changed since its last run: {plain(', '.join(changed))}", highlight=False)
        console.print(f"the earlier results are in {plain(folder / EARLIER)}", highlight=False, soft_wrap=True)
    return bool(changed)


def differing(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in before.keys() | after.keys():
            yield from differing(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif before != after:
        yield key
