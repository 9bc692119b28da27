"""The back end that is an S3 bucket: Triton reads the same `s3://bucket/prefix`. Several services may share it.

S3 has no rename. A version's files are uploaded under a Triton version that was claimed by an exclusive write
(`If-None-Match: *`), `version.json` last; the version exists once its record was created, exclusively too.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from services.model_storage.errors import StorageError, Unavailable
from services.model_storage.repository.store import CLAIM

logger = logging.getLogger(__name__)

LAST = "version.json"  # the file whose presence says that the others are there
ABANDONED = timedelta(hours=1)
_TRANSFER = TransferConfig(multipart_chunksize=32 << 20, max_concurrency=2)  # memory: what is under way at once
_READS = 3


class S3Store:
    """A bucket, or a part of one; credentials and endpoint come from boto3's own `AWS_*` variables."""

    def __init__(self, address: str) -> None:
        bucket, _, prefix = address.removeprefix("s3://").strip("/").partition("/")
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._local = Path(tempfile.mkdtemp(prefix="model_storage."))
        config = Config(retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=5, read_timeout=60)
        self._client = boto3.client("s3", config=config)

    def close(self) -> None:
        """Remove the local working folder."""
        shutil.rmtree(self._local, ignore_errors=True)
        self._client.close()

    def workspace(self) -> Path:
        """Return a new empty local folder for an upload; its maker removes it."""
        return Path(tempfile.mkdtemp(dir=self._local))

    def folders(self, key: str = "") -> list[str]:
        """Return the names of the folders in the folder `key`, without those that start with a dot."""
        prefix = self._prefix + (f"{key}/" if key else "")
        found = [
            common["Prefix"][len(prefix) :].rstrip("/")
            for page in self._pages(Prefix=prefix, Delimiter="/")
            for common in page.get("CommonPrefixes", [])
        ]
        return sorted(name for name in found if not name.startswith("."))

    def files(self, key: str) -> list[str]:
        """Return the names of the files in the folder `key`; empty where there is none."""
        prefix = f"{self._prefix}{key}/"
        pages = self._pages(Prefix=prefix, Delimiter="/")
        return sorted(entry["Key"][len(prefix) :] for page in pages for entry in page.get("Contents", []))

    def tree(self, key: str) -> list[str]:
        """Return the paths of all files below the folder `key`, seen from it."""
        prefix = f"{self._prefix}{key}/"
        pages = self._pages(Prefix=prefix)
        names = [entry["Key"][len(prefix) :] for page in pages for entry in page.get("Contents", [])]
        return sorted(name for name in names if name and not name.endswith("/"))

    def read(self, key: str) -> bytes | None:
        """Return the content of a small file, None where there is none; a body that is cut off is asked for again."""
        for attempt in range(_READS):
            try:
                with closing(self.open(key)) as body:
                    return body.read()
            except FileNotFoundError:
                return None
            except (BotoCoreError, HTTPError, OSError) as error:
                if attempt == _READS - 1:
                    raise Unavailable(f"S3 did not send {key} completely: {error}") from error
        raise AssertionError("unreachable")

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        with _answering():
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"]
            except self._client.exceptions.NoSuchKey as error:
                raise FileNotFoundError(key) from error
        return cast("BinaryIO", body)

    def write(self, key: str, content: bytes) -> None:
        """Write a small file, over any other.

        Triton sees by the time of the last change, in whole seconds here, that there is something to load: the new
        time is made to differ from the old one.
        """
        with _answering():
            before = self._changed(key)
            while True:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content)
                if before is None or self._changed(key) != before:
                    return
                time.sleep(1 - time.time() % 1 + 0.01)

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless there is one; return whether it was written.

        An answer that got lost makes boto3 ask again, and then the file is there: with our content it is ours.
        """
        with _answering():
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise
                return self.read(key) == content
        return True

    def place(self, folder: Path, key: str) -> bool:
        """Upload the local `folder` to `key` unless that was claimed; return whether it was uploaded."""
        if not self.create(f"{key}/{CLAIM}", uuid4().bytes):
            return False
        try:
            with _answering():
                files = [path for path in folder.rglob("*") if path.is_file()]
                for path in sorted(files, key=lambda path: path == folder / LAST):
                    target = f"{self._prefix}{key}/{path.relative_to(folder)}"
                    self._client.upload_file(str(path), self._bucket, target, Config=_TRANSFER)
        except StorageError:
            with suppress(StorageError):  # what cannot be removed now goes an hour after its claim
                self.remove(key)
            raise
        return True

    def take_back(self, key: str, folder: Path) -> None:
        """Undo `place`; the local `folder` is still there."""
        self.remove(key)

    def link(self, source: str, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew: `source` copied within S3 as the folder of the same last name, and `files`."""
        self.remove(target)
        number = Path(source).name
        with _answering():
            for name in self.tree(source):
                origin = {"Bucket": self._bucket, "Key": f"{self._prefix}{source}/{name}"}
                self._client.copy(origin, self._bucket, f"{self._prefix}{target}/{number}/{name}", Config=_TRANSFER)
            for name, content in files.items():
                self.write(f"{target}/{name}", content)

    def make(self, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew, with small files by their paths in it.

        What is there is written over, so that Triton sees by the times that there is something new to load.
        """
        stale = {name for folder in self.folders(target) for name in self._below(f"{target}/{folder}")} - set(files)
        for name, content in files.items():
            self.write(f"{target}/{name}", content)
        with _answering():
            for name in stale:
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}{target}/{name}")

    def _below(self, key: str) -> list[str]:
        folder = key.rpartition("/")[2]
        return [f"{folder}/{name}" for name in self.files(key)]

    def remove(self, key: str) -> None:
        """Remove a folder and what is in it; nothing happens where there is none."""
        with _answering():
            for page in self._pages(Prefix=f"{self._prefix}{key}/"):
                keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
                if keys:
                    self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with _answering():
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def clean(self) -> None:
        """Remove claimed Triton versions whose upload was given up: no `version.json` an hour after the claim."""
        self.create(".keep", b"")  # Triton does not start on an empty prefix
        limit = datetime.now(UTC) - ABANDONED
        for model in self.folders():
            for number in self.folders(model):
                key = f"{model}/{number}"
                if LAST in (names := self.files(key)) or CLAIM not in names:
                    continue
                claimed = self._changed(f"{key}/{CLAIM}")
                if claimed is not None and claimed < limit:
                    logger.warning("%s was never completed: removed", key)
                    self.remove(key)

    def check(self) -> None:
        """Raise `StorageError` where the bucket does not answer."""
        with _answering():
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _pages(self, **query: Any) -> Iterator[dict[str, Any]]:
        with _answering():
            yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **query)

    def _changed(self, key: str) -> datetime | None:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise
        return cast("datetime", head["LastModified"])


@contextmanager
def _answering() -> Iterator[None]:
    """Turn boto3's errors into ours: what may pass by itself is `Unavailable`."""
    try:
        yield
    except ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        message = f"S3 refused {error.operation_name}: {error.response['Error'].get('Message') or error}"
        raise (Unavailable(message) if status >= 500 else StorageError(message)) from error
    except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
        raise Unavailable(f"S3 does not answer: {error}") from error
