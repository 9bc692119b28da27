"""The data bottle: one self-contained tree of data and artifacts, in a folder or under an `s3://` prefix.

A *key* is a relative POSIX path inside the bottle (`pictures/ab/ab12….jpg`). Every write is atomic: on a file
system by a temporary name and a rename, on S3 because an object appears only once its upload is complete.
Large files go through S3's managed transfer (parallel parts, retries).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from jobkit import settings
from jobkit.cache import shared_cache
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.files import atomic_file

PICTURES = "pictures/"  # keys that are the content's SHA-256 (jobkit.paths.picture): what they hold never changes


class Bottle(Protocol):
    """What a job may do with the bottle. `str(bottle)` is its root: a folder or an `s3://` address."""

    def exists(self, key: str) -> bool:
        """Whether `key` is a complete file."""

    def read(self, key: str) -> bytes:
        """Return the content of `key`; `DataValidationError` if there is none."""

    def write(self, key: str, content: bytes | str) -> None:
        """Write `key` atomically (text as UTF-8)."""

    def create(self, key: str, content: bytes | str) -> bool:
        """Write `key` unless it exists; return whether it was written. Of several at once exactly one gets True."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys of the files under the folder `prefix`, in sorted order."""

    def local(self, key: str) -> Path:
        """Return a local file with the content of `key`, downloaded first where the bottle is remote. Read only."""

    def put(self, key: str, source: Path) -> None:
        """Copy the local file `source` to `key` atomically."""

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens if there is none."""


def open_bottle(root: str | None = None) -> Bottle:
    """Return the bottle at `root`, by default at the one that `NIGHTSHIFT_BOTTLE` names."""
    root = root or settings.require(settings.BOTTLE)
    parts = urlsplit(root)
    if parts.scheme == "s3":
        return S3Bottle(parts.netloc, parts.path)
    if parts.scheme not in ("", "file"):
        raise ConfigurationError(f"{root}: a bottle is a folder or s3://bucket/prefix, not {parts.scheme}://")
    return FolderBottle(Path(parts.path))


def checked_key(key: str) -> str:
    """Return `key` if it is a clean relative path that stays inside the bottle."""
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or "\\" in key or str(path) != key:
        raise ConfigurationError(
            f"{key!r} is no bottle key: a relative POSIX path without '..', '//' or a trailing '/'"
        )
    return key


class FolderBottle:
    """A bottle in a folder of the local file system."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    def __str__(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        """Return where `key` lies."""
        return self.root / checked_key(key)

    def exists(self, key: str) -> bool:
        """Whether `key` is a file."""
        return self.path(key).is_file()

    def read(self, key: str) -> bytes:
        """Return the content of `key`."""
        return self.local(key).read_bytes()

    def write(self, key: str, content: bytes | str) -> None:
        """Write `key` through a temporary file and a rename."""
        with _out_of_space(), atomic_file(self.path(key)) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)

    def create(self, key: str, content: bytes | str) -> bool:
        """Write `key` to a temporary file and link it to its name, which fails where the name is taken."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _out_of_space(), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".create.") as temporary:
            temporary.write(content.encode() if isinstance(content, str) else content)
            temporary.flush()
            Path(temporary.name).chmod(0o644)
            try:
                path.hardlink_to(temporary.name)
            except FileExistsError:
                return False
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the files below `prefix`; unfinished ones (their names start with a dot) are left out."""
        for path in sorted(self.path(prefix).rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                yield path.relative_to(self.root).as_posix()

    def local(self, key: str) -> Path:
        """Return the file itself."""
        path = self.path(key)
        if not path.is_file():
            raise DataValidationError(f"{key} is not in the bottle {self}")
        return path

    def put(self, key: str, source: Path) -> None:
        """Copy `source` to `key`."""
        with _out_of_space(), atomic_file(self.path(key)) as temporary:
            shutil.copyfile(source, temporary)

    def delete(self, key: str) -> None:
        """Remove the file."""
        self.path(key).unlink(missing_ok=True)


class S3Bottle:
    """A bottle under a prefix of an S3 bucket.

    boto3 finds endpoint and credentials in the usual places (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...).
    `local` keeps downloads in the cache of the host (`jobkit.cache`): `NIGHTSHIFT_CACHE`, else `~/.cache/nightshift`.
    `NIGHTSHIFT_CACHE_GIB` bounds it. What it holds is named by ETag: a changed object is fetched again. Pictures
    are named by their content already: of one that the host has, S3 is not asked.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        if not bucket:
            raise ConfigurationError("an s3:// bottle needs a bucket: s3://bucket/prefix")
        self.bucket, self.prefix = bucket, prefix.strip("/")
        config = Config(retries={"max_attempts": 4, "mode": "standard"}, connect_timeout=10, read_timeout=60)
        self.client: Any = boto3.client("s3", config=config)
        self.transfer = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=64 << 20, max_concurrency=2)
        self.cache = Path(os.environ.get("NIGHTSHIFT_CACHE", "~/.cache/nightshift")).expanduser(), _cache_limit()

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}".lstrip("/")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            # a managed upload hides the server's answer behind an error of its own
            answer = error if isinstance(error, ClientError) else error.__context__
            code = str(answer.response.get("Error", {}).get("Code", "")) if isinstance(answer, ClientError) else ""
            if code in ("404", "NoSuchKey"):
                raise DataValidationError(f"{key} is not in the bottle {self}") from error
            if code in ("403", "AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise ConfigurationError(f"{self} refused {key}: {error}") from error
            raise TransientError(f"{self} failed on {key}: {error}") from error

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        try:
            with self._errors(key):
                self.client.head_object(Bucket=self.bucket, Key=self._name(key))
        except DataValidationError:
            return False
        return True

    def read(self, key: str) -> bytes:
        """Return the object's content."""
        with self._errors(key):
            return self._content(key)

    def _content(self, key: str) -> bytes:
        """Read the object; boto3 tries requests again, but not answers that break off."""
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        tries_left = 3
        while True:
            body = self.client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"]
            try:
                return bytes(body.read())
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                tries_left -= 1
                if not tries_left:
                    raise

    def write(self, key: str, content: bytes | str) -> None:
        """Write the object in one request."""
        data = content.encode() if isinstance(content, str) else content
        with self._errors(key):
            self.client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data)

    def create(self, key: str, content: bytes | str) -> bool:
        """Write the object by a conditional request (`If-None-Match: *`)."""
        from botocore.exceptions import ClientError

        data = content.encode() if isinstance(content, str) else content
        with self._errors(key):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
                    return False
                raise
        return True

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the objects below `prefix`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._name(prefix) + "/"
        )
        with self._errors(prefix):
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self.prefix).lstrip("/")

    def local(self, key: str) -> Path:
        """Download the object to the cache unless the cached copy has its ETag."""
        name, kept = PurePosixPath(checked_key(key)).name, shared_cache(*self.cache)

        def download(path: Path) -> None:
            self.client.download_file(self.bucket, self._name(key), str(path), Config=self.transfer)

        def download_small(path: Path) -> None:  # in one request
            path.write_bytes(self._content(key))

        with self._errors(key), _out_of_space():
            if key.startswith(PICTURES):
                return kept.get(f"{self.bucket} {self._name(key)}", name, download_small)
            head = self.client.head_object(Bucket=self.bucket, Key=self._name(key))
            return kept.get(f"{self.bucket} {head['ETag']} {head['ContentLength']}", name, download)

    def put(self, key: str, source: Path) -> None:
        """Upload `source`."""
        with self._errors(key):
            self.client.upload_file(str(source), self.bucket, self._name(key), Config=self.transfer)

    def delete(self, key: str) -> None:
        """Remove the object."""
        with self._errors(key):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))


def _cache_limit() -> int:
    """Return how many bytes of downloads a host keeps."""
    text = settings.optional(settings.CACHE_GIB) or "50"
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 2**20:
        raise ConfigurationError(f"{settings.CACHE_GIB}={text} is no size in GiB, such as 50")
    return int(gib * 2**30)


@contextmanager
def _out_of_space() -> Iterator[None]:
    import errno

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE):
            raise TransientError(f"the bottle's file system failed: {error}") from error
        raise
