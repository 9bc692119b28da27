"""Fixtures: one PostgreSQL and one service on one Triton for a whole run."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import postgres
from tests.services.model_storage.support import Database, Storage, new_triton, serving, settings_for


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """PostgreSQL; tests that stop it start it again."""
    folder = Path(tempfile.mkdtemp())
    running = Database(folder)
    running.start()
    yield running
    running.stop()
    postgres.remove(running.data)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database_url(database: Database) -> Iterator[str]:
    """An empty database for one test; the next one gets it again, since making one takes long."""
    url = database.lend()
    yield url
    database.take_back(url)


@pytest.fixture(scope="session")
def storage(database: Database) -> Iterator[Storage]:
    """One service for the tests that do not stop anything; each uses a model name of its own."""
    folder = Path(tempfile.mkdtemp())
    triton = new_triton(folder)
    triton.start()
    triton.wait_ready()
    with serving(triton, settings_for(triton, database.new())) as running:
        yield running
    triton.stop(0.1)  # unloading dozens of models in order takes half a minute
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def model() -> str:
    """A model name that no other test uses."""
    return f"m{uuid.uuid4().hex[:8]}"
