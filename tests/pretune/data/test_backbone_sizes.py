"""Sizes that `pretune init` writes for a backbone."""

from __future__ import annotations

import pytest

from pretune.data.backbones import Network


@pytest.mark.parametrize("stride", [8, 14, 16, 32])
@pytest.mark.parametrize("size", [12, 32, 64, 100, 128, 256])
def test_sizes_for_a_backbone_leave_batch_norm_several_places(stride: int, size: int) -> None:
    """One image is left wherever labelled images are no multiple of the batch."""
    found = Network("any", "timm-unet", stride, None).multiple(size)
    assert found % stride == 0
    assert found // stride >= 2
    assert found <= max(size, 2 * stride)
    assert found > size - stride


def test_a_backbone_of_one_size_keeps_it() -> None:
    assert Network("any", "vit-pyramid", 16, 224).multiple(32) == 224
