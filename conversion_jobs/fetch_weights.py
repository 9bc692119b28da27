"""Fetch weights once, and see each time that they are what their checksums say.

With `--name` the published weights of one of timm's architectures go to `weights/` of the bottle, where trainings with
`pretrained: true` look for them; with `--archive` a folder of weights is filled, `training/weights/` by default.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from httpx import Headers
from pydantic import Field, model_validator

from jobkit import job
from jobkit.bottle import Bottle
from jobkit.download import NotThere, download
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import sha256_of, write_atomic
from jobkit.local_file import local_file
from jobkit.model_spec import WeightsOrigin
from jobkit.retry import retried
from jobkit.unpack import RULES, open_archive, unpack
from nightshift_common.archive import copy_entry, files_in

if TYPE_CHECKING:
    from jobkit.published_weights import Published

logger = logging.getLogger("conversion_jobs.fetch_weights")
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # as torch's hub names its files
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_SOURCES = "a file, file:/path, a key in the bottle, s3://bucket/key, or https://"


class Arguments(job.Arguments):
    """Fetch published weights into the bottle, or an archive of weights into a folder; what is there is only checked.

    What breaks off goes on where it was when the job runs again. `HF_ENDPOINT` names another hub and `HF_TOKEN` opens
    what is not for everybody; `HF_HUB_OFFLINE` is for trainings, which never ask the network, and not for this job.
    """

    name: str | None = Field(None, description="architecture of timm, with its tag: efficientnet_b0.ra_in1k")
    source: str | None = Field(
        None, description=f"with --name, its weights or a zip of them: {_SOURCES}; default: where timm publishes them"
    )
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="with --name: what the file has to be")
    license: str | None = Field(None, min_length=1, description="with --name; default: what timm knows")
    archive: str | None = Field(None, description=f"a zip for --target: {_SOURCES}")
    target: Path = Field(Path("training/weights"), description="with --archive: the folder to fill")
    checksums: Path | None = Field(
        None,
        description="with --archive: names and SHA-256 of all files, in the form that sha256sum writes; default: "
        "<target>.sha256, written when it is not there",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Arguments:
        if (self.name is None) == (self.archive is None):
            raise ValueError("give --name (weights of timm's, for trainings) or --archive (a zip, for a folder)")
        if self.name is None and (self.source or self.sha256 or self.license):
            raise ValueError("--source, --sha256 and --license belong to --name")
        return self


class Result(job.Result):
    """What is there now."""

    target: Path = Field(description="the folder, or the key in the bottle")
    files: int
    was_there: bool
    weights: WeightsOrigin | None = Field(None, description="with --name: what they are")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Fetch what is not there; check what is."""
    if arguments.name is not None:
        return fetch_published(arguments, arguments.name, context.bottle)
    return fill_folder(arguments, arguments.archive or "")


def fetch_published(arguments: Arguments, name: str, bottle: Bottle) -> Result:
    """Put the weights `name` into the bottle, their record last.

    Raises:
        ConfigurationError: timm has no such weights, or an address is refused.
        DataValidationError: the file is not what its publisher or `--sha256` says, or holds no weights.
        TransientError: the network failed; the next call goes on.
    """
    from jobkit.published_weights import FOLDER, SUFFIXES, published, recorded
    from jobkit.state_dict import read_foreign_state_dict

    wanted = published(name)
    stem = f"{FOLDER}/{wanted.name}"
    if bottle.exists(f"{stem}.json") and (there := recorded(bottle, stem, wanted.name)):
        if arguments.sha256 not in (None, there.origin.sha256):
            raise DataValidationError(
                f"{bottle}/{stem}{there.path.suffix} is {there.origin.sha256}, not {arguments.sha256}: delete it first"
            )
        logger.info("%s is there already: %s", wanted.name, there.origin.sha256)
        return Result(target=Path(f"{stem}{there.path.suffix}"), files=1, was_there=True, weights=there.origin)
    with tempfile.TemporaryDirectory(prefix="nightshift-weights-") as scratch:
        path, source, expected = _weights(arguments, wanted, Path(scratch))
        actual = sha256_of(path)
        if not actual.startswith(expected):
            raise DataValidationError(f"{source} is {actual}, not {expected}: nothing was put into the bottle")
        tensors = len(read_foreign_state_dict(path))
        origin = WeightsOrigin(
            name=wanted.name, source=source, license=arguments.license or wanted.license, sha256=actual
        )
        key = f"{stem}{SUFFIXES[0] if path.suffix == SUFFIXES[0] else SUFFIXES[1]}"
        bottle.delete(f"{stem}.json")
        for suffix in SUFFIXES:
            bottle.delete(f"{stem}{suffix}")
        bottle.put(key, path)
        bottle.write(f"{stem}.json", origin.model_dump_json(indent=2) + "\n")
    logger.info("%s: %d tensors from %s, license %s, sha256 %s", key, tensors, source, origin.license, actual)
    return Result(target=Path(key), files=1, was_there=False, weights=origin)


