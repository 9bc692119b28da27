"""What is needed to reproduce a training: commit, locked requirements, versions."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "numpy", "opencv-python-headless")


def provenance(environment: str, *libraries: str) -> dict[str, Any]:
    """Return commit (`NIGHTSHIFT_COMMIT` in an image without git), lock hash, library and CUDA versions, and device.

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
    }


def code(environment: str) -> dict[str, str | None]:
    """Return what runs: `commit` and, of the locked requirements, `lock_sha256`; None where they are not known."""
    lock = ROOT / "requirements" / f"{environment}.txt"
    return {
        "commit": os.environ.get("NIGHTSHIFT_COMMIT") or _commit(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
    }


def _commit() -> str | None:
    """Return the checkout's commit, with `-dirty` where tracked files were changed."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip()
