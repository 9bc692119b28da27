"""Signing a package by hand: what an unsigned upload lacks, in one command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from conversion_jobs import sign_package
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.job import Context
from tests.conversion_jobs.serving import TOKEN, Serving
from tests.support.signing_keys import Key
from tests.support.tiny_onnx import scaling_model


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "model_onnx.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("model.onnx", scaling_model(2.0))
        opened.writestr("meta.json", "{}")
    return path


def upload(served: Serving, model: str, archive: Path) -> httpx.Response:
    """Do what the documented curl line does."""
    return httpx.post(
        f"{served.url}/upload_new_version/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30,
        files={"src_file": (archive.name, archive.read_bytes())}, data={"model_name": model, "model_version": "0.0.2"},
    )  # fmt: skip


def signed(model: str, archive: Path, key: Path | None, output: Path | None = None) -> sign_package.Result:
    arguments = sign_package.Arguments(model_name=model, archive=archive, key=key, output=output)
    return sign_package.run(arguments, Context(archive.parent, None))


def test_a_package_is_refused_before_it_is_signed_and_taken_after(
    served: Serving, model: str, archive: Path, signing_key: Key
) -> None:
    assert upload(served, model, archive).status_code == 400
    command = [sys.executable, "-m", "conversion_jobs.sign_package", "--model_name", model, "--archive", str(archive)]
    subprocess.run([*command, "--key", str(signing_key.private)], check=True, capture_output=True)
    assert upload(served, model, archive).json() == {"version": "0.0.2"}
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]


def test_signed_again_it_has_one_signature_and_the_official_library_agrees(
    archive: Path, signing_key: Key, tmp_path: Path
) -> None:
    from model_signing import verifying

    output = tmp_path / "signed.zip"
    signed("digits", archive, signing_key.private, output)
    signed("digits", output, signing_key.private)
    with zipfile.ZipFile(output) as opened:
        assert opened.namelist() == ["meta.json", "model.onnx", "model.sig"]
        opened.extractall(tmp_path / "digits")
    (tmp_path / "digits" / "model.sig").rename(tmp_path / "model.sig")
    check = verifying.Config().use_elliptic_key_verifier(public_key=signing_key.public)
    check.verify(tmp_path / "digits", tmp_path / "model.sig")
    with zipfile.ZipFile(archive) as opened:
        assert "model.sig" not in opened.namelist()


def test_what_is_no_package_or_no_key_is_refused_and_the_archive_stays(
    archive: Path, tmp_path: Path, signing_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTSHIFT_SIGNING_KEY", raising=False)
    before = archive.read_bytes()
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_SIGNING_KEY is not set"):
        signed("digits", archive, None)
    with pytest.raises(ConfigurationError, match=r"--key .* cannot be read"):
        signed("digits", archive, tmp_path / "missing.pem")
    with pytest.raises(DataValidationError, match="is no file"):
        signed("digits", tmp_path / "missing.zip", signing_key.private)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataValidationError, match="damaged or no zip"):
        signed("digits", tmp_path / "text.zip", signing_key.private)
    assert archive.read_bytes() == before
