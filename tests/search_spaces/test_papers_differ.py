"""A study of a paper says of its differences from the paper what is true of its settings, and nothing is left unsaid.

One row: part of a sentence of `report.differs`, and the settings of which it speaks. In each study that shows published
values the sentence stands where some cell has these settings, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest

from pretune.search_spaces.resolve import Study, load
from tests.search_spaces.test_papers_stated import FOLDER, STATED

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SHOWN = [name for name in NAMES if "\npublished:" in (FOLDER / f"{name}.yaml").read_text("utf-8")]
Plain = dict[str, Any]  # settings of a cell or a stage, defaults filled in


def has(settings: Plain | None, **wanted: Any) -> bool:
    return settings is not None and all(settings.get(key) == value for key, value in wanted.items())


def pretrained(cell: Plain, method: str = "") -> list[Plain]:
    """Stages that train on views of images (by `method`, if given); volumes have no views."""
    trained = [s for s in cell["pretrain"] if s["method"]["name"] not in ("weights", "none", "genesis")]
    return [stage for stage in trained if method in ("", stage["method"]["name"])]


def tuned(**wanted: Any) -> Callable[[Plain], bool]:
    return lambda cell: has(cell["finetune"], **wanted)


def views(**wanted: Any) -> Callable[[Plain], bool]:
    return lambda cell: any(has(stage["views"], **wanted) for stage in pretrained(cell))


def method(name: str, **wanted: Any) -> Callable[[Plain], bool]:
    return lambda cell: any(has(stage["method"], **wanted) for stage in pretrained(cell, name))


def padded(cell: Plain) -> bool:
    return cell["finetune"] is not None and has(cell["data"][cell["finetune"]["data"]], fit="pad")


def by_felzenszwalb(cell: Plain) -> bool:
    return any(has(data.get("regions"), name="felzenszwalb") for data in cell["data"].values())


def adam_for(batch: int) -> Callable[[Plain], bool]:
    return lambda cell: (
        tuned(steps=5000, batch_size=batch)(cell) and has(cell["finetune"]["optimizer"], name="adam", lr=1e-3)
    )


def by_public_command(cell: Plain) -> bool:
    return any(
        has(stage, batch_size=16)
        and has(stage["optimizer"], name="lars", lr=0.3, weight_decay=1e-4)
        and has(stage["views"], color_jitter=1.0, gray=0.2, blur=0.5)
        for stage in pretrained(cell)
    )


SAID: Mapping[str, Callable[[Plain], bool]] = {
    "Views are resized without antialiasing": lambda cell: bool(pretrained(cell)),
    "Colour jitter has a fixed order": lambda cell: any(s["views"]["color_jitter"] > 0 for s in pretrained(cell)),
    "Padding is ignored in loss and score": padded,
    "crops are resized with antialiasing": lambda cell: has((cell["finetune"] or {}).get("augment"), antialias=True),
    "without the output layer": tuned(transfer="encoder+decoder"),
    "Regions are Felzenszwalb's": by_felzenszwalb,
    "Images are cached as their central square": by_felzenszwalb,
    "A frozen encoder keeps its batch-norm statistics": tuned(freeze="encoder"),
    "Four-task ConRec has no public code": lambda cell: any(
        len(stage["method"]["tasks"]) == 4 for stage in pretrained(cell, "conrec")
    ),
    "MoCo has temperature 0.07": method("moco", temperature=0.07, symmetric=True),
    "The linear probe trains on features": lambda cell: any(has(p, kind="linear") for p in cell["probe"].values()),
    "Patches of 20 px do not divide 128 px": method("mae", masking="patches", patch=20),
    "SimCLR's head (512, batch norm, 128), jitter in 80 % of the views": lambda cell: (
        has(cell["model"], name="unet", convolutions=2, norm="batch")
        and views(color_jitter_probability=0.8)(cell)
        and any(has(s["method"], hidden=512, dim=128, head_norm=None) for s in pretrained(cell, "simclr"))
    ),
    "crops of at least half the image, apply to both views": views(crop=[0.5, 1.0], extra_probability=1.0),
    "solarize at 0.5, posterize to 3 to 5 bits": lambda cell: any(
        stage["views"]["extra"] and has(stage["views"], solarize_threshold=None, posterize_bits=None)
        for stage in pretrained(cell)
    ),
    "Adam 1e-3 for 5,000 steps at a batch of 8,": adam_for(8),
    "Adam 1e-3 for 5,000 steps at a batch of 16,": adam_for(16),
    "64 px, 150,000 pretraining steps": lambda cell: any(
        has(stage, steps=150000) and has(stage["views"], size=64) for stage in pretrained(cell)
    ),
    "LARS 0.3, weight decay 1e-4, a batch of 16, jitter of strength 1.0) with gray 0.2 and blur 0.5": by_public_command,
    "Schedules are cosine over 100 and 60 epochs": lambda cell: (
        has(cell["model"], name="genesis-unet") and tuned(epochs=60)(cell)
    ),
    "chosen by validation Jaccard": tuned(checkpoint="best"),
    "Equation 6 is doubled": lambda cell: any(has(s["method"], alpha=1.0) for s in pretrained(cell, "pixelcl++")),
    "Adam 1e-3, cross-entropy with dice, a batch of 32, flips, 100 epochs": tuned(
        loss="dice+cross-entropy", batch_size=32, epochs=100
    ),
}


@cache
def study(name: str) -> Study:
    return load(FOLDER / f"{name}.yaml")


def text_of(name: str) -> str:
    return " ".join(study(name).header.report.differs or ())


@pytest.mark.parametrize("name", NAMES)
def test_a_study_with_published_values_says_what_differs_from_the_paper(name: str) -> None:
    report = study(name).header.report
    assert (report.differs is not None) == bool(report.published) == (name in SHOWN)
    assert all(sentence.endswith(".") for sentence in report.differs or ())


@pytest.mark.parametrize("name", SHOWN)
def test_a_sentence_on_settings_stands_where_they_are_and_nowhere_else(name: str) -> None:
    cells = [cell.configuration().model_dump(mode="json") for cell in study(name).cells]
    wrong = [part for part, true in SAID.items() if (part in text_of(name)) != any(map(true, cells))]
    assert not wrong, text_of(name)


def test_every_row_is_of_a_study() -> None:
    every = " ".join(map(text_of, SHOWN))
    assert [part for part in SAID if part not in every] == []


@pytest.mark.parametrize("name", SHOWN)
def test_the_number_of_seeds_is_said(name: str) -> None:
    said = text_of(name).lower()
    assert study(name).header.seeds.report.pretrain == 3
    assert "three seeds" in said or "every replicate has a pretraining of its own" in said


def test_what_deviates_from_a_stated_setting_is_said_in_its_study() -> None:
    """Rows of test_papers_stated.py: `...; deviates: part of the sentence`."""
    rows = [(name, stated.where.partition("deviates: ")[2]) for name, rows in STATED.items() for stated in rows]
    said = [(name, part) for name, part in rows if part and name in SHOWN]
    assert len(said) >= 4
    assert [(name, part) for name, part in said if part not in text_of(name)] == []
