"""The data bottle, in a folder and on S3: one behavior for both."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest

from jobkit.bottle import Bottle, FolderBottle, open_bottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from tests.support import servers


@pytest.fixture(params=["folder", "s3"])
def bottle(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bottle:
    if request.param == "folder":
        monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(tmp_path / "bottle"))
    else:
        request.getfixturevalue("s3_bottle")
    return open_bottle()


def test_what_is_written_is_read_again(bottle: Bottle) -> None:
    bottle.write("meta/digits/a.json", "ж\n")
    bottle.write("pictures/ab/x.png", b"\x00\xff")
    assert bottle.read("meta/digits/a.json") == "ж\n".encode()
    assert bottle.local("pictures/ab/x.png").read_bytes() == b"\x00\xff"
    assert bottle.exists("pictures/ab/x.png")


def test_a_key_that_is_not_there_is_refused_with_its_name(bottle: Bottle) -> None:
    assert not bottle.exists("pictures/none.png")
    for read in (bottle.read, bottle.local):
        with pytest.raises(DataValidationError, match=r"pictures/none\.png"):
            read("pictures/none.png")
    bottle.delete("pictures/none.png")


def test_keys_are_listed_in_order_and_only_below_the_folder(bottle: Bottle) -> None:
    for key in ("a/2", "a/10", "a/b/1", "ab/1", "b"):
        bottle.write(key, key)
    assert list(bottle.keys("a")) == ["a/10", "a/2", "a/b/1"]
    assert list(bottle.keys("nothing")) == []


def test_a_key_is_replaced_and_deleted(bottle: Bottle, tmp_path: Path) -> None:
    bottle.write("a/b", "old")
    source = tmp_path / "source"
    source.write_text("new")
    bottle.put("a/b", source)
    assert bottle.read("a/b") == b"new"
    assert bottle.local("a/b").read_text() == "new"
    bottle.delete("a/b")
    assert not bottle.exists("a/b")
    assert list(bottle.keys("a")) == []


def test_a_local_copy_follows_a_change(bottle: Bottle) -> None:
    bottle.write("a/model.onnx", "first")
    first = bottle.local("a/model.onnx")
    assert first.read_text() == "first"
    bottle.write("a/model.onnx", "second")
    assert bottle.local("a/model.onnx").read_text() == "second"
    assert first.suffix == ".onnx", "libraries choose a format by it"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "a\\b", "./a"])
def test_a_key_that_leads_elsewhere_is_refused(bottle: Bottle, key: str) -> None:
    for use in (bottle.read, bottle.exists, lambda k: bottle.write(k, "x")):
        with pytest.raises(ConfigurationError, match="no bottle key"):
            use(key)


def test_a_reader_sees_the_old_content_or_the_new_never_a_part(bottle: Bottle) -> None:
    sizes = (200_000, 300_000)
    bottle.write("a", b"0" * sizes[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            content = bottle.read("a")
            seen.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        bottle.write("a", str(number % 2).encode() * sizes[number % 2])
    stop.set()
    reader.join()
    assert seen <= {(sizes[0], 1), (sizes[1], 1)}


def test_a_write_that_fails_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    bottle = FolderBottle(tmp_path)
    bottle.write("a/b", "old")
    with pytest.raises(FileNotFoundError):
        bottle.put("a/b", tmp_path / "not there")
    assert bottle.read("a/b") == b"old"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_a_full_file_system_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the kernel's full device stands for the disk: a really full one would need root
    monkeypatch.setattr("jobkit.bottle.atomic_file", lambda _: contextlib.nullcontext(Path("/dev/full")))
    with pytest.raises(TransientError, match="No space left"):
        FolderBottle(tmp_path).write("a/b", "x" * 100)


def test_an_s3_bottle_without_its_server_is_worth_another_try(s3_bottle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    bottle = open_bottle()
    for use in (bottle.read, bottle.exists, lambda k: bottle.write(k, "x"), lambda k: list(bottle.keys(k))):
        with pytest.raises(TransientError, match="failed on a"):
            use("a")


def test_an_s3_bottle_in_a_bucket_that_is_not_there_is_a_configuration_error(s3_bottle: str, tmp_path: Path) -> None:
    bottle = open_bottle("s3://there-is-no-such-bucket/x")
    (tmp_path / "source").touch()
    put = (lambda k: bottle.write(k, "x")), (lambda k: bottle.put(k, tmp_path / "source"))
    for use in (bottle.read, lambda k: list(bottle.keys(k)), *put):
        with pytest.raises(ConfigurationError, match="there-is-no-such-bucket"):
            use("a")


def test_an_unchanged_object_is_downloaded_once(s3_bottle: str) -> None:
    bottle = open_bottle()
    bottle.write("a/b", "content")
    path = bottle.local("a/b")
    before = path.stat().st_mtime_ns
    assert bottle.local("a/b") == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("root", ["ftp://host/x", "s3://", "gs://bucket"])
def test_a_bottle_elsewhere_is_a_configuration_error(root: str) -> None:
    with pytest.raises(ConfigurationError):
        open_bottle(root)


def test_a_bottle_that_nobody_named_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTSHIFT_BOTTLE", raising=False)
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_BOTTLE"):
        open_bottle()
