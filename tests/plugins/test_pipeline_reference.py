"""The page about pipeline files says what the model checks."""

from pathlib import Path

import yaml

from nightshift.pipelines.pipeline_file import Pipeline
from nightshift.pipelines.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pipelines.md"


def test_the_page_is_the_one_that_the_model_makes() -> None:
    assert PAGE.read_text() == reference(), "make it anew: cd plugins && python -m nightshift.pipelines.reference"


def test_the_example_on_the_page_is_a_valid_pipeline() -> None:
    example = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    assert Pipeline.model_validate(yaml.safe_load(example)).data.group == "footwear"


def test_every_key_says_what_it_means() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 25
    assert not [row for row in rows if row.endswith("|  |")]
