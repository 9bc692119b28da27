"""Runs jobs as containers of the engine on the worker's host; they outlive the worker.

A job's id is `<host>/<container>`. The container carries the task instance as labels, so that any worker finds it
again; its `/job` is a volume of its own, from which `result.json` is read once it has ended. Secrets are in its
environment and in no label. Ended containers are kept for a while; what nobody waits for any more is removed when the
next job starts.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env

from nightshift.errors import JobConfigurationError, JobFailed, JobTransientError
from nightshift.launchers.base import Ended, JobSpec, Status
from nightshift.launchers.docker import gpu_selection
from nightshift.launchers.docker.container import JOB_DIR, LABEL, described, from_labels, to_labels
from nightshift.launchers.docker.logs import CONNECTION_ERRORS, follow
from nightshift.launchers.docker.settings import DockerSettings, from_environment
from nightshift.launchers.images import image_of
from nightshift_common.task_instance import TaskInstanceKey

logger = logging.getLogger(__name__)
T = TypeVar("T")
GRACE_SECONDS = 3  # between SIGTERM and SIGKILL; Airflow allows five in all
PATIENCE_SECONDS = 120.0  # how long an engine may be away, say for an upgrade
UNSTARTED_SECONDS = 600  # a container that was made and not started this long ago has no starter any more
ACTIVE = ("running", "paused", "restarting")
FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}


@cache
def docker_launcher() -> DockerLauncher:
    """Return the launcher of this worker: `DOCKER_HOST` or the usual socket, and `NIGHTSHIFT_JOB_*`."""
    try:
        client = docker.from_env()
    except DockerException as error:
        raise JobTransientError(f"no Docker engine answers on this worker: {error}") from error
    return DockerLauncher(client, from_environment(), task_state)


def task_state(task_instance: TaskInstanceKey) -> str | None:
    """Return the state of a task instance as Airflow knows it; `removed` where its run is gone. Only inside a task."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(task_instance.dag_id, run_ids=[task_instance.run_id])
    if task_instance.run_id not in states:
        return "removed"
    key = task_instance.task_id if task_instance.map_index < 0 else f"{task_instance.task_id}_{task_instance.map_index}"
    state = states[task_instance.run_id].get(key)
    return None if state is None else str(state)


