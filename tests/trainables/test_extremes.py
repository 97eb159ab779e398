"""Losses, methods' terms, probes and signs at extremes of temperature, size and precision: finite, and right."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretune.search_spaces import schema
from pretune.search_spaces.identities import pretrain_recipe, probe_recipe
from pretune.trainables.constants import IGNORE
from pretune.trainables.files import WEIGHTS
from pretune.trainables.loop import DivergedError, Length, Progress, RunContext
from pretune.trainables.losses import LOSSES
from pretune.trainables.methods.barlow_twins import cross_correlation
from pretune.trainables.methods.byol import byol_loss
from pretune.trainables.methods.collapse import effective_rank, feature_std, spread
from pretune.trainables.methods.dino import dino_loss
from pretune.trainables.methods.moco import batch_contrast, info_nce
from pretune.trainables.methods.pixelcl import pixel_consistency, propagate
from pretune.trainables.methods.simclr import nt_xent
from pretune.trainables.methods.swav import sinkhorn, swapped_prediction
from pretune.trainables.methods.vicreg import vicreg_terms
from pretune.trainables.models.conrec_unet import AttentionPooling
from pretune.trainables.probes.accuracy import knn
from pretune.trainables.probes.cka import linear_cka
from pretune.trainables.probes.linear import Labelled, linear_probe

TEMPERATURES = st.floats(-6, 3).map(lambda power: 10**power)
SIZES = st.floats(-15, 15).map(lambda power: 10**power)
PRECISIONS = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
SEEDS = st.integers(0, 1000)
MANY = settings(max_examples=60, deadline=None)


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


# ------------------------------------------------------------------------------------------------------------------ kNN


def around_ten_centres() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features that every temperature tells apart (../shared/cases/knn-overflow): queries, bank, its labels, truth."""
    torch.manual_seed(0)
    centres = unit(unit(torch.randn(1, 16)) + 0.3 * unit(torch.randn(10, 16)))
    labels, truth = torch.arange(10).repeat_interleave(30), torch.arange(10).repeat_interleave(10)
    bank = unit(centres[labels] + 0.02 * torch.randn(300, 16))
    return unit(centres[truth] + 0.02 * torch.randn(100, 16)), bank, labels, truth


@pytest.mark.parametrize("temperature", [0.1, 0.02, 0.015, 0.011, 0.01, 0.005, 1e-4, 1e-8, 1e-38])
def test_a_knn_tells_ten_centres_apart_at_every_temperature(temperature: float) -> None:
    queries, bank, labels, truth = around_ten_centres()
    assert torch.equal(knn(queries, bank, labels, 200, temperature), truth)


@MANY
@given(TEMPERATURES, st.integers(1, 40), SEEDS, st.sampled_from([1.0, -1.0]))
@example(0.001, 5, 0, -1.0)  # all neighbours lie opposite: every weight is 0 in float32
def test_a_vote_is_that_of_exact_arithmetic(temperature: float, k: int, seed: int, side: float) -> None:
    """Weights in logarithms, in float64; queries whose two best classes are nearly equal are left out."""
    bank, labels = unit(rows(seed, 30, 5) + 1), torch.arange(30) % 4
    queries = side * unit(rows(seed + 1, 12, 5) + 1)
    near, which = (queries @ bank.T).topk(min(k, 30), dim=1)
    weights = near.double() / temperature
    votes = torch.stack([weights.masked_fill(labels[which] != c, -math.inf).logsumexp(1) for c in range(4)], dim=1)
    best = votes.topk(2, dim=1)
    clear = best.values[:, 0] - best.values[:, 1] > 1e-3
    assert torch.equal(knn(queries, bank, labels, k, temperature)[clear], best.indices[:, 0][clear])


def test_from_a_64th_on_votes_have_the_digits_of_the_plain_formula() -> None:
    """So stored probes stay valid; below, the recipe is another."""
    queries, bank, labels, _ = around_ten_centres()
    for temperature in (schema.KNN_EXACT_FROM, 0.07, 0.1):
        near, which = (queries @ bank.T).topk(50, dim=1)
        votes = torch.zeros(100, 10).scatter_add_(1, labels[which], (near / temperature).exp())
        assert torch.isfinite(votes).all()
        assert torch.equal(knn(queries, bank, labels, 50, temperature), votes.argmax(dim=1))
    recipes = [probe_recipe(schema.KNN(kind="knn", data="d", temperature=t)) for t in (0.0156, 1 / 64, 0.1)]
    assert recipes == [recipes[2] + 1, recipes[2], recipes[2]]


