"""What is needed to reproduce a training: commit, locked requirements, versions."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "torchvision", "timm", "lightning", "numpy", "opencv-python-headless")


def provenance() -> dict[str, Any]:
    """Return commit (`NIGHTSHIFT_COMMIT` in an image without git), lock hash, library and CUDA versions, and device."""
    lock = ROOT / "requirements" / "jobs.txt"
    return {
        "commit": os.environ.get("NIGHTSHIFT_COMMIT") or _commit(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads",
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
