"""What a job that a person starts by hand needs to find the running stack: `eval "$(make env)"`."""

from __future__ import annotations

import shlex

from local.settings import HOST, Settings
from nightshift_common.storage_tokens import OPERATOR


def variables(settings: Settings) -> dict[str, str]:
    """Return the variables of `jobkit/settings.py` for this machine's stack; the storage's token is the operator's."""
    return {
        "NIGHTSHIFT_BOTTLE": str(settings.folder("bottle")),
        "NIGHTSHIFT_DATABASE_URL": settings.database_url("nightshift"),
        "NIGHTSHIFT_COLLECT_URL": settings.url("collect"),
        "NIGHTSHIFT_COLLECT_FILES_URL": f"{settings.url('collect')}/files",
        "NIGHTSHIFT_COLLECT_LOGIN": "nightshift",
        "NIGHTSHIFT_COLLECT_PASSWORD": settings.secrets["collect"],
        "NIGHTSHIFT_STORAGE_URL": settings.url("model_storage"),
        "NIGHTSHIFT_STORAGE_TOKEN": settings.secrets[f"model_storage_{OPERATOR}"],
        "NIGHTSHIFT_TRITON_URL": f"{HOST}:{settings.port('triton')}",
        "MLFLOW_TRACKING_URI": settings.url("mlflow"),
    }


def shell(settings: Settings) -> str:
    """Return the variables as lines that a POSIX shell takes."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables(settings).items())
