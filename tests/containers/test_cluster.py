"""The cluster: the digits pipeline through CeleryExecutor and job containers, and what happens when parts of it die."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.containers import cluster as clusters
from tests.containers.cluster import ROOT, Cluster
from tests.containers.conftest import build
from tests.support import servers
from tests.support.airflow import signed
from tests.support.waiting import wait_for

pytestmark = pytest.mark.container
REFUSED = (401, 403)
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
    failed = [task for task, how in tasks.items() if how == "failed"]
    logs = "".join(airflow.log("retrain_digits", run, task)[-3000:] for task in failed)
    assert (state, set(tasks.values())) == ("success", {"success"}), f"{failed}: {logs}"
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


def test_a_run_says_of_which_commit_and_lock_it_is(cluster: Cluster) -> None:
    """After the run of the first test: in MLflow, for each of its jobs."""
    lock = hashlib.sha256((ROOT / "requirements" / "jobs.txt").read_bytes()).hexdigest()
    commit = cluster.engine.images.get("nightshift/training:dev").labels["org.opencontainers.image.revision"]
    login = ("nightshift", cluster.values["MLFLOW_PASSWORD"])
    api = f"{cluster.url('MLFLOW')}/api/2.0/mlflow"
    name = {"experiment_name": "retrain_digits"}
    experiment = httpx.get(f"{api}/experiments/get-by-name", params=name, auth=login).json()["experiment"]
    asked = {"experiment_ids": [experiment["experiment_id"]]}
    runs = httpx.post(f"{api}/runs/search", json=asked, auth=login).json()["runs"]
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    jobs = [found for found in tags if found.get("nightshift.task")]
    assert {"train", "evaluate"} <= {found["nightshift.task"] for found in jobs}
    for job in jobs:
        assert (job["mlflow.source.git.commit"], job["nightshift.lock_sha256"]) == (commit, lock), job


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


def test_nothing_that_a_worker_holds_makes_a_log_in(cluster: Cluster) -> None:
    """An administrator's token was made for a user who does not exist, while workers had the key of log-ins."""
    held = held_by_a_worker(cluster)
    assert cluster.values["REDIS_PASSWORD"] in held and cluster.values["AIRFLOW_SECRET_KEY"] in held
    secrets = {name: value for name, value in cluster.values.items() if name.endswith(("PASSWORD", "TOKEN", "_KEY"))}
    everything = "\n".join(held)
    found = {name for name, value in secrets.items() if value in everything}
    assert found == {"AIRFLOW_SECRET_KEY", "REDIS_PASSWORD"}
    assert cluster.values["AIRFLOW_JWT_SECRET"] not in everything
    nobody = {"sub": "nobody", "role": "admin", "aud": "apache-airflow"}
    for key in held:
        assert log_in(cluster, signed(key, **nobody)) in REFUSED, f"{key[:4]}…"
    task = {"sub": str(uuid.uuid4()), "role": "admin", "aud": "urn:airflow.apache.org:task"}
    assert log_in(cluster, signed(cluster.values["AIRFLOW_JWT_SECRET"], **task)) in REFUSED, (
        "a task's token is no log-in"
    )
    assert log_in(cluster, signed(cluster.values["AIRFLOW_JWT_SECRET"], **nobody)) == 200, "the attack as it was"


def held_by_a_worker(cluster: Cluster) -> set[str]:
    """Return what a worker could sign with: each value of its environment and configuration, whole and in parts."""
    look = "(env; cat $AIRFLOW_HOME/*) | tr --complement --delete '[:print:]\\n'"  # a database file is among them
    lines = cluster.compose("exec", "-T", "worker", "bash", "-c", look).splitlines()
    values = {line.partition("=")[2].strip(" '\"") for line in lines if "=" in line}
    parts = {part for value in values for part in re.split(r"[:/@, \"{}]+", value)}
    jwt_secret = cluster.compose("exec", "-T", "worker", "airflow", "config", "get-value", "api_auth", "jwt_secret")
    return {part for part in values | parts | {jwt_secret.strip()} if len(part) >= 8}


def log_in(cluster: Cluster, token: str) -> int:
    """Return what the API server answers to the holder of a token who asks for what administrators may read."""
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.get(f"{cluster.url('AIRFLOW')}/api/v2/connections", headers=headers, timeout=30).status_code


def test_the_api_server_reads_a_worker_s_log_of_the_worker_and_a_stranger_does_not(cluster: Cluster) -> None:
    run = cluster.airflow.trigger("one_job", marks="/marks")
    assert cluster.airflow.finished("one_job", run)[0] == "success"
    find = f"cd /var/lib/nightshift/logs && find . -path '*{run}*' -name '*.log' -printf '%P\\n'"
    path = cluster.compose("exec", "-T", "worker", "bash", "-c", find).split()[0]
    read = (
        "from airflow.utils.log.file_task_handler import _fetch_logs_from_service as fetch\n"
        "import requests, sys\n"
        "url = f'http://worker:8793/log/{sys.argv[1]}'\n"
        "print(fetch(url, sys.argv[1]).status_code, 'started' in fetch(url, sys.argv[1]).text,"
        " requests.get(url, timeout=9).status_code)"
    )
    answered = cluster.compose("exec", "-T", "api-server", "python", "-c", read, path).splitlines()[-1]
    assert answered == "200 True 403"


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
