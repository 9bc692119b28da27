"""How job containers run on a worker's host: the worker's environment variables `NIGHTSHIFT_JOB_<NAME>`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nightshift.errors import JobConfigurationError

PREFIX = "NIGHTSHIFT_JOB_"
_JSON = ("images", "hosts")


class DockerSettings(BaseModel):
    """One variable a field, say `NIGHTSHIFT_JOB_MEMORY`; `images` and `hosts` are JSON objects, lists have commas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: dict[str, str] = Field(min_length=1)
    """module, environment or package -> image: plugins/nightshift/launchers/images.py says which one counts"""
    network: str | None = None
    """Docker network in which jobs find the services"""
    volumes: tuple[str, ...] = ()
    """volume or absolute path, and where jobs see it: nightshift_bottle:/bottle"""
    memory: str = "8g"
    """limit of a job's memory"""
    shm: str = "1g"
    """size of /dev/shm, which data loaders use"""
    cache_gib: float = Field(50, gt=0)
    """how much of a bottle in S3 the jobs of this host keep in /cache, which they share, GiB"""
    sandbox: Literal["require", "best-effort"] = "require"
    """require: weights are opened only where the host's kernel can hold what they do (docs/security.md)"""
    keep_seconds: int = Field(3600, ge=0)
    """an ended container is kept this long, for `docker logs` and `docker cp`"""
    gpus: tuple[str, ...] = ()
    """ids (index or UUID) of the GPUs of this worker; a job has those that it gets to itself. None: a CPU worker"""
    gpu_compute_capability: str | None = Field(None, pattern=r"^\d+\.\d+$")
    """what the GPUs have to be, say 7.5 for a T4"""
    gpu_free_mib: int = Field(0, ge=0)
    """free memory that a GPU needs before a job starts, MiB"""
    hosts: dict[str, str] = {}
    """name of another worker's host -> address of its engine, to attach to jobs that a dead worker left there"""

    @field_validator("volumes")
    @classmethod
    def _have_a_target(cls, volumes: tuple[str, ...]) -> tuple[str, ...]:
        for volume in volumes:
            source, _, target = volume.partition(":")
            if not source or not target.startswith("/"):
                raise ValueError(f"{volume!r} is not <volume or path>:<absolute path in the job>")
        return volumes


def from_environment(environment: Mapping[str, str] = os.environ) -> DockerSettings:
    """Return the settings of this worker.

    Raises:
        JobConfigurationError: a variable is missing, unknown or not valid; the message names each.
    """
    values: dict[str, object] = {}
    for name, text in environment.items():
        field = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX) or not text.strip() or field == "dir":
            continue
        values[field] = text
        if field in _JSON:
            try:
                values[field] = json.loads(text)
            except ValueError as error:
                raise JobConfigurationError(f"{name} is not JSON ({error}): {text[:200]}") from error
        elif field in ("volumes", "gpus"):
            values[field] = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return DockerSettings.model_validate(values)
    except ValidationError as error:
        problems = [f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
        raise JobConfigurationError("the worker's settings for job containers: " + "; ".join(problems)) from error
