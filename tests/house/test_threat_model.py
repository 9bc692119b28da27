"""The threat model, `docs/security.md`: each of its lines names tests that are there and that `make test` runs."""

import re
from pathlib import Path

from tests.run import PARTS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
LINES = [line for line in TEXT.split("\n## ", 1)[0].splitlines() if line.startswith("| ") and "tried by" not in line]


def test_each_line_names_tests_that_run() -> None:
    folders = [folder for part in PARTS for folder in part.folders]
    assert len(LINES) >= 11
    for line in LINES:
        tests = re.findall(r"`(tests/[^`]+)`", line.rpartition(" | ")[2] + line.split(" | ")[-1])
        assert tests, line
        for test in tests:
            assert (ROOT / test).is_file(), f"{test} of the line {line[:60]}"
            assert any(test.startswith(f"{folder}/") for folder in folders), f"{test} is run by no part of tests/run.py"


def test_each_line_leads_to_its_section() -> None:
    headings = {anchor(line) for line in TEXT.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(#([^)]+)\)", "\n".join(LINES)):
        assert target in headings, target


def anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")
