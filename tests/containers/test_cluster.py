"""The cluster: the digits pipeline through CeleryExecutor and job containers, and what happens when parts of it die."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.containers import cluster as clusters
from tests.containers.cluster import ROOT, Cluster
from tests.containers.conftest import build
from tests.support import servers
from tests.support.waiting import wait_for

pytestmark = pytest.mark.container
READ_LOGS = "find /var/lib/nightshift/logs -type f -exec cat {} +"
JOB_IMAGES = ("training", "conversion", "detection")  # which end by themselves: nothing asks for their health
NAMES = ("airflow", "services", *JOB_IMAGES, "triton-cpu")


@pytest.fixture(scope="module")
def s3(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server that containers reach: moto's, in the place of SeaweedFS, whose image cannot be had everywhere."""
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    with servers.s3(tmp_path_factory.mktemp("s3"), gateway) as url:
        httpx.put(f"{url}/nightshift").raise_for_status()  # the bucket
        yield url


@pytest.fixture(scope="module")
def cluster(engine: Any, job_image: str, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    build(*NAMES)
    with clusters.cluster(tmp_path_factory.mktemp("cluster"), engine, s3) as running:
        yield running


def objects(s3: str, prefix: str) -> str:
    """Return the listing of what lies in the bucket under a prefix, as XML."""
    return httpx.get(f"{s3}/nightshift", params={"list-type": "2", "prefix": prefix}).raise_for_status().text


def running_jobs(cluster: Cluster) -> list[str]:
    found = cluster.engine.containers.list(filters={"label": "nightshift=job", "network": f"{cluster.project}_default"})
    return [container.name for container in found]


def test_training_survives_its_worker_and_resumes_after_its_container(cluster: Cluster) -> None:
    airflow = cluster.airflow
    run = airflow.trigger("retrain_digits", epochs=30)
    first = cluster.job("train")
    wait_for(lambda: re.search(rb"epoch (?:[3-9]|[12]\d)\b", first.logs()), "the third epoch", 120)
    first.pause()  # so that it does not end before its worker has died and its own kill comes
    cluster.compose("kill", "--signal", "KILL", "worker")
    cluster.compose("start", "worker")
    wait_for(lambda: airflow.task("retrain_digits", run, "train")["try_number"] == 2, "the second try", 120)
    wait_for(lambda: airflow.task("retrain_digits", run, "train")["state"] == "running", "it to run", 60)
    assert cluster.job("train").id == first.id  # adopted, not started again
    wait_for(lambda: "epoch" in airflow.log("retrain_digits", run, "train", 2), "its lines", 60)
    first.unpause()
    first.kill("SIGKILL")
    second = wait_for(
        lambda: next((c for c in [cluster.job("train")] if c.id != first.id), None), "a new container", 120
    )
    state, tasks = airflow.finished("retrain_digits", run, 300)
    assert (state, set(tasks.values())) == ("success", {"success"}), tasks
    assert b"resum" in second.logs().lower()
    deployed = airflow.xcom("retrain_digits", run, "deploy_model")
    assert deployed["version"] == "0.0.1"
    assert len(clusters.infer(cluster, "digits")) == 10
    assert running_jobs(cluster) == []


def test_data_and_artifacts_are_in_s3_and_the_host_keeps_what_it_read(cluster: Cluster, s3: str) -> None:
    """After the run of the test before."""
    for prefix in ("bottle/pictures/", "bottle/snapshots/digits/", "bottle/models/digits/", "mlflow/"):
        assert f"<Key>{prefix}" in objects(s3, prefix), prefix
    volumes = {f"{cluster.project}_cache": {"bind": "/cache", "mode": "ro"}}
    count = [
        "sh",
        "-c",
        "find /cache/objects -type f | wc -l; find /cache/jobs -mindepth 1 -maxdepth 1 -type d | wc -l",
    ]
    output = cluster.engine.containers.run("nightshift/training:dev", count, remove=True, volumes=volumes)
    kept, jobs = map(int, output.split())
    assert kept > 1000  # the digits, which training and evaluation read
    assert jobs <= 1  # only a container that was killed leaves its links, until another job makes room


@pytest.mark.parametrize("how", ["failed", "cleared"])
def test_a_task_that_a_person_ends_ends_its_container(cluster: Cluster, how: str) -> None:
    airflow = cluster.airflow
    run = airflow.trigger("one_job", how="wait", marks="/marks")
    job = cluster.job("job", "one_job")
    path = f"/dags/one_job/dagRuns/{run}/taskInstances/job"
    if how == "failed":
        airflow.call("PATCH", path, json={"new_state": "failed"})
        seconds = 20.0
    else:
        body = {"dry_run": False, "dag_run_id": run, "task_ids": ["job"], "only_failed": False, "only_running": True}
        airflow.call("POST", "/dags/one_job/clearTaskInstances", json=body)
        seconds = 30.0
    wait_for(lambda: job.reload() or job.status == "exited", "the container's end", seconds)
    (cluster.marks / "go").touch()
    wait_for(lambda: running_jobs(cluster) == [], "no job to be left", 60)
    if how == "cleared":
        assert airflow.finished("one_job", run)[0] == "success"  # it ran again
    (cluster.marks / "go").unlink()


def test_of_two_tasks_for_one_gpu_one_waits(cluster: Cluster) -> None:
    airflow = cluster.airflow
    run = airflow.trigger("one_gpu")
    wait_for(lambda: "running" in airflow.states("one_gpu", run).values(), "the first", 60)
    wait_for(lambda: running_jobs(cluster), "its container", 60)
    time.sleep(3)  # long enough for the second to start, if it could
    states = sorted(str(state) for state in airflow.states("one_gpu", run).values())
    assert states == ["running", "scheduled"]  # scheduled, not queued: it cannot time out
    assert len(running_jobs(cluster)) == 1
    (cluster.marks / "go").touch()
    assert airflow.finished("one_gpu", run)[0] == "success"
    (cluster.marks / "go").unlink()


def test_a_missing_image_fails_and_says_what_to_do(cluster: Cluster) -> None:
    run = cluster.airflow.trigger("no_image")
    state, _ = cluster.airflow.finished("no_image", run)
    assert state == "failed"
    log = cluster.airflow.log("no_image", run, "job")
    assert "no-such-image:dev is not on the host" in log and "docker/build" in log


def test_no_secret_is_where_it_does_not_belong(cluster: Cluster) -> None:
    run = cluster.airflow.trigger("one_job", how="tell", marks="/marks")  # the job prints its password
    assert cluster.airflow.finished("one_job", run)[0] == "success"
    secrets = {name: value for name, value in cluster.values.items() if name.endswith(("PASSWORD", "TOKEN", "_KEY"))}
    assert len(secrets) >= 11
    names = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'connection'"
    psql = ["exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "airflow", "-At", "-c"]
    tables = cluster.compose(*psql, names).split()
    assert {"serialized_dag", "rendered_task_instance_fields", "xcom"} <= set(tables)
    texts = {
        "the database": "\n".join(cluster.compose(*psql, f"SELECT * FROM {table}") for table in tables),
        "the services' logs": cluster.compose("logs", "--no-color"),
        "the tasks' logs": cluster.compose("exec", "-T", "api-server", "bash", "-c", READ_LOGS),
    }
    for name in NAMES:
        image = f"nightshift/{name}:dev"
        history = ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image]
        texts[image] = subprocess.run(history, capture_output=True, text=True).stdout
        texts[image] += str(cluster.engine.images.get(image).attrs)
    assert "***" in texts["the tasks' logs"]  # masked, so it was there
    found = [f"{name} in {place}" for place, text in texts.items() for name, value in secrets.items() if value in text]
    assert not found, found


def test_no_command_line_holds_a_secret(cluster: Cluster) -> None:
    """Of a service's process, or of any container that the engine was told to start, jobs included."""
    services = {"label": f"com.docker.compose.project={cluster.project}"}
    jobs = {"label": "nightshift=job", "network": f"{cluster.project}_default"}
    found = [one for which in (services, jobs) for one in cluster.engine.containers.list(all=True, filters=which)]
    told = [[one.attrs["Path"], one.attrs["Args"], one.attrs["Config"].get("Healthcheck")] for one in found]
    text = cluster.compose("top") + str(told)
    assert "redis-server" in text and "training_jobs." in text
    secrets = {name: value for name, value in cluster.values.items() if name.endswith(("PASSWORD", "TOKEN", "_KEY"))}
    assert not [name for name, value in secrets.items() if value in text]


def test_nothing_can_start_without_secrets_or_with_ports_open_to_others(cluster: Cluster) -> None:
    done = subprocess.run(
        ["docker", "compose", "--env-file", "/dev/null", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=clusters.clean_environment(),
    )
    assert done.returncode != 0 and "run docker/secrets" in done.stderr
    for container in cluster.engine.containers.list(filters={"label": f"com.docker.compose.project={cluster.project}"}):
        for bindings in container.ports.values():
            assert all(binding["HostIp"] == "127.0.0.1" for binding in bindings or []), container.name


@pytest.mark.parametrize("name", NAMES)
def test_images_are_small_in_what_they_allow(cluster: Cluster, name: str) -> None:
    image = cluster.engine.images.get(f"nightshift/{name}:dev")
    assert image.attrs["Config"]["User"] == "nightshift"
    assert image.labels["org.opencontainers.image.title"] == f"nightshift-{name}"
    assert image.labels["org.opencontainers.image.description"]
    health = image.attrs["Config"]["Healthcheck"]["Test"]
    assert health == ["NONE"] if name in JOB_IMAGES else health[:2] == ["CMD", "healthy"]
    look = (
        "find / -xdev -type f \\( -perm -0002 -o -perm /6000 \\) 2>/dev/null;"
        " find / -xdev -type d -perm -0002 ! -perm -1000 2>/dev/null; find /opt -xdev -user nightshift; true"
    )
    output = cluster.engine.containers.run(image, ["sh", "-c", look], remove=True, network_mode="none", user="0")
    assert output.decode().split() == []


@pytest.mark.parametrize("name", JOB_IMAGES)
def test_only_the_detection_image_holds_what_is_under_the_agpl(cluster: Cluster, name: str) -> None:
    code = "import importlib.util as found; print(found.find_spec('ultralytics') is not None)"
    output = cluster.engine.containers.run(
        f"nightshift/{name}:dev", ["python", "-c", code], remove=True, network_mode="none", read_only=True
    )
    assert output.decode().strip() == str(name == "detection")


def test_parallel_starts_of_jobs_leave_no_orphan(cluster: Cluster) -> None:
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: cluster.airflow.trigger("one_job", marks="/marks"), range(2)))
    for run in runs:
        assert cluster.airflow.finished("one_job", run)[0] == "success"
    assert running_jobs(cluster) == []
