"""The search in figures: history, importances, slices, parallel coordinates. Only trials with all their folds have a value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.importance import Importance
from hpo.report import theme
from hpo.report.axes import Axis

_STRIP = {TrialState.PRUNED: ("pruned", theme.ORANGE), TrialState.FAIL: ("failed", theme.VERMILLION)}
_SLICES_A_ROW = 3
_BEST_SHARE, _GOOD_SHARE = 0.1, 0.25
_VALUE = "mean balanced accuracy, adjusted"


def history(trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return the values of the ranked trials over their numbers, the best so far, and below them who was pruned or failed."""
    strip = {name: [each.number for each in trials if each.state == state] for state, (name, _) in _STRIP.items()}
    rows = 2 if any(strip.values()) else 1
    heights = [0.82, 0.18] if rows == 2 else [1.0]  # noqa: PLR2004 - of two rows
    figure = theme.panels(rows, 1, height=420, shared_xaxes=True, row_heights=heights, vertical_spacing=0.04)
    by_number = sorted(ranked, key=lambda trial: trial.number)
    numbers = [trial.number for trial in by_number]
    values = [trial.value for trial in by_number]
    best = list(itertools.accumulate((trial.values[0] for trial in by_number), max))
    many = len(trials) > 300  # noqa: PLR2004 - dots of the usual size would be a cloud
    figure.add_scatter(
        x=numbers, y=values, mode="markers", name="all folds", row=1, col=1,
        marker={"color": theme.BLUE, "size": 4 if many else 8, "opacity": 0.6 if many else 0.85},
        hovertemplate="trial %{x}: %{y:.4f}<extra></extra>",
    )  # fmt: skip
    last = [trials[-1].number] if trials else []
    figure.add_scatter(
        x=numbers + last, y=best + best[-1:], mode="lines", name="best so far", row=1, col=1,
        line={"color": theme.BLACK, "width": 1.5, "shape": "hv"}, hovertemplate="best so far: %{y:.4f}<extra></extra>",
    )  # fmt: skip
    for name, colour in _STRIP.values():
        if at := strip[name]:
            figure.add_scatter(
                x=at, y=[name] * len(at), mode="markers", name=name, row=2, col=1,
                marker={"color": colour, "symbol": "line-ns-open" if many else "x", "size": 8},
                hovertemplate="trial %{x}<extra></extra>",
            )  # fmt: skip
    figure.update_yaxes(title_text=_VALUE, row=1, col=1)
    if rows > 1:
        there = [name for name in reversed(strip) if strip[name]]
        figure.update_yaxes(
            type="category", categoryorder="array", categoryarray=there, range=[-0.6, len(there) - 0.4], showgrid=False,
            row=2, col=1,
        )  # fmt: skip
    figure.update_xaxes(title_text="trial", row=rows, col=1)
    figure.update_xaxes(range=[-0.8, max((trial.number for trial in trials), default=1) + 0.8], tickformat="d")
    return theme.finished(figure)


