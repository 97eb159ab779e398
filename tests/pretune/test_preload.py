"""Workers that start with Ray import what stages need; later ones do not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pretune import preload

LOOK = "import sys, pretune.preload; print('trainables.finetune' in sys.modules)"


@pytest.mark.parametrize(("seconds", "imported"), [(600.0, "True"), (-1.0, "False")])
def test_only_workers_of_the_first_seconds_import(seconds: float, imported: str) -> None:
    environment = os.environ | preload.environment() | {preload.UNTIL: str(time.time() + seconds)}
    shown = subprocess.run([sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == imported


def test_ray_is_told_of_the_module() -> None:
    told = preload.environment()
    assert told["RAY_preload_python_modules"] == "pretune.preload"
    assert 0 < float(told[preload.UNTIL]) - time.time() <= preload.SECONDS
