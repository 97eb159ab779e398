"""The U-Net of Models Genesis: the published layers counted by hand, and the same blocks in two dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.models import genesis_unet
from pretune.trainables.models.table import build_unet


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def counted(up: str, outputs: int, side: int) -> int:
    """From the published list of layers: (inputs, outputs) of every convolution, batch norm after each but the last."""
    down = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    back = [(512 + 256, 256), (256, 256), (256 + 128, 128), (128, 128), (128 + 64, 64), (64, 64)]
    convolutions = sum(i * o * side + o for i, o in down + back)
    norms = sum(2 * o for _, o in down + back)
    transposed = sum(c * c * 8 + c for c in (512, 256, 128)) if up == "transposed" else 0
    return convolutions + norms + transposed + 64 * outputs + outputs


@pytest.mark.parametrize(("up", "total"), [("nearest", 16_320_257), ("transposed", 19_073_665)])
def test_it_has_the_published_layers(up: str, total: int) -> None:
    """With the one output of the published restoration. 16.3 million as in Keras, 19.07 as in their PyTorch port."""
    model = schema.GenesisUNet.model_validate({"name": "genesis-unet", "up": up})
    assert counted(up, 1, 27) == total
    assert parameters(build_unet(model, 1)) == total


def test_in_two_dimensions_kernels_are_squares_and_inputs_colours() -> None:
    """Per convolution 9 weights in place of 27, and three input channels in place of one."""
    flat, solid = (genesis_unet.Encoder((4, 8), dimensions) for dimensions in (2, 3))
    pairs = [(2, 4), (4, 4), (4, 8)]
    first = 3 * 2 * 9 - 1 * 2 * 27
    assert parameters(flat) - parameters(solid) == first + sum(i * o * (9 - 27) for i, o in pairs)


def test_a_volume_of_equal_slices_gives_what_its_slice_gives_an_image_model() -> None:
    """Kernels that are spread over three slices, a third each, see in every inner slice what the flat kernel sees."""
    torch.manual_seed(0)
    flat = genesis_unet.level(3, 4, 6, 2).eval()
    solid = genesis_unet.level(3, 4, 6, 3).eval()
    weights = {
        name: value[:, :, None].repeat(1, 1, 3, 1, 1) / 3 if value.ndim == 4 else value
        for name, value in flat.state_dict().items()
    }
    solid.load_state_dict(weights)
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        volume = solid(image[:, :, None].repeat(1, 1, 5, 1, 1))
        torch.testing.assert_close(volume[:, :, 2], flat(image))  # two slices from either face