def importances(found: Importance) -> dict[str, Any]:
    """Return the shares of both methods, the most important parameter on top."""
    parameters = found.parameters[::-1]
    figure = theme.panels(1, 1, height=110 + 44 * len(parameters))
    methods = (("fANOVA", "fanova", theme.SKY), ("PED-ANOVA", "ped_anova", theme.BLUE))
    for name, method, colour in methods:
        shares = [getattr(each, method) for each in parameters]
        figure.add_bar(
            y=[theme.label(each.name) for each in parameters], x=shares, orientation="h",
            name=name, marker={"color": colour}, textposition="outside", cliponaxis=False,
            text=["not known" if share is None else f"{share:.0%}" for share in shares],
            hovertemplate="%{y}: %{x:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(bargap=0.3, barmode="group", legend={"traceorder": "reversed"})
    shares = [share for each in parameters for share in (each.ped_anova, each.fanova) if share is not None]
    figure.update_xaxes(range=[0, max(shares, default=1.0) * 1.1], tickformat=".0%", title_text="share", nticks=6)
    figure.update_yaxes(automargin=True, showgrid=False)
    return theme.finished(figure)


def slices(ranked: Sequence[FrozenTrial], axes: Sequence[Axis]) -> dict[str, Any]:
    """Return the value over each parameter, the best trial marked."""
    rows = math.ceil(len(axes) / _SLICES_A_ROW)
    columns = min(_SLICES_A_ROW, len(axes))
    figure = theme.panels(
        rows, columns, height=70 + 240 * rows, shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=min(0.3, 0.28 / rows), subplot_titles=[theme.label(axis.name) for axis in axes],
    )  # fmt: skip
    few = len(ranked) <= 300  # noqa: PLR2004 - as above
    for index, axis in enumerate(axes):
        cell = {"row": index // columns + 1, "col": index % columns + 1}
        dots = {"color": theme.BLUE, "size": 6 if few else 4, "opacity": 0.7 if few else 0.35}
        star = {"color": theme.VERMILLION, "size": 11, "symbol": "star"}
        for trials, marker in ((ranked[1:], dots), (ranked[:1], star)):
            shown = [trial for trial in trials if axis.name in trial.params]
            figure.add_scatter(
                x=[axis.place(trial) for trial in shown], y=[trial.value for trial in shown],
                mode="markers", customdata=[trial.number for trial in shown], marker=marker, showlegend=False,
                hovertemplate=f"trial %{{customdata}}: %{{y:.4f}}{_at(axis)}<extra></extra>", **cell,
            )  # fmt: skip
        figure.update_xaxes(**_scale(axis), **cell)
        if cell["col"] == 1:
            figure.update_yaxes(title_text="value", **cell)
    figure.update_layout(margin={"t": 64})
    return theme.finished(figure)


def _at(axis: Axis) -> str:
    return "" if axis.choices else ", %{x:.3g}"


def _scale(axis: Axis) -> dict[str, Any]:
    """Return how plotly.js draws *axis*, with a little room at both ends."""
    low, high = axis.ends()
    if axis.choices:
        marks = [theme.label(mark) for _, mark in axis.marks()]
        return {"tickvals": list(range(len(marks))), "ticktext": marks, "range": [low, high], "showgrid": False}
    if axis.log and low > 0:
        room = 0.04 * (math.log10(high) - math.log10(low))
        return {
            "type": "log", "range": [math.log10(low) - room, math.log10(high) + room], "exponentformat": "power",
            "dtick": max(1, round((math.log10(high) - math.log10(low)) / 4)),
        }  # fmt: skip
    room = 0.04 * (high - low)
    whole = {"tickformat": "d", "dtick": max(1, round((high - low) / 4))} if axis.whole else {"nticks": 5}
    return {"range": [low - room, high + room], **whole}


def parallel(ranked: Sequence[FrozenTrial], axes: Sequence[Axis]) -> dict[str, Any]:
    """
    Return each ranked trial as a line through its parameters to its value; a parameter that it does not have is left out.

    Drawn as lines, since plotly's own parallel coordinates want WebGL and the right to make code at run time.
    """
    figure = theme.panels(1, 1, height=430)
    values = [trial.values[0] for trial in ranked]
    low, high = min(values), max(values)
    best, good = math.ceil(_BEST_SHARE * len(ranked)), math.ceil(_GOOD_SHARE * len(ranked))
    groups = (
        (ranked[good:], "the others", theme.PALE, 1.0),
        (ranked[best:good], "the best quarter", theme.SKY, 1.5),
        (ranked[:best], "the best tenth", theme.VERMILLION, 2.5),
    )
    for trials, name, colour, width in groups:
        if not trials:
            continue
        x: list[float | None] = []
        y: list[float | None] = []
        who: list[int | None] = []
        for trial in reversed(trials):
            heights = [*(axis.height(trial) for axis in axes), (trial.values[0] - low) / (high - low or 1)]
            points = [(place, height) for place, height in enumerate(heights) if height is not None]
            x += [*(place for place, _ in points), None]
            y += [*(round(height, 4) for _, height in points), None]
            who += [*(trial.number for _ in points), None]
        figure.add_scatter(
            x=x, y=y, customdata=who, mode="lines", name=name, line={"color": colour, "width": width},
            opacity=0.6 if name == "the others" else 0.85, hovertemplate="trial %{customdata}<extra></extra>",
        )  # fmt: skip
    marks = [axis.marks() for axis in axes] + [[(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")]]
    names = [*(theme.label(axis.name) for axis in axes), "<b>value</b>"]
    for place, (name, beside) in enumerate(zip(names, marks, strict=True)):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": theme.BLACK, "width": 1})
        figure.add_annotation(x=place, y=1.07, text=name, showarrow=False, yanchor="bottom")
        for height, text in beside:
            figure.add_annotation(
                x=place, y=height, text=text, showarrow=False, xanchor="right" if place == len(axes) else "left",
                xshift=-4 if place == len(axes) else 4, font={"size": 11}, bgcolor="rgba(255,255,255,0.75)",
            )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) + 0.15])
    figure.update_yaxes(visible=False, range=[-0.05, 1.16])
    figure.update_layout(margin={"l": 16, "b": 16}, hovermode="closest")
    return theme.finished(figure)
