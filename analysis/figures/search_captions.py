"""Caption and alternative text of the figures of searches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from pretune.analysis.figures.captions import described
from pretune.analysis.questions.budget import Budget
from pretune.analysis.questions.contour import Surface
from pretune.analysis.questions.importance import Importance
from pretune.analysis.questions.pairs import Parallel
from pretune.analysis.questions.sensitivity import Panel, PanelGroup
from pretune.search_spaces.words import counted


def sensitivity(figure: go.Figure, group: PanelGroup) -> go.Figure:
    trials = sum(len(one.x) for one in group.panels[0].searches)
    searches = counted(len(group.panels[0].searches), "search")
    caption = f"{group.metric} of {counted(trials, 'trial')} of {group.stage} in {searches} over each "
    caption += "searched parameter. Marks: trials, the mean over search seeds, bars one standard deviation; stars: "
    caption += "values chosen for the table. Line: the mean of all searches, band its pointwise 95 % interval."
    return described(figure, caption, map(_panel, group.panels))


def _panel(panel: Panel) -> str:
    parts = [panel.failures] if panel.failures else []
    if panel.curve is not None:
        mean, at = panel.curve.mean, panel.curve.x
        high, low = int(np.argmax(mean)), int(np.argmin(mean))
        parts += [f"mean {mean[high]:.3g} at {_place(panel, at[high])}, {mean[low]:.3g} at {_place(panel, at[low])}"]
    chosen = sorted({_place(panel, x) for one in panel.searches for x in one.x[one.confirmed]})
    parts += [f"chosen {', '.join(chosen[:4])}"] if chosen else []
    return f"{panel.parameter}: {'; '.join(parts) or 'too few trials for a mean'}"


def _place(panel: Panel, x: float) -> str:
    return panel.options[round(x)] if panel.options else f"{x:.2g}"


def importance(figure: go.Figure, found: Importance) -> go.Figure:
    what = "95 % interval" if found.method == "main effects" else "5th to 95th percentile over resampled trials"
    caption = f"Importance of each parameter by {found.method}, {counted(found.trials, 'trial')}. Bars: {what}. "
    caption += "Vertical marks: what chance reaches when scores are permuted; filled: above it."
    numbers = zip(found.parameters, found.share, found.low, found.high, found.floor, strict=True)
    items = (
        f"{name}: {_percent(share, low, high)}, chance reaches {floor:.0%}: {'above' if share > floor else 'not above'}"
        for name, share, low, high, floor in numbers
    )
    return described(figure, caption, items)


def _percent(share: float, low: float, high: float) -> str:
    return f"{share:.0%} [{low:.0%}, {high:.0%}]" if math.isfinite(low) else f"{share:.0%}"


def parallel(figure: go.Figure, found: Parallel) -> go.Figure:
    trials, parameters = counted(len(found.rank), "trial"), counted(len(found.axes) - 1, "parameter")
    caption = f"{trials} of {found.search} as lines over {parameters}; the last axis "
    caption += f"is {found.axes[-1].name}. Lines that share a value lie side by side."
    caption += f" Dotted: {counted(len(found.endings), 'trial')} without a score." if found.endings else ""
    return described(figure, caption, (label for label, _ in reversed(found.groups)))


def budget(figure: go.Figure, found: Sequence[Budget]) -> go.Figure:
    caption = f"The best {found[0].metric} by the number of trials, of {counted(len(found), 'search')}. "
    caption += "Dotted: the best so far, in the order tried."
    if any(len(one.n) for one in found):
        caption += " Line: the expected best of so many of the trials in any order, with a 95 % interval"
        caption += " (scored on a seed that did not choose)." if any(one.held_out for one in found) else "."
    if any(math.isfinite(one.ahead) for one in found):
        caption += " Wedge: what as many trials again may bring, at most twice what the second half brought."
    return described(figure, caption, (f"{one.search}: {one.sentence}" for one in found))


def contour(figure: go.Figure, found: Surface) -> go.Figure:
    trials = counted(len(found.trials), "trial")
    caption = f"{found.metric} over {found.x_name} and {found.y_name}: a smooth surface through {trials} "
    caption += f"of {found.search}, which predicts {found.predicted:.0%} of the variance of trials left aside. "
    caption += "Dots: trials in the colour of their score. Colours span six standard deviations over seeds, or more."
    x, y, value = found.best
    lowest = float(np.nanmin(found.values)), float(np.nanmax(found.values))
    items = [f"best {value:.3g} at {found.x_name} {x:.2g} and {found.y_name} {y:.2g}"]
    items += [f"surface from {lowest[0]:.3g} to {lowest[1]:.3g}"]
    items += [f"{counted(len(found.lost), 'trial')} failed"] if len(found.lost) else []
    return described(figure, caption, items)
