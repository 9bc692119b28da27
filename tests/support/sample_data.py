"""Real photographs for tests and benchmarks; they are not in the repository: `NIGHTSHIFT_TEST_DATA` is their folder.

CONTRIBUTING.md says what lies in it. Where it is not there, what needs it is skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "NIGHTSHIFT_TEST_DATA"
FOLDER = Path(os.environ.get(VARIABLE) or Path(__file__).resolve().parents[3] / "shared" / "data")
HYMENOPTERA = FOLDER / "hymenoptera"
"""Ants and bees: `labels.csv` (path, label, split) and `pictures/`."""
MISSING = f"there are no photographs in {FOLDER}: {VARIABLE} names their folder"
