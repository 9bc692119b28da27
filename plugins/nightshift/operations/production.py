"""Which version of each model is in production, which was when, and the way back: as the model storage tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nightshift.model_storage_hook import ModelStorageHook
from nightshift.pipelines.files import load_pipeline
from nightshift.pipelines.folders import pipelines_folder
from nightshift_common.model_storage_client import ModelStorageClient, StorageRefused
from nightshift_common.yaml_file import ConfigFileError

CALLER = "airflow"
SECONDS = 5.0
ROLLBACK_SECONDS = 300.0  # a model is loaded meanwhile
TRY_SECONDS = 120.0  # the version before is loaded meanwhile
CHANGES = 10
CONVERSION = "convert_model"  # the DAG that other models come from


@dataclass
class Model:
    """One model of the storage."""

    name: str
    changes: list[dict[str, Any]]
    """the latest changes, the latest first, as the storage writes them"""
    stages: dict[str, str] = field(default_factory=dict)
    """champion, previous, canary, candidate: versions"""
    pinned: str | None = None
    canary: dict[str, Any] | None = None
    """the canary under way and what it has shown, as the storage tells it"""
    then: str | None = None
    """the version in production at the time that was asked for"""


def dags_of_models() -> dict[str, str]:
    """Return the DAG of each model that a pipeline makes."""
    found = {}
    for file in sorted(pipelines_folder().glob("*.yaml")):
        try:
            found[load_pipeline(file).publish.model_name] = f"retrain_{file.stem}"
        except ConfigFileError:
            continue  # the page shows it as an import error
    return found


def models(named: str = "", at: str = "") -> list[Model]:
    """Return the models of all pipelines, or the one that is named; with `at` (ISO 8601) what was in production then.

    Raises:
        JobConfigurationError: the storage's connection is not defined or not complete.
        StorageRefused, StorageUnavailable: the storage refuses, or does not answer.
    """
    with ModelStorageHook(CALLER, SECONDS).get_conn() as storage:
        return [_model(storage, name, at) for name in ([named] if named else sorted(dags_of_models()))]


def roll_back(name: str, from_version: str, pin: bool, reason: str, user: str) -> str:
    """Bring the version before `from_version` into production, pin it if that is asked for, and return it.

    Raises:
        StorageRefused: another version than `from_version` is in production, or there is no way back.
        StorageUnavailable: the storage or Triton does not answer; what was in production is.
    """
    with ModelStorageHook(CALLER, ROLLBACK_SECONDS).get_conn() as storage:
        note = {"reason": reason or "rolled back in Airflow", "on_behalf_of": user}
        version = str(storage.rollback(name, from_version=from_version, **note)["version"])
        if pin:
            storage.pin(name, version, **note)
        return version


def try_picture(name: str, picture: bytes) -> list[dict[str, Any]]:
    """Return what the version in production and the one before it say of an encoded picture.

    Raises:
        StorageRefused: nothing is in production.
        StorageUnavailable: the storage or Triton does not answer.
    """
    with ModelStorageHook(CALLER, TRY_SECONDS).get_conn() as storage:
        return storage.try_picture(name, picture)


def unpin(name: str, user: str) -> None:
    """Let other versions come into production again."""
    with ModelStorageHook(CALLER, SECONDS).get_conn() as storage:
        storage.unpin(name, user)


def _model(storage: ModelStorageClient, name: str, at: str) -> Model:
    found = Model(name, storage.history(name)[:CHANGES])
    try:
        stages = storage.stages(name)
    except StorageRefused as error:
        if error.status != 404:
            raise
        return found  # nothing was published yet
    found.stages, found.pinned = stages["stages"]["all"], stages["pinned"]
    if "canary" in found.stages:
        found.canary = _canary(storage, name)
    if at:
        then = storage.history(name, at)
        found.then = (then[0]["version"] if then else None) or "none"
    return found


def _canary(storage: ModelStorageClient, name: str) -> dict[str, Any] | None:
    try:
        return storage.canary(name)
    except StorageRefused as error:
        if error.status != 404:
            raise
        return None  # it ended meanwhile
