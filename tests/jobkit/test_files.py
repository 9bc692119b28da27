"""Atomic writes on a local file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobkit.files import atomic_directory, atomic_file, write_atomic


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "model.onnx"
    with atomic_file(path) as temporary:
        temporary.write_text("content")
        assert temporary.suffix == ".onnx"
        assert not path.exists()
    assert path.read_text() == "content"
    assert oct(path.stat().st_mode)[-3:] == "644"


def test_a_failure_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_directory_appears_whole_and_is_never_replaced(tmp_path: Path) -> None:
    for expected in (True, False):
        try:
            with atomic_directory(tmp_path / "version") as temporary:
                (temporary / "file").write_text(str(expected))
        except FileExistsError:
            assert not expected
    assert (tmp_path / "version" / "file").read_text() == "True"
    assert [p.name for p in tmp_path.iterdir()] == ["version"]


def test_a_directory_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "version") as temporary:
        (temporary / "file").touch()
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == []
