"""What the tests with real containers share: they are skipped where no engine answers."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins"))  # as Airflow does

pytest.register_assert_rewrite("tests.plugins.launcher_conformance")

from nightshift.launchers.base import JobSpec, command_options  # noqa: E402
from nightshift.launchers.docker.launcher import DockerLauncher  # noqa: E402
from nightshift.launchers.docker.settings import DockerSettings  # noqa: E402
from nightshift_common.task_instance import TaskInstanceKey  # noqa: E402

JOBS = ROOT / "tests" / "plugins" / "jobs_for_tests"


@pytest.fixture(scope="session")
def engine() -> Any:
    """A client of this machine's engine."""
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return client


def build(*names: str) -> None:
    """Build images of this checkout; what did not change takes seconds."""
    done = subprocess.run([str(ROOT / "docker" / "build"), *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def job_image(engine: Any) -> str:
    """The image of the training jobs."""
    if os.environ.get("NIGHTSHIFT_TEST_IMAGES") != "as-they-are":
        build("training")
    return "nightshift/training:dev"


@dataclass
class Bench:
    """A launcher, and what the tests' jobs share with them."""

    launcher: DockerLauncher
    marks: Path
    task_instance: TaskInstanceKey
    states: dict[str, str] = field(default_factory=dict)

    def spec(self, how: str = "succeed", **changes: Any) -> JobSpec:
        """Return a job that ends in some way."""
        options = command_options({"how": how, "marks": "/marks"})
        fields = {
            "module": "jobs_for_tests.example",
            "options": options,
            "runtime": "jobs",
            "task_instance": self.task_instance,
        }
        return JobSpec(**{**fields, **changes})

    def with_settings(self, client: Any = None, **changes: Any) -> DockerLauncher:
        """Return a launcher with other settings."""
        settings = DockerSettings.model_validate({**self.launcher.settings.model_dump(), **changes})
        return DockerLauncher(client or self.launcher.client, settings, self.launcher.task_state)


@pytest.fixture
def bench(engine: Any, job_image: str, tmp_path: Path) -> Iterator[Bench]:
    """A launcher whose containers are gone after the test."""
    marks = tmp_path / "marks"
    marks.mkdir()
    marks.chmod(0o777)  # jobs are not root
    task_instance = TaskInstanceKey("retrain_digits", f"manual__{uuid.uuid4().hex}", "train", -1, 1)
    settings = DockerSettings(
        images={"jobs_for_tests": job_image, "missing": "nightshift/no-such-image:dev"},
        volumes=(f"{JOBS}:/opt/nightshift/jobs_for_tests", f"{marks}:/marks"),
        memory="512m",
        shm="64m",
    )
    states: dict[str, str] = {}
    launcher = DockerLauncher(engine, settings, lambda found: states.get(found.run_id, "running"))
    yield Bench(launcher, marks, task_instance, states)
    for container in engine.containers.list(all=True, filters={"label": f"nightshift.run_id={task_instance.run_id}"}):
        container.remove(force=True, v=True)
