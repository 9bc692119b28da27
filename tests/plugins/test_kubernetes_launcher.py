"""Jobs as Kubernetes Jobs, against an API server in memory: a stand-in for a cluster, which no test machine has."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.base import JobSpec, Status
from nightshift.launchers.kubernetes import KubernetesLauncher, KubernetesSettings, selecting
from nightshift_common.task_instance import TaskInstanceKey

TASK_INSTANCE = TaskInstanceKey("retrain_digits", "manual__2026-01-01T00:00:00+00:00", "Train.It", -1, 1)
SETTINGS = KubernetesSettings(images={"training_jobs": "registry/training:1"}, gpus=1)
SECRET = "kuchen-9f3a"
DONE = json.dumps({"message": "done", "event": "done", "result": {"epochs": 3, "stop_here": None}})


class Api:
    """The parts of the API that the launcher uses."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}
        self.pods: dict[str, Any] = {}
        self.logs: dict[str, str] = {}
        self.fails_with = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.fails_with:
            return httpx.Response(self.fails_with, text="no")
        path = request.url.path
        kind = "jobs" if "/jobs" in path else "secrets" if "/secrets" in path else "pods"
        store: dict[str, Any] = getattr(self, kind)
        name = path.partition(f"/{kind}")[2].strip("/").removesuffix("/log")
        if path.endswith("/log"):
            return httpx.Response(200, text=self.logs.get(name, ""))
        if request.method == "POST":
            made = json.loads(request.content)
            made["metadata"] |= {"uid": f"uid-{len(store)}", "creationTimestamp": f"2026-01-01T00:00:{len(store):02d}Z"}
            store[made["metadata"]["name"]] = made
            if kind == "jobs":
                pod = f"{made['metadata']['name']}-x"
                labels = {"job-name": made["metadata"]["name"]}
                self.pods[pod] = {"metadata": {"name": pod, "labels": labels}, "status": {"phase": "Running"}}
            return httpx.Response(201, json=made)
        if not name:
            wanted = dict(part.split("=") for part in request.url.params["labelSelector"].split(","))
            items = [i for i in store.values() if wanted.items() <= i["metadata"].get("labels", {}).items()]
            return httpx.Response(200, json={"items": items})
        if name not in store:
            return httpx.Response(404)
        if request.method == "PATCH":
            store[name]["metadata"] |= json.loads(request.content)["metadata"]
        if request.method == "DELETE":
            return httpx.Response(200, json=store.pop(name))
        return httpx.Response(200, json=store[name])

    def end(self, job: str, code: int, reason: str = "", log: str = "") -> None:
        condition = "Complete" if code == 0 else "Failed"
        self.jobs[job]["status"] = {"conditions": [{"type": condition, "status": "True"}]}
        state = {"terminated": {"exitCode": code, "reason": reason}}
        self.pods[f"{job}-x"]["status"] = {"phase": "Done", "containerStatuses": [{"state": state}]}
        self.logs[f"{job}-x"] = log


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def launcher(api: Api) -> KubernetesLauncher:
    client = httpx.Client(transport=httpx.MockTransport(api), base_url="https://kubernetes")
    return KubernetesLauncher(client, "ml", SETTINGS)


def spec(task_instance: TaskInstanceKey = TASK_INSTANCE, module: str = "training_jobs.train_classifier") -> JobSpec:
    return JobSpec(module, ["--epochs", "3"], "jobs", task_instance, {"PLAIN": "shown"}, {"TOKEN": SECRET})


def test_a_job_is_one_pod_with_the_contract_and_no_rights(launcher: KubernetesLauncher, api: Api) -> None:
    job = api.jobs[launcher.start(spec())]
    assert job["spec"]["backoffLimit"] == 0  # Airflow decides about another try
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["image"] == "registry/training:1"
    assert container["command"] == ["python", "-m", "training_jobs.train_classifier", "--epochs", "3"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 1}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["PLAIN"] == "shown" and environment["NIGHTSHIFT_JOB_DIR"] == "/job"
    assert json.loads(environment["NIGHTSHIFT_TASK_INSTANCE"])["try_number"] == 1
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_job_that_asks_for_more_gpus_than_the_others_gets_them(launcher: KubernetesLauncher, api: Api) -> None:
    two = replace(spec(), gpus=2)
    container = api.jobs[launcher.start(two)]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    launcher.settings = SETTINGS.model_copy(update={"gpus": 0})
    with pytest.raises(JobConfigurationError, match="asks for 2 GPUs, and this queue has none"):
        launcher.start(two)


