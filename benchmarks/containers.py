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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT)]

import docker  # noqa: E402
from docker.models.containers import Container  # noqa: E402

from nightshift.launchers.base import JobSpec, Launcher  # noqa: E402
from nightshift.launchers.docker.launcher import DockerLauncher  # noqa: E402
from nightshift.launchers.docker.settings import DockerSettings  # noqa: E402
from nightshift.launchers.process import ProcessLauncher  # noqa: E402
from nightshift_common.task_instance import TaskInstanceKey  # noqa: E402
from tests.containers import cluster  # noqa: E402
from tests.plugins.homes import make_home  # noqa: E402
from tests.support.airflow import Airflow  # noqa: E402

JOBS = ROOT / "tests" / "plugins" / "jobs_for_tests"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cluster", action="store_true", help="also the whole cluster: its start, idle, and a night")
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
    print(f"images: {image_sizes()}")
    if options.cluster:
        measure_cluster()


def launchers(folder: Path) -> tuple[Launcher, Launcher]:
    """Return both launchers, each with a checkout in which the job for tests can be imported."""
    home = make_home(folder / "home")
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
    task_instance = TaskInstanceKey("benchmark", uuid.uuid4().hex, "job", -1, 1)
    started = time.monotonic()
    job = launcher.start(JobSpec("jobs_for_tests.example", ["--marks", str(marks)], "jobs", task_instance))
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


def image_sizes() -> str:
    """Return what each image takes on the disk, layers that it shares with others included."""
    sizes = {image.tags[0]: image.attrs["Size"] for image in docker.from_env().images.list("nightshift/*")}
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sorted(sizes.items()))


def measure_cluster() -> None:
    """Start a cluster with the bottle in a volume, from nothing but its images; let it idle; run nights of digits."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, project = Path(scratch), f"nightshift-benchmark-{uuid.uuid4().hex[:6]}"
        values = cluster.write_env(folder)
        (folder / "marks").mkdir()
        started = time.monotonic()
        try:
            cluster.compose(project, folder, "up", "--detach", "--wait")
            print(f"docker compose up --wait: {time.monotonic() - started:.0f} s (goal: 90 s)", flush=True)
            time.sleep(60)
            print(f"idle after a minute: {usage(project)}")
            with cluster.airflow_of(folder, values) as airflow:
                print(f"a night with new data, {night(airflow):.0f} s")
                print(f"nights with nothing new: {', '.join(f'{night(airflow):.0f} s' for _ in range(3))}")
            print(f"a worker's slot: {slot_memory(project, folder) / 2**20:.0f} MiB")
        finally:
            cluster.compose(project, folder, "down", "--volumes", "--timeout", "3")


def usage(project: str, seconds: int = 20) -> str:
    """Return memory and cores that the containers of a project use."""
    containers = docker.from_env().containers.list(filters={"label": f"com.docker.compose.project={project}"})
    before, at = {c.name: stats_of(c) for c in containers}, time.monotonic()
    time.sleep(seconds)
    used, memory = 0.0, 0
    for container in containers:
        now = stats_of(container)
        used += (
            now["cpu_stats"]["cpu_usage"]["total_usage"]
            - before[container.name]["cpu_stats"]["cpu_usage"]["total_usage"]
        )
        memory += own_memory(now)
    return f"{memory / 1e9:.1f} GB, {used / 1e9 / (time.monotonic() - at):.2f} cores, {len(containers)} containers"


def stats_of(container: Container) -> dict[str, Any]:
    """Return what the engine tells of a container now."""
    stats: Any = container.stats(stream=False)
    found: dict[str, Any] = stats
    return found


def own_memory(stats: dict[str, Any]) -> int:
    """Return the bytes that a container uses without the file cache, as `docker stats` shows them."""
    memory = stats["memory_stats"]
    return int(memory["usage"] - memory["stats"].get("inactive_file", memory["stats"].get("total_inactive_file", 0)))


def night(airflow: Airflow) -> float:
    """Return how long a run of the digits takes, from its trigger to its end."""
    started = time.monotonic()
    state, tasks = airflow.finished("retrain_digits", airflow.trigger("retrain_digits"), 600)
    if state != "success":
        sys.exit(f"the night ended as {state}: {tasks}")
    return time.monotonic() - started


def slot_memory(project: str, folder: Path) -> float:
    """Return what one more slot of the worker costs: a worker of eight against one of four, both idle."""
    found = []
    for slots in (4, 8):
        with (folder / "env").open("a") as file:
            file.write(f"NIGHTSHIFT_WORKER_SLOTS={slots}\n")
        cluster.compose(project, folder, "up", "--detach", "--wait", "--force-recreate", "--no-deps", "worker")
        time.sleep(15)
        labels = [f"com.docker.compose.project={project}", "com.docker.compose.service=worker"]
        (worker,) = docker.from_env().containers.list(filters={"label": labels})
        found.append(own_memory(stats_of(worker)))
    return (found[1] - found[0]) / 4


if __name__ == "__main__":
    main()
