"""What containers cost: a job's overhead over a process, a rebuild after a code change, the cluster's start.

    .venv/airflow/bin/python -m benchmarks.containers [--rounds 5] [--cluster]

It needs a Docker engine and the images (`docker/build`). The job that is timed does nothing but speak the contract.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT)]

import docker  # noqa: E402
from nightshift.contract import JobSpec, Labels, Launcher  # noqa: E402
from nightshift.docker_launcher import DockerLauncher  # noqa: E402
from nightshift.docker_settings import DockerSettings  # noqa: E402
from nightshift.process_launcher import ProcessLauncher  # noqa: E402

from tests.containers import cluster  # noqa: E402

JOBS = ROOT / "tests" / "plugins" / "jobs_for_tests"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cluster", action="store_true", help="also the start of the whole cluster")
    options = parser.parse_args()
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        processes, containers = launchers(folder)
        pairs = [(timed(processes, folder), timed(containers, Path("/marks"))) for _ in range(options.rounds)]
    process, container = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"job as a process:    {process:6.2f} s, median of {options.rounds}")
    print(f"job as a container:  {container:6.2f} s, overhead {container - process:.2f} s (goal: 1.5 s)")
    for name, package in (("training", "training_jobs"), ("conversion", "conversion_jobs"), ("airflow", "dags")):
        print(f"rebuild of {name:11s} after a change in {package}: {rebuild(name, package):.1f} s (goal: 10 s)")
    if options.cluster:
        print(f"docker compose up --wait: {start_cluster():.0f} s (goal: 90 s)")


def launchers(folder: Path) -> tuple[Launcher, Launcher]:
    """Return both launchers, each with a checkout in which the job for tests can be imported."""
    home = folder / "home"
    home.mkdir()
    for name, target in {".venv": ROOT / ".venv", "jobkit": ROOT / "jobkit", "jobs_for_tests": JOBS}.items():
        (home / name).symlink_to(target)
    marks = folder / "container"
    marks.mkdir()
    marks.chmod(0o777)  # jobs in containers are not root
    settings = DockerSettings(
        images={"jobs_for_tests": "nightshift/training:dev"},
        volumes=(f"{JOBS}:/opt/nightshift/jobs_for_tests", f"{marks}:/marks"),
        keep_seconds=0,
    )
    return ProcessLauncher(home, folder / "state"), DockerLauncher(docker.from_env(), settings, lambda _: "running")


def timed(launcher: Launcher, marks: Path) -> float:
    """Return how long the job takes from its start to its result."""
    labels = Labels("benchmark", uuid.uuid4().hex, "job", -1, 1)
    started = time.monotonic()
    job = launcher.start(JobSpec("jobs_for_tests.example", ["--marks", str(marks)], "jobs", labels))
    list(launcher.follow_logs(job))
    if launcher.result(job) is None:
        sys.exit(f"the job failed: {launcher.ended(job).describe()}")
    return time.monotonic() - started


def rebuild(name: str, package: str) -> float:
    """Return how long an image takes after a new file in a package."""
    change = ROOT / package / "benchmark_of_a_change.py"
    try:
        change.write_text(f"# {uuid.uuid4()}\n")
        started = time.monotonic()
        subprocess.run([str(ROOT / "docker" / "build"), name], check=True, capture_output=True)
        return time.monotonic() - started
    finally:
        change.unlink()


def start_cluster() -> float:
    """Return how long the cluster takes to be healthy, from nothing but its images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, project = Path(scratch), f"nightshift-benchmark-{uuid.uuid4().hex[:6]}"
        cluster.write_env(folder)
        started = time.monotonic()
        try:
            cluster.compose(project, folder, "up", "--detach", "--wait")
            return time.monotonic() - started
        finally:
            cluster.compose(project, folder, "down", "--volumes", "--timeout", "3")


if __name__ == "__main__":
    main()