def test_secrets_are_in_a_secret_that_goes_with_the_job(launcher: KubernetesLauncher, api: Api) -> None:
    name = launcher.start(spec())
    assert SECRET not in json.dumps(api.jobs)
    assert api.secrets[name]["stringData"] == {"TOKEN": SECRET}
    (owner,) = api.secrets[name]["metadata"]["ownerReferences"]
    assert owner["uid"] == api.jobs[name]["metadata"]["uid"]
    (source,) = api.jobs[name]["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert source == {"secretRef": {"name": name}}


def test_names_and_labels_are_ones_that_kubernetes_takes(launcher: KubernetesLauncher) -> None:
    name = launcher.start(spec(TaskInstanceKey("d" * 200, "r:+/" * 50, "Täsk.With_all " * 9, 12, 3)))
    assert len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower() and name.isascii()
    assert all(len(value) <= 63 and value.isalnum() for value in selecting(TASK_INSTANCE).values())


def test_a_job_is_found_by_its_own_labels_and_from_its_own_tries_only(launcher: KubernetesLauncher, api: Api) -> None:
    first = launcher.start(spec())
    assert (
        launcher.find(TaskInstanceKey(**{**TASK_INSTANCE.to_dict(), "try_number": 2}), since_try=2) == first
    )  # it runs: adopted
    api.end(first, 1)
    assert launcher.find(TASK_INSTANCE) == first
    assert launcher.find(TASK_INSTANCE, since_try=2) is None
    second = launcher.start(spec(TaskInstanceKey(**{**TASK_INSTANCE.to_dict(), "try_number": 2})))
    assert launcher.find(TASK_INSTANCE) == second
    assert launcher.find(TaskInstanceKey(**{**TASK_INSTANCE.to_dict(), "map_index": 0})) is None


@pytest.mark.parametrize(("code", "reason", "words"), [(3, "", "exit code 3"), (137, "OOMKilled", "limit of 8Gi")])
def test_each_end_has_its_exit_code(launcher: KubernetesLauncher, api: Api, code: int, reason: str, words: str) -> None:
    job = launcher.start(spec())
    assert launcher.status(job) is Status.RUNNING
    api.end(job, code, reason)
    assert launcher.status(job) is Status.FAILED
    assert launcher.ended(job).exit_code == code and words in launcher.ended(job).describe()
    assert launcher.result(job) is None


def test_lines_come_once_and_the_last_one_is_the_result(launcher: KubernetesLauncher, api: Api) -> None:
    job = launcher.start(spec())
    api.end(job, 0, log=f"one\n{DONE}\n")
    assert list(launcher.follow_logs(job)) == ["one", DONE]
    assert launcher.result(job) == {"result": {"epochs": 3, "stop_here": None}}


def test_stop_deletes_the_job_and_its_pod(launcher: KubernetesLauncher, api: Api) -> None:
    job = launcher.start(spec())
    launcher.stop(job)
    launcher.stop(job)  # again: nothing happens
    assert not api.jobs and not api.pods
    assert launcher.status(job) is Status.FAILED and launcher.ended(job).exit_code is None


def test_troubles_are_told_apart(launcher: KubernetesLauncher, api: Api) -> None:
    with pytest.raises(JobConfigurationError, match=r"no image is named for other\.job"):
        launcher.start(spec(module="other.job"))
    api.fails_with = 403
    with pytest.raises(JobConfigurationError, match="answered 403"):
        launcher.start(spec())
    api.fails_with = 503
    with pytest.raises(JobTransientError, match="answered 503"):
        launcher.find(TASK_INSTANCE)
