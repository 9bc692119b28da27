"""Which requests a canary answers, by a key: the same in the model storage's `route` and in the router."""

from __future__ import annotations

import hashlib


def share_of(model: str, key: str) -> float:
    """Return a number in 0 to 1 that is as good as random, and always the same for one key of a model."""
    return int.from_bytes(hashlib.sha256(f"{model}\0{key}".encode(errors="replace")).digest()[:8], "big") / 2**64
