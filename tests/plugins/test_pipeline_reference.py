"""The page about pipeline files says what the model checks."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from nightshift.kinds import KINDS, AnyPipeline
from nightshift.pipelines.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"


def test_the_page_is_the_one_that_the_model_makes() -> None:
    assert PAGE.read_text() == reference(), "make it anew: see its first section"


@pytest.mark.parametrize("number", [0, 1])
def test_an_example_on_the_page_is_a_valid_pipeline(number: int) -> None:
    example = PAGE.read_text().split("```yaml\n")[number + 1].partition("```")[0]
    found = TypeAdapter(AnyPipeline).validate_python({"kind": "classification", **yaml.safe_load(example)})
    assert (found.kind, found.data.group) == [("classification", "footwear"), ("detection", "logos")][number]


def test_every_kind_has_its_sections_on_the_page() -> None:
    headings = [line for line in reference().splitlines() if line.startswith("## `kind: ")]
    assert headings == [f"## `kind: {kind}`" for kind in KINDS]


def test_every_key_says_what_it_means() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    assert not [row for row in rows if row.endswith("|  |")]


def test_every_table_of_the_page_is_whole() -> None:
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in reference().splitlines() if line.startswith("|")]
    rows = [line for line in reference().splitlines() if line.startswith("|") or line.endswith("|")]
    assert len(rows) == len(widths) and set(widths) <= {4, 5}, "a line break or a bar in a cell breaks the table"
    assert not [row for row in rows if re.search(r"(?<!\\)<\w", re.sub(r"`[^`]*`", "", row))], "HTML to Markdown"