def _weights(arguments: Arguments, wanted: Published, scratch: Path) -> tuple[Path, str, str]:
    """Return a local file of weights, where it is from, and how its SHA-256 begins as far as that is known."""
    if arguments.source is None:
        path, source, expected = _published_file(wanted, scratch)
        return path, source, arguments.sha256 or expected
    path = _local(arguments.source, scratch, is_bound=arguments.sha256 is not None)
    if _suffix(arguments.source) != ".zip":
        return path, arguments.source, arguments.sha256 or ""
    if arguments.sha256 not in (None, actual := sha256_of(path)):
        raise DataValidationError(f"{arguments.source} is {actual}, not {arguments.sha256}: nothing was unpacked")
    inside, entry = _only_weights(path, arguments.source, scratch)
    return inside, f"{arguments.source} ({entry})", ""


def _published_file(wanted: Published, scratch: Path) -> tuple[Path, str, str]:
    """Return what is downloaded from where timm's registry says: a repository of the hub, else an address."""
    import huggingface_hub

    token = huggingface_hub.get_token()  # HF_TOKEN, or that of a log-in; a redirect elsewhere does not get it
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    repository, _, revision = (wanted.repository or "").partition("@")
    missing: NotThere | None = None
    for file in wanted.files if repository else ():
        url = huggingface_hub.hf_hub_url(
            repository, file, revision=revision or None, endpoint=os.environ.get("HF_ENDPOINT")
        )
        try:
            path, headers = _downloaded(url, scratch, authorization)
        except NotThere as error:
            missing = error
            continue
        etag = headers.get("X-Linked-Etag", "").strip('"')  # of a large file its SHA-256
        commit = headers.get("X-Repo-Commit", revision or "main")
        return path, f"hub:{repository}@{commit}/{file}", etag if _SHA256.fullmatch(etag) else ""
    if wanted.url is None:
        raise missing or ConfigurationError(f"nobody publishes {wanted.name}")
    path, _ = _downloaded(wanted.url, scratch, {})
    in_name = _HASH_IN_NAME.search(PurePosixPath(urlsplit(wanted.url).path).name)
    return path, wanted.url, in_name[1] if in_name else ""


def _local(source: str, scratch: Path, *, is_bound: bool) -> Path:
    """Return a local file with what is at `source`, fetched to `scratch` where it is an address.

    `is_bound`: a checksum that the caller knows decides what is taken.

    Raises:
        ConfigurationError: an address is neither https nor bound by a checksum.
        DataValidationError: it is not there.
    """
    scheme = urlsplit(source).scheme
    if scheme in ("http", "https"):
        if scheme == "http" and not is_bound:
            raise ConfigurationError(
                f"{source}: what comes by http may have been changed on its way; give https, or a checksum"
            )
        return _downloaded(source, scratch, {})[0]
    if scheme == "file":
        source = unquote(urlsplit(source).path)
    path = Path(source).expanduser()
    return path if path.is_file() else local_file(source)


