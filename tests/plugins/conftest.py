"""What the tests of Airflow's side share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins"))  # as Airflow does

from tests.plugins.homes import make_home  # noqa: E402


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in miniature that `NIGHTSHIFT_HOME` names, its state beside it."""
    folder = make_home(tmp_path / "home")
    monkeypatch.setenv("NIGHTSHIFT_HOME", str(folder))
    monkeypatch.setenv("NIGHTSHIFT_STATE", str(tmp_path / "state"))
    return folder


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """The folder where jobs leave their marks."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
