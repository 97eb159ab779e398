"""Files of a loop: weights as safetensors, and a resumable state that is whole or not there."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.trainables.files import CONTINUE, STATE


def save_weights(model: nn.Module, path: Path) -> None:
    """Parameters and buffers under their own names."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def has_part(path: Path, prefix: str) -> bool:
    """Whether the file holds any weights below `prefix.`."""
    with safe_open(path, "pt") as file:
        return any(name.startswith(f"{prefix}.") for name in file.keys())  # noqa: SIM118


def load_part(module: nn.Module, path: Path, prefix: str) -> None:
    """Load the weights below `prefix.` into `module`.

    Raises KeyError where the file has none of them, RuntimeError where they are those of another architecture: other
    widths, or a decoder with skip connections for one without.
    """
    weights = load_file(path)
    part = {name[len(prefix) + 1 :]: tensor for name, tensor in weights.items() if name.startswith(f"{prefix}.")}
    if not part:
        raise KeyError(
            f"{path.name} holds no weights below {prefix!r}; it has {sorted({n.split('.')[0] for n in weights})}"
        )
    try:
        module.load_state_dict(part)
    except RuntimeError as error:
        skips = " (a decoder trained with skip connections does not fit one without)" if prefix == "decoder" else ""
        raise RuntimeError(f"the {prefix} in {path.name} is of another architecture{skips}: {error}") from error


def save_state(state: dict[str, Any], folder: Path) -> None:
    """Write the resumable state so that a reader, or a kill at any moment, finds the old one or the new one."""
    _write(state, folder, STATE)


def save_end(state: dict[str, Any], folder: Path) -> None:
    """Write the state at the end of a training, from which a longer one goes on."""
    _write(state, folder, CONTINUE)


def _write(state: dict[str, Any], folder: Path, name: str) -> None:
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / name)


def load_state(path: Path | None, device: torch.device) -> dict[str, Any] | None:
    """The state at `path`, or None where there is none or it is damaged. Never unpickles objects."""
    if path is None or not zipfile.is_zipfile(path):
        return None  # damaged: starting over gives the same digits, trying it again never would
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None
    return state


def clone_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
