"""Experiment loggers that a study also reports to; `loggers` says what they receive, and when."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pretune.errors import LoggerError

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


class LogTo(NamedTuple):
    """One logger of a study. TensorBoard writes below `out`; the others go where their own environment says."""

    name: str  # a key of PACKAGES
    study: str
    out: Path


def check_packages(names: Sequence[str]) -> None:
    """Raises `LoggerError` for a logger whose package is not installed."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise LoggerError(
                f"--log-to {name} needs the package {PACKAGES[name]}: pip install -e '.[{name}]', or leave it out"
            )
