"""The images of docker/versions.env: which of them are pinned by digest, and what a registry has under their tags."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

VERSIONS = Path(__file__).resolve().parent.parent / "docker" / "versions.env"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class RegistryError(Exception):
    """A registry did not say which digest a tag has."""


def versions(file: Path = VERSIONS) -> dict[str, str]:
    """Return the variables of docker/versions.env."""
    lines = file.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def images(file: Path = VERSIONS) -> dict[str, str]:
    """Return the variables that name an image: `repository:tag`, or `repository:tag@sha256:…` where it is pinned."""
    return {name: value for name, value in versions(file).items() if name.endswith("_IMAGE")}


def unpinned(file: Path = VERSIONS) -> list[str]:
    """Return the images that have no digest."""
    return [image for image in images(file).values() if not DIGEST.fullmatch(image.partition("@")[2])]


def usable(image: str) -> str:
    """Return an image, or its bare tag where the engine here has built that tag itself: no registry knows its digest.

    So a machine without a registry can have stand-ins of the base images. No release is built of them.
    """
    tag = image.partition("@")[0]
    command = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", tag]
    done = subprocess.run(command, capture_output=True, text=True)
    return tag if done.returncode == 0 and done.stdout.strip() in ("[]", "null") else image


def resolve(image: str) -> str:
    """Return an image with the digest that its registry has for its tag now, of all platforms together.

    Raises:
        RegistryError: the registry does not answer, or has no such tag.
    """
    tagged = image.partition("@")[0]
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", tagged]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RegistryError(f"{tagged}: {error}") from error
    if done.returncode != 0:
        raise RegistryError(f"{tagged}: {done.stderr.strip()}")
    try:
        digest = json.loads(done.stdout)["digest"]
    except (ValueError, KeyError, TypeError):
        digest = ""
    if not DIGEST.fullmatch(digest):
        raise RegistryError(f"{tagged}: the registry's answer has no digest: {done.stdout.strip()[:200]}")
    return f"{tagged}@{digest}"


def pin(file: Path, names: list[str]) -> dict[str, str]:
    """Write the digests of the named images to a file like docker/versions.env, all or none; return the images.

    Raises:
        RegistryError: the digest of one of them could not be had.
    """
    found = {name: resolve(images(file)[name]) for name in names}
    text = file.read_text()
    for name, image in found.items():
        text = re.sub(rf"^{name}=.*$", f"{name}={image}", text, flags=re.MULTILINE)
    scratch = file.with_name(f"{file.name}.new")
    scratch.write_text(text)
    scratch.replace(file)
    return found
