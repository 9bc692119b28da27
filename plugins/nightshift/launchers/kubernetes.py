"""Runs jobs as Kubernetes Jobs of one Pod each, by the API that a worker inside the cluster has at hand.

The contract is the containers' one: labels find a job again, its result comes out of its log, since nothing can be read
from a Pod that has ended. Secrets go in as a Secret that the Job owns, so that both are removed together. Not run on a
real cluster yet: the tests check the objects that it makes and reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.base import Ended, JobSpec, Status
from nightshift.launchers.images import image_of
from nightshift_common.task_instance import VARIABLE, TaskInstanceKey

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GRACE_SECONDS = 3
KEEP_SECONDS = 3600
LABEL = "nightshift"
SETTINGS = "NIGHTSHIFT_KUBERNETES"


class KubernetesSettings(BaseModel):
    """The JSON object in `NIGHTSHIFT_KUBERNETES`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: dict[str, str] = Field(min_length=1)
    """module, environment or package -> image: plugins/nightshift/launchers/images.py says which one counts"""
    memory: str = "8Gi"
    """limit of a job's memory"""
    gpus: int = Field(0, ge=0)
    """GPUs of each job of this worker's queue, at least: nvidia.com/gpu; a job may ask for more. 0: a CPU queue"""
    node_selector: dict[str, str] = {}
    """labels of the nodes, say nvidia.com/gpu.product: Tesla-T4"""
    cache_claim: str | None = None
    """persistent volume claim for the bottle's cache, with locks and hard links; without one it ends with the job"""
    cache_gib: float = Field(50, gt=0)
    """how much of the bottle it keeps, GiB"""


@cache
def kubernetes_launcher() -> KubernetesLauncher:
    """Return the launcher of a worker that is a Pod itself.

    Raises:
        JobConfigurationError: the settings are wrong, or this is no Pod with a service account.
    """
    try:
        settings = KubernetesSettings.model_validate_json(os.environ.get(SETTINGS) or "{}")
        token, namespace = ((ACCOUNT / name).read_text().strip() for name in ("token", "namespace"))
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except (ValueError, OSError, KeyError) as error:
        raise JobConfigurationError(
            f"no launcher for Kubernetes here ({SETTINGS}, the service account): {error}"
        ) from error
    client = httpx.Client(
        base_url=f"https://{host}:{port}",
        headers={"Authorization": f"Bearer {token}"},
        verify=str(ACCOUNT / "ca.crt"),
        timeout=30,
    )
    return KubernetesLauncher(client, namespace, settings)


class KubernetesLauncher:
    """Jobs as Kubernetes Jobs; a job's id is the Job's name."""

    def __init__(self, client: httpx.Client, namespace: str, settings: KubernetesSettings) -> None:
        self.client, self.settings = client, settings
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.core = f"/api/v1/namespaces/{namespace}"

    def start(self, spec: JobSpec) -> str:
        """Make the Secret, then the Job that uses it, then let the Job own it: no Pod waits for a Secret in vain."""
        name = (
            f"nightshift-{re.sub('[^a-z0-9]+', '-', spec.task_instance.task_id.lower())[:30]}-{uuid.uuid4().hex[:10]}"
        )
        secret = f"{self.core}/secrets"
        self._call("POST", secret, json=secret_object(name, spec))
        job = self._call("POST", self.jobs, json=job_object(name, spec, self.settings)).json()
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        headers = {"Content-Type": "application/merge-patch+json"}
        self._call("PATCH", f"{secret}/{name}", json={"metadata": {"ownerReferences": [owner]}}, headers=headers)
        return name

    def find(self, task_instance: TaskInstanceKey, since_try: int = 1) -> str | None:
        """Return the newest Job of this task instance that runs or is new enough."""
        selector = ",".join(f"{key}={value}" for key, value in selecting(task_instance).items())
        found = self._call("GET", self.jobs, params={"labelSelector": selector}).json()["items"]
        for job in sorted(found, key=lambda item: str(item["metadata"]["creationTimestamp"]), reverse=True):
            started_by = int(job["metadata"]["annotations"][f"{LABEL}/try_number"])
            if started_by >= since_try or status_of(job) is Status.RUNNING:
                return str(job["metadata"]["name"])
        return None

    def status(self, job_id: str) -> Status:
        """Return where the Job is; one that is gone has failed."""
        answer = self._call("GET", f"{self.jobs}/{job_id}", missing=True)
        return status_of(answer.json()) if answer.is_success else Status.FAILED

    def ended(self, job_id: str) -> Ended:
        """Return what the Pod's container ended with; None where the Pod is gone, say with its node."""
        for pod in self._pods(job_id):
            for container in pod.get("status", {}).get("containerStatuses", []):
                if ended := container.get("state", {}).get("terminated"):
                    oom = ended.get("reason") == "OOMKilled"
                    reason = f"it needed more memory than its limit of {self.settings.memory}" if oom else ""
                    return Ended(int(ended["exitCode"]), reason)
        return Ended(None, f"the Pod of {job_id} is gone")

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yield the Pod's lines from its start until it ends; a dropped connection reads on where it was."""
        seen = 0
        while True:
            running = self.status(job_id) is Status.RUNNING  # before the read: what was written until then is read
            for number, line in enumerate(self._lines(job_id, follow=running)):
                if number >= seen:
                    seen = number + 1
                    yield line
            if not running:
                return
            time.sleep(1)

    def _lines(self, job_id: str, follow: bool) -> Iterator[str]:
        for pod in self._pods(job_id):
            if pod.get("status", {}).get("phase") in (None, "Pending"):
                return
            path = f"{self.core}/pods/{pod['metadata']['name']}/log"
            try:
                with self.client.stream("GET", path, params={"follow": str(follow).lower()}, timeout=None) as answer:
                    if answer.is_success:
                        yield from answer.iter_lines()
            except httpx.HTTPError:
                return

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return what the job's last line says: the same object as its `result.json`."""
        found = None
        for line in self._lines(job_id, follow=False):
            if '"done"' in line and (event := _event(line)).get("event") == "done":
                found = {"result": event["result"]}
        return found

    def stop(self, job_id: str) -> None:
        """Delete the Job with its Pod: SIGTERM, three seconds later SIGKILL."""
        options = {"propagationPolicy": "Background", "gracePeriodSeconds": GRACE_SECONDS}
        for pod in self._pods(job_id):
            body = {"gracePeriodSeconds": GRACE_SECONDS}
            self._call("DELETE", f"{self.core}/pods/{pod['metadata']['name']}", json=body, missing=True)
        self._call("DELETE", f"{self.jobs}/{job_id}", json=options, missing=True)

    def _pods(self, job_id: str) -> list[dict[str, Any]]:
        selector = {"labelSelector": f"job-name={job_id}"}
        found: list[dict[str, Any]] = self._call("GET", f"{self.core}/pods", params=selector).json()["items"]
        return found

    def _call(self, method: str, path: str, missing: bool = False, **arguments: Any) -> httpx.Response:
        try:
            answer = self.client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise JobTransientError(f"the Kubernetes API does not answer to {method} {path}: {error}") from error
        if answer.is_success or (missing and answer.status_code == 404):
            return answer
        message = f"the Kubernetes API answered {answer.status_code} to {method} {path}: {answer.text[:500]}"
        raise (JobConfigurationError if answer.status_code in (400, 401, 403, 422) else JobTransientError)(message)