class DockerLauncher:
    """Jobs as containers.

    Args:
        client: the engine of this worker's host.
        settings: images, mounts, limits, GPUs.
        task_state: Airflow's state of a task instance, which tells jobs that are waited for from leftovers.
    """

    def __init__(
        self, client: Any, settings: DockerSettings, task_state: Callable[[TaskInstanceKey], str | None]
    ) -> None:
        self.client, self.settings, self.task_state = client, settings, task_state

    @cached_property
    def host(self) -> str:
        """Name of the worker's host, as its engine knows it."""
        return str(self._patiently(lambda: self.client.info()["Name"]))

    def start(self, spec: JobSpec) -> str:
        """Start the job's container, detached.

        Raises:
            JobConfigurationError: there is no image for it, or the host cannot give it the GPU that it needs.
            JobTransientError: the registry, the engine or the GPU is away for now.
        """
        self.reap()
        image = self._image(spec)
        if not self.settings.gpus and spec.gpus == 1:
            return self._run(spec, image, ())
        with gpu_selection.one_at_a_time():
            taken = {gpu for found in self._list() for gpu in found["Labels"].get(f"{LABEL}.gpus", "").split(",")}
            gpus = gpu_selection.choose(self.settings, taken, spec.gpus)
            gpu_selection.preflight(self.client, image, gpus, self.settings)
            return self._run(spec, image, gpus)

    def _run(self, spec: JobSpec, image: str, gpus: tuple[str, ...]) -> str:
        container = self._patiently(
            lambda: self.client.containers.create(**described(spec, image, gpus, self.settings))
        )
        try:
            container.start()
        except APIError as error:
            container.remove(force=True, v=True)
            if gpus:
                raise gpu_selection.refused(error, gpus) from error
            raise JobFailed(f"the engine could not start {spec.module} in {image}: {error.explanation}") from error
        return f"{self.host}/{container.name}"

    def _image(self, spec: JobSpec) -> str:
        """Return the job's image, pulled if the host does not have it."""
        image = image_of(spec, self.settings.images, "NIGHTSHIFT_JOB_IMAGES")
        try:
            self._patiently(lambda: self.client.images.get(image))
        except ImageNotFound:
            self._pull(image)
        return image

    def _pull(self, image: str) -> None:
        logger.info("the host %s does not have the image %s: pulling it", self.host, image)
        try:
            self.client.images.pull(image)
        except (NotFound, ImageNotFound) as error:
            raise JobConfigurationError(self._no_image(image, error)) from error
        except (APIError, *CONNECTION_ERRORS) as error:
            denied = "denied" in str(error) or "unauthorized" in str(error)
            raise (JobConfigurationError if denied else JobTransientError)(self._no_image(image, error)) from error

    def _no_image(self, image: str, error: Exception) -> str:
        reason = getattr(error, "explanation", None) or error
        return (
            f"the image {image} is not on the host {self.host} and could not be pulled ({reason}): build it there with"
            " docker/build, or push it to a registry that the host can reach and name it in NIGHTSHIFT_JOB_IMAGES"
        )

    def find(self, task_instance: TaskInstanceKey, since_try: int = 1) -> str | None:
        """Return the newest container of this task instance that runs or is new enough, on any host that answers."""
        for host in (self.host, *(name for name in self.settings.hosts if name != self.host)):
            try:
                found = self._list(task_instance, client=self._engine(host), running_only=False)
            except (APIError, DockerException, *CONNECTION_ERRORS) as error:
                if host == self.host:
                    raise JobTransientError(f"the engine of {host} does not answer: {error}") from error
                logger.warning("the engine of %s does not answer, so its jobs are not looked at: %s", host, error)
                continue
            for container in found:
                if container["State"] == "created":
                    continue  # never started
                started_by = int(container["Labels"][f"{LABEL}.try_number"])
                if started_by >= since_try or container["State"] in ACTIVE:
                    return f"{host}/{container['Names'][0].lstrip('/')}"
        return None

    def status(self, job_id: str) -> Status:
        """Return where the job is."""
        state = self._state(job_id)
        if state is None:
            return Status.FAILED
        if state["Status"] in ACTIVE:
            return Status.RUNNING
        return Status.SUCCEEDED if state["Status"] == "exited" and state["ExitCode"] == 0 else Status.FAILED

    def ended(self, job_id: str) -> Ended:
        """Return the exit code; None where the container is gone."""
        state = self._state(job_id)
        if state is None:
            return Ended(None, f"its container {job_id} is gone")
        if state["OOMKilled"] and state["ExitCode"] != 0:
            used = f"it needed more memory than its limit of {self.settings.memory}, NIGHTSHIFT_JOB_MEMORY"
            return Ended(state["ExitCode"], f"killed by the kernel's out-of-memory killer: {used}")
        return Ended(state["ExitCode"], state["Error"])

    def follow_logs(self, job_id: str) -> Iterator[str]:
        """Yield the lines through dropped connections and restarts of the engine."""
        host, name = _split(job_id)
        if self._state(job_id) is None:
            return iter(())
        return follow(self._engine(host).api, name, lambda: self.status(job_id) is Status.RUNNING)

    def result(self, job_id: str) -> dict[str, Any] | None:
        """Return `result.json` out of the ended container."""
        host, name = _split(job_id)
        try:
            chunks, _ = self._patiently(lambda: self._engine(host).api.get_archive(name, f"{JOB_DIR}/result.json"))
        except NotFound:
            return None
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            file = archive.extractfile("result.json")
            found: dict[str, Any] = json.loads(file.read()) if file else {}
        return found

    def stop(self, job_id: str) -> None:
        """SIGTERM, three seconds later SIGKILL to everything in the container."""
        host, name = _split(job_id)
        try:
            self._engine(host).api.stop(name, timeout=GRACE_SECONDS)
        except NotFound:
            return

    def reap(self) -> None:
        """Stop what runs for tasks that have ended, and remove containers that ended a while ago.

        A worker that is killed in the last try of a task leaves such a job. What cannot be reaped now is next time.
        """
        for container in self._list(running_only=False):
            name, age = container["Names"][0].lstrip("/"), time.time() - container["Created"]
            try:
                if container["State"] in ACTIVE:
                    if self.task_state(from_labels(container["Labels"])) in FINAL:
                        logger.warning("stopping %s: its task has ended without it", name)
                        self.client.api.stop(name, timeout=GRACE_SECONDS)
                elif self._is_over(container, name, age):
                    self.client.api.remove_container(name, v=True, force=True)
            except (APIError, *CONNECTION_ERRORS) as error:
                logger.warning("could not reap %s: %s", name, error)

    def _is_over(self, container: dict[str, Any], name: str, age: float) -> bool:
        if container["State"] == "created":
            return age > UNSTARTED_SECONDS
        if age < self.settings.keep_seconds:
            return False
        state = self._state(f"{self.host}/{name}")
        return state is not None and _seconds_since(state["FinishedAt"]) > self.settings.keep_seconds

    def _list(
        self, task_instance: TaskInstanceKey | None = None, *, client: Any = None, running_only: bool = True
    ) -> list[dict[str, Any]]:
        """Return the job containers, newest first: all, or those of a task instance."""
        wanted = (
            [LABEL]
            if task_instance is None
            else [f"{k}={v}" for k, v in to_labels(task_instance).items() if "try" not in k]
        )
        api = (client or self.client).api
        return self._patiently(lambda: list(api.containers(all=not running_only, filters={"label": wanted})))

    def _state(self, job_id: str) -> dict[str, Any] | None:
        host, name = _split(job_id)
        try:
            return dict(self._patiently(lambda: self._engine(host).api.inspect_container(name))["State"])
        except NotFound:
            return None

    def _engine(self, host: str) -> Any:
        """Return the client of a host's engine."""
        if host == self.host:
            return self.client
        if address := self.settings.hosts.get(host):
            tls = kwargs_from_env().get("tls") if address.startswith("tcp") else None
            return docker.DockerClient(base_url=address, tls=tls or False)
        raise JobTransientError(
            f"the job runs on the host {host}, and this is {self.host}: waiting for a try that gets there. Name the"
            f" engine of {host} in NIGHTSHIFT_JOB_HOSTS to attach from here. If {host} is lost, clear the task: it"
            " starts anew"
        )

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, tried again while the engine is away."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except APIError:  # an answer, though requests counts it among its errors
                raise
            except CONNECTION_ERRORS as error:
                if time.monotonic() > deadline:
                    message = f"the Docker engine has not answered for {PATIENCE_SECONDS:.0f} s: {error}"
                    raise JobTransientError(message) from error
                time.sleep(0.5)


def _split(job_id: str) -> tuple[str, str]:
    host, _, name = job_id.rpartition("/")
    return host, name


def _seconds_since(stamp: str) -> float:
    from datetime import UTC, datetime

    return (datetime.now(UTC) - datetime.fromisoformat(stamp[:19] + "+00:00")).total_seconds()
