"""PixelCL and PixelCL++: pairs, propagation and loss against loops written from PixPro's equations and P5's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretune.search_spaces import schema
from pretune.trainables.methods import pixelcl
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.models.unet import Encoder
from pretune.trainables.views.drawn import View

H, W = 3, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def boxes_and_flips(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """Crops of at least a tenth of the image each way; shares."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.1, 1.0, (count, 2))
    corner = rng.uniform(size=(count, 2)) * (1 - size)
    boxes = torch.from_numpy(np.concatenate((corner, size), axis=1)).float()
    return boxes, torch.from_numpy(rng.random(count) < 0.5)


def obvious_centre(box: list[float], flipped: bool, row: int, column: int) -> tuple[float, float]:
    """Where a place of the feature map lies in the image, walking from the crop's corner."""
    top, left, height, width = box
    seen_column = W - 1 - column if flipped else column
    return top + (row + 0.5) * height / H, left + (seen_column + 0.5) * width / W


def obvious_positive(box1: list[float], flip1: bool, box2: list[float], flip2: bool, i: int, j: int) -> float:
    """Distance of the centres of places i and j, in the larger bin's diagonals."""
    y1, x1 = obvious_centre(box1, flip1, *divmod(i, W))
    y2, x2 = obvious_centre(box2, flip2, *divmod(j, W))
    diagonal = max(math.hypot(box[2] / H, box[3] / W) for box in (box1, box2))
    return math.hypot(y1 - y2, x1 - x2) / diagonal


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_pairs_are_those_whose_centres_are_near(seed: int) -> None:
    (boxes1, flips1), (boxes2, flips2) = boxes_and_flips(seed), boxes_and_flips(seed + 1)
    first, second = pixelcl.grid_of(boxes1, flips1, H, W), pixelcl.grid_of(boxes2, flips2, H, W)
    mask = pixelcl.positives(first, second, 0.7)
    for b in range(len(boxes1)):
        one, two = (boxes1[b].tolist(), bool(flips1[b])), (boxes2[b].tolist(), bool(flips2[b]))
        for i in range(H * W):
            for j in range(H * W):
                distance = obvious_positive(*one, *two, i, j)
                assert bool(mask[b, i, j]) == (distance < 0.7) or abs(distance - 0.7) < 1e-5


def test_the_same_view_twice_pairs_every_place_with_itself_alone() -> None:
    """Bins of a square grid: neighbours are 1 / sqrt(2) = 0.707 diagonals apart, just above 0.7."""
    grid = pixelcl.grid_of(torch.tensor([[0.1, 0.2, 0.5, 0.5]]), torch.tensor([False]), 7, 7)
    assert torch.equal(pixelcl.positives(grid, grid, 0.7)[0], torch.eye(49, dtype=torch.bool))


def test_a_mirrored_view_pairs_columns_in_reverse() -> None:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    plain, mirrored = (pixelcl.grid_of(box, torch.tensor([flip]), 1, 3) for flip in (False, True))
    assert torch.equal(pixelcl.positives(plain, mirrored, 0.2)[0], torch.eye(3, dtype=torch.bool).flip(1))


def test_views_apart_have_no_pair_and_add_nothing() -> None:
    straight = torch.tensor([False])
    first = pixelcl.grid_of(torch.tensor([[0.0, 0.0, 0.2, 0.2]]), straight, H, W)
    second = pixelcl.grid_of(torch.tensor([[0.7, 0.7, 0.2, 0.2]]), straight, H, W)
    mask = pixelcl.positives(first, second, 0.7)
    assert not mask.any()
    features = random(1, 5, H, W).requires_grad_()
    loss = pixelcl.pixel_consistency(features, random(1, 5, H, W, seed=1), mask)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_depth_leaves_out_pairs_that_are_not_equally_far() -> None:
    """0.5 and 0.25 differ by exactly 0.25, which is still allowed at a threshold of 0.25."""
    mask = pixelcl.equally_far(torch.tensor([[0.5, 0.0]]), torch.tensor([[0.25, 0.75, 1.0]]), 0.25)
    assert mask.tolist() == [[[True, True, False], [True, False, False]]]


def obvious_propagation(x: Tensor, g: Tensor, gamma: float) -> Tensor:
    """PixPro equations 3 and 4, place by place, of one image: x, g (C, N) -> (C, N)."""
    result = torch.zeros_like(g)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            cosine = torch.dot(x[:, i], x[:, j]) / (x[:, i].norm() * x[:, j].norm())
            result[:, i] += max(float(cosine), 0.0) ** gamma * g[:, j] / g[:, j].norm()
    return result


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_propagation_is_the_sum_over_similar_places(gamma: float) -> None:
    x, g = random(2, 5, H, W), random(2, 6, H, W, seed=1)
    expected = torch.stack([obvious_propagation(a.flatten(1), b.flatten(1), gamma) for a, b in zip(x, g, strict=True)])
    ours = pixelcl.propagate(x, g, gamma)
    assert ours.shape == (2, 6, H, W)
    assert float((ours.flatten(2) - expected).abs().max()) < 1e-5


