"""The cache of a host: bounded, shared, and nothing vanishes under a job that reads it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ResponseStreamingError
from botocore.response import StreamingBody

from jobkit import cache as cache_module
from jobkit.bottle import open_bottle
from jobkit.cache import Cache
from jobkit.errors import ConfigurationError, TransientError

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1000


def content(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).hexdigest().encode().ljust(SIZE, b".")


class Downloads:
    """Downloads `content`, and counts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def get(self, job: Cache, identity: str, name: str = "picture.png") -> Path:
        def download(path: Path) -> None:
            self.seen.append(identity)
            path.write_bytes(content(identity))

        return job.get(identity, name, download)


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


def stored(root: Path) -> int:
    """Return how many bytes the cache takes, each file once whatever its names."""
    files = {path.stat().st_ino: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    return sum(files.values())


def test_jobs_share_what_one_of_them_has_downloaded(tmp_path: Path, downloads: Downloads) -> None:
    first, second = Cache(tmp_path, 10 * SIZE), Cache(tmp_path, 10 * SIZE)
    paths = [downloads.get(first, "a"), downloads.get(second, "a"), downloads.get(first, "a")]
    assert downloads.seen == ["a"]
    assert paths[0] == paths[2] and paths[0].name == paths[1].name == "picture.png"
    assert all(path.read_bytes() == content("a") for path in paths)
    assert downloads.get(second, "a", "other.jpg").suffix == ".jpg"  # by its own name each
    assert downloads.seen == ["a"] and stored(tmp_path) == SIZE


def test_the_limit_holds_and_the_least_recently_used_goes_first(tmp_path: Path, downloads: Downloads) -> None:
    limit = 10 * SIZE
    for number in range(40):
        job = Cache(tmp_path, limit)
        downloads.get(job, str(number))
        downloads.get(job, "always")
        job.close()
        assert stored(tmp_path) <= limit
    assert downloads.seen.count("always") == 1
    job = Cache(tmp_path, limit)
    downloads.seen.clear()
    downloads.get(job, "39")
    downloads.get(job, "5")
    assert downloads.seen == ["5"]


def test_nothing_vanishes_under_a_job_that_reads(
    tmp_path: Path, downloads: Downloads, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Cache(tmp_path, 4 * SIZE)
    paths = [downloads.get(reader, f"read {number}") for number in range(4)]
    other = Cache(tmp_path, 4 * SIZE)
    for number in range(8):
        downloads.get(other, f"other {number}")
    assert [path.read_bytes() for path in paths] == [content(f"read {number}") for number in range(4)]
    assert "running jobs use" in caplog.text and "NIGHTSHIFT_CACHE_GIB" in caplog.text
    reader.close()
    other.close()
    last = Cache(tmp_path, 4 * SIZE)
    downloads.get(last, "last")
    assert stored(tmp_path) <= 4 * SIZE


READS = """
import os, sys, time
from pathlib import Path
from jobkit.cache import Cache
job = Cache(Path(sys.argv[1]), int(sys.argv[2]))
path = job.get("killed", "x", lambda path: path.write_bytes(b"x" * 1000))
if sys.argv[3] == "alone" or os.fork() == 0:
    print(path, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_what_a_killed_job_had_can_be_removed_once_none_of_its_processes_reads(
    how: str, tmp_path: Path, downloads: Downloads
) -> None:
    command = [sys.executable, "-c", READS, str(tmp_path), str(2 * SIZE), how]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    assert job.stdout is not None
    path = Path(job.stdout.readline().strip())
    job.kill()
    job.wait()
    downloads.get(Cache(tmp_path, 2 * SIZE), "a")
    assert path.exists() is (how == "forks")  # what loads its pictures may still be reading
    if how == "forks":
        os.killpg(job.pid, signal.SIGKILL)


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, downloads: Downloads) -> None:
    job = Cache(tmp_path, 10 * SIZE)

    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        job.get("a", "x", fails)
    assert stored(tmp_path) == 0
    assert downloads.get(job, "a").read_bytes() == content("a")


HAMMER = """
import random, sys
from pathlib import Path
from jobkit.cache import Cache
from tests.jobkit.test_cache import Downloads, content
draw, downloads = random.Random(int(sys.argv[2])), Downloads()
for _ in range(12):
    job = Cache(Path(sys.argv[1]), 20_000)
    given = {}
    for _ in range(25):
        identity = str(draw.randrange(60))
        given[identity] = downloads.get(job, identity)
        if len(given) > 6: # all that it was given is still what it was
            assert all(path.read_bytes() == content(name) for name, path in given.items())
            job.close()
            job, given = Cache(Path(sys.argv[1]), 20_000), {}
    job.close()
print(len(downloads.seen))
"""


def test_jobs_that_run_at_once_always_read_what_they_asked_for(tmp_path: Path, downloads: Downloads) -> None:
    jobs = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(tmp_path), str(seed)], cwd=ROOT, stdout=subprocess.PIPE)
        for seed in range(4)
    ]
    counts = [int(job.communicate()[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4
    assert 60 < sum(counts) < 4 * 12 * 25  # some were removed, some were shared
    last = Cache(tmp_path, 20_000)
    downloads.get(last, "last")
    assert stored(tmp_path) <= 20_000
    assert len(list((tmp_path / "jobs").iterdir())) == 1


def test_a_bottle_in_s3_keeps_within_its_setting(
    s3_bottle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_CACHE_GIB", str(20_000 / 2**30))
    names = [f"models/{number}.ckpt" for number in range(40)]
    bottle = open_bottle()
    for name in names:
        bottle.write(name, random.Random(name).randbytes(SIZE))
    for name in names:  # each in a process of its own, as jobs are
        bottle.local(name)
        cache_module.shared_cache(*bottle.cache).close()  # type: ignore[attr-defined]
        cache_module.shared_cache.cache_clear()
    assert 10_000 < stored(tmp_path / "cache") <= 20_000
    monkeypatch.setenv("NIGHTSHIFT_CACHE_GIB", "much")
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_CACHE_GIB=much is no size in GiB"):
        open_bottle()


def test_s3_is_not_asked_about_a_picture_that_the_host_has(s3_bottle: str) -> None:
    bottle = open_bottle()
    bottle.write("pictures/ab/abcd.png", "a picture")
    first = bottle.local("pictures/ab/abcd.png")
    bottle.delete("pictures/ab/abcd.png")
    assert bottle.local("pictures/ab/abcd.png") == first
    assert first.name == "abcd.png" and first.read_text() == "a picture"


@pytest.mark.parametrize("cuts", [1, 3])
def test_an_answer_of_s3_that_breaks_off_is_asked_for_again(
    cuts: int, s3_bottle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bottle = open_bottle()
    bottle.write("pictures/ab/abcd.png", "a picture")
    original, left = StreamingBody.read, [None] * cuts

    def read(self: StreamingBody, amt: int | None = None) -> bytes:
        if left:
            left.pop()
            raise ResponseStreamingError(error="cut")
        return bytes(original(self, amt))

    monkeypatch.setattr(StreamingBody, "read", read)
    if cuts == 1:
        assert bottle.local("pictures/ab/abcd.png").read_text() == "a picture"
    else:
        with pytest.raises(TransientError, match=r"pictures/ab/abcd\.png"):
            bottle.local("pictures/ab/abcd.png")
