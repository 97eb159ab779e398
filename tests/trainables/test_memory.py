"""The budget of images on a GPU; the memory of a step by formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.memory import Need, Residency, SavedBytes
from pretune.trainables.sample_step import sample_step

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 bytes, 600 of them free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))


def bytes_of(count: int) -> Any:
    return np.zeros(count, np.uint8)


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("share", "sizes", "taken"),
    [
        (1.0, [299, 1], [True, False]),  # half of what is free, together
        (1.0, [300, 200, 99], [False, True, True]),  # what does not fit leaves the rest to others
        (0.25, [125, 124], [False, True]),  # half of the stage's share of the GPU
        (0.0, [299], [True]),  # no share is named
        (2.0, [299], [True]),
    ],
)
def test_arrays_of_a_stage_share_one_budget(share: float, sizes: list[int], taken: list[bool]) -> None:
    budget = Residency(share)
    assert [budget.take(bytes_of(size), GPU) for size in sizes] == taken


@pytest.mark.usefixtures("_gpu")
def test_nothing_is_taken_where_it_is_not_allowed_on_a_cpu_or_of_a_stream() -> None:
    assert not Residency(allowed=False).take(bytes_of(1), GPU)
    assert not Residency().take(bytes_of(1), CPU)
    assert not Residency().take(object(), GPU)


def test_what_is_kept_for_the_backward_pass_by_hand() -> None:
    """x (2, 3) into a linear layer of 4 keeps x, 24 bytes; a ReLU keeps its result, 32; the sum keeps nothing."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with SavedBytes() as saved:
        network(torch.ones(2, 3)).sum().backward()
    assert saved.total == 24 + 32


def test_the_largest_batch_that_fits() -> None:
    need = Need(fixed=100, per_image=50)
    assert [need.fitting(capacity) for capacity in (0, 111, 1000)] == [0, 0, 16]  # (900 - 100) / 50
    assert need.of(16) == 900


@pytest.mark.parametrize("name", ["simclr", "byol", "mae"])
@pytest.mark.parametrize("size", [32, 64])
def test_an_image_needs_about_what_the_formula_says(name: str, size: int) -> None:
    """Bytes that eight more images add."""
    body = {"data": "d", "steps": 1, "method": {"name": name, "hidden": 16} if name != "mae" else {"name": name}}
    settings = schema.Pretrain.model_validate(body | {"views": {"size": size}})
    model = schema.UNet(name="unet", widths=(8, 16))

    def kept(batch: int) -> int:
        with SavedBytes() as saved:
            sample_step(settings, model, None, batch).step()
        return saved.total

    small, large = kept(8), kept(16)
    views = 1 if name == "mae" else 2
    per_image = (large - small) / 8
    # conv, batch norm and ReLU of each of the finest level's two layers keep a map each: at least two maps of 8 x S x S
    assert per_image >= views * 2 * 8 * size * size * 4
    assert per_image <= views * 60 * 8 * size * size * 4
    assert large == pytest.approx(2 * small, rel=0.1)  # in proportion to the batch
