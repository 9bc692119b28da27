"""A report as one HTML file that needs nothing beside it: no network, no font, no picture of its own."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training_jobs.report_kit.blocks import Chart, Section, Tone

FOLDER = Path(__file__).parent
PLOTLY = "package_data/plotly.min.js"


def page(title: str, verdict: str, sections: Sequence[Section], tone: Tone = "plain") -> str:
    """Return the report; `verdict` says in one sentence what it comes to, and `tone` colors it.

    Every text is escaped. A report with charts is 2 MB: plotly.js is in it, compressed.
    """
    sections = [section for section in sections if section.blocks]
    charts = [block for section in sections for block in section.blocks if isinstance(block, Chart)]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title, verdict=verdict, tone=tone, sections=sections,
            charts=[_drawn(chart) for chart in charts], plotly=_plotly() if charts else None,
            style=(FOLDER / "report.css").read_text(), script=(FOLDER / "report.js").read_text(),
        )
    )  # fmt: skip


def _drawn(chart: Chart) -> Mapping[str, Any]:
    return {"title": chart.title, "data": chart.data, "layout": chart.layout}


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _plotly() -> str:
    """Return plotly.js, as its Python package brings it, packed by gzip and in Base64: 2 MB in the place of 5.

    The package is not imported: a gate that only judges takes no array library for its page.
    """
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("plotly is not installed in this environment: requirements/jobs.in names it")
    return b64encode(gzip.compress((Path(found.origin).parent / PLOTLY).read_bytes(), 6, mtime=0)).decode()
