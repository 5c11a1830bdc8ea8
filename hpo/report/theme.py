"""How all figures of the page look: white, quiet, and told apart without seeing colours."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BLACK, GREY, PALE = "#222222", "#8A8A8A", "#BBBBBB"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
"""Source: Okabe and Ito (2008), without their yellow, which paper does not show."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot")

_DIGITS = 6
_LONGEST = 22
_AXIS = {
    "showline": True,
    "linecolor": "#999999",
    "gridcolor": "#E8E8E8",
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": "#999999",
    "title": {"standoff": 8},
}
_TEMPLATE = {
    "layout": {
        "font": {"family": "Helvetica Neue, Helvetica, Arial, sans-serif", "size": 12, "color": BLACK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(SERIES),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"bgcolor": "white", "font": {"size": 12}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 64, "r": 16, "t": 48, "b": 52},
    }
}


def panels(rows: int, columns: int, *, height: int, **more: Any) -> go.Figure:
    """Return an empty figure of so many panels, so many pixels *height*."""
    figure = make_subplots(rows=rows, cols=columns, **more)
    figure.update_layout(template=_TEMPLATE, height=height)
    figure.update_annotations(font={"size": 12.5})  # the panels' titles
    return figure


def finished(figure: go.Figure) -> dict[str, Any]:
    """Return *figure* as plotly.js takes it, with the digits that a screen can show: thousands of numbers are on the page."""
    spec: dict[str, Any] = _rounded(figure.to_plotly_json())
    return spec


def _rounded(part: Any) -> Any:
    if isinstance(part, float):
        return float(f"{part:.{_DIGITS}g}")
    if isinstance(part, dict):
        return {name: _rounded(each) for name, each in part.items()}
    return [_rounded(each) for each in part] if isinstance(part, list | tuple) else part


def label(text: object) -> str:
    """Return *text* short, and so that plotly.js shows the letters of it and takes none for a tag."""
    words = str(text)
    return html.escape(words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…")
