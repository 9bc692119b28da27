"""Signatures by an identity instead of a key: one that Sigstore's public instance noted, checked without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.model_storage.errors import NotTrusted
from services.model_storage.repository.keyless import Identity
from services.model_storage.repository.signatures import Signatures
from services.model_storage.settings import Settings
from tests.support.sigstore_double import sigstore_double

RECORDED = Path(__file__).parent / "recorded" / "v1.1.0-sigstore"
MODEL = RECORDED.name
SIGNATURE = (RECORDED / "model.sig").read_bytes()
FILES = {path.name: path.read_bytes() for path in RECORDED.iterdir() if path.name != "model.sig"}
WHO = {"identity": "stefanb@us.ibm.com", "identity_provider": "https://sigstore.verify.ibm.com/oauth2"}
OTHERS = [
    WHO | {"identity": "stefanb@us.ibm.org"},
    WHO | {"identity": "tefanb@us.ibm.com"},
    WHO | {"identity_provider": "https://sigstore.verify.ibm.com/oauth"},
    WHO | {"identity_provider": "https://accounts.google.com"},
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage in a closed network: whoever looks for Sigstore's servers fails."""

    def refuse(*_args: object) -> None:
        raise AssertionError("a signature was checked over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def signatures(*identities: dict[str, str], trust_root: Path | None = None) -> Signatures:
    return Signatures("require", "", [Identity(**identity) for identity in identities], trust_root)


def signer(trusted: Signatures, files: dict[str, bytes], signature: bytes = SIGNATURE, model: str = MODEL) -> str:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return trusted.signer(model, digests, signature)


def test_a_model_that_was_signed_at_the_public_instance_is_of_its_signer_and_of_nobody_else() -> None:
    assert signer(signatures(WHO), FILES) == "stefanb@us.ibm.com (https://sigstore.verify.ibm.com/oauth2)"
    assert signer(signatures(*OTHERS, WHO), FILES) == str(Identity(**WHO))
    for other in OTHERS:
        with pytest.raises(NotTrusted, match="by an identity that is not trusted"):
            signer(signatures(other), FILES)


def test_the_refusal_of_a_stranger_names_the_stranger() -> None:
    with pytest.raises(NotTrusted, match=r"actual SANs: \{'stefanb@us\.ibm\.com'\}"):
        signer(signatures(OTHERS[0]), FILES)
    with pytest.raises(NotTrusted, match=r"got 'https://sigstore\.verify\.ibm\.com/oauth2'"):
        signer(signatures(OTHERS[2]), FILES)


@pytest.mark.parametrize(
    "files",
    [
        FILES | {"signme-1": b"signme-2"},
        FILES | {"signme-2": FILES["signme-2"][:-1] + b"3"},
        FILES | {"signme-3": b"signme-3"},
        FILES | {"ignore-me": b"whoever signed ignored this name, which is not for the signer to say"},
        FILES | {"model.sig.": b""},
        {"signme-1": FILES["signme-1"]},
        {"signme-1": FILES["signme-2"], "signme-2": FILES["signme-1"]},
        {},
    ],
    ids=["altered", "altered by a byte", "added", "added and ignored", "added and empty", "fewer", "swapped", "none"],
)
def test_other_files_than_those_that_were_signed_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(NotTrusted, match="does not hold for these files"):
        signer(signatures(WHO), files)


def test_another_model_s_name_is_refused() -> None:
    with pytest.raises(NotTrusted, match=r"of the model 'v1\.1\.0-sigstore', the upload is for 'digits'|does not hold"):
        signer(signatures(WHO), FILES, model="digits")


def leaves(bundle: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the texts of a bundle stand."""
    if isinstance(bundle, str):
        return [place]
    inside = bundle.items() if isinstance(bundle, dict) else enumerate(bundle) if isinstance(bundle, list) else ()
    return [found for key, value in inside for found in leaves(value, (*place, key))]


def altered(place: tuple[Any, ...]) -> bytes:
    """Return the bundle with one byte changed in one of its texts."""
    bundle = json.loads(SIGNATURE)
    holder: Any = bundle
    for key in place[:-1]:
        holder = holder[key]
    value = holder[place[-1]]
    try:
        content = bytearray(base64.b64decode(value, validate=True))
        content[len(content) // 2] ^= 1
        holder[place[-1]] = base64.b64encode(content).decode()
    except ValueError:
        at = len(value) // 4  # of the log's checkpoint: within what is signed, before the name beside its signature
        holder[place[-1]] = f"{value[:at]}{'0' if value[at] != '0' else '1'}{value[at + 1 :]}"
    return json.dumps(bundle).encode()


MATERIAL = "verificationMaterial"
STAMP = (MATERIAL, "timestampVerificationData", "rfc3161Timestamps", 0, "signedTimestamp")
BOUND = [place for place in leaves(json.loads(SIGNATURE)) if place != STAMP]


@pytest.mark.parametrize("place", BOUND, ids=lambda place: ".".join(map(str, place)))
def test_one_altered_byte_anywhere_in_the_signature_is_refused(place: tuple[Any, ...]) -> None:
    with pytest.raises(NotTrusted):
        signer(signatures(WHO), FILES, altered(place))


def test_of_the_two_proofs_of_when_it_was_signed_one_must_hold() -> None:
    """A certificate is good for minutes; the log and a timestamp authority both said that it was in them."""
    bundle = json.loads(SIGNATURE)
    entry = bundle[MATERIAL]["tlogEntries"][0]
    assert signer(signatures(WHO), FILES, altered(STAMP)) == str(Identity(**WHO))
    promise = entry.pop("inclusionPromise")
    assert signer(signatures(WHO), FILES, json.dumps(bundle).encode()) == str(Identity(**WHO))
    bundle[MATERIAL]["timestampVerificationData"] = {}
    with pytest.raises(NotTrusted):
        signer(signatures(WHO), FILES, json.dumps(bundle).encode())
    entry["inclusionPromise"] = promise
    assert signer(signatures(WHO), FILES, json.dumps(bundle).encode()) == str(Identity(**WHO))
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 3600)
    with pytest.raises(NotTrusted):
        signer(signatures(WHO), FILES, json.dumps(bundle).encode())


@pytest.mark.parametrize(
    "material", [{}, {"certificate": {}}, {"certificate": {"rawBytes": "AAAA"}}, {"x509CertificateChain": {}}, None]
)
def test_a_signature_without_a_certificate_that_can_be_read_is_refused(material: Any) -> None:
    with pytest.raises(NotTrusted):
        signer(signatures(WHO), FILES, json.dumps(json.loads(SIGNATURE) | {"verificationMaterial": material}).encode())


def test_a_key_s_hint_beside_the_certificate_changes_nothing() -> None:
    bundle = json.loads(SIGNATURE)
    bundle["verificationMaterial"]["publicKey"] = {"hint": "0" * 64}
    with pytest.raises(NotTrusted):
        signer(signatures(OTHERS[0]), FILES, json.dumps(bundle).encode())


def test_where_no_identity_is_trusted_the_refusal_says_so() -> None:
    with pytest.raises(NotTrusted, match="MODEL_STORAGE_IDENTITIES trusts none"):
        signer(Signatures("warn"), FILES)


def test_the_trust_root_is_the_one_of_the_settings(tmp_path: Path) -> None:
    """The public instance's signature means nothing where another instance is trusted."""
    with sigstore_double() as double:
        for name, content in {"root": double.trusted_root(), "config": None}.items():
            file = tmp_path / f"{name}.json"
            file.write_text(json.dumps(content)) if content else double.trust_config(file)
            with pytest.raises(NotTrusted, match="does not hold"):
                signer(signatures(WHO, trust_root=file), FILES)


def settings(**values: object) -> Settings:
    return Settings(repository="/m", database_url="postgresql://", auth="off", signatures="require", **values)


def test_identities_and_trust_root_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODEL_STORAGE_IDENTITIES", json.dumps([WHO]))
    monkeypatch.setenv("MODEL_STORAGE_TRUST_ROOT", "")
    assert signer(settings().trusted, FILES) == str(Identity(**WHO))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "asks for a key or an identity that is trusted"),
        ({"identities": [WHO], "trust_root": "/missing"}, "the trust root /missing cannot be read"),
        ({"identities": [{"identity": "me"}]}, "identity_provider"),
        ({"identities": [WHO | {"identity": ""}]}, "identity"),
        ({"identities": [WHO | {"identity": "*@us.ibm.com, me"}]}, "identity"),
        ({"identities": [WHO | {"identity_provider": "ibm"}]}, "identity_provider"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**values)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"mediaType": "x"}', '{"trustedRoot": {}}', "[" * 100_000])
def test_a_file_that_is_no_trust_root_is_refused_at_the_start(content: str, tmp_path: Path) -> None:
    file = tmp_path / "root.json"
    file.write_text(content)
    with pytest.raises(ValidationError, match="trust root"):
        settings(identities=[WHO], trust_root=str(file))
