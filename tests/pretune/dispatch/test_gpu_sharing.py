"""Advice to share a GPU: from what stage runs took of its memory."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.dispatch.gpu_sharing import Taken, advice, fitting
from pretune.search_spaces import schema
from pretune.search_spaces.stages import Stage

GB = 1e9


def stage(**resources: Any) -> Stage:
    data, settings = schema.Scenes(dataset="scenes"), schema.Finetune(data="d", steps=1)
    asked = schema.StageResources(**resources)
    return Stage("finetune", "finetune", settings, schema.UNet(), data, "", {}, None, asked, False, "f")


@pytest.mark.parametrize(
    ("most", "total", "fit"),
    [
        (10 * GB, 80 * GB, 5),  # 80 / (13 + 0.8) = 5.8
        (1 * GB, 80 * GB, 8),  # 38 would fit
        (70 * GB, 80 * GB, 1),  # 91.8 would not: it ran, so one does
        (0.0, 1.6 * GB, 2),
    ],
)
def test_how_many_fit_by_memory(most: float, total: float, fit: int) -> None:
    assert fitting(Taken(stage(), most, total)) == fit


def test_advice_names_the_key_and_the_share() -> None:
    (sentence,) = advice({"finetune": Taken(stage(), 10 * GB, 80 * GB)})
    assert sentence.startswith(
        "finetune: at most 10.0 of the GPU's 80 GB were used; with resources.finetune.gpus: 0.2 "
    )


@pytest.mark.parametrize(
    "resources", [{"gpus": 0.25}, {"gpus": 2}, {"workers": 2, "gpus_per_worker": 1}], ids=["shared", "two", "group"]
)
def test_no_advice_where_it_would_gain_little(resources: dict[str, Any]) -> None:
    """5 would fit where 4 already share; and what takes more than one GPU is not packed."""
    assert advice({"finetune": Taken(stage(**resources), 10 * GB, 80 * GB)}) == []


def test_half_of_the_memory_must_be_left() -> None:
    assert advice({"finetune": Taken(stage(), 40 * GB, 80 * GB)}) == []


@pytest.mark.parametrize("fit", range(2, 9))
def test_as_many_as_the_sentence_says_fit_on_one_gpu(fit: int) -> None:
    most = (80 * GB / (fit + 0.5) - 0.8 * GB) / 1.3
    (sentence,) = advice({"finetune": Taken(stage(), most, 80 * GB)})
    each = float(sentence.split("gpus: ")[1].split()[0])
    assert f"up to {fit} stage runs" in sentence
    assert each * fit <= 1
