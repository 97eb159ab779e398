"""Printing of numbers, the same everywhere: digits by the uncertainty, a true minus, small p as "< 0.001"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

DASH = "–"


def decimals(spreads: Sequence[float]) -> int:
    """Decimals of a fraction that keep two leading digits of the median spread, between 2 and 4; 3 without spreads."""
    positive = [abs(spread) for spread in spreads if spread]
    if not positive:
        return 3
    return min(4, max(2, 1 - math.floor(math.log10(float(np.median(positive))))))


def number(value: float, digits: int, percent: bool, sign: bool = False) -> str:
    """With a true minus; what rounds to zero has no sign."""
    scaled, decimals = (100 * value, max(0, digits - 2)) if percent else (value, digits)
    text = f"{scaled:+.{decimals}f}" if sign else f"{scaled:.{decimals}f}"
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def in_unit(value: float, digits: int, percent: bool) -> str:
    """A number in a sentence: '71.2 %' or '0.712'."""
    return number(value, digits, percent) + (" %" if percent else "")


def p_value(p: float) -> str:
    """Three digits; a dash where there was no test."""
    return DASH if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def out_of(n: int, expected: int) -> str:
    """'2 of 3'; '3' where none is missing."""
    return f"{n} of {expected}" if n < expected else str(n)


def few(names: Sequence[str], most: int = 6) -> str:
    """'a, b, c and 4 more'."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
