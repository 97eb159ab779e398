"""Models Genesis: restoring volumes (or images) that were shuffled, changed in intensity and painted over.

Zhou et al.: "Models Genesis: generic autodidactic models for 3D medical image analysis", MICCAI 2019, which P3's
Table 3 runs again. Loss: mean squared error over all voxels between the sigmoid of the output and the original.
"""

from __future__ import annotations

from torch import Tensor, nn

from pretune.search_spaces import schema
from pretune.trainables.methods.mae import constant_error, restoration_error
from pretune.trainables.methods.protocol import Batch, Parts
from pretune.trainables.models.interface import Decoder, Encoder, pixel_head, resized
from pretune.trainables.views.genesis import Rates, corrupt
from pretune.trainables.views.volumes import MIRROR_DRAWS, drawn_mirrors, mirror


class Genesis(nn.Module):
    """Encoder, decoder, and a convolution of side 1 to the volume's channels."""

    requirements = frozenset(schema.Genesis.facts.requires)

    def __init__(
        self, encoder: Encoder, decoder: Decoder, views: schema.Views, channels: int, *, rates: Rates, flip: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.output = pixel_head(decoder, channels)
        self.recipes = (views,)
        self.rates, self.flip = rates, flip

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """One view of (B, 1, D, H, W), or (B, 3, H, W) -> the error, and its share of that of a constant answer."""
        original, shown = self.pair(batch)
        error = restoration_error(self.restore(shown), original)
        if not batch.diagnosed:
            return error, {}
        relative = error.detach() / constant_error(original, batch.world).clamp(min=1e-8)
        return error, {"error": error.detach(), "loss_over_uniform": relative}

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The view, mirrored, and the same corrupted."""
        original = batch.views[0].pixels
        mirrored = drawn_mirrors(batch.draw("flip", MIRROR_DRAWS), self.flip, original.ndim - 2)
        original = mirror(original, mirrored, 2)
        return original, corrupt(original, batch.draw, self.rates)

    def restore(self, shown: Tensor) -> Tensor:
        """Return the restored images: the same shape, in [0, 1], float32."""
        logits = self.output(self.decoder(self.encoder(shown)))
        return resized(logits, (shown.shape[-2], shown.shape[-1])).float().sigmoid()

    def after_backward(self, epoch: int) -> None:
        """Nothing to do: all gradients are used as they are."""

    def after_step(self, progress: float) -> None:
        """Nothing to do: there is no momentum encoder and no queue."""


def build_genesis(method: schema.Genesis, views: schema.Views, parts: Parts) -> Genesis:
    rates = Rates(
        shuffle=method.shuffle,
        blocks=method.shuffle_blocks,
        intensity=method.intensity,
        paint=method.paint,
        in_paint=method.in_paint,
    )
    decoder = parts.decoder()
    return Genesis(parts.encoder, decoder, views, parts.encoder.channels, rates=rates, flip=method.flip)