def _downloaded(url: str, scratch: Path, headers: Mapping[str, str]) -> tuple[Path, Headers]:
    """Download `url`; what breaks off stays in the host's cache, where the next call finds it."""
    root = Path(os.environ.get("NIGHTSHIFT_CACHE", "~/.cache/nightshift")).expanduser()
    folder = root / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:40]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unfinished = folder / f"weights{_suffix(url)}"
        answered = retried(download, url, unfinished, headers)
        return Path(shutil.move(unfinished, scratch / unfinished.name)), answered


def _only_weights(archive: Path, name: str, scratch: Path) -> tuple[Path, str]:
    """Unpack the one file of weights in a zip; return it and its name there."""
    with open_archive(archive, RULES, name) as opened:
        found = [entry for entry in files_in(opened) if _suffix(entry.filename) in _WEIGHTS]
        if len(found) != 1:
            names = ", ".join(entry.filename for entry in found) or f"none of {', '.join(_WEIGHTS)}"
            raise DataValidationError(f"{name} holds {names}; an archive for --name has one file of weights")
        path = scratch / f"unpacked{_suffix(found[0].filename)}"
        with opened.open(found[0]) as source:
            copy_entry(source, found[0], path, len)
        return path, found[0].filename


def _suffix(source: str) -> str:
    return PurePosixPath(urlsplit(source).path).suffix.lower()


def fill_folder(arguments: Arguments, archive: str) -> Result:
    """Unpack unless the folder is complete; check every name and checksum."""
    target = arguments.target.absolute()
    listed = arguments.checksums or target.with_name(f"{target.name}.sha256")
    # A list that was named has to be there: a slip in its name would leave everything unchecked.
    wanted = read_checksums(listed) if arguments.checksums or listed.is_file() else None
    if target.is_dir() and any(target.iterdir()):
        if wanted is not None and (problems := differences(target, wanted)):
            raise DataValidationError(f"{target} is not what {listed} says, move it away: {'; '.join(problems)}")
        return _filled(target, wanted, listed, was_there=True)
    if target.is_dir():
        target.rmdir()

    def check(folder: Path) -> None:
        if wanted is not None and (problems := differences(folder, wanted)):
            raise DataValidationError(f"{archive} is not what {listed} says: {'; '.join(problems)}")

    with tempfile.TemporaryDirectory(prefix="nightshift-weights-") as scratch:
        unpack(_local(archive, Path(scratch), is_bound=wanted is not None), target, check)
    return _filled(target, wanted, listed, was_there=False)


def _filled(target: Path, wanted: dict[str, str] | None, listed: Path, was_there: bool) -> Result:
    """Write the list of checksums where there was none."""
    if wanted is None:
        wanted = {name: sha256_of(path) for name, path in _files(target).items()}
        write_atomic(listed, "".join(f"{digest}  {name}\n" for name, digest in sorted(wanted.items())))
        logger.warning("%s was not there: it is written from what %s holds, which nobody vouches for", listed, target)
    logger.info("%s%s: %d files", target, " is complete" if was_there else "", len(wanted))
    return Result(target=target, files=len(wanted), was_there=was_there)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def read_checksums(path: Path) -> dict[str, str]:
    """Return name -> SHA-256 of a file that `sha256sum` wrote.

    Raises:
        ConfigurationError: it is not there, empty, or a line is none of its lines.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there: make it by `sha256sum` of the files, from within their folder")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            raise ConfigurationError(f"{path}:{number} is no line of sha256sum: {line!r}")
        found[parts[2].removeprefix("./")] = parts[1].lower()
    if not found:
        raise ConfigurationError(f"{path} names no file")
    return found


def differences(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Return everything in which `folder` differs from the checksums."""
    present = _files(folder)
    problems = [f"{name} is missing" for name in wanted if name not in present]
    problems += [f"{name} is not listed" for name in sorted(present) if name not in wanted]
    for name, path in sorted(present.items()):
        if name in wanted and (actual := sha256_of(path)) != wanted[name]:
            problems.append(f"{name} is {actual}, not {wanted[name]}")
    return problems


if __name__ == "__main__":
    job.main(Arguments, run)
