"""Every optimiser and schedule that a study can name, in the forms that differ."""

from __future__ import annotations

from typing import Any

STREAMS = {"init": 1, "order": 2, "augmentation": 3, "split": 4, "labels": 5}

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.8, "weight_decay": 0.1},
    "sgd without momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.0},
    "nesterov": {"name": "sgd", "lr": 0.05, "nesterov": True, "weight_decay": 0.1, "decay": "weights"},
    "lars": {"name": "lars", "lr": 5.0, "momentum": 0.7, "weight_decay": 0.1, "trust_coefficient": 0.01},
    "adam": {"name": "adam", "lr": 0.01, "betas": [0.8, 0.95], "weight_decay": 0.1},
    "adam on weights": {"name": "adam", "lr": 0.01, "weight_decay": 0.1, "decay": "weights"},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "adamw with a ramp": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "weight_decay_end": 0.7},
    "adamw on weights": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "weight_decay_end": 0.7, "decay": "weights"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant"},
    "constant after a warm-up": {"name": "constant", "warmup_epochs": 2},
    "step": {"name": "step", "every": 1, "gamma": 0.3},
    "step after a warm-up": {"name": "step", "every": 2, "gamma": 0.3, "warmup_epochs": 1},
    "cosine": {"name": "cosine"},
    "cosine after a warm-up": {"name": "cosine", "final": 0.1, "warmup_epochs": 1},
    "polynomial after a warm-up": {"name": "polynomial", "warmup_epochs": 1},
}
