"""DINO's loss and centre against arithmetic by hand and Lightly; schedules, frozen last layer, multi-crop, export."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.methods.dino import DINO, DINOHead, dino_loss, teacher_temperature
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.recipes import asymmetric, with_local
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of

VIEWS = schema.Views(size=8)
PROTOTYPES = 10


def build(
    local: int = 2,
    export: Literal["teacher", "student"] = "teacher",
    warmup: tuple[float, float, int] = (0.04, 0.04, 0),
) -> DINO:
    torch.manual_seed(0)
    recipes = with_local(asymmetric(VIEWS, (1.0, 0.1), (0.0, 0.2)), VIEWS, local, 4, (0.05, 0.4), 0.5)
    encoder = Encoder((4, 6))
    start, end, epochs = warmup
    return DINO(
        encoder,
        recipes,
        DINOHead(6, hidden=12, bottleneck=5, prototypes=PROTOTYPES, norm=True),
        student_temperature=0.1,
        teacher_temperature=end,
        teacher_temperature_start=start,
        teacher_warmup_epochs=epochs,
        center_momentum=0.9,
        momentum=0.9,
        momentum_end=1.0,
        freeze_last_epochs=1,
        export=export,
    )


def batch_of(method: DINO, count: int = 6, epoch: int = 0) -> Batch:
    images = torch.randint(0, 256, (count, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(count)
    views = views_of(images, indices, method.recipes, 0, 0)
    return Batch(views, lambda what, n: uniforms(0, what, 0, indices, 0, n), epoch=epoch)


def test_loss_worked_by_hand() -> None:
    """Two views, two outputs. The teacher's softmax at T 1 is (3/4, 1/4) for view 1 and (1/2, 1/2) for view 2; the
    student's is (1/2, 1/2) for view 1 and (1/4, 3/4) for view 2.

    H(t1, s2) = 3/4 ln 4 + 1/4 ln 4/3, and H(t2, s1) = ln 2.
    """
    teacher = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]])
    student = torch.tensor([[[0.0, 0.0]], [[0.0, math.log(3)]]])
    expected = (0.75 * math.log(4) + 0.25 * math.log(4 / 3) + math.log(2)) / 2
    assert float(dino_loss(student, teacher, torch.zeros(2), 1.0, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_loss_of_a_uniform_collapse_is_log_of_the_outputs() -> None:
    loss = dino_loss(torch.zeros(4, 3, 7), torch.zeros(2, 3, 7), torch.zeros(7), 0.1, 0.04)
    assert float(loss) == pytest.approx(math.log(7), abs=1e-5)


@given(seed=st.integers(0, 1000), views=st.integers(2, 5), t=st.floats(0.03, 0.2))
@settings(deadline=None, max_examples=30)
def test_loss_and_centre_are_lightlys(seed: int, views: int, t: float) -> None:
    """Two batches after another: value, gradient, and the centre between them."""
    generator = torch.Generator().manual_seed(seed)
    theirs = DINOLoss(PROTOTYPES, t, t, 0, student_temp=0.1, center_momentum=0.9)
    method = build()
    for _ in range(2):
        start = torch.rand(views, 6, PROTOTYPES, generator=generator) * 2 - 1
        teacher = torch.rand(2, 6, PROTOTYPES, generator=generator) * 2 - 1
        ours, other = start.clone().requires_grad_(), start.clone().requires_grad_()
        value = dino_loss(ours, teacher, method.center, 0.1, t)
        reference = theirs(list(teacher), list(other))
        torch.autograd.backward([value, reference])
        method._move_center(teacher)
        torch.testing.assert_close(value, reference, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=0)
        torch.testing.assert_close(method.center, theirs.center.flatten(), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")  # Lightly's
@pytest.mark.parametrize("norm", [False, True])
def test_head_is_lightlys(norm: bool) -> None:
    """The weights of Lightly's head, whose last layer is weight-normalised with a scale of 1, give equal outputs."""
    theirs = DINOProjectionHead(6, 12, 5, PROTOTYPES, batch_norm=norm)
    ours = DINOHead(6, hidden=12, bottleneck=5, prototypes=PROTOTYPES, norm=norm)
    linear = [module for module in theirs.layers if isinstance(module, torch.nn.Linear)]
    own = [module for module in ours.layers if isinstance(module, torch.nn.Linear)]
    for target, source in zip(own, linear, strict=True):
        target.weight.data.copy_(source.weight)
        target.bias.data.copy_(source.bias if source.bias is not None else torch.zeros_like(target.bias))
    ours.prototypes.weight.data.copy_(theirs.last_layer.weight)
    x = torch.randn(9, 6)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_outputs_are_cosines() -> None:
    """Whatever the length of the last layer's rows."""
    head = DINOHead(6, hidden=12, bottleneck=5, prototypes=PROTOTYPES, norm=False)
    x = torch.randn(9, 6)
    before = head(x)
    with torch.no_grad():
        head.prototypes.weight *= 3.0
    torch.testing.assert_close(head(x), before)
    assert float(before.detach().abs().max()) <= 1 + 1e-6


