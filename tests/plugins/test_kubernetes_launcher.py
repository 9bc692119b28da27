"""What is special to jobs of Kubernetes, against the double of a cluster; launcher_conformance.py has the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers import kubernetes
from nightshift.launchers.base import JobSpec, Status, command_options
from nightshift.launchers.kubernetes import KubernetesLauncher, KubernetesSettings, kubernetes_launcher, selecting
from nightshift_common.task_instance import TaskInstanceKey
from tests.plugins.launcher_conformance import Following, followed
from tests.support.kubernetes_api import NAMESPACE, Cluster
from tests.support.waiting import wait_for

TASK_INSTANCE = TaskInstanceKey("retrain_digits", "manual__2026-01-01T00:00:00+00:00", "Train.It", -1, 1)
SECRET = "kuchen-9f3a"


@pytest.fixture
def launcher(cluster: Cluster) -> KubernetesLauncher:
    kubernetes_launcher.cache_clear()
    return kubernetes_launcher()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "PATIENCE_SECONDS", 0.2)


def spec(marks: Path, how: str = "succeed", **changes: Any) -> JobSpec:
    options = command_options({"how": how, "marks": str(marks)})
    described = JobSpec("jobs_for_tests.example", options, "jobs", TASK_INSTANCE, {"PLAIN": "shown"}, {"TOKEN": SECRET})
    return replace(described, **changes)


def script(marks: Path, code: str, *options: str) -> JobSpec:
    return spec(marks, module="jobs_for_tests.script", options=[code, str(marks), *options])


def with_settings(launcher: KubernetesLauncher, **changes: Any) -> KubernetesLauncher:
    settings = {**launcher.settings.model_dump(), **changes}
    return KubernetesLauncher(launcher.client, NAMESPACE, KubernetesSettings.model_validate(settings))


def ran(marks: Path) -> None:
    wait_for((marks / "ran").exists, "the job")


def container(cluster: Cluster, job: str) -> dict[str, Any]:
    (found,) = cluster.get("jobs", job)["spec"]["template"]["spec"]["containers"]
    return dict(found)


# the objects


def test_a_job_is_one_pod_with_the_contract_and_no_rights(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    name = with_settings(launcher, gpus=1).start(spec(marks))
    job = cluster.get("jobs", name)
    assert job["spec"]["backoffLimit"] == 0  # Airflow decides about another try
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    described = container(cluster, name)
    assert described["image"] == "registry/jobs:1"
    assert described["command"] == ["python", "-m", "jobs_for_tests.example", "--how", "succeed", "--marks", str(marks)]
    assert described["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert described["securityContext"]["readOnlyRootFilesystem"] is True
    environment = {item["name"]: item["value"] for item in described["env"]}
    assert environment["PLAIN"] == "shown" and environment["NIGHTSHIFT_JOB_DIR"] == "/job"
    assert environment["NIGHTSHIFT_SANDBOX"] == "require"
    assert json.loads(environment["NIGHTSHIFT_TASK_INSTANCE"])["try_number"] == 1
    mounted = {mount["name"] for mount in described["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_job_that_asks_for_more_gpus_than_the_others_gets_them(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    name = with_settings(launcher, gpus=1).start(spec(marks, gpus=2))
    assert container(cluster, name)["resources"]["limits"]["nvidia.com/gpu"] == 2
    wait_for(lambda: cluster.of_kind("pods")[0]["status"].get("conditions"), "the scheduler")
    assert launcher.status(name) is Status.RUNNING  # no node has them now: it waits, and can be stopped
    launcher.stop(name)
    assert launcher.status(name) is Status.FAILED and cluster.of_kind("pods") == []


def test_secrets_are_in_a_secret_that_goes_with_the_job(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    name = launcher.start(spec(marks))
    assert SECRET not in json.dumps(cluster.of_kind("jobs"))
    (secret,) = cluster.of_kind("secrets")
    assert list(secret["data"]) == ["TOKEN"]
    (owner,) = secret["metadata"]["ownerReferences"]
    assert owner["uid"] == cluster.get("jobs", name)["metadata"]["uid"]
    (source,) = container(cluster, name)["envFrom"]
    assert source == {"secretRef": {"name": name}}
    followed(launcher, name)
    cluster.delete("jobs", name, {"propagationPolicy": "Background"})  # as Kubernetes does after an hour
    wait_for(lambda: not cluster.objects, "the Secret's and the Pod's end")
    assert launcher.status(name) is Status.FAILED and launcher.result(name) is None


def test_stop_deletes_the_job_with_all_that_it_owns(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = launcher.start(spec(marks, "wait"))
    ran(marks)
    launcher.stop(job)
    assert cluster.of_kind("jobs") == [] and cluster.of_kind("pods") == []
    wait_for(lambda: not cluster.objects, "the Secret's end")


def test_names_and_labels_are_ones_that_kubernetes_takes(launcher: KubernetesLauncher, marks: Path) -> None:
    task_instance = TaskInstanceKey("d" * 200, "r:+/" * 50, "Täsk.With_all " * 9, 12, 3)
    name = launcher.start(spec(marks, task_instance=task_instance))
    assert len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower() and name.isascii()
    assert all(len(value) <= 63 and value.isalnum() for value in selecting(TASK_INSTANCE).values())


# how a job ends


def test_a_job_without_enough_memory_says_so_and_names_the_limit(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = launcher.start(spec(marks, "wait"))
    ran(marks)
    cluster.container(job).reason = "OOMKilled"
    cluster.container(job).kill()
    followed(launcher, job)
    ended = launcher.ended(job)
    assert ended.exit_code == 137 and "limit of 8Gi" in ended.describe()


def test_a_job_whose_node_is_short_of_something_says_of_what(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = launcher.start(spec(marks, "wait"))
    ran(marks)
    cluster.evict(job, "The node was low on resource: ephemeral-storage.")
    wait_for(lambda: launcher.status(job) is Status.FAILED, "the Job's end")
    ended = launcher.ended(job)
    assert ended.exit_code is None and "Evicted: The node was low on resource" in ended.describe()
    assert followed(launcher, job) == []


def test_a_job_whose_pod_is_gone_says_so(launcher: KubernetesLauncher, cluster: Cluster, marks: Path) -> None:
    job = launcher.start(spec(marks, "wait"))
    ran(marks)
    cluster.lose_pod(job)
    wait_for(lambda: launcher.status(job) is Status.FAILED, "the Job's end")
    assert f"the Pod of {job} is gone" in launcher.ended(job).describe()


def test_an_image_that_no_registry_has_ends_the_job_with_what_to_do(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = with_settings(launcher, images={"jobs_for_tests": "registry/typo:1"}).start(spec(marks))
    with pytest.raises(JobConfigurationError, match=r"image registry/typo:1 cannot be had \(ErrImagePull: .*not found"):
        followed(launcher, job)
    assert launcher.find(TASK_INSTANCE) is None
    wait_for(lambda: not cluster.objects, "the end of all that belongs to it")


# the API


def test_a_refusal_half_way_leaves_nothing(launcher: KubernetesLauncher, cluster: Cluster, marks: Path) -> None:
    for verb, resource in (("create", "jobs"), ("patch", "secrets")):
        kept = cluster.rules
        cluster.rules = [
            {"resources": [name], "verbs": [v for v in rule["verbs"] if (v, name) != (verb, resource)]}
            for rule in kept
            for name in rule["resources"]
        ]
        with pytest.raises(JobConfigurationError, match=f"answered 403 to .*cannot {verb} resource"):
            launcher.start(spec(marks, "wait"))
        cluster.rules = kept
        wait_for(lambda: not cluster.objects, "the end of all that was made")
    assert cluster.containers == {}


def test_the_documented_role_is_what_a_worker_needs_and_no_more(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = launcher.start(spec(marks, "wait"))
    assert launcher.find(TASK_INSTANCE) == job
    ran(marks)
    launcher.stop(job)
    followed(launcher, launcher.start(spec(marks)))
    with pytest.raises(JobConfigurationError):
        launcher.start(spec(marks, variables={"": "no name"}))
    documented = {(verb, name) for rule in cluster.rules for name in rule["resources"] for verb in rule["verbs"]}
    assert cluster.used == documented


def test_a_token_that_was_replaced_is_read_again(launcher: KubernetesLauncher, cluster: Cluster, marks: Path) -> None:
    job = launcher.start(spec(marks, "wait"))
    following = Following(launcher, job)
    ran(marks)
    cluster.new_token()
    (marks / "go").touch()
    assert json.loads(following.all()[-1])["event"] == "done"
    cluster.token = "another"
    with pytest.raises(JobConfigurationError, match="answered 401"):
        launcher.status(job)


def test_an_api_that_is_away_for_a_while_is_waited_for(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    job = launcher.start(spec(marks, "wait"))
    following = Following(launcher, job)
    ran(marks)
    cluster.fails_with = 503
    cluster.cut()
    (marks / "go").touch()
    wait_for(lambda: cluster.refused >= 3, "some requests")
    cluster.fails_with = 0
    assert json.loads(following.all()[-1])["event"] == "done"
    result = launcher.result(job)
    assert result is not None and result["result"]["runs"] == 1


def test_an_api_that_stays_away_is_a_trouble_for_now(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path, impatient: None
) -> None:
    job = launcher.start(spec(marks))
    followed(launcher, job)
    cluster.fails_with = 503
    for call in (launcher.status, launcher.result, launcher.ended, launcher.stop):
        with pytest.raises(JobTransientError, match="answered 503"):
            call(job)
    with pytest.raises(JobTransientError, match="answered 503"):
        launcher.find(TASK_INSTANCE)
    with pytest.raises(JobTransientError, match="answered 503"):
        launcher.start(spec(marks))
    cluster.fails_with = 403
    with pytest.raises(JobConfigurationError, match="answered 403"):
        launcher.start(spec(marks))


def test_a_log_that_its_node_does_not_give_is_no_missing_result(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path, impatient: None
) -> None:
    job = launcher.start(spec(marks))
    followed(launcher, job)
    cluster.logs_fail_with = 502
    with pytest.raises(JobTransientError, match=r"which has its result, cannot be read: .*502"):
        launcher.result(job)
    with pytest.raises(JobTransientError, match=f"the end of the log of {job} cannot be read: .*502"):
        followed(launcher, job)
    cluster.logs_fail_with = 0
    assert launcher.result(job) is not None


COUNTS = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for n in range(20): print(n, flush=True)
(folder / 'half').touch()
while not (folder / 'go').exists(): time.sleep(0.02)
for n in range(20, 40): print(n, flush=True)
"""


