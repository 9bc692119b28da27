"""A double of Sigstore for one test: identity provider, certificate authority and transparency log of one process.

The cryptography is real: certificates with a signed certificate timestamp, a Merkle tree of one leaf, its signed
checkpoint and the signed entry. So the real libraries sign by it and check what it signed. It is no Fulcio, no Rekor
and no identity provider: of their own checks it has one, that it made the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # of Fulcio's certificates
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
ECDSA_P256_SHA256 = "PKIX_ECDSA_P256_SHA_256"
PROVIDER = "https://double.example"


class SigstoreDouble:
    """An instance of Sigstore with keys of its own; `tokens_seen` are those that certificates were asked for with."""

    def __init__(self) -> None:
        self._authority, self._certificates, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self._secret = "of the identity provider, which only it and the authority know"
        self._root = self._authority_certificate()
        self.tokens_seen: list[str] = []
        self.entries = 0
        self.refuses = 0
        self.url = ""

    def token(self, identity: str, seconds: float = 600, audience: str = "sigstore") -> str:
        """Return a token of the identity provider."""
        now = int(time.time())
        claims = {"iss": PROVIDER, "sub": identity, "aud": audience, "iat": now - 60, "exp": now + seconds}
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def trusted_root(self) -> dict[str, Any]:
        """Return what those trust who check signatures."""
        start = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": text(der(key)), "keyDetails": ECDSA_P256_SHA256, "validFor": start}
            return {
                "baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public,
                "logId": {"keyId": text(key_id(key))},
            }  # fmt: skip

        chain = {"certificates": [{"rawBytes": text(self._root.public_bytes(Encoding.DER))}]}
        subject = {"organization": "double", "commonName": "double"}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self._log)], "ctlogs": [log(self._certificates)],
            "certificateAuthorities": [{"subject": subject, "uri": self.url, "certChain": chain, "validFor": start}],
            "timestampAuthorities": [],
        }  # fmt: skip

    def trust_config(self, file: Path) -> Path:
        """Write what signing needs: where the parts are, and the trusted root."""
        service = {
            "url": self.url, "majorApiVersion": 1, "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "double",
        }  # fmt: skip
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service], "oidcUrls": [service], "rekorTlogUrls": [service], "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
        }  # fmt: skip
        kind = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
        content = {"mediaType": kind, "trustedRoot": self.trusted_root(), "signingConfig": signing}
        file.write_text(json.dumps(content))
        return file

    def certificate(self, request: dict[str, str], token: str) -> dict[str, Any]:
        """Return the chain of a certificate for the identity of the token: Fulcio's part."""
        self.tokens_seen.append(token)
        identity = jwt.decode(token, self._secret, algorithms=["HS256"], audience="sigstore")["sub"]
        csr = x509.load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"]))
        now, name = datetime.now(UTC), x509.RFC822Name if "://" not in identity else x509.UniformResourceIdentifier
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([])).issuer_name(self._root.subject).public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(minutes=10))
            .add_extension(usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), False)
            .add_extension(x509.SubjectAlternativeName([name(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(ISSUER, PROVIDER.encode()), critical=False)
        )  # fmt: skip
        without = builder.sign(self._authority, hashes.SHA256())
        noted = x509.UnrecognizedExtension(SCT_LIST, self._certificate_timestamp(without.tbs_certificate_bytes))
        leaf = builder.add_extension(noted, critical=False).sign(self._authority, hashes.SHA256())
        chain = [one.public_bytes(Encoding.PEM).decode() for one in (leaf, self._root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Return the entry of an envelope in a log that has no other: Rekor's part, version 1."""
        self.entries += 1
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        (verifier,), (signature,) = content["verifiers"], envelope["signatures"]
        body = canonical(
            {
                "apiVersion": "0.0.1", "kind": "dsse",
                "spec": {
                    "envelopeHash": digest(content["envelope"].encode()),
                    "payloadHash": digest(base64.b64decode(envelope["payload"])),
                    "signatures": [{"signature": signature["sig"], "verifier": verifier}],
                },
            }
        )  # fmt: skip
        root = hashlib.sha256(b"\0" + body).digest()
        said = {"body": text(body), "integratedTime": int(time.time()), "logID": key_id(self._log).hex(), "logIndex": 0}
        note = f"{self.url} - 1\n1\n{text(root)}\n"
        signed = text(key_id(self._log)[:4] + sign(self._log, note.encode()))
        proof = {
            "logIndex": 0, "treeSize": 1, "rootHash": root.hex(), "hashes": [],
            "checkpoint": f"{note}\n\N{EM DASH} double {signed}\n",
        }  # fmt: skip
        promise = text(sign(self._log, canonical(said)))
        return {root.hex(): said | {"verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}}

    def _authority_certificate(self) -> x509.Certificate:
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, "double"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "double")]
        )
        public = self._authority.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(public).serial_number(x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage(key_cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority, hashes.SHA256())
        )  # fmt: skip

    def _certificate_timestamp(self, certificate: bytes) -> bytes:
        """Return the extension that says that a certificate is in a log: RFC 6962, sections 3.2 and 3.3."""
        milliseconds = int(time.time() * 1000)
        entry = key_id(self._authority) + len(certificate).to_bytes(3, "big") + certificate
        signed = sign(self._certificates, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\0\0")
        sct = b"\0" + key_id(self._certificates) + struct.pack("!Q", milliseconds) + b"\0\0\4\3" + vector(signed)
        listed = vector(vector(sct))
        return bytes([0x04, len(listed)]) + listed  # an OCTET STRING of less than 128 bytes


@contextmanager
def sigstore_double() -> Iterator[SigstoreDouble]:
    """Run the double on a port of its own."""
    double = SigstoreDouble()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            places = {f"{name}_endpoint": f"{double.url}/{name}" for name in ("authorization", "token")}
            self._answer(200 if self.path == "/.well-known/openid-configuration" else 404, places)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if double.refuses:
                self._answer(double.refuses, {"message": "not now"})
            elif self.path == "/api/v2/signingCert":
                self._answer(200, double.certificate(body, self.headers["Authorization"].removeprefix("Bearer ")))
            elif self.path == "/api/v1/log/entries":
                self._answer(201, double.entry(body))
            else:
                self._answer(404, {})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_args: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half of a key as DER."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return how logs name a key."""
    return hashlib.sha256(der(key)).digest()


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return an ECDSA signature."""
    return key.sign(content, ec.ECDSA(hashes.SHA256()))


def text(content: bytes) -> str:
    """Return base64."""
    return base64.b64encode(content).decode()


def canonical(content: dict[str, Any]) -> bytes:
    """Return JSON as logs sign it: RFC 8785, for what is in it here."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(content: bytes) -> dict[str, str]:
    """Return a SHA-256 as log entries have it."""
    return {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}


def vector(content: bytes) -> bytes:
    """Return content behind its length, as TLS writes it."""
    return len(content).to_bytes(2, "big") + content


def usage(**used: bool) -> x509.KeyUsage:
    """Return a key's usages: those that are named."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**(dict.fromkeys(names, False) | used))
