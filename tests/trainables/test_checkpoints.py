"""What a loop writes down: weights, and a state that is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from pretune.trainables import checkpoints
from pretune.trainables.files import STATE
from pretune.trainables.models.unet import Encoder


def test_weights_come_back_bit_for_bit_with_their_buffers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = nn.ModuleDict({"encoder": Encoder((4, 8))}).to(memory_format=torch.channels_last)
    source["encoder"](torch.rand(2, 3, 8, 8))  # moves the running statistics
    checkpoints.save_weights(source, tmp_path / "w.safetensors")
    target = Encoder((4, 8))
    checkpoints.load_part(target, tmp_path / "w.safetensors", "encoder")
    expected = source["encoder"].state_dict()
    assert expected.keys() == target.state_dict().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())


def test_a_part_that_the_file_does_not_hold_names_those_it_holds(tmp_path: Path) -> None:
    checkpoints.save_weights(nn.ModuleDict({"head": nn.Linear(2, 2)}), tmp_path / "w.safetensors")
    with pytest.raises(KeyError, match=r"no weights below 'encoder'; it has \['head'\]"):
        checkpoints.load_part(Encoder((4, 8)), tmp_path / "w.safetensors", "encoder")


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    checkpoints.save_weights(nn.ModuleDict({"encoder": Encoder((4, 8))}), tmp_path / "w.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        checkpoints.load_part(Encoder((4, 16)), tmp_path / "w.safetensors", "encoder")


def test_a_state_comes_back(tmp_path: Path) -> None:
    checkpoints.save_state({"step": 3, "losses": [torch.tensor(0.5)], "best": None}, tmp_path)
    state = checkpoints.load_state(tmp_path / STATE, torch.device("cpu"))
    assert state == {"step": 3, "losses": [torch.tensor(0.5)], "best": None}
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_there_is_no_state_where_there_is_no_file(tmp_path: Path) -> None:
    assert checkpoints.load_state(None, torch.device("cpu")) is None
    assert checkpoints.load_state(tmp_path / "gone.pt", torch.device("cpu")) is None


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_kill_while_a_state_is_written_leaves_the_old_one(tmp_path: Path, operation: str) -> None:
    checkpoints.save_state({"step": 1}, tmp_path)
    owner = os if operation == "fsync" else Path
    with mock.patch.object(owner, operation, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        checkpoints.save_state({"step": 2}, tmp_path)
    assert checkpoints.load_state(tmp_path / STATE, torch.device("cpu")) == {"step": 1}


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("intruded",))


def test_a_state_that_would_run_code_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Intruder()}, tmp_path / "state.pt")
    assert checkpoints.load_state(tmp_path / "state.pt", torch.device("cpu")) is None
    assert not (tmp_path / "intruded").exists()


def test_a_clone_keeps_its_values_while_training_goes_on() -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    kept = checkpoints.clone_state(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(kept["weight"], before)


def test_a_damaged_state_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"PK", b"not a checkpoint"):
        path.write_bytes(content)
        assert checkpoints.load_state(path, torch.device("cpu")) is None
