"""A double of a Kubernetes cluster: the parts of its API server that the launcher uses, a controller, and a node.

No machine of the tests has a cluster. This is modeled on public texts and not recorded from one: the API reference of
Job, Pod and Secret (v1.31) with its API concepts (Status objects, DeleteOptions, merge patches, preconditions), the
pages on Jobs, garbage collection, Pod lifecycle, RBAC and dependent environment variables, and the kubelet's and
containerd's sources for how a log is cut into pieces, stamped and served.

What is real: HTTPS with a bearer token, and the job itself, a process whose output, exit code and files are what they
are. What is as unkind as a cluster:
- everything is late: a Pod comes after its Job, starts after it came, and its Job ends after it has ended;
- a Pod that is deleted takes its log with it; an id that is gone is answered with 404, a name that is taken with 409,
  what is not valid with 422, a verb that the service account's Role does not have with 403;
- creationTimestamp has whole seconds; a Secret's stringData can be written, and comes back as data in base64;
- a Job that is deleted without a propagationPolicy leaves its Pods; an owner that is gone takes what it owned with it;
- `$(NAME)` in commands and variables is replaced, and `$$` becomes `$`;
- the first process of a container gets only signals that it handles, and takes all others with it when it ends;
- a log is sent in pieces that end anywhere, its connections can be cut, only its latest file is served once it was
  rotated; `sinceTime` has whole seconds;
- a Pod that asks for more GPUs than the node has, or whose image cannot be pulled, waits for ever.

What it does not have: volumes and their permissions, limits of memory, namespaces of processes, users and networks. A
container is a process of this machine; `/job` and the other mounted folders become folders of its own where an
environment variable names them. What is asked of it that is not modeled is answered with 501.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psutil
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAMESPACE = "ml"
PIECE_BYTES = 16 * 1024  # the container runtime cuts longer lines
SENT_BYTES = 4093  # ends in the middle of lines and of characters
TICK_SECONDS = 0.02
ROUTE = re.compile(r"(/api/v1|/apis/batch/v1)/namespaces/([^/]+)/(jobs|pods|secrets)(?:/([a-z0-9.-]+))?(?:/(log))?")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")
SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]+")
REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass(frozen=True)
class Image:
    """What a container of an image is made of: a folder with programs, and its working directory."""

    programs: Path
    folder: Path


class Container:
    """A container's process, and its log as the node keeps it."""

    def __init__(self, uid: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.uid = uid
        self.changed = threading.Condition()
        self.pieces: list[tuple[int, bytes]] = []  # nanoseconds since 1970, up to PIECE_BYTES of a line
        self.first = 0  # of the latest file
        self.code: int | None = None
        self.reason = ""
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "DOUBLE_OF_POD": uid},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        code = self.process.wait()
        while left := self.members():  # the first process takes all others with it
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(TICK_SECONDS)
        reader.join()
        with self.changed:
            self.code = code if code >= 0 else 128 - code
            self.changed.notify_all()

    def _read(self) -> None:
        assert self.process.stdout
        for piece in iter(lambda: self.process.stdout.readline(PIECE_BYTES), b""):
            with self.changed:
                self.pieces.append((time.time_ns(), piece))
                self.changed.notify_all()

    def members(self) -> list[psutil.Process]:
        """Return the processes in the container."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DOUBLE_OF_POD") == self.uid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def terminate(self) -> None:
        """SIGTERM to the first process, which gets it only if it handles it, as every namespace's first process."""
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
            if caught & 1 << (signal.SIGTERM - 1):
                self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL from outside."""
        self.process.kill()

    def log(self, since: dt.datetime | None, follow: bool, timestamps: bool) -> Iterator[bytes]:
        """Yield the log's bytes: each line after its time; the end of the last line only if it has one."""
        after = int(since.timestamp()) * 10**9 if since else 0
        position, is_new_line = self.first, True
        while True:
            with self.changed:
                while follow and self.code is None and position >= len(self.pieces):
                    self.changed.wait()
                found, ended = self.pieces[position:], self.code is not None
            position += len(found)
            parts = []
            for stamp, piece in found:
                if stamp < after:
                    continue
                if timestamps and is_new_line:
                    parts.append(_time_of(stamp))
                parts.append(piece)
                is_new_line = piece.endswith(b"\n")
            yield b"".join(parts)
            if not follow or (ended and not found):
                return


