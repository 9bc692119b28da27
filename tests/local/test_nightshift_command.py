"""`./nightshift` before anything is installed: a sentence, and an exit code that reaches the shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder with a space, as far as `./nightshift` and make need it, with nothing installed."""
    folder = tmp_path / "night shift"
    folder.mkdir()
    for name in ("nightshift", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("status", 3, "nothing is installed yet: make run"),
        ("env", 3, "nothing is installed yet: make run"),
        ("predict", 3, "nothing is installed yet: make run"),
        ("down", 0, "nothing is running"),
        ("up", 1, "Nightshift needs Python 3.11, and there is no no-such-python here"),
        ("import", 1, "make PYTHON=/path/to/python3.11 import"),
    ],
)
def test_it_says_what_is_missing(checkout: Path, tmp_path: Path, command: str, code: int, says: str) -> None:
    environment = os.environ | {"PYTHON": "no-such-python"}
    done = subprocess.run(
        [checkout / "nightshift", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code and says in done.stdout + done.stderr
    made = subprocess.run(["make", command], cwd=checkout, env=environment, capture_output=True, text=True)
    assert made.returncode == (2 if code else 0) and says in made.stdout + made.stderr
