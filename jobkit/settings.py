"""Where a job finds the systems around it: environment variables, which Airflow fills from its connections.

A job reads only what it needs; a missing variable is a configuration error that names it.
"""

from __future__ import annotations

import os

from jobkit.errors import ConfigurationError

BOTTLE = "NIGHTSHIFT_BOTTLE"
DATABASE_URL = "NIGHTSHIFT_DATABASE_URL"
COLLECT_URL = "NIGHTSHIFT_COLLECT_URL"
COLLECT_FILES_URL = "NIGHTSHIFT_COLLECT_FILES_URL"
COLLECT_LOGIN = "NIGHTSHIFT_COLLECT_LOGIN"
COLLECT_PASSWORD = "NIGHTSHIFT_COLLECT_PASSWORD"  # noqa: S105 - the variable's name, not a password
STORAGE_URL = "NIGHTSHIFT_STORAGE_URL"
STORAGE_TOKEN = "NIGHTSHIFT_STORAGE_TOKEN"  # noqa: S105
SIGNING_KEY = "NIGHTSHIFT_SIGNING_KEY"
SIGNING_TOKEN = "NIGHTSHIFT_SIGNING_TOKEN"  # noqa: S105
SIGNING_TOKEN_FILE = "NIGHTSHIFT_SIGNING_TOKEN_FILE"  # noqa: S105
SIGNING_TRUST_CONFIG = "NIGHTSHIFT_SIGNING_TRUST_CONFIG"
TRITON_URL = "NIGHTSHIFT_TRITON_URL"
MLFLOW_URI = "MLFLOW_TRACKING_URI"
CACHE_GIB = "NIGHTSHIFT_CACHE_GIB"
SANDBOX = "NIGHTSHIFT_SANDBOX"

PURPOSE = {
    BOTTLE: "the data bottle: a folder, or s3://bucket/prefix",
    DATABASE_URL: "PostgreSQL of pipeline runs and people masks: postgresql://user:password@host:port/database",
    COLLECT_URL: "base address of the collect API",
    COLLECT_FILES_URL: "base address of the host that serves collect's picture files",
    COLLECT_LOGIN: "login for the collect API",
    COLLECT_PASSWORD: "password for the collect API",
    STORAGE_URL: "base address of the model storage, say http://model-storage:8300",
    STORAGE_TOKEN: "bearer token for the model storage",
    SIGNING_KEY: "private key that signs packages, EC on P-256 (PKCS#8): a PEM text, or its base64 in one line",
    SIGNING_TOKEN: "token of an identity provider for the audience sigstore, which signs packages in the place of a "
    "key; ambient: the one that the job's surroundings give, say a CI system",
    SIGNING_TOKEN_FILE: "file with such a token, read when a package is signed",
    SIGNING_TRUST_CONFIG: "file with a client's trust configuration: a Sigstore instance other than the public one",
    TRITON_URL: "Triton's HTTP address, host:port",
    MLFLOW_URI: "address of the MLflow server",
    SANDBOX: "require: weights are opened only where the kernel can hold what they do; best-effort (default): always",
    CACHE_GIB: "how much of a bottle in S3 this host keeps, GiB; default 50",
}


def require(name: str) -> str:
    """Return the variable `name`.

    Raises:
        ConfigurationError: it is not set; the message says what it is for.
    """
    if value := os.environ.get(name, "").strip():
        return value
    raise ConfigurationError(
        f"the environment variable {name} is not set ({PURPOSE.get(name, 'see jobkit/settings.py')})"
    )


def optional(name: str) -> str | None:
    """Return the variable `name`, or None where it is not set or empty."""
    return os.environ.get(name, "").strip() or None
