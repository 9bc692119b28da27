"""Tables of the documents, as the tests compare them with what they describe."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table(page: str, first_column: str) -> list[list[str]]:
    """Return the rows of the one table of a page whose first column is called so.

    Raises:
        AssertionError: there is none, or more than one.
    """
    found: list[list[list[str]]] = []
    lines = (ROOT / page).read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"| {first_column} |") and lines[number + 1].startswith("|---"):
            rows = []
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]])
            found.append(rows)
    assert len(found) == 1, f"{page} has {len(found)} tables with the first column {first_column!r}"
    return found[0]


def quoted(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)
