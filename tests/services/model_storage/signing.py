"""Signed packages, as the official library makes them, and ways to alter one."""

from __future__ import annotations

import base64
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from model_signing import signing

from tests.services.model_storage.support import zip_of
from tests.support.signing_keys import Key
from tests.support.sigstore_double import SigstoreDouble
from tests.support.tiny_onnx import scaling_config, scaling_model

SIGNATURE = "model.sig"
Files = dict[str, bytes]


def sign(key: Key, files: Files, model: str, folder: Path) -> Files:
    """Return `files` and their signature by `key`."""
    return _signed(signing.Config().use_elliptic_key_signer(private_key=key.private), files, model, folder)


def sign_as(identity: str, double: SigstoreDouble, files: Files, model: str, folder: Path) -> Files:
    """Return `files` and their signature by an identity, without a key."""
    folder.mkdir(parents=True)
    config = double.trust_config(folder / "trust_config.json")
    signer = signing.Config().use_sigstore_signer(identity_token=double.token(identity), trust_config=config)
    return _signed(signer, files, model, folder)


def _signed(config: signing.Config, files: Files, model: str, folder: Path) -> Files:
    package = folder / model
    package.mkdir(parents=True)
    for name, content in files.items():
        (package / name).write_bytes(content)
    signature = folder / SIGNATURE
    config.sign(package, signature)
    return files | {SIGNATURE: signature.read_bytes()}


def package(model: str, scale: float) -> Files:
    """Return the files of a model that multiplies by `scale`, with where it comes from."""
    provenance = {"_type": "https://in-toto.io/Statement/v1", "predicate": {"snapshot": "s1", "scale": scale}}
    return {
        "model.onnx": scaling_model(scale),
        "meta.json": json.dumps({"scale": scale}).encode(),
        "config.pbtxt": scaling_config(model).encode(),
        "labels.txt": b"zero\none\n",
        "provenance.json": json.dumps(provenance).encode(),
    }


def meaning(files: Files) -> Any:
    """Return what a package says: base64 and JSON have several forms of the same."""
    try:
        bundle = json.loads(files.get(SIGNATURE, b""))
        envelope = bundle["dsseEnvelope"]
        signatures = [base64.b64decode(entry["sig"]) for entry in envelope["signatures"]]
        said = [base64.b64decode(envelope["payload"]), envelope["payloadType"], signatures, bundle["mediaType"]]
        said.append(bundle["verificationMaterial"])
    except (ValueError, KeyError, TypeError) as error:
        said = [repr(error)]
    return {name: content for name, content in files.items() if name != SIGNATURE}, said


def mutants(files: Files, other_key: Files, other_model: Files, other_version: Files) -> Iterator[tuple[str, bytes]]:
    """Yield many names and archives, none of which says what the signed package `files` says; always the same.

    Args:
        files: a signed package.
        other_key: the same files, signed by a key that nobody trusts.
        other_model: another model's package, signed by the same key.
        other_version: another version of the same model, signed by the same key.
    """
    dice = random.Random(20261121)
    for name in files:
        for kind in (_flip, _cut, _grow, _patch):
            yield from _each(f"{kind.__name__[1:]} {name}", files, name, kind, dice, 8 if kind is _flip else 4)
        yield f"without {name}", zip_of({other: content for other, content in files.items() if other != name})
        for taken, others in {"untrusted": other_key, "model": other_model, "version": other_version}.items():
            changed = files | {name: others[name]}
            if meaning(changed) != meaning(files):
                yield f"{name} of the other {taken}", zip_of(changed)
        renamed = {f"{other}.old" if other == name else other: content for other, content in files.items()}
        yield f"{name} under another name", zip_of(renamed)
        for second in sorted(set(files) - {name}):
            if name < second:
                yield f"{name} and {second} swapped", zip_of(files | {name: files[second], second: files[name]})
            yield f"{name} in the place of {second}", zip_of(files | {second: files[name]})
        yield f"{name} twice", _twice(files, name, files[name] + b" ")
        yield f"{name} twice, the false one first", _twice(files, name, files[name] + b" ", first=True)
        yield f"{name} twice, in capitals", zip_of(files | {name.upper(): files[name]})
    for added in ("model.plan", "note.txt", "model.onnx.data", "extra.sig", "version.json", "config.pbtxt.uploaded"):
        yield f"with {added}", zip_of(files | {added: b"something"})
    for edit in EDITS:
        yield f"signature with {edit.__name__[1:]}", zip_of(files | {SIGNATURE: _edited(files[SIGNATURE], edit)})
    for taken, others in {"untrusted key": other_key, "other model": other_model}.items():
        yield f"all of the {taken}", zip_of(others)
    archive = zip_of(files, zipfile.ZIP_STORED)
    at = archive.index(files["model.onnx"])
    for number in range(6):
        place = at + dice.randrange(len(files["model.onnx"]))
        yield f"a byte in the stored archive {number}", _with(archive, place, archive[place] ^ 1)
    yield "an archive within", zip_of({"package.zip": archive})


