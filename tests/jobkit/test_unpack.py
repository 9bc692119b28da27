"""Unpacking what a job was given: whole and checked, or nothing."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from jobkit.errors import DataValidationError
from jobkit.unpack import unpack


def zip_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, name)
    return path


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("target/", "target/a/1", "target/b"), ["a/1", "b"]),
        (("other/a/1", "other/b"), ["other/a/1", "other/b"]),
        (("target/a", "b"), ["b", "target/a"]),
        (("target",), ["target"]),
    ],
)
def test_a_top_folder_named_like_the_target_is_taken_off(
    tmp_path: Path, names: tuple[str, ...], files: list[str]
) -> None:
    target = tmp_path / "target"
    unpack(zip_of(tmp_path / "a.zip", *names), target, lambda _: None)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == files


def test_what_the_check_refuses_leaves_nothing(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise DataValidationError(f"{sorted(path.name for path in folder.iterdir())} are not wanted")

    with pytest.raises(DataValidationError, match="'a', 'b'"):
        unpack(zip_of(tmp_path / "a.zip", "a", "b"), tmp_path / "out" / "target", refuse)
    assert not list((tmp_path / "out").iterdir())


def test_an_archive_of_folders_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataValidationError, match="holds folders only"):
        unpack(zip_of(tmp_path / "a.zip", "target/"), tmp_path / "target", lambda _: None)


def _link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"../../escape.txt": b"x"}, r"'\.\./\.\./escape\.txt' leads out of the folder"),
        ({"/etc/cron.d/evil": b"x"}, "leads out of the folder"),
        ({"a\\..\\b": b"x"}, "leads out of the folder"),
        ({"weights": b"1", "WEIGHTS": b"2"}, "'WEIGHTS' is there twice"),
        ({"bomb.bin": bytes(80 << 20)}, "bytes unpack to"),
        ({}, "it is empty"),
    ],
)
def test_archives_that_would_do_harm_are_refused_before_a_byte_is_written(
    tmp_path: Path, entries: dict[str, bytes], says: str
) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    with pytest.raises(DataValidationError, match=says):
        unpack(archive, tmp_path / "out" / "target", lambda _: None)
    assert not (tmp_path / "out").exists()


def test_links_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "link.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(_link("passwd"), "/etc/passwd")
    with pytest.raises(DataValidationError, match="'passwd' is a link or a special file"):
        unpack(archive, tmp_path / "target", lambda _: None)
    good = tmp_path / "good.zip"
    with zipfile.ZipFile(good, "w") as opened:
        opened.writestr("weights/model.pt", b"weights")
    good.write_bytes(good.read_bytes()[:-40])
    with pytest.raises(DataValidationError, match=r"good\.zip is damaged or no zip"):
        unpack(good, tmp_path / "target", lambda _: None)
    assert not (tmp_path / "target").exists()