def _time_of(stamp: int) -> bytes:
    whole = dt.datetime.fromtimestamp(stamp // 10**9, dt.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{stamp % 10**9:09d}Z ".encode()


@dataclass
class Cluster:
    """A running double: where it is, and what a test may do to it behind the API's back."""

    folder: Path
    images: Mapping[str, Image]
    rules: list[dict[str, list[str]]]
    gpus: int = 0
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    started: defaultdict[str, list[Container]] = field(default_factory=lambda: defaultdict(list))
    """all containers that there ever were, by Job"""
    fails_with: int = 0
    """answer every request with this status"""
    logs_fail_with: int = 0
    """answer those for logs with this status, as for a node that does not answer"""
    refused: int = 0
    """how many requests were answered so"""
    logs_sent: int = 0
    used: set[tuple[str, str]] = field(default_factory=set)
    """verbs and resources that were asked for"""

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.version = 0
        self.deadlines: dict[str, float] = {}  # Pod -> when it is killed
        self.streams: set[socket.socket] = set()
        self.port = 0
        self.account = self.folder / "account"
        self.account.mkdir(parents=True)
        self.new_token()
        (self.account / "namespace").write_text(NAMESPACE)

    def new_token(self) -> None:
        """Replace the service account's token; the old one counts no longer."""
        self.token = uuid.uuid4().hex
        (self.account / "token").write_text(self.token)

    def cut(self) -> None:
        """Drop every connection that a log is sent on."""
        for stream in list(self.streams):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def rotate(self) -> None:
        """Begin a new log file of each container; what was written before is not served any more."""
        for container in self.containers.values():
            with container.changed:
                container.first = len(container.pieces)

    def container(self, job: str) -> Container:
        """Return the container of a Job's Pod."""
        with self.lock:
            return next(self.containers[pod] for pod in self._pods_of(job) if pod in self.containers)

    def lose_pod(self, job: str) -> None:
        """Remove the Job's Pod at once, as the control plane does with those of a node that is gone."""
        with self.lock:
            for pod in self._pods_of(job):
                self.containers[pod].kill()
                self._forget(pod)

    def evict(self, job: str, message: str) -> None:
        """End the Job's Pod as a node that is short of something does."""
        with self.lock:
            for pod in self._pods_of(job):
                self.containers.pop(pod).kill()
                self.objects["pods", pod]["status"] = {"phase": "Failed", "reason": "Evicted", "message": message}

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind."""
        with self.lock:
            return [copy.deepcopy(value) for (found, _), value in self.objects.items() if found == kind]

    def _pods_of(self, job: str) -> list[str]:
        pods = self.of_kind("pods")
        return [pod["metadata"]["name"] for pod in pods if pod["metadata"]["labels"]["job-name"] == job]

    # the API server

    def create(self, kind: str, made: dict[str, Any]) -> dict[str, Any]:
        """Store a new object."""
        _validate(kind, made)
        name = made["metadata"]["name"]
        with self.lock:
            if (kind, name) in self.objects:
                raise ApiError(409, "AlreadyExists", f'{kind} "{name}" already exists')
            made = copy.deepcopy(made)
            if kind == "secrets":
                written = {
                    key: base64.b64encode(text.encode()).decode() for key, text in made.pop("stringData").items()
                }
                made["data"] = {**made.get("data", {}), **written}
            now = dt.datetime.now(dt.UTC)
            made["metadata"] |= {
                "namespace": NAMESPACE,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            }
            made.setdefault("status", {})
            self.objects[kind, name] = made
            return self._changed(made)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        with self.lock:
            if (kind, name) not in self.objects:
                raise ApiError(404, "NotFound", f'{kind} "{name}" not found')
            return copy.deepcopy(self.objects[kind, name])

    def select(self, kind: str, selector: str) -> list[dict[str, Any]]:
        """Return the objects with all labels of a selector, without kind and apiVersion, as lists have them."""
        wanted = dict(part.split("=", 1) for part in selector.split(",")) if selector else {}
        items = [item for item in self.of_kind(kind) if wanted.items() <= item["metadata"].get("labels", {}).items()]
        return [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]

    def patch(self, kind: str, name: str, change: dict[str, Any]) -> dict[str, Any]:
        """Merge a change into an object (RFC 7396)."""
        with self.lock:
            stored = self.get(kind, name)
            given = change.get("metadata", {})
            if (
                given.get("resourceVersion", stored["metadata"]["resourceVersion"])
                != stored["metadata"]["resourceVersion"]
            ):
                raise ApiError(409, "Conflict", f'{kind} "{name}": the object has been modified')
            if given.get("uid", stored["metadata"]["uid"]) != stored["metadata"]["uid"]:
                raise ApiError(409, "Conflict", f'{kind} "{name}": the UID in the precondition is another')
            for owner in given.get("ownerReferences", []):
                if missing := {"apiVersion", "kind", "name", "uid"} - owner.keys():
                    raise ApiError(422, "Invalid", f"metadata.ownerReferences: {', '.join(sorted(missing))} required")
            self.objects[kind, name] = _merged(stored, change)
            return self._changed(self.objects[kind, name])

    def delete(self, kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Delete an object; a Pod that runs is given time to end."""
        if unknown := options.keys() - {
            "kind",
            "apiVersion",
            "gracePeriodSeconds",
            "propagationPolicy",
            "preconditions",
        }:
            raise ApiError(501, "NotModeled", f"DeleteOptions {', '.join(sorted(unknown))}")
        policy = options.get("propagationPolicy", "Orphan" if kind == "jobs" else "Background")
        if policy not in ("Orphan", "Background"):
            raise ApiError(501, "NotModeled", f"propagationPolicy {policy}")
        with self.lock:
            stored = self.get(kind, name)
            for key, value in options.get("preconditions", {}).items():
                if stored["metadata"][key] != value:
                    raise ApiError(409, "Conflict", f'{kind} "{name}": the {key} in the precondition is {value}')
            if kind == "pods":
                self._end_pod(name, options.get("gracePeriodSeconds"))
                return stored
            if policy == "Orphan":
                for item in self.objects.values():
                    owners = item["metadata"].get("ownerReferences", [])
                    item["metadata"]["ownerReferences"] = [o for o in owners if o["uid"] != stored["metadata"]["uid"]]
            del self.objects[kind, name]
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"name": name}}

    def _changed(self, stored: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        stored["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(stored)

    def _end_pod(self, name: str, grace: int | None) -> None:
        pod = self.objects["pods", name]
        container = self.containers.get(name)
        if container is None or container.code is not None:
            self._forget(name)
            return
        seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
            container.terminate()
        self.deadlines[name] = min(self.deadlines.get(name, float("inf")), time.monotonic() + seconds)

    def _forget(self, name: str) -> None:
        self.objects.pop(("pods", name), None)
        self.containers.pop(name, None)
        self.deadlines.pop(name, None)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    # the controllers and the node

    def tick(self) -> None:
        """Let everything go one step on."""
        with self.lock:
            for kind, name in list(self.objects):
                if found := self.objects.get((kind, name)):
                    step = {"jobs": self._step_job, "pods": self._step_pod}.get(kind)
                    if step:
                        step(name, found)
            uids = {item["metadata"]["uid"] for item in self.objects.values()}
            for kind, name in list(self.objects):
                owners = self.objects[kind, name]["metadata"].get("ownerReferences")
                if owners and not any(owner["uid"] in uids for owner in owners):
                    if kind == "pods":
                        if "deletionTimestamp" not in self.objects[kind, name]["metadata"]:
                            self._end_pod(name, None)
                    else:
                        del self.objects[kind, name]

    def _step_job(self, name: str, job: dict[str, Any]) -> None:
        status = job["status"]
        if "conditions" in status:
            return
        pods = self._pods_of(name)
        if not pods and "startTime" not in status:
            status["startTime"] = job["metadata"]["creationTimestamp"]
            self._make_pod(name, job)
            return
        pod = self.objects["pods", pods[0]] if pods else None
        phase = pod["status"]["phase"] if pod else "Failed"
        if phase in ("Succeeded", "Failed"):
            kind = "Complete" if phase == "Succeeded" else "Failed"
            if "uncountedTerminatedPods" not in status:
                status["uncountedTerminatedPods"] = {}  # the Job's end shows later than its Pod's
                return
            status["conditions"] = [
                {"type": "FailureTarget" if kind == "Failed" else "SuccessCriteriaMet", "status": "True"},
                {"type": kind, "status": "True", "reason": "BackoffLimitExceeded" if kind == "Failed" else ""},
            ]
            self._changed(job)

    def _make_pod(self, name: str, job: dict[str, Any]) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        metadata = template["metadata"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        labels = {"job-name": name, "batch.kubernetes.io/job-name": name, "controller-uid": job["metadata"]["uid"]}
        metadata |= {
            "name": f"{name}-{uuid.uuid4().hex[:5]}",
            "labels": {**metadata.get("labels", {}), **labels},
            "ownerReferences": [owner],
        }
        self.create("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})

    def _step_pod(self, name: str, pod: dict[str, Any]) -> None:
        container, status = self.containers.get(name), pod["status"]
        if status["phase"] in ("Succeeded", "Failed"):
            return
        if container is None:
            self._start_pod(name, pod)
        elif container.code is not None:
            reason = container.reason or ("Completed" if container.code == 0 else "Error")
            state = {"terminated": {"exitCode": container.code, "reason": reason}}
            status |= {"phase": "Failed" if container.code else "Succeeded", "containerStatuses": [_at(state)]}
            if name in self.deadlines:
                self._forget(name)
        elif time.monotonic() > self.deadlines.get(name, float("inf")):
            container.kill()

    def _start_pod(self, name: str, pod: dict[str, Any]) -> None:
        (described,) = pod["spec"]["containers"]
        wanted = int(described.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
        if wanted > self.gpus:
            unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            pod["status"]["conditions"] = [unschedulable]
            return
        if "containerStatuses" not in pod["status"]:
            pod["status"]["containerStatuses"] = [_at({"waiting": {"reason": "ContainerCreating"}})]
            return
        if described["image"] not in self.images:
            message = f'failed to resolve reference "{described["image"]}": {described["image"]}: not found'
            pod["status"]["containerStatuses"] = [_at({"waiting": {"reason": "ErrImagePull", "message": message}})]
            return
        image, folder = self.images[described["image"]], self.folder / name
        environment = {"PATH": f"{image.programs}{os.pathsep}{os.environ['PATH']}"}
        for source in described.get("envFrom", []):
            secret = source["secretRef"]["name"]
            if ("secrets", secret) not in self.objects:
                message = f'secret "{secret}" not found'
                waiting = {"reason": "CreateContainerConfigError", "message": message}
                pod["status"]["containerStatuses"] = [_at({"waiting": waiting})]
                return
            stored = self.objects["secrets", secret]["data"]
            environment |= {key: base64.b64decode(value).decode() for key, value in stored.items()}
        for variable in described.get("env", []):
            environment[variable["name"]] = _expanded(variable["value"], environment)
        command = [_expanded(word, environment) for word in described["command"]]
        for mount in described.get("volumeMounts", []):
            own = folder / mount["name"]
            own.mkdir(parents=True)
            path = mount["mountPath"]
            environment = {key: str(own) if value == path else value for key, value in environment.items()}
        self.containers[name] = Container(pod["metadata"]["uid"], command, environment, image.folder)
        self.started[pod["metadata"]["labels"]["job-name"]].append(self.containers[name])
        pod["status"] = {"phase": "Running", "containerStatuses": [_at({"running": {}})]}


def _at(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "job", "state": state}


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """Replace $(NAME) by the variable's value where there is one, and $$ by $."""
    return REFERENCE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)


def _merged(stored: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    found = dict(stored) if isinstance(stored, dict) else {}
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _validate(kind: str, made: dict[str, Any]) -> None:
    metadata = made.get("metadata", {})
    wrong = []
    if not NAME.fullmatch(metadata.get("name", "")) or len(metadata["name"]) > 63:
        wrong.append(f"metadata.name: {metadata.get('name')!r}")
    described = [metadata]
    if kind == "jobs":
        template = made["spec"]["template"]
        described.append(template["metadata"])
        wrong += _wrong_in_pod(template["spec"])
    for each in described:
        wrong += [f"labels: {k}={v}" for k, v in each.get("labels", {}).items() if not _is_label(k, v)]
        texts = each.get("annotations", {}).items()
        wrong += [f"annotations: {k}" for k, v in texts if not LABEL_KEY.fullmatch(k) or not isinstance(v, str)]
    if kind == "secrets":
        texts = made.get("stringData", {}).items()
        wrong += [f"data: {k}" for k, v in texts if not SECRET_KEY.fullmatch(k) or not isinstance(v, str)]
    if wrong:
        raise ApiError(422, "Invalid", f"{kind} is invalid: {'; '.join(wrong)}")


def _wrong_in_pod(spec: dict[str, Any]) -> list[str]:
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    wrong = [] if spec.get("restartPolicy") in ("Never", "OnFailure") else ["restartPolicy: required"]
    for container in spec["containers"]:
        mounts = container.get("volumeMounts", [])
        wrong += [f"volumeMounts: {mount['name']} not found" for mount in mounts if mount["name"] not in volumes]
        wrong += [f"command: {word!r}" for word in container["command"] if not isinstance(word, str)]
        for variable in container.get("env", []):
            if not isinstance(variable["value"], str) or "=" in variable["name"] or not variable["name"]:
                wrong.append(f"env: {variable}")
    return wrong


def _is_label(key: str, value: Any) -> bool:
    return bool(
        LABEL_KEY.fullmatch(key) and isinstance(value, str) and len(value) <= 63 and LABEL_VALUE.fullmatch(value)
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        try:
            found, code = self._found(body)
        except ApiError as error:
            found, code = error.status, error.code
        if found is None:
            return
        content = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def _found(self, body: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
        cluster, url = self.cluster, urlsplit(self.path)
        asked = dict(parse_qsl(url.query))
        if code := cluster.fails_with or (cluster.logs_fail_with if url.path.endswith("/log") else 0):
            cluster.refused += 1
            raise ApiError(code, "Made", "as the test wants it")
        if self.headers.get("Authorization") != f"Bearer {cluster.token}":
            raise ApiError(401, "Unauthorized", "Unauthorized")
        parts = ROUTE.fullmatch(url.path)
        if not parts:
            raise ApiError(501, "NotModeled", url.path)
        group, namespace, kind, name, log = parts.groups()
        if (kind == "jobs") != (group == "/apis/batch/v1"):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        self._authorize(
            namespace, kind + ("/log" if log else ""), VERBS.get(self.command) or ("get" if name else "list")
        )
        if log:
            self._send_log(name, asked)
            return None, 200
        if asked.keys() - {"labelSelector"}:
            raise ApiError(501, "NotModeled", url.query)
        if self.command == "POST":
            return cluster.create(kind, body), 201
        if self.command == "PATCH":
            if self.headers.get("Content-Type") != "application/merge-patch+json":
                raise ApiError(415, "UnsupportedMediaType", "only merge patches are modeled")
            return cluster.patch(kind, name, body), 200
        if self.command == "DELETE":
            return cluster.delete(kind, name, body), 200
        if name:
            return cluster.get(kind, name), 200
        return {"kind": "List", "apiVersion": "v1", "items": cluster.select(kind, asked.get("labelSelector", ""))}, 200

    def _authorize(self, namespace: str, resource: str, verb: str) -> None:
        self.cluster.used.add((verb, resource))
        rules = self.cluster.rules if namespace == NAMESPACE else []
        if not any(resource in rule["resources"] and verb in rule["verbs"] for rule in rules):
            message = f'{resource} is forbidden: cannot {verb} resource "{resource}" in the namespace "{namespace}"'
            raise ApiError(403, "Forbidden", message)

    def _send_log(self, name: str, asked: dict[str, str]) -> None:
        if unknown := asked.keys() - {"follow", "timestamps", "sinceTime"}:
            raise ApiError(501, "NotModeled", f"parameters {', '.join(sorted(unknown))}")
        self.cluster.get("pods", name)
        container = self.cluster.containers.get(name)
        if container is None:
            raise ApiError(400, "BadRequest", f'container "job" in pod "{name}" is waiting to start')
        try:
            since = (
                dt.datetime.fromisoformat(asked["sinceTime"]).replace(microsecond=0) if "sinceTime" in asked else None
            )
        except ValueError as error:
            raise ApiError(400, "BadRequest", f"sinceTime: {error}") from error
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        self.cluster.streams.add(self.connection)
        self.cluster.logs_sent += 1
        try:
            for content in container.log(since, asked.get("follow") == "true", asked.get("timestamps") == "true"):
                for start in range(0, len(content), SENT_BYTES):
                    part = content[start : start + SENT_BYTES]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        finally:
            self.cluster.streams.discard(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def role_rules(text: str) -> list[dict[str, list[str]]]:
    """Return the rules of the Role in a document's only block of YAML that has one."""
    (block,) = [part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kind: Role" in part]
    rules: list[dict[str, list[str]]] = yaml.safe_load(block)["rules"]
    return rules


@contextmanager
def kubernetes_api(
    folder: Path, images: Mapping[str, Image], rules: list[dict[str, list[str]]], gpus: int = 0
) -> Iterator[Cluster]:
    """Run a cluster on 127.0.0.1 until the block ends; `Cluster.account` is the folder of its service account."""
    cluster = Cluster(folder, images, rules, gpus)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(cluster.account))
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that went away
    cluster.port = server.server_port
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(TICK_SECONDS):
            cluster.tick()

    threads = [threading.Thread(target=run), threading.Thread(target=server.serve_forever, args=(0.05,))]
    for thread in threads:
        thread.start()
    try:
        yield cluster
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()
        for container in list(cluster.containers.values()):
            container.kill()
            for process in container.members():
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _certificate(account: Path) -> Path:
    """Write ca.crt, and a file with key and certificate beside the account's folder; return the latter."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    (account / "ca.crt").write_bytes(certificate)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = account.with_name("server.pem")
    path.write_bytes(private + certificate)
    return path
