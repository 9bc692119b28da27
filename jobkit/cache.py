"""The downloads that the jobs of a host share: named by content, bounded, the least recently used removed first.

    <root>/objects/<2 hex>/<40 hex>       the files
    <root>/jobs/<id>/<40 hex>/<name>      hard links to those that a running job was given
    <root>/jobs/<id>/.lock                locked for as long as a process of that job lives
    <root>/.lock                          held by the one that removes

A job reads its own links, so that nothing vanishes under it whatever others remove; a file with a second link is in
use and is not removed. The links of a killed job go when another one makes room: the kernel has let go of its lock.
All of it has to lie in one file system that has hard links and flock, as a local disk or a Docker volume has.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

logger = logging.getLogger("jobkit.cache")
SHARE_UNCHECKED = 20  # a job looks how full the cache is after each 1/20 of the limit that it downloads


class Cache:
    """A job's way into the cache below `root`; `limit` is in bytes.

    Jobs that run at once exceed the limit by at most 1/20 of it each. What they use themselves is kept in any case:
    where that alone is more, a line in the log says so.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._objects = root / "objects"
        self._folder = root / "jobs" / uuid.uuid4().hex
        self._downloaded: int | None = None  # bytes since the last look; None: it has not looked yet
        self._guard = threading.Lock()
        (root / "jobs").mkdir(parents=True, exist_ok=True)
        with self._alone():  # or another job would take it for one that was killed
            self._folder.mkdir()
            self._lock = (self._folder / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def get(self, identity: str, name: str, download: Callable[[Path], None]) -> Path:
        """Return a local file called `name` with the content that `identity` stands for, readable until the job ends.

        `download` writes the content to the path that it is given; it is called where no job has it here yet.
        """
        digest = hashlib.sha256(identity.encode()).hexdigest()[:40]
        mine, stored = self._folder / digest / name, self._objects / digest[:2] / digest
        if not mine.exists():
            mine.parent.mkdir(exist_ok=True)
            if not _link(stored, mine):
                self._fetch(stored, mine, download)
        # The access time is what removal goes by; mounted file systems seldom keep it up to date themselves.
        os.utime(mine, ns=(time.time_ns(), mine.stat().st_mtime_ns))
        return mine

    def close(self) -> None:
        """Let go of all files; those that `get` returned are gone."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _fetch(self, stored: Path, mine: Path, download: Callable[[Path], None]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=mine.suffix)
        os.close(descriptor)
        new = Path(name)
        try:
            download(new)
            with new.open("rb") as handle:
                os.fsync(handle.fileno())
            new.chmod(0o644)
            self._count(new.stat().st_size)
            stored.parent.mkdir(parents=True, exist_ok=True)
            if not _link(new, stored):  # another job was faster: its copy is the one that is kept
                _link(stored, mine)
            _link(new, mine)
        finally:
            new.unlink(missing_ok=True)

    def _count(self, size: int) -> None:
        """Make room from time to time, not for each new file: to look at 100,000 of them takes seconds."""
        with self._guard:
            if self._downloaded is None or self._downloaded + size > self.limit // SHARE_UNCHECKED:
                self.make_room(size)
                self._downloaded = 0
            self._downloaded += size

    def make_room(self, size: int) -> None:
        """Remove what was not used for longest until `size` more bytes fit, with some to spare for other jobs."""
        with self._alone():
            self._forget_the_dead()
            found = sorted(self._files(), key=lambda entry: entry[0])
            total = sum(length for _, length, _, _ in found)
            wanted = self.limit - size - self.limit // SHARE_UNCHECKED
            for _, length, links, path in found:
                if total <= wanted:
                    return
                if links == 1:
                    path.unlink(missing_ok=True)
                    total -= length
            if total > max(wanted, 0):
                logger.warning(
                    "running jobs use %.1f GiB of the cache %s, which is for %.1f GiB (NIGHTSHIFT_CACHE_GIB)",
                    total / 2**30, self.root, self.limit / 2**30,
                )  # fmt: skip

    def _files(self) -> Iterator[tuple[int, int, int, Path]]:
        """Yield time of the last use, size, links and path of each file."""
        for folder in self._objects.glob("*"):
            for entry in os.scandir(folder):
                stat = entry.stat()
                yield stat.st_atime_ns, stat.st_size, stat.st_nlink, Path(entry.path)

    def _forget_the_dead(self) -> None:
        for folder in (self.root / "jobs").iterdir():
            with suppress(OSError), (folder / ".lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.root / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _link(source: Path, target: Path) -> bool:
    """Give a file another name; return whether it could be: not where there is no such file, or a target already."""
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        return False
    return True


@cache
def shared_cache(root: Path, limit: int) -> Cache:
    """Return this process's way into a cache; it lets go of its files when the process ends."""
    made = Cache(root, limit)
    owner = os.getpid()
    atexit.register(lambda: made.close() if os.getpid() == owner else None)
    return made
