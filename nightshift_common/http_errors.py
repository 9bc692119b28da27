"""What a server says about a request that it refuses."""

from __future__ import annotations

import httpx


def detail_of(response: httpx.Response) -> str:
    """Return the reason that an error names: the key `detail` of its JSON (as FastAPI answers), else its text."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
