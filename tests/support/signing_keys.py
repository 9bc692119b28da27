"""Keys that sign packages, and those that check it."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Key:
    """A key pair in two files of a folder."""

    def __init__(self, folder: Path, curve: ec.EllipticCurve | None = None) -> None:
        folder.mkdir(parents=True)
        key = ec.generate_private_key(curve or ec.SECP256R1())
        self.private, self.public = folder / "private.pem", folder / "public.pem"
        pem = serialization.Encoding.PEM
        pkcs8, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.private.write_bytes(key.private_bytes(pem, pkcs8, no_password))
        self.public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))

    @property
    def one_line(self) -> str:
        """The public key without the first and last line of its PEM text."""
        return "".join(self.public.read_text().splitlines()[1:-1])
