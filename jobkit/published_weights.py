"""Published weights of timm's architectures: who publishes them, under which license, and where they are at hand.

    weights/<name>.safetensors | .pth    in the bottle: the file as it was published
    weights/<name>.json                  its origin (`WeightsOrigin`), written last

`<name>` is timm's with its tag, such as `efficientnet_b0.ra_in1k`; `fetch_weights` puts them there. Importing this
imports timm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
from pydantic import ValidationError
from timm.models import get_pretrained_cfg
from torch import hub

from jobkit.bottle import Bottle, FolderBottle
from jobkit.classifier import check_architecture
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import sha256_of
from jobkit.model_spec import UNKNOWN_LICENSE, WeightsOrigin

FOLDER = "weights"
SUFFIXES = (".safetensors", ".pth")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of timm's, the better first


@dataclass(frozen=True)
class Published:
    """What timm's registry knows of the weights of an architecture."""

    name: str
    repository: str | None
    files: tuple[str, ...]
    url: str | None
    license: str

    @property
    def source(self) -> str:
        """Where they are published."""
        return f"hub:{self.repository}" if self.repository else str(self.url)


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine, and where it is from."""

    path: Path
    origin: WeightsOrigin


def published(architecture: str) -> Published:
    """Return what timm's registry says about the weights of `architecture`, whose tag may be left out.

    Raises:
        ConfigurationError: timm has no such architecture, or no weights of it are published.
    """
    check_architecture(architecture)
    known = get_pretrained_cfg(architecture, allow_unregistered=False)
    if known is None or not (known.hf_hub_id or known.url):
        raise ConfigurationError(f"timm knows no published weights of {architecture}; model.load_from takes your own")
    base = architecture.split(".", 1)[0]
    return Published(
        name=f"{base}.{known.tag}" if known.tag else base,
        repository=known.hf_hub_id,
        files=(known.hf_hub_filename,) if known.hf_hub_filename else HUB_FILES,
        url=(known.url if isinstance(known.url, str) or known.url is None else known.url[0]) or None,
        license=known.license or UNKNOWN_LICENSE,
    )


def find(architecture: str, bottle: Bottle, folder: Path | None = None) -> Found:
    """Return the published weights of `architecture` that are at hand; the network is never asked.

    The first of: `folder`, the bottle's `weights/`, the cache of the hub's client, that of torch.

    Raises:
        ConfigurationError: there are none; the message has the command that fetches them.
        DataValidationError: those in the folder or the bottle are not what the record beside them says.
    """
    wanted = published(architecture)
    names = list(dict.fromkeys([wanted.name, architecture]))
    places: list[tuple[Bottle, str]] = [(bottle, f"{FOLDER}/")]
    if folder is not None:
        places.insert(0, (FolderBottle(folder), ""))
    for place, prefix in places:
        for name in names:
            if found := recorded(place, f"{prefix}{name}", name):
                return found
    for kept in _cached(wanted):
        path = kept.resolve()  # the hub's cache has links
        return Found(path, WeightsOrigin(
            name=wanted.name, source=wanted.source, license=wanted.license, sha256=sha256_of(path)
        ))  # fmt: skip
    raise ConfigurationError(
        f"model.pretrained: the published weights of {wanted.name} are not here. To fetch them into the bottle: "
        f"NIGHTSHIFT_BOTTLE={bottle} python -m conversion_jobs.fetch_weights --name {wanted.name} "
        "(where they are at hand already: add --source file:/path/to/them)"
    )


def recorded(place: Bottle, stem: str, name: str) -> Found | None:
    """Return the weights `<stem>.safetensors` or `<stem>.pth` in `place`, checked against `<stem>.json`, or None.

    Raises:
        DataValidationError: the file has another SHA-256 than the record says, or the record is none.
    """
    key = next((f"{stem}{suffix}" for suffix in SUFFIXES if place.exists(f"{stem}{suffix}")), None)
    if key is None:
        return None
    path = place.local(key)
    origin = WeightsOrigin(name=name, source=f"{place}/{key}", sha256=sha256_of(path))
    if not place.exists(f"{stem}.json"):
        return Found(path, origin)
    try:
        record = WeightsOrigin.model_validate_json(place.read(f"{stem}.json"))
    except ValidationError as error:
        raise DataValidationError(f"{place}/{stem}.json is not valid: {error}") from error
    if record.sha256 != origin.sha256:
        raise DataValidationError(
            f"{place}/{key} is {origin.sha256}, not {record.sha256} as {stem}.json beside it says: delete both and "
            "fetch the weights again"
        )
    return Found(path, record)


def _cached(wanted: Published) -> Iterator[Path]:
    """Yield the files that earlier downloads of timm's own left on this machine."""
    for file in wanted.files if wanted.repository else ():
        kept = huggingface_hub.try_to_load_from_cache(wanted.repository or "", file)
        if isinstance(kept, str):
            yield Path(kept)
    if wanted.url:
        path = Path(hub.get_dir()) / "checkpoints" / Path(urlsplit(wanted.url).path).name
        if path.is_file():
            yield path
