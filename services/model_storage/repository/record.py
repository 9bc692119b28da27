"""One version of a model, and the names of models, versions and files in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nightshift_common.names import NAME_RULE, is_name
from services.model_storage.errors import Refused
from services.model_storage.repository.archive import File
from services.model_storage.repository.model_config import CONFIG_FILE

NEXT = "next"
META_FILE = "meta.json"
RECORD_FILE = "version.json"
WRITTEN = frozenset({META_FILE, CONFIG_FILE})  # files of an archive that are written anew after the upload
# What Triton serves beside a model has its name and one of these; the third one while a picture is tried, the last one
# while a version that is to be promoted is put to the proof.
CANDIDATE, CANARY, PREVIOUS, PROOF = BESIDE = ("__candidate", "__canary", "__previous", "__proof")
PICTURES = "_jpeg"  # ends the name of the entry that takes encoded pictures for a model
RESERVED = (*BESIDE, PICTURES)
UPLOADED = ".uploaded"  # ends the names of files of a signed package that were changed after the upload
MAX_SMALL_FILE = 1 << 20  # meta.json, config.pbtxt, the signature and the provenance are read into memory

Target = Literal["onnx", "tensorrt", "pytorch", "python", "other"]
_VERSION = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?", re.ASCII)


class Inherited(BaseModel):
    """Settings of a version without a `config.pbtxt`, each as it stands there, and whose they were."""

    model_config = ConfigDict(frozen=True)

    version: str
    settings: dict[str, str]


class Record(BaseModel):
    """One version of a model; immutable."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    triton_version: int
    target: Target
    sha256: str
    """Of the archive as it was uploaded; of a version that was taken over, `content_sha256`."""
    content_sha256: str
    """Of the names and contents of the files in it: the same for the same files packed, and signed, again."""
    created_at: datetime
    files: dict[str, File]
    meta: dict[str, Any]
    left_out: list[str] = []
    """Fields of the uploaded config.pbtxt that are not served, and files that file managers have left."""
    published_by: str | None = None
    """The name of the token that it was uploaded with; None of earlier versions, and where there is no log-in."""
    signed_by: str | None = None
    """Fingerprint of the key, or the identity, that signed the package; None: it was not signed, or nobody looked."""
    provenance: dict[str, Any] | None = None
    """Of a signed package: what its provenance.json says."""
    inherited: Inherited | None = None
    """Of a version that came without a configuration: what it took from the one in production."""
    taken_over: str | None = None
    """Of a version that an earlier service left: the configuration that its model had then; its folder is as it was."""

    @property
    def folder(self) -> str:
        """The version's folder in the store."""
        return f"{self.model}/{self.triton_version}"


def check_model_name(model: str) -> None:
    """Refuse a name that cannot be a folder of the repository."""
    if not is_name(model) or model.endswith(RESERVED):
        raise Refused(f"{model!r} is no name for a model: {NAME_RULE}, and not ending in {' or '.join(RESERVED)}")


def is_version(text: str) -> bool:
    """Whether `text` can be published as a version: `1.2.3`, and as the older service took them `1.0`, `v1`, `1-rc1`.

    `1` and `1.0` are two versions, as they were for the older service.
    """
    return is_name(text) and _VERSION.fullmatch(text) is not None


def order(version: str) -> tuple[Any, ...]:
    """Return the sort key of a version: as semantic versions are ordered, names that are none before all others."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return (-1, 0, 0, 0, (), version)
    *numbers, before = found.groups()
    parts = (before or "").split(".")
    kinds = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return (*(int(number or 0) for number in numbers), 0 if before else 1, kinds, version)


def following(versions: Iterable[str]) -> str:
    """Return the patch version after the latest of `versions`."""
    latest = max((order(version) for version in versions), default=(-1,))
    if latest[0] < 0:
        return "0.0.1"
    major, minor, patch = latest[:3]
    return f"{major}.{minor}.{patch + 1}"
