"""Which GPUs a job container gets, and whether they are what the job needs, before anything long starts."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.errors import APIError
from docker.types import DeviceRequest

from nightshift.errors import JobConfigurationError, JobTransientError
from nightshift.launchers.docker.settings import DockerSettings

logger = logging.getLogger(__name__)
QUERY = ["nvidia-smi", "--query-gpu=index,name,compute_cap,driver_version,memory.free,memory.total"]
FORMAT = "--format=csv,noheader,nounits"
NO_DRIVER = "could not select device driver"


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi sees it; memory in MiB."""

    index: str
    name: str
    compute_capability: str
    driver: str
    free: int
    total: int

    def describe(self) -> str:
        """Return it in words."""
        return (
            f"{self.name}, compute capability {self.compute_capability}, driver {self.driver},"
            f" {self.free:,} of {self.total:,} MiB free"
        )


def request(ids: Sequence[str]) -> list[DeviceRequest]:
    """Return what asks the engine for exactly these GPUs."""
    if not ids:
        return []
    return [DeviceRequest(driver="nvidia", device_ids=list(ids), capabilities=[["gpu", "utility", "compute"]])]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one task of this worker at a time choose its GPU and start."""
    with (Path(tempfile.gettempdir()) / "nightshift-gpus.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def choose(settings: DockerSettings, taken: set[str], count: int = 1) -> tuple[str, ...]:
    """Return `count` GPUs for a job, which no running job has; for one that needs no more than one, none on a worker
    without GPUs.

    Raises:
        JobConfigurationError: the worker has fewer.
        JobTransientError: too many are taken; the pool has more slots than there are GPUs, or its hosts share it.
    """
    if not settings.gpus and count == 1:
        return ()
    there = ", ".join(settings.gpus) or "none"
    if count > len(settings.gpus):
        raise JobConfigurationError(
            f"the job asks for {count} GPUs, and this worker has {len(settings.gpus)} ({there}): train.gpus of its"
            " pipeline, and a train_queue whose workers have as many in NIGHTSHIFT_JOB_GPUS"
        )
    free = [gpu for gpu in settings.gpus if gpu not in taken]
    if len(free) < count:
        few = "all GPUs" if not free else f"{len(settings.gpus) - len(free)} of the GPUs"
        raise JobTransientError(
            f"{few} of this worker ({there}) have a job, and this one asks for {count}: give the pool as many slots as"
            " there are GPUs, and the worker that concurrency"
        )
    return tuple(free[:count])


def preflight(client: Any, image: str, ids: Sequence[str], settings: DockerSettings) -> list[Gpu]:
    """Ask nvidia-smi in a container of the job's image; return the GPUs, which the task's log shows.

    Raises:
        JobConfigurationError: the host cannot give containers GPUs, or they are others than the settings say.
        JobTransientError: the GPU does not answer, or has too little free memory now.
    """
    container = client.containers.create(
        image, [*QUERY, FORMAT], device_requests=request(ids), network_mode="none", entrypoint=[]
    )
    try:
        container.start()
        code, output = container.wait()["StatusCode"], container.logs().decode(errors="replace")
    except APIError as error:
        raise refused(error, ids) from error
    finally:
        container.remove(force=True, v=True)
    if code != 0:
        raise JobTransientError(f"nvidia-smi failed for GPU {', '.join(ids)} (exit code {code}): {output[-500:]}")
    gpus = parse(output)
    for gpu in gpus:
        logger.info("GPU %s: %s", gpu.index, gpu.describe())
    check(gpus, ids, settings)
    return gpus


def refused(error: APIError, ids: Sequence[str]) -> Exception:
    """Return what an engine's refusal to start a container with GPUs means."""
    text = str(error.explanation or error)
    if NO_DRIVER in text:
        return JobConfigurationError(
            f"the host has no NVIDIA container toolkit, so no container gets GPU {', '.join(ids)} ({text}):"
            " docs/gpu-workers.md, step 2"
        )
    return JobTransientError(f"the engine could not start a container with GPU {', '.join(ids)}: {text}")


def parse(output: str) -> list[Gpu]:
    """Return the GPUs of nvidia-smi's CSV.

    Raises:
        JobTransientError: it wrote something else, say that a GPU is lost.
    """
    gpus = []
    for line in output.strip().splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            index, name, capability, driver, free, total = fields
            gpus.append(Gpu(index, name, capability, driver, int(free), int(total)))
        except ValueError as error:
            raise JobTransientError(f"nvidia-smi does not describe a GPU: {line[:200]}") from error
    return gpus


def check(gpus: Sequence[Gpu], ids: Sequence[str], settings: DockerSettings) -> None:
    """See that there are as many GPUs as asked for, and that each is what the settings say.

    Raises:
        JobConfigurationError: another number, or another compute capability.
        JobTransientError: too little free memory.
    """
    if len(gpus) != len(ids):
        raise JobConfigurationError(
            f"asked for GPU {', '.join(ids)}, the container sees {len(gpus)}: NIGHTSHIFT_JOB_GPUS"
        )
    for gpu in gpus:
        wanted = settings.gpu_compute_capability
        if wanted and gpu.compute_capability != wanted:
            raise JobConfigurationError(
                f"this worker is for compute capability {wanted} (NIGHTSHIFT_JOB_GPU_COMPUTE_CAPABILITY), and its GPU"
                f" is another: {gpu.describe()}"
            )
        if gpu.free < settings.gpu_free_mib:
            raise JobTransientError(
                f"the GPU has less free memory than the {settings.gpu_free_mib:,} MiB of NIGHTSHIFT_JOB_GPU_FREE_MIB:"
                f" {gpu.describe()}; `nvidia-smi` on the host shows who uses it"
            )
