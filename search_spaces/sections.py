"""Reads configurations section by section: a section that was read without a fault is not read again.

The cells of a study share most of their sections, so that 10,000 cells hold a few hundred different ones.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pretune.search_spaces.check import check_finite, no_numbers, problems_of
from pretune.search_spaces.document import Locations, Problem
from pretune.search_spaces.schema import Configuration


class Sections:
    """The sections of one study that are free of faults, by key and text."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], Any] = {}

    def read(self, settings: dict[str, Any], locations: Locations) -> tuple[Configuration | None, list[Problem]]:
        """The same as `problems_of(Configuration, ...)` and `check_finite` of the whole."""
        texts = {key: (key, repr(value)) for key, value in settings.items()}  # 1, 1.0, true and "1" differ
        known = {key: self._read[text] for key, text in texts.items() if text in self._read}
        try:
            configuration = Configuration.model_validate(settings | known)
        except ValidationError:
            found, problems = problems_of(Configuration, settings, locations)
            return found, [*problems, *check_finite(settings, (), locations)]
        new = {key: value for key, value in settings.items() if key not in known}
        problems = [*no_numbers(new, configuration, (), locations), *check_finite(new, (), locations)]
        if not problems:
            self._read |= {texts[key]: getattr(configuration, key) for key in new}
        return configuration, problems
