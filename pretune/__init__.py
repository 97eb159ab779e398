"""Pretune as a library: `pretune.load` gives the best model of a study, and imports torch only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretune.model.predict import Model


def load(folder: str | Path, device: str = "auto") -> Model:
    """The best model of a study, ready to `predict`.

    Args:
        folder: a study's output folder, such as runs/leaves, or its best/ below.
        device: auto, cpu, cuda or another name that PyTorch knows.

    Raises:
        pretune.errors.ModelError: no model there, it cannot be read, or no such device.
    """
    from pretune.model.predict import load_model, pick_device

    path = Path(folder)
    return load_model(path.parent if path.name == "best" else path, pick_device(device))
