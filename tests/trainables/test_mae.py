"""The masked autoencoder: what is black, and what the error counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretune.search_spaces import schema
from pretune.trainables.methods.mae import (
    MAE,
    constant_error,
    lowest,
    lowest_here,
    patch_count,
    patch_mask,
    restoration_error,
)
from pretune.trainables.methods.protocol import Batch
from pretune.trainables.models.unet import Decoder, Encoder
from pretune.trainables.views.drawn import View
from pretune.trainables.views.random import uniforms


def batch_of(pixels: torch.Tensor, images: list[int] | None = None) -> Batch:
    count = len(pixels)
    indices = np.array(images if images is not None else range(count))
    view = View(pixels, torch.tensor([[0.0, 0, 1, 1]] * count), torch.zeros(count, dtype=torch.bool))
    return Batch([view], lambda purpose, n: uniforms(7, purpose, 0, indices, 0, n))


def method(masking: str = "patches", loss_on: str = "all", patch: int = 4) -> MAE:
    torch.manual_seed(0)
    return MAE(
        Encoder((4, 8)),
        Decoder((4, 8), True),
        schema.Views(),
        masking=masking,
        ratio=0.75,
        patch=patch,
        loss_on=loss_on,
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_an_accelerator_chooses_the_same_draws(share: float) -> None:
    draws = np.random.default_rng(0).random((5, 37))
    assert np.array_equal(lowest_here(torch.from_numpy(draws), share).numpy(), lowest(draws, share))


def test_the_lowest_draws_are_chosen() -> None:
    """Half of four: the two lowest of each row."""
    draws = np.array([[0.4, 0.1, 0.3, 0.2], [0.0, 0.9, 0.8, 0.7]])
    assert lowest(draws, 0.5).tolist() == [[False, True, False, True], [True, False, False, True]]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), share=st.floats(0.0, 1.0), seed=st.integers(0, 10**6))
def test_as_many_are_chosen_as_the_share_says(n: int, share: float, seed: int) -> None:
    draws = np.random.default_rng(seed).random((3, n))
    chosen = lowest(draws, share)
    assert (chosen.sum(axis=1) == round(share * n)).all()
    for row, mask in zip(draws, chosen, strict=True):
        assert max(row[mask], default=0.0) <= min(row[~mask], default=1.0)


def test_patches_of_p2_at_128_px() -> None:
    """ceil(128 / 20) = 7 patches per side, the last 8 px wide; round(.75 * 49) = 37 of 49 are black."""
    assert patch_count(128, 20) == 7
    mask = patch_mask(np.random.default_rng(0).random((5, 49)), 0.75, 20, 128)
    assert mask.shape == (5, 1, 128, 128)
    corners = mask[:, 0, ::20, ::20]  # one pixel of each patch
    assert corners.sum(dim=(1, 2)).tolist() == [37] * 5
    assert torch.equal(corners.repeat_interleave(20, 1).repeat_interleave(20, 2)[:, :128, :128], mask[:, 0])


def test_a_mask_of_two_pixel_patches_by_hand() -> None:
    """Of the draws .1 .9 / .8 .2 the two lowest are on the diagonal; the image of 3 px cuts the second patch."""
    mask = patch_mask(np.array([[0.1, 0.9, 0.8, 0.2]]), 0.5, 2, 3)
    assert mask[0, 0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_errors_by_hand() -> None:
    """Differences 1 and 3 in one channel: (1 + 9) / 2 over all, 9 over the masked pixel alone."""
    restored, original = torch.tensor([[[[1.0, 3.0]]]]), torch.zeros(1, 1, 1, 2)
    mask = torch.tensor([[[[False, True]]]])
    assert float(restoration_error(restored, original)) == 5
    assert float(restoration_error(restored, original, mask)) == 9
    # over three channels the mean is per channel too
    assert float(restoration_error(restored.expand(1, 3, 1, 2), torch.zeros(1, 3, 1, 2), mask)) == 9


def test_the_constant_answer_is_each_channels_mean() -> None:
    """Channel values 0 and 2 have variance 1, a constant channel 0: the mean is a half."""
    original = torch.tensor([[[[0.0, 2.0]], [[5.0, 5.0]]]])
    assert float(constant_error(original)) == pytest.approx(0.5)


@pytest.mark.parametrize(("masking", "expected"), [("patches", 12 / 16), ("pixels", 0.75), ("none", 0.0)])
def test_how_much_is_black(masking: str, expected: float) -> None:
    """16 patches of 4 px in 16 px: 12 of them."""
    mask = method(masking).mask(batch_of(torch.rand(3, 3, 16, 16)))
    assert mask.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("masking", ["patches", "pixels"])
def test_a_mask_depends_on_its_image_and_not_on_the_batch(masking: str) -> None:
    pixels = torch.rand(4, 3, 16, 16)
    whole = method(masking).mask(batch_of(pixels))
    part = method(masking).mask(batch_of(pixels[[3, 1]], [3, 1]))
    assert torch.equal(part, whole[[3, 1]])
    assert not torch.equal(whole[0], whole[1])


class Recorder(nn.Module):
    """An encoder that keeps what it was shown."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.shown: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.shown = x
        features: list[torch.Tensor] = self.encoder(x)
        return features


def test_the_network_sees_black_where_the_mask_is_and_the_original_elsewhere() -> None:
    mae = method()
    recorder = Recorder(Encoder((4, 8)))
    mae.encoder = recorder  # type: ignore[assignment]
    batch = batch_of(torch.rand(2, 3, 16, 16) + 0.1)
    mae(batch, 0.0)
    mask, original = mae.mask(batch), batch.views[0].pixels
    assert recorder.shown is not None
    assert torch.equal(recorder.shown == 0, mask.expand(-1, 3, -1, -1))
    assert torch.equal(recorder.shown + original * mask, original)


def test_the_loss_is_on_all_or_on_masked_pixels() -> None:
    batch = batch_of(torch.rand(2, 3, 16, 16))
    everywhere, found = method()(batch, 0.0)
    hidden, same = method(loss_on="masked")(batch, 0.0)
    assert float(everywhere.detach()) == float(found["error"]) == float(same["error"])
    assert float(hidden.detach()) == float(found["masked_error"])
    assert float(everywhere.detach()) != float(hidden.detach())


def test_a_loss_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_on: masked needs something masked"):
        schema.MAE(name="mae", masking="none", loss_on="masked")