def test_teacher_temperature_warms_up_like_linspace() -> None:
    """numpy.linspace over the epochs of the warm-up, as in the authors' code, then the end value."""
    values = [teacher_temperature(0.04, 0.07, 4, epoch) for epoch in range(6)]
    np.testing.assert_allclose(values, [*np.linspace(0.04, 0.07, 4), 0.07, 0.07])
    assert teacher_temperature(0.04, 0.07, 0, 0) == 0.07
    assert teacher_temperature(0.04, 0.07, 1, 0) == 0.04


def test_the_temperature_is_that_of_the_epoch() -> None:
    method = build(warmup=(0.04, 0.07, 3))
    assert [method._temperature(epoch) for epoch in (0, 2)] == [0.04, 0.07]
    assert method.eval()._temperature(0) == 0.07  # validation losses of different epochs are comparable


def test_centre_moves_after_the_loss() -> None:
    """From 0 to a tenth of the teacher's mean; the loss was still with 0."""
    method = build()
    batch = batch_of(method)
    loss, _ = method(batch, 0.0)
    again = build()
    large = torch.cat([view.pixels for view in batch.views[:2]])
    with torch.no_grad():
        teacher = again.teacher_head(again.teacher(large)[-1].mean(dim=(2, 3)))
    torch.testing.assert_close(method.center, 0.1 * teacher.mean(dim=0))
    torch.testing.assert_close(again(batch, 0.0)[0], loss)


def test_small_views_are_smaller_and_go_to_the_student_only() -> None:
    method = build(local=3)
    assert [view.size for view in method.recipes] == [8, 8, 4, 4, 4]
    assert [view.crop for view in method.recipes[2:]] == [(0.05, 0.4)] * 3
    assert [view.blur for view in method.recipes] == [1.0, 0.1, 0.5, 0.5, 0.5]
    seen: dict[str, list[int]] = {"student": [], "teacher": []}
    for name in seen:
        module = getattr(method, name)
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].shape[-1]))
    method(batch_of(method), 0.0)
    assert seen == {"student": [8, 4], "teacher": [8]}


def test_it_works_without_small_views() -> None:
    method = build(local=0)
    loss, _ = method(batch_of(method), 0.0)
    assert 0 < float(loss.detach()) < 10


def test_last_layer_has_no_gradient_in_the_first_epoch() -> None:
    method = build()
    for epoch, frozen in ((0, True), (1, False)):
        method(batch_of(method), 0.0)[0].backward()
        method.after_backward(epoch)
        assert (method.head.prototypes.weight.grad is None) == frozen


@pytest.mark.parametrize("export", ["teacher", "student"])
def test_export_is_the_one_asked_for(export: Literal["teacher", "student"]) -> None:
    """Only the student is trained, only the teacher follows; `encoder` is the one that fine-tuning loads."""
    method = build(export=export)
    assert method.encoder is getattr(method, export)
    assert method.student is not method.teacher
    method(batch_of(method), 0.0)[0].backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    weight, following = (next(network.parameters()) for network in (method.student, method.teacher))
    with torch.no_grad():
        weight += 1.0
    before = following.clone()
    method.after_step(0.0)
    torch.testing.assert_close(following, before + 0.1)


def test_an_exported_teacher_has_statistics_of_its_own() -> None:
    """Batch norm of the teacher has seen the large views, once."""
    method = build()
    batch = batch_of(method)
    first: Tensor = method.teacher.levels[0][0](torch.cat([view.pixels for view in batch.views[:2]])).detach()
    method(batch, 0.0)
    torch.testing.assert_close(method.encoder.levels[0][1].running_mean, 0.1 * first.mean(dim=(0, 2, 3)))


def test_diagnostics_tell_a_uniform_collapse() -> None:
    """With a last layer of equal rows every output is alike: loss and teacher entropy are log K."""
    method = build()
    for head in (method.head, method.teacher_head):
        head.prototypes.weight.data.copy_(F.normalize(torch.ones(PROTOTYPES, 5), dim=1))
    _, signs = method(batch_of(method), 0.0)
    assert float(signs["loss_over_uniform"]) == pytest.approx(1.0, abs=1e-4)
    assert float(signs["teacher_entropy_over_uniform"]) == pytest.approx(1.0, abs=1e-4)


def test_outputs_stay_in_float32_under_autocast() -> None:
    """Cosines are those of the same bottleneck without autocast: in bfloat16 a teacher at 0.04 has other targets."""
    torch.manual_seed(0)
    head = DINOHead(6, hidden=12, bottleneck=5, prototypes=PROTOTYPES, norm=True).eval()
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck = head.layers(torch.randn(8, 6))
    expected = F.normalize(bottleneck.float(), dim=1) @ F.normalize(head.prototypes.weight, dim=1).T
    head.layers = nn.Identity()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(bottleneck)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-6)
