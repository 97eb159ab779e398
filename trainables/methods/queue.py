"""A first-in first-out queue of feature rows whose whole state is two buffers, and which never makes a GPU wait."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureQueue(nn.Module):
    """The last `length` L2-normalised rows of width `dim`; filled with random directions at first (MoCo).

    Attributes:
        rows: (length, dim) float32, in no particular order.
        seen: scalar int64, how many rows were ever pushed.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows by these, (B, dim) with B <= length."""
        places = (self.seen + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows.index_copy_(0, places, rows.to(self.rows.dtype))
        self.seen += len(rows)

    @property
    def full(self) -> Tensor:
        """Scalar bool, on the device: no random row is left."""
        return self.seen >= len(self.rows)
