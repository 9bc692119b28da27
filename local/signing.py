"""The key pair of this machine's stack: publishing signs with one half, the model storage trusts the other."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local.settings import Settings


def private_key(settings: Settings) -> Path:
    """Return the file of the private key, made at first use, readable by its owner alone: PEM, EC on P-256."""
    path = settings.folder("signing") / "private.pem"
    if not path.exists():
        content = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        temporary.replace(path)
    return path


def public_key(settings: Settings) -> Path:
    """Return the file of the public key that belongs to the private one: PEM."""
    private = serialization.load_pem_private_key(private_key(settings).read_bytes(), None)
    content = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = settings.folder("signing") / "public.pem"
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    return path
