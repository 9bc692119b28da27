"""Runs jobs as Kubernetes Jobs of one Pod each, by the API that a worker inside the cluster has at hand.

The contract is the containers' one: labels find a job again, its result comes out of its log, since nothing can be read
from a Pod that has ended. Secrets go in as a Secret that the Job owns, so that both are removed together. Not run on a
real cluster yet: the tests run it against a double of the API server that runs the jobs as processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import ssl
import time
import uuid
from collections.abc import Generator, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.base import Ended, JobSpec, Status
from nightshift.launchers.images import image_of
from nightshift.launchers.log_place import LogPlace
from nightshift_common.task_instance import VARIABLE, TaskInstanceKey

logger = logging.getLogger(__name__)
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GRACE_SECONDS = 3  # between SIGTERM and SIGKILL; Airflow allows five in all
STOP_SECONDS = 4.5
KEEP_SECONDS = 3600
PATIENCE_SECONDS = 120.0  # how long the API may be away, say for an upgrade of the control plane
SILENCE_SECONDS = 60.0  # a log without a line for so long is asked for again: the connection may be dead
POLL_SECONDS = 1.0
PASSING = (429, 500, 502, 503, 504)
ENDED = ("Succeeded", "Failed")  # phases of a Pod
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
DENIED = ("not found", "denied", "unauthorized", "forbidden")  # in a registry's answer to the node
LABEL = "nightshift"
STARTED = f"{LABEL}/started"  # nanoseconds
CASCADE = {"propagationPolicy": "Background"}  # the API's default for Jobs would leave their Pods
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
    sandbox: Literal["require", "best-effort"] = "require"
    """require: weights are opened only where the node's kernel can hold what they do (docs/security.md)"""


@cache
def kubernetes_launcher() -> KubernetesLauncher:
    """Return the launcher of a worker that is a Pod itself.

    Raises:
        JobConfigurationError: the settings are wrong, or this is no Pod with a service account.
    """
    try:
        settings = KubernetesSettings.model_validate_json(os.environ.get(SETTINGS) or "{}")
        namespace = (ACCOUNT / "namespace").read_text().strip()
        trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except (ValueError, OSError, KeyError) as error:
        raise JobConfigurationError(
            f"no launcher for Kubernetes here ({SETTINGS}, the service account): {error}"
        ) from error
    address = f"[{host}]" if ":" in host else host
    client = httpx.Client(
        base_url=f"https://{address}:{port}", auth=_AccountToken(ACCOUNT / "token"), verify=trusted, timeout=30
    )
    return KubernetesLauncher(client, namespace, settings)


