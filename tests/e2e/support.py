"""What the end-to-end tests do to the stack, and how they wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from local import processes
from local.settings import Settings
from tests.support import waiting

T = TypeVar("T")


def wait_for(find: Callable[[], T], what: str, seconds: float = 120) -> T:
    """Return what `find` finds as soon as it is truthy."""
    return waiting.wait_for(find, what, seconds)


def versions(settings: Settings, model: str = "digits") -> list[str]:
    """Return the versions of a model in the model storage."""
    headers = {"Authorization": f"Bearer {settings.secrets['model_storage_operator']}"}
    answer = httpx.get(f"{settings.url('model_storage')}/models/{model}/versions", headers=headers, timeout=30)
    if answer.status_code == 404:
        return []
    answer.raise_for_status()
    found = answer.json()
    return [entry["version"] for entry in (found["versions"] if isinstance(found, dict) else found)]


def jobs(settings: Settings, task_id: str) -> list[psutil.Process]:
    """Return the running processes of a task's job."""
    found = []
    for process in processes.of_stack(settings.state):
        try:
            if f"/{task_id}/" in process.environ().get(processes.JOB, ""):
                found.append(process)
        except psutil.Error:  # it ended in between
            continue
    return found


def job_logs(settings: Settings, run_id: str, task_id: str) -> str:
    """Return all that a task's jobs of one run printed."""
    folders = [path for path in (settings.state / "jobs").rglob("log") if f"/{task_id}/" in path.as_posix()]
    return "\n".join(path.read_text() for path in sorted(folders) if _same_run(path, run_id))


def _same_run(path: Path, run_id: str) -> bool:
    return run_id in path.as_posix() or run_id in (path.parent / "job.json").read_text()
