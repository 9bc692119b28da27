"""The kit of reports: what is in a page, and what a browser shows of it."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly
import plotly.graph_objects
import pytest

from tests.support import browser
from tests.support.browser import Page
from tests.support.reports import assert_stands_alone, charts_of, series_of, text_of
from training_jobs.report_kit import charts, page
from training_jobs.report_kit.blocks import Box, Chart, Listing, Picture, Pictures, Section, Table, Text

HOSTILE = '<img src=x onerror="document.title=1">&amp;$$x$$%{x}</script>'
NUMBERS = [0.125, 2.5, -3.0625]
CURVE = charts.RankedCurve("v1", [0.9, 0.5, 0.1], [1.0, 0.75, 0.5], [0.25, 0.5, 1.0], 0.5, 0.75, 0.5)
EACH = {
    "lines": charts.lines("lines", "epoch", [1, 2, 3], {"train_loss": NUMBERS, "val_loss": [1.0, float("nan"), 3.0]}),
    "log": charts.lines("log", "rate", [1e-5, 1e-3, 0.1], {"loss": NUMBERS}, log_x=True, marked=1e-3),
    "bars": charts.bars("bars", ["ant", "bee"], {"v1": [0.5, 0.25]}, "F1", ["20 pictures", "3 pictures"]),
    "intervals": charts.intervals(
        "intervals",
        [charts.Interval("accuracy", 0.02, -0.01, 0.05), charts.Interval("f1", -0.1, -0.2, 0.0, met=False)],
        "gain", 0.01, "least gain",
    ),
    "matrix": charts.confusion_matrix("matrix", ["ant", "bee"], [[8, 2, 0], [1, 3, 4]]),
    "pr": charts.precision_recall("pr", [CURVE]),
    "f1": charts.f1_by_threshold("f1", [CURVE]),
    "reliability": charts.reliability("reliability", [(0.5, 0.25, 4), (0.9, 1.0, 8)]),
}  # fmt: skip


def of(*chart: Chart) -> str:
    return page.page("a report", "all is well", [Section("charts", chart)])


@pytest.mark.parametrize("name", EACH)
def test_plotly_itself_takes_each_chart(name: str) -> None:
    """Its own validators know every property of a figure; they refuse one that does not exist."""
    (drawn,) = charts_of(of(EACH[name])).values()
    plotly.graph_objects.Figure({"data": drawn["data"], "layout": drawn["layout"]})
    with pytest.raises(ValueError, match="Invalid property"):
        plotly.graph_objects.Figure({"data": drawn["data"], "layout": {**drawn["layout"], "no_such": 1}})


def test_what_is_drawn_is_what_was_given() -> None:
    drawn = charts_of(of(*EACH.values()))
    assert series_of(drawn["lines"]) == {"train_loss": NUMBERS, "val_loss": [1.0, None, 3.0]}
    (bars,) = drawn["bars"]["data"]
    assert (bars["x"], [about[0] for about in bars["customdata"]]) == ([0.5, 0.25], ["ant", "bee"])
    met, missed = drawn["intervals"]["data"]
    assert (met["x"], met["customdata"][0][1:3]) == ([0.02], [-0.01, 0.05])
    assert met["error_x"]["array"] == pytest.approx([0.03]) and met["error_x"]["arrayminus"] == pytest.approx([0.03])
    assert missed["marker"]["color"] != met["marker"]["color"] and missed["marker"]["symbol"] != met["marker"]["symbol"]
    assert drawn["intervals"]["layout"]["shapes"][0]["x0"] == 0.01
    (heat,) = drawn["matrix"]["data"]
    assert [[cell[0] for cell in row] for row in heat["customdata"]] == [[8, 2, 0], [1, 3, 4]]
    assert heat["z"] == [[0.8, -0.2, 0.0], [-0.125, 0.375, -0.5]]
    line, mark = drawn["f1"]["data"]
    assert line["y"] == pytest.approx([0.4, 0.6, 2 / 3]) and (mark["x"], mark["y"]) == ([0.5], [pytest.approx(0.6)])


def test_the_numbers_of_a_chart_stand_in_a_table_too() -> None:
    text = text_of(of(EACH["lines"], EACH["matrix"]))
    assert all(f"{value:.6g}" in text for value in NUMBERS)
    assert re.search(r"ant\s+8\s+2\s+0\s+bee\s+1\s+3\s+4", text)


def test_every_text_is_escaped_wherever_it_stands() -> None:
    hostile = [
        Text(HOSTILE), Listing([HOSTILE]), Table([HOSTILE], [[HOSTILE]]), Table.of_pairs({HOSTILE: HOSTILE}),
        Pictures([Picture("data:,", HOSTILE, HOSTILE, (9, 9), [Box("good", 0, 0, 1, 1, HOSTILE)])]),
        charts.lines(HOSTILE, HOSTILE, [1], {HOSTILE: [1.0]}, HOSTILE),
        charts.bars(HOSTILE, [HOSTILE], {HOSTILE: [1.0]}, HOSTILE, [HOSTILE]),
        charts.intervals(HOSTILE, [charts.Interval(HOSTILE, 1, 0, 2, detail=HOSTILE)], HOSTILE, 0, HOSTILE),
        charts.confusion_matrix(HOSTILE, [HOSTILE], [[1, 1]], HOSTILE),
        charts.precision_recall(HOSTILE, [replace(CURVE, name=HOSTILE)]),
    ]  # fmt: skip
    found = page.page(HOSTILE, HOSTILE, [Section(HOSTILE, hostile)])
    assert "<img src=x" not in found and "</script>&" not in found
    assert found.count("<script") == found.count("</script>") == 3
    assert "<img src=x" in text_of(found), "it is shown as it is"
    for chart in json.loads(re.search(r'id="charts">(.*?)</script>', found, re.DOTALL)[1]):  # type: ignore[index]
        plotted = json.dumps([chart["data"], chart["layout"]])
        assert "<img" not in plotted and "&lt;img" in plotted, "Plotly reads HTML in texts"


def test_a_page_stands_alone_and_is_the_same_each_time() -> None:
    found = of(*EACH.values())
    assert_stands_alone(found)
    assert found == of(*EACH.values())
    packed = re.search(r'id="plotly">(.*?)</script>', found, re.DOTALL)
    assert packed is not None
    library = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    assert gzip.decompress(b64decode(packed[1])) == library.read_bytes()
    assert len(found) < 2_100_000
    plain = page.page("a report", "all is well", [Section("words", [Text("no chart")])])
    assert "<script" not in plain and len(plain) < 10_000


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colors, 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_and_lines_have_contrast_in_light_and_dark() -> None:
    """WCAG 2.2: 4.5 for text, 3 for what a chart is made of."""
    style = (page.FOLDER / "report.css").read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 2
    for colors in schemes:
        for ground in ("paper", "raised"):
            for name in ("ink", "muted", "good", "bad"):
                assert _contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
        for line in charts.COLORS:
            assert _contrast(line, colors["paper"]) >= 3, line
        for cell in ("right-cell", "wrong-cell"):
            assert _contrast("#ffffff", colors[cell]) >= 4.5, cell


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Page]]:
    """Open a report in a browser: of a width, in a color scheme."""
    program = browser.program()
    if program is None:
        pytest.skip(f"there is no browser on this machine: none of {', '.join(browser.PROGRAMS)}")
    folder = tmp_path_factory.mktemp("browser")
    with browser.open_page(program, folder) as tab:

        def show(content: str, width: int = 1440, scheme: str = "light") -> Page:
            (folder / "report.html").write_text(content)
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            _prefer(tab, scheme)
            tab.open((folder / "report.html").as_uri())
            tab.wait_for("document.documentElement.dataset.drawn", "the charts")
            return tab

        yield show


def _prefer(tab: Page, scheme: str) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


def _hover(tab: Page, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> str:
    """Move the mouse onto a place of an element, as shares of its size; return what the chart shows there."""
    middle = (
        f"(() => {{ const found = document.querySelector({selector!r}); found.scrollIntoView({{block: 'center'}});"
        "const box = found.getBoundingClientRect();"
        f"return [box.x + box.width * {at[0]}, box.y + box.height * {at[1]}]; }})()"
    )
    x, y = tab.wait_for(middle, selector)
    for step in (0, 1):
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
    text: str = tab.wait_for("document.querySelector('.hoverlayer').textContent || null", "a hover text")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    tab.wait_for("document.querySelector('.hoverlayer').textContent === ''", "no hover text")
    return text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_browser_shows_axes_and_the_value_under_the_mouse(
    shown: Callable[..., Page], width: int, scheme: str
) -> None:
    tab = shown(of(EACH["lines"]), width, scheme)
    ticks = tab.evaluate("[...document.querySelectorAll('.xtick, .ytick')].map((tick) => tick.textContent)")
    assert {"1", "2", "3"} <= set(ticks) and len(ticks) > 5
    said = _hover(tab, ".scatterlayer .trace:first-child .points path:nth-child(2)")
    assert "epoch 2" in said and "train_loss : 2.5" in said.replace("\xa0", " ")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    names = "['color', 'background-color'].map((name) => getComputedStyle(document.body).getPropertyValue(name))"
    ink, paper = tab.evaluate(names)
    tick = tab.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert (sum(_rgb(ink)) < sum(_rgb(paper))) == (scheme == "light")
    assert (sum(_rgb(tick)) < sum(_rgb(paper))) == (scheme == "light")


def test_charts_follow_when_the_system_turns_dark(shown: Callable[..., Page]) -> None:
    tab = shown(of(EACH["lines"]))
    fill = "getComputedStyle(document.querySelector('.xtick text')).fill"
    before = tab.evaluate(fill)
    _prefer(tab, "dark")
    tab.wait_for(f"{fill} !== {before!r}", "other colors")


def test_a_cell_of_the_matrix_says_its_counts_and_names_as_they_are(shown: Callable[..., Page]) -> None:
    tab = shown(of(charts.confusion_matrix("matrix", ["ant", HOSTILE], [[8, 2], [1, 3]])))
    said = _hover(tab, ".heatmaplayer .hm", at=(0.75, 0.25))
    assert f"ant answered as {HOSTILE}2 pictures, 20.0% of its class" in said
    said = _hover(tab, ".heatmaplayer .hm", at=(0.75, 0.75))
    assert f"{HOSTILE} answered as {HOSTILE}3 pictures, 75.0% of its class" in said
    labels = tab.evaluate("[...document.querySelectorAll('.ytick')].map((tick) => tick.textContent)")
    assert [label for label in labels if label] == ["ant", f"{HOSTILE[:17]}…"]
    assert tab.evaluate("document.title") == "a report"


def test_a_report_asks_the_network_for_nothing(shown: Callable[..., Page]) -> None:
    tab = shown(of(*EACH.values()))
    fetched = tab.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith(("data:", "blob:"))] == []
    drawn: Any = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('svg').length)"
    )
    assert len(drawn) == len(EACH) and min(drawn) > 0


def _rgb(color: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", color)[:3]]
