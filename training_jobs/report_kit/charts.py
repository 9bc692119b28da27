"""The charts of reports, as Plotly takes them: plain data, so that making one imports no library.

Plotly reads a little HTML in texts: names that come from data are escaped here once more. Colors are such that lines
keep a contrast of 3:1 to the page in light and in dark; what else depends on the scheme is set in `report.js`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from training_jobs.report_kit.blocks import Chart, Table

BLUE, ORANGE, GREEN, PURPLE, RED, GRAY = "#3b82c4", "#d97706", "#2f9e63", "#9466cc", "#d9534f", "#7d8590"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, GRAY)
DASHES = ("solid", "dash", "dot", "dashdot")  # so that lines are told apart without colors too
LONGEST_TICK = 18  # characters of a label at an axis; the whole of it is in the hover text
NUMBERED_CELLS = 15  # classes up to which each cell of a matrix shows its count
LABELED_CELLS = 24  # classes up to which each row of a matrix has its label
NORMAL_95 = 1.96  # standard errors to each side of an estimate, of an interval that has it in 95 of 100 cases
SHARE_RANGE = [-0.02, 1.02]


@dataclass(frozen=True)
class Interval:
    """A value with what it may be between; `detail` is shown on hover."""

    label: str
    value: float
    low: float
    high: float
    met: bool = True
    detail: str = ""

    @classmethod
    def around(cls, label: str, value: float, standard_error: float, met: bool = True, detail: str = "") -> Interval:
        """Return the 95 % interval of an estimate, by the normal approximation."""
        half = NORMAL_95 * standard_error
        return cls(label, value, value - half, value + half, met, detail)


@dataclass(frozen=True)
class RankedCurve:
    """Precision and recall of a model at falling confidence thresholds, and where its own threshold lies."""

    name: str
    confidence: Sequence[float]
    precision: Sequence[float]
    recall: Sequence[float]
    threshold: float
    threshold_precision: float
    threshold_recall: float


def lines(
    title: str,
    x_name: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    y_name: str = "",
    log_x: bool = False,
    marked: float | None = None,
) -> Chart:
    """Return a chart of several series over the same `x`; `marked`: where on the x axis a line stands."""
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": _plain(name), "x": list(x), "y": _finite(values),
            "line": {"color": COLORS[n % len(COLORS)], "dash": DASHES[n % len(DASHES)], "width": 2},
            "marker": {"size": 9 if len(x) == 1 else 5 if len(x) <= 60 else 1}, "hovertemplate": "%{y:.4g}",
        }
        for n, (name, values) in enumerate(series.items())
    ]  # fmt: skip
    layout = _layout(x_name, y_name, legend=len(series) > 1)
    layout["hovermode"] = "x unified"
    layout["xaxis"] |= {"unifiedhovertitle": {"text": f"{_plain(x_name)} %{{x}}"}}
    if log_x:
        layout["xaxis"] |= {"type": "log"}
    else:
        room = max(0.02 * (x[-1] - x[0]), 0.25)
        layout["xaxis"] |= {"range": [x[0] - room, x[-1] + room], **({"dtick": 1} if len(x) <= 12 else {})}
    if marked is not None:
        layout["shapes"] = [_vertical(marked)]
    rows = [[f"{at:g}", *(f"{values[n]:.6g}" for values in series.values())] for n, at in enumerate(x)]
    return Chart(title, data, layout, Table([x_name, *series], rows))


def bars(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    value_name: str,
    details: Sequence[str] = (),
) -> Chart:
    """Return horizontal bars from 0 to 1 at least, one of each series a label; `details` of a label show on hover."""
    names, shown = _whole(labels), list(details) or [""] * len(labels)
    places = list(range(len(labels)))
    data = [
        {
            "type": "bar", "orientation": "h", "name": _plain(name), "x": _finite(values), "y": places,
            "customdata": [[label, _plain(detail)] for label, detail in zip(names, shown, strict=True)],
            "marker": {"color": COLORS[n % len(COLORS)]},
            "hovertemplate": "%{customdata[0]}: %{x:.4f}<br>%{customdata[1]}<extra>%{fullData.name}</extra>",
        }
        for n, (name, values) in enumerate(series.items())
    ]  # fmt: skip
    layout = _layout(value_name, "", height=110 + (16 + 14 * len(series)) * len(labels), legend=len(series) > 1)
    layout["yaxis"] |= _rows_of(labels)
    top = max((value for values in series.values() for value in values if math.isfinite(value)), default=1)
    layout["xaxis"] |= {"range": [0, max(1.0, top) * 1.02]}
    layout |= {"barmode": "group", "bargap": 0.25}
    rows = [
        [label, *(f"{values[n]:.6g}" for values in series.values()), *([shown[n]] if details else [])]
        for n, label in enumerate(labels)
    ]
    header = ["", *series, *(["of which"] if details else [])]
    return Chart(title, data, layout, Table(header, rows))


def intervals(
    title: str, rows: Sequence[Interval], value_name: str, margin: float | None = None, margin_name: str = ""
) -> Chart:
    """Return a point with its interval for each row, those that are not met in red, and a line for the margin."""
    data = []
    for met, color, name in ((True, BLUE, "met"), (False, RED, "not met")):
        chosen = [(place, row) for place, row in enumerate(rows) if row.met is met]
        if chosen:
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": name, "showlegend": False,
                    "x": [row.value for _, row in chosen], "y": [place for place, _ in chosen],
                    "error_x": {
                        "type": "data", "symmetric": False, "color": color, "thickness": 2, "width": 6,
                        "array": [row.high - row.value for _, row in chosen],
                        "arrayminus": [row.value - row.low for _, row in chosen],
                    },
                    "marker": {"color": color, "size": 9, "symbol": "circle" if met else "diamond"},
                    "customdata": [
                        [_plain(row.label), row.low, row.high, f"<br>{_plain(row.detail)}" if row.detail else ""]
                        for _, row in chosen
                    ],
                    "hovertemplate": "%{customdata[0]}: %{x:+.4f}<br>%{customdata[1]:+.4f} to %{customdata[2]:+.4f}"
                    "%{customdata[3]}<extra></extra>",
                }
            )  # fmt: skip
    layout = _layout(value_name, "", height=110 + 34 * len(rows))
    layout["yaxis"] |= _rows_of([row.label for row in rows])
    layout["xaxis"] |= {"zeroline": True}
    if margin is not None:
        layout["shapes"] = [_vertical(margin)]
        layout["annotations"] = [
            {"x": margin, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": _plain(margin_name)}
        ]
        layout["margin"] |= {"t": 28}
        seen = [margin, *(edge for row in rows for edge in (row.low, row.high))]
        room = 0.05 * ((max(seen) - min(seen)) or 1)
        layout["xaxis"] |= {"range": [min(seen) - room, max(seen) + room]}
    table = [[row.label, f"{row.value:+.6g}", f"{row.low:+.6g}", f"{row.high:+.6g}"] for row in rows]
    return Chart(title, data, layout, Table(["", value_name, "low", "high"], table))


def confusion_matrix(
    title: str, labels: Sequence[str], counts: Sequence[Sequence[int]], other: str = "another class"
) -> Chart:
    """Return the matrix of `counts`, true classes as rows; a column more than labels is `other`.

    A cell is colored by its share of the true class, blue where that is right and red where it is not.
    """
    columns = [*labels, other][: len(counts[0])]
    true, answered = _whole(labels), _whole(columns)
    totals = [sum(row) for row in counts]
    shares = [[count / total if total else 0.0 for count in row] for row, total in zip(counts, totals, strict=True)]
    heat = {
        "type": "heatmap", "xgap": 1, "ygap": 1, "zmin": -1, "zmax": 1, "showscale": False,
        "x": list(range(len(columns))), "y": list(range(len(labels))),
        "z": [[share if t == p else -share for p, share in enumerate(row)] for t, row in enumerate(shares)],
        "customdata": [
            [[count, share, true[t], answered[p]] for p, (count, share) in enumerate(zip(*of_class, strict=True))]
            for t, of_class in enumerate(zip(counts, shares, strict=True))
        ],
        "hovertemplate": "%{customdata[2]} answered as %{customdata[3]}<br>%{customdata[0]} pictures, "
        "%{customdata[1]:.1%} of its class<extra></extra>",
    }  # fmt: skip
    if len(labels) <= NUMBERED_CELLS:
        heat |= {"text": [[str(count or "") for count in row] for row in counts], "texttemplate": "%{text}"}
    side = max(220, min(720, 34 * len(labels)))
    layout = _layout("answered", "true", height=side + 120)
    every = max(1, math.ceil(len(labels) / LABELED_CELLS))
    layout["xaxis"] |= {**_ticks(columns, every), "showgrid": False, **({"tickangle": -60} if len(columns) > 4 else {})}
    layout["yaxis"] |= {**_ticks(labels, every), "autorange": "reversed", "showgrid": False}
    rows = [[label, *map(str, row)] for label, row in zip(labels, counts, strict=True)]
    numbers = Table(["true \\ answered", *columns], rows)
    return Chart(title, [heat], layout, numbers, "Color: the share of the true class. Rows: true.", widest=side + 240)


def precision_recall(title: str, curves: Sequence[RankedCurve]) -> Chart:
    """Return precision over recall of each model, with a mark where its own threshold is."""
    data: list[dict[str, Any]] = []
    for n, curve in enumerate(curves):
        color = COLORS[n % len(COLORS)]
        at_threshold = "threshold %{customdata:.4f}<br>precision %{y:.4f}<br>recall %{x:.4f}"
        data += [
            {
                "type": "scatter", "mode": "lines", "name": _plain(curve.name), "x": _finite(curve.recall),
                "y": _finite(curve.precision), "customdata": _finite(curve.confidence),
                "line": {"color": color, "dash": DASHES[n % len(DASHES)], "width": 2}, "hovertemplate": at_threshold,
            },
            {
                "type": "scatter", "mode": "markers", "name": f"{_plain(curve.name)} at its threshold",
                "x": [curve.threshold_recall], "y": [curve.threshold_precision], "customdata": [curve.threshold],
                "marker": {"color": color, "size": 11, "symbol": "circle" if n == 0 else "diamond"},
                "hovertemplate": at_threshold,
            },
        ]  # fmt: skip
    layout = _layout("recall", "precision", height=420)
    layout["xaxis"] |= {"range": SHARE_RANGE}
    layout["yaxis"] |= {"range": SHARE_RANGE}
    return Chart(title, data, layout, _curve_numbers(curves), widest=720)


def f1_by_threshold(title: str, curves: Sequence[RankedCurve]) -> Chart:
    """Return F1 over the confidence threshold of each model, with a mark where its own threshold is."""
    data: list[dict[str, Any]] = []
    for n, curve in enumerate(curves):
        color = COLORS[n % len(COLORS)]
        f1 = [_f1(p, r) for p, r in zip(curve.precision, curve.recall, strict=True)]
        own = _f1(curve.threshold_precision, curve.threshold_recall)
        shown = "threshold %{x:.4f}<br>F1 %{y:.4f}"
        data += [
            {
                "type": "scatter", "mode": "lines", "name": _plain(curve.name), "x": _finite(curve.confidence),
                "y": _finite(f1), "line": {"color": color, "dash": DASHES[n % len(DASHES)], "width": 2},
                "hovertemplate": shown,
            },
            {
                "type": "scatter", "mode": "markers", "name": f"{_plain(curve.name)} at its threshold",
                "x": [curve.threshold], "y": [own], "hovertemplate": shown,
                "marker": {"color": color, "size": 11, "symbol": "circle" if n == 0 else "diamond"},
            },
        ]  # fmt: skip
    layout = _layout("confidence threshold", "F1", height=340)
    layout["xaxis"] |= {"range": SHARE_RANGE}
    layout["yaxis"] |= {"range": SHARE_RANGE}
    return Chart(title, data, layout, _curve_numbers(curves), widest=720)


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> Chart:
    """Return a reliability diagram: `bins` are (mean confidence, share right, pictures), 0..1 each."""
    largest = max((count for *_, count in bins), default=1)
    data = [
        {
            "type": "scatter", "mode": "lines", "name": "as sure as right", "x": [0, 1], "y": [0, 1],
            "line": {"color": GRAY, "dash": "dash", "width": 1}, "hoverinfo": "skip",
        },
        {
            "type": "scatter", "mode": "lines+markers", "name": "pictures of a bin",
            "x": [confidence for confidence, *_ in bins], "y": [right for _, right, _ in bins],
            "customdata": [count for *_, count in bins], "line": {"color": BLUE, "width": 1},
            "marker": {"color": BLUE, "size": [7 + 14 * (count / largest) ** 0.5 for *_, count in bins]},
            "hovertemplate": "%{customdata} pictures<br>confidence %{x:.3f}<br>right %{y:.3f}<extra></extra>",
        },
    ]  # fmt: skip
    layout = _layout("confidence", "share right", height=380)
    layout["xaxis"] |= {"range": SHARE_RANGE}
    layout["yaxis"] |= {"range": SHARE_RANGE}
    rows = [[f"{confidence:.4f}", f"{right:.4f}", str(count)] for confidence, right, count in bins]
    return Chart(title, data, layout, Table(["confidence", "share right", "pictures"], rows), widest=620)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _curve_numbers(curves: Sequence[RankedCurve]) -> Table:
    rows = [
        [curve.name, f"{confidence:.4f}", f"{precision:.4f}", f"{recall:.4f}", f"{_f1(precision, recall):.4f}"]
        for curve in curves
        for confidence, precision, recall in zip(curve.confidence, curve.precision, curve.recall, strict=True)
    ]
    return Table(["model", "threshold", "precision", "recall", "F1"], rows)


def _layout(x_name: str, y_name: str, height: int = 320, legend: bool = True) -> dict[str, Any]:
    return {
        "height": height, "margin": {"l": 56, "r": 16, "t": 12, "b": 48}, "hovermode": "closest", "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": _axis(x_name), "yaxis": _axis(y_name),
    }  # fmt: skip


def _plain(text: str) -> str:
    """Return a text as Plotly shows it unchanged: it reads tags, and no entity for quotation marks."""
    return escape(text, quote=False)


def _axis(name: str) -> dict[str, Any]:
    title = {"text": _plain(name), "standoff": 12}
    return {"title": title, "automargin": True, "zeroline": False, "ticks": "outside", "exponentformat": "power"}


def _rows_of(labels: Sequence[str]) -> dict[str, Any]:
    return {**_ticks(labels), "autorange": "reversed", "showgrid": False}


def _ticks(labels: Sequence[str], every: int = 1) -> dict[str, Any]:
    short = [name if len(name) <= LONGEST_TICK else f"{name[: LONGEST_TICK - 1]}…" for name in labels]
    return {"tickvals": list(range(0, len(labels), every)), "ticktext": [_plain(name) for name in short[::every]]}


def _whole(labels: Sequence[str]) -> list[str]:
    return [_plain(label) for label in labels]


def _vertical(x: float) -> dict[str, Any]:
    line = {"color": GRAY, "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _finite(values: Iterable[float]) -> list[float | None]:
    """Return the values as JSON has them; what is no number leaves a gap."""
    return [float(value) if math.isfinite(value) else None for value in values]
