"""What is needed to reproduce a training: commit, locked requirements, versions."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from nightshift_common.task_instance import TRIGGERED_BY, TaskInstanceKey

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "numpy", "opencv-python-headless")


def provenance(environment: str, *libraries: str) -> dict[str, Any]:
    """Return commit, lock hash, the versions of all packages and of CUDA, and device.

    Args:
        environment: whose lock in `requirements/` it is.
        libraries: those to name beside torch and what pictures are read with.
    """
    import torch

    return {
        **code(environment),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in (*LIBRARIES, *libraries)},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
        "packages": {found.name: found.version for found in metadata.distributions()},
    }


def module() -> str:
    """Return the module that runs as this process: `training_jobs.train_classifier`; else the program's name."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return str(spec.name) if spec is not None else Path(sys.argv[0]).name


def user(task_instance: TaskInstanceKey | None) -> str:
    """Return who asked for this: whoever started the DAG run, `airflow` where its schedule did; by hand the login."""
    if task_instance is not None:
        return os.environ.get(TRIGGERED_BY) or "airflow"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def environment_of_process() -> str:
    """Return the name of the environment that this process runs in: the folder that `local/bootstrap.py` made."""
    return Path(sys.prefix).name


def code(environment: str) -> dict[str, str | None]:
    """Return what runs: `commit` and, of the locked requirements, `lock_sha256`; None where they are not known."""
    return {"commit": commit(), "lock_sha256": lock_sha256(environment)}


def lock_sha256(environment: str) -> str | None:
    """Return the hash of an environment's lock, None where it has none; images hold the locks of their environments."""
    lock = ROOT / "requirements" / f"{environment}.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None


def commit() -> str | None:
    """Return the commit of the code: `NIGHTSHIFT_COMMIT`, which `docker/build` writes into images, or the checkout's.

    It ends with `-dirty` where tracked files were changed, and is None where neither is there.
    """
    if given := os.environ.get("NIGHTSHIFT_COMMIT"):
        return given
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip()
