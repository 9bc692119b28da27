"""Signed packages: what was altered, or is of nobody who may, is not published and never reaches the real Triton."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from local.triton import TritonServer
from services.model_storage.repository.signatures import Signatures
from services.model_storage.settings import Settings
from tests.services.model_storage.signing import SIGNATURE, Files, meaning, mutants, package, sign, sign_as
from tests.services.model_storage.support import (
    Database,
    Storage,
    model_zip,
    running_triton,
    serving,
    settings_for,
    wait_for,
    zip_of,
)
from tests.support.signing_keys import Key
from tests.support.sigstore_double import PROVIDER, sigstore_double

MUTANTS = 200


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that the storage trusts."""
    return Key(tmp_path_factory.mktemp("keys") / "trusted")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton for the tests of this module; one process at a time may have its repository."""
    with running_triton(tmp_path_factory.mktemp("signed")) as server:
        yield server


@pytest.fixture(scope="module")
def url(database: Database) -> str:
    """A database for the storages of this module, one after another."""
    return database.new()


@pytest.fixture
def strict(triton: TritonServer, url: str, key: Key) -> Iterator[Storage]:
    """A storage that takes signed packages only."""
    with serving(triton, signed_only(triton, url, key)) as storage:
        yield storage


def signed_only(triton: TritonServer, url: str, *keys: Key, policy: str = "require") -> Settings:
    trusted = "\n".join(key.public.read_text() for key in keys)
    return settings_for(triton, url, signatures=policy, public_keys=trusted)


def signed(key: Key, model: str, scale: float, folder: Path, signed_as: str = "") -> Files:
    return sign(key, package(model, scale), signed_as or model, folder / f"{model}-{scale}-{signed_as}")


def in_triton(storage: Storage, model: str) -> list[int]:
    return storage.service.fleet.servers[0].served().get(model, [])


def test_of_200_mutated_packages_none_is_published_or_served_and_the_true_one_is(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    true = signed(key, model, 2.0, tmp_path)
    others = (
        sign(Key(tmp_path / "other_key"), package(model, 2.0), model, tmp_path / "by_another_key"),
        signed(key, "another", 3.0, tmp_path),
        signed(key, model, 5.0, tmp_path),
    )
    tried = {archive: what for what, archive in mutants(true, *others)}
    assert len(tried) >= MUTANTS

    def refused_all() -> None:
        answers = {what: strict.upload(model, archive).status_code for archive, what in tried.items()}
        assert {what: status for what, status in answers.items() if status != 400} == {}

    refused_all()
    assert strict.client.get(f"/models/{model}/versions").status_code == 404
    assert not (strict.repository / model).exists()
    assert strict.upload(model, zip_of(true)).json() == {"version": "0.0.1"}
    assert strict.promote(model, "0.0.1").status_code == 200
    refused_all()
    assert [one["version"] for one in strict.client.get(f"/models/{model}/versions").json()] == ["0.0.1"]
    assert in_triton(strict, model) == [1] and strict.scale_served(model) == 2.0


def test_an_archive_that_is_only_wrapped_otherwise_is_what_was_signed(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    true = signed(key, model, 2.0, tmp_path)
    comment = io.BytesIO(zip_of(true))
    with zipfile.ZipFile(comment, "a") as archive:
        archive.comment = b"PK\x05\x06 and more"
    for wrapped in (b"#!/bin/sh\n" + zip_of(true), comment.getvalue(), zip_of(true, zipfile.ZIP_STORED)):
        reply = strict.upload(model, wrapped)
        assert reply.status_code == 400 or reply.json()["version"] == "0.0.1", reply.text
    stored = strict.client.get(f"/models/{model}/versions/0.0.1/archive", params={"as_signed": True}).content
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        assert meaning({name: archive.read(name) for name in archive.namelist()}) == meaning(true)


def test_a_signed_version_is_served_and_says_by_which_key_and_where_it_comes_from(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path)))
    record = strict.client.get(f"/models/{model}/versions/0.0.1").json()
    assert record["signed_by"] == hashlib.sha256(key.public.read_bytes()).hexdigest()
    assert record["provenance"]["predicate"]["snapshot"] == "s1"
    assert record["meta"] == {"scale": 2.0, "model_version": "0.0.1"}
    assert strict.promote(model, "0.0.1").status_code == 200
    assert strict.scale_served(model) == 2.0
    assert strict.client.get(f"/history/{model}").json()[0]["signed_by"] == record["signed_by"]


def test_a_downloaded_version_verifies_with_the_official_command(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path)))
    content = strict.client.get(f"/models/{model}/versions/0.0.1/archive", params={"as_signed": True}).content
    folder = tmp_path / "downloaded"
    zipfile.ZipFile(io.BytesIO(content)).extractall(folder)

    def verified() -> bool:
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature"]
        command += [str(folder / SIGNATURE), "--public_key", str(key.public)]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert verified()
    (folder / "labels.txt").write_text("one\nzero\n")
    assert not verified()
    assert "model_version" in strict.client.get(f"/models/{model}/versions/0.0.1").text  # elsewhere it is there


def test_a_package_of_another_model_is_refused_also_where_only_its_name_was_changed(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    reply = strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path, signed_as="another")))
    assert reply.status_code == 400 and "is of a package of the model 'another'" in reply.text


def test_refusals_say_what_is_wrong_and_what_to_do(strict: Storage, model: str, key: Key, tmp_path: Path) -> None:
    unsigned = strict.upload(model, model_zip(model, 2.0))
    assert unsigned.status_code == 400 and "conversion_jobs.sign_package" in unsigned.text
    stranger = Key(tmp_path / "stranger")
    foreign = strict.upload(model, zip_of(signed(stranger, model, 2.0, tmp_path)))
    known = hashlib.sha256(key.public.read_bytes()).hexdigest()[:12]
    assert foreign.status_code == 400 and f"trusted keys: {known}" in foreign.text
    bare = strict.client.post(
        "/upload_model", files={"file": ("m.onnx", package(model, 2.0)["model.onnx"])}, data={"model_name": model}
    )
    assert bare.status_code == 400 and "is not signed" in bare.text


@pytest.mark.parametrize("name", ["model.onnx", "config.pbtxt.uploaded", "meta.json.uploaded", SIGNATURE, "labels.txt"])
@pytest.mark.parametrize("how", ["altered", "removed"])
def test_a_version_whose_files_changed_after_the_upload_is_not_loaded_and_the_one_before_serves_on(
    strict: Storage, model: str, key: Key, tmp_path: Path, name: str, how: str
) -> None:
    for scale in (2.0, 3.0):
        strict.upload(model, zip_of(signed(key, model, scale, tmp_path)))
    strict.promote(model, "0.0.1")
    file = strict.repository / model / "2" / name
    content = file.read_bytes()
    file.unlink()
    if how == "altered":
        file.write_bytes(content.replace(b"1", b"2") if name == SIGNATURE else content + b"\n")
    for call in ("promote", "pin", "stage"):
        reply = strict.client.post(f"/models/{model}/versions/0.0.2/{call}", json={})
        assert reply.status_code == 400 and "no longer what a trusted key has signed" in reply.text, call
    reply = strict.client.post(f"/models/{model}/versions/0.0.2/canary", json={"share": 0.1})
    assert reply.status_code == 400
    assert in_triton(strict, model) == [1] and strict.scale_served(model) == 2.0
    assert in_triton(strict, f"{model}__candidate") == in_triton(strict, f"{model}__canary") == []


def test_a_champion_that_was_altered_does_not_come_back_after_triton_lost_it(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path)))
    strict.promote(model, "0.0.1")
    file = strict.repository / model / "1" / "model.onnx"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(package(model, 3.0)["model.onnx"])
    strict.service.fleet.unload(model)
    (failed,) = strict.service.production.reconcile()
    assert "model.onnx was altered" in failed
    assert in_triton(strict, model) == []
    file.write_bytes(content)
    assert strict.service.production.reconcile() == []
    assert strict.scale_served(model) == 2.0


def test_what_is_served_comes_from_the_configuration_that_was_signed(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path)))
    stored = strict.repository / model / "1" / "config.pbtxt"
    text = stored.read_text()
    stored.unlink()
    stored.write_text(text + "instance_group { count: 7 kind: KIND_CPU }\n")
    assert strict.promote(model, "0.0.1").status_code == 200
    assert "count: 7" not in (strict.repository / model / "config.pbtxt").read_text()


def test_a_version_cannot_lose_the_signature_that_it_had_in_production(
    triton: TritonServer, url: str, key: Key, model: str, tmp_path: Path
) -> None:
    with serving(triton, signed_only(triton, url, key)) as strict:
        strict.upload(model, zip_of(signed(key, model, 2.0, tmp_path)))
        strict.promote(model, "0.0.1")
        strict.service.fleet.unload(model)
        record = strict.repository / model / ".versions" / "0.0.1"
        unsigned = json.loads(record.read_text()) | {"signed_by": None}
        record.write_text(json.dumps(unsigned))
        (strict.repository / model / "1" / "model.onnx").unlink()
        (strict.repository / model / "1" / "model.onnx").write_bytes(package(model, 3.0)["model.onnx"])
    for policy in ("require", "warn"):
        with serving(triton, signed_only(triton, url, key, policy=policy)) as storage:
            assert in_triton(storage, model) == []
            assert "was altered" in storage.promote(model, "0.0.1").text


def test_what_was_in_production_before_signatures_were_asked_for_stays_and_nothing_else_without_one_comes(
    triton: TritonServer, url: str, key: Key, model: str, tmp_path: Path
) -> None:
    with serving(triton, settings_for(triton, url)) as lenient:
        for scale in (2.0, 3.0):
            lenient.published(model, scale)
        lenient.promote(model, "0.0.1")
        lenient.service.fleet.unload(model)
    with serving(triton, signed_only(triton, url, key)) as strict:
        wait_for(lambda: in_triton(strict, model) == [1])
        refused = strict.promote(model, "0.0.2")
        assert refused.status_code == 400 and "is not signed" in refused.text
        again = {**package(model, 3.0), "config.pbtxt": model_config_of(model)}
        files = {"model.onnx": again["model.onnx"], "meta.json": meta_of(3.0), "config.pbtxt": again["config.pbtxt"]}
        assert strict.upload(model, zip_of(sign(key, files, model, tmp_path / "again"))).json() == {"version": "0.0.3"}
        assert strict.promote(model, "0.0.3").status_code == 200
        assert strict.client.post(f"/models/{model}/rollback", json={}).json()["version"] == "0.0.1"
        assert strict.scale_served(model) == 2.0


def model_config_of(model: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(model_zip(model, 3.0))) as archive:
        return archive.read("config.pbtxt")


def meta_of(scale: float) -> bytes:
    with zipfile.ZipFile(io.BytesIO(model_zip("m", scale))) as archive:
        return archive.read("meta.json")


def test_by_default_an_unsigned_package_is_taken_with_a_line_in_the_log_and_a_false_signature_is_not(
    triton: TritonServer, url: str, key: Key, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(triton, url, public_keys=key.one_line)
    assert settings.signatures == "warn"
    with serving(triton, settings) as storage:
        storage.promote(model, storage.published(model, 2.0))
        assert "taken without a signature" in caplog.text and "loaded without a signature" in caplog.text
        altered = signed(key, model, 3.0, tmp_path) | {"labels.txt": b"other"}
        assert storage.upload(model, zip_of(altered)).status_code == 400
        assert storage.upload(model, zip_of(signed(key, model, 4.0, tmp_path))).json() == {"version": "0.0.2"}


def test_with_signatures_off_nobody_looks_at_them(triton: TritonServer, url: str, key: Key, model: str) -> None:
    with serving(triton, settings_for(triton, url, signatures="off")) as storage:
        reply = storage.upload(model, zip_of(package(model, 2.0) | {SIGNATURE: b"no signature"}))
        assert reply.json() == {"version": "0.0.1"}
        assert storage.promote(model, "0.0.1").status_code == 200
        assert storage.client.get(f"/models/{model}/versions/0.0.1").json()["signed_by"] is None
        archive = storage.client.get(f"/models/{model}/versions/0.0.1/archive", params={"as_signed": True})
        assert archive.status_code == 404 and "is not signed" in archive.text


def test_keys_change_while_both_are_trusted_and_what_the_old_one_signed_goes_with_it(
    triton: TritonServer, url: str, key: Key, model: str, tmp_path: Path
) -> None:
    new = Key(tmp_path / "new", ec.SECP384R1())
    with serving(triton, signed_only(triton, url, key, new)) as both:
        both.upload(model, zip_of(signed(key, model, 2.0, tmp_path / "old")))
        both.upload(model, zip_of(signed(new, model, 3.0, tmp_path)))
        for version in ("0.0.1", "0.0.2"):
            assert both.promote(model, version).status_code == 200
    with serving(triton, signed_only(triton, url, new)) as storage:
        gone = storage.promote(model, "0.0.1")
        assert gone.status_code == 400 and "is of the key" in gone.text
        assert storage.scale_served(model) == 3.0
        resigned = storage.upload(model, zip_of(signed(new, model, 2.0, tmp_path / "again")))
        assert resigned.json() == {"version": "0.0.3"}


def test_an_identity_signs_as_a_key_does_and_is_checked_again_before_each_load(
    triton: TritonServer, url: str, key: Key, model: str, tmp_path: Path
) -> None:
    who, other = "release@example.org", "somebody@example.org"
    with sigstore_double() as double:
        first = sign_as(who, double, package(model, 2.0), model, tmp_path / "first")
        second = sign_as(who, double, package(model, 3.0), model, tmp_path / "second")
        strangers = sign_as(other, double, package(model, 5.0), model, tmp_path / "third")
        root = tmp_path / "trusted_root.json"
        root.write_text(json.dumps(double.trusted_root()))
    keys = {"signatures": "require", "public_keys": key.one_line}
    identities = {"identities": [{"identity": who, "identity_provider": PROVIDER}], "trust_root": str(root)}
    with serving(triton, settings_for(triton, url, **keys, **identities)) as storage:
        for number, files in enumerate((first, second, signed(key, model, 4.0, tmp_path)), 1):
            assert storage.upload(model, zip_of(files)).json() == {"version": f"0.0.{number}"}
        refused = storage.upload(model, zip_of(strangers))
        assert refused.status_code == 400 and other in refused.text
        assert storage.promote(model, "0.0.1").status_code == 200 and storage.scale_served(model) == 2.0
        assert storage.client.get(f"/history/{model}").json()[0]["signed_by"] == f"{who} ({PROVIDER})"
        graph = storage.repository / model / "2" / "model.onnx"
        graph.unlink()
        graph.write_bytes(package(model, 5.0)["model.onnx"])
        assert "model.onnx was altered" in storage.promote(model, "0.0.2").text
    with serving(triton, settings_for(triton, url, **keys)) as storage:
        assert storage.promote(model, "0.0.3").status_code == 200
        gone = storage.promote(model, "0.0.1")
        assert gone.status_code == 400 and "MODEL_STORAGE_IDENTITIES trusts none" in gone.text


def test_the_same_files_signed_again_are_the_same_version(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    for number in (1, 2):
        files = package(model, 2.0) | {"provenance.json": json.dumps({"attempt": number}).encode()}
        answer = strict.upload(model, zip_of(sign(key, files, model, tmp_path / str(number)))).json()
        assert (answer["version"], answer.get("already_published", False)) == ("0.0.1", number == 2)
    assert strict.client.get(f"/models/{model}/versions/0.0.1").json()["provenance"] == {"attempt": 1}


def test_a_candidate_and_a_canary_that_are_signed_are_served(
    strict: Storage, model: str, key: Key, tmp_path: Path
) -> None:
    for scale in (2.0, 3.0):
        strict.upload(model, zip_of(signed(key, model, scale, tmp_path)))
    strict.promote(model, "0.0.1")
    assert strict.client.post(f"/models/{model}/versions/0.0.2/stage").status_code == 200
    assert strict.client.post(f"/models/{model}/versions/0.0.2/canary", json={"share": 0.1}).status_code == 200
    assert strict.scale_served(f"{model}__candidate") == strict.scale_served(f"{model}__canary") == 3.0


@pytest.mark.parametrize(
    ("policy", "keys", "reason"),
    [
        ("require", "", "asks for a key or an identity that is trusted"),
        ("warn", "no key", "key 1 is no public key"),
        ("warn", base64.b64encode(b"no key").decode(), "key 1 is no public key"),
        ("sometimes", "", "'off', 'warn' or 'require'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(policy: str, keys: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(repository="/m", database_url="postgresql://", auth="off", signatures=policy, public_keys=keys)


def test_keys_are_read_as_pem_texts_and_as_lines(tmp_path: Path) -> None:
    keys = [Key(tmp_path / str(number)) for number in range(3)]
    wanted = {hashlib.sha256(key.public.read_bytes()).hexdigest() for key in keys}
    assert Signatures("require", "".join(key.public.read_text() for key in keys)).trusted == wanted
    assert Signatures("require", " , ".join(key.one_line for key in keys)).trusted == wanted


def test_a_key_on_a_curve_that_signatures_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="secp256k1"):
        Signatures("require", Key(tmp_path / "key", ec.SECP256K1()).one_line)
