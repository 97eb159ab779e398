"""The starter study: valid for whatever the folders and classes are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.cli.starter import starter
from pretune.search_spaces.resolve import from_yaml

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=20)


def test_without_folders_the_starter_is_a_valid_study_with_examples() -> None:
    study = from_yaml(starter("leaves", None, None, None))
    assert study.name == "leaves"
    assert len(study.cells) == 6
    assert "pretune run leaves.yaml" in starter("leaves", None, None, None)


def test_folders_become_a_root_and_two_names_below_it(tmp_path: Path) -> None:
    text = starter("s", tmp_path / "photos", tmp_path / "labels" / "fine", "background,leaf")
    data = yaml.safe_load(text)["data"]["mine"]
    assert data["root"] == str(tmp_path)
    assert (data["images"], data["masks"]) == ("photos", "labels/fine")
    assert data["classes"] == ["background", "leaf"]


def test_the_small_scale_is_valid_too() -> None:
    from_yaml(starter("s", None, None, None), "small")


@pytest.mark.parametrize("name", ["2024", "true", "null", "-a", ".hidden", "_x", "ü", "", "a b#c", "x" * 300, "1e3"])
def test_any_file_name_gives_a_valid_study_name(name: str) -> None:
    from_yaml(starter(name, None, None, None))


@settings(max_examples=60, deadline=None)
@given(
    folder=NAMES.filter(lambda name: "/" not in name and name not in (".", "..")), classes=st.lists(NAMES, min_size=1)
)
def test_odd_folders_and_classes_are_quoted(folder: str, classes: list[str]) -> None:
    given_classes = [name.replace(",", "").strip() or "x" for name in classes]
    text = starter("s", Path("/data") / folder / "a", Path("/data") / folder / "b", ",".join(given_classes))
    data = yaml.safe_load(text)["data"]["mine"]
    assert data["root"] == f"/data/{folder}"
    assert data["classes"] == given_classes


def test_yes_no_and_numbers_stay_names_of_classes() -> None:
    data = yaml.safe_load(starter("s", None, None, "no, yes, 3"))["data"]["mine"]
    assert data["classes"] == ["no", "yes", "3"]
