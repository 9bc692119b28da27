"""What is installed where: by the options that pick torch's build, and only with a hash that the locks have."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from local import bootstrap


@pytest.mark.parametrize(
    ("backend", "driver", "expected"),
    [
        ("cu130", False, True),
        ("auto", True, True),
        ("auto", False, False),
        ("cpu", True, False),
        (None, True, False),  # a CPU wheel lies at hand
    ],
)
def test_what_needs_cuda_comes_with_torch_for_cuda(
    backend: str | None, driver: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.shutil, "which", lambda _name: "/usr/bin/nvidia-smi" if driver else None)
    assert bootstrap.has_cuda(backend) is expected


def wheel(folder: Path, name: str, version: str, content: str) -> str:
    """Write a wheel of one module; return its sha256."""
    folder.mkdir(exist_ok=True)
    module, info = f"{name}/__init__.py", f"{name}-{version}.dist-info"
    files = {
        module: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def row(path: str) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[path].encode()).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(files[path])}\n"

    record = "".join(row(path) for path in files) + f"{info}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flipped(digest: str) -> str:
    """Return a hash that differs in its last bit."""
    return f"{digest[:-1]}{int(digest[-1], 16) ^ 1:x}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty environment `env`, locks in `requirements`, and a folder `wheels` that takes the index's place."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(bootstrap, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setattr(bootstrap, "TORCH", tmp_path / "requirements" / "torch.in")
    (tmp_path / "requirements").mkdir()
    bootstrap.uv("venv", "--quiet", "--python", bootstrap.sys.executable, str(tmp_path / "env"))
    return tmp_path


def installed(folder: Path, name: str) -> bool:
    """Whether the environment can import a module."""
    return subprocess.run([str(folder / "env" / "bin" / "python"), "-c", f"import {name}"]).returncode == 0


def test_a_package_is_installed_with_its_hash_and_refused_with_one_bit_flipped(folder: Path) -> None:
    digest = wheel(folder / "wheels", "moonlight", "1.0", "")
    lock = folder / "requirements" / "moon.txt"
    for line, message in (
        (f"moonlight==1.0 --hash=sha256:{flipped(digest)}\n", "Hash mismatch"),
        ("moonlight==1.0\n", "--require-hashes"),
    ):
        lock.write_text(line)
        with pytest.raises(SystemExit, match=message):
            bootstrap.install_verified(folder / "env", [lock])
        assert not installed(folder, "moonlight")
    lock.write_text(f"moonlight==1.0 --hash=sha256:{digest}\n")
    bootstrap.install_verified(folder / "env", [lock])
    assert installed(folder, "moonlight")


def test_a_wheel_of_torch_at_hand_has_the_hash_in_the_lock(folder: Path) -> None:
    digest = wheel(folder / "wheels", "torch", "2.13.0+cpu", "")
    bootstrap.TORCH.write_text("torch==2.13.0\n")
    lock = folder / "requirements" / "jobs.txt"
    assert bootstrap.torch_backend() is None
    lock.write_text(f"torch==2.13.0 --hash=sha256:{flipped(digest)}\n")
    with pytest.raises(SystemExit, match="Hash mismatch"):
        bootstrap.install_torch(folder / "env", "jobs", None)
    lock.write_text(f"torch==2.13.0 --hash=sha256:{digest}\n")
    bootstrap.install_torch(folder / "env", "jobs", None)
    assert installed(folder, "torch")


def test_the_build_of_torch_for_cuda_comes_from_a_lock_of_its_own(folder: Path) -> None:
    digest = wheel(folder / "wheels", "torch", "2.13.0", "")
    lock = folder / "requirements" / f"torch-{bootstrap.LOCKED_CUDA}.txt"
    lock.write_text(f"torch==2.13.0 --hash=sha256:{flipped(digest)}\n")
    with pytest.raises(SystemExit, match="Hash mismatch"):
        bootstrap.install_torch(folder / "env", "jobs", bootstrap.LOCKED_CUDA)
    lock.write_text(f"torch==2.13.0 --hash=sha256:{digest}\n")
    bootstrap.install_torch(folder / "env", "jobs", bootstrap.LOCKED_CUDA)
    assert installed(folder, "torch")


def test_uv_itself_is_refused_with_one_bit_flipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "VENV", folder / "venv")
    digest = wheel(folder / "wheels", "uv", "0.0.1", "")
    (folder / "requirements" / "uv.txt").write_text(f"uv==0.0.1 --hash=sha256:{flipped(digest)}\n")
    with pytest.raises(SystemExit, match="DO NOT MATCH THE HASHES"):
        bootstrap.install_tools(with_linters=False)
    assert not list((folder / "venv").rglob("uv-*.dist-info"))


def test_an_environment_is_made_anew_when_one_of_its_locks_changes(folder: Path) -> None:
    known = set()
    for name in ("jobs", "jobs-test", "jobs-without-dependencies", "torch-cu130", "jobs-gpu"):
        (folder / "requirements" / f"{name}.txt").write_text(f"{name}==1\n")
        known.add(bootstrap.digest("jobs", test=True))
    assert len(known) == 5


def test_what_a_lock_no_longer_lists_is_gone_from_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "venv").mkdir()
    (folder / "venv" / "tools").symlink_to(bootstrap.VENV / "tools")
    monkeypatch.setattr(bootstrap, "VENV", folder / "venv")
    lines = {
        name: f"{name}==1.0 --hash=sha256:{wheel(folder / 'wheels', name, '1.0', '')}\n" for name in ("old", "kept")
    }
    lock = folder / "requirements" / "moon.txt"
    lock.write_text("".join(lines.values()))
    bootstrap.install("moon", test=False)
    assert bootstrap.is_current("moon", test=False)
    lock.write_text(lines["kept"])
    assert not bootstrap.is_current("moon", test=False)
    bootstrap.install("moon", test=False)
    found = {path.name for path in (folder / "venv" / "moon").glob("lib/python3*/site-packages/*.dist-info")}
    assert found == {"kept-1.0.dist-info"}
