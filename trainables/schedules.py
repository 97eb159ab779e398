"""Schedules as pure functions of the step, so that a resumed run needs no state and a test needs no training."""

from __future__ import annotations

import math

from pretune.search_spaces import schema


def learning_rate(
    schedule: schema.Schedule, base_lr: float, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """The rate of optimiser step `step` (0 to total_steps - 1).

    Warm-up is linear: 1/w, 2/w, ..., 1 of the rate over its w steps, so the first step already learns. A step decay
    counts its epochs from the start of training; a cosine and a polynomial run from the end of the warm-up to
    `total_steps`, which the last step is one short of (torch's CosineAnnealingLR with T_max = total_steps, and
    PolynomialLR with total_iters).
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in 0 to {total_steps - 1} (total_steps - 1), got {step}")
    warmup = schedule.warmup_epochs * steps_per_epoch
    if warmup >= total_steps:
        raise ValueError(f"warmup_epochs {schedule.warmup_epochs} is {warmup} steps, training only {total_steps}")
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return base_lr * rise * _decay(schedule, step, steps_per_epoch, warmup, total_steps)


def _decay(schedule: schema.Schedule, step: int, steps_per_epoch: int, warmup: int, total_steps: int) -> float:
    if isinstance(schedule, schema.Step):
        return schedule.gamma ** (step // (schedule.every * steps_per_epoch))
    if isinstance(schedule, schema.Cosine):
        return cosine_ramp(1.0, schedule.final, max(0, step - warmup), total_steps - warmup)
    if isinstance(schedule, schema.Polynomial):
        return math.pow(1 - max(0, step - warmup) / (total_steps - warmup), schedule.power)
    return 1.0


def cosine_ramp(start: float, end: float, step: float, total: float) -> float:
    """Half a cosine from `start` (step 0) to `end` (step `total`): of a rate, or of BYOL's momentum (to 1)."""
    if not 0 <= step <= total or total == 0:
        raise ValueError(f"step must be in 0 to total, and total positive, got step {step} of {total}")
    return end + (start - end) * (1 + math.cos(math.pi * step / total)) / 2