def _each(
    what: str, files: Files, name: str, change: Callable[[bytes, random.Random], bytes], dice: random.Random, count: int
) -> Iterator[tuple[str, bytes]]:
    done = 0
    while done < count:
        changed = files | {name: change(files[name], dice)}
        if meaning(changed) != meaning(files):
            yield f"{what} {done}", zip_of(changed)
            done += 1


def _flip(content: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(content))
    return _with(content, place, content[place] ^ 1 << dice.randrange(8))


def _cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


def _grow(content: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(content) + 1)
    return content[:place] + dice.randbytes(3) + content[place:]


def _patch(content: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(content))
    end = min(len(content), start + 8)
    return content[:start] + dice.randbytes(end - start) + content[end:]


def _with(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


def _twice(files: Files, name: str, false: bytes, first: bool = False) -> bytes:
    buffer = io.BytesIO()
    entries = list(files.items())
    entries = [(name, false), *entries] if first else [*entries, (name, false)]
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that is what is tried
        for entry, content in entries:
            archive.writestr(zipfile.ZipInfo(entry), content)
    return buffer.getvalue()


def _edited(signature: bytes, edit: Callable[[Any, Any], None]) -> bytes:
    """Return the bundle after `edit`, which gets it and its statement."""
    bundle = json.loads(signature)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    edit(bundle, statement)
    if "payload" in bundle.get("dsseEnvelope", {}):
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle).encode()


def _another_file_in_the_manifest(_: Any, statement: Any) -> None:
    statement["predicate"]["resources"].append({"name": "x", "digest": "0" * 64, "algorithm": "sha256"})


def _fewer_files_in_the_manifest(_: Any, statement: Any) -> None:
    statement["predicate"]["resources"].pop()


def _an_empty_manifest(_: Any, statement: Any) -> None:
    statement["predicate"]["resources"].clear()


def _other_digests(_: Any, statement: Any) -> None:
    for resource in statement["predicate"]["resources"]:
        resource["digest"] = "0" * 64


def _files_to_ignore(_: Any, statement: Any) -> None:
    statement["predicate"]["serialization"]["ignore_paths"] = ["model.onnx"]


def _another_model(_: Any, statement: Any) -> None:
    statement["subject"][0]["name"] = "another"


def _another_predicate(_: Any, statement: Any) -> None:
    statement["predicateType"] = "https://model_signing/Digests/v0.1"


def _another_payload_type(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"]["payloadType"] = "text/plain"


def _no_signature(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"]["signatures"] = []


def _an_empty_signature(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = ""


def _zeros_as_signature(bundle: Any, _: Any) -> None:
    """r = s = 0, which careless verifiers take."""
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(bytes.fromhex("3006020100020100")).decode()


def _no_hint(bundle: Any, _: Any) -> None:
    del bundle["verificationMaterial"]["publicKey"]["hint"]


def _another_hint(bundle: Any, _: Any) -> None:
    bundle["verificationMaterial"]["publicKey"]["hint"] = "0" * 64


def _no_material(bundle: Any, _: Any) -> None:
    del bundle["verificationMaterial"]


def _a_certificate_instead(bundle: Any, _: Any) -> None:
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}


def _another_media_type(bundle: Any, _: Any) -> None:
    bundle["mediaType"] = "application/json"


def _no_envelope(bundle: Any, _: Any) -> None:
    bundle["dsseEnvelope"] = {}


def _a_message_instead(bundle: Any, _: Any) -> None:
    del bundle["dsseEnvelope"]
    bundle["messageSignature"] = {"messageDigest": {"algorithm": "SHA2_256", "digest": "AAAA"}, "signature": "AAAA"}


EDITS = (
    _another_file_in_the_manifest, _fewer_files_in_the_manifest, _an_empty_manifest, _other_digests, _files_to_ignore,
    _another_model, _another_predicate, _another_payload_type, _no_signature, _an_empty_signature, _zeros_as_signature,
    _no_hint, _another_hint, _no_material, _a_certificate_instead, _another_media_type, _no_envelope,
    _a_message_instead,
)  # fmt: skip
