"""ConRec: parameter counts of the published model, what each task is to give, and what tasks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.methods import conrec
from pretune.trainables.methods.conrec import ConRec, Projection, Reconstruction, TaskHeads, targets_of, weighted_mean
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.methods.simclr import nt_xent
from pretune.trainables.methods.table import build_method
from pretune.trainables.models import conrec_unet
from pretune.trainables.models.table import build_decoder, build_encoder
from pretune.trainables.models.unet import Decoder, Encoder
from pretune.trainables.views.drawn import View
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of

ALL = ("reconstruction", "original-colors", "mask-location", "black-masks")


def parameters(module: nn.Module | None, trained: bool = False) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def published() -> ConRec:
    model = schema.ConRecUNet(name="conrec-unet")
    parts = Parts(build_encoder(model), lambda: build_decoder(model), 0, 0)
    method = build_method(schema.ConRec(name="conrec"), schema.Views(), parts)
    assert isinstance(method, ConRec)
    return method


def test_the_published_model_has_8641988_parameters() -> None:
    """Dippel et al.'s 8.65 M. The parts, in the builder's order; 512 of attention's are the ones that spread its mask
    over the channels, which the public code (`trainable = False`) and ours do not train."""
    method = published()
    skips = sum(parameters(block.skip) for block in method.decoder.blocks)  # type: ignore[arg-type]
    assert parameters(method.encoder) == 4_689_216
    assert skips == 87_360
    assert parameters(method.pooling) == 173_953
    assert parameters(method.projection) == 592_000
    assert parameters(method.decoder) - skips + parameters(method.heads) == 3_099_459
    assert parameters(method) == 8_641_988
    assert parameters(method, trained=True) == 8_641_988 - 512


def tiny(kind: str = "conrec", tasks: Sequence[str] = ALL, branch: str = "block", skip: bool = True) -> nn.Module:
    torch.manual_seed(0)

    def decoder() -> Decoder:
        return Decoder((4, 8), skip)

    if kind == "reconstruction":
        return Reconstruction(Encoder((4, 8)), decoder, schema.Views(), tasks=tasks, weights={}, branch=branch)
    return ConRec(
        Encoder((4, 8)),
        decoder,
        schema.Views(),
        tasks=tasks,
        weights={},
        branch=branch,
        temperature=0.5,
        reconstruction_weight=100.0,
        pooling="attention",
        hidden=16,
        dim=8,
    )


def batch_of(count: int = 4, views: int = 2, size: int = 16, epoch: int = 0) -> Batch:
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    indices = np.arange(count)
    settings = schema.Views(size=size, color_jitter_probability=1.0)
    return Batch(
        views_of(images, indices, [settings] * views, 3, epoch),
        lambda purpose, n: uniforms(3, purpose, epoch, indices, 0, n),
        images=images,
    )


def test_what_each_task_is_to_give() -> None:
    """One pixel of two is corrupted: it is 1 on the mask, black with black masks, and as it was for the others."""
    pixels = torch.tensor([[[[0.25, 0.75]]]]).expand(1, 3, 1, 2)
    view = View(pixels, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([False]))
    mask = torch.tensor([[[[True, False]]]])
    found = targets_of(("reconstruction", "mask-location", "black-masks"), [view], None, mask)
    assert torch.equal(found["reconstruction"], pixels)
    assert found["mask-location"].flatten().tolist() == [1, 0]
    assert found["black-masks"][0, 0].flatten().tolist() == [0, 0.75]


def test_original_colours_are_the_same_crop_without_jitter() -> None:
    """A second batch of the same draws, with the colours left alone, is the target of the first."""
    batch = batch_of()
    assert batch.images is not None
    plain = schema.Views(size=16, color_jitter=0.0)
    expected = torch.cat([view.pixels for view in views_of(batch.images, np.arange(4), [plain] * 2, 3, 0)])
    mask = torch.zeros(8, 1, 16, 16, dtype=torch.bool)
    target = targets_of(("original-colors",), batch.views, batch.images, mask)["original-colors"]
    torch.testing.assert_close(target, expected)
    assert not torch.allclose(target, torch.cat([view.pixels for view in batch.views]), atol=0.01)


def test_both_views_are_corrupted_each_in_its_own_way() -> None:
    batch = batch_of(64)
    found = conrec.corrupted(batch)
    assert found.pixels.shape == (128, 3, 16, 16)
    assert found.mask.shape == (128, 1, 16, 16)
    assert not torch.equal(found.mask[:64], found.mask[64:])
    clean = torch.cat([view.pixels for view in batch.views])
    assert torch.equal(found.pixels.masked_fill(found.mask, 0), clean.masked_fill(found.mask, 0))


def test_weights_are_relative() -> None:
    """Errors 2 and 5: equal weights (2 + 5) / 2; weights 1 and 3 (2 + 15) / 4."""
    errors = {"reconstruction": torch.tensor(2.0), "black-masks": torch.tensor(5.0)}
    assert float(weighted_mean(errors, {})) == pytest.approx(3.5)
    assert float(weighted_mean(errors, {"black-masks": 3.0})) == pytest.approx(17 / 4)


def test_the_loss_is_a_hundred_times_the_error_and_both_directions_of_the_contrast() -> None:
    method, batch = tiny(tasks=("reconstruction",)), batch_of()
    loss, found = method(batch, 0.0)
    expected = 100 * found["reconstruction_error"] + 2 * found["contrastive_loss"]
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    uniform = float(found["contrastive_loss"]) / math.log(2 * 4 - 1)
    assert float(found["loss_over_uniform"]) == pytest.approx(uniform, rel=1e-5)


def test_both_directions_as_the_public_code_writes_them() -> None:
    """Its loss: cross entropy of view a over (ab, aa) plus that of view b over (ba, bb), each a mean over images, self
    excluded; and twice SimCLR's mean over all views, which the method uses."""
    z1, z2 = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    alone = torch.eye(5) * 1e9
    first = torch.cat([a @ b.T, a @ a.T - alone], dim=1) / 0.5
    second = torch.cat([b @ a.T, b @ b.T - alone], dim=1) / 0.5
    target = torch.arange(5)
    reference = nn.functional.cross_entropy(first, target) + nn.functional.cross_entropy(second, target)
    assert float(2 * nt_xent(z1, z2, 0.5)) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("kind", ["conrec", "reconstruction"])
