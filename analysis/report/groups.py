"""A group of figures: what one place of the page shows in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import plotly.graph_objects as go

from pretune.analysis.digits import few
from pretune.analysis.figures.captions import alternative_of, caption_of

MOST_FIGURES = 24  # figures of one group on the page; `--figures` writes all of them

Shown = TypeVar("Shown")


class FigureGroup(NamedTuple):
    """Figures that one place of the page shows in turn."""

    title: str
    note: str
    figures: tuple[tuple[str, go.Figure], ...]  # (what it shows, the figure)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.figures)

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(caption_of(figure) for _, figure in self.figures)

    @property
    def alternatives(self) -> tuple[str, ...]:
        return tuple(alternative_of(figure) for _, figure in self.figures)

    @property
    def height(self) -> int:
        return max(int(figure.layout.height) for _, figure in self.figures)


def group_of(
    title: str, note: str, items: Sequence[tuple[str, Shown]], draw: Callable[[Shown], go.Figure], most: int
) -> FigureGroup:
    """The first `most` of the (name, what to draw), and how many are left out in the note."""
    left = [name for name, _ in items[most:]]
    if left:
        note += f" Not shown on this page: {len(left)} more ({few(left, 3)}). "
        note += "`pretune report FOLDER --figures svg` writes all."
    return FigureGroup(title, note.strip(), tuple((name, draw(item)) for name, item in items[:most]))
