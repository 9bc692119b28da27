"""docs/compatibility.md promises only what a test holds."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT, _, NOT_KEPT = (ROOT / "docs" / "compatibility.md").read_text().partition("## Not kept (yet)")


def rows(text: str) -> list[str]:
    """Return the rows of the tables in `text`, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| earlier |", "|---"))]


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(rows(KEPT)) > 30, "the table was not found"
    for row in rows(KEPT):
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.rstrip(" |").rpartition(" | ")[2])
        assert named, f"no test holds: {row}"
        for file, name in named:
            path = ROOT / file
            assert path.is_file(), f"{file} is not there"
            found = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
            assert name in found, f"{file} has no test {name}"


def test_what_is_not_kept_has_a_reason() -> None:
    assert rows(NOT_KEPT)
    assert [row for row in rows(NOT_KEPT) if len([cell for cell in row.split(" | ") if cell.strip(" |")]) != 3] == []
