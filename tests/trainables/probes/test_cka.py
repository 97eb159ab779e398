"""CKA against a direct computation in float64, written from the definition as a sum over different images."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables import checkpoints
from pretune.trainables.data.image_set import ImageSet
from pretune.trainables.data.splits import Split
from pretune.trainables.loop import DataFeed, epoch_order
from pretune.trainables.models import interface
from pretune.trainables.models.table import build_encoder
from pretune.trainables.models.unet import Encoder
from pretune.trainables.probes.cka import cka_between, compare_encoders, linear_cka, unbiased_hsic
from pretune.trainables.probes.features import PROBE_SEED

Array = NDArray[np.float64]


def features(seed: int, n: int, channels: int) -> Array:
    return np.random.default_rng(seed).standard_normal((n, channels))


def obvious_hsic(x: Array, y: Array) -> float:
    """E[k(1,2) l(1,2)] + E[k(1,2) l(3,4)] - 2 E[k(1,2) l(1,3)] over all tuples of different images."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    n = len(x)
    pairs = np.mean([k[i, j] * l[i, j] for i, j in permutations(range(n), 2)])
    apart = np.mean([k[i, j] * l[q, r] for i, j, q, r in permutations(range(n), 4)])
    shared = np.mean([k[i, j] * l[i, q] for i, j, q in permutations(range(n), 3)])
    return float(pairs + apart - 2 * shared)


def obvious_cka(batches: list[tuple[Array, Array]]) -> float:
    both, first, second = (
        np.mean([obvious_hsic(pair[i], pair[j]) for pair in batches]) for i, j in ((0, 1), (0, 0), (1, 1))
    )
    return float(both / math.sqrt(first * second))


@given(st.integers(0, 10_000), st.integers(4, 7))
@settings(max_examples=10, deadline=None)
def test_hsic_is_the_mean_over_different_images(seed: int, n: int) -> None:
    x, y = features(seed, n, 3), features(seed + 1, n, 4)
    k, l = torch.from_numpy(x @ x.T), torch.from_numpy(y @ y.T)  # noqa: E741
    assert float(unbiased_hsic(k, l)) == pytest.approx(obvious_hsic(x, y), rel=1e-9, abs=1e-10)


def test_mini_batch_cka_is_the_direct_computation() -> None:
    """Features that share two of their directions, in three batches of 6, as float32 maps."""
    x = [features(seed, 6, 8) for seed in range(3)]
    y = [a[:, :2] @ features(9, 2, 12) + 0.5 * features(seed + 3, 6, 12) for seed, a in enumerate(x)]
    pairs = list(zip(x, y, strict=True))
    tensors = [(torch.from_numpy(a).reshape(6, 2, 2, 2), torch.from_numpy(b).reshape(6, 3, 2, 2)) for a, b in pairs]
    assert linear_cka(tensors) == pytest.approx(obvious_cka(pairs), abs=1e-10)
    singles = [(a.float(), b.float()) for a, b in tensors]
    assert linear_cka(singles) == pytest.approx(obvious_cka(pairs), abs=1e-5)


def test_rotation_shift_and_scale_do_not_matter() -> None:
    x = torch.from_numpy(features(0, 20, 5))
    rotation = torch.linalg.qr(torch.from_numpy(features(1, 5, 5))).Q
    assert linear_cka([(x, 3 * x @ rotation + 7)]) == pytest.approx(1, abs=1e-9)


def test_unrelated_features_are_near_zero_even_where_channels_outnumber_images() -> None:
    """The biased estimate is about 0.9 here: with 400 channels and 20 images every kernel is nearly the identity."""
    pairs = [tuple(torch.from_numpy(features(2 * seed + side, 20, 400)) for side in (0, 1)) for seed in range(10)]
    assert abs(linear_cka([(a, b) for a, b in pairs])) < 0.1


@pytest.mark.parametrize("n", [1, 3])
def test_batches_that_are_too_small_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 4 images in a batch, got {n}"):
        linear_cka([(torch.zeros(n, 2), torch.zeros(n, 2))])


def test_constant_features_and_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="features that vary"):
        linear_cka([(torch.ones(5, 2), torch.from_numpy(features(0, 5, 2)))])
    with pytest.raises(ValueError, match="features that vary"):
        linear_cka([])


