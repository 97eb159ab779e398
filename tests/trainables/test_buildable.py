"""Layers by their shapes alone give the shapes that torch gives, and refuse what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretune.trainables.buildable import _Shapes

sides = st.integers(1, 9)


def shapes(layer: nn.Module, *size: int) -> torch.Size | None:
    """Shape of the result, by shapes alone; None where it is refused."""
    with torch.device("meta"), _Shapes():
        try:
            return layer.to("meta")(torch.empty(*size)).shape  # type: ignore[no-any-return]
        except ValueError:
            return None


def truth(layer: nn.Module, *size: int) -> torch.Size | None:
    try:
        return layer(torch.zeros(*size)).shape  # type: ignore[no-any-return]
    except RuntimeError:
        return None


@settings(max_examples=60, deadline=None)
@given(n=sides, m=sides, kernel=st.integers(1, 5), stride=st.integers(1, 3), padding=st.integers(0, 3))
def test_convolutions_and_pools(n: int, m: int, kernel: int, stride: int, padding: int) -> None:
    layers = [
        nn.Conv2d(2, 4, kernel, stride, padding, dilation=2, groups=2),
        nn.ConvTranspose2d(2, 4, kernel, stride, padding=min(padding, (kernel - 1) // 2), groups=2),
        nn.MaxPool2d(kernel, stride, min(padding, kernel // 2)),
        nn.MaxPool2d(kernel),
    ]
    for layer in layers:
        expected = truth(layer, 2, 2, n, m)
        assert shapes(layer, 2, 2, n, m) == expected, layer


@pytest.mark.parametrize(
    "layer", [nn.Conv3d(1, 2, 3, padding=1), nn.MaxPool3d(2), nn.ConvTranspose3d(1, 3, 2, stride=2), nn.Conv3d(1, 2, 9)]
)
def test_volumes(layer: nn.Module) -> None:
    assert shapes(layer, 1, 1, 4, 6, 8) == truth(layer, 1, 1, 4, 6, 8)


def test_convolutions_of_the_same_size_and_of_other_channels() -> None:
    same = nn.Conv2d(3, 5, 4, padding="same", dilation=2)
    assert shapes(same, 1, 3, 7, 9) == (1, 5, 7, 9)
    assert shapes(nn.Conv2d(3, 5, 1), 1, 4, 7, 9) is None
    assert shapes(nn.ConvTranspose2d(3, 5, 2), 1, 4, 7, 9) is None
