"""What a report of ours holds, read back from its page."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)


def charts_of(page: str) -> dict[str, dict[str, Any]]:
    """Return the charts that the page draws, as Plotly gets them, by title."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    return {chart["title"]: chart for chart in json.loads(found[1])} if found else {}


def series_of(chart: dict[str, Any]) -> dict[str, list[float]]:
    """Return the y values of each series of a chart, by name."""
    return {one["name"]: one["y"] for one in chart["data"]}


def text_of(page: str) -> str:
    """Return what a reader reads, without tags."""
    return unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", SCRIPT.sub("", page), flags=re.DOTALL)))


def assert_stands_alone(page: str) -> None:
    """See that the page names nothing outside itself, but for what is in the chart library, which fetches nothing."""
    markup = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r'(src|href|srcset|action|data)="(?!data:)', markup)
    assert not re.search(r"https?:|url\(|@import", re.sub(r'id="charts">.*?</script>', "", markup, flags=re.DOTALL))
