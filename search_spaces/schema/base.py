"""Base class of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
)


class Settings(BaseModel):
    """Base of all settings: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def neutral(self) -> Mapping[str, Any]:
        """Values of optional keys that mean the same as leaving them out."""
        return {}


def meaning_of(settings: Settings, dumped: Mapping[str, Any]) -> dict[str, Any]:
    """Dumped settings without optional ones that say what leaving them out means: one result has one name."""
    neutral = settings.neutral()
    return {
        key: _meaning(getattr(settings, key), value)
        for key, value in dumped.items()
        if key not in neutral or getattr(settings, key) not in (None, neutral[key])
    }


def _meaning(value: Any, dumped: Any) -> Any:
    if isinstance(value, Settings):
        return meaning_of(value, dumped)
    if isinstance(value, tuple):
        return [_meaning(item, shown) for item, shown in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {key: _meaning(value[key], shown) for key, shown in dumped.items()}
    return dumped


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _labels(value: object) -> object:
    """'10%' -> 0.1 (a fraction); 74 -> 74 (a count); 'all' -> 1.0."""
    if value == "all":
        return 1.0
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    if isinstance(value, float) and value > 1.0:
        raise ValueError("write a count as a whole number (74), a fraction as a percentage (10%) or below 1 (0.1)")
    return value


Labels = Annotated[
    PositiveInt | Annotated[float, Field(gt=0.0, le=1.0)],
    BeforeValidator(_labels),
]


def default_name(name: str) -> BeforeValidator:
    """`optimizer: {lr: 0.01}` means the default optimizer with another rate."""
    return BeforeValidator(lambda value: {"name": name, **value} if isinstance(value, dict) else value)
