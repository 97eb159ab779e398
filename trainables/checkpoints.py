"""Files of a loop: weights as safetensors, and a resumable state that is whole or not there."""

from __future__ import annotations

import copy
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


class StateWriter:
    """Writes the states of a training one after the other: at once, or (`beside`) a copy in a thread of its own.

    Whoever makes one that writes beside a training uses it in a `with`, which waits for the last state.
    """

    def __init__(self, beside: bool = False) -> None:
        self._thread = ThreadPoolExecutor(1, "pretune-state") if beside else None
        self._under_way: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is being written."""
        return self._under_way is not None and not self._under_way.done()

    def write(
        self,
        save: Callable[[dict[str, Any], Path], None],
        state: dict[str, Any],
        folder: Path,
        took: Callable[[float], None],
    ) -> None:
        """Have `save` write the state into the folder; training may change the state's tensors after this returns.

        Waits for the state before, and raises what its writing failed of. `took` is told the seconds, once written.
        """
        self.wait()
        began = time.monotonic()

        def run(state: dict[str, Any]) -> None:
            save(state, folder)
            took(time.monotonic() - began)

        if self._thread is None:
            run(state)
        else:
            self._under_way = self._thread.submit(run, on_host(state))

    def raise_if_failed(self) -> None:
        """Raise what the writing of the last state failed of, if it has; does not wait."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait until the last state is written. Raises what its writing failed of."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:  # else what ended the training is raised
                raise
        finally:
            if self._thread is not None:
                self._thread.shutdown()


def on_host(value: Any) -> Any:
    """A copy of a state that training does not change: tensors on the host, in containers of the same kind."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with what torch notes on a module's state_dict
        copied.update((key, on_host(one)) for key, one in value.items())
        return copied
    return type(value)(map(on_host, value)) if isinstance(value, list | tuple) else value


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
