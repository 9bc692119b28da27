"""Archives that are not trusted: what is refused before a byte is written, and that nothing ever leaves the folder."""

from __future__ import annotations

import stat
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_common.archive import ArchiveRefused, Rules, copy_entry, files_in, opened

FOLDERS = Rules(max_entries=20, max_bytes=1 << 30, flat=False)
FLAT = Rules(max_entries=20, max_bytes=1 << 30, flat=True)


def written(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED, mode: int = 0, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = entry.orig_filename = name  # ZipInfo itself cuts a name at a NUL
            entry.external_attr, entry.compress_type = mode << 16, method
            archive.writestr(entry, content)
    return path


def unpacked(archive: Path, rules: Rules, folder: Path) -> list[str]:
    with opened(archive, rules) as found:
        for entry in files_in(found):
            target = folder / entry.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with found.open(entry) as source:
                copy_entry(source, entry, target, len)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folders_are_unpacked_where_they_are_allowed(tmp_path: Path) -> None:
    archive = written(tmp_path / "a.zip", "model/1/", "model/1/model.onnx", "model/config.pbtxt", ".hidden")
    (tmp_path / "out").mkdir()
    assert unpacked(archive, FOLDERS, tmp_path / "out") == [".hidden", "model/1/model.onnx", "model/config.pbtxt"]


@pytest.mark.parametrize(
    ("names", "rules", "says"),
    [
        (("",), FOLDERS, "leads out of the folder"),
        (("",), FLAT, "must be flat"),
        (("a/../../b",), FOLDERS, "leads out of the folder"),
        (("C:x",), FOLDERS, "leads out of the folder"),
        (("a\0b",), FOLDERS, "no name for a file"),
        (("a/" + "é" * 101,), FOLDERS, "at most 200 bytes"),
        (("a/b", "a//b"), FOLDERS, "is there twice"),
        (("a/b", "./A/b"), FOLDERS, "is there twice"),
        (("a", "a/b"), FOLDERS, "'a' is both a file and a folder"),
        (("a/", "a"), FOLDERS, "'a' is both a file and a folder"),
        (tuple(map(str, range(21))), FOLDERS, "21 entries, at most 20"),
        ((), FOLDERS, "it is empty"),
    ],
)
def test_names_that_do_not_fit_together_are_refused(
    tmp_path: Path, names: tuple[str, ...], rules: Rules, says: str
) -> None:
    with pytest.raises(ArchiveRefused, match=says), opened(written(tmp_path / "a.zip", *names), rules):
        pytest.fail("it was opened")


@pytest.mark.parametrize("rules", [FOLDERS, FLAT])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, rules: Rules) -> None:
    link = written(tmp_path / "link.zip", "passwd", mode=stat.S_IFLNK | 0o777, content=b"/etc/passwd")
    packed = written(tmp_path / "packed.zip", "a", method=zipfile.ZIP_LZMA)
    large = written(tmp_path / "large.zip", "a", "b", content=bytes(1 << 20))
    for archive, limits, says in (
        (link, rules, "'passwd' is a link or a special file"),
        (packed, rules, "compressed by method 14"),
        (large, Rules(20, 1 << 20, rules.flat), "unpack to 2097152, at most 1048576"),
    ):
        with pytest.raises(ArchiveRefused, match=says), opened(archive, limits):
            pytest.fail("it was opened")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ArchiveRefused, match=r"'\.\./a' leads out.*'/b' leads out.*'c' is there twice"),
        opened(written(tmp_path / "a.zip", "../a", "/b", "c", "c"), FOLDERS),
    ):
        pytest.fail("it was opened")


def test_a_name_that_is_not_in_its_encoding_is_damage(tmp_path: Path) -> None:
    archive = written(tmp_path / "a.zip", "aä")
    archive.write_bytes(archive.read_bytes().replace("ä".encode(), b"\xff\xff"))
    with pytest.raises(ArchiveRefused, match="is damaged or no zip file"), opened(archive, FOLDERS):
        pytest.fail("it was opened")


NAMES = st.lists(st.text(st.sampled_from("/\\..aAb:\0\nü"), max_size=6), max_size=8)


@given(names=NAMES, flat=st.booleans())
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_whatever_the_names_nothing_is_written_elsewhere_and_nothing_is_lost(names: list[str], flat: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        folder = root / "folder"
        folder.mkdir(parents=True)
        archive = written(Path(scratch) / "a.zip", *names)
        try:
            found = unpacked(archive, FLAT if flat else FOLDERS, folder)
        except ArchiveRefused:
            found = []
            assert list(folder.iterdir()) == [], "refused before a byte is written"
        else:
            assert len(found) == sum(not name.endswith("/") for name in names)
        assert list(root.iterdir()) == [folder]


@given(content=st.binary(max_size=300), at=st.integers(0, 299), value=st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_archive_is_refused_or_gives_what_was_packed(content: bytes, at: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        archive = written(Path(scratch) / "a.zip", "a", content=content)
        data = bytearray(archive.read_bytes())
        data[at % len(data)] = value  # often in the headers: they are as long as the content
        archive.write_bytes(data)
        folder = Path(scratch) / "folder"
        folder.mkdir()
        try:
            names = unpacked(archive, FLAT, folder)
        except ArchiveRefused:
            return
        assert [(folder / name).read_bytes() for name in names] == [content]
