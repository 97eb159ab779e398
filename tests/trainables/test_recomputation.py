"""Activation checkpointing: every number as without it, and less memory, counted."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from cases import STREAMS
from pydantic import TypeAdapter
from test_contract_methods import METHOD_SETTINGS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretune.search_spaces import schema
from pretune.trainables import recomputation
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.resident.build import load_images
from pretune.trainables.data.splits import Split
from pretune.trainables.files import HISTORY, WEIGHTS
from pretune.trainables.finetune import finetune
from pretune.trainables.loop import RunContext, autocast
from pretune.trainables.memory import SavedBytes, step_memory
from pretune.trainables.models.interface import Segmented
from pretune.trainables.models.table import build_encoder, build_unet
from pretune.trainables.pretrain import pretrain
from pretune.trainables.recomputation import recompute_activations

CPU = torch.device("cpu")
SPLIT = Split(train=np.arange(16), val=np.arange(16, 20), test=np.arange(20, 24))
MODELS: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet", "widths": [4, 8]},
    "unet without skips and norm": {"name": "unet", "widths": [4, 8], "skip_connections": False, "norm": "none"},
    "conrec-unet": {"name": "conrec-unet", "widths": [4, 8]},
    "genesis-unet": {"name": "genesis-unet", "widths": [4, 8], "dimensions": 2},
    "resnet-unet": {"name": "resnet-unet", "depth": 18, "decoder_widths": [8, 8, 8, 4, 4]},
    "resnet-head": {"name": "resnet-head", "depth": 18},
    "timm resnet": {"name": "timm-unet", "backbone": "test_resnet", "decoder_widths": [8] * 5},
    "timm convnext": {"name": "timm-unet", "backbone": "test_convnext", "decoder_widths": [8] * 5},
    "timm efficientnet": {"name": "timm-unet", "backbone": "test_efficientnet", "decoder_widths": [8] * 5},
    "timm vgg": {"name": "timm-unet", "backbone": "vgg11_bn", "decoder_widths": [8] * 5},
    "vit-pyramid": {"name": "vit-pyramid", "backbone": "test_vit3", "pyramid_width": 8, "decoder_width": 4},
}
UNET = schema.UNet(widths=(4, 8))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """24 scenes of 32 px with masks, regions and depth, and classes invented for the methods that need some."""
    settings = schema.Scenes(dataset="scenes", images=24, cache_size=32)
    return dataclasses.replace(load_images(settings, None, tmp_path_factory.mktemp("c")), labels=np.arange(24) % 3)


def model_of(name: str) -> schema.Model:
    return TypeAdapter(schema.Model).validate_python(MODELS[name])


def steps_of(network: nn.Module, precision: str = "float32") -> list[dict[str, Tensor]]:
    """Loss, gradients and state after each step of SGD on random pixels, two passes to a step as of two views."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(2):
        x, y = torch.rand(2, 3, 3, 32, 32, generator=draw)
        with autocast(precision, CPU):
            loss = (network(x) - network(y)).float().square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
        found.append({"loss": loss} | gradients | network.state_dict())
        found[-1] = {name: value.detach().clone() for name, value in found[-1].items()}
    return found


class Recomputed:
    """Bytes that the second passes keep: those of the largest segment."""

    def __init__(self, network: nn.Module) -> None:
        self.largest, self._parameters = 0, list(network.parameters())

    def __enter__(self) -> Recomputed:
        def check(frame: Any, gid: int) -> None:
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in frame.recomputed[gid].values()}
            own = [x for x in frame.get_inputs() if isinstance(x, Tensor)]
            given = {x.untyped_storage().data_ptr() for x in (*own, *self._parameters)}
            self.largest = max(self.largest, sum(s.nbytes() for at, s in storages.items() if at not in given))

        self._patch = mock.patch.object(
            torch.utils.checkpoint._CheckpointFrame, "check_recomputed_tensors_match", check
        )
        self._patch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(*error)


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of operators took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size, at = storage.nbytes(), storage._cdata

        def gone(_: object) -> None:
            self._now -= size
            del self._alive[at]

        if at not in self._alive:
            self._alive[at] = weakref.ref(storage, gone)
            self._now += size
            self.peak = max(self.peak, self._now)


def assert_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


# ------------------------------------------------------------------------------------------------------ equal numbers


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in MODELS), ("unet", "bfloat16"), ("vit-pyramid", "bfloat16")]
)
def test_steps_are_bit_for_bit_those_without(name: str, precision: str) -> None:
    """Losses, gradients, weights, running statistics and their counters."""
    torch.manual_seed(0)
    plain = build_unet(model_of(name), 2).train()
    checkpointed = copy.deepcopy(plain)
    recompute_activations(checkpointed, True)
    found, kept = [], []
    for network in (plain, checkpointed):
        with SavedBytes() as saved:
            found.append(steps_of(network, precision))
        kept.append(saved.total)
    assert kept[1] < kept[0]
    for one, two in zip(*found, strict=True):
        assert_bits(one, two)


