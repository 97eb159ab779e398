"""Folders of a study's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretune.cli.options import folder_of
from pretune.results.tables import write_header
from pretune.search_spaces.resolve import Study, load

SCALES = {"small": {"finetune.steps": 2}, "a/b c": {"finetune.steps": 3}}


@pytest.fixture
def resolved(tiny: dict[str, Any], tmp_path: Path) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny | {"scales": SCALES}))
    return lambda scale, *overrides: load(file, scale, overrides)


def ran(study: Study, folder: Path) -> None:
    folder.mkdir(parents=True)
    write_header(study, folder)


@pytest.mark.parametrize(("scale", "name"), [(None, "tiny"), ("small", "tiny-small"), ("a/b c", "tiny-a-b-c")])
@pytest.mark.parametrize("before", [None, "whole"])
def test_a_scale_has_a_folder_of_its_own(
    resolved: Any, tmp_path: Path, scale: str | None, name: str, before: str | None
) -> None:
    if before is not None:
        ran(resolved(None), tmp_path / "tiny")
    assert folder_of(resolved(scale), scale, tmp_path) == tmp_path / name


def test_a_scale_that_ran_in_the_studys_folder_is_continued_there(resolved: Any, tmp_path: Path) -> None:
    ran(resolved("small"), tmp_path / "tiny")
    assert folder_of(resolved("small"), "small", tmp_path) == tmp_path / "tiny"
    # another study than the one that ran: other settings, another scale
    assert folder_of(resolved("small", "seeds.report=3"), "small", tmp_path) == tmp_path / "tiny-small"
    assert folder_of(resolved("a/b c"), "a/b c", tmp_path) == tmp_path / "tiny-a-b-c"


def test_the_folder_of_a_scale_comes_first_once_it_is_there(resolved: Any, tmp_path: Path) -> None:
    for name in ("tiny", "tiny-small"):
        ran(resolved("small"), tmp_path / name)
    assert folder_of(resolved("small"), "small", tmp_path) == tmp_path / "tiny-small"