def job_object(name: str, spec: JobSpec, settings: KubernetesSettings) -> dict[str, Any]:
    """Return the Job: one Pod, never tried again by Kubernetes, since Airflow decides about that."""
    own = {
        "NIGHTSHIFT_JOB_DIR": "/job",
        VARIABLE: spec.task_instance.to_json(),
        "NIGHTSHIFT_LOG_FORMAT": "json",
        "NIGHTSHIFT_CACHE": "/cache",
        "NIGHTSHIFT_CACHE_GIB": f"{settings.cache_gib:g}",
        "HOME": "/job",  # an empty volume hides the image's folders there
        "TMPDIR": "/tmp",  # noqa: S108 - in the container
    }
    resources: dict[str, Any] = {"limits": {"memory": settings.memory}, "requests": {"memory": settings.memory}}
    if settings.gpus == 0 and spec.gpus > 1:
        raise JobConfigurationError(f"the job asks for {spec.gpus} GPUs, and this queue has none: gpus in {SETTINGS}")
    if settings.gpus:
        resources["limits"]["nvidia.com/gpu"] = max(settings.gpus, spec.gpus)
    cache_volume = {"persistentVolumeClaim": {"claimName": settings.cache_claim}} if settings.cache_claim else None
    container = {
        "name": "job",
        "image": image_of(spec, settings.images, SETTINGS),
        "command": ["python", "-m", spec.module, *spec.options],
        "env": [{"name": key, "value": value} for key, value in {**spec.variables, **own}.items()],
        "envFrom": [{"secretRef": {"name": name}}],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": key, "mountPath": f"/{path}"} for key, path in _MOUNTS.items()],
    }
    labels = selecting(spec.task_instance)
    described = {f"{LABEL}/{key}": str(value) for key, value in spec.task_instance.to_dict().items()}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,  # a job has no business with the cluster
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001},
        "nodeSelector": settings.node_selector,
        "containers": [container],
        "volumes": [
            {"name": "job", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "cache", **(cache_volume or {"emptyDir": {}})},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "annotations": described},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "template": {"metadata": {"labels": labels, "annotations": described}, "spec": pod},
        },
    }


_MOUNTS = {"job": "job", "tmp": "tmp", "shm": "dev/shm", "cache": "cache"}


def secret_object(name: str, spec: JobSpec) -> dict[str, Any]:
    """Return the Secret of a Job, under the Job's name."""
    metadata = {"name": name, "labels": selecting(spec.task_instance)}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(spec.secrets)}


def selecting(key: TaskInstanceKey) -> dict[str, str]:
    """Return labels that stand for the task instance: ids have characters and lengths that labels cannot have."""
    identity = json.dumps([key.dag_id, key.run_id, key.task_id, key.map_index])
    return {LABEL: "job", f"{LABEL}/task": hashlib.sha256(identity.encode()).hexdigest()[:40]}


def status_of(job: Mapping[str, Any]) -> Status:
    """Return where a Job object says that it is."""
    status = job.get("status", {})
    conditions = {item["type"] for item in status.get("conditions", []) if item.get("status") == "True"}
    if "Complete" in conditions:
        return Status.SUCCEEDED
    return Status.FAILED if "Failed" in conditions else Status.RUNNING


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
