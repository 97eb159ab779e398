"""Counts are written with the noun that fits them."""

import pytest

from pretune.search_spaces.words import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "search", "1 search"),
        (3, "search", "3 searches"),
        (2, "class", "2 classes"),
        (2, "fine-tuning", "2 fine-tunings"),
        (12_000, "test image", "12,000 test images"),
    ],
)
def test_a_noun_follows_its_count(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text
