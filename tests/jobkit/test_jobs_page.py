"""The page about jobs says what the jobs check."""

import re

from jobkit import reference


def test_the_page_is_the_one_that_the_jobs_make() -> None:
    assert reference.PAGE.read_text() == reference.page(), "make it anew: python -m jobkit.reference > docs/jobs.md"


def test_every_option_says_what_it_means() -> None:
    rows = [line for line in reference.page().splitlines() if line.startswith("| `--")]
    assert len(rows) > 100
    assert not [row for row in rows if row.endswith("|  |")]


def test_every_job_is_on_the_page() -> None:
    jobs = {path.stem for package in reference.PACKAGES for path in (reference.ROOT / package).glob("*.py")}
    on_page = {
        line.strip("#` ").rpartition(".")[2] for line in reference.page().splitlines() if line.startswith("### ")
    }
    assert jobs - on_page == {"__init__"}, "what is run stands at the top of its package, what it uses in rooms"


def test_every_table_of_the_page_is_whole() -> None:
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in reference.page().splitlines() if line.startswith("|")]
    rows = [line for line in reference.page().splitlines() if line.startswith("|") or line.endswith("|")]
    assert len(rows) == len(widths) and set(widths) <= {4, 5}, "a line break or a bar in a cell breaks the table"
    assert not [row for row in rows if re.search(r"(?<!\\)<\w", re.sub(r"`[^`]*`", "", row))], "HTML to Markdown"
