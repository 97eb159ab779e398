"""Faults that no test of this project can see, each with its reason."""

from __future__ import annotations

EXCUSED: dict[str, dict[str, str]] = {}