def test_between_encoders() -> None:
    """An encoder and itself are 1; another one's features are compared on the same images, in random batches."""
    torch.manual_seed(0)
    first, second = Encoder((4, 8)).eval(), Encoder((4, 6)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    feed, images = DataFeed(pixels, torch.device("cpu")), np.arange(12)
    assert cka_between((first, first), feed, images, 8, [-1], batch=6) == pytest.approx([1])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        order = epoch_order(12, PROBE_SEED, 0)
        pairs = [(first(x[part])[0], second(x[part])[0]) for part in (order[:6], order[6:])]
    reference = obvious_cka([(a.flatten(1).double().numpy(), b.flatten(1).double().numpy()) for a, b in pairs])
    assert cka_between((first, second), feed, images, 8, [0, 1], batch=6)[0] == pytest.approx(reference, abs=1e-5)


class Lookup(interface.Encoder):
    """An "encoder" of 1 px images that hold their number: row i of a table."""

    def __init__(self, table: Array) -> None:
        super().__init__()
        self.table, self.widths, self.strides = torch.from_numpy(table).float(), (table.shape[1],), (1,)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        high, low = (x[:, channel, 0, 0].mul(255).round().long() for channel in (0, 1))
        return [self.table[256 * high + low][:, :, None, None]]


def test_mini_batches_of_images_stored_class_by_class_agree_with_the_whole() -> None:
    """1280 images of ten classes in a row, whose classes the two sides place alike and whose images they do not: in
    batches of neighbours nothing is alike (0.0), in random ones as much as in the whole."""
    n, random = 1280, np.random.default_rng(0)
    centres = random.standard_normal((10, 64))[np.repeat(np.arange(10), n // 10)]
    rotation = np.linalg.qr(random.standard_normal((64, 64)))[0]
    tables = [centres + random.standard_normal((n, 64)), centres @ rotation + random.standard_normal((n, 64))]
    number = np.arange(n)
    pixels = np.stack([number // 256, number % 256, 0 * number], axis=1).astype(np.uint8)[:, None, None]
    sides = Lookup(tables[0]), Lookup(tables[1])
    feed = DataFeed(pixels, torch.device("cpu"))
    (whole,), (parts,) = (cka_between(sides, feed, number, 1, [-1], batch) for batch in (n, 128))
    assert whole > 0.2
    assert parts == pytest.approx(whole, rel=0.05)
    neighbours = [tuple(torch.from_numpy(t[i : i + 128]) for t in tables) for i in range(0, n, 128)]
    assert abs(linear_cka([(a, b) for a, b in neighbours])) < 0.1 * whole


MODELS = {
    "fine": schema.UNet(widths=(4, 6, 8)),
    "wide": schema.UNet(widths=(4, 8, 8)),
    "flat": schema.UNet(widths=(4, 8)),
}


def stored(name: str, seed: int, folder: Path) -> Path:
    """Weights of a random encoder, as a pretraining leaves them."""
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    checkpoints.save_weights(nn.ModuleDict({"encoder": build_encoder(MODELS[name])}), path)
    return path


@pytest.mark.parametrize(
    ("pair", "layers", "names"),
    [
        (("fine", "fine"), "all", ["level1", "level2", "output"]),
        (("fine", "wide"), "all", ["level1", "level2", "output"]),
        (("fine", "wide"), "output", ["output"]),
        (("fine", "flat"), "all", ["output"]),  # of another number of levels: only the last can be matched
    ],
)
def test_the_pairwise_probe_of_stored_encoders(
    pair: tuple[str, str], layers: str, names: list[str], tmp_path: Path
) -> None:
    """An encoder and itself are alike at every level; two different ones are not, in whichever order."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    data = ImageSet(pixels, None, None, None, None, None, tuple(map(str, range(20))), ("a",), ())
    split = Split(np.arange(0, 8), np.arange(8, 18), np.arange(18, 20))
    settings = schema.CKA.model_validate(
        {"kind": "cka", "data": "d", "between": "f", "size": 16, "layers": layers, "batch_size": 5}
    )
    models, paths = (MODELS[pair[0]], MODELS[pair[1]]), [stored(name, 3, tmp_path) for name in pair]
    found = compare_encoders(settings, models, (paths[0], paths[1]), data, split, torch.device("cpu"))
    assert list(found) == [f"probe/{name}" for name in names]
    turned = compare_encoders(settings, models[::-1], (paths[1], paths[0]), data, split, torch.device("cpu"))
    assert turned == pytest.approx(found, abs=1e-9)
    alike = [value == pytest.approx(1, abs=1e-6) for value in found.values()]
    assert alike == [pair[0] == pair[1]] * len(names) or found["probe/output"] < 1
    few = Split(np.arange(0, 8), np.arange(8, 11), np.arange(11, 20))
    with pytest.raises(ValueError, match="at least 4 images, there are 3"):
        compare_encoders(settings, models, (paths[0], paths[1]), data, few, torch.device("cpu"))
