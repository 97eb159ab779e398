"""docs/settings.md: what the schema has, with a meaning for every setting."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page", TOP / "docs" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["settings_page"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_schemas(settings: ModuleType) -> None:
    there, expected = settings.PAGE.read_text("utf-8").splitlines(), settings.page().splitlines()
    changed = [line for line in (*there, *expected) if (line in there) != (line in expected)]
    assert there == expected, "run python docs/settings.py; it would change " + "; ".join(changed)


def test_every_setting_has_a_meaning(settings: ModuleType) -> None:
    bare = [
        f"{file}.py: {group.title}: {setting.name}"
        for file in settings.PARTS
        for group in settings.groups_of(settings.SCHEMA / f"{file}.py")
        for setting in group.settings
        if not setting.meaning
    ]
    assert bare == []


def test_every_method_and_model_says_what_it_is(settings: ModuleType) -> None:
    bare = [
        group.title
        for file in ("methods", "model")
        for group in settings.groups_of(settings.SCHEMA / f"{file}.py")
        if group.title.startswith("`") and not group.words
    ]
    assert bare == []


def test_no_setting_is_in_no_study_no_other_page_and_no_test(settings: ModuleType) -> None:
    assert settings.unused() == []
