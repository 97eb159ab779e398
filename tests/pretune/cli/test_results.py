"""Commands that use a study's best model say which it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.cli.results import introduce

CARD = {
    "cell": "start=pretrained labels=all",
    "seed": 2,
    "target": "val/jaccard",
    "scores": {"val/jaccard": 0.70946, "test/jaccard": 0.65562, "val/dice": 0.8},
    "warnings": ["one seed"],
}


def card_in(folder: Path, card: object) -> Path:
    (folder / "best").mkdir()
    (folder / "best" / "model.json").write_text(card if isinstance(card, str) else json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "start=pretrained labels=all, seed 2, val/jaccard 0.709, test/jaccard 0.656"),
        ({"target": "val/dice"}, "start=pretrained labels=all, seed 2, val/dice 0.800"),
        ({"target": "test/jaccard"}, "start=pretrained labels=all, seed 2, test/jaccard 0.656"),
        ({"cell": "", "scores": {}}, "the only cell, seed 2"),
    ],
)
def test_the_model_is_named_before_its_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    introduce(card_in(tmp_path, CARD | change))
    assert capsys.readouterr().err.splitlines() == [f"best model: {said} ({tmp_path / 'best'})", "warning: one seed"]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("{", []),
        ("[]", []),
        ("{}", []),
        (json.dumps(CARD | {"scores": {"val/jaccard": "good"}}), ["warning: one seed"]),
    ],
)
def test_a_damaged_card_is_left_to_whoever_loads_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], card: str, said: list[str]
) -> None:
    introduce(card_in(tmp_path, card))
    assert capsys.readouterr().err.splitlines() == said