def test_no_line_is_lost_where_the_log_is_rotated_and_the_connection_drops(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path
) -> None:
    following = Following(launcher, launcher.start(script(marks, COUNTS)))
    wait_for(lambda: len(following.lines) == 20, "the first half")
    cluster.rotate()
    cluster.cut()
    (marks / "go").touch()
    assert following.all() == [str(n) for n in range(40)]


def test_a_silent_log_is_asked_for_again(
    launcher: KubernetesLauncher, cluster: Cluster, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "SILENCE_SECONDS", 0.1)  # the connection may be dead without either end's knowing
    following = Following(launcher, launcher.start(script(marks, COUNTS)))
    wait_for(lambda: cluster.logs_sent >= 4, "some requests")
    (marks / "go").touch()
    assert following.all() == [str(n) for n in range(40)]


def test_settings_that_are_wrong_are_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, words in (
        ("NIGHTSHIFT_KUBERNETES", '{"images": {}}', "images"),
        ("NIGHTSHIFT_KUBERNETES", '{"images": {"a": "b:1"}, "memroy": "8Gi"}', "memroy"),
        ("KUBERNETES_SERVICE_HOST", None, "KUBERNETES_SERVICE_HOST"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value) if value else patch.delenv(name)
            kubernetes_launcher.cache_clear()
            with pytest.raises(JobConfigurationError, match=rf"(?s)no launcher for Kubernetes here.*{words}"):
                kubernetes_launcher()
    (cluster.account / "ca.crt").unlink()
    with pytest.raises(JobConfigurationError, match="no launcher for Kubernetes here"):
        kubernetes_launcher()
