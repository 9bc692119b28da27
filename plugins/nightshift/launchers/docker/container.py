"""What a job's container is made of: as little as the job needs, no way to the engine, its task instance as labels."""

from __future__ import annotations

import re
import uuid
from typing import Any

from docker.types import LogConfig, Mount

from nightshift.launchers.base import JobSpec
from nightshift.launchers.docker import gpu_selection
from nightshift.launchers.docker.settings import DockerSettings
from nightshift_common.task_instance import VARIABLE, TaskInstanceKey

LABEL = "nightshift"
JOB_DIR = "/job"


def described(spec: JobSpec, image: str, gpus: tuple[str, ...], settings: DockerSettings) -> dict[str, Any]:
    """Return the arguments that make the job's container."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"nightshift-{spec.task_instance.dag_id}-{spec.task_instance.task_id}")[:80]
    job = {
        "NIGHTSHIFT_JOB_DIR": JOB_DIR,
        VARIABLE: spec.task_instance.to_json(),
        "NIGHTSHIFT_LOG_FORMAT": "json",
        "NIGHTSHIFT_CACHE_GIB": f"{settings.cache_gib:g}",
        "NIGHTSHIFT_SANDBOX": settings.sandbox,
        "PYTHONUNBUFFERED": "1",
    }
    mounts = [Mount(JOB_DIR, None)]  # a volume of its own, removed with the container
    for volume in settings.volumes:
        source, _, target = volume.partition(":")
        mounts.append(Mount(target, source, type="bind" if source.startswith("/") else "volume"))
    return {
        "image": image,
        "command": ["python", "-m", spec.module, *spec.options],
        "name": f"{name}-{uuid.uuid4().hex[:8]}",
        "environment": {**spec.variables, **spec.secrets, **job},
        "labels": to_labels(spec.task_instance, gpus),
        "mounts": mounts,
        "network": settings.network,
        "device_requests": gpu_selection.request(gpus),
        "mem_limit": settings.memory,
        "memswap_limit": settings.memory,
        "shm_size": settings.shm,
        "pids_limit": 4096,
        "init": True,  # reaps what the job's children leave behind
        "read_only": True,
        "tmpfs": {"/tmp": "rw,exec,size=256m,mode=1777"},  # noqa: S108 - in the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "log_config": LogConfig(type="json-file", config={"max-size": "50m", "max-file": "4"}),
        "detach": True,
    }


def to_labels(task_instance: TaskInstanceKey, gpus: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the container's labels."""
    named = {f"{LABEL}.{name}": str(value) for name, value in task_instance.to_dict().items()}
    return {LABEL: "job", **named, **({f"{LABEL}.gpus": ",".join(gpus)} if gpus else {})}


def from_labels(labels: dict[str, str]) -> TaskInstanceKey:
    """Return the task instance that a container belongs to."""
    dag_id, run_id, task_id = (labels[f"{LABEL}.{name}"] for name in ("dag_id", "run_id", "task_id"))
    map_index, try_number = (int(labels[f"{LABEL}.{name}"]) for name in ("map_index", "try_number"))
    return TaskInstanceKey(dag_id, run_id, task_id, map_index, try_number)