class _AccountToken(httpx.Auth):
    """The service account's token, read for each request: it is replaced within the hour, and jobs take longer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.path.read_text().strip()}"
        yield request


class KubernetesLauncher:
    """Jobs as Kubernetes Jobs; a job's id is the Job's name."""

    def __init__(self, client: httpx.Client, namespace: str, settings: KubernetesSettings) -> None:
        self.client, self.settings = client, settings
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.secrets = f"/api/v1/namespaces/{namespace}/secrets"

    def start(self, spec: JobSpec) -> str:
        """Make the Secret, then the Job that uses it, then let the Job own it: no Pod waits for a Secret in vain.

        Raises:
            JobConfigurationError: no image is named for it, it asks for GPUs where there are none, or the API refuses.
            JobTransientError: the API is away.
        """
        name = (
            f"nightshift-{re.sub('[^a-z0-9]+', '-', spec.task_instance.task_id.lower())[:30]}-{uuid.uuid4().hex[:10]}"
        )
        secret, job = secret_object(name, spec), job_object(name, spec, self.settings)
        headers = {"Content-Type": "application/merge-patch+json"}
        try:
            self._call("POST", self.secrets, json=secret)
            made = self._call("POST", self.jobs, json=job).json()
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": made["metadata"]["uid"]}
            change = {"metadata": {"ownerReferences": [owner]}}
            self._call("PATCH", f"{self.secrets}/{name}", json=change, headers=headers)
        except (JobConfigurationError, JobTransientError):
            self._remove(name)
            raise
        return name

    def _remove(self, name: str) -> None:
        """Leave nothing of a job that could not be started: nobody else would remove its Secret."""
        try:
            self._call("DELETE", f"{self.jobs}/{name}", json=CASCADE, missing=True)
            self._call("DELETE", f"{self.secrets}/{name}", missing=True)
        except (JobConfigurationError, JobTransientError) as error:
            logger.warning("the Secret %s may be left: %s", name, error)

    def find(self, task_instance: TaskInstanceKey, since_try: int = 1) -> str | None:
        """Return the newest Job of this task instance that runs or is new enough."""
        selector = ",".join(f"{key}={value}" for key, value in selecting(task_instance).items())
        found = self._call("GET", self.jobs, params={"labelSelector": selector}).json()["items"]
        for job in sorted(found, key=_age, reverse=True):
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
            for state in _states(pod):
                if ended := state.get("terminated"):
                    oom = ended.get("reason") == "OOMKilled"
                    reason = f"it needed more memory than its limit of {self.settings.memory}" if oom else ""
                    return Ended(int(ended["exitCode"]), reason)
            if reason := pod["status"].get("reason"):  # say Evicted
                return Ended(None, f"the node ended its Pod: {reason}: {pod['status'].get('message', '')}")
        return Ended(None, f"the Pod of {job_id} is gone")

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yield the Pod's lines from its start until it ends; a dropped connection reads on where it was.

        Raises:
            JobConfigurationError: the job's image cannot be had; the job is removed.
            JobTransientError: the API, or the log on its node, does not come back.
        """
        place = LogPlace()
        answered = time.monotonic()
        while True:
            running = self.status(job_id) is Status.RUNNING  # before the read: what was written until then is read
            try:
                for pod in self._pods(job_id):
                    self._refuse_without_image(job_id, pod)
                    yield from self._new_lines(pod, place, running)
            except httpx.HTTPError as error:
                if not isinstance(error, httpx.ReadTimeout):
                    logger.warning("lost the log of %s (%s); connecting again", job_id, error)
                if not running and time.monotonic() - answered > PATIENCE_SECONDS:
                    raise JobTransientError(f"the end of the log of {job_id} cannot be read: {error}") from error
            else:
                answered = time.monotonic()
                if not running:
                    return
            time.sleep(POLL_SECONDS)

    def _new_lines(self, pod: Mapping[str, Any], place: LogPlace, running: bool) -> Iterator[str]:
        since = place.since()
        asked = {"timestamps": "true", "follow": "true" if running else "false"}
        if since:
            asked["sinceTime"] = since.isoformat()
        rest = b""
        for chunk in self._log(pod, asked):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                stamp, _, text = line.partition(b" ")
                if place.is_new(stamp):
                    yield _text(text)
        if rest and not running:  # else it is asked for again: there may be more of it
            yield _text(rest.partition(b" ")[2])

    def _log(self, pod: Mapping[str, Any], asked: Mapping[str, str]) -> Iterator[bytes]:
        """Yield a Pod's log; nothing where it has not started yet, or is gone.

        Raises:
            httpx.HTTPError: the API or the node is away.
        """
        if pod["status"]["phase"] == "Pending":
            return
        limits = httpx.Timeout(30, read=SILENCE_SECONDS)
        path = f"{self.pods}/{pod['metadata']['name']}/log"
        with self.client.stream("GET", path, params=asked, timeout=limits) as answer:
            if answer.status_code not in (400, 404):  # its container waits; it was removed
                answer.raise_for_status()
                yield from answer.iter_bytes()

    def _refuse_without_image(self, job_id: str, pod: Mapping[str, Any]) -> None:
        """Raise where the node can never have the image; Kubernetes itself would try for ever."""
        for state in _states(pod):
            waiting = state.get("waiting") or {}
            reason, message = waiting.get("reason", ""), waiting.get("message", "")
            denied = "Image" in reason and any(word in message.lower() for word in DENIED)
            if denied or reason in HOPELESS:
                self.stop(job_id)
                image = pod["spec"]["containers"][0]["image"]
                raise JobConfigurationError(
                    f"the image {image} cannot be had ({reason}: {message}): push it to a registry that the nodes can"
                    f" reach and name it in {SETTINGS}"
                )

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return what the job's last line says: the same object as its `result.json`.

        Raises:
            JobTransientError: the log on its node does not answer.
        """
        try:
            log = b"".join(chunk for pod in self._pods(job_id) for chunk in self._log(pod, {}))
        except httpx.HTTPError as error:
            raise JobTransientError(f"the log of {job_id}, which has its result, cannot be read: {error}") from error
        for line in reversed(log.split(b"\n")):
            if b'"done"' in line and (event := _event(line)).get("event") == "done":
                return {"result": event["result"]}
        return None

    def stop(self, job_id: str) -> None:
        """Delete the Job with its Pod: SIGTERM, three seconds later SIGKILL. Return once the Pod is gone."""
        deadline = time.monotonic() + STOP_SECONDS
        if self.status(job_id) is Status.RUNNING:  # first, so that it makes no other Pod
            self._call("DELETE", f"{self.jobs}/{job_id}", json=CASCADE, missing=True)
        asked: set[str] = set()
        while left := {pod["metadata"]["name"] for pod in self._pods(job_id) if pod["status"]["phase"] not in ENDED}:
            for name in left - asked:
                self._call("DELETE", f"{self.pods}/{name}", json={"gracePeriodSeconds": GRACE_SECONDS}, missing=True)
            asked |= left
            if time.monotonic() > deadline:
                logger.warning("the Pod of %s is still there: its node may be away", job_id)
                return
            time.sleep(0.1)

    def _pods(self, job_id: str) -> list[dict[str, Any]]:
        selector = {"labelSelector": f"job-name={job_id}"}
        found: list[dict[str, Any]] = self._call("GET", self.pods, params=selector).json()["items"]
        return found

    def _call(self, method: str, path: str, missing: bool = False, **arguments: Any) -> httpx.Response:
        """Return the API's answer; what only reads is asked again while the API is away.

        Raises:
            JobConfigurationError: the API refuses it.
            JobTransientError: the API is away.
        """
        deadline = time.monotonic() + (PATIENCE_SECONDS if method == "GET" else 0)
        while True:
            try:
                answer = self.client.request(method, path, **arguments)
            except httpx.HTTPError as error:
                trouble: Exception = JobTransientError(
                    f"the Kubernetes API does not answer to {method} {path}: {error}"
                )
            else:
                if answer.is_success or (missing and answer.status_code == 404):
                    return answer
                message = f"the Kubernetes API answered {answer.status_code} to {method} {path}: {answer.text[:500]}"
                if answer.status_code in (400, 401, 403, 422):
                    raise JobConfigurationError(message)
                trouble = JobTransientError(message)
                if answer.status_code not in PASSING:
                    raise trouble
            if time.monotonic() >= deadline:
                raise trouble
            time.sleep(POLL_SECONDS)


def job_object(name: str, spec: JobSpec, settings: KubernetesSettings) -> dict[str, Any]:
    """Return the Job: one Pod, never tried again by Kubernetes, since Airflow decides about that."""
    own = {
        "NIGHTSHIFT_JOB_DIR": "/job",
        VARIABLE: spec.task_instance.to_json(),
        "NIGHTSHIFT_LOG_FORMAT": "json",
        "NIGHTSHIFT_CACHE": "/cache",
        "NIGHTSHIFT_CACHE_GIB": f"{settings.cache_gib:g}",
        "NIGHTSHIFT_SANDBOX": settings.sandbox,
        "PYTHONUNBUFFERED": "1",
        "HOME": "/job",  # an empty volume hides the image's folders there
        "TMPDIR": "/tmp",  # noqa: S108 - in the container
    }
    variables = {key: value for key, value in spec.variables.items() if key not in spec.secrets}  # env beats envFrom
    resources: dict[str, Any] = {"limits": {"memory": settings.memory}, "requests": {"memory": settings.memory}}
    if settings.gpus == 0 and spec.gpus > 1:
        raise JobConfigurationError(f"the job asks for {spec.gpus} GPUs, and this queue has none: gpus in {SETTINGS}")
    if settings.gpus:
        resources["limits"]["nvidia.com/gpu"] = max(settings.gpus, spec.gpus)
    cache_volume = {"persistentVolumeClaim": {"claimName": settings.cache_claim}} if settings.cache_claim else None
    container = {
        "name": "job",
        "image": image_of(spec, settings.images, SETTINGS),
        "command": [_literal(word) for word in ("python", "-m", spec.module, *spec.options)],
        "env": [{"name": key, "value": _literal(value)} for key, value in {**variables, **own}.items()],
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
    described[STARTED] = str(time.time_ns())
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


def _age(job: Mapping[str, Any]) -> tuple[str, int]:
    """Return what orders Jobs by age: creationTimestamp has whole seconds."""
    return str(job["metadata"]["creationTimestamp"]), int(job["metadata"]["annotations"][STARTED])


def _states(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where the Pod's containers are: waiting, running or terminated."""
    return [container.get("state", {}) for container in pod["status"].get("containerStatuses", [])]


def _literal(text: str) -> str:
    """Return text that Kubernetes takes as it is: in commands and variables it replaces $(NAME), and $$ by $."""
    return text.replace("$", "$$")


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
