"""Processes and Kubernetes pass the suite of all launchers; Docker does in tests/containers, on a real engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from nightshift.launchers import kubernetes
from nightshift.launchers.base import Launcher
from nightshift.launchers.registry import LAUNCHERS, launcher
from tests.plugins.launcher_conformance import Harness, LauncherConformance
from tests.support.kubernetes_api import Cluster

ROOT = Path(__file__).resolve().parents[2]


class ProcessHarness:
    """Processes of this machine."""

    unknown_job = "no/such/job/001"
    missing: ClassVar[Mapping[str, Any]] = {"runtime": "cuda"}
    missing_words = r"runtime cuda is not installed.*\.venv/cuda/bin/python"
    worker_prepares = ""
    cannot: ClassVar[Mapping[str, str]] = {
        "test_no_line_is_lost_or_shown_twice_where_the_connection_drops": "its lines are in a file of this machine",
        "test_a_job_for_several_gpus_is_refused_where_there_are_none": "processes see what GPUs their machine has;"
        " the training says what it lacks",
    }

    def __init__(self, marks: Path, state: Path) -> None:
        self.marks, self.marks_in_job, self.jobs = marks, str(marks), state / "jobs"

    def launcher(self) -> Launcher:
        return launcher()

    def _processes(self, job_id: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                own = process.environ().get("NIGHTSHIFT_JOB_DIR", "").startswith(str(self.jobs / job_id))
                if own and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def alive(self, job_id: str) -> int:
        return len(self._processes(job_id))

    def _shell(self, job_id: str) -> psutil.Process:
        return psutil.Process(json.loads((self.jobs / job_id / "process.json").read_text())["pid"])

    def kill_job(self, job_id: str) -> None:
        (job,) = self._shell(job_id).children()
        job.kill()

    def lose_job(self, job_id: str) -> None:
        os.killpg(self._shell(job_id).pid, signal.SIGKILL)

    def cut(self) -> None:
        raise AssertionError("there is no connection")

    def written(self) -> str:
        files = [path for path in self.jobs.parent.rglob("*") if path.is_file()]
        return "\n".join(f"{path}\n{path.read_text(errors='replace')}" for path in sorted(files))

    def close(self) -> None:
        """End what a test has left."""
        for process in self._processes(""):
            process.kill()


class KubernetesHarness:
    """Jobs of a double of a Kubernetes cluster."""

    unknown_job = "nightshift-train-0123456789"
    missing: ClassVar[Mapping[str, Any]] = {"module": "other.job"}
    missing_words = r"no image is named for other\.job; NIGHTSHIFT_KUBERNETES has images for jobs_for_tests"
    cannot: ClassVar[Mapping[str, str]] = {
        "test_a_job_that_was_stopped_keeps_its_lines_and_its_exit_code": "a Pod that is deleted takes its log and its"
        " exit code with it, and only deleting it ends it",
    }

    def __init__(self, cluster: Cluster, marks: Path) -> None:
        self.cluster, self.marks, self.marks_in_job = cluster, marks, str(marks)
        self.worker_prepares = (
            "import pathlib; from nightshift.launchers import kubernetes;"
            f"kubernetes.ACCOUNT = pathlib.Path({str(cluster.account)!r})"
        )

    def launcher(self) -> Launcher:
        kubernetes.kubernetes_launcher.cache_clear()
        return launcher()

    def alive(self, job_id: str) -> int:
        return sum(len(container.members()) for container in self.cluster.started[job_id])

    def kill_job(self, job_id: str) -> None:
        self.cluster.container(job_id).kill()

    def lose_job(self, job_id: str) -> None:
        self.cluster.lose_pod(job_id)

    def cut(self) -> None:
        self.cluster.cut()

    def written(self) -> str:
        secrets = [{**secret, "data": sorted(secret["data"])} for secret in self.cluster.of_kind("secrets")]
        return json.dumps([self.cluster.of_kind("jobs"), self.cluster.of_kind("pods"), secrets], sort_keys=True)


@pytest.fixture
def process_harness(home: Path, marks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    monkeypatch.setenv("NIGHTSHIFT_LAUNCHER", "process")
    harness = ProcessHarness(marks, tmp_path / "state")
    yield harness
    harness.close()


@pytest.fixture
def kubernetes_harness(cluster: Cluster, marks: Path) -> Harness:
    return KubernetesHarness(cluster, marks)


HERE = ("process", "kubernetes")
ELSEWHERE = {"docker": "tests/containers/test_docker_conformance.py"}


class TestLaunchers(LauncherConformance):
    """The suite for the launchers that need nothing but this machine."""

    @pytest.fixture(params=HERE)
    def harness(self, request: pytest.FixtureRequest) -> Harness:
        found: Harness = request.getfixturevalue(f"{request.param}_harness")
        return found


def test_every_launcher_runs_the_suite() -> None:
    assert LAUNCHERS.keys() == {*HERE, *ELSEWHERE}
    for path in ELSEWHERE.values():
        assert "(LauncherConformance)" in (ROOT / path).read_text()
