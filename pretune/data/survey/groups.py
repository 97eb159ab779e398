"""Groups of images that names tell, such as those of one patient."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

YEAR = re.compile(r"(19|20)\d\d")
GROUP_PATTERNS = (r"([^/_-]+)[_-][^/]*$", r"([^/]+)[_-][^/_-]*$")  # up to the first, or to the last, _ or - of the name


class Groups(NamedTuple):
    """Images that belong together, such as those of one patient."""

    setting: str | dict[str, str]  # as `split.group` takes it
    groups: int
    example: str


def find_groups(names: Sequence[str]) -> Groups | None:
    """Groups that names tell: parent folders or beginnings with a number in them, each of two images on average.

    `patient03_slice07` is one of patient03; `img_0012` and `Abyssinian_12` are of no group, and years are none.
    """
    candidates: list[tuple[str | dict[str, str], list[str | None]]] = [
        ("parent", [name.rpartition("/")[0] or None for name in names])
    ]
    for pattern in GROUP_PATTERNS:
        matches = (re.search(pattern, name) for name in names)
        candidates.append(({"pattern": pattern}, [one and one[1] for one in matches]))
    possible = [found for setting, keys in candidates if (found := _grouped(setting, keys, len(names)))]
    return next((one for one in possible if one.groups >= 5), possible[0] if possible else None)


def _grouped(setting: str | dict[str, str], keys: Sequence[str | None], count: int) -> Groups | None:
    held = {key for key in keys if key}
    numbered = all(re.search(r"\d", key) and not YEAR.fullmatch(key) for key in held)
    if None in keys or not 3 <= len(held) <= count / 2 or not numbered:
        return None
    return Groups(setting, len(held), min(held))
