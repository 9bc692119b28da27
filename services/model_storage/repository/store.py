"""Where versions are kept: what a back end can do, and the back end that is a folder, Triton's model repository.

    <model>/config.pbtxt           what Triton loads under the model's name: names one version
    <model>/<number>/              a version: the archive's files, its own config.pbtxt, version.json
    <model>/.versions/<version>    the record that makes the version exist: created last, never changed

A version exists once its record does. A record is created exclusively, so of two uploads of one version one wins.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from nightshift_common.archive import CHUNK
from services.model_storage.errors import Conflict, OutOfSpace, StorageError, Unavailable

INCOMING = ".incoming"
CLAIM = ".claim"  # the file of a version in a bucket that says whose its number is
LOCK = ".lock"


class Store(Protocol):
    """A back end. Keys are relative paths with `/`; a write is there completely or not at all."""

    def workspace(self) -> Path:
        """Return a new empty local folder for an upload; its maker removes it."""

    def folders(self, key: str = "") -> list[str]:
        """Return the names of the folders in the folder `key`, without those that start with a dot."""

    def files(self, key: str) -> list[str]:
        """Return the names of the files in the folder `key`; empty where there is none."""

    def tree(self, key: str) -> list[str]:
        """Return the paths of all files below the folder `key`, seen from it."""

    def read(self, key: str) -> bytes | None:
        """Return the content of a small file, None where there is none."""

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading; the caller closes it. Where its body is cut off, `read` raises."""

    def write(self, key: str, content: bytes) -> None:
        """Write a small file, over any other."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless there is one; return whether it was written."""

    def place(self, folder: Path, key: str) -> bool:
        """Put the local `folder` at `key` unless there is something; return whether it was put."""

    def take_back(self, key: str, folder: Path) -> None:
        """Undo `place`."""

    def link(self, source: str, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew: `source` as the folder of the same last name in it, and `files`."""

    def make(self, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew, with small files by their paths in it."""

    def remove(self, key: str) -> None:
        """Remove a folder and what is in it; nothing happens where there is none."""

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def clean(self) -> None:
        """Remove what interrupted uploads have left."""

    def check(self) -> None:
        """Raise `StorageError` where the back end cannot be written to."""

    def close(self) -> None:
        """Let go of it."""


class FolderStore:
    """A folder on one machine, which only one process at a time may write to.

    Raises:
        Conflict: another process has the folder.
    """

    def __init__(self, root: Path, min_free_bytes: int = 0) -> None:
        self.root = root.absolute()
        self._min_free = min_free_bytes
        self._incoming = self.root / INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Conflict(f"{self.root} is in use by another model storage process; one at a time") from error

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def workspace(self) -> Path:
        """Return a new empty folder on the same file system, so that a rename is enough to publish it."""
        with out_of_space():
            return Path(tempfile.mkdtemp(dir=self._incoming))

    def folders(self, key: str = "") -> list[str]:
        """Return the names of the folders in the folder `key`, without those that start with a dot."""
        return sorted(e.name for e in self._scan(key) if e.is_dir() and not e.name.startswith("."))

    def files(self, key: str) -> list[str]:
        """Return the names of the files in the folder `key`; empty where there is none."""
        return sorted(e.name for e in self._scan(key) if e.is_file())

    def tree(self, key: str) -> list[str]:
        """Return the paths of all files below the folder `key`, seen from it."""
        return _tree(self.root / key)

    def read(self, key: str) -> bytes | None:
        """Return the content of a small file, None where there is none."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.root / key).open("rb")

    def write(self, key: str, content: bytes) -> None:
        """Write a small file, over any other."""
        with self._written(content) as temporary:
            target = self._parent_made(key)
            temporary.rename(target)
            sync(target.parent)

    def create(self, key: str, content: bytes) -> bool:
        """Write a small file unless there is one; return whether it was written."""
        with self._written(content) as temporary:
            target = self._parent_made(key)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            sync(target.parent)
        return True

    def place(self, folder: Path, key: str) -> bool:
        """Put the local `folder` at `key` by a rename, unless there is something; return whether it was put."""
        target = self._parent_made(key)
        with out_of_space():
            for path in folder.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o444)
                sync(path)
            folder.chmod(0o755)
            sync(folder)
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            sync(target.parent)
        return True

    def take_back(self, key: str, folder: Path) -> None:
        """Undo `place`."""
        (self.root / key).rename(folder)

    def link(self, source: str, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew: hard links to the files of `source`, and `files`."""
        with self._made_anew(target) as made:
            inner = made / Path(source).name
            inner.mkdir()
            for name in self.tree(source):
                (inner / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(self.root / source / name, inner / name)
            for name, content in files.items():
                (made / name).write_bytes(content)

    def make(self, target: str, files: dict[str, bytes]) -> None:
        """Make the folder `target` anew, with small files by their paths in it."""
        with self._made_anew(target) as made:
            for name, content in files.items():
                (made / name).parent.mkdir(exist_ok=True)
                (made / name).write_bytes(content)

    def remove(self, key: str) -> None:
        """Remove a folder and what is in it: first it disappears by a rename, then its content goes."""
        away = self.workspace()
        try:
            (self.root / key).rename(away / "removed")
        except (FileNotFoundError, NotADirectoryError):
            return
        finally:
            shutil.rmtree(away, ignore_errors=True)

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""
        path = self.root / key
        path.unlink(missing_ok=True)
        sync(path.parent)

    def clean(self) -> None:
        """Remove what interrupted uploads have left; only before the first upload."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(exist_ok=True)
        for model in self.folders():
            try:
                (self.root / model).rmdir()  # made for a version that never came; refused unless it is empty
            except OSError:
                continue

    def check(self) -> None:
        """Raise `StorageError` where the folder cannot be written to, or its disk is nearly full."""
        try:
            self.workspace().rmdir()
        except OSError as error:
            raise StorageError(f"{self.root} cannot be written to: {error}") from error
        if (free := shutil.disk_usage(self.root).free) < self._min_free:
            raise StorageError(
                f"the disk of {self.root} is nearly full: {free >> 20} MiB are free, not {self._min_free >> 20}; "
                "delete versions that are not needed (python -m services.model_storage.cli clean)"
            )

    @contextmanager
    def _made_anew(self, target: str) -> Iterator[Path]:
        """Yield a new folder to be filled, which then takes the place of `target` by a rename."""
        made = self.workspace()
        try:
            with out_of_space():
                yield made
                made.chmod(0o755)
                self.remove(target)
                made.rename(self.root / target)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _scan(self, key: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / key) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _parent_made(self, key: str) -> Path:
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def _written(self, content: bytes) -> Iterator[Path]:
        with out_of_space():
            descriptor, name = tempfile.mkstemp(dir=self._incoming)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(descriptor)
                temporary.chmod(0o644)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


class ModelLocks:
    """One lock a model: changes of one model come one after another, those of different models do not wait."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()

    def of(self, model: str) -> threading.RLock:
        """Return the lock of `model`."""
        with self._guard:
            return self._locks.setdefault(model, threading.RLock())


def digest_of(store: Store, key: str) -> tuple[int, str]:
    """Return the size of a file and its SHA-256 as hex digits.

    Raises:
        StorageError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with closing(store.open(key)) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except StorageError:
        raise
    except Exception as error:  # each back end has its own
        raise Unavailable(f"{key} could not be read: {error}") from error
    return size, digest.hexdigest()


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def out_of_space() -> Iterator[None]:
    """Turn a full disk into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("the disk of the model storage is full; nothing was published") from error
        raise


def sync(path: Path) -> None:
    """Write a file, or a folder's entries, to the disk: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
