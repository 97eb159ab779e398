"""The U-Net: shapes, parameter counts worked by hand, and what skip connections carry."""

from __future__ import annotations

import pytest
import torch

from pretune.trainables.models.heads import ProjectionHead
from pretune.trainables.models.unet import Decoder, Encoder, UNet


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def unet(skip: bool, norm: bool = True) -> UNet:
    torch.manual_seed(0)
    return UNet(Encoder((4, 8), 2, norm), Decoder((4, 8), skip, 2, norm), 3)


@pytest.mark.parametrize("size", [(8, 8), (16, 32)])
def test_features_halve_per_level_and_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    encoder = Encoder((4, 8, 16))
    features = encoder(torch.rand(2, 3, *size))
    assert [tuple(f.shape) for f in features] == [
        (2, c, size[0] // k, size[1] // k) for c, k in ((4, 1), (8, 2), (16, 4))
    ]
    logits = UNet(encoder, Decoder((4, 8, 16), True), 5)(torch.rand(2, 3, *size))
    assert logits.shape == (2, 5, *size)


@pytest.mark.parametrize(("skip", "expected"), [(True, 1759), (False, 1615)])
def test_parameters_of_a_two_level_network(skip: bool, expected: int) -> None:
    """Widths 4, 8 and 3 classes. Encoder: 3x3 convolutions 3-4-4-8-8 without bias, 9 (12 + 16 + 32 + 64) = 1116, and
    two norm vectors each, 2 (4 + 4 + 8 + 8) = 48. Decoder: 2x2 up-convolution 8-4, 4 * 32 + 4 = 132; convolutions
    8-4-4 with skips, 9 (32 + 16) = 432, else 4-4-4, 9 (16 + 16) = 288; norms 16. Head: 4 * 3 + 3 = 15."""
    assert parameters(unet(skip)) == expected


def test_p2s_widths_give_an_encoder_of_four_levels() -> None:
    """32-64-128-256: 9 (96 + 1024 + 2048 + 4096 + 8192 + 16384 + 32768 + 65536) + 4 (32 + 64 + 128 + 256)."""
    assert parameters(Encoder((32, 64, 128, 256))) == 9 * 130144 + 4 * 480


def test_without_norm_convolutions_have_a_bias_and_there_are_no_buffers() -> None:
    network = unet(True, norm=False)
    assert not list(network.buffers())
    # the two vectors of each norm (2 (4 + 4 + 8 + 8) + 16) become one bias vector (24 + 8)
    assert parameters(network) == 1759 - 64 + 32


@pytest.mark.parametrize("skip", [True, False])
def test_only_with_skip_connections_do_fine_features_reach_the_output(skip: bool) -> None:
    decoder = unet(skip).decoder.eval()
    fine, coarse = torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)
    with torch.no_grad():
        same = torch.equal(decoder([fine, coarse]), decoder([fine + 1, coarse]))
        assert not torch.equal(decoder([fine, coarse]), decoder([fine, coarse + 1]))
    assert same != skip


def test_every_parameter_is_trained() -> None:
    network = unet(True)
    network(torch.rand(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters())


def test_the_projection_head_pools_over_the_image() -> None:
    """Moving pixels around changes nothing; hidden 6: weights 4 * 6 (no bias), norm 12, out 6 * 2 + 2."""
    torch.manual_seed(0)
    head = ProjectionHead(4, 6, 2).eval()
    features = torch.rand(3, 4, 2, 2)
    torch.testing.assert_close(head(features), head(features.flip(2, 3)))
    assert head(features).shape == (3, 2)
    assert parameters(head) == 24 + 12 + 14
