"""Line and bar charts as SVG text: a report that needs no script, no font and no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 480, 240, 58
COLORS = ("#1f5fa8", "#c0392b", "#2e8b57", "#8e5ea2")


def lines(title: str, x: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Return a chart of several series over the same `x`."""
    values = [value for one in series.values() for value in one]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    span_x = (x[-1] - x[0]) or 1

    def place(at: float, value: float) -> str:
        return (
            f"{MARGIN + (at - x[0]) / span_x * (WIDTH - 2 * MARGIN):.1f},"
            f"{HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN):.1f}"
        )

    parts = [_frame(title, f"{low:.3g}", f"{high:.3g}", f"{x[0]:g}", f"{x[-1]:g}")]
    for number, (name, one) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(place(at, value) for at, value in zip(x, one, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(x) == 1:
            left, top = points.split(",")
            parts.append(f'<circle cx="{left}" cy="{top}" r="3" fill="{color}"/>')
        parts.append(f'<text x="{MARGIN + 8 + 110 * number}" y="34" fill="{color}">{escape(name)}</text>')
    return _svg(parts)


def reliability(title: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """Return a reliability diagram: `bins` are (mean confidence, share right, pictures), 0..1 each."""
    side_x, side_y = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    parts = [_frame(title, "0", "1", "0", "confidence 1")]
    parts.append(
        f'<line x1="{MARGIN}" y1="{HEIGHT - MARGIN}" x2="{WIDTH - MARGIN}" y2="{MARGIN}" stroke="#999" '
        'stroke-dasharray="4"/>'
    )
    largest = max((count for *_, count in bins), default=1)
    for confidence, right, count in bins:
        parts.append(
            f'<circle cx="{MARGIN + confidence * side_x:.1f}" cy="{HEIGHT - MARGIN - right * side_y:.1f}" '
            f'r="{3 + 6 * (count / largest) ** 0.5:.1f}" fill="{COLORS[0]}" fill-opacity="0.7">'
            f"<title>{count} pictures: confidence {confidence:.3f}, right {right:.3f}</title></circle>"
        )
    return _svg(parts)


def _frame(title: str, low: str, high: str, first: str, last: str) -> str:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    return (
        f'<text x="{MARGIN}" y="16" font-weight="bold">{escape(title)}</text>'
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="#666"/>'
        f'<text x="{MARGIN - 4}" y="{MARGIN + 4}" text-anchor="end">{escape(high)}</text>'
        f'<text x="{MARGIN - 4}" y="{bottom}" text-anchor="end">{escape(low)}</text>'
        f'<text x="{MARGIN}" y="{bottom + 16}">{escape(first)}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{escape(last)}</text>'
    )


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(parts)}</svg>'
