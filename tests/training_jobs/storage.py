"""The calls of the model storage that an evaluation makes."""

from __future__ import annotations

import re


class Storage:
    """The two calls of the model storage that an evaluation makes, over real HTTP.

    Stands in for the service, which promotes a version only through a running Triton.
    """

    def __init__(self) -> None:
        self.champion: str | None = None
        self.archive: bytes = b""
        self.status = 200
        self.authorization = ""
        self.url = ""

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.status != 200:
            return self.status, b"no"
        if self.champion is None:
            return 404, b'{"detail": "no version is in production"}'
        if re.fullmatch(r"/models/\w+/champion", path):
            return 200, b'{"version": "%s", "triton_version": 3}' % self.champion.encode()
        return (200, self.archive) if path.endswith(f"/versions/{self.champion}/archive") else (404, b"unknown")