def obvious_loss(p: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """-2 * cosine over positive pairs, mean per image, mean over images; (B, C, N), in float64."""
    per_image = []
    for a, b, pairs in zip(p, t, mask, strict=True):
        cosines = [torch.dot(a[:, i], b[:, j]) / (a[:, i].norm() * b[:, j].norm()) for i, j in pairs.nonzero().tolist()]
        per_image.append(torch.stack(cosines).mean() if cosines else torch.zeros((), dtype=p.dtype))
    return -2 * torch.stack(per_image).mean()


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_loss_and_its_gradient_are_the_masked_means(seed: int) -> None:
    p, t = random(3, 5, H, W, seed=seed).requires_grad_(), random(3, 5, H, W, seed=seed + 1)
    mask = random(3, H * W, H * W, seed=seed + 2) > 1.5
    ours, expected = pixelcl.pixel_consistency(p, t, mask), obvious_loss(p.flatten(2), t.flatten(2), mask)
    assert abs(float((ours - expected).detach())) < 1e-5
    (mine,), (reference,) = torch.autograd.grad(ours, p), torch.autograd.grad(expected, p)
    assert float((mine - reference).abs().max()) < 1e-5


def test_equal_features_reach_the_minimum_of_both_directions() -> None:
    features, mask = random(2, 5, H, W), torch.eye(H * W, dtype=torch.bool).expand(2, -1, -1)
    both = pixelcl.pixel_consistency(features, features, mask) * 2
    assert float(both) == pytest.approx(-4, abs=1e-5)


def test_depth_is_read_where_the_view_looks() -> None:
    """A ramp from left to right: the depth of a bin is the column of its centre, mirrored where the view is."""
    ramp = ((torch.arange(16) + 0.5) / 16).expand(2, 16, 16).half()
    box = torch.tensor([[0.25, 0.5, 0.5, 0.5]] * 2)
    view = View(torch.zeros(2, 3, 8, 8), box, torch.tensor([False, True]))
    depth = pixelcl.depth_at(ramp, view, 4, 4).reshape(2, 4, 4)
    columns = torch.tensor([0.5625, 0.6875, 0.8125, 0.9375])
    assert float((depth[0] - columns).abs().max()) < 1e-3
    assert float((depth[1] - columns.flip(0)).abs().max()) < 1e-3


def method(alpha: float = 1.0, depth: float | None = None) -> pixelcl.PixelCL:
    torch.manual_seed(0)
    views = schema.Views(size=16)
    return pixelcl.PixelCL(
        Encoder((4, 8)),
        (views, views),
        hidden=8,
        dim=6,
        threshold=0.7,
        depth_threshold=depth,
        gamma=2.0,
        alpha=alpha,
        momentum=0.9,
        momentum_end=1.0,
    )


def batch(depth: Tensor | None = None) -> Batch:
    (boxes1, flips1), (boxes2, flips2) = boxes_and_flips(0, 4), boxes_and_flips(1, 4)
    views = [
        View(random(4, 3, 16, 16, seed=i).float(), *crop) for i, crop in enumerate(((boxes1, flips1), (boxes2, flips2)))
    ]
    return Batch(views, lambda purpose, count: np.zeros((4, count)), depth=depth)


def test_alpha_weighs_the_instance_branch() -> None:
    """L_total = L_pixpro + alpha * L_BYOL (P5 equation 7)."""
    loss, parts = method(alpha=0.5)(batch(), 0.0)
    assert float(loss.detach()) == pytest.approx(float(parts["pixel_loss"] + 0.5 * parts["instance_loss"]), abs=1e-6)
    alone, parts = method(alpha=0)(batch(), 0.0)
    assert float(alone.detach()) == float(parts["pixel_loss"])
    assert "instance_loss" not in parts


def test_the_depth_filter_only_takes_pairs_away() -> None:
    flat, steep = torch.full((4, 16, 16), 0.5), torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    pairs = [
        float(method(depth=limit)(batch(depth), 0.0)[1]["positive_pairs"])
        for limit, depth in ((None, None), (0.2, flat), (0.2, steep), (0.0, steep))
    ]
    assert pairs[0] == pairs[1] > pairs[2] > pairs[3]


@pytest.mark.parametrize("spread", [0.0, 0.19], ids=["a wall", "differences below the threshold"])
def test_where_all_is_equally_far_pixelcl_plus_plus_is_pixelcl_to_the_digit(spread: float) -> None:
    depth = 0.5 + spread * torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    trained = []
    for network, images in ((method(), batch()), (method(depth=0.2), batch(depth))):
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            network(images, step / 3)[0].backward()
            optimizer.step()
            network.after_step((step + 1) / 3)
        trained.append(network.state_dict())
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_only_the_online_network_gets_gradients_and_the_momentum_network_follows() -> None:
    network = method()
    network(batch(), 0.0)[0].backward()
    assert all(p.grad is None for p in network.target_encoder.parameters())
    assert all(p.grad is not None for p in network.encoder.parameters())
    before = next(network.target_heads.parameters()).clone()
    with torch.no_grad():
        next(network.heads.parameters()).add_(1.0)
    network.after_step(0.0)
    assert float((next(network.target_heads.parameters()) - before - 0.1).abs().max()) < 1e-6


def test_a_grid_that_is_not_square_is_refused() -> None:
    view = View(torch.zeros(1, 3, 8, 8), torch.ones(1, 4), torch.tensor([False]))
    with pytest.raises(ValueError, match="must be square, got 3 x 4"):
        pixelcl.depth_at(torch.zeros(1, 8, 8), view, 3, 4)
