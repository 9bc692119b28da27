"""Signing by an identity instead of a key, with a double of Sigstore (tests/support/sigstore_double.py)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conversion_jobs import sign_package
from jobkit.errors import ConfigurationError, JobError, TransientError
from jobkit.job import Context
from nightshift_common.exit_codes import ExitCode
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.support.signing_keys import Key
from tests.support.sigstore_double import PROVIDER, SigstoreDouble

WHO = "https://git.example/nightshift/.ci/release.yml@refs/heads/main"
# By which the library finds out that it runs in a CI system, so whom to ask for a token.
SURROUNDINGS = ("GITHUB_ACTIONS", "CIRCLECI", "BUILDKITE", "GITLAB_CI", "SIGSTORE_ID_TOKEN")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "model_onnx.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("model.onnx", b"a graph")
        opened.writestr("meta.json", "{}")
    return path


@pytest.fixture(autouse=True)
def environment(sigstore: SigstoreDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance of Sigstore, and nobody who signs."""
    sigstore.refuses = 0
    for name in ("NIGHTSHIFT_SIGNING_KEY", "NIGHTSHIFT_SIGNING_TOKEN", "NIGHTSHIFT_SIGNING_TOKEN_FILE", *SURROUNDINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TRUST_CONFIG", str(sigstore.trust_config(tmp_path / "trust_config.json")))


def sign(archive: Path) -> None:
    sign_package.run(sign_package.Arguments(model_name="digits", archive=archive), Context(archive.parent, None))


def signed_by(archive: Path, identity: str, trust_config: Path) -> bool:
    """Whether the official command finds that `identity` signed all files of an archive, and for the model digits."""
    folder = archive.with_suffix("") / "digits"
    zipfile.ZipFile(archive).extractall(folder)
    command = [sys.executable, "-m", "model_signing", "verify", "sigstore", str(folder), "--identity", identity]
    command += ["--signature", str(folder / "model.sig"), "--identity_provider", PROVIDER]
    return subprocess.run([*command, "--trust_config", str(trust_config)], capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_command_signs_with_a_token_which_goes_to_the_authority_and_is_shown_nowhere(
    sigstore: SigstoreDouble, archive: Path, tmp_path: Path
) -> None:
    token = sigstore.token(WHO)
    command = [sys.executable, "-X", "dev", "-m", "conversion_jobs.sign_package", "--model_name", "digits"]
    known = {**os.environ, "NIGHTSHIFT_SIGNING_TOKEN": token, "NIGHTSHIFT_JOB_DIR": str(tmp_path / "job")}
    done = subprocess.run([*command, "--archive", str(archive)], env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sigstore.tokens_seen[-1] == token
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    with zipfile.ZipFile(archive) as opened:
        written += [opened.read(name) for name in opened.namelist()]
    assert not [text for text in (*written, (done.stdout + done.stderr).encode()) if token.encode() in text]
    assert signed_by(archive, WHO, tmp_path / "trust_config.json")
    assert not signed_by(archive, f"{WHO}2", tmp_path / "trust_config.json")


def test_a_token_in_a_file_is_read_when_something_is_signed(
    sigstore: SigstoreDouble, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN_FILE", str(file))
    for identity in ("first@example.org", "second@example.org"):  # as Kubernetes renews them
        file.write_text(f"{sigstore.token(identity)}\n")
        sign(archive)
        assert sigstore.tokens_seen[-1] == file.read_text().strip()


def test_an_ambient_token_is_the_one_that_the_library_finds(
    sigstore: SigstoreDouble, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sigstore.token(WHO)
    for name, value in {"NIGHTSHIFT_SIGNING_TOKEN": "ambient", "GITLAB_CI": "true", "SIGSTORE_ID_TOKEN": token}.items():
        monkeypatch.setenv(name, value)
    sign(archive)
    assert sigstore.tokens_seen[-1] == token


def test_an_identity_goes_before_a_key(
    sigstore: SigstoreDouble, archive: Path, signing_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_KEY", signing_key.private.read_text())
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", sigstore.token(WHO))
    sign(archive)
    with zipfile.ZipFile(archive) as opened:
        assert "certificate" in json.loads(opened.read("model.sig"))["verificationMaterial"]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("NIGHTSHIFT_SIGNING_TOKEN", "ambient", "NIGHTSHIFT_SIGNING_TOKEN: nothing around the job gives a token"),
        ("NIGHTSHIFT_SIGNING_TOKEN", "no.token.at.all", "NIGHTSHIFT_SIGNING_TOKEN holds no token that is good now"),
        ("NIGHTSHIFT_SIGNING_TOKEN_FILE", "/missing", "NIGHTSHIFT_SIGNING_TOKEN_FILE: /missing cannot be read"),
        ("NIGHTSHIFT_SIGNING_TOKEN_FILE", "/dev/null", "NIGHTSHIFT_SIGNING_TOKEN_FILE: /dev/null is empty"),
    ],
)
def test_without_a_token_the_job_ends_with_2_and_names_the_variable(
    archive: Path, variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, sigstore: SigstoreDouble
) -> None:
    before, asked = archive.read_bytes(), len(sigstore.tokens_seen)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        sign(archive)
    assert refused.value.exit_code == ExitCode.CONFIGURATION == 2
    assert archive.read_bytes() == before and len(sigstore.tokens_seen) == asked


def test_two_tokens_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", "a.b.c")
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN_FILE", "/dev/null")
    with pytest.raises(ConfigurationError, match="are set: give one"):
        sign(archive)


@pytest.mark.parametrize(("seconds", "audience"), [(-30, "sigstore"), (600, "another")])
def test_a_token_that_is_old_or_for_another_is_refused_and_not_shown(
    sigstore: SigstoreDouble,
    archive: Path,
    seconds: int,
    audience: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    token = sigstore.token(WHO, seconds, audience)
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", token)
    with pytest.raises(ConfigurationError, match="holds no token that is good now") as refused:
        sign(archive)
    assert token not in str(refused.value) and token not in caplog.text


@pytest.mark.parametrize(("status", "error"), [(503, TransientError), (403, ConfigurationError)])
def test_an_authority_that_is_away_is_tried_again_later_and_one_that_refuses_is_not(
    sigstore: SigstoreDouble, archive: Path, status: int, error: type[JobError], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archive.read_bytes()
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", sigstore.token(WHO))
    sigstore.refuses = status
    with pytest.raises(error, match="signing without a key failed"):
        sign(archive)
    assert archive.read_bytes() == before


def test_nobody_who_answers_is_tried_again_later_and_a_configuration_that_is_none_is_not(
    sigstore: SigstoreDouble, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", sigstore.token(WHO))
    file = tmp_path / "trust_config.json"
    file.write_text(file.read_text().replace(sigstore.url, "http://127.0.0.1:9"))
    with pytest.raises(TransientError):
        sign(archive)
    file.write_text("{}")
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_SIGNING_TRUST_CONFIG"):
        sign(archive)
    file.unlink()
    with pytest.raises(ConfigurationError, match="NIGHTSHIFT_SIGNING_TRUST_CONFIG"):
        sign(archive)


def test_a_package_that_is_published_without_a_key_is_taken_by_a_storage_that_trusts_who_signed_it(
    verified: Trained, served: Serving, model: str, sigstore: SigstoreDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NIGHTSHIFT_SIGNING_KEY")
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", sigstore.token("release@nightshift.example"))
    published = verified.publish(model)
    assert published.signed
    record = served.get(f"/models/{model}/versions/{published.version}").json()
    assert record["signed_by"] == f"release@nightshift.example ({PROVIDER})"
    assert record["provenance"]["predicateType"] == "https://slsa.dev/provenance/v1"
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_TOKEN", sigstore.token("somebody@nightshift.example"))
    with pytest.raises(JobError, match="by an identity that is not trusted"):
        verified.publish(f"{model}-2")
