"""Words that several parts of Pretune share: counts, and the names of a study and of a stage."""

from __future__ import annotations

ES = ("s", "x", "ch", "sh")  # endings of nouns that take -es: classes, boxes, batches


def counted(count: int, noun: str) -> str:
    """'1 image', '2 searches', '12,000 test images'; of nouns with a regular plural."""
    return f"{count:,} {plural(noun, count)}"


def plural(noun: str, count: int = 2) -> str:
    """The noun as it stands behind `count`: 'image' behind 1, else 'images'."""
    return noun if count == 1 else f"{noun}{'es' if noun.endswith(ES) else 's'}"


def titled(study: str, scale: str) -> str:
    """'leaves', or 'leaves (scale first)': nobody should take the numbers of a scale for those of the whole study."""
    return f"{study} (scale {scale})" if scale else study


def stage_title(stage: str, method: str) -> str:
    """'pretrain simclr', 'pretrain.0 weights', 'finetune': a stage's name, and of a pretraining its method."""
    return f"{stage} {method}" if method else stage
