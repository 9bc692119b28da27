"""A project with the code of this one, in which the earlier tools' command lines are typed as documented."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cls", "convertation", "conversion_jobs", "jobkit", "nightshift_common", "training_jobs")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project without weights, models and data."""
    files = [path for name in PARTS for path in (ROOT / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in [*files, ROOT / "main.py"]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def shell(folder: Path, *command: str, code: int = 0, **environment: str) -> str:
    """Return what a command line says that ends with `code` in `folder`."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
