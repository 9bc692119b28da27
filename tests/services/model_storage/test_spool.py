"""A zip that is taken apart while it arrives comes to the same files as one that is unpacked afterwards."""

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest

from services.model_storage.api.spool import MIN_DIVERTED, Spool
from services.model_storage.errors import Refused
from services.model_storage.repository.archive import unpack

LARGE = os.urandom(MIN_DIVERTED + 12345)


class Unseekable(io.BytesIO):
    """What a pipe is: sizes follow the content."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError


def archive(*, zip64: bool = False, compressed: bool = False, piped: bool = False) -> bytes:
    buffer = Unseekable() if piped else io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in (("a.txt", b"small"), ("model.onnx", LARGE), ("b", b""), ("model.data", LARGE[::-1])):
            with opened.open(name, "w", force_zip64=zip64) as entry:
                entry.write(content)
    return buffer.getvalue()


def spooled(folder: Path, data: bytes, step: int) -> Spool:
    folder.mkdir()
    with Spool(folder / "upload") as spool:
        for at in range(0, len(data), step):
            spool.write(data[at : at + step])
    return spool


ARCHIVES = {
    "stored": (archive(), 2),
    "stored as zip64": (archive(zip64=True), 2),
    "compressed": (archive(compressed=True), 0),
    "written to a pipe": (archive(piped=True), 0),
}


@pytest.mark.parametrize("step", [7919, 1 << 20, 1 << 30])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_spooled_archive_comes_to_the_files_that_are_in_it(tmp_path: Path, kind: str, step: int) -> None:
    data, diverted = ARCHIVES[kind]
    spool = spooled(tmp_path / "in", data, step)
    assert spool.sha256 == hashlib.sha256(data).hexdigest()
    assert len(spool.diverted) == diverted
    assert (tmp_path / "in" / "upload").stat().st_size == len(data)
    (tmp_path / "out").mkdir()
    files, left_out = unpack(tmp_path / "in" / "upload", tmp_path / "out", 1 << 30, spool.diverted)
    assert left_out == []
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        expected = {name: opened.read(name) for name in opened.namelist()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert {name: file.sha256 for name, file in files.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in expected.items()
    }


def test_an_archive_in_single_bytes_is_understood_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("a.txt", "small")
        opened.writestr("b.txt", "")
    assert spooled(tmp_path / "in", buffer.getvalue(), 1).diverted == {}
    assert (tmp_path / "in" / "upload").read_bytes() == buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"P", b"PK\x03", b"no zip at all", archive()[:20], archive()[:-40]])
def test_what_is_no_whole_zip_is_kept_as_it_is_and_refused(tmp_path: Path, data: bytes) -> None:
    spool = spooled(tmp_path / "in", data, 1000)
    assert (tmp_path / "in" / "upload").stat().st_size == len(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused):
        unpack(tmp_path / "in" / "upload", tmp_path / "out", 1 << 30, spool.diverted)


def test_content_that_differs_from_the_archives_directory_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive())
    data[data.find(LARGE) + 100] ^= 0xFF
    spool = spooled(tmp_path / "in", bytes(data), 1 << 20)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match="CRC-32"):
        unpack(tmp_path / "in" / "upload", tmp_path / "out", 1 << 30, spool.diverted)


def test_an_entry_whose_header_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive())
    header = data.find(b"model.onnx") - 30
    data[header + 18 : header + 26] = struct.pack("<2L", len(LARGE) - 5, len(LARGE) - 5)
    spool = spooled(tmp_path / "in", bytes(data), 1 << 20)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match="damaged"):
        unpack(tmp_path / "in" / "upload", tmp_path / "out", 1 << 30, spool.diverted)
