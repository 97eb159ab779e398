"""Segmentation losses against arithmetic by hand, torch, torchmetrics' soft counterpart and finite differences.

REFERENCES holds an independent form of every loss; one without fails by name, and so does one that studies cannot name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torchmetrics.functional.segmentation import dice_score
from workers import losses_of_parts, together

from pretune.search_spaces import schema
from pretune.trainables.losses import (
    LOSSES,
    Loss,
    class_weights,
    cross_entropy_loss,
    dice_loss,
    focal_loss,
    loss_of,
    tversky_loss,
)

# two classes, one image of 2 x 2 pixels whose softmax is (3/4, 1/4), (3/4, 1/4), (1/4, 3/4), (1/2, 1/2)
ODDS = torch.tensor([[math.log(3), math.log(3)], [-math.log(3), 0.0]])
LOGITS = torch.stack((ODDS, torch.zeros(2, 2)))[None]
TARGET = torch.tensor([[[0, 0], [1, 1]]])


def random_case(seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 4, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (2, 4, 5), generator=generator)


def test_dice_worked_by_hand() -> None:
    """Class 0: p.g = 3/4 + 3/4 = 1.5, sum p = 2.25, sum g = 2: 3 / 4.25. Class 1: 1.25, 1.75, 2: 2.5 / 3.75."""
    assert float(dice_loss(LOGITS, TARGET)) == pytest.approx(1 - (3 / 4.25 + 2.5 / 3.75) / 2, abs=1e-5)


def test_dice_with_smoothing_worked_by_hand() -> None:
    """s = 1: (3 + 1) / (4.25 + 1) and (2.5 + 1) / (3.75 + 1)."""
    assert float(dice_loss(LOGITS, TARGET, smooth=1.0)) == pytest.approx(1 - (4 / 5.25 + 3.5 / 4.75) / 2, abs=1e-6)


def test_dice_excludes_ignored_pixels() -> None:
    """Without the last pixel: class 0: 3 / (1.75 + 2); class 1: 1.5 / (1.25 + 1)."""
    target = torch.tensor([[[0, 0], [1, 255]]])
    assert float(dice_loss(LOGITS, target)) == pytest.approx(1 - (3 / 3.75 + 1.5 / 2.25) / 2, abs=1e-5)


def test_dice_counts_an_absent_class() -> None:
    """All pixels are class 0: dice 4.5 / 6.25 for it, and s / (1.75 + s) = 0 for class 1."""
    target = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert float(dice_loss(LOGITS, target)) == pytest.approx(1 - (2 * 2.25 / 6.25 + 0) / 2, abs=1e-5)


def test_cross_entropy_worked_by_hand() -> None:
    """-(ln 3/4 + ln 3/4 + ln 3/4 + ln 1/2) / 4; without the last pixel -ln 3/4."""
    expected = -(3 * math.log(3 / 4) + math.log(1 / 2)) / 4
    assert float(cross_entropy_loss(LOGITS, TARGET)) == pytest.approx(expected, abs=1e-6)
    ignoring = torch.tensor([[[0, 0], [1, 255]]])
    assert float(cross_entropy_loss(LOGITS, ignoring)) == pytest.approx(-math.log(3 / 4), abs=1e-6)


def test_focal_loss_worked_by_hand() -> None:
    """Of 3/4 three times and 1/2: ((1/4)^2 ln 4/3 * 3 + (1/2)^2 ln 2) / 4."""
    expected = (3 * math.log(4 / 3) / 16 + math.log(2) / 4) / 4
    assert float(focal_loss(LOGITS, TARGET)) == pytest.approx(expected, abs=1e-6)
    assert float(focal_loss(LOGITS, TARGET, gamma=0)) == pytest.approx(float(cross_entropy_loss(LOGITS, TARGET)))


@given(seed=st.integers(0, 1000), ignored=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(deadline=None, max_examples=30)
def test_cross_entropy_equals_torch(seed: int, ignored: list[bool]) -> None:
    logits, target = random_case(seed)
    assume(not all(ignored))
    target = torch.where(torch.tensor(ignored).reshape(2, 4, 5), 255, target)
    expected = float(F.cross_entropy(logits, target, ignore_index=255))
    assert float(cross_entropy_loss(logits, target)) == pytest.approx(expected, rel=1e-9)


CLASSES = ("ground", "leaf", "spot")
WEIGHTS = {"ground": 0.5, "spot": 4.0}


def chosen(loss: str, pixels: tuple[int, ...] = (1, 1, 1), **numbers: Any) -> Loss:
    """The loss of a fine-tuning with these settings, on three classes of so many pixels."""
    given = {"data": "x", "epochs": 1, "loss": loss, **numbers}
    return loss_of(schema.Finetune.model_validate(given), CLASSES, pixels)


@given(seed=st.integers(0, 1000), ignored=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(deadline=None, max_examples=20)
def test_weighted_cross_entropy_equals_torch(seed: int, ignored: list[bool]) -> None:
    logits, target = random_case(seed)
    assume(not all(ignored))
    target = torch.where(torch.tensor(ignored).reshape(2, 4, 5), 255, target)
    expected = float(
        F.cross_entropy(logits, target, torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64), ignore_index=255)
    )
    assert float(chosen("cross-entropy", class_weights=WEIGHTS)(logits, target)) == pytest.approx(expected, rel=1e-6)
    both = float(chosen("dice+cross-entropy", class_weights=WEIGHTS)(logits, target))
    assert both == pytest.approx(expected + float(dice_loss(logits, target)), rel=1e-6)


@given(seed=st.integers(0, 1000), gamma=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
@settings(deadline=None, max_examples=20)
def test_focal_loss_equals_segmentation_models_and_its_weighted_definition(seed: int, gamma: float) -> None:
    """smp sums the binary focal losses of the classes, which for two classes and a sigmoid is twice ours."""
    logits, target = random_case(seed, 2)
    difference = (logits[:, 1] - logits[:, 0]).unsqueeze(1)
    theirs = float(smp.losses.FocalLoss("binary", alpha=None, gamma=gamma)(difference, target.unsqueeze(1)))
    assert float(chosen("focal", focal_gamma=gamma)(logits, target)) == pytest.approx(theirs, rel=1e-6)
    logits, target = random_case(seed)
    p = logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    w = torch.tensor([0.5, 1.0, 4.0])[target]
    expected = float((-w * (1 - p) ** gamma * p.log()).sum() / w.sum())
    weighted = chosen("focal", focal_gamma=gamma, class_weights=WEIGHTS)
    assert float(weighted(logits, target)) == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 1000), beta=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
@settings(deadline=None, max_examples=20)
def test_tversky_equals_segmentation_models(seed: int, beta: float) -> None:
    """smp leaves out classes that do not occur, so all three do; its sums run over the batch, as ours."""
    logits, target = random_case(seed)
    target[0, 0, :3] = torch.arange(3)
    theirs = smp.losses.TverskyLoss("multiclass", alpha=1 - beta, beta=beta)(logits, target)
    assert float(chosen("tversky", tversky_beta=beta)(logits, target)) == pytest.approx(float(theirs), abs=1e-5)


def test_tversky_of_one_half_is_dice() -> None:
    logits, target = random_case(3)
    assert float(tversky_loss(logits, target, beta=0.5)) == pytest.approx(float(dice_loss(logits, target)), abs=1e-6)


def test_a_confident_focal_loss_with_a_small_gamma_has_a_slope_of_0() -> None:
    logits = torch.tensor([[1000.0], [-1000.0]])[None, :, :, None].requires_grad_()
    chosen("focal", focal_gamma=0.5)(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any))
@settings(deadline=None, max_examples=30)
def test_balanced_weights_are_scikit_learns(pixels: list[int]) -> None:
    labels = np.repeat(np.arange(3), pixels)
    found = class_weights("balanced", CLASSES, pixels)
    assert found is not None
    present = np.unique(labels)
    assert found[present].tolist() == pytest.approx(
        compute_class_weight("balanced", classes=present, y=labels), rel=1e-5
    )


def test_a_weight_of_no_class_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"class_weights .*'leef'.* ground, leaf, spot"):
        class_weights({"leef": 2.0}, CLASSES, (1, 1, 1))


@pytest.mark.parametrize(
    ("loss", "numbers"),
    [("dice", {"class_weights": "balanced"}), ("cross-entropy", {"focal_gamma": 1.0}), ("dice", {"tversky_beta": 0.5})],
)
def test_a_number_that_the_loss_does_not_have_is_refused(loss: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(numbers))} is of the loss .*, not of {loss}; leave it out"):
        chosen(loss, **numbers)


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_dice_of_certain_predictions_equals_torchmetrics(seed: int) -> None:
    """Logits of ±1000 make the softmax one-hot; the batch counts as one image, so that sums run over all of it."""
    _, target = random_case(seed)
    _, predicted = random_case(seed + 5000)
    logits = 2000.0 * F.one_hot(predicted, 3).permute(0, 3, 1, 2) - 1000
    a, b = predicted.reshape(1, 8, 5), target.reshape(1, 8, 5)
    reference = dice_score(a, b, num_classes=3, average="none", input_format="index", aggregation_level="samplewise")
    assert float(dice_loss(logits, target)) == pytest.approx(1 - float(reference.mean()), abs=1e-5)


@given(seed=st.integers(0, 1000), name=st.sampled_from(sorted(LOSSES)))
@settings(deadline=None, max_examples=40)
def test_certain_and_right_costs_nothing(seed: int, name: str) -> None:
    _, target = random_case(seed)
    logits = 200.0 * F.one_hot(target, 3).permute(0, 3, 1, 2)
    right, wrong = float(LOSSES[name](logits, target)), float(LOSSES[name](-logits, target))
    assert right == pytest.approx(0, abs=1e-5)
    assert wrong > 0.5


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_equal_finite_differences(name: str) -> None:
    logits, target = random_case(0)
    target[0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), logits.requires_grad_())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_precision_logits_are_summed_in_float32(name: str) -> None:
    """40,000 pixels: a bfloat16 sum would stop growing at 256."""
    logits = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.randint(0, 3, (1, 200, 200), generator=torch.Generator().manual_seed(1))
    loss = LOSSES[name](logits, target)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(LOSSES[name](logits.double(), target)), rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_batch_without_labels_costs_nothing(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = LOSSES[name](logits, torch.full((1, 2, 2), 255))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


# ---------------------------------------------------------------------------------------- what every loss must hold

Array = NDArray[np.float64]


def dice_by_definition(p: Array, labels: Array, smooth: float = 1e-5, first: int = 0) -> float:
    """1 - mean over classes, from `first` on, of (2 sum p g + s) / (sum p + sum g + s)."""
    pairs = [(p[:, c], labels == c) for c in range(first, p.shape[1])]
    return 1 - float(np.mean([(2 * (q @ g) + smooth) / (q.sum() + g.sum() + smooth) for q, g in pairs]))


def cross_entropy_by_definition(p: Array, labels: Array) -> float:
    return float(np.mean([-math.log(row[label]) for row, label in zip(p, labels, strict=True)]))


def focal_by_definition(p: Array, labels: Array) -> float:
    """Lin et al. 2017: -(1 - p_t)^2 log p_t."""
    return float(
        np.mean([-((1 - row[label]) ** 2) * math.log(row[label]) for row, label in zip(p, labels, strict=True)])
    )


def tversky_by_definition(p: Array, labels: Array, beta: float = 0.7, smooth: float = 1e-5) -> float:
    """Salehi et al. 2017: 1 - mean over classes of TP / (TP + beta FN + (1 - beta) FP), s added to both."""
    indices = []
    for c in range(p.shape[1]):
        q, g = p[:, c], labels == c
        hits, missed, false = (q * g).sum(), ((1 - q) * g).sum(), (q * ~g).sum()
        indices.append((hits + smooth) / (hits + beta * missed + (1 - beta) * false + smooth))
    return 1 - float(np.mean(indices))


# each from the probabilities (pixels, classes) and labels (pixels,) of the pixels that count
REFERENCES: dict[str, Callable[[Array, Array], float]] = {
    "dice": dice_by_definition,
    "foreground-dice": lambda p, labels: dice_by_definition(p, labels, 1.0, first=1),
    "cross-entropy": cross_entropy_by_definition,
    "dice+cross-entropy": lambda p, labels: dice_by_definition(p, labels) + cross_entropy_by_definition(p, labels),
    "focal": focal_by_definition,
    "tversky": tversky_by_definition,
}
NAMES = get_args(schema.Finetune.model_fields["loss"].annotation)


@pytest.mark.parametrize("name", sorted({*NAMES, *LOSSES, *REFERENCES}))
def test_a_loss_has_a_name_for_studies_a_function_and_a_reference(name: str) -> None:
    assert name in NAMES, f"add {name!r} to Finetune.loss in search_spaces/schema/stages.py"
    assert name in LOSSES, f"add {name!r} to LOSSES in trainables/losses.py"
    assert name in REFERENCES, f"add {name!r} to REFERENCES in tests/trainables/test_losses.py"


@pytest.mark.parametrize("name", sorted(REFERENCES))
@given(seed=st.integers(0, 1000), ignored=st.lists(st.booleans(), min_size=40, max_size=40))
@settings(deadline=None, max_examples=20)
def test_a_loss_is_its_definition_over_the_pixels_that_count(name: str, seed: int, ignored: list[bool]) -> None:
    logits, target = random_case(seed)
    left = ~torch.tensor(ignored).reshape(2, 4, 5)
    assume(left.any())
    loss = LOSSES[name](logits, torch.where(left, target, 255))
    odds = np.exp(logits.permute(0, 2, 3, 1)[left].numpy())
    p = odds / odds.sum(axis=1, keepdims=True)
    assert float(loss) == pytest.approx(REFERENCES[name](p, target[left].numpy()), rel=1e-9)


@pytest.fixture(scope="module")
def on_two_workers() -> list[dict[str, tuple[float, list[Any]]]]:
    return together(2, losses_of_parts, sorted(LOSSES), *batch_of_three())


def batch_of_three() -> tuple[Tensor, Tensor]:
    """Three images, which do not divide among two workers, with ignored pixels in the first."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (3, 4, 5), generator=generator)
    target[0, :2] = 255
    return logits, target


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_two_workers_have_the_loss_and_the_gradient_of_the_whole_batch(
    name: str, on_two_workers: list[dict[str, tuple[float, list[Any]]]]
) -> None:
    """Own rows get the gradient of the sum of both workers' losses, twice that of one; the mean is taken elsewhere."""
    logits, target = batch_of_three()
    loss = LOSSES[name](logits.requires_grad_(), target)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert [answer[name][0] for answer in on_two_workers] == pytest.approx([float(loss.detach())] * 2, rel=1e-12)
    gradients = np.concatenate([answer[name][1] for answer in on_two_workers])
    np.testing.assert_allclose(gradients / 2, logits.grad.numpy(), rtol=1e-9, atol=1e-15)
