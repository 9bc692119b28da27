"""The Docker launcher passes the suite of all launchers, on a real engine; the connection to it can be cut."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import docker
import pytest

from nightshift.launchers.base import Launcher
from nightshift.launchers.docker import launcher as docker_launcher
from nightshift.launchers.registry import launcher
from tests.containers.conftest import JOBS
from tests.plugins.launcher_conformance import Harness, LauncherConformance
from tests.support.proxy import Proxy, proxy

pytestmark = pytest.mark.container


class DockerHarness:
    """Containers of this machine's engine."""

    marks_in_job = "/marks"
    missing: ClassVar[Mapping[str, Any]] = {"module": "other.job"}
    missing_words = r"no image is named for other\.job; NIGHTSHIFT_JOB_IMAGES has images for jobs_for_tests"
    # Airflow's states are only to be had inside a task.
    worker_prepares = "from nightshift.launchers.docker import launcher; launcher.task_state = lambda _: 'running'"
    cannot: ClassVar[Mapping[str, str]] = {
        "test_a_line_of_many_bytes_keeps_its_characters": "the engine's log driver json-file cuts a line every 16 KiB,"
        " also within a character, and spoils that one; with the driver local (20.10) the line itself breaks",
    }

    def __init__(self, engine: Any, line: Proxy, marks: Path) -> None:
        self.engine, self.line, self.marks = engine, line, marks
        self.unknown_job = f"{engine.info()['Name']}/no-such-job"

    def launcher(self) -> Launcher:
        docker_launcher.docker_launcher.cache_clear()
        return launcher()

    def _container(self, job_id: str) -> Any:
        return self.engine.containers.get(job_id.rpartition("/")[2])

    def alive(self, job_id: str) -> int:
        try:
            container = self._container(job_id)
            return len(container.top()["Processes"]) if container.status == "running" else 0
        except docker.errors.NotFound:
            return 0

    def kill_job(self, job_id: str) -> None:
        self._container(job_id).kill()

    def lose_job(self, job_id: str) -> None:
        self._container(job_id).remove(force=True, v=True)

    def cut(self) -> None:
        self.line.cut()
        self.line.mend()

    def written(self) -> str:
        described = [container.attrs for container in self._own()]
        for each in described:
            del each["Config"]["Env"]
        return json.dumps(described, sort_keys=True)

    def _own(self) -> list[Any]:
        found = self.engine.containers.list(all=True, filters={"label": "nightshift"})
        return [each for each in found if str(self.marks) in [mount.get("Source") for mount in each.attrs["Mounts"]]]

    def close(self) -> None:
        """Remove the containers of a test."""
        for container in self._own():
            container.remove(force=True, v=True)


class TestDockerLauncher(LauncherConformance):
    """The suite."""

    @pytest.fixture
    def harness(
        self, engine: Any, job_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Harness]:
        marks = tmp_path / "marks"
        marks.mkdir()
        marks.chmod(0o777)  # jobs are not root
        with proxy("unix:///var/run/docker.sock") as line:
            monkeypatch.setenv("DOCKER_HOST", line.url.replace("http", "tcp"))
            monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", "docker")
            monkeypatch.setenv("NIGHTSHIFT_JOB_IMAGES", json.dumps({"jobs_for_tests": job_image}))
            monkeypatch.setenv("NIGHTSHIFT_JOB_VOLUMES", f"{JOBS}:/opt/nightshift/jobs_for_tests,{marks}:/marks")
            monkeypatch.setenv("NIGHTSHIFT_JOB_MEMORY", "512m")
            monkeypatch.setattr(docker_launcher, "task_state", lambda _: "running")
            harness = DockerHarness(engine, line, marks)
            yield harness
            harness.close()
