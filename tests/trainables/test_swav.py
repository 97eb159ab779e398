"""SwAV's Sinkhorn and loss against arithmetic by hand and Lightly; queue, frozen and normalised prototypes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import Tensor
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.distributed import ALONE
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.queue import FeatureQueue
from pretune.trainables.methods.recipes import with_local
from pretune.trainables.methods.swav import SwAV, sinkhorn, swapped_prediction
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of

VIEWS = schema.Views(size=8)
PROTOTYPES = 10


def build(queue: int = 12, local: int = 2) -> SwAV:
    torch.manual_seed(0)
    recipes = with_local((VIEWS, VIEWS), VIEWS, local, 4, (0.05, 0.14), None)
    return SwAV(
        Encoder((4, 6)),
        recipes,
        hidden=12,
        dim=5,
        prototypes=PROTOTYPES,
        temperature=0.1,
        epsilon=0.05,
        iterations=3,
        queue=queue,
        queue_from_epoch=1,
        freeze_prototypes_epochs=1,
    )


def batch_of(method: SwAV, epoch: int = 0, count: int = 6) -> Batch:
    images = torch.randint(0, 256, (count, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(count)
    views = views_of(images, indices, method.recipes, 0, 0)
    return Batch(views, lambda what, n: uniforms(0, what, 0, indices, 0, n), epoch=epoch)


def cosines(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def queue_of(method: SwAV, view: int) -> FeatureQueue:
    queue = method.queues[view]
    assert isinstance(queue, FeatureQueue)
    return queue


def test_sinkhorn_worked_by_hand() -> None:
    """exp(scores) = (1 3; 1 1), one iteration: columns sum to 2 and 4: (1/2 3/4; 1/2 1/4); rows: 2/5 3/5; 2/3 1/3."""
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    expected = torch.tensor([[2 / 5, 3 / 5], [2 / 3, 1 / 3]])
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), expected)


@given(seed=st.integers(0, 1000), n=st.integers(1, 12), k=st.integers(2, 12), epsilon=st.floats(0.03, 1))
@settings(deadline=None, max_examples=50)
def test_sinkhorn_is_lightlys(seed: int, n: int, k: int, epsilon: float) -> None:
    scores = cosines(seed, n, k)
    torch.testing.assert_close(sinkhorn(scores, epsilon, 3), lightly_sinkhorn(scores, 3, epsilon), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_many_iterations_use_all_prototypes_equally(seed: int) -> None:
    """Rows sum to 1, columns to N / K."""
    q = sinkhorn(cosines(seed, 12, 4), 0.5, 200)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(q.sum(dim=0), torch.full((4,), 3.0), atol=1e-3, rtol=0)


def test_a_small_epsilon_neither_overflows_nor_gives_nan() -> None:
    """exp(1 / 0.005) is beyond float32."""
    q = sinkhorn(cosines(0, 8, 6), 0.005, 3)
    assert bool(q.isfinite().all())
    torch.testing.assert_close(q.sum(dim=1), torch.ones(8))


def test_rows_of_minus_infinity_take_no_part() -> None:
    scores = cosines(0, 8, 6)
    padded = torch.cat([scores, torch.full((5, 6), -math.inf)])
    q = sinkhorn(padded, 0.05, 3)
    torch.testing.assert_close(q[:8], sinkhorn(scores, 0.05, 3))
    assert torch.equal(q[8:], torch.zeros(5, 6))


@given(seed=st.integers(0, 1000), local=st.integers(0, 3), queued=st.sampled_from([0, 7]))
@settings(deadline=None, max_examples=30)
def test_loss_is_lightlys(seed: int, local: int, queued: int) -> None:
    """Codes from batch and queue, then all pairs, in value and gradient."""
    start, queue = cosines(seed, 2 + local, 6, PROTOTYPES), cosines(seed + 1, 2, queued, PROTOTYPES)
    ours, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    both = torch.cat([ours.detach()[:2], queue], dim=1)
    codes = torch.stack([sinkhorn(view, 0.05, 3)[:6] for view in both])
    value = swapped_prediction(ours, codes, 0.1)
    reference = SwaVLoss()(list(other[:2]), list(other[2:]), list(queue) if queued else None)
    torch.autograd.backward([value, reference.sum()])
    torch.testing.assert_close(value, reference[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=0)


def test_loss_of_a_uniform_collapse_is_log_of_the_prototypes() -> None:
    scores = torch.zeros(3, 4, 7)
    codes = torch.stack([sinkhorn(view, 0.05, 3) for view in scores[:2]])
    assert float(swapped_prediction(scores, codes, 0.1)) == pytest.approx(math.log(7), abs=1e-5)


def test_prototypes_are_unit_vectors_at_first_and_after_every_step() -> None:
    method = build()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(PROTOTYPES))
    with torch.no_grad():
        method.prototypes.weight.mul_(torch.arange(1, PROTOTYPES + 1)[:, None])
    method.after_step(0.1)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(PROTOTYPES))


def test_prototypes_have_no_gradient_in_the_first_epoch() -> None:
    method = build()
    for epoch, frozen in ((0, True), (1, False)):
        method(batch_of(method), 0.0)[0].backward()
        method.after_backward(epoch)
        assert (method.prototypes.weight.grad is None) == frozen


def test_the_queue_fills_from_its_epoch_on() -> None:
    """Nothing in epoch 0; then 6 projections of unit length per step and view, each view in its own queue."""
    method = build()
    for epoch, seen in ((0, 0), (1, 6), (1, 12)):
        method(batch_of(method, epoch), 0.0)
        rows = method.new_rows
        method.after_step(0.1)
        assert [int(queue_of(method, view).seen) for view in (0, 1)] == [seen, seen]
    assert torch.equal(queue_of(method, 1).rows[6:], rows[1])
    torch.testing.assert_close(queue_of(method, 0).rows.norm(dim=1), torch.ones(12))


def test_the_queue_counts_once_it_is_full() -> None:
    """Codes of a part-filled queue are those of the batch alone; those of a full one are balanced over both."""
    method = build()
    scores, projections = cosines(0, 2, 6, PROTOTYPES), F.normalize(cosines(1, 2, 6, 5), dim=2)
    alone = torch.stack([sinkhorn(view, 0.05, 3) for view in scores])
    for full in (False, True):
        with torch.no_grad():
            queued = torch.stack([queue_of(method, view).rows @ method.prototypes.weight.T for view in (0, 1)])
        both = torch.stack([sinkhorn(view, 0.05, 3)[:6] for view in torch.cat([scores, queued], dim=1)])
        codes = method._codes(scores, projections, 1)
        torch.testing.assert_close(codes, both if full else alone)
        assert not torch.allclose(alone, both)
        method.after_step(0.1)
        method._codes(scores, projections.flip(1), 1)
        method.after_step(0.1)


def test_no_queue_in_evaluation_or_where_there_is_none() -> None:
    for method in (build().eval(), build(queue=0)):
        method(batch_of(method, 5), 0.0)
        assert method.new_rows == []


def test_a_queue_smaller_than_the_batch_is_refused() -> None:
    method = build(queue=4)
    with pytest.raises(ValueError, match=r"queue of 4 .*batch of 6"):
        method(batch_of(method, 1), 0.0)


def test_small_views_get_no_codes_and_are_smaller() -> None:
    method = build(local=3)
    assert [(view.size, view.crop) for view in method.recipes[2:]] == [(4, (0.05, 0.14))] * 3
    seen: list[int] = []
    method.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    method(batch_of(method), 0.0)
    assert seen == [8, 4]


def test_diagnostics_count_the_prototypes_in_use() -> None:
    method = build()
    codes = torch.zeros(2, 6, PROTOTYPES)
    codes[..., 3] = 1.0
    codes[1, 0, 3], codes[1, 0, 7] = 0.0, 1.0
    signs = method._signs(torch.tensor(math.log(PROTOTYPES)), codes)
    assert float(signs["prototypes_used"]) == pytest.approx(2 / PROTOTYPES)
    assert float(signs["loss_over_uniform"]) == pytest.approx(1.0)


def test_scores_stay_in_float32_under_autocast() -> None:
    """Of this batch and of the queue: cosines in bfloat16 would be balanced into other codes at epsilon 0.05."""
    method = build()
    z = F.normalize(cosines(0, 8, 5), dim=1)
    queue_of(method, 0).push(F.normalize(cosines(1, 12, 5), dim=1))
    plain, queued = method._scores(z), method._queued(0, ALONE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method._scores(z), plain)
        assert torch.equal(method._queued(0, ALONE), queued)
    assert plain.dtype == torch.float32
    assert torch.isfinite(queued).all()
