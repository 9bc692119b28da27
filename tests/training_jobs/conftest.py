"""A job in this process, with a bottle and a group of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobkit import job
from jobkit.bottle import FolderBottle


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep out what the environment of the test run names."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "NIGHTSHIFT_DATABASE_URL",
        "NIGHTSHIFT_STORAGE_URL",
        "NIGHTSHIFT_TASK_INSTANCE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bottle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderBottle:
    """An empty bottle, named by `NIGHTSHIFT_BOTTLE`."""
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(tmp_path / "bottle"))
    return FolderBottle(tmp_path / "bottle")


@pytest.fixture
def context(bottle: FolderBottle, tmp_path: Path) -> job.Context:
    """What a job that was started by hand has at hand."""
    (tmp_path / "job").mkdir()
    return job.Context(tmp_path / "job", None)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """A group that no other test uses, and the same one each time, since the split depends on its name."""
    return f"group_{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"
