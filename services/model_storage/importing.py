"""Publishing what a copy of an older service's repository holds, through the API of a running model storage."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nightshift_common.model_storage_client import ModelStorageClient, StorageRefused, checksum
from nightshift_common.names import is_name
from services.model_storage.repository.model_config import CONFIG_FILE, named_versions
from services.model_storage.repository.record import META_FILE, RESERVED, WRITTEN
from services.model_storage.repository.takeover import version_names


@dataclass(frozen=True)
class Imported:
    """What became of one folder of the copy."""

    model: str
    folder: int
    version: str
    outcome: str
    """published, already there, refused: why, or left alone: why"""
    in_production: bool
    """whether it is in production now, because the copy's configuration named it and it was asked for"""


def import_repository(client: ModelStorageClient, root: Path, promote: bool) -> Iterator[Imported]:
    """Publish each version of each model below `root` under its version and number; yield what became of it.

    With `promote` the version that a model's `config.pbtxt` names comes into production where nothing is. Again for
    the same copy it finds the versions already there.

    Raises:
        FileNotFoundError: `root` is no folder.
    """
    for model in sorted(path for path in root.iterdir() if path.is_dir()):
        if is_name(model.name) and not model.name.endswith(RESERVED):
            yield from _import_model(client, model, promote)


def _import_model(client: ModelStorageClient, model: Path, promote: bool) -> Iterator[Imported]:
    folders = {int(path.name): path for path in model.iterdir() if path.is_dir() and path.name.isdecimal()}
    names = version_names({number: _meta(path).get("model_version") for number, path in folders.items()}, ())
    text = (model / CONFIG_FILE).read_text(errors="replace") if (model / CONFIG_FILE).is_file() else ""
    named = max(named_versions(text), default=None)
    for number, folder in sorted(folders.items()):
        version = names[number]
        if not any(path.is_file() for path in folder.rglob("*")):
            yield Imported(model.name, number, version, "left alone: the folder is empty", False)
            continue
        outcome = _publish(client, model.name, version, number, folder, text)
        serves = False
        if promote and number == named and not outcome.startswith("refused"):
            outcome, serves = _promote(client, model.name, version, outcome)
        yield Imported(model.name, number, version, outcome, serves)


def _publish(client: ModelStorageClient, model: str, version: str, number: int, folder: Path, config: str) -> str:
    with tempfile.TemporaryDirectory(prefix="nightshift-import-") as scratch:
        archive = Path(scratch) / "version.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as output:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    output.write(path, path.relative_to(folder))
            if config and not (folder / CONFIG_FILE).exists():
                output.writestr(CONFIG_FILE, _without_version(config))
        try:
            client.upload(model, archive, version, triton_version=number)
        except StorageRefused as error:
            if _is_there(client, model, version, folder):
                return "already there"
            return f"refused: {error.reason}"
    return "published"


def _is_there(client: ModelStorageClient, model: str, version: str, folder: Path) -> bool:
    """Whether the storage has the version with the contents of `folder`, but for what it writes itself."""
    try:
        files = client.version(model, version)["files"]
    except StorageRefused:
        return False
    there = {name: file["sha256"] for name, file in files.items() if name not in WRITTEN}
    here = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return there == {name: checksum(path) for name, path in here.items() if name not in WRITTEN}


def _promote(client: ModelStorageClient, model: str, version: str, outcome: str) -> tuple[str, bool]:
    """Bring a version into production where nothing is; return the outcome, and whether it is there."""
    try:
        return outcome, client.champion(model)["version"] == version
    except StorageRefused as error:
        if error.status != 404:
            raise
    try:
        client.promote(model, version, reason="imported: the older service served it")
    except StorageRefused as error:
        return f"{outcome}, but not promoted: {error.reason}", False
    return outcome, True


def _without_version(config: str) -> str:
    """Return a model's configuration without the versions that it names; as it is where it cannot be read."""
    try:
        parsed: Any = text_format.Parse(config, ModelConfig())
    except text_format.ParseError:
        return config
    parsed.ClearField("version_policy")
    return str(text_format.MessageToString(parsed))


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}
