"""All models behind one interface: shapes, parameters by hand, what skips carry, and torchvision's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model, resnet18

from pretune.search_spaces import schema
from pretune.trainables.models import resnet
from pretune.trainables.models.interface import resized, skips_of, trunk
from pretune.trainables.models.table import MODELS, build_decoder, build_encoder, build_unet

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet", "widths": [4, 8, 16]},
    "unet-no-skips": {"name": "unet", "widths": [4, 8, 16], "skip_connections": False},
    "conrec": {"name": "conrec-unet", "widths": [8, 16]},
    "conrec-no-skips": {"name": "conrec-unet", "widths": [8, 16], "skip_connections": False},
    "resnet": {"name": "resnet-unet", "depth": 18},
    "resnet-no-skips": {"name": "resnet-unet", "depth": 18, "skip_connections": False},
    "resnet-cifar": {"name": "resnet-unet", "depth": 18, "stem": "cifar"},
    "resnet-head": {"name": "resnet-head", "depth": 18},
    "timm-resnet": {"name": "timm-unet", "backbone": "test_resnet"},
    "timm-convnext": {"name": "timm-unet", "backbone": "test_convnext"},  # four maps, layer norm
    "timm-mobilenet": {"name": "timm-unet", "backbone": "mobilenetv3_small_050"},
    "timm-mobilenet-no-skips": {
        "name": "timm-unet",
        "backbone": "mobilenetv3_small_050",
        "skip_connections": False,
    },
    "timm-vit": {"name": "timm-unet", "backbone": "test_vit"},  # three maps of one stride
    "timm-swin": {"name": "timm-unet", "backbone": "swin_s3_tiny_224", "decoder_widths": [8, 8, 8, 8, 8]},  # B, H, W, C
    "vit-pyramid": {"name": "vit-pyramid", "backbone": "test_vit3", "pyramid_width": 8, "decoder_width": 4},
    "genesis": {"name": "genesis-unet", "widths": [4, 8, 16]},
    "genesis-no-skips": {"name": "genesis-unet", "widths": [4, 8, 16], "skip_connections": False},
    "genesis-transposed": {"name": "genesis-unet", "widths": [4, 8, 16], "up": "transposed"},
    "genesis-2d": {"name": "genesis-unet", "widths": [4, 8, 16], "dimensions": 2},
}


pytestmark = pytest.mark.usefixtures("one_thread")


every_model = pytest.mark.parametrize("key", SMALL)


def model_of(key: str) -> schema.Model:
    model: schema.Model = TypeAdapter(schema.Model).validate_python(SMALL[key])
    return model


def pixels(model: schema.Model, count: int, rows: int, columns: int) -> torch.Tensor:
    """Images, or volumes with as many slices as the model halves them into one."""
    volumes = schema.dimensions_of(model) == 3
    return torch.rand((count, 1, stride_of(model), rows, columns) if volumes else (count, 3, rows, columns))


def stride_of(model: schema.Model) -> int:
    """As the settings name it, or as the encoder has it."""
    return model.stride or build_encoder(model).strides[-1]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", schema.MODEL_FACTS)
def test_a_model_of_the_schema_has_its_row_and_a_case_here(name: str) -> None:
    assert name in MODELS, f"{name} has no row in MODELS, trainables/models/table.py"
    assert name in {case["name"] for case in SMALL.values()}, f"no small settings of {name} in SMALL"


@every_model
def test_the_facts_tell_the_levels_and_which_settings_reach_the_decoder_alone(key: str) -> None:
    model = model_of(key)
    assert schema.levels_of(model) in (None, len(build_encoder(model).widths))
    assert set(model.facts.decoder_settings) <= type(model).model_fields.keys()


@every_model
def test_maps_have_the_widths_and_strides_that_the_encoder_names_and_logits_the_images_size(key: str) -> None:
    torch.manual_seed(0)
    model = model_of(key)
    stride = stride_of(model)
    network = build_unet(model, 5).eval()
    encoder, size = network.encoder, (stride, 2 * stride)
    with torch.no_grad():
        features = encoder(x := pixels(model, 2, *size))
        logits = network(x)
    assert [tuple(f.shape) for f in features] == [
        (2, width, *(n // shrunk for n in x.shape[2:]))
        for width, shrunk in zip(encoder.widths, encoder.strides, strict=True)
    ]
    assert encoder.strides[-1] == stride
    assert logits.shape == (2, 5, *x.shape[2:])


@every_model
def test_another_resolution_than_in_training_works(key: str) -> None:
    model = model_of(key)
    stride = stride_of(model)
    network = build_unet(model, 2).eval()
    with torch.no_grad():
        logits = network(pixels(model, 1, 3 * stride, stride))
        assert logits.shape[-2:] == (3 * stride, stride)


@every_model
def test_fine_maps_reach_the_output_only_through_skip_connections(key: str) -> None:
    torch.manual_seed(0)
    model = model_of(key)
    stride = stride_of(model)
    encoder, decoder = build_encoder(model).eval(), build_decoder(model).eval()
    with torch.no_grad():
        features = encoder(pixels(model, 1, 2 * stride, 2 * stride))
        moved = [f + 1 for f in features[:-1]] + features[-1:]
        assert torch.equal(decoder(features), decoder(moved)) != model.skip_connections
        assert not torch.equal(decoder(features), decoder([*features[:-1], features[-1] + 1]))


@every_model
def test_every_parameter_is_trained(key: str) -> None:
    torch.manual_seed(0)
    model = model_of(key)
    stride = stride_of(model)
    network = build_unet(model, 2)
    network(pixels(model, 2, 2 * stride, 2 * stride)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@every_model
def test_the_trunk_and_the_last_block_are_the_decoder(key: str) -> None:
    model = model_of(key)
    stride = stride_of(model)
    encoder, decoder = build_encoder(model).eval(), build_decoder(model).eval()
    with torch.no_grad():
        features = encoder(pixels(model, 1, stride, stride))
        x = decoder.blocks[-1](trunk(decoder, features), skips_of(decoder, features)[-1])
        assert torch.equal(x, decoder(features))


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_resnet_draws_the_weights_of_torchvision(depth: int) -> None:
    torch.manual_seed(3)
    reference = get_model(f"resnet{depth}", weights=None).state_dict()
    torch.manual_seed(3)
    found = resnet.Body(depth).state_dict()
    assert set(found) == {name for name in reference if not name.startswith("fc.")}
    assert all(torch.equal(value, reference[name]) for name, value in found.items())
    torch.manual_seed(3)
    assert torch.equal(resnet.Encoder(depth).layer4[0].conv1.weight, reference["layer4.0.conv1.weight"])


@pytest.mark.parametrize("depth", [34, 50])
def test_a_deeper_resnet_computes_what_torchvisions_does(depth: int) -> None:
    torch.manual_seed(3)
    reference, encoder = get_model(f"resnet{depth}", weights=None).eval(), resnet.Encoder(depth).eval()
    encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    x = torch.rand(1, 3, 64, 64)
    stem = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
    expected = reference.layer4(reference.layer3(reference.layer2(reference.layer1(stem))))
    assert torch.equal(encoder(x)[-1], expected)


def test_a_resnet_is_torchvisions_without_its_classifier() -> None:
    """Its weights load under their own names, and the pooled last map through `fc` gives its logits."""
    torch.manual_seed(0)
    reference = resnet18(weights=None).eval()
    encoder = resnet.Encoder(18).eval()
    body = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    encoder.load_state_dict(body)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = reference.fc(encoder(x)[-1].mean(dim=(2, 3)))
        torch.testing.assert_close(logits, reference(x))


def test_the_cifar_stem_is_a_3_px_convolution_without_pooling() -> None:
    """3 * 64 * 9 weights in place of 3 * 64 * 49; the first two maps are as large as the image."""
    cifar, imagenet = resnet.Encoder(18, "cifar"), resnet.Encoder(18)
    assert parameters(imagenet) - parameters(cifar) == 3 * 64 * (49 - 9)
    assert [f.shape[-1] for f in cifar(torch.rand(2, 3, 32, 32))] == [32, 32, 16, 8, 4]


def test_p1s_head_has_five_convolutions_and_no_norm() -> None:
    """512-256-128-64-32-3 with 3x3 kernels: 9 (512*256 + 256*128 + 128*64 + 64*32 + 32*3) weights and 483 biases."""
    network = build_unet(schema.ResNetHead(name="resnet-head"), 3)
    weights = 9 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 32 + 32 * 3)
    assert parameters(network.decoder) + parameters(network.head) == weights + 256 + 128 + 64 + 32 + 3
    assert [m for m in network.decoder.modules() if isinstance(m, nn.BatchNorm2d)] == []
    assert parameters(network.encoder) == 21_284_672  # torchvision's 21,797,672 without 512 * 1000 + 1000


def test_a_resnet_unet_is_segmentation_models_pytorchs() -> None:
    """With ours' weights in its order; its head has 3x3 kernels, so that our 1x1 stand in their centres."""
    torch.manual_seed(0)
    ours, theirs = (
        build_unet(model_of("resnet"), 3).eval(),
        smp.Unet("resnet18", encoder_weights=None, classes=3).eval(),
    )
    weights = [value for part in (ours.encoder, ours.decoder, ours.head) for value in part.state_dict().values()]
    weights[-2] = F.pad(weights[-2], (1, 1, 1, 1))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_resnet_unets_decoder_by_hand() -> None:
    """Blocks of two 3x3 convolutions without bias and two norms: inputs 512+256, 256+128, 128+64, 64+64, 32."""
    inputs, outputs = (768, 384, 192, 128, 32), (256, 128, 64, 32, 16)
    expected = sum(9 * (i * o + o * o) + 4 * o for i, o in zip(inputs, outputs, strict=True))
    assert parameters(build_decoder(model_of("resnet"))) == expected
    # without skips the inputs are the block's before alone
    inputs = (512, 256, 128, 64, 32)
    expected = sum(9 * (i * o + o * o) + 4 * o for i, o in zip(inputs, outputs, strict=True))
    assert parameters(build_decoder(model_of("resnet-no-skips"))) == expected


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    align_corners=st.booleans(),
)
def test_resizing_is_torchs_bilinear(height: int, width: int, size: tuple[int, int], align_corners: bool) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(resized(x, size, align_corners), expected, rtol=1e-5, atol=1e-5)


def test_a_mapping_without_name_is_the_plain_unet() -> None:
    model = TypeAdapter(schema.Model).validate_python({"widths": [4, 8]})
    assert model == schema.UNet(widths=(4, 8))
    with pytest.raises(ValueError, match="Input should be False"):
        TypeAdapter(schema.Model).validate_python({"name": "resnet-head", "skip_connections": True})