@pytest.mark.parametrize("zero", ["query", "bank", "both"])
def test_a_zero_vector_has_no_neighbour_nearer_than_another(zero: str) -> None:
    query = torch.zeros(1, 3) if zero != "bank" else unit(torch.ones(1, 3))
    bank = unit(torch.eye(3)) if zero == "query" else torch.zeros(3, 3)
    for temperature in (0.1, 1e-5):
        assert int(knn(query, bank, torch.tensor([1, 2, 2]), 3, temperature)) == 2


def test_one_image_is_its_own_neighbour() -> None:
    one = unit(torch.ones(1, 4))
    assert knn(one, one, torch.tensor([3]), 200, 1e-6).tolist() == [3]


# ----------------------------------------------------------------------------------------------- methods' losses


def assert_trains(loss_of: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Loss and gradient are finite, and the loss is at least float32."""
    x = x.clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    assert loss.dtype in (torch.float32, torch.float64)
    assert torch.isfinite(loss), float(loss)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    return float(loss.detach())


METHODS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "nt_xent": lambda x, t: nt_xent(x, x.flip(0), t),
    "info_nce": lambda x, t: info_nce(x, x.detach().flip(0), unit(rows(5, 7, x.shape[1])), t),
    "batch_contrast": lambda x, t: batch_contrast(x, x.detach().flip(0), t),
    "byol": lambda x, t: byol_loss(x, x.detach().flip(0)),
    "vicreg": lambda x, t: sum(vicreg_terms(x, x.flip(0)), torch.zeros(())),
    "barlow": lambda x, t: cross_correlation(x, x.flip(0)).square().mean(),
    "dino": lambda x, t: dino_loss(
        unit(x.float()).expand(3, -1, -1), unit(x.detach().float()).expand(2, -1, -1), torch.zeros(x.shape[1]), t, t
    ),
    "swav": lambda x, t: swapped_prediction(
        unit(x.float()).expand(3, -1, -1), sinkhorn(unit(x.detach().float()), t, 3).expand(2, -1, -1), t
    ),
    "pixels": lambda x, t: pixel_consistency(
        x[:, :, None, None].expand(-1, -1, 2, 2), x.detach()[:, :, None, None].expand(-1, -1, 2, 2),
        torch.ones(len(x), 4, 4, dtype=torch.bool),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25, deadline=None)
@given(TEMPERATURES, SIZES, PRECISIONS, SEEDS)
@example(1e-6, 1e15, torch.bfloat16, 0)
@example(1e-6, 1e-15, torch.float32, 0)
def test_a_loss_is_finite_and_so_is_its_gradient(
    name: str, temperature: float, size: float, precision: torch.dtype, seed: int
) -> None:
    """Outputs up to 1e9 for losses of differences, of which the squares stay in float32."""
    size = min(size, 1e8) if name == "vicreg" else size
    assert_trains(lambda x: METHODS[name](x, temperature), (size * rows(seed, 4, 6)).to(precision))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["zeros", "one zero", "all alike"])
@pytest.mark.parametrize("temperature", [1.0, 0.01, 1e-4])
def test_zero_and_equal_vectors_have_a_finite_loss(name: str, kind: str, temperature: float) -> None:
    x = {"zeros": torch.zeros(4, 6), "one zero": rows(0, 4, 6), "all alike": torch.ones(4, 6)}[kind]
    if kind == "one zero":
        x[1] = 0
    assert_trains(lambda x: METHODS[name](x, temperature), x)


@MANY
@given(SEEDS, st.floats(-4, 0).map(lambda power: 10**power), st.integers(1, 4))
def test_assignments_are_those_of_exact_arithmetic_at_every_epsilon(seed: int, epsilon: float, iterations: int) -> None:
    """Each sample has one, though exp of it over epsilon is 0 in float32; samples that take no part have none."""
    scores = unit(rows(seed, 8, 5)) @ unit(rows(seed + 1, 6, 5)).T
    scores[3] = -math.inf
    found = sinkhorn(scores, epsilon, iterations)
    q = scores.double() / epsilon
    present = torch.arange(8) != 3
    q = q[present]
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    assert torch.equal(found[3], torch.zeros(6))
    assert torch.allclose(found[present].double(), q.exp(), atol=2e-6 + 2e-7 / epsilon)
    assert torch.allclose(found[present].sum(1), torch.ones(7), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0])
def test_propagation_has_a_gradient_where_a_place_has_no_features(gamma: float) -> None:
    """The slope of x^gamma at 0 is infinite below 1."""
    features = torch.cat([rows(0, 1, 4, 1, 2), torch.zeros(1, 4, 1, 2)], dim=2).requires_grad_()
    propagate(features, features.detach(), gamma).square().sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_only_settings_whose_digits_changed_have_another_recipe() -> None:
    def recipe(**method: object) -> int:
        body = {"data": "d", "method": method, "views": {"size": 32}, "steps": 1}
        return pretrain_recipe(schema.Pretrain.model_validate(body))

    assert recipe(name="swav", epsilon=0.03) == recipe(name="swav") == recipe(name="byol")
    assert recipe(name="swav", epsilon=0.02) == recipe(name="swav") + 2


@pytest.mark.parametrize("bias", [0.0, -60.0, -200.0, 80.0])
def test_attention_that_sees_nothing_pools_to_numbers(bias: float) -> None:
    pooling = AttentionPooling(8).eval()
    with torch.no_grad():
        list(pooling.layers.children())[-2].bias.fill_(bias)  # type: ignore[operator, union-attr]
    features = rows(0, 2, 8, 3, 3)
    assert_trains(lambda x: pooling(x).sum(), features)


# ---------------------------------------------------------------------------------------------- fine-tuning's losses


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(SIZES, PRECISIONS, SEEDS, st.sampled_from(["some", "none", "one class"]))
@example(1e15, torch.bfloat16, 0, "some")
def test_a_segmentation_loss_is_finite(name: str, size: float, precision: torch.dtype, seed: int, kept: str) -> None:
    target = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(seed))
    target[0, :2] = IGNORE
    target = {"some": target, "none": torch.full_like(target, IGNORE), "one class": torch.ones_like(target)}[kept]
    loss = assert_trains(lambda x: LOSSES[name](x, target), (size * rows(seed, 2, 3, 4, 4)).to(precision))
    assert kept != "none" or loss == pytest.approx(0.0, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ probes, signs


@MANY
@given(st.floats(-30, 30).map(lambda power: 10**power), SEEDS, st.integers(4, 20), st.integers(1, 12))
def test_cka_does_not_depend_on_scale(scale: float, seed: int, count: int, width: int) -> None:
    x = rows(seed, count, width)
    assert linear_cka([(x, x * scale)]) == pytest.approx(1.0, abs=1e-6)


@MANY
@given(SIZES, SEEDS, st.integers(2, 12), st.integers(2, 12))
def test_signs_of_collapse_lie_in_their_ranges(scale: float, seed: int, count: int, width: int) -> None:
    for x in (rows(seed, count, width) * scale, torch.full((count, width), scale), torch.zeros(count, width)):
        assert 0 <= float(spread(x)) <= 1 + 1e-9
        assert 0 <= float(feature_std(x)) <= 1
        assert 1 - 1e-9 <= float(effective_rank(x)) <= min(count, width) + 1e-6


def test_a_classifier_that_diverged_has_no_accuracy() -> None:
    """Every argmax of NaN is class 0, so its accuracy would be that of chance, or better."""
    x, y = rows(0, 12, 4) * 1e30, torch.arange(12) % 3
    with pytest.raises(DivergedError, match="classifier is nan"):
        linear_probe(Labelled(x, y), Labelled(x, y), 20, 1e30, 4, batch_norm=False)


def test_features_that_are_not_finite_have_no_cka() -> None:
    x = rows(0, 6, 3)
    with pytest.raises(DivergedError):
        linear_cka([(x, x * math.nan)])


def test_features_that_are_not_finite_are_not_probed() -> None:
    from pretune.trainables.probes.features import pooled_features

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x.masked_fill(x > 0.5, math.inf)]

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(DivergedError, match="features is nan"):
        pooled_features(Broken(), lambda rows: torch.from_numpy(images[rows]), np.arange(4), 8)


def test_weights_that_the_last_step_broke_are_not_stored(tmp_path: Path) -> None:
    """No loss comes after it to tell, and each of its scores would be that of class 0."""
    progress = Progress(RunContext(tmp_path, torch.device("cpu")), Length(2, 4, 4), "loss", {})
    progress.record(3, {"train/loss": 1.0})
    network = torch.nn.BatchNorm1d(3)
    progress.finish(network, {})
    assert (tmp_path / WEIGHTS).exists()
    assert network.running_var is not None
    network.running_var[1] = math.inf
    with pytest.raises(DivergedError, match="weights is nan at step 3"):
        progress.finish(network, {})