@pytest.mark.parametrize("method", sorted(METHOD_SETTINGS))
def test_a_pretraining_ends_in_the_same_bytes(method: str, data: ImageSet, tmp_path: Path) -> None:
    body = {"data": "d", "batch_size": 8, "steps": 3, "views": {"size": 16}}
    settings = schema.Pretrain.model_validate(body | {"method": METHOD_SETTINGS[method] | {"name": method}})
    ends = []
    for asked in (False, True):
        out = tmp_path / str(asked)
        out.mkdir()
        context = RunContext(out, CPU, activation_checkpointing=asked)
        metrics = pretrain(settings, UNET, data, SPLIT, STREAMS, context)
        ends.append((metrics, (out / HISTORY).read_bytes(), (out / WEIGHTS).read_bytes()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("unet", {}),
        ("unet", {"freeze": "encoder"}),
        ("unet", {"freeze": "encoder", "unfreeze_epoch": 1, "unfreeze_every": 1}),
        ("unet", {"checkpoint": "best", "precision": "bfloat16"}),
        ("timm resnet", {}),
        ("timm resnet", {"freeze": "encoder", "unfreeze_epoch": 1, "unfreeze_every": 1}),
    ],
)
def test_a_fine_tuning_ends_in_the_same_bytes(name: str, how: dict[str, Any], data: ImageSet, tmp_path: Path) -> None:
    settings = schema.Finetune.model_validate({"data": "d", "size": 32, "batch_size": 8, "epochs": 3} | how)
    ends = []
    for asked in (False, True):
        out = tmp_path / str(asked)
        out.mkdir()
        context = RunContext(out, CPU, activation_checkpointing=asked)
        metrics = finetune(settings, model_of(name), data, SPLIT, STREAMS, context, on_test=True)
        ends.append((metrics, (out / HISTORY).read_bytes(), (out / WEIGHTS).read_bytes()))
    assert ends[0] == ends[1]


def test_a_stage_checkpoints_where_it_is_asked_to(data: ImageSet, tmp_path: Path) -> None:
    """Without this the tests above could compare a setting with itself."""
    settings = schema.Finetune.model_validate({"data": "d", "size": 32, "batch_size": 8, "steps": 1})
    kept = []
    for asked in (False, True):
        (tmp_path / str(asked)).mkdir()
        context = RunContext(tmp_path / str(asked), CPU, activation_checkpointing=asked)
        with SavedBytes() as saved:
            finetune(settings, UNET, data, SPLIT, STREAMS, context, on_test=False)
        kept.append(saved.total)
    assert kept[1] < 0.6 * kept[0]


class Dropping(Segmented):
    """Segments with dropout, a running maximum that no batch norm keeps, and an input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Dropped() for _ in range(3))

    def segments(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, scale=2.0)
        return x


class Dropped(nn.Module):
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.GELU())
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor, scale: float) -> Tensor:
        x = self.layers(x) * scale
        if self.training:
            self.largest.add_(x.detach().max())
        return x


def test_random_numbers_and_any_buffers_are_those_of_the_first_pass() -> None:
    torch.manual_seed(0)
    plain = Dropping().train()
    checkpointed = copy.deepcopy(plain)
    recompute_activations(checkpointed, True)
    ends = []
    for network in (plain, checkpointed):
        torch.manual_seed(1)
        ends.append((steps_of(network), torch.rand(())))  # the generator goes on from the same place
    assert ends[0][1] == ends[1][1]
    for one, two in zip(ends[0][0], ends[1][0], strict=True):
        assert_bits(one, two)


def test_two_backward_passes_through_one_graph() -> None:
    torch.manual_seed(0)
    network = build_unet(UNET, 2).train()
    recompute_activations(network, True)
    loss = network(torch.rand(2, 3, 16, 16)).square().mean()
    before = {name: value.clone() for name, value in network.named_buffers()}
    first, second = (torch.autograd.grad(loss, list(network.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert_bits(before, dict(network.named_buffers()))


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["unet", "timm convnext", "vit-pyramid"])
def test_a_pass_without_gradients_keeps_nothing_and_computes_nothing_again(name: str) -> None:
    """Target networks, frozen encoders, scoring."""
    encoder = build_encoder(model_of(name))
    recompute_activations(encoder, True)
    x = torch.rand(2, 3, 32, 32)
    with mock.patch.object(recomputation, "checkpoint", side_effect=AssertionError), SavedBytes() as saved:
        with torch.no_grad():
            encoder(x)
        encoder.requires_grad_(False)(x)
    assert saved.total == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_says_what_is_kept_and_what_is_computed_again(name: str) -> None:
    """Kept between the passes: to the byte. Computed again: the largest segment's, by what its passes hold."""
    torch.manual_seed(0)
    network = build_unet(model_of(name), 2).train()
    x = torch.rand(2, 3, 32, 32)

    def step() -> None:
        network(x).square().mean().backward()

    with SavedBytes(network.parameters()) as plain:
        step()
    memory = step_memory(network, schema.Adam(), step, 2)
    assert memory.plain.per_image == -(-plain.total // 2)
    recompute_activations(network, True)
    with SavedBytes(network.parameters()) as kept, Recomputed(network) as again:
        step()
    assert memory.checkpointed.per_image == -(-(kept.total + again.largest) // 2)
    assert memory.checkpointed.fixed == memory.plain.fixed
    assert memory.checkpointed.per_image < memory.plain.per_image


def test_the_peak_of_live_memory_falls_as_the_formula_says() -> None:
    """Bytes of all tensors alive at once in a step, seen operator by operator."""
    torch.manual_seed(0)
    network, x = build_unet(schema.UNet(widths=(8, 16, 32)), 2).train(), torch.rand(8, 3, 64, 64)

    def step() -> None:
        network(x).square().mean().backward()

    step()  # gradients are there
    memory = step_memory(network, None, step, 8)
    peaks = []
    for asked in (False, True):
        recompute_activations(network, asked)
        with LiveBytes() as live:
            step()
        peaks.append(live.peak)
    saved = 8 * (memory.plain.per_image - memory.checkpointed.per_image)
    assert peaks[0] - peaks[1] == pytest.approx(saved, rel=0.25)
    assert peaks[1] < 0.7 * peaks[0]
