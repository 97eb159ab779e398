"""MoCo v2's and v3's losses against arithmetic by hand, an obvious reference and Lightly; queue, splits, momentum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from torch import Tensor
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.trainables.methods.moco import MoCo, MoCoV3, batch_contrast, info_nce
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.methods.recipes import asymmetric
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.random import uniforms
from pretune.trainables.views.two_views import views_of

VIEWS = schema.Views(size=8)
QUEUE = 16


def batch_of(count: int = 8) -> Batch:
    images = torch.randint(0, 256, (count, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(count)
    return Batch(views_of(images, indices, [VIEWS] * 2, 0, 0), lambda what, n: uniforms(0, what, 0, indices, 0, n))


def build(splits: int = 2, symmetric: bool = False, queue: int = QUEUE) -> MoCo:
    torch.manual_seed(0)
    return MoCo(
        Encoder((4, 6)),
        VIEWS,
        temperature=0.2,
        hidden=12,
        dim=8,
        queue=queue,
        momentum=0.9,
        momentum_end=0.9,
        bn_splits=splits,
        symmetric=symmetric,
    )


def build_v3() -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(
        Encoder((4, 6)),
        asymmetric(VIEWS, None, (0.0, 0.2)),
        temperature=1.0,
        hidden=12,
        dim=8,
        momentum=0.9,
        momentum_end=1.0,
    )


def value_and_gradient(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    x = start.clone().requires_grad_()
    value = loss(x)
    value.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return value.detach(), x.grad


def test_loss_worked_by_hand() -> None:
    """q.k = 1 and two negatives at cosine 0, T = 0.5: -log(e^2 / (e^2 + 2))."""
    q = torch.tensor([[3.0, 0.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert float(info_nce(q, q / 2, queue, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_loss_of_a_collapsed_encoder() -> None:
    """All keys alike: the key is one of 1 + K."""
    ones = torch.ones(4, 3)
    loss = info_nce(ones, ones, F.normalize(torch.ones(QUEUE, 3), dim=1), 0.2)
    assert float(loss) == pytest.approx(build().uniform_loss(), abs=1e-5)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.05, 2))
@settings(deadline=None, max_examples=30)
def test_loss_is_lightlys(seed: int, temperature: float) -> None:
    """Lightly's NT-Xent with a memory bank that holds our queue, in value and gradient."""
    start, keys = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed))
    theirs = NTXentLoss(temperature, memory_bank_size=(12, 5))
    queue = theirs.memory_bank.bank.clone()
    ours = value_and_gradient(lambda q: info_nce(q, keys, queue, temperature), start)
    other = value_and_gradient(lambda q: theirs(q, keys), start)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.05, 2))
@settings(deadline=None, max_examples=30)
def test_v3_loss_is_the_definition(seed: int, temperature: float) -> None:
    """-2 T mean of log( exp(q_i.k_i / T) / sum over j of exp(q_i.k_j / T) ), term by term in float64."""
    q, k = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed))

    def cosine(i: int, j: int) -> float:
        a, b = q[i].double(), k[j].double()
        return float(a @ b / (a.norm() * b.norm()))

    terms = []
    for i in range(6):
        exps = [math.exp(cosine(i, j) / temperature) for j in range(6)]
        terms.append(-math.log(exps[i] / sum(exps)))
    assert float(batch_contrast(q, k, temperature)) == pytest.approx(2 * temperature * sum(terms) / 6, abs=1e-5)


@pytest.mark.parametrize(
    "loss", [lambda q: info_nce(q, q, F.normalize(q.float()), 0.2), lambda q: batch_contrast(q, q, 1)]
)
def test_losses_stay_in_float32_under_autocast(loss: Callable[[Tensor], Tensor]) -> None:
    """The same value as without autocast, to the last bit."""
    q = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(q)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(q))


def test_keys_join_the_queue_after_the_step() -> None:
    """The loss is with the queue of earlier batches; then this batch's keys, normalised, take its first places."""
    method, batch = build(), batch_of()
    before = method.queue.rows.clone()
    method(batch, 0.0)[0].backward()
    assert torch.equal(method.queue.rows, before)
    keys = method.new_keys[0]
    method.after_step(0.1)
    assert torch.equal(method.queue.rows[:8], keys)
    assert torch.equal(method.queue.rows[8:], before[8:])
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(8))


def test_symmetric_keys_come_from_both_views() -> None:
    method = build(symmetric=True)
    method(batch_of(), 0.0)
    method.after_step(0.1)
    assert int(method.queue.seen) == 16


def test_no_keys_in_evaluation() -> None:
    method = build().eval()
    method(batch_of(), 0.0)
    method.after_step(0.1)
    assert int(method.queue.seen) == 0


def test_queries_of_a_part_depend_on_their_part_alone() -> None:
    """With two splits the first half's features do not change with the second half's pixels; with one they do."""
    pixels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.cat([pixels[:4], pixels[4:] * 0.1])
    for splits, alone in ((2, True), (1, False)):
        method = build(splits)
        a, b = (method._features(method.encoder, x)[:4] for x in (pixels, other))
        assert torch.allclose(a, b) == alone


def test_keys_come_back_in_the_order_of_the_images() -> None:
    """Without batch norm a key depends on its own image, whatever the shuffle."""
    torch.manual_seed(0)
    method = MoCo(
        Encoder((4, 6), norm=False),
        VIEWS,
        temperature=0.2,
        hidden=12,
        dim=8,
        queue=QUEUE,
        momentum=0.9,
        momentum_end=0.9,
        bn_splits=2,
        symmetric=False,
    )
    pixels = torch.rand(8, 3, 8, 8)
    shuffled = method._keys(pixels, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]))
    torch.testing.assert_close(shuffled, method._keys(pixels, torch.arange(8)))


def test_a_batch_too_small_for_the_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="bn_splits 4 needs 8 images, got 6"):
        build(splits=4)(batch_of(6), 0.0)


def test_a_queue_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queue of 4 .*batch of 8"):
        build(queue=4)(batch_of(), 0.0)


@pytest.mark.parametrize("build_method", [build, build_v3])
def test_gradients_reach_the_query_network_only(build_method: Callable[[], MoCo | MoCoV3]) -> None:
    method = build_method()
    method(batch_of(), 0.0)[0].backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("key_"), name


def test_key_network_follows() -> None:
    """0.9 * old + 0.1 * new."""
    method = build()
    old = method.key_head[0].weight.clone()
    with torch.no_grad():
        method.head[0].weight += 1.0
    method.after_step(0.5)
    torch.testing.assert_close(method.key_head[0].weight, old + 0.1)


def test_v3_forward_is_the_sum_of_both_directions() -> None:
    method, batch = build_v3().eval(), batch_of()
    with torch.no_grad():
        loss, _ = method(batch, 0.0)
        k = [method.projector(method.encoder(view.pixels)[-1].mean(dim=(2, 3))) for view in batch.views]
        q = [method.predictor(z) for z in k]  # the key network is still equal to the query network
        expected = batch_contrast(q[0], k[1], 1.0) + batch_contrast(q[1], k[0], 1.0)
    torch.testing.assert_close(loss, expected)
