"""The double of a cluster is as unkind as its documentation says that a cluster is."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.kubernetes_api import NAMESPACE, Cluster
from tests.support.waiting import wait_for

CORE = f"/api/v1/namespaces/{NAMESPACE}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
MERGE = {"Content-Type": "application/merge-patch+json"}
WAITS = "import time; print('up', flush=True); time.sleep(60)"
HANDLES = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5));" + WAITS


@pytest.fixture
def api(cluster: Cluster) -> Iterator[httpx.Client]:
    cluster.rules = [
        {"resources": [kind], "verbs": ["create", "get", "list", "patch", "delete"]}
        for kind in ("jobs", "pods", "pods/log", "secrets")
    ]
    trusted = ssl.create_default_context(cafile=str(cluster.account / "ca.crt"))
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=f"https://127.0.0.1:{cluster.port}", headers=headers, verify=trusted) as client:
        yield client


def job(name: str, code: str = "", **container: Any) -> dict[str, Any]:
    described = {"name": "job", "image": "registry/jobs:1", "command": ["python", "-c", code], **container}
    template = {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [described]}}
    return {"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template}}


def secret(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **metadata}, "stringData": {"TOKEN": "x"}}


def pod(api: httpx.Client, name: str, phase: str) -> dict[str, Any]:
    def found() -> Any:
        pods = api.get(f"{CORE}/pods", params={"labelSelector": f"job-name={name}"}).json()["items"]
        return pods and pods[0]["status"]["phase"] == phase and pods[0]

    return dict(wait_for(found, f"the Pod of {name}"))


def test_requests_are_refused_as_a_server_refuses_them(api: httpx.Client, cluster: Cluster) -> None:
    assert api.get(f"{JOBS}/nothing").json()["reason"] == "NotFound"
    assert api.delete(f"{CORE}/pods/nothing").status_code == 404
    assert api.get(f"{CORE}/pods/nothing/log").status_code == 404
    assert api.post(f"{CORE}/secrets", json=secret("a")).status_code == 201
    assert api.post(f"{CORE}/secrets", json=secret("a")).json()["reason"] == "AlreadyExists"
    for wrong in (job("A"), job("a" * 64), job("a", env=[{"name": "N", "value": 1}]), secret("b", labels={"k": "a b"})):
        assert api.post(JOBS if "spec" in wrong else f"{CORE}/secrets", json=wrong).status_code == 422
    assert api.get(JOBS, headers={"Authorization": "Bearer old"}).status_code == 401
    assert api.get(JOBS.replace(NAMESPACE, "default")).status_code == 403
    cluster.rules = []
    assert api.get(JOBS).json()["reason"] == "Forbidden"


def test_objects_have_versions_and_secrets_are_write_only_as_text(api: httpx.Client) -> None:
    made = api.post(f"{CORE}/secrets", json=secret("a")).json()
    assert made["data"] == {"TOKEN": "eA=="} and "stringData" not in made
    version = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"a": "b"}}}
    assert api.patch(f"{CORE}/secrets/a", json=version).status_code == 415
    changed = api.patch(f"{CORE}/secrets/a", json=version, headers=MERGE).json()
    assert changed["metadata"]["uid"] == made["metadata"]["uid"] and changed["data"] == made["data"]
    assert api.patch(f"{CORE}/secrets/a", json=version, headers=MERGE).json()["reason"] == "Conflict"
    other = {"preconditions": {"uid": "another"}}
    assert api.request("DELETE", f"{CORE}/secrets/a", json=other).status_code == 409
    incomplete = {"metadata": {"ownerReferences": [{"kind": "Job", "name": "a"}]}}
    assert api.patch(f"{CORE}/secrets/a", json=incomplete, headers=MERGE).status_code == 422


def test_what_is_owned_goes_with_its_owner_and_pods_stay_unless_asked_for(api: httpx.Client, cluster: Cluster) -> None:
    uid = api.post(JOBS, json=job("a")).json()["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "a", "uid": uid}
    api.post(f"{CORE}/secrets", json=secret("a", ownerReferences=[owner]))
    api.post(f"{CORE}/secrets", json=secret("b", ownerReferences=[{**owner, "uid": "of an earlier one"}]))
    wait_for(lambda: ("secrets", "b") not in cluster.objects, "the end of what nobody owns")
    pod(api, "a", "Succeeded")
    assert ("secrets", "a") in cluster.objects
    api.delete(f"{JOBS}/a")
    assert pod(api, "a", "Succeeded")["metadata"]["ownerReferences"] == []
    api.post(JOBS, json=job("b"))
    pod(api, "b", "Succeeded")
    api.request("DELETE", f"{JOBS}/b", json={"propagationPolicy": "Background"})
    wait_for(lambda: not [p for p in cluster.of_kind("pods") if p["metadata"]["labels"]["job-name"] == "b"], "its end")


def test_a_job_ends_after_its_pod_and_a_deleted_pod_fails_it(api: httpx.Client) -> None:
    api.post(JOBS, json=job("a", "raise SystemExit(3)"))
    ended = pod(api, "a", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 3
    wait_for(lambda: "conditions" in api.get(f"{JOBS}/a").json()["status"], "the Job's end")
    api.post(JOBS, json=job("b", HANDLES))
    name = pod(api, "b", "Running")["metadata"]["name"]
    with api.stream("GET", f"{CORE}/pods/{name}/log", params={"follow": "true"}) as answer:
        assert next(answer.iter_lines()) == "up"
        deleted = api.delete(f"{CORE}/pods/{name}")
        assert deleted.status_code == 200
    wait_for(lambda: api.get(f"{CORE}/pods/{name}/log").status_code == 404, "the log's end with its Pod")
    kinds = wait_for(lambda: api.get(f"{JOBS}/b").json()["status"].get("conditions"), "the Job's end")
    assert [kind["type"] for kind in kinds] == ["FailureTarget", "Failed"]


def test_a_first_process_gets_no_signal_that_it_does_not_handle(api: httpx.Client, cluster: Cluster) -> None:
    for name, code in (("ignores", WAITS), ("handles", HANDLES)):
        api.post(JOBS, json=job(name, code))
        found = pod(api, name, "Running")["metadata"]["name"]
        wait_for(lambda found=found: "up" in api.get(f"{CORE}/pods/{found}/log").text, "the job")  # type: ignore[misc]
        api.request("DELETE", f"{CORE}/pods/{found}", json={"gracePeriodSeconds": 1})
        wait_for(lambda found=found: ("pods", found) not in cluster.objects, "its end")  # type: ignore[misc]
    assert cluster.started["ignores"][0].code == 137
    assert cluster.started["handles"][0].code == 5


def test_texts_are_expanded_and_what_cannot_start_waits(api: httpx.Client) -> None:
    environment = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A) $$(A) $(NONE) $A"}]
    code = "import os; print(os.environ['B'], '$(A)')"
    api.post(JOBS, json=job("a", code, env=environment))
    name = pod(api, "a", "Succeeded")["metadata"]["name"]
    assert api.get(f"{CORE}/pods/{name}/log").text == "1 $(A) $(NONE) $A 1\n"
    api.post(JOBS, json=job("b", image="registry/other:1"))
    api.post(JOBS, json=job("c", envFrom=[{"secretRef": {"name": "later"}}]))
    api.post(JOBS, json=job("d", resources={"limits": {"nvidia.com/gpu": 1}}))

    def reason(name: str) -> str:
        statuses = pod(api, name, "Pending")["status"].get("containerStatuses", [{"state": {}}])
        return str(statuses[0]["state"].get("waiting", {}).get("reason"))

    wait_for(lambda: reason("b") == "ErrImagePull", "the image")
    wait_for(lambda: reason("c") == "CreateContainerConfigError", "the Secret")
    waiting = pod(api, "c", "Pending")["metadata"]["name"]
    assert api.get(f"{CORE}/pods/{waiting}/log").status_code == 400
    api.post(f"{CORE}/secrets", json=secret("later"))
    pod(api, "c", "Succeeded")
    assert pod(api, "d", "Pending")["status"]["conditions"][0]["reason"] == "Unschedulable"


def test_a_log_has_times_a_beginning_and_only_its_latest_file(api: httpx.Client, cluster: Cluster) -> None:
    code = "print('x' * 40000); print('no end', end='')"
    api.post(JOBS, json=job("a", code))
    path = f"{CORE}/pods/{pod(api, 'a', 'Succeeded')['metadata']['name']}/log"
    assert api.get(path).text == "x" * 40000 + "\nno end"
    first, second = api.get(path, params={"timestamps": "true"}).text.split("\n")
    stamp, _, text = first.partition(" ")
    assert (len(stamp), text, second.partition(" ")[2]) == (30, "x" * 40000, "no end")
    assert "no end" in api.get(path, params={"sinceTime": f"{stamp[:19]}Z"}).text
    assert api.get(path, params={"sinceTime": "2099-01-01T00:00:00Z"}).text == ""
    assert api.get(path, params={"tailLines": "1"}).status_code == 501
    cluster.rotate()
    assert api.get(path).text == ""
