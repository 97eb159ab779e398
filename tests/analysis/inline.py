"""A whole study in this process, without Ray: the same programs, scheduler, stages, store and records."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pretune.run import Ended, Options, run_study
from pretune.search_spaces.resolve import Study
from pretune.worker.execute import execute
from pretune.worker.task import Folders, StageTask


def run_inline(study: Study, root: Path, data: Path | None = None) -> Ended:
    """Run a study into ROOT/NAME, as `pretune run --root ROOT` does."""
    options = Options(
        out=root / study.name, store=root / "store", cache=root / "cache", data=data, parallel=None, address=None
    )
    folders = Folders(str(options.store), str(options.cache), str(data) if data else None)

    def train(study: Study, state: Any, options: Options, console: Console, watch: Any) -> None:
        while stage := state.scheduler.take():
            state.scheduler.complete(stage, execute(StageTask(stage, state.label(stage), 0.0, folders), _silent))
        assert state.scheduler.finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pretune.run.train", train)
        patch.setattr("pretune.run.stop_ray", lambda: None)
        return run_study(study, options, Console(file=io.StringIO()))


def _silent(values: dict[str, float]) -> None:
    """What a stage reports while it runs is not looked at."""
