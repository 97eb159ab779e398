"""Drawing the time line of a study: a bar for every stage run."""

from __future__ import annotations

import plotly.graph_objects as go

from pretune.analysis.figures import captions
from pretune.analysis.figures.theme import COLORS, figure_layout, tall, text
from pretune.analysis.load.timeline import Timeline

MOST_SPANS = 3000  # stage runs that the figure draws


def timeline_plot(found: Timeline) -> go.Figure | None:
    """A bar for every stage run on its lane, coloured by stage; None where there are more than MOST_SPANS."""
    if len(found.spans) > MOST_SPANS:
        return None
    figure = go.Figure(layout=figure_layout(tall(found.lanes)))
    for place, stage in enumerate(dict.fromkeys(span.stage for span in found.spans)):
        chosen = [span for span in found.spans if span.stage == stage]
        figure.add_bar(
            name=text(stage),
            orientation="h",
            base=[span.start for span in chosen],
            x=[span.seconds for span in chosen],
            y=[span.lane + 1 for span in chosen],
            customdata=[span.fingerprint for span in chosen],
            marker={"color": COLORS[place % len(COLORS)], "line": {"color": "white", "width": 0.5}},
            hovertemplate="%{base:.1f} s: %{x:.2f} s<br>%{customdata}",
        )
    figure.update_layout(barmode="overlay", bargap=0.3, showlegend=True)
    figure.update_xaxes(title="seconds since the first stage run")
    figure.update_yaxes(title="lane", dtick=1, autorange="reversed")
    return captions.time_line(figure, found)