def test_each_task_can_stand_alone(kind: str, task: str) -> None:
    method = tiny(kind, (task,))
    loss, found = method(batch_of(views=2 if kind == "conrec" else 1), 0.0)
    assert f"{task.replace('-', '_')}_error" in found
    assert [name for name in found if name.endswith("_error")] == [f"{task.replace('-', '_')}_error"]
    loss.backward()
    unused = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert method.requirements == (frozenset({"images"}) if task == "original-colors" else frozenset())


@pytest.mark.parametrize(("branch", "blocks"), [("block", 3), ("output", 0)])
def test_the_first_task_uses_the_decoders_last_block_and_the_others_their_own(branch: str, blocks: int) -> None:
    """`block`: three more last blocks; `output`: one convolution each. Outputs have 3, 3, 1 and 3 channels."""
    decoder = Decoder((4, 8), True)
    heads = TaskHeads(ALL[::-1], decoder, lambda: Decoder((4, 8), True), branch, 3)
    assert heads.tasks == ALL
    assert len(heads.blocks) == blocks
    own = parameters(decoder.blocks[-1])
    assert parameters(heads) == blocks * own + (4 + 1) * (3 + 3 + 1 + 3)


def test_predictions_are_in_the_range_of_pixels_and_of_the_views_size() -> None:
    decoder = Decoder((4, 8), True)
    found = TaskHeads(ALL, decoder, lambda: Decoder((4, 8), True), "block", 3)(
        decoder, Encoder((4, 8))(torch.rand(2, 3, 16, 16)), (16, 16)
    )
    assert {task: tuple(x.shape) for task, x in found.items()} == {
        task: (2, 1 if task == "mask-location" else 3, 16, 16) for task in conrec.TASKS
    }
    assert all(bool(((x >= 0) & (x <= 1)).all()) for x in found.values())


def test_attention_pooling_by_hand() -> None:
    """A mask of .25 and .75 over two pixels with features 1 and 5: (.25 + 3.75) / (.25 + .75) = 4."""
    pooling = conrec_unet.AttentionPooling(8).eval()
    mask = torch.tensor([[[[0.25, 0.75]]]])
    pooling.layers = Constant(mask)  # type: ignore[assignment]
    features = torch.tensor([1.0, 5.0]).view(1, 1, 1, 2).expand(1, 8, 1, 2)
    assert pooling(features)[0].tolist() == pytest.approx([4.0] * 8)


class Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def test_dropout_follows_the_draws_and_not_torchs_state() -> None:
    method = tiny()
    values = []
    for seed, epoch in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(seed)
        batch = batch_of()
        drawn = batch_of(epoch=epoch).draw
        with torch.no_grad():
            features = torch.ones(8, 8, 4, 4) + torch.arange(16.0).view(4, 4)
            assert isinstance(method, ConRec)
            assert method.pooling is not None
            for layer in method.pooling.modules():  # batch statistics are the same each time, running ones unused
                layer.training = True
            values.append(method.pooled(features, batch._replace(draw=drawn)))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_the_projections_last_norm_has_no_shift_and_no_layer_a_bias() -> None:
    """512 * 512 * 2 + 512 * 128 weights, 2 * 512 for each hidden norm, 128 scales."""
    projection = Projection(512, 512, 128)
    assert parameters(projection) == 2 * (512 * 512 + 1024) + 512 * 128 + 128
    linear = [layer for layer in projection.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linear)
    assert float(linear[0].weight.detach().std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ["reconstruction", "reconstruction"]}, "tasks: each at most once"),
        ({"task_weights": {"black-masks": 2.0}}, "task_weights: black-masks is not among the tasks"),
        ({"tasks": []}, "at least 1 item"),
    ],
)
def test_unusable_tasks_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        schema.ConRec.model_validate({"name": "conrec"} | settings)


def test_elastic_views_are_refused_where_targets_cannot_follow() -> None:
    body = {"data": "x", "epochs": 1, "views": {"extra": ["elastic"]}}
    for method in ({"name": "conrec", "tasks": ["original-colors"]}, {"name": "segmentation"}):
        with pytest.raises(ValueError, match=r"views\.extra: elastic moves pixels"):
            schema.Pretrain.model_validate(body | {"method": method})
    assert schema.Pretrain.model_validate(body | {"method": {"name": "conrec"}}).views.extra == ("elastic",)
